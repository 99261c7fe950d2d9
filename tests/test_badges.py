"""The notebooks on Colab and Binder: the right package is installed, and nothing where it is there already."""

import builtins
import json
import re
import stat
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from lab.core import distribution

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import badges  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = {path.stem: json.loads(path.read_text("utf-8"))["cells"] for path in (ROOT / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_begins_with_its_links_and_the_cell_that_installs(name):
    """`python docs/badges.py` makes both anew."""
    assert NOTEBOOKS[name] == badges.begun(name, NOTEBOOKS[name])
    assert f"github/{badges.OWNER}/{badges.NAME}/blob/main/notebooks/{name}.ipynb" in badges.links(name)


def test_what_is_made_anew_stays_one_cell():
    once = badges.begun("01_gal", NOTEBOOKS["01_gal"][:1] + NOTEBOOKS["01_gal"][2:])
    assert once == NOTEBOOKS["01_gal"] == badges.begun("01_gal", once)


def test_a_cell_that_was_not_run_is_not_made_to_look_so():
    cells = [cell | {"execution_count": None} if cell["id"] == "cell-01" else cell for cell in NOTEBOOKS["01_gal"]]
    assert [cell["execution_count"] for cell in badges.begun("01_gal", cells)[1:3]] == [1, None]


class Shell:
    """What `get_ipython()` gives a cell, which only writes down what it is asked."""

    def __init__(self):
        self.asked = []

    def run_line_magic(self, name, line):
        self.asked.append(f"{name} {line}")

    def system(self, line):
        self.asked.append(line)


def asked_by(name: str, monkeypatch, *, missing: bool) -> list[str]:
    """What a notebook's first cell asks of the shell, where the lab is missing and where it is there."""
    shell, imported = Shell(), builtins.__import__

    def without(module, *rest, **more):
        if missing and module == "lab":
            raise ImportError("No module named 'lab'")
        return imported(module, *rest, **more)

    code = "".join(next(cell for cell in NOTEBOOKS[name] if cell["cell_type"] == "code")["source"])
    with monkeypatch.context() as context:
        context.setattr(builtins, "__import__", without)
        exec(compile(code, name, "exec"), {"get_ipython": lambda: shell})
    return shell.asked


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_first_cell_installs_by_the_right_name_and_only_where_the_lab_is_missing(name, monkeypatch):
    assert asked_by(name, monkeypatch, missing=False) == []
    pip, *more = asked_by(name, monkeypatch, missing=True)
    package = Requirement(re.fullmatch(r"pip install -q '(.+)'", pip)[1])
    assert package.name == distribution.NAME
    assert {"notebook"} <= package.extras <= set(PROJECT["optional-dependencies"])
    models = [f"git clone -q --depth 1 {PROJECT['urls']['Repository']}", f"env LAB_DATA={badges.NAME}/data"]
    assert more == (models if name in badges.FROM_CHECKOUT else [])


def test_binder_installs_what_the_notebooks_need():
    environment = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text())
    names = [Requirement(re.sub(r"(?<![=<>])=(?!=)", "==", line)) for line in environment["dependencies"]]
    held = {need.name: need.specifier for need in names}
    assert environment["name"] == distribution.NAME and {"pip", "c-compiler"} <= set(held)
    (version,) = (clause.version for clause in held["python"])
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(version)
    assert f"torch{held['pytorch-cpu']}" in PROJECT["dependencies"]
    script = ROOT / "binder" / "postBuild"
    assert script.stat().st_mode & stat.S_IXUSR
    (extras,) = re.findall(r"-e '\.\[([\w,]+)\]'", script.read_text())
    assert set(extras.split(",")) == {"notebook", *(extra for some in badges.EXTRAS.values() for extra in some)}
    assert set(badges.EXTRAS) | set(badges.FROM_CHECKOUT) <= set(NOTEBOOKS)


def test_the_readme_opens_the_tour_and_says_where_the_site_is():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert badges.links("00_tour") in text and f"<{PROJECT['urls']['Documentation']}>" in text
