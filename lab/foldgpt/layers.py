"""What is learned while a model is ranked: one number a block, and how the gates moved."""

import torch
from torch import Tensor, nn

from . import equations as eq


class Gates(nn.Module):
    """One a per block, 1 at first, so that the gated model begins as the model itself; `history` (steps, N) holds g."""

    history: Tensor

    def __init__(self, N: int, steps: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(N))
        self.register_buffer("history", torch.ones(steps, N))

    def forward(self, t: float) -> Tensor:
        """g (N,) when the share t of the run is done."""
        return eq.gate(self.a, eq.annealed(t))

    def note(self, step: int, t: float) -> None:
        """Keep the gates as they are after a step."""
        self.history[step] = self(t).detach()

    def ranking(self) -> tuple[int, ...]:
        """Blocks from the one to remove first to the one to keep longest: by final g, ties by a."""
        g = self.history[-1].double().tolist()
        return tuple(sorted(range(len(g)), key=lambda i: (g[i], float(self.a[i].detach()))))
