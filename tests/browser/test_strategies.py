"""DQSS's map of strategies in a real JupyterLab: a click on a tensor shows its own."""

import lab_page
import nbformat
import pytest
from lab_page import target
from test_explorer import KERNEL

CELL = """
import lab

outcome = lab.DQSS(steps=4, calibration=8, candidates=("max", "mse")).run(lab.tasks.scenes(), progress=False)
explorer = lab.view(outcome)
"""


@pytest.fixture(scope="module")
def notebook(server):
    cells = [nbformat.v4.new_code_cell(source) for source in (CELL, "explorer", "'last'")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), server.folder / "strategies.ipynb")
    return server.page("strategies.ipynb")


def test_a_click_on_a_tensor_shows_its_strategies(notebook, open_page):
    page = open_page(notebook, "light")
    lab_page.wait_for_notebook(page)
    lab_page.run_all(page)
    page.wait_for_selector("[data-set]", state="attached")
    target(page, tensor="conv1, weights").click()
    page.wait_for_selector(".lab-explorer svg text:has-text('signal to noise, conv1, weights')")
