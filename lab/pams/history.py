"""Alphas and histograms over the training, on the same few pictures each time."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from ..core.task import evaluating
from .layers import Quantiser

BINS = 48


class AlphaHistory:
    """What each quantiser reads, over time: its alpha, and a histogram over a range that never changes.

    `alphas` is (snapshots, Q), `histograms` (snapshots, Q, BINS) shares that sum to 1; the range of quantiser q is
    [-reach[q], reach[q]], a third wider than the largest |x| before anything is rounded; what lies outside is counted
    at its ends.
    """

    def __init__(self, model: fx.GraphModule, quantisers: list[Quantiser], probe: Tensor, every: int) -> None:
        self.model, self.quantisers, self.probe, self.every = model, quantisers, probe, every
        self.steps: list[int] = []
        self.alphas: list[Tensor] = []
        self.histograms: list[Tensor] = []
        self.reach = torch.tensor([4 / 3 * float(x.abs().max()) or 1.0 for x in self._read(rounded=False)])

    def note(self, done: int, last: bool = False) -> None:
        """Take a snapshot after `done` updates where one is due."""
        if (done % self.every == 0 or last) and done not in self.steps:
            self.steps.append(done)
            self.alphas.append(torch.stack([q.alpha.detach().cpu()[0] for q in self.quantisers]))
            counts = [_shares(x, float(r)) for x, r in zip(self._read(), self.reach, strict=True)]
            self.histograms.append(torch.stack(counts))

    @torch.no_grad()
    def _read(self, rounded: bool = True) -> list[Tensor]:
        """What each quantiser reads of the probe; of a quantiser that stands at several points, all of it."""
        read: dict[nn.Module, list[Tensor]] = {q: [] for q in self.quantisers}

        def note(q: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            read[q].append(args[0].flatten())
            return output if rounded else args[0]

        hooks = [q.register_forward_hook(note) for q in read]
        try:
            with evaluating(self.model):
                self.model(self.probe)
        finally:
            for hook in hooks:
                hook.remove()
        return [torch.cat(read[q]) for q in self.quantisers]

    def tensors(self) -> dict[str, Tensor]:
        """What an outcome keeps: alphas, histograms and reach as above, and steps (snapshots,)."""
        stacked = {"alphas": torch.stack(self.alphas), "histograms": torch.stack(self.histograms)}
        return stacked | {"steps": torch.tensor(self.steps), "reach": self.reach}

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": list(self.steps),
            "alphas": list(self.alphas),
            "histograms": list(self.histograms),
            "reach": self.reach,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.alphas, self.histograms = (list(state[k]) for k in ("steps", "alphas", "histograms"))
        self.reach = state["reach"]


def _shares(x: Tensor, reach: float) -> Tensor:
    counts = torch.histc(x.float().clamp(-reach, reach).cpu(), BINS, -reach, reach)
    return counts / counts.sum()
