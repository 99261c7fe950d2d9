"""What any version has saved loads in this one, to the last bit; a damaged folder is told in one line.

`DAMAGED=10000 python -m pytest tests/test_formats.py -k told_in_one_line` draws so many damaged folders.
"""

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import lab
from lab.core import machine, store
from tests import formats
from tests.core.test_store import alike

VERSIONS = sorted(path.parent for path in formats.FOLDER.glob("*/facts.json"))
GOLDEN = [folder for version in VERSIONS for folder in sorted(version.iterdir()) if folder.is_dir()]
each_golden = pytest.mark.parametrize("folder", GOLDEN, ids=lambda path: f"{path.parent.name}/{path.name}")
DRAWN = int(os.environ.get("DAMAGED", 0))
ONE_LINE = (ValueError, TypeError, OSError)  # what a user may be told, in one line


@pytest.mark.slow
@each_golden
def test_it_loads_to_the_last_bit(folder, tmp_path):
    facts = json.loads((folder.parent / "facts.json").read_text())
    numbers = load_file(folder.parent / "outputs.safetensors")
    outcome = formats.loaded(folder)
    outcome.save(tmp_path / folder.name)
    again, kept = (store.load(where, "outcome") for where in (tmp_path / folder.name, folder))
    assert again.keys() == kept.keys() and again["fields"].items() >= kept["fields"].items()
    assert alike({**again, "fields": kept["fields"]}, kept)
    if "state" in facts["outcomes"][folder.name]:
        assert formats.state(outcome) == facts["outcomes"][folder.name]["state"]
        x, y = (numbers[f"{folder.name}.{which}"] for which in "xy")
        mine = formats.output(outcome, x)
        torch.testing.assert_close(mine, y, atol=1e-5, rtol=1e-5)  # a product's last bit is the processor's
        assert torch.equal(mine, y) or facts["machine"] != machine.machine()
        assert torch.equal(formats.output(formats.loaded(tmp_path / folder.name), x), mine)


def test_this_version_has_one_of_every_recipe_and_all_are_small():
    recipes = {store.load(path, "outcome")["recipe"] for path in GOLDEN if path.parent.name == formats.VERSION}
    assert recipes >= set(lab._RECIPES)
    size = sum(path.stat().st_size for path in (formats.FOLDER / formats.VERSION).rglob("*") if path.is_file())
    assert size < 1_000_000
    assert {path.name for path in GOLDEN if path.parent.name == formats.VERSION} == set(formats.outcomes())


def test_they_hold_no_pickle():
    for path in (path for folder in GOLDEN for path in folder.rglob("*") if path.is_file()):
        assert path.suffix in (".json", ".safetensors", ".md", ".pt2", ".py"), path
        assert path.read_bytes()[:1] != b"\x80", path


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A copy of each golden folder of this version, which a test changes and puts right again."""
    top = tmp_path_factory.mktemp("golden")
    for folder in GOLDEN:
        shutil.copytree(folder, top / folder.name, dirs_exist_ok=True)
    return top


def parts(folder: Path) -> list[Path]:
    """All files that belong to a save, the model card being nobody's promise."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")


