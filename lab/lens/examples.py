"""The examples that two networks are asked alike, what their outputs are, and how near an output is to a target."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.batch import IGNORED, each, inputs, joined, labels, logits_of, size, split, tensors
from .activations import over, run
from .concepts import with_fresh_weights

CLASSES, PIXELS, TOKENS, IMAGES = "classes", "pixels", "tokens", "images"
SCORES = {  # what an output is judged by beside its label, its unit, and the loss that no compression is to bring
    CLASSES: ("accuracy", "%", 10.0),
    PIXELS: ("pixels right", "%", 10.0),
    TOKENS: ("log-likelihood a token", "nats", 0.7),  # perplexity times two
    IMAGES: ("psnr", "dB", 3.0),
}
_FEW = 32  # examples of outputs that are large
_SIDE = 48  # px, the longest side of a picture that a picture is made of
_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and labels of one size, all in one batch; `kind` is what the network makes of them.

    x: a tensor (N, ...), a tuple or a dictionary of them. y: (N,) classes, (N, H, W) classes, (N, T) tokens, pictures,
    or None without labels.
    """

    kind: str
    x: Any
    y: Tensor | None

    def __len__(self) -> int:
        return size(self.x)

    @cached_property
    def images(self) -> Tensor | None:
        """The pictures (N, C, H, W) that the network takes; None where it takes something else."""
        is_image = isinstance(self.x, Tensor) and self.x.ndim == 4 and self.x.is_floating_point()
        return self.x if is_image else None

    @cached_property
    def unit(self) -> str:
        """The unit of a score."""
        return SCORES[self.kind][1]

    def outputs(self, model: nn.Module, x: Any = None) -> Tensor:
        """What a network gives for the examples, or for others in their stead: (N, ...) float32 on the CPU."""
        x = self.x if x is None else x
        return torch.cat([logits_of(run(model, part)).float().cpu() for part in split(x, _AT_ONCE)])

    def scores(self, outputs: Tensor, y: Tensor | None = None) -> np.ndarray:
        """How well each output fits its label, (N,): right or not, share of pixels, log-likelihood, decibels."""
        target = self.y if y is None else y
        assert target is not None
        return self._fits(self._judged(outputs), target)

    def agreement(self, outputs: Tensor, others: Tensor) -> np.ndarray:
        """How alike two networks' outputs are, (N,): the same class, share of the same classes or tokens, decibels."""
        return self._agrees(self._named(outputs), self._named(others))

    def table(self, outputs: Tensor, others: Tensor, by_label: bool) -> np.ndarray:
        """Scores of every output against every label, or its agreement with every other output: (N, N)."""
        first = self._judged(outputs) if by_label else self._named(outputs)
        second = others if by_label else self._named(others)
        if self.kind == CLASSES:
            return (first[:, None] == second[None]).double().numpy()
        compared = self._fits if by_label else self._agrees
        rows = np.arange(len(outputs))
        table = np.empty((len(rows), len(rows)))
        for k in range(len(rows)):
            table[rows, (rows + k) % len(rows)] = compared(first, second.roll(-k, 0))
        return table

    def _judged(self, outputs: Tensor) -> Tensor:
        """What of outputs is held against labels: of language models the log-likelihoods, else what they name."""
        return outputs[:, :-1].log_softmax(-1) if self.kind == TOKENS else self._named(outputs)

    def _named(self, outputs: Tensor) -> Tensor:
        """The classes or tokens that outputs name; pictures as they are."""
        return outputs if self.kind == IMAGES else outputs.argmax(-1 if self.kind == TOKENS else 1)

    def _fits(self, judged: Tensor, target: Tensor) -> np.ndarray:
        if self.kind != TOKENS:
            return self._agrees(judged, target)
        target = target[:, 1:]
        counts = target != IGNORED
        picked = judged.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        return ((picked * counts).sum(1) / counts.sum(1).clamp(min=1)).double().numpy()

    def _agrees(self, named: Tensor, target: Tensor) -> np.ndarray:
        if self.kind == IMAGES:
            return _decibels(named, target)
        counts = (target != IGNORED).reshape(len(target), -1)
        same = (named == target).reshape(len(target), -1)
        return ((same & counts).sum(1) / counts.sum(1).clamp(min=1)).double().numpy()


