"""What goes with what: which recipe may follow which in a chain, why not, and the order that would work."""

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

from ..core import tasks
from ..core.distribution import needed

METHODS = ("GAL", "Decoupling", "FoldGPT", "SparseByteNN", "PAMS", "DQSS")  # those that stand in chains
MOST = 7  # stages of which every order is tried for one that works

# A recipe that takes no network, and what it takes
ALONE = {
    "AceNAS": "AceNAS searches architectures of a Space, not a network that another stage left",
    "HybridSD": "HybridSD divides a diffusion pipeline between two machines, it does not take a network of a Task",
    "HyperFD": "HyperFD serves a Stream of data sets, it does not take a network of a Task",
}
_QUANTISED = "PAMS and DQSS quantise, and nothing that trains, cuts or quantises can follow that"
_GATED = "Decoupling leaves gates that choose filters input by input, which no other recipe takes"
_BLOCKS = "SparseByteNN puts zeros into blocks of rows, which cut channels or another order of rows would take apart"
_FOLDED = "FoldGPT leaves a language model of transformers, which no other recipe can trace, and folds once"
_LANGUAGE = "FoldGPT takes a language model of transformers, which no other recipe leaves"
# (earlier, later): why the later one cannot follow. Every other order works.
REASONS: dict[tuple[str, str], str] = {
    **{(first, "FoldGPT"): _LANGUAGE for first in METHODS},
    **{("FoldGPT", later): _FOLDED for later in METHODS},
    **{(first, later): _QUANTISED for first in ("PAMS", "DQSS") for later in METHODS},
    **{("Decoupling", later): _GATED for later in METHODS},
    **{("SparseByteNN", later): _BLOCKS for later in ("GAL", "Decoupling", "SparseByteNN")},
}
BRIDGED = ("FoldGPT",)  # behind it a function may make a network that others take


def refusal(stages: Sequence[Any], i: int, j: int) -> str | None:
    """Why stage j cannot follow stage i of a sequence, None where it can; both counted from 0."""
    first, later = type(stages[i]).__name__, type(stages[j]).__name__
    is_bridged = first in BRIDGED and first != later and any(named(s) != type(s).__name__ for s in stages[i:j])
    return None if is_bridged else REASONS.get((first, later))


def validate(stages: Sequence[Any]) -> None:
    """Raise a one-line ValueError where the recipes cannot follow one another, with the order that would work."""
    for position, stage in enumerate(stages, 1):
        if reason := ALONE.get(type(stage).__name__):
            raise ValueError(f"stage {position} is {type(stage).__name__}: {reason}; run it alone")
    for i, j in combinations(range(len(stages)), 2):
        if reason := refusal(stages, i, j):
            pair = f"{named(stages[j])} (stage {j + 1}) cannot follow {named(stages[i])} (stage {i + 1})"
            raise ValueError(f"{pair}: {reason}; {_remedy(stages)}")


def _remedy(stages: Sequence[Any]) -> str:
    """The order that works, or what to leave out."""
    for order in permutations(stages) if len(stages) <= MOST else ():
        if _works(order):
            return f"this order works: {', '.join(map(named, order))}"
    return "no order of these works: leave one of the two out"


def _works(order: Sequence[Any]) -> bool:
    return not any(refusal(order, i, j) for i, j in combinations(range(len(order)), 2))


def named(stage: Any) -> str:
    """A stage by the name of its recipe, or of its function."""
    return getattr(stage, "name", None) or type(stage).__name__


def default_task(stages: Sequence[Any]) -> Any:
    """The task of a chain that was given none: of the recipe that asks for the most particular network."""
    kinds = {type(stage).__name__ for stage in stages}
    makers: dict[str, Callable[[], Any]] = {
        "FoldGPT": tasks.prose,
        "PAMS": lambda: tasks.photos(2, patch=96, batch_size=4),
        "SparseByteNN": lambda: tasks.digits(size=32, channels=3),
    }
    return next((make() for kind, make in makers.items() if kind in kinds), None) or tasks.digits()


@dataclass(frozen=True, repr=False)
class Orders:
    """Which recipe may follow which: `orders["GAL", "DQSS"]` is None where it works, else the reason."""

    methods: tuple[str, ...]

    def __getitem__(self, pair: tuple[str, str]) -> str | None:
        for name in pair:
            if name not in self.methods:
                raise ValueError(f"{name!r} cannot be part of a chain: give two of {', '.join(self.methods)}")
        return REASONS.get(pair)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((first, later) for first in self.methods for later in self.methods)

    def to_frame(self) -> Any:
        """A pandas DataFrame of True and False: rows come first, columns follow."""
        with needed():
            import pandas

        works = [[self[first, later] is None for later in self.methods] for first in self.methods]
        return pandas.DataFrame(works, index=list(self.methods), columns=list(self.methods))

    def _table(self) -> tuple[list[tuple[str, ...]], list[str]]:
        """The cells, and each reason once."""
        numbers = {
            reason: str(i) for i, reason in enumerate(dict.fromkeys(filter(None, map(self.__getitem__, self))), 1)
        }
        cells = [
            (
                first,
                *(
                    "yes" if (reason := self[first, later]) is None else f"no ({numbers[reason]})"
                    for later in self.methods
                ),
            )
            for first in self.methods
        ]
        return [("first, then", *self.methods), *cells], [f"({number}) {reason}" for reason, number in numbers.items()]

    def to_markdown(self) -> str:
        """The table and its reasons in Markdown, the README's."""
        (head, *rows), notes = self._table()
        lines = [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]
        return "\n".join([*lines, "", *(f"{note}  " for note in notes)])

    def __repr__(self) -> str:
        rows, notes = self._table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *notes])

    def _repr_html_(self) -> str:
        rows, notes = self._table()
        head, *body = [[html.escape(cell) for cell in row] for row in rows]
        left = 'style="text-align:left"'
        top = "".join(f"<th {left}>{cell}</th>" for cell in head)
        lines = "".join(f"<tr>{''.join(f'<td {left}>{cell}</td>' for cell in row)}</tr>" for row in body)
        below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
        return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>{below}"


def chains() -> Orders:
    """Which recipe may follow which in a `lab.Chain`, and why not; functions of your own may stand anywhere."""
    return Orders(METHODS)
