"""Score functions over held-out data: accuracy, mean IoU, PSNR and SSIM."""

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field

import torch
from torch import nn

from .batch import IGNORED, call, device_for, inputs, labels, logits_of, moved, size
from .task import evaluating

LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601, 8-bit: Y = 16 + 65.481 R + 128.553 G + 24.966 B for R, G, B in [0, 1]


@dataclass(frozen=True, eq=False)
class Score:
    """A function of a model that gives one number, and the held-out batches that it is taken on."""

    batches: Iterable = field(repr=False)
    measure: Callable[[nn.Module], float] = field(repr=False)

    def __call__(self, model: nn.Module) -> float:
        return self.measure(model)


def accuracy(batches: Iterable) -> Score:
    """A score: the percentage of labels of `batches` that the model's largest output names.

    A batch is (x, y), or a dictionary of x and 'labels': the model takes x to (N, classes), y holds (N,) class numbers;
    for dense labels (N, classes, H, W) and (N, H, W). Labels of -100 do not count. Raises ValueError when there is no
    data or when the shapes do not go together.
    """
    _check(batches, "accuracy")

    def score(model: nn.Module) -> float:
        right = total = 0
        with torch.no_grad(), evaluating(model):
            for output, y in _outputs(model, batches, "accuracy"):
                counts = y != IGNORED
                right, total = (
                    right + int((_named(output, y, "accuracy") == y)[counts].sum()),
                    total + int(counts.sum()),
                )
        if not total:
            raise ValueError("accuracy: all labels of the held-out data are -100, which counts nowhere: give others")
        return 100 * right / total

    return Score(batches, score)


def mean_iou(batches: Iterable) -> Score:
    """A score: the intersection over union in percent, the mean over classes, as segmentation is judged (Pascal VOC).

    A batch is (x, y), y (N, H, W) class numbers; the model takes x to (N, classes, H, W). The pixels of all batches
    are counted together. Labels of -100 do not count, nor does a class that is nowhere. ValueError as for `accuracy`.
    """
    _check(batches, "mean_iou")

    def score(model: nn.Module) -> float:
        pairs = torch.zeros(1, 1)  # (classes, classes): pixels by label and by the class that was named
        with torch.no_grad(), evaluating(model):
            for output, y in _outputs(model, batches, "mean_iou"):
                named, classes, counts = _named(output, y, "mean_iou"), output.shape[1], y != IGNORED
                table = (y[counts] * classes + named[counts]).bincount(minlength=classes**2)
                pairs = pairs.to(table.device) + table.view(classes, classes)
        both = pairs.diagonal()
        either = pairs.sum(0) + pairs.sum(1) - both
        if not either.any():
            raise ValueError("mean_iou: all labels of the held-out data are -100, which counts nowhere: give others")
        return 100 * float((both / either)[either > 0].mean())

    return Score(batches, score)


def _named(output: torch.Tensor, y: torch.Tensor, name: str) -> torch.Tensor:
    """The class of the largest output, in the labels' shape: (N, classes, ...) and (N, ...) -> (N, ...)."""
    named = output.argmax(1)
    if named.shape != y.shape:
        raise ValueError(
            f"{name}: the model names classes of shape {tuple(named.shape)}, the labels have {tuple(y.shape)}: "
            "give one class number per sample"
        )
    return named


def psnr(batches: Iterable, border: int = 0) -> Score:
    """A score: the peak signal-to-noise ratio in dB, the mean over all pictures of `batches`.

    A batch is (x, y), y (N, C, H, W) with pixels in [0, 1]; the model takes x to y's shape. The output is clipped to
    [0, 1] and rounded to 8 bits, as a saved picture would be; colour is compared on luma alone (Y of BT.601, as
    super-resolution papers do), `border` pixels at each edge are left out. Raises ValueError when there is no data,
    when shapes differ or when the border leaves nothing.
    """
    return _of_pictures(batches, border, "psnr", lambda given, wanted: _decibels(given - wanted))


