"""The space that is searched: a traced network whose layers have strategies for their weights and what they read."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..core.batch import Example, device_for
from ..core.graph.tracing import arguments_of
from ..core.quantisation.placement import insert_quantisers
from ..core.quantisation.qparams import FixedQuantiser, QParams, set_int_repr
from . import equations as eq
from .layers import Mixture
from .placement import layer_bits, place_quantisers, readers
from .strategies import (
    Activation,
    Calibration,
    LayerWeight,
    Strategies,
    any_range,
    ends,
    fixed_weight,
    has_range,
    layer_weights,
    learned_weight,
    offered,
)

Assignment = list[int]  # the index of a strategy for each role


@dataclass(frozen=True)
class Role:
    """One tensor that gets a strategy: `role` is 'weights' or 'activations' of `layer`.

    sample: values of the tensor, any shape, on which its strategies are compared. group: the quantiser of activations.
    """

    layer: str
    role: str
    bits: int
    mixture: Mixture
    sample: Tensor
    group: str = ""


class StrategySpace:
    """The roles of a network in its order, the network that mixes their strategies, and what dropped out and why.

    `graph` is changed in place; `recipe` says what is offered and where; x are the calibration's inputs.
    `aliases` of a role say which strategy stands for a name: its own, or that of the one it was merged into.
    """

    def __init__(self, graph: fx.GraphModule, recipe: Any, x: Example) -> None:
        self.graph, self.mode, self.names = graph, recipe.mode, offered(recipe)
        self.notes: list[str] = []
        # Where: the tensors, the bits of each, the layers that read it.
        self.placement = place_quantisers(graph, recipe.placement)
        self.bits = layer_bits(graph, self.placement, recipe)
        self.readers = readers(graph, self.placement)
        self.activation_bits = self._activation_bits(recipe)
        # By what: the float network is run with its weights as they are, before any of them is a mixture.
        weights = layer_weights(graph, self.bits, recipe.scales, x)
        calibration = self._calibrate(recipe, weights, x)
        self.weights = {name: self._weight(weight, calibration) for name, weight in weights.items()}
        self.roles = list(self._roles(calibration, weights))
        self.known_errors: dict[Mixture, Tensor] = {}
        self.aliases = [self._alias(role) for role in self.roles]
        if self.mode == "post":
            self.merge(correlation=math.inf, clip=1e-6)  # copies are one for all algorithms

    def _activation_bits(self, recipe: Any) -> dict[str, int]:
        """The bits of each group's tensor: pictures, and what layers of 8 bits read, keep 8."""
        eight = {
            group: point.image or any(self.bits[name] == 8 for name in self.readers[group])
            for group, point in self.placement.groups().items()
        }
        return {group: 8 if is_eight else recipe.activation_bits for group, is_eight in eight.items()}

    def _calibrate(self, recipe: Any, weights: dict[str, LayerWeight], x: Example) -> Calibration:
        """Put a mixture behind each group's tensor; one run of the float network gives all of them their strategies."""
        mixtures = insert_quantisers(self.graph, self.placement, lambda _: Mixture({}))
        self.activations = dict(zip(self.readers, mixtures, strict=True))
        groups = self.placement.groups().items()
        tensors = {group: Activation(self.activation_bits[group], point.signed) for group, point in groups}
        calibration = Calibration(self.graph, recipe, tensors, weights)
        with torch.no_grad():
            calibration.run(*arguments_of(self.graph, x))
        for group, mixture in self.activations.items():
            mixture.set_strategies(self._usable(calibration.strategies[group], f"{group}, activations"))
            mixture.to(device_for(self.graph, x))
        return calibration

    def _weight(self, weight: LayerWeight, calibration: Calibration) -> Mixture:
        """Put the strategies of a layer's weight into the network."""
        if self.mode == "aware":
            strategies = learned_weight(self.names, weight)
        else:
            strategies = fixed_weight(self.names, weight, calibration.weight_ranges.get(weight.name))
        mixture = Mixture(self._usable(strategies, f"{weight.name}, weights")).to(weight.used.device)
        parametrize.register_parametrization(weight.layer, "weight", mixture, unsafe=True)
        return mixture

    def _usable(self, strategies: Strategies, tensor: str) -> Strategies:
        """Without the strategies that found no range, which are noted; where none did, any range will do."""
        bad = [name for name, strategy in strategies.items() if not has_range(strategy)]
        if bad:
            self.notes.append(f"{tensor}: no range from {', '.join(bad)}; dropped out")
        return {name: strategies[name] for name in strategies if name not in bad} or any_range(strategies)

    def _roles(self, calibration: Calibration, weights: dict[str, LayerWeight]) -> Iterator[Role]:
        """Each tensor in the network's order, and the weights of the layers that read it first."""
        rest = list(weights)
        for group, names in self.readers.items():
            layer, bits = names[0] if names else group, self.activation_bits[group]
            yield Role(layer, "activations", bits, self.activations[group], calibration.samples[group], group)
            for name in [name for name in names if name in rest]:
                rest.remove(name)
                yield Role(name, "weights", self.bits[name], self.weights[name], weights[name].used)

    def _alias(self, role: Role) -> dict[str, int]:
        """The strategy that stands for each name; for one that is not here, DoReFa or the one of least error."""
        order = {name: k for k, name in enumerate(role.mixture.names)}
        spare = order.get("dorefa", int(self.errors(role).diagonal().argmin()))
        return {name: order.get(name, spare) for name in self.names}

    # -- compared and merged -------------------------------------------------------------------------------------------

    def errors(self, role: Role) -> Tensor:
        """Card (6) for a tensor's strategies on its sample, as shares of its square: (N, N)."""
        x, mixture = role.sample, role.mixture
        if self.mode == "aware":
            return _error_shares(mixture, x)
        if mixture not in self.known_errors:  # fixed strategies are compared once
            self.known_errors[mixture] = _error_shares(mixture, x)
        return self.known_errors[mixture]

    def merge(self, correlation: float = 0.95, clip: float = 0.01, keep: Sequence[Assignment] = ()) -> list[Assignment]:
        """Leave one of each set of near-duplicates: errors that go together, or ranges within a share `clip`.

        What the assignments `keep` name stays; gives them as they are called afterwards.
        """
        kept: list[Assignment] = [[] for _ in keep]
        for at, role in enumerate(self.roles):
            mixture = role.mixture
            stands = _stand_ins(self._alike(role, correlation, clip), {chosen[at] for chosen in keep})
            left = sorted(set(stands))
            self.known_errors[mixture] = self.errors(role)[left][:, left]
            self.aliases[at] = {name: left.index(stands[k]) for name, k in self.aliases[at].items()}
            mixture.set_strategies({mixture.names[k]: mixture.strategies[k] for k in left})
            mixture.to(role.sample.device)
            for new, chosen in zip(kept, keep, strict=True):
                new.append(left.index(chosen[at]))
        return kept

    def _alike(self, role: Role, correlation: float, clip: float) -> Tensor:
        """Which strategies are near-duplicates: (N, N) bool."""
        C = self.errors(role)
        size = C.diagonal().clamp(min=1e-20).sqrt()  # (N,), so that C / size / size are the errors' correlations
        limits = torch.stack([ends(strategy, role.sample) for strategy in role.mixture.strategies])
        apart = (limits[:, None] - limits).abs().amax(-1) / limits.abs().amax(-1).clamp(min=1e-20)
        return (C / size[:, None] / size > correlation) | (apart < clip)

    # -- soft and hard -------------------------------------------------------------------------------------------------

    def set(self, chosen: Sequence[int | None] | None) -> None:
        """Make the network hard with these strategies, or soft."""
        for k, role in enumerate(self.roles):
            role.mixture.chosen = None if chosen is None else chosen[k]

    def logits(self) -> list[nn.Parameter]:
        """The logits of each role's strategies, (N,) each."""
        return [role.mixture.logits for role in self.roles]

    def state_dict(self) -> dict[str, Any]:
        chosen = [-1 if role.mixture.chosen is None else role.mixture.chosen for role in self.roles]
        return {"graph": dict(self.graph.state_dict()), "chosen": chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.graph.load_state_dict(state["graph"])
        self.set([k if k >= 0 else None for k in state["chosen"]])

    # -- kept ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def deployed(self, chosen: Assignment, plain: fx.GraphModule) -> fx.GraphModule:
        """`plain`, the float network, on the grids of these strategies; its weights become codes times a step."""
        self.set(chosen)
        grids = {group: _qparams(mixture.kept) for group, mixture in self.activations.items()}
        insert_quantisers(plain, self.placement, lambda point: FixedQuantiser(grids[point.group]))
        trained = {name: value for name, value in self.graph.state_dict().items() if not _is_of_strategies(name)}
        plain.load_state_dict(trained, strict=False)  # biases and norms, which 'aware' mode trains too
        for name, mixture in self.weights.items():
            W = self._layer(name).parametrizations.weight.original
            step = mixture.kept.step_of(W)
            set_int_repr(plain.get_submodule(name), (mixture.kept(W) / step).round(), step)
        return plain.to(self.roles[0].mixture.logits.device).eval().requires_grad_(False)

    def choices(self, chosen: Assignment, model: fx.GraphModule) -> dict[str, dict[str, Any]]:
        """{layer: {weights, activations, weight_scale, scale, zero_point, bits}}: what was kept, by name and number.

        `model` is the deployed network.
        """
        table: dict[str, dict[str, Any]] = {}
        for role, k in zip(self.roles, chosen, strict=True):
            row = table.setdefault(role.layer, {})
            row[role.role] = role.mixture.names[k]
            if role.role == "weights":
                step: Any = model.get_submodule(role.layer).step
                row |= {"weight_bits": role.bits, "weight_scale": step.flatten().tolist()}
            else:
                grid = _qparams(model.get_submodule(f"quantisers.{role.group}"))
                row |= {"activation_bits": role.bits, "scale": grid.scale, "zero_point": grid.zero_point}
        return table

    def _layer(self, name: str) -> Any:
        return self.graph.get_submodule(name)


@torch.no_grad()
def _error_shares(mixture: Mixture, x: Tensor) -> Tensor:
    C = eq.error_products([strategy(x) for strategy in mixture.strategies], x)
    return C / x.square().sum().clamp(min=1e-20)


def _qparams(quantiser: Any) -> QParams:
    return quantiser.qparams()


def _is_of_strategies(name: str) -> bool:
    """Whether an entry of the network's state belongs to a strategy, or is a weight that one computes."""
    return ".parametrizations." in name or name.startswith("quantisers.")


def _stand_ins(alike: Tensor, fixed: set[int]) -> list[int]:
    """For each strategy the one that stays in its place: itself, or an alike one that is fixed or comes before it."""
    stands = {k: k for k in sorted(fixed)}
    for k in range(len(alike)):
        stands.setdefault(k, next((other for other in set(stands.values()) if alike[k, other]), k))
    return [stands[k] for k in range(len(alike))]
