"""The field's words: what practitioners would have to learn first is no name here, and a public name is there once."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCES = sorted((REPOSITORY / "lab").rglob("*.py"))
C_SOURCES = sorted([*(REPOSITORY / "ckernels").rglob("*.c"), *(REPOSITORY / "ckernels").rglob("*.h")])

# A variable, parameter, attribute or function of such a name -> what the field calls it
NOT_A_NAME = {
    "said": "cond, output or pred", "told": "text_emb, value or payload", "heard": "guidance_emb",
    "place": "device, position or place_quantisers", "whole": "integer, densified or track_max",
    "found": "the thing itself", "one": "the thing itself", "own": "the thing itself", "known": "the thing itself",
    "picture": "image", "pictures": "images", "answer": "output", "answers": "outputs", "rival": "baseline",
    "rivals": "baselines", "twin": "reference", "demand": "validate", "keeps": "state", "owner": "run_id",
    "spot": "point", "spots": "points", "pinned": "frozen", "wall": "privacy boundary", "looks": "features",
    "drawn": "sampled", "turns": "samplers", "ways": "variants",
}  # fmt: skip
NOT_IN_PROSE = {
    "channel class": "channel group", "whole number": "integer", "scorer that has died": "collapsed scorer",
}  # fmt: skip
NOT_IN_C = {
    "room": "workspace", "part": "rolling row buffer", "band": "row tile", "gain": "inv_scale", "held": "windows",
    "BY_TWO": "UNROLL2", "HOLD": "PIN_REG", "FOUND": "ROW_PTR_TABLE",
}  # fmt: skip


def names(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of what a file binds, but for public functions and fields: these are promises to users."""
    tree = ast.parse(source)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    fields = {id(part.target) for node in classes for part in node.body if isinstance(part, ast.AnnAssign)}
    for node in ast.walk(tree):
        if id(node) in fields:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("_"):
            yield node.lineno, node.name


def dialect(source: str) -> list[str]:
    """The words of a Python file that the field does not know, each with the field's own."""
    bound = [
        f"line {n}: {name}: {NOT_A_NAME[name.strip('_')]}" for n, name in names(source) if name.strip("_") in NOT_A_NAME
    ]
    prose = re.sub(r"[\s#]+", " ", source)
    return bound + [
        f"{words!r}: {better}" for words, better in NOT_IN_PROSE.items() if re.search(rf"\b{words}\b", prose)
    ]


@pytest.mark.slow
def test_names_are_the_fields():
    found = {str(path.relative_to(REPOSITORY)): dialect(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize("path", C_SOURCES, ids=lambda path: path.name)
def test_names_in_c_are_the_fields(path):
    found = set(re.findall(r"\b\w+\b", re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.DOTALL)))
    assert {name: NOT_IN_C[name] for name in found & set(NOT_IN_C)} == {}


def test_dialect_is_noticed():
    assert dialect("def f(x, told):\n    found = x  # a channel class\n") == [
        "line 1: told: text_emb, value or payload", "line 2: found: the thing itself", "'channel class': channel group",
    ]  # fmt: skip


@pytest.mark.slow
def test_no_public_class_is_there_twice():
    homes = defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(REPOSITORY)))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}
