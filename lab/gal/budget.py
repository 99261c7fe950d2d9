"""How far the masks may close: a number of multiply-adds, counted on the network that they would leave (ours)."""

import torch

from ..core import cost
from ..core.batch import Example
from ..core.graph import surgery
from .structures import Masked, fold, plan


class Budget:
    """Whether the network that is left by the masks needs more multiply-adds than it may; None for no limit.

    While it does, the masks shrink by lam; below, by nothing, so that the weights can follow. What is left is cut out and
    counted where the closed entries have changed since the last count.
    """

    def __init__(self, masked: Masked, example: Example, macs: float | None) -> None:
        self.masked, self.example, self.macs = masked, example, macs
        self.is_exceeded = True
        self.closed: torch.Tensor | None = None

    def count(self) -> None:
        """Look again, with the masks as they are: FISTA must not have looked ahead."""
        if self.macs is None:
            return
        closed = torch.cat([m.detach() == 0 for m in self.masked.masks()])
        if self.closed is None or not torch.equal(closed, self.closed):
            removal, _ = plan(self.masked)
            small = surgery.remove(fold(self.masked), removal, self.example)
            self.is_exceeded = cost.macs(small, self.example) > self.macs
            self.closed = closed

    def state_dict(self) -> dict:
        return {"is_exceeded": self.is_exceeded, "closed": self.closed}

    def load_state_dict(self, state: dict) -> None:
        self.is_exceeded, self.closed = state["is_exceeded"], state["closed"]
