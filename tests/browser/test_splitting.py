"""The step-splitting slider in a real Chromium: as a saved page, and in JupyterLab with a cloud in another process."""

import os
import socket
import statistics
import subprocess
import sys
import time

import httpx
import lab_page
import nbformat
import pytest
from lab_page import STEP

from lab.hybridsd import view

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
CELL = """
import lab.hybridsd.view
live = lab.HybridSD(cloud="{url}").pipeline()
lab.hybridsd.view.splitting(prompts=["one red circle on the left"], seeds=(0,), N=6, live=live)
"""


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
        lab_page.move(slider, k)
        page.wait_for_selector(f".lab-explorer:has-text('{says}')")
        # the picture, the one whose prompt is withdrawn, and the strip of stages
        assert page.locator(".lab-explorer image").count() == 3
    page.select_option(".lab-explorer select[name=order]", label="edge first")
    page.wait_for_selector(".lab-explorer:has-text('edge: 0 steps')")
    page.screenshot(path=artefacts / f"splitting_{scheme}.png")
    assert not watch.errors and not watch.elsewhere


@pytest.fixture(scope="module")
def cloud():
    """`lab serve cloud` in another process: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "lab", "serve", "cloud", "--port", url.rpartition(":")[2]]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for _ in range(300):
        try:
            httpx.get(f"{url}/health", timeout=1)
            break
        except httpx.HTTPError:
            assert process.poll() is None
            time.sleep(0.2)
    yield url
    process.terminate()
    process.wait(20)


def test_a_prompt_is_typed_and_the_cloud_is_asked(server, cloud, open_page, watch, artefacts):
    cells = [nbformat.v4.new_code_cell(CELL.format(url=cloud))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), server.folder / "splitting.ipynb")
    page = open_page(server.page("splitting.ipynb"))
    lab_page.wait_for_notebook(page)
    lab_page.run_all(page)
    page.wait_for_selector(".lab-explorer input[name=k]")
    box = page.locator(".lab-explorer .typed")
    box.fill("two blue squares at the top")
    box.press("Enter")
    page.wait_for_selector(".lab-explorer .picture:has-text('two blue squares')")
    assert page.locator(".lab-explorer select[name=prompt]").evaluate("e => e.selectedIndex") == -1
    page.click(".lab-explorer button:text-is('ask the cloud')")
    page.wait_for_selector(".lab-explorer .facts:has-text('bytes received')")
    assert page.locator(".lab-explorer .picture:has-text('two blue squares')").count() == 1
    page.screenshot(path=artefacts / "splitting_live.png")
    page.select_option(".lab-explorer select[name=prompt]", label="one red circle on the left")
    page.wait_for_selector(".lab-explorer .picture:has-text('one red circle')")
    assert box.input_value() == "" and not watch.errors
