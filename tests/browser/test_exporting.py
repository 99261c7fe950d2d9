"""A notebook as one page, opened from the disk: its explorer moves, its figures are drawn, nothing is asked."""

import nbformat
import pytest

from lab import ui

CELLS = (
    """from lab import ui
def draw(k):
    return ui.Frame(ui.svg.lines([ui.svg.Series("k", [(0, 0), (1, k)])], title=f"slope {k}"), {"slope": k})
ui.Explorer(draw, {"k": range(1, 6)}, title="slopes")""",
    """import plotly.graph_objects as go
ui.figure(go.Scatter(x=[1, 2], y=[2, 1]), title="a figure")""",
    """ui.figure(go.Bar(x=[1, 2], y=[2, 1]), title="another")""",
)


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "own.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS]), path)
    return ui.export(path)


@pytest.mark.parametrize("width", [1024, 390])
def test_explorers_move_and_figures_are_drawn_without_a_kernel(open_page, artefacts, page_path, width):
    page = open_page(page_path.as_uri())
    page.set_viewport_size({"width": width, "height": 900})
    slider = page.locator(".lab-explorer input[type=range]")
    assert slider.count() == 1 and "slope" in page.locator(".lab-explorer .facts").inner_text()
    for value in (2, 3):
        slider.press("ArrowRight")
        assert page.locator(".lab-explorer .facts").inner_text().split()[-1] == str(value)
        assert page.locator(f'.lab-explorer svg[aria-label*="slope {value}"]').count() == 1
    assert page.locator(".plotly-graph-div .main-svg").count() > 2
    assert page.locator(".plotly-graph-div").count() == 2
    page.screenshot(path=artefacts / f"exported_{width}.png", full_page=True)
