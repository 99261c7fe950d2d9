"""A packed network in a real browser: the exported page, opened as a file and from a server, and the widget."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lab_page
import nbformat
import numpy as np
import pytest
from PIL import Image

MEASURED = ".lab-classify .again:not(:disabled)"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
MAKE = """
import numpy as np
import torch
from lab.core.tasks import digits
from lab.sparsebytenn import compiler, packed, web
from lab.sparsebytenn.runtime import Engine

task = digits(size=32, channels=3)
pictures = [one for batch, _ in task.batches for one in batch[:6]][:6]


def packed_network(share):
    net = task.model.eval()
    for layer in net.modules():
        if getattr(layer, "kernel_size", None) == (1, 1):
            blocks = layer.weight.data.abs().reshape(-1, 4, layer.in_channels).sum(1)
            keep = blocks >= blocks.quantile(share) if share else torch.ones_like(blocks) > 0
            layer.weight.data *= keep.repeat_interleave(4, 0)[:, :, None, None]
    return Engine(packed.write(compiler.compile(net, task.example, interleaved=True)))


dense, sparse = packed_network(0), packed_network(0.3)
labels = [f"a {i}" for i in range(10)]
options = dict(dense=dense, mean=0.5, images=pictures, labels=labels, title="Digits, 30 % sparse")
"""
WIDGET = """
from lab.ui.classifier import Classifier
shown = Classifier(**web.widget(sparse, **options))
shown
"""


@pytest.fixture(scope="module")
def made():
    """The names that MAKE defines."""
    names = {}
    exec(MAKE, names)
    return names


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    """The exported folder."""
    return made["web"].export_web(made["sparse"], tmp_path_factory.mktemp("web"), **made["options"]).parent


@pytest.fixture
def served(folder):
    """The folder's address on a server of its own."""
    handler = partial(Silent, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Silent(SimpleHTTPRequestHandler):
    """A server that prints nothing."""

    def log_message(self, *_):
        """Nothing."""


class Isolated(Silent):
    """One that sends what the folder's `_headers` asks for."""

    def end_headers(self):
        for line in (Path(self.directory) / "_headers").read_text().splitlines()[1:]:
            self.send_header(*line.strip().split(": "))
        super().end_headers()


def shares(page):
    """The classes shown and their shares in percent."""
    rows = page.locator(".answers .bar").all()
    texts = [(row.locator(".name").inner_text(), row.locator(".value").inner_text()) for row in rows]
    return {name: float(value.removeprefix("< ").removesuffix(" %")) for name, value in texts}


def milliseconds(page):
    """The times shown, by network."""
    rows = page.locator(".times .bar").all()
    texts = [(row.locator(".name").inner_text(), row.locator(".value").inner_text()) for row in rows]
    return {name: float(value.removesuffix(" ms")) for name, value in texts}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opened_as_a_file_classifies_and_times(folder, made, open_page, artefacts, scheme):
    page = open_page((folder / "index.html").as_uri(), scheme)
    page.wait_for_selector(MEASURED, timeout=30_000)
    found = milliseconds(page)
    assert list(found) == ["sparse", "dense"] and all(ms > 0 for ms in found.values())
    assert "as fast as dense" in page.locator(".verdict").inner_text()
    assert "SIMD, one thread" in page.locator(".detail").inner_text()
    page.click(".samples button:nth-child(3)")
    page.wait_for_function("old => document.querySelector('.answers').innerText !== old", arg="")
    picture = np.asarray(made["pictures"][2], np.float32)
    levels = np.round((picture.transpose(1, 2, 0) + 0.5) * 255) / 255 - 0.5  # a picture's bytes
    z = made["sparse"](levels[None].astype(np.float32))[0]
    expected = {f"a {i}": round(100 * float(p), 1) for i, p in enumerate(z.softmax(0))}
    page.wait_for_timeout(200)
    for name, share in shares(page).items():
        assert abs(share - expected[name]) <= 0.11, name
    assert page.locator(".message").inner_text() == ""
    page.screenshot(path=artefacts / f"classifier_{scheme}.png")


def test_a_served_page_takes_any_picture_and_says_what_it_cannot_read(served, open_page, tmp_path):
    page = open_page(served)
    page.wait_for_selector(MEASURED, timeout=30_000)
    before = page.locator(".answers").inner_text()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)).save(tmp_path / "photo.jpg")
    page.set_input_files("input[type=file]", tmp_path / "photo.jpg")
    page.wait_for_function("old => document.querySelector('.answers').innerText !== old", arg=before)
    assert len(shares(page)) == 5
    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("input[type=file]", tmp_path / "text.png")
    page.wait_for_selector(".message:text('text.png is no picture that this browser can read')")
    page.click("button:text-is('Measure again')")
    page.wait_for_selector(".again:disabled")
    page.wait_for_selector(MEASURED, timeout=30_000)


def test_an_isolated_page_runs_on_two_threads_and_gives_the_same(made, open_page, tmp_path, monkeypatch):
    monkeypatch.setattr(made["web"], "MANY", 0)
    monkeypatch.setattr(made["web"], "THREADS", 2)
    made["web"].export_web(made["sparse"], tmp_path, **made["options"])
    classes = []
    for kind in (Silent, Isolated):
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=tmp_path)) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            page = open_page(f"http://127.0.0.1:{server.server_port}/")
            page.wait_for_selector(MEASURED, timeout=30_000)
            number = "two threads" if kind is Isolated and page.evaluate("navigator.hardwareConcurrency") > 1 else "one"
            assert number in page.locator(".detail").inner_text()
            page.click(".samples button:nth-child(3)")
            page.wait_for_timeout(300)
            classes.append(page.locator(".answers").inner_text())
            server.shutdown()
    assert classes[0] == classes[1]


def test_everything_can_be_reached_by_keyboard_and_has_a_name(folder, open_page):
    page = open_page((folder / "index.html").as_uri())
    page.wait_for_selector(MEASURED, timeout=30_000)
    names = []
    for _ in range(8):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate("(e => e.title || e.parentNode.textContent || e.textContent)(document.activeElement)")
        )
    assert names[:2] == ["Choose a picture", "sample picture 1"]
    page.keyboard.press("Enter")
    assert page.get_by_label("the picture as the network gets it").count() == 1


def test_a_large_network_is_fetched_from_beside_the_page_or_says_why_not(made, open_page, watch, tmp_path, monkeypatch):
    monkeypatch.setattr(made["web"], "INLINE", 0)
    index = made["web"].export_web(made["sparse"], tmp_path)
    page = open_page(index.as_uri())
    page.wait_for_selector(".message:text('python -m http.server')")
    assert all("file:" in error or "Failed to load" in error for error in watch.errors)
    watch.errors.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = open_page(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_selector(MEASURED, timeout=30_000)
        assert list(milliseconds(page)) == ["sparse"]
        server.shutdown()


def test_the_widget_in_jupyterlab(server, open_page, artefacts):
    cells = [nbformat.v4.new_code_cell(source) for source in (MAKE + WIDGET, "print(repr(shown))")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), server.folder / "classifier.ipynb")
    page = open_page(server.page("classifier.ipynb"))
    lab_page.wait_for_notebook(page)
    lab_page.run_all(page)
    page.wait_for_selector(MEASURED, timeout=30_000)
    assert list(milliseconds(page)) == ["sparse", "dense"]
    page.screenshot(path=artefacts / "classifier_widget.png")
    lab_page.run_all(page)  # cells again: a widget that is closed while it measures leaves no error
    page.wait_for_selector(MEASURED, timeout=30_000)