def examples(model: nn.Module, batches: Iterable, most: int) -> Examples:
    """The first examples of the batches, at most so many, fewer where a network's outputs are large.

    ValueError in one line where there are none, and for outputs that cannot be compared.
    """
    if isinstance(most, bool) or not isinstance(most, int) or most < 8:
        raise ValueError(f"most={most!r}: give how many examples are looked at, an integer, 8 or more")
    xs: list[Any] = []
    ys: list[Any] = []
    for batch in over(batches):
        xs.append(inputs(batch))
        ys.append(labels(batch))
        if sum(map(size, xs)) >= most:
            break
    if not xs or not sum(map(size, xs)):
        raise ValueError("the batches are empty: give at least one batch")
    if any(y is not None and not isinstance(y, Tensor) for y in ys):
        raise ValueError("the labels are no tensors: give batches (x, y), or (x,) without labels")
    xs, ys = _of_one_size(xs, ys)
    x = joined(xs)
    y = None if any(y is None for y in ys) else torch.cat(ys).cpu()
    if y is not None and len(y) != size(x):
        raise ValueError(f"there are {size(x)} examples and {len(y)} labels: give a label an example")
    return _checked(model, x, y, most)


def _checked(model: nn.Module, x: Any, y: Tensor | None, most: int) -> Examples:
    """The examples once it is known what the network makes of them."""
    output = logits_of(run(model, each(x, lambda part: part[:2])))
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4) or len(output) != min(2, size(x)):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"the network gives {shape}: what is compared is (N, classes), (N, T, tokens) or (N, C, H, W)")
    first = next(tensors(x))
    if output.ndim == 3 and first.ndim == 2 and not first.is_floating_point():
        kind, y = TOKENS, first if y is None else y
    elif output.ndim == 2:
        kind = CLASSES
    else:
        kind = PIXELS if output.ndim == 4 and y is not None and not y.is_floating_point() else IMAGES
    count = min(size(x), most if kind == CLASSES else min(most, _FEW))
    if y is not None:
        wanted = {CLASSES: 1, PIXELS: 3, TOKENS: 2, IMAGES: 4}[kind]
        if y.ndim != wanted or (kind != IMAGES and y.is_floating_point()):
            raise ValueError(f"the labels are {y.dtype} {tuple(y.shape)} for outputs of {tuple(output.shape)}")
        classes = output.shape[-1] if kind == TOKENS else output.shape[1]
        if kind != IMAGES and int(y.max()) >= classes:
            raise ValueError(f"a label is {int(y.max())}: the network has the classes 0 to {classes - 1}")
    if kind == CLASSES and y is not None and bool((y == IGNORED).any()):
        keep = y != IGNORED
        x, y = each(x, lambda part: part[keep]), y[keep]
        count = min(count, len(y))
    x = each(x, lambda part: part[:count])
    return Examples(kind, x, None if y is None else y[:count].to(torch.int64 if kind != IMAGES else torch.float32))


