"""The space that is searched: a traced network whose layers have strategies for their weights and what they read."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from ..core.graph.tracing import ancestors, descendants, module_of
from ..core.quantisation import calibration
from ..core.quantisation import quantisers as q
from ..core.quantisation.grids import FixedQuantiser, Grid, between
from ..core.quantisation.placement import Placement, Spot, attach, everywhere, in_order, is_positive
from . import equations as eq
from .layers import Mixture, RoundedWeight

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
POST = (*calibration.RULES, "easyquant")
_ACTIVATIONS: dict[str, type[q.MaxAbs]] = {
    "dorefa": q.DoReFa, "pact": q.PACT, "lsq": q.LSQ, "lsq+": q.LSQPlus, "dsq": q.DSQ, "tqt": q.TQT, "pams": q.PAMS,
}  # fmt: skip
_WEIGHTS: dict[str, Callable[[int, Tensor], nn.Module]] = {  # PACT's paper gives weights to DoReFa
    "dorefa": lambda b, W: q.DoReFaWeight(b, W, zero=True), "lsq": q.LSQWeight, "lsq+": q.LSQPlusWeight,
    "dsq": lambda b, W: q.RangeWeight(q.DSQ, b, W), "tqt": lambda b, W: q.RangeWeight(q.TQT, b, W),
    "pams": lambda b, W: q.MaxAbsWeight(b),
}  # fmt: skip
AWARE = tuple(_ACTIVATIONS)
SAMPLE = 4096  # values of a tensor that its strategies are compared on
_FEW, _TRIED = 4, 40  # pictures that EasyQuant compares a layer's answers on, and ranges that it tries


@dataclass(frozen=True)
class Role:
    """One tensor that gets a strategy: `role` is 'weights' or 'activations' of `layer`."""

    layer: str
    role: str
    bits: int
    mixture: Mixture


class Space:
    """The roles of a network in its order, the network that mixes their strategies, and what dropped out and why.

    `aliases` of a role say which strategy stands for a name: its own, or that of the one it was merged into.
    """

    def __init__(self, graph: fx.GraphModule, where: Placement, recipe: Any, x: Tensor) -> None:
        self.graph, self.where, self.recipe, self.notes = graph, where, recipe, []  # type: ignore[var-annotated]
        self.bits = layer_bits(graph, where, recipe)
        self.samples: dict[Mixture, Tensor] = {}
        self._weights: dict[str, dict[str, Tensor]] = {name: {} for name in where.convs}
        self._counts = counting(graph, where.convs, x)
        made = attach(graph, where, lambda _: Mixture({}), lambda layer: layer)
        self.activations: dict[str, Mixture] = dict(zip(where.groups(), made, strict=True))
        self._calibrate(x)
        self.weights = {name: self._weight(name) for name in where.convs}
        self.roles = list(self._roles())
        self.aliases = [self._alias(role.mixture) for role in self.roles]
        if recipe.mode == "post":
            self.merge(correlation=math.inf, clip=1e-6)  # copies are one for all algorithms

    def _calibrate(self, x: Tensor) -> None:
        """Run the float network once; every mixture reads its tensor and makes its strategies."""
        spots = self.where.groups()
        found: dict[str, dict[str, Any]] = {group: {} for group in spots}
        for group, mixture in self.activations.items():
            mixture.observer = lambda x, group=group: self._observe(x, spots[group], found[group])
        with torch.no_grad():
            self.graph(x)
        for group, mixture in self.activations.items():
            mixture.observer = None
            mixture.settle(self._kept(found[group], f"{group}, activations"))

    def _observe(self, x: Tensor, spot: Spot, found: dict[str, Any]) -> None:
        """Strategies for one tensor; of tensors that share a grid, the widest."""
        mixture, bits = self.activations[spot.group], self._spot_bits(spot)
        self.samples[mixture] = calibration.thinned(x.detach().flatten(), SAMPLE)
        for name in self.recipe.names():
            if self.recipe.mode == "aware":
                made = found.setdefault(name, _ACTIVATIONS[name](bits, spot.signed).to(x.device))
                made.calibrating = True
                made.train()(x if x.any() else torch.ones_like(x))  # a tensor that has no range yet gets one of 1
                made.calibrating = False
                continue
            grid = self._grid(name, x, spot, bits)
            if name in found:
                grid = _widest(grid, found[name].grid(), bits)
            found[name] = FixedQuantiser(grid).to(x.device)

    def _grid(self, name: str, x: Tensor, spot: Spot, bits: int) -> Grid:
        """A rule's grid for one tensor; where scales are 'uneven', each side of 0 of a signed one has its own end."""
        n = q.levels(bits, spot.signed)
        if not (self.recipe.scales == "uneven" and spot.signed):
            return Grid(self._range(name, x, spot, n) / n, -n * spot.signed, n, 128 * spot.signed)
        sides, codes = [(-x).relu(), x.relu()], q.levels(bits, signed=False)
        tops = [float(side.max()) for side in sides]
        if name == "easyquant":
            share = self._range(name, x, spot, n) / max(*tops, 1e-12)
            return between(-share * tops[0], share * tops[1], bits)
        own = [max(1, round(codes * top / max(sum(tops), 1e-12))) for top in tops]
        ends = [float(calibration.RULES[name](x.flatten(1)[None], k, False)) for x, k in zip(sides, own, strict=True)]
        return between(-ends[0], ends[1], bits)

    def _range(self, name: str, x: Tensor, spot: Spot, n: int) -> float:
        samples = x.detach().flatten(1)[None]
        if name != "easyquant":
            return float(calibration.RULES[name](samples, n, spot.signed))
        layer = next((r for r in self._readers(spot)), None)
        start = calibration.max_abs(samples, n, spot.signed)
        if layer is None or float(start) <= 0:
            return float(start)
        module = self.graph.get_submodule(layer)
        W, axis = weight_rows(module)
        n_w = q.levels(self.bits[layer])
        first = calibration.max_abs(self._counting_rows(layer), n_w, True).clamp(min=1e-12)

        def run(x: Tensor, W: Tensor) -> Tensor:
            return functional_call(module, {"weight": W.movedim(0, axis)}, (x,))

        w, a = calibration.easyquant(x[:_FEW], W, run, (first, start), (n_w, n), spot.signed, _TRIED)
        self._weights[layer].setdefault("easyquant", w)
        return float(a)

    def _readers(self, spot: Spot) -> list[str]:
        nodes = {node.name: node for node in self.graph.graph.nodes}
        targets = [str(nodes[name].target) for name in spot.readers if nodes[name].op == "call_module"]
        return [target for target in targets if target in self.where.convs]

    def _spot_bits(self, spot: Spot) -> int:
        read = self._readers(spot)
        return 8 if spot.picture or any(self.bits[one] == 8 for one in read) else self.recipe.activation_bits

    def _weight(self, name: str) -> Mixture:
        """Put the strategies of a layer's weight into the network."""
        layer = self.graph.get_submodule(name)
        W, axis = weight_rows(layer)
        n, found = q.levels(self.bits[name]), {}  # type: ignore[var-annotated]
        rows, counts = self._counting_rows(name), self._counts[name]
        for rule in self.recipe.names():
            if self.recipe.mode == "aware":
                found |= {rule: _WEIGHTS[rule](self.bits[name], _started(counts))} if rule in _WEIGHTS else {}
                continue
            alpha = self._weights[name].get(rule) if rule == "easyquant" else calibration.RULES[rule](rows, n, True)
            if alpha is not None:
                alpha = _filled(alpha, rows, n)
                shape = [1] * W.dim()
                shape[axis] = len(alpha)
                found[rule] = RoundedWeight((alpha / n).view(shape if len(alpha) > 1 else []), n)
        mixture = Mixture(self._kept(found, f"{name}, weights")).to(W.device)
        parametrize.register_parametrization(layer, "weight", mixture, unsafe=True)
        self.samples[mixture] = counts
        return mixture

    def _counting_rows(self, name: str) -> Tensor:
        """The weights that ranges of a layer are read from, (G, 1, V); a channel of which none counts is read whole."""
        W, axis = weight_rows(self.graph.get_submodule(name))
        rows, counts = (_grouped(w, self.recipe.scales) for w in (W, self._counts[name].movedim(axis, 0)))
        return torch.where((counts != 0).any(2, keepdim=True), counts, rows)

    def _kept(self, found: dict[str, Any], where: str) -> dict[str, nn.Module]:
        """Without the strategies that found no range; where none did, the tensor is all zero and any range will do."""
        bad = [name for name, one in found.items() if not _has_range(one)]
        if bad:
            self.notes.append(f"{where}: no range from {', '.join(bad)}; dropped out")
        kept = {name: one for name, one in found.items() if name not in bad}
        if kept:
            return kept
        name, one = next(iter(found.items()))
        one.step = torch.ones_like(one.step)
        return {name: one}

    def _roles(self) -> Iterator[Role]:
        """Each tensor in the network's order, and the weights of the layers that read it first."""
        rest = list(self.where.convs)
        for group, spot in self.where.groups().items():
            read = self._readers(spot)
            yield Role(read[0] if read else group, "activations", self._spot_bits(spot), self.activations[group])
            for name in [name for name in read if name in rest]:
                rest.remove(name)
                yield Role(name, "weights", self.bits[name], self.weights[name])

    def _alias(self, mixture: Mixture) -> dict[str, int]:
        """The strategy that stands for each name; for one that is not here, DoReFa or the one of least error."""
        order = {name: k for k, name in enumerate(mixture.names)}
        spare = order.get("dorefa", int(self.errors(mixture).diagonal().argmin()))
        return {name: order.get(name, spare) for name in self.recipe.names()}

    def errors(self, mixture: Mixture) -> Tensor:
        """Eq. (6) for a tensor's strategies on its sample, as shares of its square: (N, N)."""
        x = self.samples[mixture]
        with torch.no_grad():
            C = eq.error_products([one(x) for one in mixture.strategies], x)
        return C / x.square().sum().clamp(min=1e-20)

    def merge(self, correlation: float = 0.95, clip: float = 0.01, keep: Sequence[list[int]] = ()) -> list[list[int]]:
        """Leave one of each set of near-duplicates: errors that go together, or ranges within a share `clip`.

        What the assignments `keep` name stays; gives them as they are called afterwards.
        """
        kept: list[list[int]] = [[] for _ in keep]
        for at, role in enumerate(self.roles):
            mixture = role.mixture
            stands = _stand_ins(self._alike(mixture, correlation, clip), {chosen[at] for chosen in keep})
            left = sorted(set(stands))
            self.aliases[at] = {name: left.index(stands[k]) for name, k in self.aliases[at].items()}
            mixture.settle({mixture.names[k]: mixture.strategies[k] for k in left})
            mixture.to(self.samples[mixture].device)
            for new, chosen in zip(kept, keep, strict=True):
                new.append(left.index(chosen[at]))
        return kept

    def _alike(self, mixture: Mixture, correlation: float, clip: float) -> Tensor:
        """Which strategies are near-duplicates: (N, N) bool."""
        C = self.errors(mixture)
        size = C.diagonal().clamp(min=1e-20).sqrt()
        ends = torch.stack([_ends(one, self.samples[mixture]) for one in mixture.strategies])
        apart = (ends[:, None] - ends).abs().amax(-1) / ends.abs().amax(-1).clamp(min=1e-20)
        return (C / size[:, None] / size > correlation) | (apart < clip)

    def set(self, chosen: list[int] | None) -> None:
        """Make the network hard with these strategies, or soft."""
        for k, role in enumerate(self.roles):
            role.mixture.chosen = None if chosen is None else chosen[k]

    def logits(self) -> list[nn.Parameter]:
        return [role.mixture.logits for role in self.roles]

    def state_dict(self) -> dict[str, Any]:
        chosen = [-1 if role.mixture.chosen is None else role.mixture.chosen for role in self.roles]
        return {"graph": dict(self.graph.state_dict()), "chosen": chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.graph.load_state_dict(state["graph"])
        self.set([k if k >= 0 else None for k in state["chosen"]])


@torch.no_grad()
def counting(graph: fx.GraphModule, names: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """Each layer's weight, 0 where all that it multiplies on the pictures x (N, C, H, W) is 0.

    A norm folded into the layer of a channel that its ReLU has shut makes huge weights, which do nothing; a range that
    held them would leave no codes for the others.
    """
    reads: dict[str, Tensor] = {}

    def note(name: str, given: tuple[Tensor, ...]) -> None:
        x = given[0].detach()
        some = (x != 0).movedim(-1 if isinstance(graph.get_submodule(name), nn.Linear) else 1, 0).flatten(1).any(1)
        reads[name] = reads.get(name, torch.zeros_like(some)) | some

    hooks = [graph.get_submodule(n).register_forward_pre_hook(lambda _, given, n=n: note(n, given)) for n in names]
    graph(x)
    for hook in hooks:
        hook.remove()
    return {name: _counting(graph.get_submodule(name), reads[name]) for name in names}


def _counting(layer: Any, reads: Tensor) -> Tensor:
    """A layer's weight, 0 for inputs that are always 0, or whole if all are: `reads` (C,) says which ever are not."""
    W = layer.weight.detach()
    if isinstance(layer, nn.ConvTranspose2d):
        counts = W * reads.view(-1, 1, 1, 1)
    elif isinstance(layer, nn.Linear):
        counts = W * reads
    else:
        groups = reads.view(layer.groups, 1, -1).expand(-1, layer.out_channels // layer.groups, -1)
        counts = W * groups.reshape(*W.shape[:2], 1, 1)
    return counts if counts.any() else W


def layer_bits(graph: fx.GraphModule, where: Placement, recipe: Any) -> dict[str, int]:
    """The bits of each layer: the recipe's, and `ends` for the first and the last."""
    nodes = [node for node in graph.graph.nodes if str(node.target) in where.convs and node.op == "call_module"]
    ends = {str(node.target) for node in nodes if _is_end(node, nodes)}
    return {name: recipe.ends if name in ends else recipe.weight_bits for name in where.convs}


def place(graph: fx.GraphModule, recipe: Any) -> Placement:
    """Where strategies are chosen: what each layer reads ('layers'), or every tensor that integers pass ('full')."""
    nodes = [node for node in graph.graph.nodes if isinstance(module_of(node), LAYERS)]
    if not nodes:
        raise ValueError("the network has no Conv2d, ConvTranspose2d or Linear: there is nothing to quantise")
    if recipe.placement == "full":
        groups: dict[str, bool] = {}
        spots = [replace(spot, signed=spot.signed) for spot in everywhere(graph, nodes)]
        for spot in spots:
            groups[spot.group] = groups.get(spot.group, False) or spot.signed
        spots = [replace(spot, signed=groups[spot.group]) for spot in spots]
    else:
        spots = [
            Spot(node.all_input_nodes[0].name, (node.name,), str(node.target).replace(".", "_"),
                 not is_positive(node.all_input_nodes[0])) for node in nodes
        ]  # fmt: skip
    names = tuple(dict.fromkeys(str(node.target) for node in nodes))
    rest = [node for node in graph.graph.nodes if node.op == "call_module" and str(node.target) not in names]
    left = {
        str(node.target): f"{type(module_of(node)).__name__} is not quantised here"
        for node in rest
        if any(True for _ in module_of(node).parameters())
    }
    return Placement(names, tuple(in_order(graph, spots)), left)


def _is_end(node: fx.Node, nodes: list[fx.Node]) -> bool:
    before, after = ancestors(node) - {node}, descendants(node) - {node}
    return before.isdisjoint(nodes) or after.isdisjoint(nodes)


def weight_rows(layer: Any) -> tuple[Tensor, int]:
    """A layer's weight with its output channels first, and the axis where they are."""
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    return layer.weight.detach().movedim(axis, 0), axis


def _grouped(W: Tensor, scales: str) -> Tensor:
    return W.reshape(len(W) if scales == "channel" else 1, 1, -1)


def _filled(alpha: Tensor, rows: Tensor, n: int) -> Tensor:
    """The ranges (G,) of a weight's rows (G, 1, V), with one for each of many channels that shows none.

    Where a rule gives none the largest |w| is taken; a channel of zeros takes the widest of all, as any would do.
    """
    if len(alpha) == 1:
        return alpha
    alpha = torch.where(_is_range(alpha / n), alpha, calibration.max_abs(rows, n, True))
    return torch.where(_is_range(alpha / n), alpha, alpha.amax())


def _started(W: Tensor) -> Tensor:
    """What a weight's range is first read from: itself, or if it is all 0 the largest that torch would begin with."""
    return W if W.any() else torch.full_like(W, W[0].numel() ** -0.5)


def _is_range(steps: Tensor) -> Tensor:
    return torch.isfinite(steps) & (steps > 1e-12)


def _has_range(one: Any) -> bool:
    steps = one.step if hasattr(one, "step") else torch.tensor(one.grid().step if hasattr(one, "grid") else 1.0)
    return bool(_is_range(steps).all())


def _widest(a: Grid, b: Grid, bits: int) -> Grid:
    """The grid that holds the values of both: tensors that share one."""
    if a.zero == b.zero:
        return max(a, b, key=lambda grid: grid.step)
    return between(min(a.low * a.step, b.low * b.step), max(a.high * a.step, b.high * b.step), bits)


def _ends(one: Any, x: Tensor) -> Tensor:
    """The lowest and the largest value that a strategy leaves, of all its channels."""
    if hasattr(one, "low"):
        return torch.cat([one.low * one.step.flatten(), one.high * one.step.flatten()])
    step = one.step_of(x).flatten() if hasattr(one, "step_of") else torch.tensor([one.grid().step])
    return torch.cat([-step, step])


def _stand_ins(alike: Tensor, fixed: set[int]) -> list[int]:
    """For each strategy the one that stays in its place: itself, or an alike one that is fixed or comes before it."""
    stands = {k: k for k in sorted(fixed)}
    for k in range(len(alike)):
        stands.setdefault(k, next((one for one in set(stands.values()) if alike[k, one]), k))
    return [stands[k] for k in range(len(alike))]
