"""A space of architectures as graphs, and what is known of each: the task of a search."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import parallel
from .draws import draw, mixed


@dataclass(frozen=True)
class Graph:
    """A directed acyclic graph: the operator of each node, and edges (u, v) along the flow of data.

    Nodes are renumbered, where need be, so that u < v for every edge. `stages`, for chains of blocks, is the stage of
    each node. A cycle, or an edge to a node that is not there, is a one-line ValueError.
    """

    operators: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        edges = sorted({(int(u), int(v)) for u, v in self.edges})
        nodes = len(self.operators)
        for u, v in edges:
            if not (0 <= u < nodes and 0 <= v < nodes):
                raise ValueError(f"edge {u} -> {v}: the graph has nodes 0..{nodes - 1}")
        if self.stages and len(self.stages) != nodes:
            raise ValueError(f"stages={self.stages}: give one for each of the {nodes} nodes")
        order = list(range(nodes)) if all(u < v for u, v in edges) else _order(nodes, edges)
        new = {node: index for index, node in enumerate(order)}
        object.__setattr__(self, "operators", tuple(self.operators[node] for node in order))
        object.__setattr__(self, "stages", tuple(self.stages[node] for node in order) if self.stages else ())
        object.__setattr__(self, "edges", tuple(sorted((new[u], new[v]) for u, v in edges)))

    @classmethod
    def chain(cls, operators: Sequence[str], stages: Sequence[int] = ()) -> "Graph":
        """Blocks one after another, with the stage of each."""
        steps = tuple((i, i + 1) for i in range(len(operators) - 1))
        return cls(tuple(operators), steps, tuple(stages))


def _order(nodes: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The nodes in an order in which data can flow."""
    sorter = TopologicalSorter({v: [u for u, w in edges if w == v] for v in range(nodes)})
    try:
        return list(sorter.static_order())
    except CycleError as error:
        ring = " -> ".join(map(str, error.args[1]))
        raise ValueError(f"the graph has a cycle ({ring}): edges must point along the flow of data") from None


@dataclass(frozen=True, kw_only=True, eq=False)  # two spaces are equal when they are the same one
class Space:
    """Architectures to choose from, and how good each is: looked up in a table, or trained when asked for.

    graphs: for each of the n architectures a Graph, or several of them (a normal and a reduction cell). labels
    (n, seeds): the score that a search sees, higher is better, one column a training, NaN where there was none. truth
    (n,): the score that is reported, the mean of the labels if left out. train: where no table is at hand, a function
    of one item of `graphs` that trains it and gives its score; results are kept in the folder `journal`, so that none
    is ever trained twice, and `n_jobs` of them run at once. weak: cheap labels of all, such as a super-net's accuracy.
    costs: what each costs, known without training. choices: the same architectures as decisions, for searches that know
    no graphs. hparams (n, h): real numbers beside the graphs (width, depth). chain: whether they are chains of blocks.
    """

    graphs: Sequence[Any] = field(repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    truth: Tensor | None = field(default=None, repr=False)
    train: Callable[[Any], float] | None = field(default=None, repr=False)
    weak: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    costs: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    hparams: Tensor | None = field(default=None, repr=False)
    names: Sequence[str] = field(default=(), repr=False)
    choices: Sequence[tuple[str, ...]] = field(default=(), repr=False)
    chain: bool = False
    journal: str | Path | None = None
    n_jobs: int | None = None
    metric: str = "accuracy"
    unit: str = "%"
    name: str = "own space"

    def __post_init__(self) -> None:
        graphs = tuple((item,) if isinstance(item, Graph) else tuple(item) for item in self.graphs)
        self._set(graphs=graphs)
        self._set(names=tuple(map(str, self.names)) or tuple(f"architecture {row}" for row in range(len(graphs))))
        if self.hparams is not None:
            self._set(hparams=torch.as_tensor(self.hparams, dtype=torch.float32).view(len(graphs), -1))
        _check_graphs(self)
        for name in ("weak", "costs"):
            self._set(**{name: {key: _column(self, key, values) for key, values in getattr(self, name).items()}})
        if (self.labels is None) == (self.train is None):
            raise ValueError("Space: give labels (a table) or train (a function), one of them")
        if self.labels is None:
            if self.truth is not None:
                raise ValueError("Space: truth is known for tables only: leave it out where you give train")
            return
        labels = torch.as_tensor(self.labels, dtype=torch.float64)
        self._set(labels=labels.view(-1, 1) if labels.dim() == 1 else labels)
        _check_labels(self, self.labels)
        self._set(truth=self.labels.nanmean(1) if self.truth is None else _column(self, "truth", self.truth))

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, rows: Sequence[int]) -> "Space":
        """The space of these rows, in this order."""
        at = list(rows)
        few: dict[str, Any] = {}
        for name in ("graphs", "names", "choices"):
            few[name] = [values[row] for row in at] if (values := getattr(self, name)) else ()
        for name in ("labels", "truth", "hparams"):
            few[name] = values[at] if (values := getattr(self, name)) is not None else None
        for name in ("weak", "costs"):
            few[name] = {key: values[at] for key, values in getattr(self, name).items()}
        return replace(self, **few)

    def known_by(self, row: int) -> tuple[Any, ...]:
        """What tells an architecture from the others: its graphs and hparams, wherever in the table it stands."""
        return (self.graphs[row], () if self.hparams is None else tuple(self.hparams[row].tolist()))

    def mixed(self, seed: int) -> list[int]:
        """All rows in an order by chance that hangs on the architectures and not on the order they stand in."""
        return mixed([self.known_by(row) for row in range(len(self))], seed)

    def evaluate(
        self, rows: Sequence[int], seed: int, folder: str | Path | None = None, progress: bool = False
    ) -> list[float]:
        """The score of each of these rows: of one training of the table, drawn by the seed, or trained now.

        Trainings run in `n_jobs` workers; each result is written into the journal as it comes, and `progress` shows it.
        """
        if self.labels is not None:
            return [_one_training(self.labels[row], draw(("a training of", self.known_by(row)), seed)) for row in rows]
        journal = self.journal if self.journal is not None else folder
        items = [self.graphs[row] if len(self.graphs[row]) > 1 else self.graphs[row][0] for row in rows]
        assert self.train is not None
        scores = parallel.map(self.train, items, self.n_jobs, journal=journal, progress=progress)
        for row, value in zip(rows, scores, strict=True):
            if not _is_number(value):
                raise ValueError(f"row {row} ({self.names[row]}): train gave {value!r}: give a number")
        return [float(value) for value in scores]


