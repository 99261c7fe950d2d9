"""Before and after on one page, opened from the disk: no request, no error, nothing cut off, at two widths."""

import lab_page
import pytest

from lab import lens
from tests.lens.test_explanation import NAMES, data, edited, net


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    model = net()
    return lens.compare(model, edited(model, 3, lambda layer: layer.weight.neg_()), [data()], classes=NAMES).save(
        tmp_path_factory.mktemp("explained") / "page.html"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_by_itself(open_page, artefacts, page_path, scheme):
    page = open_page(page_path.as_uri(), scheme)
    page.wait_for_selector(".lab-explorer .controls input, .lab-explorer .controls select")
    assert page.locator("[role=alert]").count() == 1
    assert page.locator("section h2", has_text="Class by class").count() == 1
    first = page.locator(".lab-explorer .facts").first.inner_text()
    page.locator(".lab-explorer input[type=range]").first.press("ArrowRight")
    assert page.locator(".lab-explorer .facts").first.inner_text() != first
    for width in (1024, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=artefacts / f"explanation_{scheme}_{width}.png", full_page=True)
    page.set_viewport_size({"width": 1280, "height": 900})
    assert page.evaluate(lab_page.CLIPPED) == []
