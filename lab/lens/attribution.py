"""Which pixels an answer hangs on: Captum's methods on a copy of the model that nothing in it can disturb."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..core.distribution import install
from ..core.graph.tracing import trace
from ..core.training import seeded
from ..ui import Control, Explorer, Frame, raster
from .activations import as_images, as_taken, hooked, maps, named, run
from .atlas import span
from .concepts import with_fresh_weights
from .tokens import maps_given

METHODS = ("integrated_gradients", "saliency", "gradient_shap", "occlusion", "gradcam")
Target = int | Sequence[int] | torch.Tensor | None  # a class, one a picture, or None for the predicted one
_AT_ONCE = 64  # pictures in one pass of a method that makes many


def attribution(
    model: nn.Module,
    x: torch.Tensor,
    target: Target = None,
    method: str = "integrated_gradients",
    *,
    layer: str | None = None,
    steps: int = 50,
    window: int | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """How much each pixel speaks for an answer, by Captum: x (N, C, H, W) -> the same shape, (N, 1, H, W) for gradcam.

    `target` is a class, one a picture, or None for the class that the model names. Methods: "integrated_gradients"
    (Sundararajan et al. 2017; from zero, `steps` steps), "saliency" (Simonyan et al. 2014; absolute gradient),
    "gradient_shap" (Lundberg and Lee 2017; from zero, five noisy samples), "occlusion" (Zeiler and Fergus 2014; a
    square of `window` pixels set to zero, an eighth of the side if left out) and "gradcam" (Selvaraju et al. 2017; of
    `layer`, else the last with feature maps, negative values cut, bilinear). Works on a copy in eval mode whose
    rectifiers are out of place. ValueError in one line for what does not fit.
    """
    captum = _captum()
    x = as_taken(model, as_images(x))
    if method not in METHODS:
        raise ValueError(f"method={method!r}: give one of {', '.join(map(repr, METHODS))}")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps={steps!r}: give an integer, 1 or more")
    classes = _classes(model, x, target)
    copy = _out_of_place(model, x)

    def net(x: torch.Tensor) -> torch.Tensor:
        return copy(x.clone())  # a first layer in place would write into the method's tensor

    black = torch.zeros_like(x)
    with seeded(seed):
        if method == "integrated_gradients":
            marks = captum.IntegratedGradients(net).attribute(
                x, black, target=classes, n_steps=steps, internal_batch_size=max(_AT_ONCE, len(x))
            )
        elif method == "saliency":
            marks = captum.Saliency(net).attribute(x.clone().requires_grad_(), target=classes)
        elif method == "gradient_shap":
            marks = captum.GradientShap(net).attribute(
                x, torch.cat((black, black)), n_samples=5, stdevs=0.05 * x.std().item(), target=classes
            )
        elif method == "occlusion":
            marks = _occlusion(captum, net, x, classes, window)
        else:
            marks = _gradcam(captum, copy, x, classes, layer)
    return marks.detach()


def explain(
    model: nn.Module,
    x: torch.Tensor,
    target: Target = None,
    methods: Sequence[str] = METHODS,
    *,
    classes: Sequence[str] = (),
    seed: int = 0,
) -> Explorer:
    """An explorer of attributions: the picture, what a method marks in it, and what it marks with fresh weights.

    A method that marks the same in both shows the picture, not the network (Adebayo et al. 2018). Channels are summed.
    `classes` names the classes. Everything is computed when it is first looked at.
    """
    if strange := [method for method in methods if method not in METHODS]:
        raise ValueError(f"methods holds {strange[0]!r}: give some of {', '.join(map(repr, METHODS))}")
    x = as_images(x)
    labels = _classes(model, as_taken(model, x), target)
    fresh = with_fresh_weights(model, seed)
    images = x.float().cpu().numpy()
    low, high = span(images)

    def draw(method: str, image: int = 0) -> Frame:
        x_one, label = x[image : image + 1], labels[image : image + 1]
        marks = [attribution(net, x_one, label, method).sum(1).float().cpu().numpy() for net in (model, fresh)]
        parts = [raster.photo(images[image], f"picture {image}", low, high, longest=200)]
        for title, mark in zip(("this network", "control: fresh weights"), marks, strict=True):
            parts.append(raster.grid(mark, title, "attribution", longest=200, scale=raster.Scale.of(mark)))
        name = classes[int(label)] if int(label) < len(classes) else f"class {int(label)}"
        a, b = (mark.ravel() for mark in marks)
        return Frame("".join(parts), {"for": name, "correlation with control": correlation(a, b)})

    controls = {"method": Control(tuple(methods))}
    if len(x) > 1:
        controls["image"] = Control(range(len(x)), label="picture")
    return Explorer(draw, controls, title=f"{type(model).__name__}: what the answer hangs on")


def correlation(a: np.ndarray, b: np.ndarray) -> str:
    """The correlation of two maps in words."""
    is_flat = a.std() == 0 or b.std() == 0
    return "none, one is constant" if is_flat else f"{np.corrcoef(a, b)[0, 1]:.2f}"


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError(f"attribution needs Captum: {install('lens')}") from error
    return captum.attr


def _out_of_place(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """A copy in eval mode in which no module works in place: hooks would see what has been overwritten.

    Where others read what such a module overwrites, the copy is a traced one with the same outputs.
    """
    copy = deepcopy(model).eval()
    for module in copy.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010  # to mypy a module's attribute is a tensor
    if not torch.equal(run(copy, x[:1].clone()), run(model, x[:1].clone())):
        copy = trace(model, x[:1])
    return copy.requires_grad_(False)  # only the pixels' gradient is asked for


def _occlusion(
    captum: Any, net: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, classes: torch.Tensor, window: int | None
) -> torch.Tensor:
    """A square of `window` pixels, all channels of it, goes over the pictures in steps of half its side."""
    side = window or max(1, min(x.shape[2:]) // 8)
    if not isinstance(side, int) or not 1 <= side <= min(x.shape[2:]):
        raise ValueError(f"window={window!r}: give an integer number of pixels, 1 to {min(x.shape[2:])}")
    strides = (x.shape[1], max(1, side // 2), max(1, side // 2))
    with torch.no_grad():
        return captum.Occlusion(net).attribute(x, (x.shape[1], side, side), strides=strides, target=classes)


def _gradcam(captum: Any, copy: nn.Module, x: torch.Tensor, classes: torch.Tensor, layer: str | None) -> torch.Tensor:
    """The last layer whose maps the answer hangs on: behind the last attention a class token reads no patch."""
    names = [named(copy, layer)[0]] if layer is not None else list(maps(copy, x[:1]))[::-1]
    for name in names:
        small = _gradcam_of(captum, copy, x, classes, name)
        if small.any():
            break
    return F.interpolate(F.relu(small), size=x.shape[2:], mode="bilinear", align_corners=False)


def _gradcam_of(captum: Any, copy: nn.Module, x: torch.Tensor, classes: torch.Tensor, name: str) -> torch.Tensor:
    """Grad-CAM of one layer before negative values are cut: (N, 1, h, w)."""
    by_call = maps(copy, x[:1], [name.split("#")[0]])
    if f"{name}#2" in by_call or "#" in name:
        raise ValueError(f"{name!r} runs more than once, so gradcam cannot tell its maps apart: name another layer")
    if _is_overwritten(copy, x[:1], name):
        copy = trace(copy, x[:1])
    with maps_given(copy, name) as module:
        return captum.LayerGradCam(lambda x: copy(x.clone()), module).attribute(
            x.clone().requires_grad_(), target=classes
        )


def _is_overwritten(model: nn.Module, x: torch.Tensor, layer: str) -> bool:
    """Whether a later operation in place changes what a layer has given."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    with hooked(model, {layer: lambda output: seen.append((output, output.clone()))}):
        run(model, x.clone())
    return not all(torch.equal(now, then) for now, then in seen)


def _classes(model: nn.Module, x: torch.Tensor, target: Target) -> torch.Tensor:
    """One class a picture, (N,); ValueError for classes that the model does not have."""
    output = run(model, x)
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"the model gives {shape}: attribution needs one number a class, (N, classes)")
    classes = output.argmax(1) if target is None else torch.as_tensor(target, device=x.device).long().reshape(-1)
    classes = classes.expand(len(x)) if len(classes) == 1 else classes
    if len(classes) != len(x) or classes.min() < 0 or classes.max() >= output.shape[1]:
        raise ValueError(
            f"target={target!r}: give a class from 0 to {output.shape[1] - 1}, or one for each of {len(x)}"
        )
    return classes
