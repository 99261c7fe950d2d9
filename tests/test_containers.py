"""The container file of `lab serve cloud`: what it installs and runs is there, and no notebook is."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lab.__main__ import parser
from lab.core.service import validate_token

ROOT = Path(__file__).parents[1]
FILE = ROOT / "containers" / "cloud.Containerfile"
NOTEBOOK = {"jupyterlab", "ipywidgets", "anywidget", "plotly", "notebook", "jupyter", "pandas", "scikit-image"}


def instructions(text):
    """(instruction, its rest) of each, continued lines joined."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip() and not line.startswith("#")]


def installed(extras):
    """The names of the packages that extras bring, those of the extras that they name themselves too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted, packages = list(extras), set()
    for extra in wanted:
        for requirement in project["optional-dependencies"][extra]:
            name, own = re.match(r"([\w.-]+)(?:\[(.*?)\])?", requirement).groups()
            packages.add(name.lower())
            wanted += own.split(",") if name == project["name"] else []
    return packages


def extras():
    (line,) = [rest for word, rest in instructions(FILE.read_text()) if word == "RUN" and "/wheels/*.whl" in rest]
    return re.search(r"\[(.*?)\]", line)[1].split(",")


def test_what_is_installed_is_what_the_service_needs_and_no_notebook():
    assert set(extras()) == {"diffusion", "serve"} and not installed(extras()) & NOTEBOOK
    assert {"diffusers", "transformers", "fastapi", "uvicorn"} <= installed(extras())
    assert installed(["notebook"]) & NOTEBOOK  # or nothing would be seen


def test_what_is_run_is_a_command_of_the_lab_and_is_reached_and_stopped():
    found = dict(instructions(FILE.read_text()))
    command = json.loads(found["ENTRYPOINT"])
    options = parser().parse_args(command[1:])
    assert command[0] == "lab" and options.what == "cloud" and str(options.port) == found["EXPOSE"]
    assert (
        f"{options.port}/health" in found["HEALTHCHECK"] and found["STOPSIGNAL"] == "SIGTERM" and found["USER"] == "lab"
    )
    with pytest.raises(ValueError, match="can be reached from elsewhere: give --token"):
        validate_token(options.host, None)  # so the service makes one
    shown = re.findall(r"^#.* lab-cloud (--.*)$", FILE.read_text(), re.MULTILINE)
    for options in [*shown, "--device cuda --dtype float16"]:
        parser().parse_args([*command[1:], *options.split()])


def test_what_is_copied_and_told_is_there():
    text = FILE.read_text()
    for path in re.findall(r"containers/[\w.]+", text):
        assert (ROOT / path).is_file(), path
    ignored = (ROOT / "containers" / "cloud.containerignore").read_text().split()
    needed = {"lab", "ckernels", "data", "pyproject.toml", "setup.py", "README.md"}
    assert {".venv", "runs"} <= set(ignored) and not needed & set(ignored)
    assert "graft containers" in (ROOT / "MANIFEST.in").read_text()


SERVED = """
import sys

class Without:  # a finder that does not see them: whoever looks goes on without
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {names} else self.finder.find_spec(name, path, target)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
from starlette.testclient import TestClient
from lab.hybridsd import cloud, prompts
door = TestClient(cloud.application(prompts.embedded()), base_url="http://127.0.0.1")
assert door.get("/health").json()["service"] == "hybridsd"
assert not set(sys.modules) & {names}
"""


@pytest.mark.slow
def test_the_service_runs_where_no_notebook_is_installed():
    names = sorted({*NOTEBOOK, "skimage", "IPython"} - {"scikit-image"})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SERVED.replace("{names}", repr(set(names)))]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
