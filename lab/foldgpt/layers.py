"""What is learned while a model is ranked: one number a block, and how the gates moved."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from . import equations as eq

PENALTY = 30.0  # of the square of what is open beyond the budget: at a tenth it is as dear as a block of a small model


class HardConcreteGates(nn.Module):
    """One b per block behind gates that are drawn anew for each batch, most of them 0 or 1; `history` (steps, N).

    The gates that are kept are those of u = 1/2. A quarter of the removal is asked for at once, all at 0.6 of the run.
    """

    history: Tensor

    def __init__(self, N: int, removals: int, steps: int) -> None:
        super().__init__()
        self.removal = removals / N
        self.b = nn.Parameter(torch.full((N,), 2.0))
        self.register_buffer("history", torch.ones(steps, N))

    def forward(self, t: float) -> Tensor:
        """Gates g (N,) for a batch."""
        return eq.hard_concrete(self.b, torch.rand_like(self.b).clamp(1e-6, 1 - 1e-6))

    def penalties(self, t: float) -> Iterator[tuple[str, Tensor]]:
        """The term that keeps the budget when the share t of the run is done."""
        yield "budget", PENALTY * (eq.open_share(self.b) - (1 - asked(self.removal, t))).clamp(min=0).square()

    def note(self, step: int, t: float) -> None:
        """Keep the gates as they are after a step."""
        self.history[step] = eq.hard_concrete(self.b.detach(), torch.full_like(self.b, 0.5))

    def ranking(self) -> tuple[int, ...]:
        """Blocks from the one to remove first to the one to keep longest; the order of b is that of g."""
        return tuple(self.b.detach().argsort(stable=True).tolist())


def asked(removal: float, t: float) -> float:
    """The removal that is asked for when the share t of the run is done."""
    return removal * min(1.0, 0.25 + 1.25 * t)


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
        g = eq.within_budget(b, eq.annealed(t, hold=self.hold), asked(self.removal, t))
        return g + (self.b - b)

    def penalties(self, t: float) -> Iterator[tuple[str, Tensor]]:
        """None: these gates keep the budget by themselves."""
        yield from ()

    def note(self, step: int, t: float) -> None:
        """Keep the gates as they are after a step."""
        self.history[step] = self(t).detach()

    def ranking(self) -> tuple[int, ...]:
        """Blocks from the one to remove first to the one to keep longest; the order of b is that of g."""
        return tuple(self.b.detach().argsort(stable=True).tolist())