def ssim(batches: Iterable, border: int = 0) -> Score:
    """A score: the structural similarity of Wang et al. (2004), 1 at most, the mean over all pictures of `batches`.

    Pictures, luma, `border` and errors as for `psnr`; windows are Gaussian, 11 x 11 with sigma 1.5, and only those
    that lie wholly inside count, as super-resolution papers do.
    """
    return _of_pictures(batches, border, "ssim", _similarity)


def _of_pictures(batches: Iterable, border: int, name: str, compare: Callable) -> Score:
    """The mean over pictures of `compare(given, wanted)`, both (N, H, W) brightness without the border."""
    _check(batches, name)
    if not isinstance(border, int) or isinstance(border, bool) or border < 0:
        raise ValueError(f"{name}: border={border!r}: give an integer number of pixels, 0 or more")

    def score(model: nn.Module) -> float:
        with torch.no_grad(), evaluating(model):
            values = [compare(*_inner(output, y, border, name)) for output, y in _outputs(model, batches, name)]
        return float(torch.cat(values).mean())

    return Score(batches, score)


def _inner(output: torch.Tensor, y: torch.Tensor, border: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Brightness of what was given, as a saved picture has it, and of what was wanted: (N, H, W) float64 twice."""
    if output.shape != y.shape:
        raise ValueError(f"{name}: the model gives shape {tuple(output.shape)}, the data have {tuple(y.shape)}")
    if min(y.shape[-2:]) <= 2 * border:
        raise ValueError(
            f"{name}: border={border} leaves nothing of pictures of {y.shape[-2]} x {y.shape[-1]}: lower it"
        )
    rounded = (output.double().clamp(0, 1) * 255).round() / 255
    rows, columns = (slice(border, side - border) for side in y.shape[-2:])
    return luma(rounded)[:, rows, columns], luma(y.double())[:, rows, columns]


def _decibels(difference: torch.Tensor) -> torch.Tensor:
    """PSNR of each picture: (N, H, W) -> (N,); a perfect picture counts as 100 dB."""
    return 10 * torch.log10(255**2 / difference.square().mean((1, 2)).clamp(min=255**2 * 1e-10))


def _similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM of each picture: (N, H, W) twice -> (N,)."""
    if min(a.shape[-2:]) < 11:
        raise ValueError(f"ssim: pictures of {a.shape[-2]} x {a.shape[-1]} are smaller than its window of 11 x 11")
    bell = torch.exp(-torch.arange(-5, 6, dtype=a.dtype, device=a.device).square() / (2 * 1.5**2))
    window = (bell[:, None] * bell)[None, None] / bell.sum() ** 2  # (1, 1, 11, 11)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x[:, None], window)[:, 0]  # windows wholly inside

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, both = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (light * (2 * both + c2) / (var_a + var_b + c2)).mean((1, 2))


def luma(x: torch.Tensor) -> torch.Tensor:
    """Brightness on the 8-bit scale: (N, C, H, W) in [0, 1] -> (N, H, W); Y of BT.601 for 3 channels, else the mean."""
    if x.shape[1] != 3:
        return 255 * x.mean(1)
    return 16 + torch.einsum("nchw,c->nhw", x, torch.tensor(LUMA, dtype=x.dtype, device=x.device))


def _outputs(model: nn.Module, batches: Iterable, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The model's output for each batch and what was wanted, both on the model's device."""
    empty = True
    for batch in batches:
        x, y = inputs(batch), labels(batch)
        if size(x):
            empty = False
            device = device_for(model, x)
            yield logits_of(call(model, moved(x, device))), y.to(device)
    if empty:
        raise ValueError(f"{name}: the held-out data are empty: give at least one batch (x, y)")


def _check(batches: Iterable, name: str) -> None:
    if isinstance(batches, Iterator):
        kind = type(batches).__name__
        raise TypeError(f"{name}: batches is a {kind}, which ends after one pass: give a DataLoader or a list")
    if isinstance(batches, Sized) and len(batches) == 0:
        raise ValueError(f"{name}: the held-out data are empty: give at least one batch (x, y)")
