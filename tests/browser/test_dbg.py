import sys, time
import lab_page, test_tour, nbformat, pathlib, pytest
from test_explorer import notebook, CELL, KERNEL
def test_first(notebook, open_page):
    page=open_page(notebook); lab_page.wait_for_notebook(page); lab_page.run_all(page); page.wait_for_selector(lab_page.RATE)
    for _ in range(3):
        page.click(".lm-MenuBar-itemLabel:text-is('Edit')"); page.click(".lm-Menu-itemLabel:text-is('Clear Outputs of All Cells')")
        page.locator(".jp-CodeCell").nth(1).locator(".jp-InputPrompt").click(); page.wait_for_timeout(500)
        t=time.perf_counter(); page.keyboard.press("Control+Enter"); page.wait_for_selector(lab_page.RATE); print("FIRST", time.perf_counter()-t)
test_tour.TOUR=pathlib.Path("/tmp/ui/00_tour.ipynb")
nb=nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL), nbformat.v4.new_code_cell("explorer",outputs=[])],metadata=KERNEL)
nbformat.write(nb,"/tmp/ui/00_tour.ipynb")
from test_tour import tour, test_the_tour
