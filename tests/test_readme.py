"""The README's blocks of code run as they stand, and its tables say what there is."""

import re
import tomllib
from pathlib import Path

import pytest

from . import readme

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


QUICKER = {".view.splitting()": ".view.splitting(N=3, seeds=(0,))", ".view.words()": ".view.words(N=3)"}


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in blocks() if "DataLoader" not in block])
def test_every_block_runs_in_a_fresh_process(block, tmp_path):
    for long, short in QUICKER.items():
        block = block.replace(long, short)
    assert readme.run(block, tmp_path) == ""


@pytest.mark.slow
def test_a_block_that_fails_is_seen(tmp_path):
    assert "AttributeError: lab has no 'nothing'" in readme.run("lab.nothing", tmp_path)


@pytest.mark.slow
def test_the_own_network_is_pruned_in_about_ten_lines(tmp_path, monkeypatch, capsys):
    (example,) = (block for block in blocks() if "DataLoader" in block)
    assert len(example.strip().splitlines()) <= 14
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(example, "README.md", "exec"), found)
    report = found["outcome"].report
    assert report["parameters"].after < report["parameters"].before
    assert "accuracy before fine-tuning" in capsys.readouterr().out


def test_every_recipe_that_works_is_in_the_table():
    import lab

    working = re.findall(r"\| `lab\.(\w+)` \|.*arxiv.org.*\| [^|]*\d[^|]* \|", README)
    assert working == [recipe.__name__ for recipe in lab.RECIPES]


def test_every_extra_has_its_line():
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    table = README.partition("## What each extra brings")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(extras)


def test_the_figures_are_those_of_the_registry():
    import lab

    table = lab.works_with().to_markdown()
    assert f"writes this table -->\n{table}\n<!-- end -->" in README


def test_what_is_asked_of_an_outcome_it_has():
    import lab

    rooms = {recipe: getattr(lab, room) for recipe, (room, _) in lab._RECIPES.items()}
    asked = {}
    for block in blocks():
        for recipe in re.findall(r"outcome = lab\.(\w+)", block):
            asked.setdefault(recipe, []).extend(re.findall(r"\boutcome\.(\w+)", block))
    assert set(asked) == set(rooms)
    for recipe, names in asked.items():
        outcome = getattr(rooms[recipe], f"{recipe}Outcome")
        assert {*names} <= {*dir(outcome), *outcome.__dataclass_fields__}, recipe
