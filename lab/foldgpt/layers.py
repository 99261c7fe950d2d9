"""What is learned while a model is ranked: one number a block, and how the gates moved."""

import torch
from torch import Tensor, nn

from . import equations as eq


class Gates(nn.Module):
    """One b per block, equal at first, behind gates that keep the budget; `history` (steps, N) holds g.

    The gradient of a gate reaches its b as it is, so that a shut gate still learns what it is missed for.
    """

    history: Tensor

    def __init__(self, N: int, removals: int, steps: int, hold: float) -> None:
        super().__init__()
        self.removal, self.hold = removals / N, hold
        self.b = nn.Parameter(torch.zeros(N))
        self.register_buffer("history", torch.ones(steps, N))

    def forward(self, t: float) -> Tensor:
        """g (N,) when the share t of the run is done; a quarter of the removal is asked for at once, all at 0.6."""
        b = self.b.detach()
        g = eq.within_budget(b, eq.annealed(t, hold=self.hold), self.removal * min(1.0, 0.25 + 1.25 * t))
        return g + (self.b - b)

    def note(self, step: int, t: float) -> None:
        """Keep the gates as they are after a step."""
        self.history[step] = self(t).detach()

    def ranking(self) -> tuple[int, ...]:
        """Blocks from the one to remove first to the one to keep longest; the order of b is that of g."""
        return tuple(self.b.detach().argsort(stable=True).tolist())
