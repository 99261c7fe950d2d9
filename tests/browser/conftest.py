"""A real JupyterLab on loopback and a real Chromium; every page is watched for errors and for requests elsewhere."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# No news from elsewhere, and no debugger: where a kernel ends while it is asked, JupyterLab reports that as an error.
QUIET = {
    "disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True, "@jupyterlab/debugger-extension": True}
}


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes long or needs a browser; left out of `make check`")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.slow)


def chromium_path() -> str:
    """Chromium's path from LAB_CHROMIUM or PATH; without one the test is skipped, and fails where CI is set."""
    path = os.environ.get("LAB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path and Path(path).exists():
        return path
    message = "no Chromium was found: apt-get install chromium, or name one in LAB_CHROMIUM"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@dataclass
class Server:
    """A running JupyterLab: its folder, where it answers and its token."""

    folder: Path
    url: str
    token: str

    def page(self, notebook: str) -> str:
        """The address of a notebook of the folder."""
        return f"{self.url}/lab/tree/{notebook}?token={self.token}&reset"

    def ask(self, method: str, path: str) -> bytes:
        """The answer of the server's REST interface."""
        request = urllib.request.Request(f"{self.url}/api/{path}?token={self.token}", method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()

    def end_sessions(self) -> None:
        """Shut down every kernel."""
        for session in json.loads(self.ask("GET", "sessions")):
            self.ask("DELETE", f"sessions/{session['id']}")


@dataclass
class Watch:
    """What a page did that it must not do, and what it was sent."""

    elsewhere: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    received: list[int] = field(default_factory=list)  # bytes of each message from the kernel

    def follow(self, page) -> None:
        """Watch this page from now on."""
        page.on("request", self._request)
        page.on("websocket", self._socket)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)

    def _socket(self, socket) -> None:
        self._request(socket)
        socket.on("framereceived", lambda data: self.received.append(len(data)))

    def _request(self, request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            self.elsewhere.append(request.url)


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """The folder for screenshots."""
    folder = ROOT / "artefacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """JupyterLab with settings of its own, so that the reader's are neither used nor touched."""
    chromium_path()
    home, folder = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("notebooks")
    names = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    own = {f"JUPYTER_{name}": str(home / name.lower()) for name in names}
    own |= {f"JUPYTERLAB_{name}_DIR": str(home / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    config = home / "config_dir" / "labconfig"
    config.mkdir(parents=True)
    (config / "page_config.json").write_text(json.dumps(QUIET))
    running = Server(folder, f"http://127.0.0.1:{free_port()}", "only-for-this-test")
    with open(home / "log.txt", "wb") as log:
        process = subprocess.Popen(command(running), cwd=folder, env=environment(own), stdout=log, stderr=log)
        try:
            wait_until_up(running, process, home / "log.txt")
            yield running
        finally:
            stop(process)


def command(server: Server) -> list[str]:
    """How JupyterLab is started."""
    return [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={urlsplit(server.url).port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={server.token}",
        f"--ServerApp.root_dir={server.folder}",
        f"--LabApp.extra_labextensions_path={extensions(server.folder)}",
    ]


def extensions(folder: Path) -> Path:
    """The checkout's own extension of JupyterLab where the server finds it, whether or not one is installed."""
    parent = folder.with_name(f"{folder.name}-extensions")
    parent.mkdir()
    (parent / "lab-pictures").symlink_to(ROOT / "labextension")
    return parent


def environment(own: dict[str, str]) -> dict[str, str]:
    """The environment of the server and its kernels: one thread, and `lab` from this checkout."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **own, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(server: Server, process: subprocess.Popen, log: Path) -> None:
    """Wait up to a minute for the server's status page."""
    for _ in range(240):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{server.url}/api/status?token={server.token}", timeout=5):
                return
        except OSError:
            time.sleep(0.25)
    pytest.fail(f"JupyterLab did not start: {log.read_text()[-2000:]}")


def stop(process: subprocess.Popen) -> None:
    """End the server, which ends its kernels."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests."""
    path = chromium_path()
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def watch():
    """The errors and outward requests of the test's pages, none of which may be there at its end."""
    seen = Watch()
    yield seen
    assert seen.elsewhere == []
    assert seen.errors == []


@pytest.fixture
def open_page(chromium, watch):
    """A function that opens a watched page of a colour scheme."""
    contexts = []

    def open_one(url: str, scheme: str = "light"):
        context = chromium.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        contexts.append(context)
        context.set_default_timeout(120_000)  # ms: plotly inside a page is 5 MB of script, slow where others compute
        page = context.new_page()
        watch.follow(page)
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        context.close()
