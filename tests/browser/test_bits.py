"""A picture under a slider of bits in a real JupyterLab: a quarter is clicked, enlarged, and left again."""

import statistics

import lab_page
import nbformat
import pytest
from lab_page import target
from test_explorer import CLICK, KERNEL

CELL = """
import lab

task = lab.tasks.photos(2, patch=96, batch_size=4)
few = {"steps": 6, "calibration": 3}
runs = [lab.PAMS(weight_bits=b, activation_bits=b, **few).run(task, progress=False) for b in (8, 2)]
ranges = lab.view(runs[1])
pictures = lab.pams.view.bits(runs, task)
"""


@pytest.fixture(scope="module")
def notebook(server):
    cells = [nbformat.v4.new_code_cell(source) for source in (CELL, "pictures", "'last'")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), server.folder / "bits.ipynb")
    return server.page("bits.ipynb")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_quarter_is_clicked_and_left_again(notebook, open_page, record_property, scheme):
    page = open_page(notebook, scheme)
    lab_page.wait_for_notebook(page)
    if scheme == "dark":
        lab_page.theme(page, "JupyterLab Dark")
    lab_page.run_all(page)
    page.wait_for_selector("[data-set]", state="attached")
    target(page, part="upper left").click()
    page.wait_for_selector(".lab-explorer svg text:has-text('click to go back')")
    target(page, part="whole").click()
    page.wait_for_selector(".lab-explorer svg text:has-text('click a quarter')")
    times = []
    for name in ("upper left", "whole", "lower right", "whole"):
        times.append(target(page, part=name).evaluate(CLICK))
    record_property("click to picture, ms", statistics.median(times))
    assert statistics.median(times) < 200
    if scheme == "dark":
        lab_page.theme(page, "JupyterLab Light")
