"""The pattern of a network in training: each class's row order and each layer's block mask, kept exact on the weights.

Rows are not moved while the network trains, so that the optimiser's memory stays with its weights: an order only says
which rows form a group. `rearrange.permute` moves them once, at the end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import equations as eq
from .rearrange import Ground

SEARCHES = {"sort": eq.sort, "greedy": eq.greedy, "swaps": eq.swaps}


class Pattern:
    """Orders and masks of the layers of a network, searched in their weights as they are now.

    orders: class -> (C,) where each row of the new order stands now. masks: layer -> (groups, IC), True is kept.
    With `random` a layer's saliency is drawn once from torch's generator: a control.
    """

    def __init__(
        self, model: nn.Module, ground: Ground, block: int, budget: str, search: str, random: bool = False
    ) -> None:
        self.weights = {name: model.get_parameter(f"{name}.weight") for name in ground.layers}
        self.classes, self.block, self.budget, self.search = ground.classes, block, budget, search
        shapes = {name: tuple(w.shape[:2]) for name, w in self.weights.items()}  # (OC, IC)
        self.orders = {name: torch.arange(shapes[pruned[0]][0]) for name, pruned in ground.classes.items()}
        self.masks = {
            name: torch.ones(-(-rows // block), columns, dtype=torch.bool) for name, (rows, columns) in shapes.items()
        }
        self.class_of = {layer: name for name, pruned in ground.classes.items() for layer in pruned}
        self.random = {name: torch.rand(shape) for name, shape in shapes.items()} if random else {}
        self.spread()

    def saliency(self, name: str) -> Tensor:
        """(OC, IC) of a layer, on the CPU, rows in their own places."""
        return self.random[name] if self.random else eq.saliency(self.weights[name]).cpu()

    def order(self, name: str) -> Tensor:
        """The order of a layer's rows."""
        return self.orders[self.class_of[name]] if name in self.class_of else torch.arange(len(self.weights[name]))

    def scores(self, saliencies: dict[str, Tensor]) -> list[Tensor]:
        """Each layer's block scores in its present order; under a global budget for one weight of a block."""
        B = [eq.block_scores(S[self.order(name)], self.block) for name, S in saliencies.items()]
        return B if self.budget == "layer" else [b / b.mean().clamp(min=1e-12) for b in B]

    def find_masks(self, saliencies: dict[str, Tensor], s: float) -> dict[str, Tensor]:
        """Each layer's mask when the share s of all blocks goes."""
        B = self.scores(saliencies)
        masks = [eq.mask_layer(b, s) for b in B] if self.budget == "layer" else eq.mask_global(B, s)
        return dict(zip(saliencies, masks, strict=True))

    def regroup(self, s: float) -> None:
        """Search an order for every class, for the share s that will be removed in the end; never a worse one."""
        if self.search == "none" or self.block == 1:  # a block of one row has no neighbours
            return
        saliencies = {name: self.saliency(name) for name in self.weights}
        removed = {name: 1 - int(M.sum()) / M.numel() for name, M in self.find_masks(saliencies, s).items()}
        for name, pruned in self.classes.items():
            now = self.orders[name]
            arranged = [saliencies[layer][now] for layer in pruned]
            self.orders[name] = now[SEARCHES[self.search](arranged, self.block, [removed[layer] for layer in pruned])]

    def prune(self, s: float) -> None:
        """Take new masks for the share s, and apply them."""
        self.masks = self.find_masks({name: self.saliency(name) for name in self.weights}, s)
        self.spread()
        self.apply()

    def spread(self) -> None:
        """Bring the masks to the form of the weights, on the weights' device."""
        self.gone = {}
        for name, w in self.weights.items():
            rows = eq.spread(self.masks[name], self.block, self.order(name)).to(w.device)
            self.gone[name] = ~rows.view(*rows.shape, *[1] * (w.dim() - 2))

    @torch.no_grad()
    def apply(self, *_: object) -> None:
        """Make every masked weight exactly 0."""
        for name, w in self.weights.items():
            w.masked_fill_(self.gone[name], 0)

    def blocks(self) -> tuple[int, int]:
        """How many blocks are kept, and how many there are."""
        return sum(int(M.sum()) for M in self.masks.values()), sum(M.numel() for M in self.masks.values())

    def state_dict(self) -> dict:
        return {"orders": self.orders, "masks": self.masks}

    def load_state_dict(self, state: dict) -> None:
        if {n: M.shape for n, M in state["masks"].items()} != {n: M.shape for n, M in self.masks.items()}:
            raise ValueError("its masks are of other layers")
        self.orders, self.masks = dict(state["orders"]), dict(state["masks"])
        self.spread()


def retained(saliencies: dict[str, Tensor], orders: dict[str, Tensor], block: int, s: float) -> float:
    """The mean over the layers of what their largest blocks hold, with rows in these orders."""
    shares = [eq.retained(S[orders[name]] if name in orders else S, block, s) for name, S in saliencies.items()]
    return sum(shares) / len(shares)


def search(saliencies: Sequence[Tensor], name: str, block: int, s: float) -> Tensor:
    """The order that a search gives to a class; 'none' leaves rows as they came."""
    if name == "none" or block == 1:
        return torch.arange(len(saliencies[0]))
    return SEARCHES[name](saliencies, block, [s] * len(saliencies))
