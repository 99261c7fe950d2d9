"""Networks of cells: one cell trained alone, and the super-net that holds them all and gives weak labels.

Shapes: N pictures, C channels, H x W pixels. A network is a stem, the cell, a strided convolution that doubles the
channels, the cell again with weights of its own, and a linear layer on the mean of each channel.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import TensorDataset

from ..core import tasks
from ..core.data.batches import shuffled
from ..core.spaces import cells
from ..core.spaces.architectures import Graph
from ..core.task import evaluating
from ..core.training import Stage, descend, seeded

BATCH = 100  # pictures


class Cell(nn.Module):
    """One cell of C channels, (N, C, H, W) -> (N, C, H, W); each of its six edges holds the operators named for it."""

    def __init__(self, kept: Sequence[Sequence[str]], c: int, running: bool) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            nn.ModuleDict({name: _operator(name, c, running) for name in names if name != "none"}) for names in kept
        )

    def forward(self, x: Tensor, chosen: Sequence[str]) -> Tensor:
        at: list[Tensor | None] = [x, None, None, None]  # what has arrived at each node
        for (a, b), operator, edge in zip(cells.EDGES, chosen, self.edges, strict=True):
            start, here = at[a], at[b]
            if operator != "none" and start is not None:
                y = edge[operator](start)  # type: ignore[index]
                at[b] = y if here is None else here + y
        end = at[3]
        return torch.zeros_like(x) if end is None else end


class CellNet(nn.Module):
    """Two cells around a reduction, (N, channels, H, W) -> (N, classes); `chosen` says which operators now run.

    kept: for each edge the operators that it holds: one for a plain network, all of them for a super-net, whose batch
    norms then keep no running statistics (`running=False`): every batch is normalised by its own.
    """

    def __init__(
        self, kept: Sequence[Sequence[str]], width: int = 4, classes: int = 10, channels: int = 1, running: bool = True
    ) -> None:
        super().__init__()
        self.chosen = tuple(names[0] for names in kept)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, track_running_stats=running),
        )
        self.cell1 = Cell(kept, width, running)
        self.reduction = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(2 * width, track_running_stats=running),
        )
        self.cell2 = Cell(kept, 2 * width, running)
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cell1(self.stem(x), self.chosen)  # (N, width, H, W)
        x = self.cell2(self.reduction(x), self.chosen)  # (N, 2 width, H/2, W/2)
        return self.linear(F.relu(x).mean((2, 3)))


def _operator(name: str, c: int, running: bool) -> nn.Module:
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    side = 3 if name == "nor_conv_3x3" else 1
    convolution = nn.Conv2d(c, c, side, padding=side // 2, bias=False)
    return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(c, track_running_stats=running))


def digits_split() -> tuple[Tensor, ...]:
    """x, y to learn from (1,000 digits), to search on (297) and to report (500): six tensors."""
    x, y, x_test, y_test = tasks.digits_data()
    return x[:1000], y[:1000], x[1000:], y[1000:], x_test, y_test


def train(operators: Sequence[str], seed: int = 0, epochs: int = 8, width: int = 4) -> tuple[float, float, CellNet]:
    """A cell trained alone on the digits: its accuracy in percent on the 297 and on the 500, and the network."""
    x, y, x_valid, y_valid, x_test, y_test = digits_split()
    with seeded(seed):
        net = CellNet([(name,) for name in operators], width)
        _learn(net, x, y, epochs, lr=0.1, decay=5e-4)
    return _accuracy(net, x_valid, y_valid), _accuracy(net, x_test, y_test), net.eval()


def accuracy(graph: Graph) -> float:
    """What a search over cells of one's own may call: the cell trained for two passes, its accuracy in percent."""
    return train(graph.operators[1:-1], epochs=2)[0]


def supernet(
    space: Sequence[Sequence[str]],
    *,
    seed: int = 0,
    epochs: int = 200,
    width: int = 4,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> CellNet:
    """A super-net trained on the digits: each step draws one cell of the space, uniformly, and trains its weights."""
    x, y, *_ = digits_split()
    names = sorted({name for operators in space for name in operators}, key=cells.OPERATORS.index)
    with seeded(seed):
        net = CellNet([names] * len(cells.EDGES), width, running=False)
        run_id = f"super-net of {len(space)} cells, {epochs} epochs, width {width}, seed {seed}"
        _learn(net, x, y, epochs, lr=0.05, decay=1e-4, space=space, progress=progress, folder=checkpoint, run_id=run_id)
    return net


def weak_labels(net: CellNet, space: Sequence[Sequence[str]]) -> Tensor:
    """(n,) accuracy in percent of each cell with the super-net's weights, on the 297 digits as one batch."""
    _, _, x, y, _, _ = digits_split()
    accuracies = []
    for operators in space:
        net.chosen = tuple(operators)
        accuracies.append(_accuracy(net, x, y))
    return torch.tensor(accuracies, dtype=torch.float64)


def _learn(
    net: CellNet,
    x: Tensor,
    y: Tensor,
    epochs: int,
    *,
    lr: float,
    decay: float,
    space: Sequence[Sequence[str]] | None = None,
    progress: bool = False,
    folder: str | Path | None = None,
    run_id: str = "a cell",
) -> None:
    """SGD with momentum 0.9 and a cosine to zero; with a space, a fresh cell every step and gradients clipped at 5."""
    batches = shuffled(TensorDataset(x, y), BATCH)
    steps = epochs * len(batches)
    sgd = torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=decay, nesterov=space is None)
    schedule = CosineAnnealingLR(sgd, steps)
    stage = Stage(folder, "supernet", run_id, every=2000, net=net, sgd=sgd, schedule=schedule)

    def clip(*_: Any) -> None:
        clip_grad_norm_(net.parameters(), 5)

    def terms(batch: Sequence[Tensor]) -> dict[str, Tensor]:
        if space is not None:
            net.chosen = tuple(space[int(torch.randint(len(space), ()))])
        return {"cross-entropy": F.cross_entropy(net(batch[0]), batch[1])}

    if space is not None:
        sgd.register_step_pre_hook(clip)
    net.train()
    for _ in descend(terms, batches, sgd, stage, steps=steps, schedule=schedule, progress=progress):
        pass


def _accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad(), evaluating(net):
        return 100 * float((net(x).argmax(1) == y).double().mean())
