"""Where GAL's state is learned: the soft masks, the discriminator, and FISTA's memory."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from . import equations as eq


class Mask(nn.Module):
    """A soft mask m >= 0 on the output of a structure: one entry a channel, or one for all of it."""

    def __init__(self, entries: int, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.m = nn.Parameter(torch.ones(entries))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, ...) times the mask; or (N, ..., C) where the channels come last."""
        return eq.masked(x.movedim(self.axis, 1), self.m).movedim(1, self.axis)


class ReadMask(nn.Module):
    """The soft masks of the channels that a layer reads, in front of it: of each entry of an axis, which mask entry.

    `at` numbers the entries of all masks in order from 1 on; 0 is a channel without a mask.
    """

    at: Tensor

    def __init__(self, masks: list[nn.Parameter], at: Tensor, axis: int) -> None:
        super().__init__()
        self.masks = nn.ParameterList(masks)
        self.axis = axis
        self.register_buffer("at", at)

    def entries(self) -> Tensor:
        """The mask entry of each channel that is read: (C,)."""
        m = torch.cat([*self.masks])
        return torch.cat([m.new_ones(1), m])[self.at]

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, ...) times the masks; or with its channels on another axis."""
        return eq.masked(x.movedim(self.axis, 1), self.entries()).movedim(1, self.axis)


class Discriminator(nn.Module):
    """D: output vector (N, C) -> 128 -> 256 -> 128 -> one raw logit (N, 1).

    `affine` leaves out what stands between the layers, as the released code does; its sigmoid before the loss is then
    applied too, which confines the effective D to 0.5-0.73.
    """

    def __init__(self, outputs: int, affine: bool = False) -> None:
        super().__init__()
        widths = (outputs, 128, 256, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after)] + ([] if affine else [nn.LeakyReLU(0.2)])
        layers.append(nn.Linear(128, 1))
        self.layers = nn.Sequential(*layers, *([nn.Sigmoid()] if affine else []))
        if affine:
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.01)
                    nn.init.zeros_(layer.bias)

    def forward(self, f: Tensor) -> Tensor:
        return self.layers(f.flatten(1))


class Fista:
    """FISTA on all masks at once: look ahead to y, take the gradient there, shrink.

    `is_bounded` keeps masks at 1 or below, and leaves out the momentum: under a pull that nothing holds yet, as lam is
    for masks that start at 1, it goes on to gather speed, and all masks close at once.
    """

    def __init__(self, masks: Iterable[nn.Parameter], look_ahead: bool = True, is_bounded: bool = False) -> None:
        self.masks = list(masks)
        self.looks_ahead, self.is_bounded = look_ahead, is_bounded
        self.alpha = 1.0  # alpha_1: the first extrapolation is none
        self.now = [m.detach().clone() for m in self.masks]
        self.previous = [m.detach().clone() for m in self.masks]

    @torch.no_grad()
    def look_ahead(self) -> None:
        """Put the masks at y, where the next gradient is to be taken: Card (10)."""
        if self.looks_ahead:
            for m, now, previous in zip(self.masks, self.now, self.previous, strict=True):
                m.copy_(eq.extrapolate(now, previous, self.alpha))

    @torch.no_grad()
    def step(self, lr: Sequence[Tensor | float], lam: Sequence[float], closed: list[Tensor] | None = None) -> None:
        """From the gradients that the masks hold: u = y - lr * grad, m = shrink(u, lr * lam), Card (9) to (11).

        Each mask has its own rate, or one for each entry, and its own lam; `closed` has of each which entries stay 0.
        ValueError in one line where a mask holds none.
        """
        gradients = [m.grad for m in self.masks if m.grad is not None]
        if unread := len(self.masks) - len(gradients):
            raise ValueError(
                f"{unread} of {len(self.masks)} masks have no gradient: nothing in the network reads them; "
                "prune it as it was before gates chose its filters"
            )
        for index, (m, gradient) in enumerate(zip(self.masks, gradients, strict=True)):
            y = eq.extrapolate(self.now[index], self.previous[index], self.alpha)  # (C,) or (1,), where the gradient is
            after = eq.shrink(y - lr[index] * gradient, lr[index] * lam[index])
            if self.is_bounded:
                after = after.clamp(max=1)
            if closed is not None:
                after = after.masked_fill(closed[index], 0)
            self.previous[index], self.now[index] = self.now[index], after
            m.copy_(after)
        if not self.is_bounded:
            self.alpha = eq.momentum(self.alpha)

    @torch.no_grad()
    def rest(self, states: list[Tensor]) -> None:
        """Put the masks at a state, without speed."""
        self.now, self.previous = [s.clone() for s in states], [s.clone() for s in states]
        for m, state in zip(self.masks, states, strict=True):
            m.copy_(state)

    def settle(self) -> None:
        """Put the masks at their last state, from wherever the last extrapolation has left them."""
        for m, now in zip(self.masks, self.now, strict=True):
            m.data.copy_(now.clamp(min=0))

    def zeros(self) -> tuple[int, int]:
        """How many mask entries are exactly 0, and how many there are."""
        return sum(int((m == 0).sum()) for m in self.now), sum(m.numel() for m in self.now)

    def state_dict(self) -> dict:
        return {"alpha": self.alpha, "now": list(self.now), "previous": list(self.previous)}

    def load_state_dict(self, state: dict) -> None:
        self.alpha = state["alpha"]
        self.now = [value.to(m) for value, m in zip(state["now"], self.masks, strict=True)]
        self.previous = [value.to(m) for value, m in zip(state["previous"], self.masks, strict=True)]


class MaskHistory:
    """Mask entries over time: the first state, one each `every` steps, and the last."""

    def __init__(self, masks: list[nn.Parameter], every: int) -> None:
        self.every = every
        self.kept = [_flat(masks)]
        self.last = self.kept[0]

    def note(self, index: int, masks: list[Tensor]) -> None:
        self.last = _flat(masks)
        if (index + 1) % self.every == 0:
            self.kept.append(self.last)

    def states(self) -> Tensor:
        """All states, (snapshots, entries), the final masks last."""
        return torch.stack(self.kept if self.last is self.kept[-1] else [*self.kept, self.last])

    def state_dict(self) -> dict:
        return {"kept": list(self.kept), "last": None if self.last is self.kept[-1] else self.last}

    def load_state_dict(self, state: dict) -> None:
        self.kept = list(state["kept"])
        self.last = self.kept[-1] if state["last"] is None else state["last"]


def _flat(masks: list) -> Tensor:
    return torch.cat([m.detach().clamp(min=0).cpu() for m in masks])
