"""What a run of DQSS leaves behind: a quantised network, the strategy of each tensor, and how the search went."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx, nn

from ..core import store
from ..core.batch import Example
from ..core.onnx.outcome import IntegerOutcome
from ..core.outcome import base_network, load_weights
from ..core.program import Program
from ..core.quantisation.bn_folding import fold_batch_norms
from ..core.quantisation.placement import insert_quantisers
from ..core.quantisation.qparams import FixedQuantiser, QParams
from . import equations as eq
from .placement import place_quantisers


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
    example: Example
    base: dict | None

    @property
    def gap(self) -> float:
        """The soft-to-hard gap in dB of the calibration loss, Card (11)."""
        return eq.gap(self.losses["soft"], self.losses["kept"])

    def found(self) -> dict[str, Any]:
        state = self.model.state_dict()
        grids = {name: _to_dict(module.qparams()) for name, module in _quantisers(self.model)}
        return {
            "base": self.base,
            "choices": self.choices,
            "history": self.history,
            "uniform": self.uniform,
            "losses": self.losses,
            "example": self.example,
            "grids": grids,
            "names": list(state),
            "values": [value.cpu() for value in state.values()],
        }

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: nn.Module | None = None) -> "DQSSOutcome":
        """Place the quantisers in the base again; `base` is the user's own network, with any weights."""
        tree = saved["found"]
        if isinstance(tree["example"], list):  # as several inputs by position are stored
            tree = {**tree, "example": tuple(tree["example"])}
        model = rebuilt(tree, recipe, base)
        rest = {name: tree[name] for name in ("choices", "history", "uniform", "losses", "example", "base")}
        return cls(recipe=recipe, **cls.records(saved), model=model, **rest)

    def write_recipe(self, path: str | Path) -> Path:
        """Write `choices` as JSON; returns the path."""
        store.write(Path(path), (json.dumps(self.choices, indent=1) + "\n").encode())
        return Path(path)


def _quantisers(model: fx.GraphModule) -> list[tuple[str, FixedQuantiser]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, FixedQuantiser)]


def _to_dict(grid: QParams) -> dict[str, Any]:
    """A grid under the names of format 1."""
    return {"step": grid.scale, "low": grid.qmin, "high": grid.qmax, "zero": grid.zero_point}


def _from_dict(saved: dict[str, Any]) -> QParams:
    """The grid that `_to_dict` wrote; ValueError where it holds what no grid does."""
    step, *codes = (saved[name] for name in ("step", "low", "high", "zero"))
    low, high, zero = codes
    are_codes = all(type(code) is int and abs(code) < 2**16 for code in codes)
    if not (are_codes and low <= 0 <= high and zero >= 0 and type(step) is float and 0 <= step < math.inf):
        raise ValueError("a grid of this outcome is damaged: it has a step and the codes low <= 0 <= high")
    return QParams(step, low, high, zero)


def rebuilt(saved: dict[str, Any], recipe: Any, base: nn.Module | None) -> Any:
    """The quantised network of a saved outcome, in eval mode."""
    plain = base_network(base, saved["base"])
    if isinstance(plain, Program):
        return plain
    model = fold_batch_norms(plain, saved["example"])
    placement = place_quantisers(model, recipe.placement)
    state = dict(zip(saved["names"], saved["values"], strict=True))
    grids = saved["grids"]
    try:
        insert_quantisers(
            model, placement, lambda point: FixedQuantiser(_from_dict(grids[f"quantisers.{point.group}"]))
        )
        for name in placement.layers:
            model.get_submodule(name).register_buffer("step", state[f"{name}.step"])
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"base={type(plain).__name__} is not the network that was quantised: {reason}") from error
    load_weights(model, state, plain, "quantised")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()
