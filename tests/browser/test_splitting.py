"""The step-splitting slider as a saved page in a real Chromium: k is dragged from the edge alone to the cloud alone."""

import statistics

import pytest
from lab_page import STEP

from lab.hybridsd import view


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return view.splitting(seeds=(0,)).save(tmp_path_factory.mktemp("page") / "split.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_k_is_dragged(saved, open_page, watch, artefacts, record_property, scheme):
    page = open_page(saved.as_uri(), scheme)
    page.wait_for_selector(".lab-explorer input[name=k]")
    slider = page.locator(".lab-explorer input[name=k]")
    times = [slider.evaluate(STEP) for _ in range(12)]
    record_property("step to picture, ms", statistics.median(times))
    assert statistics.median(times) < 150
    for k, says in ((0, "saved 100 %"), (25, "saved 0 %")):
        slider.evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(k))
        page.wait_for_selector(f".lab-explorer:has-text('{says}')")
        assert page.locator(".lab-explorer image").count() == 2
    page.screenshot(path=artefacts / f"splitting_{scheme}.png")
    assert not watch.errors and not watch.elsewhere