def _is_number(value: Any) -> bool:
    """Whether a score is one finite number: Python's own, numpy's, or a tensor that holds one."""
    try:
        return not isinstance(value, str) and math.isfinite(float(value))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def _one_training(labels: Tensor, draw: float) -> float:
    """One of an architecture's labels (seeds,), by a number in [0, 1); NaN stands for no training."""
    trained = labels[~labels.isnan()]
    return float(trained[int(draw * len(trained))])


def _column(space: Space, name: str, values: Any) -> Tensor:
    """A column of one finite number a row."""
    column = torch.as_tensor(values, dtype=torch.float64).flatten()
    if len(column) != len(space):
        raise ValueError(f"column {name!r} has {len(column)} values for {len(space)} architectures")
    if not column.isfinite().all():
        row = int((~column.isfinite()).nonzero()[0])
        raise ValueError(f"row {row} ({space.names[row]}): column {name!r} holds {column[row].item()}: fill it in")
    return column


def _check_graphs(space: Space) -> None:
    for name, others in (("names", space.names), ("choices", space.choices)):
        if others and len(others) != len(space):
            raise ValueError(f"Space: {name} has {len(others)} entries for {len(space)} architectures")
    if len(space) < 2:
        raise ValueError(f"Space: graphs holds {len(space)} architectures: give at least two")
    parts = len(space.graphs[0])
    seen: dict[Any, int] = {}
    for row, graphs in enumerate(space.graphs):
        if len(graphs) != parts or not all(isinstance(graph, Graph) for graph in graphs):
            raise ValueError(f"row {row} ({space.names[row]}): column 'graphs' holds no {parts} Graph(s) as row 0 does")
        if (first := seen.setdefault(space.known_by(row), row)) != row:
            raise ValueError(
                f"row {row} ({space.names[row]}): column 'graphs' repeats the architecture of row {first}: keep one"
            )


def _check_labels(space: Space, labels: Tensor) -> None:
    if labels.dim() != 2 or len(labels) != len(space):
        raise ValueError(f"Space: labels has shape {tuple(labels.shape)} for {len(space)} architectures")
    if labels.isinf().any():
        row, column = (int(i) for i in labels.isinf().nonzero()[0])
        raise ValueError(f"row {row} ({space.names[row]}): column {column} of 'labels' is infinite: give a number")
    if (missing := labels.isnan().all(1)).any():
        row = int(missing.nonzero()[0])
        raise ValueError(f"row {row} ({space.names[row]}): column 'labels' is empty: fill it in or leave the row out")
