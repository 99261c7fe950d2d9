"""Random weights under which every layer of a network matters, and how far two outputs lie apart."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves


class Different(Exception):
    """A network that answers otherwise than it must, without a word."""


def lively(model: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    """The model in eval mode with random weights under which every layer matters; batch norms know x (N, ...).

    As they are built, some networks hide their errors: scales of 0 or 1e-6 silence whole blocks, and batch norms that
    have seen nothing let signals die out or explode. Deep ones may then blow up every rounding (EfficientNetV2-L turns
    1e-12 into a half): their weights are drawn smaller.
    """
    for gain in (1.5, 1.0, 0.7):
        _draw(model, gain, torch.Generator().manual_seed(seed))
        _know(model.eval(), x)
        with torch.no_grad():
            if apart(model(x * (1 + 1e-6)), model(x)) < 0.1:
                break
    return model


@torch.no_grad()
def calm(model: nn.Module) -> nn.Module:
    """The model, its batch norms less exact: fifty that undo all fading also enlarge a rounding a thousandfold."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var += 0.3 * (norm.running_mean**2 + norm.running_var.mean())
            norm.running_mean *= 0.85
    return model


def pictures(count: int, channels: int, *size: int) -> Tensor:
    """Pictures (N, C, H, W) that differ in the large as well.

    Of noise alone, deep batch norms would enlarge next to nothing, and roundings.
    """
    generator = torch.Generator().manual_seed(0)
    coarse, fine = (torch.randn(count, channels, *sides, generator=generator) for sides in ((3, 3), size))
    return F.interpolate(coarse, size, mode="bilinear") + 0.3 * fine


@torch.no_grad()
def _draw(model: nn.Module, gain: float, generator: torch.Generator) -> None:
    """Weights of the variance gain / fan in, biases around 0, scales around 1."""
    for name, p in model.named_parameters():
        if p.numel() == 0 or not p.is_floating_point():
            continue
        if sum(size > 1 for size in p.shape) > 1:
            p.normal_(0, (gain / p[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("bias"):
            p.normal_(0, 0.2, generator=generator)
        else:
            p.uniform_(0.5, 1.5, generator=generator)


@torch.no_grad()
def _know(model: nn.Module, x: Tensor) -> None:
    """Give the batch norms the statistics of these pictures."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        model(x)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.eval().momentum = momentum


def apart(a: object, b: object) -> float:
    """The largest difference of two outputs (tensors in any nesting), relative to the largest value of the second."""
    ones, others = ([t for t in tree_leaves(tree) if isinstance(t, Tensor)] for tree in (a, b))
    if [t.shape for t in ones] != [t.shape for t in others]:
        raise Different(f"outputs of shape {[tuple(t.shape) for t in ones]}, not {[tuple(t.shape) for t in others]}")
    size = max((float(t.abs().max()) for t in others if t.numel()), default=0.0)
    gap = max((float((s - t).abs().max()) for s, t in zip(ones, others, strict=True) if s.numel()), default=0.0)
    return gap / size if size else float("nan")
