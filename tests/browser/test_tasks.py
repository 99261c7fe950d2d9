"""HyperFD's stream in a real Chromium: a saved page in both schemes, and JupyterLab, where a table is replayed."""

import statistics

import lab_page
import nbformat
import pytest
from lab_page import STEP
from test_explorer import KERNEL

import lab

CELL = """
import lab

outcome = lab.HyperFD(steps=2, trials=6).run(progress=False)
lab.view(outcome)
"""
TITLES = ("tasks served before", "recommended to", "bytes on either side", "meta-vectors of all tasks")


@pytest.fixture(scope="module")
def outcome():
    return lab.HyperFD(steps=2, trials=6).run(progress=False)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_tasks_are_walked_through(outcome, tmp_path, open_page, artefacts, record_property, scheme):
    page = open_page(lab.view(outcome).save(tmp_path / "tasks.html").as_uri(), scheme)
    slider = page.locator(".lab-explorer input[name=task]")
    slider.wait_for()
    times = [slider.evaluate(STEP) for _ in range(8)]
    record_property("step to picture, ms", statistics.median(times))
    for position in (0, len(outcome.served) - 1):
        lab_page.move(slider, position)
        page.wait_for_selector(f".lab-explorer .facts:has-text('{outcome.served[position].name}')")
        shown = page.locator(".lab-explorer .picture").inner_html()
        assert all(title in shown for title in TITLES)
    page.screenshot(path=artefacts / f"tasks_{scheme}.png", full_page=True)


def test_the_stream_is_replayed_in_jupyterlab(server, open_page):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=KERNEL),
                   server.folder / "tasks.ipynb")  # fmt: skip
    page = open_page(server.page("tasks.ipynb"))
    lab_page.wait_for_notebook(page)
    lab_page.run_all(page)
    lab_page.move(page.locator(".lab-explorer input[name=task]"), 11)
    page.wait_for_selector(".lab-explorer .facts:has-text('pictures sent')")
    page.wait_for_selector(".lab-explorer .picture:has-text('recommended to')")
