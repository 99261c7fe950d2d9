"""FoldGPT's stack in a real JupyterLab: two sliders fold it, and the measured perplexity follows."""

import lab_page
import nbformat
import pytest
from test_explorer import KERNEL, facts

CELL = """
from itertools import product

import lab
import lab.foldgpt.view

short = {"ranking": "influence", "cure_steps": 0}
rates = product((1 / 12, 1 / 3), (0.0, 1 / 12))
outcomes = [lab.FoldGPT(removal=r, sharing=s, **short).run(progress=False) for r, s in rates]
"""


@pytest.fixture(scope="module")
def notebook(server):
    sources = (CELL, "lab.foldgpt.view.folding(outcomes, 'The value of')")
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), server.folder / "folding.ipynb")
    return server.page("folding.ipynb")


def test_two_sliders_fold_the_stack(notebook, open_page, watch, artefacts):
    page = open_page(notebook, "light")
    lab_page.wait_for_notebook(page)
    lab_page.run_all(page, timeout=240)
    page.wait_for_selector(".lab-explorer input[name=removal]")
    gone = page.locator(".lab-explorer svg >> text=/^removed$/")
    assert gone.count() == 1
    before = facts(page)
    page.locator(".lab-explorer input[name=removal]").press("ArrowRight")
    page.wait_for_function("() => document.querySelectorAll('.lab-explorer svg .lab-gone').length === 4")
    assert gone.count() == 4 and facts(page) != before
    page.locator(".lab-explorer input[name=sharing]").press("ArrowRight")
    page.wait_for_selector(".lab-explorer svg >> text=/^shares$/")
    page.screenshot(path=artefacts / "folding.png", full_page=True)
    assert not watch.errors
