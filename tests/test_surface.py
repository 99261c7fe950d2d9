"""The public surface: what is named exists, and nothing else is promised."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lab

ROOT = Path(__file__).parents[1]


def test_every_public_name_resolves():
    for name in lab.__all__:
        assert getattr(lab, name) is not None, name
    assert dir(lab) == sorted(lab.__all__)


def test_every_place_is_named():
    assert set(lab.__all__) == {"RECIPES", "load", *lab._HOMES}


FRESH = """
import sys
from operator import attrgetter
import lab
rooms = [getattr(lab, package) for package in {rooms}]
assert not {{"plotly", "anywidget", "lab.ui"}} & set(sys.modules)
for room in rooms:
    assert "view" in dir(room) and room.__name__ + ".view" not in sys.modules
    assert room.view is sys.modules[room.__name__ + ".view"]
for path in {paths}:
    attrgetter(path.removeprefix("lab."))(lab)
"""


def test_views_and_all_that_the_readme_names_are_there_after_import_lab():
    rooms = [package for package, _ in lab._RECIPES.values()]
    paths = re.findall(r"\blab(?:\.[A-Za-z_]\w*)+", (ROOT / "README.md").read_text())
    assert "lab.hybridsd.view.splitting" in paths
    code = FRESH.format(rooms=rooms, paths=[*dict.fromkeys(paths)])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there_is_one_line():
    with pytest.raises(AttributeError, match=r"module 'lab\.gal' has no attribute 'Prune'"):
        _ = lab.gal.Prune
    with pytest.raises(AttributeError, match="lab has no 'Prune'; it has DQSS, GAL, "):
        _ = lab.Prune


def test_an_outcome_of_a_later_version_is_refused_in_one_line(tmp_path):
    import torch

    from lab.core import store

    for recipe, shown in (("Later", "'Later'"), (torch.ones(2, 2), "a Tensor")):
        store.save(tmp_path, "outcome", {"recipe": recipe, "fields": {}})
        with pytest.raises(ValueError, match=f"holds an outcome of {shown}; this version of the lab has GAL"):
            lab.load(tmp_path)


LIGHT = """
import sys
import lab
lab.GAL, lab.Task, lab.tasks
from lab.core import report
heavy = ("pandas", "sklearn", "skimage", "scipy.ndimage", "scipy.stats", "PIL", "plotly", "transformers", "onnx")
print(*(name for name in heavy if name in sys.modules))
"""


def test_a_recipe_brings_no_library_before_it_is_needed():
    """torch, joblib and safetensors are what a run needs; tables, pictures and files bring theirs when they come."""
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
