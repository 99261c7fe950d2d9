"""Which pixels an answer hangs on: Captum's methods on a copy of the model that nothing in it can disturb."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..core.graph.tracing import trace
from ..core.training import seeded
from ..ui import Control, Explorer, Frame, raster
from .activations import as_taken, hooked, maps, named, pictures, run
from .atlas import span
from .concepts import with_fresh_weights

METHODS = ("integrated_gradients", "saliency", "gradient_shap", "occlusion", "gradcam")
_AT_ONCE = 64  # pictures in one pass of a method that makes many


def attribution(
    model: nn.Module, x: torch.Tensor, target: int | Sequence[int] | torch.Tensor | None = None,
    method: str = "integrated_gradients", *, layer: str | None = None, steps: int = 50, window: int | None = None,
    seed: int = 0,
) -> torch.Tensor:  # fmt: skip
    """How much each pixel speaks for an answer, by Captum: x (N, C, H, W) -> the same shape, (N, 1, H, W) for gradcam.

    `target` is a class, one a picture, or None for the class that the model names. Methods: "integrated_gradients"
    (Sundararajan et al. 2017; from zero, `steps` steps), "saliency" (Simonyan et al. 2014; absolute gradient),
    "gradient_shap" (Lundberg and Lee 2017; from zero, five noisy samples), "occlusion" (Zeiler and Fergus 2014; a
    square of `window` pixels set to zero, an eighth of the side if left out) and "gradcam" (Selvaraju et al. 2017; of
    `layer`, else the last with feature maps, negative values cut, bilinear). Works on a copy in eval mode whose
    rectifiers are out of place. ValueError in one line for what does not fit.
    """
    captum = _captum()
    x = as_taken(model, pictures(x))
    if method not in METHODS:
        raise ValueError(f"method={method!r}: give one of {', '.join(map(repr, METHODS))}")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps={steps!r}: give an integer, 1 or more")
    wanted = _targets(model, x, target)
    copy = _out_of_place(model, x)

    def answer(x: torch.Tensor) -> torch.Tensor:
        return copy(x.clone())  # a first layer in place would write into the method's own tensor

    black = torch.zeros_like(x)
    with seeded(seed):
        if method == "integrated_gradients":
            found = captum.IntegratedGradients(answer).attribute(
                x, black, target=wanted, n_steps=steps, internal_batch_size=max(_AT_ONCE, len(x))
            )
        elif method == "saliency":
            found = captum.Saliency(answer).attribute(x.clone().requires_grad_(), target=wanted)
        elif method == "gradient_shap":
            found = captum.GradientShap(answer).attribute(
                x, torch.cat((black, black)), n_samples=5, stdevs=0.05 * x.std().item(), target=wanted
            )
        elif method == "occlusion":
            side = window or max(1, min(x.shape[2:]) // 8)
            if not isinstance(side, int) or not 1 <= side <= min(x.shape[2:]):
                raise ValueError(f"window={window!r}: give an integer number of pixels, 1 to {min(x.shape[2:])}")
            sizes = (x.shape[1], side, side)
            with torch.no_grad():
                found = captum.Occlusion(answer).attribute(
                    x, sizes, strides=(x.shape[1], max(1, side // 2), max(1, side // 2)), target=wanted
                )
        else:
            found = _gradcam(captum, copy, x, wanted, layer)
    return found.detach()


def explain(
    model: nn.Module, x: torch.Tensor, target: int | Sequence[int] | torch.Tensor | None = None,
    methods: Sequence[str] = METHODS, *, classes: Sequence[str] = (), seed: int = 0,
) -> Explorer:  # fmt: skip
    """An explorer of attributions: the picture, what a method marks in it, and the same with fresh weights as control.

    A method that marks the same in both shows the picture, not the network (Adebayo et al. 2018). Channels are summed.
    `classes` names the classes. Everything is computed when it is first looked at.
    """
    if strange := [method for method in methods if method not in METHODS]:
        raise ValueError(f"methods holds {strange[0]!r}: give some of {', '.join(map(repr, METHODS))}")
    x = pictures(x)
    wanted = _targets(model, as_taken(model, x), target)
    fresh = with_fresh_weights(model, seed)
    seen = x.float().cpu().numpy()
    low, high = span(seen)

    def draw(method: str, picture: int = 0) -> Frame:
        one, label = x[picture : picture + 1], wanted[picture : picture + 1]
        marks = [attribution(net, one, label, method).sum(1).float().cpu().numpy() for net in (model, fresh)]
        parts = [raster.photo(seen[picture], f"picture {picture}", low, high, longest=200)]
        for title, mark in zip(("this network", "control: fresh weights"), marks, strict=True):
            parts.append(raster.grid(mark, title, "attribution", longest=200, scale=raster.Scale.of(mark)))
        name = classes[int(label)] if int(label) < len(classes) else f"class {int(label)}"
        a, b = (mark.ravel() for mark in marks)
        return Frame("".join(parts), {"for": name, "correlation with control": _correlation(a, b)})

    controls = {"method": Control(tuple(methods))}
    if len(x) > 1:
        controls["picture"] = Control(range(len(x)))
    return Explorer(draw, controls, title=f"{type(model).__name__}: what the answer hangs on")


def _correlation(a, b) -> str:
    import numpy

    flat = a.std() == 0 or b.std() == 0
    return "none, one is constant" if flat else f"{numpy.corrcoef(a, b)[0, 1]:.2f}"


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError("attribution needs Captum: pip install 'lab[lens]'") from error
    return captum.attr


def _out_of_place(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """A copy in eval mode in which no module works in place: hooks would see what has been overwritten.

    Where others read what such a module overwrites, the copy is a traced one, which answers alike.
    """
    copy = deepcopy(model).eval()
    for module in copy.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010  # to mypy a module's attribute is a tensor
    if not torch.equal(run(copy, x[:1].clone()), run(model, x[:1].clone())):
        copy = trace(model, x[:1])
    return copy.requires_grad_(False)  # only the pixels' gradient is asked for


def _gradcam(captum, copy: nn.Module, x: torch.Tensor, wanted: torch.Tensor, layer: str | None) -> torch.Tensor:
    name = named(copy, layer)[0] if layer is not None else list(maps(copy, x[:1]))[-1]
    found = maps(copy, x[:1], [name.split("#")[0]])
    if f"{name}#2" in found or "#" in name:
        raise ValueError(f"{name!r} runs more than once, so gradcam cannot tell its maps apart: name another layer")
    if _is_overwritten(copy, x[:1], name):
        copy = trace(copy, x[:1])
    module = dict(copy.named_modules())[name]
    small = captum.LayerGradCam(lambda x: copy(x.clone()), module).attribute(
        x.clone().requires_grad_(), target=wanted, relu_attributions=True
    )
    return F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)


def _is_overwritten(model: nn.Module, x: torch.Tensor, layer: str) -> bool:
    """Whether a later operation in place changes what a layer has given."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    with hooked(model, {layer: lambda answer: seen.append((answer, answer.clone()))}):
        run(model, x.clone())
    return not all(torch.equal(now, then) for now, then in seen)


def _targets(model: nn.Module, x: torch.Tensor, target: Any) -> torch.Tensor:
    """One class a picture; ValueError for classes that the model does not have."""
    answers = run(model, x)
    if not isinstance(answers, torch.Tensor) or answers.ndim != 2:
        shape = tuple(answers.shape) if isinstance(answers, torch.Tensor) else type(answers).__name__
        raise ValueError(f"the model gives {shape}: attribution needs one number a class, (N, classes)")
    wanted = answers.argmax(1) if target is None else torch.as_tensor(target, device=x.device).long().reshape(-1)
    wanted = wanted.expand(len(x)) if len(wanted) == 1 else wanted
    if len(wanted) != len(x) or wanted.min() < 0 or wanted.max() >= answers.shape[1]:
        raise ValueError(
            f"target={target!r}: give a class from 0 to {answers.shape[1] - 1}, or one for each of {len(x)}"
        )
    return wanted
