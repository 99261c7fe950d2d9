"""What a run of DQSS leaves behind: a quantised network, the strategy of each tensor, and how they were found."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..core import nets, store
from ..core.onnx.outcome import IntegerOutcome
from ..core.quantisation.bn_folding import prepared
from ..core.quantisation.grids import FixedQuantiser, Grid, set_codes
from ..core.quantisation.placement import Placement, attach
from . import equations as eq
from .space import Space, place


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class DQSSOutcome(IntegerOutcome):
    """A network whose every tensor is rounded by the strategy that was found for it.

    choices: {layer: {weights, activations, weight_scale, scale, zero_point, bits}}. history: steps (S,), shares
    (S, R, N) of each strategy, errors (R, N) of its own tensor in dB, kept (R,), with the names of roles and
    strategies. uniform: the calibration loss of each strategy used everywhere, and of the best pair. losses: of the
    soft mixture, of what was kept, of the best uniform choice.
    """

    model: fx.GraphModule
    choices: dict[str, dict[str, Any]]
    history: dict[str, Any]
    uniform: dict[str, float]
    losses: dict[str, float]
    example: Tensor
    base: dict | None

    @property
    def gap(self) -> float:
        """The soft-to-hard gap in dB of the calibration loss, Eq. (11)."""
        return eq.gap(self.losses["soft"], self.losses["kept"])

    def found(self) -> dict[str, Any]:
        state = self.model.state_dict()
        grids = {name: vars(module.grid()) for name, module in _quantisers(self.model)}
        return {
            "base": self.base, "choices": self.choices, "history": self.history, "uniform": self.uniform,
            "losses": self.losses, "example": self.example, "grids": grids, "names": list(state),
            "values": [value.cpu() for value in state.values()],
        }  # fmt: skip

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: nn.Module | None = None) -> "DQSSOutcome":
        """Place the quantisers in the base again; `base` is the user's own network, with any weights."""
        found = saved["found"]
        model = rebuilt(found, recipe, base)
        kept = {name: found[name] for name in ("choices", "history", "uniform", "losses", "example", "base")}
        return cls(recipe=recipe, **cls.records(saved), model=model, **kept)

    def write_recipe(self, path: str | Path) -> Path:
        """Write `choices` as JSON; returns the path."""
        store.write(Path(path), (json.dumps(self.choices, indent=1) + "\n").encode())
        return Path(path)


class History:
    """Each role's shares over the search, and how far each strategy is from its own tensor."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.steps: list[int] = []
        self.shares: list[Tensor] = []
        self.names = list(dict.fromkeys(name for role in space.roles for name in role.mixture.names))
        self.errors = self._table(
            [10 * space.errors(r.mixture).diagonal().clamp(min=1e-12).log10() for r in space.roles]
        )
        self.kept: list[str] = []

    def _table(self, rows: list[Tensor]) -> Tensor:
        """Rows by strategy, nan where a role does not have one: (R, N)."""
        table = torch.full((len(rows), len(self.names)), torch.nan)
        for at, (role, row) in enumerate(zip(self.space.roles, rows, strict=True)):
            table[at, [self.names.index(name) for name in role.mixture.names]] = row.detach().cpu().float()
        return table

    def note(self, done: int, kept: list[int] | None = None) -> None:
        """Take a snapshot of the shares after `done` updates; `kept` are the strategies of the end."""
        if done not in self.steps:
            self.steps.append(done)
            self.shares.append(self._table([eq.probabilities(r.mixture.logits, r.mixture.T) for r in self.space.roles]))
        if kept is not None:
            self.kept = [role.mixture.names[k] for role, k in zip(self.space.roles, kept, strict=True)]

    def tensors(self) -> dict[str, Any]:
        roles = [f"{role.layer}, {role.role}" for role in self.space.roles]
        return {
            "steps": torch.tensor(self.steps), "shares": torch.stack(self.shares), "errors": self.errors,
            "roles": roles, "names": self.names, "kept": self.kept,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.steps), "shares": list(self.shares)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.shares = list(state["steps"]), list(state["shares"])


@torch.no_grad()
def deployed(space: Space, chosen: list[int], plain: fx.GraphModule) -> fx.GraphModule:
    """A plain network on the grids of these strategies: fixed quantisers, and weights that are codes times a step."""
    space.set(chosen)
    grids = {group: _grid(mixture.strategies[mixture.chosen or 0]) for group, mixture in space.activations.items()}
    attach(plain, space.where, lambda spot: FixedQuantiser(grids[spot.group]), lambda layer: layer)
    trained = {name: value for name, value in space.graph.state_dict().items() if ".parametrizations." not in name}
    plain.load_state_dict({k: v for k, v in trained.items() if not k.startswith("quantisers.")}, strict=False)
    for name, mixture in space.weights.items():
        layer, strategy = space.graph.get_submodule(name), mixture.strategies[mixture.chosen or 0]
        W = layer.parametrizations.weight.original  # type: ignore[union-attr]
        step = strategy.step_of(W)  # type: ignore[operator]
        set_codes(plain.get_submodule(name), (strategy(W) / step).round(), step)
    return plain.to(space.roles[0].mixture.logits.device).eval()


def _grid(strategy: nn.Module) -> Grid:
    return strategy.grid()  # type: ignore[operator]


def _quantisers(model: fx.GraphModule) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, FixedQuantiser)]


def rebuilt(found: dict[str, Any], recipe: Any, base: nn.Module | None) -> fx.GraphModule:
    """The quantised network of a saved outcome, in eval mode."""
    if base is None and found["base"] is None:
        raise ValueError("this was made from a network of your own: give base=net")
    with torch.random.fork_rng(devices=[]):
        plain = base if base is not None else nets.build(found["base"])
    model = prepared(plain, found["example"])
    where: Placement = place(model, recipe)
    state = dict(zip(found["names"], found["values"], strict=True))
    try:
        attach(model, where, lambda s: FixedQuantiser(Grid(**found["grids"][f"quantisers.{s.group}"])), lambda one: one)
        for name in where.convs:
            model.get_submodule(name).register_buffer("step", state[f"{name}.step"])
        model.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"base={type(plain).__name__} is not the network that was quantised: {reason}") from error
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()
