"""The pattern of a network in training: each class's row order and each layer's block mask, kept exact on the weights.

Rows are not moved while the network trains, so that the optimiser's memory stays with its weights: an order only says
which rows form a group. `rearrange.permute` moves them once, at the end. Columns go with the rows of the layers that
write them, so that blocks of several inputs are taken of the columns as they will stand then.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..core.graph.channels import Channels
from . import equations as eq
from .rearrange import Block, Ground, sides

SEARCHES = {"sort": eq.sort, "greedy": eq.greedy, "swaps": eq.swaps}


class Pattern:
    """Orders and masks of the layers of a network, searched in their weights as they are now.

    orders: class -> (C,) where each row of the new order stands now. masks: layer -> (groups, groups of inputs), True
    is kept; inputs stand as they came in blocks of one input, else as they will in the rearranged network.
    With `random` a layer's saliency is drawn once from torch's generator: a control.
    """

    def __init__(
        self, channels: Channels, ground: Ground, block: Block, budget: str, search: str, random: bool = False
    ) -> None:
        self.weights = {name: channels.graph.get_parameter(f"{name}.weight") for name in ground.layers}
        self.channels, self.ground, self.budget, self.search = channels, ground, budget, search
        self.rows, self.inputs = sides(block)
        self.orders = {name: torch.arange(channels.sizes[channels.group_of(name)]) for name in ground.classes}
        shapes = {name: tuple(w.shape[:2]) for name, w in self.weights.items()}  # (OC, IC)
        self.masks = {
            name: torch.ones(-(-rows // self.rows), -(-columns // self.inputs), dtype=torch.bool)
            for name, (rows, columns) in shapes.items()
        }
        self.class_of = {layer: name for name, pruned in ground.classes.items() for layer in pruned}
        self.runs = {name: self._runs(name) for name in ground.classes}
        self.random = {name: torch.rand(shape) for name, shape in shapes.items()} if random else {}
        self.spread()

    def _runs(self, name: str) -> dict[str, list[Tensor]]:
        """The layers whose columns a class has, and of each the columns of its channels, where it has one for each.

        Several lists where a layer reads the class twice; none where channels have several columns (flatten).
        """
        group, everyone = self.channels.group_of(name), torch.arange(len(self.orders[name]))
        runs = {}
        for layer, layout in self.ground.reads.items() if self.inputs > 1 else ():
            theirs = [(at, a[1]) for at, a in enumerate(self.channels.addresses(layout)) if a and a[0] == group]
            if theirs:
                pieces = torch.tensor(theirs).split(len(everyone))  # (C, 2) each
                runs[layer] = [piece[:, 0] for piece in pieces if torch.equal(piece[:, 1], everyone)]
        return runs

    def saliency(self, name: str) -> Tensor:
        """(OC, IC) of a layer, on the CPU, rows in their own places."""
        return self.random[name] if self.random else eq.saliency(self.weights[name]).cpu()

    def order(self, name: str) -> Tensor:
        """The order of a layer's rows."""
        return self.orders[self.class_of[name]] if name in self.class_of else torch.arange(len(self.weights[name]))

    def columns(self, name: str) -> Tensor:
        """The order of a layer's columns; as they came where a block has one input, for which it says nothing."""
        if self.inputs == 1:
            return torch.arange(self.weights[name].shape[1])
        orders = {self.channels.group_of(name): order for name, order in self.orders.items()}
        return self.channels.gather(self.ground.reads[name], orders)

    def arranged(self, name: str, S: Tensor) -> Tensor:
        """A layer's matrix (OC, IC) with its rows and columns in their present orders."""
        return S[self.order(name)][:, self.columns(name)]

    def scores(self, saliencies: dict[str, Tensor]) -> list[Tensor]:
        """Each layer's block scores in its present order; under a global budget for one weight of a block."""
        B = [eq.block_scores(self.arranged(name, S), self.rows, self.inputs) for name, S in saliencies.items()]
        return B if self.budget == "layer" else [b / b.mean().clamp(min=1e-12) for b in B]

    def find_masks(self, saliencies: dict[str, Tensor], s: float) -> dict[str, Tensor]:
        """Each layer's mask when the share s of all blocks goes."""
        B = self.scores(saliencies)
        masks = [eq.mask_layer(b, s) for b in B] if self.budget == "layer" else eq.mask_global(B, s)
        return dict(zip(saliencies, masks, strict=True))

    def regroup(self, s: float) -> None:
        """Search an order for every class, for the share s that will be removed in the end; never a worse one.

        Class by class, since the order of one is that of its readers' columns.
        """
        if self.search == "none" or self.rows == self.inputs == 1:  # a block of one weight has no neighbours
            return
        saliencies = {name: self.saliency(name) for name in self.weights}
        removed = {name: 1 - int(M.sum()) / M.numel() for name, M in self.find_masks(saliencies, s).items()}
        for name in self.orders:
            if parts := list(self._parts(name, saliencies)):
                shares, size = [removed[layer] for layer, _ in parts], max(self.rows, self.inputs)
                change = SEARCHES[self.search]([part for _, part in parts], size, shares)
                self._take(name, change, saliencies, removed)

    def _parts(self, name: str, saliencies: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """What a class's order decides: layers, and of each a matrix whose rows are the channels in their order.

        Those that write the class, their inputs summed in groups; those that read it, transposed, their rows summed.
        """
        for layer in self.ground.classes[name] if self.rows > 1 else ():
            yield layer, eq.block_scores(self.arranged(layer, saliencies[layer]), 1, self.inputs)
        for layer, pieces in self.runs[name].items():
            for columns in pieces:
                yield layer, eq.block_scores(self.arranged(layer, saliencies[layer]), self.rows)[:, columns].T

    def _take(self, name: str, change: Tensor, saliencies: dict[str, Tensor], removed: dict[str, float]) -> None:
        """Take a change of a class's order, unless the layers that it changes keep less of their magnitude so."""
        changed = dict.fromkeys([*self.ground.classes[name], *self.runs[name]])

        def kept() -> float:
            return sum(self.objective(layer, saliencies[layer], removed[layer]) for layer in changed)

        before, now = kept(), self.orders[name]
        self.orders[name] = now[change]
        if kept() < before:
            self.orders[name] = now

    def objective(self, name: str, S: Tensor, s: float) -> float:
        """What a layer keeps in the present orders when the share s of its blocks goes: Card (7) of itself."""
        A = eq.block_scores(self.arranged(name, S), 1, self.inputs)
        return eq.objective([A], torch.arange(len(A)), self.rows, [s])

    def prune(self, s: float) -> None:
        """Take new masks for the share s, and apply them."""
        self.masks = self.find_masks({name: self.saliency(name) for name in self.weights}, s)
        self.spread()
        self.apply()

    def spread(self) -> None:
        """Bring the masks to the form of the weights, on the weights' device."""
        self.gone = {}
        for name, w in self.weights.items():
            kept = eq.spread(self.masks[name], self.rows, self.order(name), self.inputs, self.columns(name))
            self.gone[name] = ~kept.to(w.device).view(*kept.shape, *[1] * (w.dim() - 2))

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


def retained(matrices: dict[str, Tensor], block: Block, s: float) -> float:
    """The mean over the layers of what their largest blocks hold, rows and columns in the order that they have here."""
    rows, inputs = sides(block)
    shares = [eq.retained(S, rows, s, inputs) for S in matrices.values()]
    return sum(shares) / len(shares)


def search(saliencies: Sequence[Tensor], name: str, block: int, s: float) -> Tensor:
    """The order that a search gives to a class; 'none' leaves rows as they came."""
    if name == "none" or block == 1:
        return torch.arange(len(saliencies[0]))
    return SEARCHES[name](saliencies, block, [s] * len(saliencies))
