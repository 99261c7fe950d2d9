"""Paths clicked in a real JupyterLab: a layer's filters, then what one of them sees, within a fifth of a second."""

import json
import statistics

import lab_page
import nbformat
import pytest
from lab_page import target
from test_explorer import CLICK, KERNEL

CELL = """
import lab

paths = lab.view(lab.Decoupling(steps=60).run(progress=False))
"""


@pytest.fixture(scope="module")
def notebook(server):
    cells = [nbformat.v4.new_code_cell(source) for source in (CELL, "paths", "'last'")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), server.folder / "paths.ipynb")
    return server.page("paths.ipynb")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_layer_and_a_filter_are_clicked(notebook, open_page, artefacts, record_property, scheme):
    page = open_page(notebook, scheme)
    lab_page.wait_for_notebook(page)
    if scheme == "dark":
        lab_page.theme(page, "JupyterLab Dark")
    lab_page.run_all(page)
    page.wait_for_selector("[data-set]", state="attached")
    target(page, layer="layer3.0.conv1").click()
    page.wait_for_selector(".lab-explorer .facts:has-text('in layer3.0.conv1')")
    target(page, filter=7).click()
    page.wait_for_selector(".lab-explorer .facts:has-text('7 is o')")
    page.select_option(".lab-explorer select >> nth=1", label="none")
    page.wait_for_selector(".lab-explorer .facts:not(:has-text('shared'))")
    page.select_option(".lab-explorer select >> nth=1", label="2: class 2")
    page.wait_for_selector(".lab-explorer .facts:has-text('shared')")
    page.wait_for_timeout(300)
    times = {"click to picture, ms": statistics.median(target(page, filter=k).evaluate(CLICK) for k in range(10, 30))}
    print(json.dumps(times))
    record_property("click", times)
    assert times["click to picture, ms"] < 200
    page.locator(".lab-explorer").first.screenshot(path=artefacts / f"paths_{scheme}.png")
    if scheme == "dark":
        lab_page.theme(page, "JupyterLab Light")
