"""Channels that are made one: a union-find over their numbers, and which of them stay."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .moves import compact, core, varying

NONE = 0  # the number of what is no channel: a constant, a mask of pixels


class Unions:
    """Channels by number, those that go together, and those that stay with the reason."""

    def __init__(self) -> None:
        self._parents = [NONE]
        self._held: list[tuple[Tensor, set[int] | None, str]] = []

    def roots(self) -> Tensor:
        """The number by which each channel is known after all unions."""
        return torch.tensor([self._find(channel) for channel in range(len(self._parents))])

    def _find(self, channel: int) -> int:
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    def _settled(self, ids: Tensor) -> Tensor:
        """The same entries by the numbers under which their channels are known by now."""
        channels, inverse = core(ids).unique(return_inverse=True)
        roots = torch.tensor([self._find(channel) for channel in channels.tolist()])
        return compact(roots[inverse].expand(ids.shape))

    def _open(self, size: tuple[int, ...], axes: tuple[int, ...], reason: str = "") -> Tensor:
        """New channels, one for each place on these axes of a tensor."""
        spread = torch.Size(n if axis in axes else 1 for axis, n in enumerate(size))
        first = len(self._parents)
        self._parents += range(first, first + spread.numel())
        ids = torch.arange(first, first + spread.numel()).view(spread).expand(size)
        if reason:
            self.freeze(ids, reason)
        return ids

    def freeze(self, value: Any, reason: str, axes: set[int] | None = None) -> None:
        """Let the channels of tensors stay, for this reason; given `axes` only if they vary along one of these."""
        self._held += [(ids, axes, reason) for ids in tree_leaves(value) if isinstance(ids, Tensor)]

    def reasons(self) -> Iterator[tuple[int, str]]:
        """Each channel that stays, with the reason, the first one first."""
        roots = self.roots()
        for ids, axes, reason in self._held:
            if axes is None or axes & set(varying(compact(roots[ids]))):
                yield from ((channel, reason) for channel in roots[core(ids)].unique().tolist() if channel != NONE)

    def _tie(self, a: Tensor, b: Tensor) -> None:
        """Make one of the channels that lie at the same places of two tensors."""
        a, b = torch.broadcast_tensors(core(a), core(b))
        count = len(self._parents)
        pairs = (a.flatten() * count + b.flatten()).unique()
        for left, right in zip((pairs // count).tolist(), (pairs % count).tolist(), strict=True):
            if NONE not in (left, right) and left != right:
                root, child = sorted((self._find(left), self._find(right)))
                self._parents[child] = root
