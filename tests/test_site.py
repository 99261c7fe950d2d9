"""The site's pages before they are built: what they name exists, what they quote was measured, what moves is kept."""

import ast
import json
import re
import sys
from operator import attrgetter
from pathlib import Path

import pytest
from docutils.utils.math.latex2mathml import tex2mathml

import lab
from lab import __main__ as cli

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import explorers  # noqa: E402
from maker import cards, figures, markup  # noqa: E402

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md"), ROOT / "README.md"])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NO_EXPLORER = {("05_sparsebytenn", "cell-31")}  # the engine in a browser is a widget of its own
OUTCOMES = {recipe: f"{recipe}Outcome" for recipe in lab._RECIPES} | {"Chain": "ChainOutcome"}


def unknown(text: str) -> list[str]:
    """What a page names that the public surface does not have: names, settings of a recipe, parts of an outcome."""
    found = []
    for path in set(re.findall(r"(?<![\w/.])lab(?:\.[A-Za-z_]\w*)+", text)):
        try:
            attrgetter(path.removeprefix("lab."))(lab)
        except AttributeError:
            found.append(path)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        found += settings(block) + parts(block)
    commands = set(cli.parser()._subparsers._group_actions[0].choices)
    return found + [
        name for name in re.findall(r"^(?:\s*|.*`)lab ([a-z]+)\b", text, re.MULTILINE) if name not in commands
    ]


def settings(block: str) -> list[str]:
    """Keywords of `lab.<Recipe>(...)` that are no fields of it."""
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    named = [(node, ast.unparse(node.func)) for node in calls if re.fullmatch(r"lab\.\w+", ast.unparse(node.func))]
    return [
        f"{name}({keyword.arg}=)"
        for node, name in named
        if hasattr(attrgetter(name[4:])(lab), "__dataclass_fields__")
        for keyword in node.keywords
        if keyword.arg not in attrgetter(name[4:])(lab).__dataclass_fields__
    ]


def parts(block: str) -> list[str]:
    """What of `outcome` no recipe's outcome has."""
    rooms = {**{recipe: room for recipe, (room, _) in lab._RECIPES.items()}, "Chain": "chain"}
    outcomes = [getattr(getattr(lab, rooms[recipe]), name) for recipe, name in OUTCOMES.items()]
    has = {name for one in outcomes for name in (*dir(one), *one.__dataclass_fields__)}
    return [f"outcome.{name}" for name in re.findall(r"\boutcome\.(\w+)", block) if name not in has]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_a_page_names_is_there(path):
    assert unknown(path.read_text(encoding="utf-8")) == []


def test_what_is_not_there_is_found():
    text = "`lab.Prune` and\n```python\nlab.GAL(rate=1).run()\noutcome.shrink()\n```\n```bash\nlab squeeze gal\n```\n"
    assert unknown(text) == ["lab.Prune", "lab.GAL(rate=)", "outcome.shrink", "squeeze"]


def test_every_figure_is_quoted_and_every_quoted_one_is_there():
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert set(re.findall(r"\{\{ (\w+) \}\}", text)) == set(figures.quoted())
    assert figures.quoted()["gal_lost"] == "1.79"


def test_the_first_page_shows_what_is_kept():
    shown = re.findall(r":file: made/live/(.+)\.html", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    kept = {f"{path.parent.name}-{path.name.removesuffix('.json.gz')}" for path in explorers.KEPT.glob("*/*.json.gz")}
    assert len(shown) == 3 and set(shown) <= kept


def test_the_explorers_that_move_are_those_of_the_cells():
    """`python docs/explorers.py <notebook>` makes them again."""
    cells = {(path.stem, cell["id"]): cell for path in NOTEBOOKS for cell in json.loads(path.read_text())["cells"]}
    kept = [(path.parent.name, path.name.removesuffix(".json.gz")) for path in explorers.KEPT.glob("*/*.json.gz")]
    assert [key for key in kept if explorers.kept(key[0], cells[key]) is None] == []
    assert {key for key, cell in cells.items() if explorers.shows_a_widget(cell)} - set(kept) == NO_EXPLORER
    rooms = {name.split("_", 1)[1] for name, _ in kept}
    assert {room for room, _ in lab._RECIPES.values()} <= rooms


def test_a_card_falls_into_its_parts():
    card = "M: a method.\n\n    idea        One\n                idea.\n    equations   (1) first   (2) second\n"
    listed = cards.parts(card)
    assert {name: " ".join(text.split()) for name, text in listed.items()} == {
        "": "M: a method.", "idea": "One idea.", "equations": "(1) first (2) second",
    }  # fmt: skip


def test_items_end_where_the_next_word_would_have_fitted():
    long = "a" * 111
    assert markup.items(f"{long}\nfollowing word. \nNext item.") == [f"{long} following word.", "Next item."]


def test_a_docstring_keeps_its_signs():
    assert (
        markup.rst("The norm ||W_D||_1 of `weights`s, a*b.")
        == "The norm \\|\\|W\\_D\\|\\|\\_1 of ``weights``\\ s, a\\*b."
    )
    assert markup.rst("a      b\nc      d").startswith("::\n\n")
    assert markup.settings("One. lam: weight. steps, lr: both.", ["lam", "steps", "lr"]).split("\n\n") == [
        "One. ", "lam: weight. ", "steps, lr: both.",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_the_links_beside_the_site_lead_somewhere(name):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert name != "README.md" or "docs/index.md" in links


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_is_one_that_the_site_can_draw(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    plain = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    for display, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+(?:\n[^$\n]+)?)\$", plain, re.DOTALL):
        assert tex2mathml((display or inline).strip())