def told(folder: Path) -> str | None:
    """The one line that loading a folder ends with, None where it loads."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a number that is on its way out may stand in a file
            formats.loaded(folder)
        return None
    except ONE_LINE as error:
        assert str(error) and "\n" not in str(error), error
        return str(error)


def drawn(standard: int) -> settings:
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    phases = [Phase.generate] if DRAWN else [Phase.generate, Phase.shrink]  # the first of ten thousand is enough
    return settings(
        max_examples=DRAWN or standard, deadline=None, suppress_health_check=checks, derandomize=not DRAWN,
        phases=phases, database=None,
    )  # fmt: skip


def altered(draw: Any, path: Path, others: list[Path]) -> bytes | None:
    """The content of a file after an accident, None where it is gone."""
    content = path.read_bytes()
    kind = draw(st.sampled_from(["bits", "bits", "cut", "longer", "gone", "swapped", "zeros", "NaN"]))
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    if kind == "bits":
        flipped = bytearray(content)
        for place in {at, *draw(st.lists(st.integers(0, len(content) - 1), max_size=3))}:
            flipped[place] ^= 1 << draw(st.integers(0, 7))
        return bytes(flipped)
    if kind == "swapped":
        return draw(st.sampled_from(others)).read_bytes()
    if kind == "NaN":
        return content[:at] + b"NaN" + content[at + 1 :]
    return {"cut": content[:at], "longer": content + content[at:], "gone": None, "zeros": bytes(len(content))}[kind]


@pytest.mark.slow
def test_an_accidental_damage_is_told_in_one_line(copies):
    everything = [path for folder in sorted(copies.iterdir()) for path in parts(folder)]

    @drawn(300)
    @given(st.data())
    def damage(data):
        path = data.draw(st.sampled_from(everything))
        folder = copies / path.relative_to(copies).parts[0]
        content, new = path.read_bytes(), altered(data.draw, path, everything)
        try:
            path.unlink() if new is None else path.write_bytes(new)
            if told(folder) is None:  # as if nothing had been: 1e-05 or 1E-05
                assert alike(store.load(folder, "outcome"), store.load(_golden(folder), "outcome"))
        finally:
            path.write_bytes(content)

    damage()
    assert [told(folder) for folder in sorted(copies.iterdir())] == [None] * len(list(copies.iterdir()))


def _golden(folder: Path) -> Path:
    return next(path for path in reversed(GOLDEN) if path.name == folder.name)


def leaves(tree: Any, at: tuple = ()) -> list[tuple]:
    """The positions of all parts of a tree, dictionaries and lists within it included."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(place for key, value in inside for place in leaves(value, (*at, key)))]


def changed(tree: Any, at: tuple, change: Any) -> Any:
    """The tree with one part changed; `change(part)` may give `gone`."""
    if not at:
        return change(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    part = changed(copy[at[0]], at[1:], change)
    if part is gone:
        del copy[at[0]]
    else:
        copy[at[0]] = part
    return copy


def gone(part: Any) -> Any:
    """A part that is not there; stands for itself."""
    return gone


def wrong(draw: Any, part: Any, at: tuple) -> Any:
    """What may stand in a tree in a part's stead."""
    if isinstance(part, torch.Tensor):
        more = torch.cat([part.reshape(-1), part.reshape(-1), torch.zeros(1, dtype=part.dtype)])
        others = [part.reshape(-1)[:-1], more, part.unsqueeze(0), part.double(), torch.zeros(0), part.reshape(-1) * 0]
        return draw(st.sampled_from([gone, *others, 3]))
    if isinstance(part, dict):
        return draw(st.sampled_from([gone, {**part, "extra": torch.ones(2)}, {}, [], None]))
    others = [gone, None, -1, 10**9, 2**70, float("nan"), float("inf"), "", "x", [], {}, {"a": 1}, torch.ones(2, 2)]
    return draw(st.sampled_from([*others, [*part, 1]] if isinstance(part, list) else others))


@pytest.mark.slow
def test_a_folder_that_was_saved_with_other_contents_is_told_in_one_line(copies):
    """All digests fit, what is stored does not: it loads where it makes an outcome, and otherwise ends in one line."""
    folders = sorted(copies.iterdir())
    trees = {folder: store.load(folder, "outcome") for folder in folders}

    @drawn(60)
    @given(st.data())
    def damage(data):
        folder = data.draw(st.sampled_from(folders))
        at = data.draw(st.sampled_from(leaves(trees[folder])[1:]))
        tree = changed(trees[folder], at, lambda part: wrong(data.draw, part, at))
        beside = json.loads((folder / "outcome.json").read_text())["beside"]
        before = {path: path.read_bytes() for path in parts(folder)}
        try:
            store.save(folder, "outcome", tree, beside)
            line = told(folder)
            is_weight = at[:2] == ("found", "weights") and len(at) == 3
            assert line is not None or not is_weight or _fits(tree, trees[folder], at)
        finally:
            for path in parts(folder):
                path.unlink()
            for path, content in before.items():
                path.write_bytes(content)

    damage()


def _fits(tree: Any, before: Any, at: tuple) -> bool:
    """Whether a weight that was changed is still a tensor of its shape: for a scalar torch takes (1,) too."""
    weights, old = tree["found"]["weights"], before["found"]["weights"]
    shape, wanted = getattr(weights.get(at[2]), "shape", None), old[at[2]].shape
    return weights.keys() == old.keys() and (shape == wanted or (wanted == () and shape == (1,)))
