"""Data sets that come one after another, and what is known of each configuration on each: the task of a recommender."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import parallel, store
from ..data import faces
from ..errors import cut, shown
from . import tables

Choice = tuple[Any, ...]
DETECTORS: dict[str, tuple] = {  # what may be decided of a detector of faces
    "width": (0.25, 0.5, 1.0),
    "side": (96, 128, 192),
    "iou": (0.35, 0.45, 0.55),
    "ratio": (3, 7),
    "weight": (1.0, 2.0),
    "optimiser": ("sgd", "adamw"),
}
DEFAULT_DETECTOR = (0.5, 128, 0.35, 3, 1.0, "sgd")


@dataclass(frozen=True, kw_only=True, eq=False)  # two streams are equal when they are the same one
class Stream:
    """T data sets, n configurations to choose from, and how well each does: looked up in a table, or trained.

    names (T): of the data sets. choices (n): a tuple of decisions each; numbers above 0 are taken as sizes, all else as
    names. data: a function of a data set's name that gives what its owner has, a FaceTask or a (k, F) tensor of
    numbers. scores (T, n): higher is better, NaN where nothing was trained; or train: a function of a data set's name
    and a choice that trains it and gives its score, kept in the folder `journal`. default: the number of the choice of
    who tunes nothing. ValueError in one line names what does not fit.
    """

    names: Sequence[str]
    choices: Sequence[Choice] = field(repr=False)
    data: Callable[[str], Any] = field(repr=False)
    scores: Tensor | None = field(default=None, repr=False)
    train: Callable[[tuple[str, Choice]], float] | None = field(default=None, repr=False)
    journal: str | Path | None = None
    n_jobs: int | None = 1
    default: int = 0
    decisions: Sequence[str] = field(default=(), repr=False)
    metric: str = "score"
    unit: str = ""
    name: str = "own stream"
    note: str = ""

    def __post_init__(self) -> None:
        names, choices = tuple(map(str, self.names)), tuple(tuple(choice) for choice in self.choices)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "choices", choices)
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"Stream: names={names}: give at least two different data sets")
        if len(choices) < 2 or len(set(choices)) < len(choices) or len({len(choice) for choice in choices}) > 1:
            raise ValueError(f"Stream: {len(choices)} choices: give two or more, all different and equally long")
        if not 0 <= self.default < len(choices):
            raise ValueError(f"Stream: default={self.default}: give a number in 0..{len(choices) - 1}")
        if (self.scores is None) == (self.train is None):
            raise ValueError("Stream: give scores (a table) or train (a function), one of them")
        if self.scores is not None:
            scores = torch.as_tensor(self.scores, dtype=torch.float64)
            object.__setattr__(self, "scores", scores)
            if scores.shape != (len(names), len(choices)) or scores.isinf().any():
                shape = tuple(scores.shape)
                raise ValueError(f"Stream: scores {shape}: give finite ({len(names)}, {len(choices)}), NaN for none")
            few = (~scores.isnan()).sum(1)
            if (few < 2).any():
                row = int(few.argmin())
                raise ValueError(
                    f"Stream: scores know {int(few[row])} choices of {names[row]!r}: at least 2 are needed"
                )

    def __len__(self) -> int:
        return len(self.names)

    def pool(self, task: int) -> list[int]:
        """The rows that may be chosen for a data set: all, or those that the table knows; by their choices, sizes by
        size and names by name, so that nothing hangs on the order in which the table stands.
        """
        every = range(len(self.choices))
        rows = [row for row in every if self.scores is None or not self.scores[task, row].isnan()]
        return sorted(rows, key=lambda row: _sorted_by(self.choices[row]))

    def evaluate(self, task: int, rows: Sequence[int]) -> list[float]:
        """The scores of these configurations on a data set, from the table or trained now."""
        if self.scores is not None:
            return self.scores[task, list(rows)].tolist()
        assert self.train is not None
        items = [(self.names[task], self.choices[row]) for row in rows]
        scores = parallel.map(self.train, items, self.n_jobs, journal=self.journal, progress=False)
        for (name, choice), value in zip(items, scores, strict=True):
            if not isinstance(value, (int, float)) or not torch.tensor(float(value)).isfinite():
                raise ValueError(f"{name}, {choice}: train gave {value!r}: give a number")
        return [float(value) for value in scores]

    def truth(self, task: int) -> Tensor | None:
        """The scores (pool,) of all that may be chosen, where they are known without training."""
        return None if self.scores is None else self.scores[task, self.pool(task)]

    def codes(self) -> Tensor:
        """The choices as numbers (n, F), see `coded`."""
        return coded(self.choices)


def _sorted_by(choice: Choice) -> tuple:
    return tuple((0, value, "") if isinstance(value, (int, float)) else (1, 0, repr(value)) for value in choice)


def coded(choices: Sequence[Choice]) -> Tensor:
    """Choices as numbers (n, F): each decision one-hot, and sizes, which are numbers above 0, log-scaled beside it."""
    columns = []
    for values in zip(*choices, strict=True):
        kinds = sorted(set(values), key=str)
        columns.append(torch.tensor([[float(value == kind) for kind in kinds] for value in values]))
        if all(isinstance(value, (int, float)) and value > 0 for value in kinds) and len(kinds) > 1:
            sizes = torch.tensor([float(value) for value in values]).log()
            low, high = sizes.min(), sizes.max()
            columns.append((2 * (sizes - low) / (high - low) - 1)[:, None])
    return torch.cat(columns, 1)


def detector_choices() -> list[Choice]:
    """The 216 detectors, sorted: wherever one is known by its number alone, it is the number in this list."""
    return sorted(product(*DETECTORS.values()))


@lru_cache(maxsize=4)
def detectors(path: str | Path | None = None) -> Stream:
    """Detectors of faces on the composed domains, each really trained by the lab: AP at 0.5 in percent, `data/faces`.

    `path` is another table of the same columns. Where it has not all 216 configurations of a domain, the others have
    no score and are never chosen, and `note` says how many there are.
    """
    try:
        path = store.artefact("faces/detectors.csv.gz") if path is None else path
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: python data/faces/make.py trains it") from None
    table = tables.read_csv(path)
    decisions = tuple(DETECTORS)
    missing = [name for name in ("domain", *decisions, "ap50") if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: column {missing[0]!r} is missing: the table has {cut(', '.join(table.columns))}")
    rows = table[list(decisions)].itertuples(index=False)
    keys = [tuple(value.item() if hasattr(value, "item") else value for value in row) for row in rows]
    names, choices = [name for name in faces.DOMAINS if name in set(table["domain"])], detector_choices()
    if strange := sorted(set(map(str, table["domain"])) - set(names)):
        raise ValueError(f"{path}: domain {shown(strange[0])}: there are {', '.join(faces.DOMAINS)}")
    scores = torch.full((len(names), len(choices)), torch.nan, dtype=torch.float64)
    number_of = {choice: number for number, choice in enumerate(choices)}
    for name, key, value in zip(table["domain"], keys, tables.numbers(table, "ap50", 100), strict=True):
        if key not in number_of:
            given = cut(str(dict(zip(decisions, key, strict=True))))
            raise ValueError(f"{path}: {given} is none of the 216 detectors: leave its line out")
        scores[names.index(name), number_of[key]] = float(value)
    trained = int((~scores.isnan()).sum())
    return Stream(
        names=names,
        choices=choices,
        scores=scores,
        data=faces.composed,
        default=number_of[DEFAULT_DETECTOR],
        decisions=decisions,
        metric="ap50",
        unit="%",
        name="detectors",
        note=f"{trained} of {len(names)} x 216 detectors were trained; {faces.NOTE}",
    )


@lru_cache(maxsize=2)  # reading the package's records takes a while
def graph_networks(count: int = 300) -> Stream:
    """Graph networks on NAS-Bench-Graph's data sets (Qin et al., 2022), from its package: validation accuracy in
    percent of `count` of the 26,206, the same on each. Needs the extra `tables`.

    What a data set is known by before anything is trained: the log of parameters and latency of each network on it.
    """
    if not isinstance(count, int) or count < 2:
        raise ValueError(f"graphs: count={count!r}: give an integer number of networks, 2 or more")
    records = {name: tables.graph_records(name) for name in tables.NASBENCHGRAPH}
    common = sorted(set.intersection(*map(set, records.values())))
    order = torch.randperm(len(common), generator=torch.Generator().manual_seed(0))[:count].tolist()
    kept = [common[number] for number in sorted(order)]
    scores, log_costs = [], {}
    for name, by_key in records.items():
        scores.append(torch.tensor([100 * by_key[key]["valid_perf"] for key in kept], dtype=torch.float64))
        costs = torch.tensor([[by_key[key]["para"], by_key[key]["latency"]] for key in kept], dtype=torch.float64)
        log_costs[name] = costs.clamp_min(1e-9).log()  # (count, 2)
    every = torch.cat(list(log_costs.values()))
    features = {name: ((x - every.mean(0)) / every.std(0)).float() for name, x in log_costs.items()}
    return Stream(
        names=list(records),
        choices=[tables.graph_network(key)[1] for key in kept],
        scores=torch.stack(scores),
        data=features.__getitem__,
        decisions=("link", *(f"layer {k}" for k in range(1, 5))),
        metric="accuracy",
        unit="%",
        name="NAS-Bench-Graph",
    )
