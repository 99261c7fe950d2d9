"""Cells in NAS-Bench-201's notation: four nodes, an operator on each of the six edges between them."""

import itertools
import re
from collections.abc import Sequence
from functools import cache

from ..errors import shown
from .architectures import Graph

OPERATORS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # in the order of the notation
_TEXT = re.compile(r"\|([^|~]+)~0\|\+\|([^|~]+)~0\|([^|~]+)~1\|\+\|([^|~]+)~0\|([^|~]+)~1\|([^|~]+)~2\|")
# The cell with operators as nodes: one reads what those operators write that end where it begins.
_LINE = tuple(
    [(0, 1 + i) for i, (a, _) in enumerate(EDGES) if a == 0]
    + [(1 + i, 1 + j) for i, (_, b) in enumerate(EDGES) for j, (a, _) in enumerate(EDGES) if a == b]
    + [(1 + i, 7) for i, (_, b) in enumerate(EDGES) if b == 3]
)

Operators = tuple[str, ...]


def parse(text: str) -> Operators:
    """The six operators of '|a~0|+|b~0|c~1|+|d~0|e~1|f~2|'; ValueError for another form or an unknown operator."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(text)} is not a cell: give '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|'")
    for operator in match.groups():
        if operator not in OPERATORS:
            raise ValueError(f"unknown operator {shown(operator)}: this space has {', '.join(OPERATORS)}")
    return match.groups()


def text(operators: Sequence[str]) -> str:
    """The notation of six operators."""
    a, b, c, d, e, f = operators
    return f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"


@cache
def graph(operators: Operators) -> Graph:
    """The cell as a graph of eight nodes: its input, the six operators, its output."""
    return Graph(("input", *operators, "output"), _LINE)


def function(operators: Sequence[str]) -> str:
    """What the cell computes, written so that two cells of one function have one text; '' where nothing arrives."""
    terms: list[list[str]] = [["x"], [], [], []]  # of each node: what is summed there
    for (a, b), operator in zip(EDGES, operators, strict=True):
        if operator == "skip_connect":
            terms[b] += terms[a]
        elif operator != "none" and terms[a]:
            terms[b].append(f"{operator}({'+'.join(sorted(terms[a]))})")
    return "+".join(sorted(terms[3]))


def distinct(operators: Sequence[str]) -> list[Operators]:
    """One cell of each function that these operators can make, the first one in the order of `itertools.product`."""
    first: dict[str, Operators] = {}
    for cell in itertools.product(operators, repeat=len(EDGES)):
        first.setdefault(function(cell), cell)
    return list(first.values())
