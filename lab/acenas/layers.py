"""What is learned: an encoder of graphs, and heads that score what it sees."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..core.spaces.architectures import Space
from . import equations as eq


@dataclass(frozen=True)
class GraphBatch:
    """n architectures of P graphs each as tensors, padded to the largest graph's G nodes.

    nodes (n, P, G, F), adjacency (n, P, G, G) normalised, present (n, P, G), hparams (n, h).
    """

    nodes: Tensor
    adjacency: Tensor
    present: Tensor
    hparams: Tensor

    @classmethod
    def of(cls, space: Space) -> "GraphBatch":
        """One-hot operators, beside one-hot stages where the graphs have them."""
        graphs = [graph for parts in space.graphs for graph in parts]  # n P, architecture by architecture
        operators = {name: i for i, name in enumerate(sorted({name for g in graphs for name in g.operators}))}
        stages = {stage: i for i, stage in enumerate(sorted({stage for g in graphs for stage in g.stages}))}
        most = max(len(graph.operators) for graph in graphs)
        nodes = torch.zeros(len(graphs), most, len(operators) + len(stages))
        adjacency, present = torch.zeros(len(graphs), most, most), torch.zeros(len(graphs), most, dtype=torch.bool)
        # flat lists of (graph, node, operator) and of edges, each written in one go: a loop over tensors takes seconds
        at = [(row, i, operators[name]) for row, graph in enumerate(graphs) for i, name in enumerate(graph.operators)]
        at += [
            (row, i, len(operators) + stages[s]) for row, graph in enumerate(graphs) for i, s in enumerate(graph.stages)
        ]
        row, node, feature = zip(*at, strict=True)
        nodes[row, node, feature] = 1
        present[row, node] = True
        if edges := [(row, u, v) for row, graph in enumerate(graphs) for u, v in graph.edges]:
            adjacency[tuple(zip(*edges, strict=True))] = 1
        parts = len(space.graphs[0])
        nodes, adjacency, present = (t.unflatten(0, (-1, parts)) for t in (nodes, eq.normalised(adjacency), present))
        hparams = space.hparams if space.hparams is not None else torch.zeros(len(space), 0)
        return cls(nodes, adjacency, present, hparams)

    def __getitem__(self, rows: Any) -> "GraphBatch":
        return replace(self, **{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    def __len__(self) -> int:
        return len(self.nodes)

    def to(self, device: Any) -> "GraphBatch":
        """A copy of the batch on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


class GraphEncoder(nn.Module):
    """Four graph convolutions and sort-pooling, or the mean of the nodes; (n, P, G, F) -> (n, out).

    `fuse` is the width to which the graphs' vectors and the hparams are joined; without it, as for chains of blocks,
    one graph's vector goes on as it is.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        parts: int = 1,
        hparams: int = 0,
        pool: str = "sort",
        k: int = 10,
        out: int = 64,
        fuse: int | None = 128,
    ) -> None:
        super().__init__()
        widths = [features, *[hidden] * 4]
        self.weights = nn.ParameterList(torch.empty(a, b) for a, b in pairwise(widths))
        self.biases = nn.ParameterList(torch.zeros(b) for b in widths[1:])
        for weight in self.weights:
            nn.init.xavier_uniform_(weight)
        self.pool, self.k = pool, k
        self.read = sort_reader(hidden, k, out) if pool == "sort" else nn.Identity()
        vector = out if pool == "sort" else hidden
        self.fuse = nn.Linear(parts * vector + hparams, fuse) if fuse else nn.Identity()
        self.width = fuse or parts * vector + hparams

    def forward(self, x: GraphBatch) -> Tensor:
        n = len(x)
        H, Â, present = x.nodes.flatten(0, 1), x.adjacency.flatten(0, 1), x.present.flatten(0, 1)
        for W, b in zip(self.weights, self.biases, strict=True):
            H = eq.graph_convolution(H, Â, W, b)  # (n P, G, hidden)
        if self.pool == "sort":
            pooled = self.read(eq.sort_pool(H, present, self.k)[:, None])  # (n P, out)
        else:
            pooled = (H * present[..., None]).sum(1) / present.sum(1, keepdim=True)  # (n P, hidden)
        return self.fuse(torch.cat([pooled.view(n, -1), x.hparams], 1))


def sort_reader(hidden: int, k: int, out: int) -> nn.Sequential:
    """What reads sort-pooled nodes, (n, 1, k · hidden) -> (n, out): a convolution a node, then one over five pairs."""
    return nn.Sequential(
        nn.Conv1d(1, 32, hidden, stride=hidden),  # (n, 32, k): each node alone
        nn.ReLU(),
        nn.MaxPool1d(2, 2),  # (n, 32, k / 2): pairs of nodes
        nn.Conv1d(32, out, k // 2),  # (n, out, 1): all pairs
        nn.ReLU(),
        nn.Flatten(),
    )


def scoring_head(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """A score from an architecture's vector, (n, width) -> (n, 1)."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1))


class Scorer(nn.Module):
    """An encoder under one head a label; the first one is the score that ranks. A batch of n -> (n, heads)."""

    def __init__(self, encoder: GraphEncoder, hidden: int, dropout: float, labels: Sequence[str] = ("score",)) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(scoring_head(encoder.width, hidden, dropout) for _ in labels)

    def forward(self, x: GraphBatch) -> Tensor:
        vectors = self.encoder(x)  # (n, width)
        return torch.cat([head(vectors) for head in self.heads], 1)

    def scores(self, x: GraphBatch) -> Tensor:
        """(n,) of the first head, without gradients, in eval mode."""
        self.eval()
        with torch.no_grad():
            return torch.cat([self.heads[0](self.encoder(x[i : i + 4096]))[:, 0] for i in range(0, len(x), 4096)])
