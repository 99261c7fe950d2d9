"""The tour as a reader takes it: open it, run every cell, drag the pruning-rate slider, see the picture change."""

import json
import shutil
import time
from pathlib import Path

import lab_page
import pytest

TOUR = Path(__file__).parents[2] / "notebooks" / "00_tour.ipynb"
MINUTES = 10


@pytest.fixture
def tour(server):
    """The tour's address, from a copy, so that the checkout's notebook stays as it is."""
    if not TOUR.exists():
        pytest.skip("notebooks/00_tour.ipynb is not there yet")
    shutil.copy(TOUR, server.folder)
    return server.page(TOUR.name)


def test_the_tour(tour, open_page, artefacts, record_property):
    page = open_page(tour)
    lab_page.wait_for_notebook(page)
    page.keyboard.press("Escape")
    page.click(".lm-MenuBar-itemLabel:text-is('Kernel')")
    page.click(".lm-Menu-itemLabel:text-is('Restart Kernel and Clear Outputs of All Cells…')")
    page.click(".jp-Dialog button.jp-mod-accept")
    lab_page.wait_for_notebook(page)
    start = time.monotonic()
    lab_page.run_all(page, timeout=60 * MINUTES)
    page.wait_for_selector(lab_page.RATE, timeout=30_000)
    seconds = time.monotonic() - start
    bad = ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
    errors = page.locator(", ".join(f".jp-OutputArea-output[data-mime-type='{kind}']" for kind in bad))
    assert errors.all_inner_texts() == []

    slider = page.locator(lab_page.RATE).first
    slider.scroll_into_view_if_needed()
    first = lab_page.picture(page)
    lab_page.drag(page, 0.75)
    lab_page.changed(page, first)
    lab_page.drag(page, 0.5)
    page.wait_for_timeout(500)
    page.screenshot(path=artefacts / "tour.png")
    slider.locator("xpath=ancestor::*[contains(@class, 'lab-explorer')]").screenshot(path=artefacts / "slider.png")
    times = {"run all, s": round(seconds, 1), **lab_page.latencies(page)}
    print(json.dumps(times))
    record_property("tour", times)
    assert times["p50"] < 150