def _of_one_size(xs: list[Any], ys: list[Any]) -> tuple[list[Any], list[Any]]:
    """Pictures of which pictures are made, of several sizes or large, as squares cut out of them; all else as it is."""
    are_images = all(isinstance(x, Tensor) and x.ndim == 4 for x in xs)
    targets = all(isinstance(y, Tensor) and y.ndim == 4 for y in ys)
    if not are_images or not targets:
        return xs, ys
    side = min(_SIDE, *(min(x.shape[2:]) for x in xs))
    scale = max(1, ys[0].shape[2] // xs[0].shape[2])
    each_of = -(-_FEW // sum(map(len, xs)))  # squares of a picture
    corners = [_corners(x, side, each_of) for x in xs]
    cut = [_cut(x, side, some) for x, some in zip(xs, corners, strict=True)]
    wanted = [[(top * scale, left * scale) for top, left in some] for some in corners]
    return cut, [_cut(y, side * scale, some) for y, some in zip(ys, wanted, strict=True)]


def _corners(x: Tensor, side: int, most: int) -> list[tuple[int, int]]:
    """Top and left of at most so many squares, spread evenly over a picture, none over another."""
    tops, lefts = (range(0, length - side + 1, side) for length in x.shape[2:])
    every = [(top, left) for top in tops for left in lefts]
    return [every[k] for k in np.unique(np.linspace(0, len(every) - 1, min(most, len(every))).astype(int))]


def _cut(x: Tensor, side: int, corners: Sequence[tuple[int, int]]) -> Tensor:
    return torch.cat([x[:, :, top : top + side, left : left + side] for top, left in corners])


def _decibels(outputs: Tensor, target: Tensor) -> np.ndarray:
    """PSNR of pictures in [0, 1]; of other numbers the ratio of the target's mean square to that of the error."""
    if outputs.shape != target.shape:
        raise ValueError(f"outputs are {tuple(outputs.shape)}, targets {tuple(target.shape)}: give ones of one shape")
    error = (outputs - target).double().square().flatten(1).mean(1)
    is_image = float(target.min()) >= 0 and float(target.max()) <= 1 + 1e-6
    peak = torch.ones(()) if is_image else target.double().square().flatten(1).mean(1)
    return (10 * torch.log10(peak / error.clamp(min=1e-10))).numpy()


def as_shown(kind: str, scores: np.ndarray) -> float:
    """The mean score in its unit: shares in percent."""
    mean = float(np.mean(scores))
    return 100 * mean if kind in (CLASSES, PIXELS) and not math.isnan(mean) else mean


@dataclass(frozen=True, eq=False)
class Compared:
    """Two networks, their controls with fresh weights, and what all of them give for the same examples.

    kept: of layers whose filters are known by number, those of before that stayed. is_numbered: whether filters of one
    number in both go together elsewhere. is_ordered: whether it is known which network came first.
    """

    before: nn.Module
    after: nn.Module
    fresh: nn.Module
    examples: Examples
    outputs: Mapping[str, Tensor]
    classes: Sequence[str]
    kept: Mapping[str, Sequence[int]]
    is_numbered: bool
    is_ordered: bool
    seed: int

    def name(self, number: int) -> str:
        """What a class is called."""
        return self.classes[number] if number < len(self.classes) else f"class {number}"

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """The score of each example, (N,), by 'before', 'after' and 'fresh'; empty without labels."""
        if self.examples.y is None:
            return {}
        return {name: self.examples.scores(output) for name, output in self.outputs.items()}

    @cached_property
    def agreement(self) -> np.ndarray:
        """How alike the two outputs are, example by example: (N,)."""
        return self.examples.agreement(self.outputs["after"], self.outputs["before"])

    @cached_property
    def agreements(self) -> np.ndarray:
        """The agreement of every output after with every output before, (N, N)."""
        return self.examples.table(self.outputs["after"], self.outputs["before"], by_label=False)

    def by_label(self, name: str) -> np.ndarray:
        """The score of every output against every label, (N, N)."""
        assert self.examples.y is not None
        return self.examples.table(self.outputs[name], self.examples.y, by_label=True)


def compared(
    before: nn.Module,
    after: nn.Module,
    batches: Iterable,
    classes: Sequence[str],
    kept: Mapping[str, Sequence[int]],
    most: int,
    seed: int,
    *,
    is_numbered: bool = True,
    is_ordered: bool = False,
) -> Compared:
    """Ask two networks, and the second with fresh weights, the same examples; ValueError where their outputs differ."""
    some = examples(before, batches, most)
    fresh = with_fresh_weights(after, seed)
    outputs = {name: some.outputs(net) for name, net in (("before", before), ("after", after), ("fresh", fresh))}
    shapes = {name: tuple(output.shape[1:]) for name, output in outputs.items()}
    if shapes["before"] != shapes["after"]:
        raise ValueError(f"the network gives {shapes['before']} before and {shapes['after']} after: compare like tasks")
    for name in ("before", "after"):
        if not torch.isfinite(outputs[name]).all():
            raise ValueError(f"the network {name} gives NaN or infinite numbers: its weights are broken")
    return Compared(before, after, fresh, some, outputs, tuple(classes), kept, is_numbered, is_ordered, seed)
