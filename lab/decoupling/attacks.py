"""Pictures altered to be misread: FGSM, PGD, the targeted basic iterative method, and one that also hides its path.

Captum (Kokhlikyan et al., 2020) takes the steps; what is attacked, and with which loss, stands here. Sizes of a step
and the bounds of pixels are numbers, or tensors (C, 1, 1) where each channel is normalised in its own way.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.distribution import install
from ..core.models import learning
from ..core.task import evaluating
from . import equations as eq
from .layers import gates
from .paths import Paths, class_paths, typical_paths
from .placement import Decoupled

Size = float | Tensor


@dataclass(frozen=True)
class Attack:
    """Altered pictures (N, C, H, W), what they were to be called (N,), and which of them are misread (N,) booleans."""

    x: Tensor
    target: Tensor
    misread: Tensor


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, eps: Size, low: Size, high: Size) -> Attack:
    """One step of size eps up the loss (Goodfellow et al., 2015); pixels stay in [low, high]."""
    with _attackable(model):
        altered = _fgsm(model, _cross_entropies, low, high).perturb(x, eps, y)
    return _attack(model, altered, y, y)


def pgd(model: nn.Module, x: Tensor, y: Tensor, *, eps: Size, step: Size, steps: int, low: Size, high: Size) -> Attack:
    """Steps up the loss from a random start within eps, which no pixel leaves (Madry et al., 2018).

    The start is drawn from torch's generator.
    """
    with _attackable(model):
        attack = _pgd(model, _cross_entropies, low, high)
        altered = attack.perturb(x, eps, step, steps, y, random_start=True)
    return _attack(model, altered, y, y)


def bim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target: Tensor,
    *,
    eps: Size,
    step: Size,
    steps: int,
    low: Size,
    high: Size,
) -> Attack:
    """Steps towards being called `target` (N,), within eps (Kurakin et al., 2017)."""
    with _attackable(model):
        attack = _pgd(model, _cross_entropies, low, high)
        altered = attack.perturb(x, eps, step, steps, target, targeted=True)
    return _attack(model, altered, y, target)


def adaptive(
    decoupled: Decoupled,
    x: Tensor,
    y: Tensor,
    target: Tensor,
    reference: Paths,
    *,
    weight: float,
    eps: Size,
    step: Size,
    steps: int,
    low: Size,
    high: Size,
) -> Attack:
    """As `bim`, by someone who knows the detector: the altered picture is also to take the path of `target`.

    The class paths are those of `reference`. To the loss comes `weight` times the mean squared distance between v1,
    through which gradients pass, and the path of the target. ValueError for a target that has no class path.
    """
    model, filters, classes = decoupled.model, sum(reference.sizes), torch.from_numpy(reference.classes())
    typical_paths(reference, target.cpu().numpy())  # an error in one line for a class without a path
    typical = torch.from_numpy(class_paths(reference)).to(x)  # (classes, filters)

    def scores_and_bits(images: Tensor) -> Tensor:
        """Class scores and soft encodings side by side: (N, classes + filters)."""
        logits = []
        hooks = [
            gate.controller.register_forward_hook(lambda _, __, y: logits.append(y)) for gate in gates(model).values()
        ]
        try:
            scores = model(images)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([scores, eq.saturating_sigmoid(torch.cat(logits, 1))], 1)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        scores, soft = output[:, :-filters], output[:, -filters:]
        wanted = typical[torch.searchsorted(classes.to(target), target)]
        return _cross_entropies(scores, target) + weight * (soft - wanted).square().mean(1)

    with _attackable(model):
        attack = _pgd(scores_and_bits, loss, low, high)
        altered = attack.perturb(x, eps, step, steps, target, targeted=True)
    return _attack(model, altered, y, target)


def _cross_entropies(scores: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy of each picture: (N, classes), (N,) -> (N,)."""
    return F.cross_entropy(scores, target, reduction="none")


@contextmanager
def _attackable(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, its weights without gradients, both given back."""
    with learning(model.parameters(), False), evaluating(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input Tensor", UserWarning)  # Captum says that it sets requires_grad
        yield


def _attack(model: nn.Module, altered: Tensor, y: Tensor, target: Tensor) -> Attack:
    """The altered pictures, and which are misread: called what they were to be called, or, without a target, not y."""
    altered = altered.detach()
    with torch.no_grad(), evaluating(model):
        pred = model(altered).argmax(1)
    return Attack(altered, target, (pred != y) & ((pred == target) | (target is y)))


def _fgsm(net: Any, loss: Any, low: Size, high: Size) -> Any:
    """Captum's fast method, without its habit of leaving pixels alone whose gradient is under 1e-6: a confident
    prediction has hardly any larger ones, and would pass for one that cannot be attacked."""
    attack = _captum().FGSM(net, loss, low, high)
    attack.zero_thresh = 0.0
    return attack


def _pgd(net: Any, loss: Any, low: Size, high: Size) -> Any:
    """Captum's projected steps, each of them as in `_fgsm`."""
    attack = _captum().PGD(net, loss, low, high)
    attack.fgsm.zero_thresh = 0.0
    return attack


def _captum() -> Any:
    try:
        from captum import robust
    except ImportError as error:
        raise ImportError(f"attacks need Captum: {install('lens')}") from error
    return robust
