"""Where decoupling's state is learned: the controlling module, and the gate that it steers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.task import evaluating
from . import equations as eq

MIXES = ("sample", "element", "channel", "index")


class Controller(nn.Module):
    """The controlling module of one layer: a_l (N, C_in, ...) -> logits y_l (N, C_out), a quarter as wide inside.

    At first fc1 is 0 with bias 1 and fc2 Kaiming with `bias`: encodings do not depend on the input yet, and are mostly
    on.
    """

    def __init__(self, c_in: int, c_out: int, bias: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c_in, max(1, c_in // 4))
        self.fc2 = nn.Linear(max(1, c_in // 4), c_out)
        nn.init.zeros_(self.fc1.weight)
        nn.init.ones_(self.fc1.bias)
        nn.init.kaiming_normal_(self.fc2.weight)
        nn.init.constant_(self.fc2.bias, bias)

    def forward(self, a: Tensor) -> Tensor:
        return eq.control(eq.squeeze(a), self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)


@dataclass(frozen=True)
class GateRecord:
    """What one gate did in a forward pass: the encoding z (N, C), and the mean of each map before the gate (N, C)."""

    z: Tensor
    out: Tensor


class Gate(nn.Module):
    """z_l * out_l, z_l from what the convolution reads. Noise in training, bits in use.

    `mix` says what is binarised in training: half of the 'sample's, half of the 'element's, or as the releases did,
    'channel's drawn with replacement, or samples under the numbers of channels ('index'). `record` and `change`
    are there for a moment only: see `recording` and `changing`. `axis` is that of the filters, -1 for units of tokens.
    """

    def __init__(self, controller: Controller, mix: str = "sample", axis: int = 1) -> None:
        super().__init__()
        self.controller, self.mix, self.axis = controller, mix, axis
        self.record: list[GateRecord] | None = None
        self.change: Callable[[Tensor], Tensor] | None = None

    def forward(self, out: Tensor, a: Tensor) -> Tensor:
        """out (N, C_out, ...) gated by the encoding that a (N, C_in, ...) asks for; (N, ..., C) where `axis` is -1."""
        if self.axis != 1:
            return self._gated(out.movedim(self.axis, 1), a.movedim(self.axis, 1)).movedim(1, self.axis)
        return self._gated(out, a)

    def _gated(self, out: Tensor, a: Tensor) -> Tensor:
        z = self.architecture(self.controller(a))
        if self.change is not None:
            z = self.change(z)
        if self.record is not None:
            self.record.append(GateRecord(z, eq.squeeze(out)))
        return eq.gated(out, z)

    def architecture(self, y: Tensor) -> Tensor:
        """The encoding z_l of logits y_l (N, C)."""
        if not self.training:
            every = torch.ones((), dtype=torch.bool, device=y.device)
            return eq.semhash(y, torch.zeros_like(y), every) if y.requires_grad else eq.encoding(y)
        return eq.semhash(y, torch.randn_like(y), self._hard(y))

    def _hard(self, y: Tensor) -> Tensor:
        n, c = y.shape
        if self.mix == "element":
            return torch.rand_like(y) < 0.5
        if self.mix == "sample":
            return torch.rand(n, 1, device=y.device) < 0.5
        length, axis = (c, 1) if self.mix == "channel" else (n, 0)
        sampled = torch.randint(min(c, length), (max(1, c // 2),), device=y.device)
        hard = torch.zeros(length, dtype=torch.bool, device=y.device)
        hard[sampled] = True
        return hard.unsqueeze(1 - axis)


def gates(model: nn.Module) -> dict[str, Gate]:
    """The gates of a decoupled network by their names, in the order in which they run."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Gate)}


@contextmanager
def recording(model: nn.Module) -> Iterator[list[list[GateRecord]]]:
    """For each gate the list of what it does within the block; nothing is kept afterwards."""
    recorded = list(gates(model).values())
    records: list[list[GateRecord]] = [[] for _ in recorded]
    try:
        for gate, record in zip(recorded, records, strict=True):
            gate.record = record
        yield records
    finally:
        for gate in recorded:
            gate.record = None


@contextmanager
def changing(model: nn.Module, changes: dict[str, Callable[[Tensor], Tensor]]) -> Iterator[Any]:
    """Let each named gate use change(z) in place of z within the block."""
    by_name = gates(model)
    try:
        for name, change in changes.items():
            by_name[name].change = change
        yield model
    finally:
        for name in changes:
            by_name[name].change = None


def input_of(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What a layer reads when the model is called on x, in eval mode and without gradients."""
    read: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        with torch.no_grad(), evaluating(model):
            model(x)
    finally:
        hook.remove()
    return read[0]
