"""What a run of PAMS leaves behind: a quantised network, where it is quantised, and its alphas over time."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from ..core import store
from ..core.onnx.outcome import IntegerOutcome
from ..core.outcome import base_network
from ..core.program import Program, Unbuilt
from ..core.quantisation.bn_folding import fold_batch_norms
from ..core.quantisation.placement import Placement
from . import packed


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class PAMSOutcome(IntegerOutcome):
    """A quantised network that gives in float what integers would, and how it got there.

    history: steps (S,), alphas (S, Q), histograms (S, Q, 48) over [-reach, reach], Q alphas in the placement's order.
    example: one small picture, (1, C, H, W).
    """

    model: fx.GraphModule
    placement: Placement
    history: dict[str, Tensor]
    example: Tensor
    base: dict | None

    def found(self) -> dict[str, Any]:
        return {"base": self.base, "history": self.history, "example": self.example, "packed": packed.state(self.model)}

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: nn.Module | None = None) -> "PAMSOutcome":
        """Quantise the base again and load the packed weights; `base` is the user's own network, with any weights."""
        tree = saved["found"]
        model, placement = rebuilt(tree["base"], base, recipe, tree["example"], tree["packed"])
        rest = {name: tree[name] for name in ("history", "example", "base")}
        return cls(recipe=recipe, **cls.records(saved), model=model, placement=placement, **rest)

    def alphas(self) -> dict[str, float]:
        """The largest value of each quantised tensor, by the node that gives it."""
        return dict(zip(self.placement.groups(), self.history["alphas"][-1].tolist(), strict=True))

    def pack(self, path: str | Path) -> Path:
        """Write the network as one small file, its weights at `weight_bits` bits each; `lab.pams.unpack` reads it."""
        about = {"fields": asdict(self.recipe), "base": self.base, "example": list(self.example.shape)}
        store.write(Path(path), packed.to_bytes(self.model, about))
        return Path(path)


def rebuilt(
    config: dict | None, base: nn.Module | None, recipe: Any, example: Tensor, state: dict[str, Tensor]
) -> tuple[Any, Any]:
    """The quantised network of a recipe with packed weights, in eval mode, and its placement."""
    plain = base_network(base, config)
    if isinstance(plain, Program):
        return plain, Unbuilt()
    model = fold_batch_norms(plain, example)
    placement = recipe.place(model)
    recipe.quantise(model, placement)
    try:
        packed.set_state(model, state)
    except ValueError as error:
        raise ValueError(f"base={type(plain).__name__} is not the network that was quantised: {error}") from error
    return model.eval(), placement
