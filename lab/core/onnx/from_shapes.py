"""Moves of an ONNX file: what gives shapes and constants, and what only cuts, joins, turns and repeats tensors."""

import math
import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .values import FreeSize, OnnxReader, OnnxValue, UnreadError, agreed, constant, fixed, integers, numbers, scalar

Attributes = dict[str, Any]
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def dtype(number: int) -> torch.dtype:
    """The type of numbers that a file writes as this number."""
    if number not in DTYPES:
        raise UnreadError(f"has numbers of ONNX's type {number}: real numbers, integers and truth are read here")
    return DTYPES[number]


def given(inputs: list, at: int, about: Attributes, name: str) -> list[int] | None:
    """Integers that older files hold as an attribute, newer ones as an input; None if there are none."""
    if len(inputs) > at and inputs[at] is not None:
        return integers(inputs[at])
    value = about.get(name)
    return None if value is None else [value] if isinstance(value, int) else list(value)


# -- constants ---------------------------------------------------------------------------------------------------------


def known(tensors: list[Tensor]) -> OnnxValue:
    """A tensor that sizes alone decide."""
    return OnnxValue("", tuple(tensors))


def _shape(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    ends = slice(about.get("start", 0), about.get("end"))
    return known([torch.tensor(tuple(x.shape)[ends], dtype=torch.int64) for x in inputs[0].runs])


def _size(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    return known([torch.tensor(x.numel()) for x in inputs[0].runs])


def _constant(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    kinds = {"value_float": torch.float32, "value_floats": torch.float32, "value_int": torch.int64}
    kinds |= {"value_ints": torch.int64}
    key = next(key for key in about if key.startswith(("value", "sparse")))
    if key not in ("value", "sparse_value", *kinds):
        raise UnreadError(f"holds {key}: real numbers and integers are read here")
    value = about[key] if key not in kinds else torch.tensor(about[key], dtype=kinds[key])
    return known([value] * reader.count)


def _constant_of_shape(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    value = about.get("value", torch.zeros(1))
    return reader.call(torch.full, numbers(inputs[0]), value.item(), dtype=value.dtype)


def _range(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    ends = [agreed(tuple(x.item() for x in value.runs)) if _is_integer(value) else scalar(value) for value in inputs]
    return reader.call(torch.arange, *ends, dtype=inputs[0].runs[0].dtype)


def _is_integer(value: OnnxValue) -> bool:
    return value.node is None and not value.runs[0].is_floating_point()


def _cast(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    kind = inputs[1].runs[0].dtype if len(inputs) > 1 else dtype(about["to"])
    return inputs[0] if inputs[0].runs[0].dtype == kind else reader.call("to", inputs[0], kind)


def identity(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    return inputs[0]


# -- shapes ------------------------------------------------------------------------------------------------------------


def _reshape(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """0 is the length that x has there, unless `allowzero`; one -1 is what is left."""
    x, wanted = inputs[0], numbers(inputs[1])
    lengths = x.shape
    target = [lengths[k] if n == 0 and not about.get("allowzero", 0) else n for k, n in enumerate(wanted)]
    free = [k for k, n in enumerate(target) if isinstance(n, FreeSize)]
    if len(free) == 1 and -1 not in target:  # no arithmetic where torch finds the number itself
        target[free[0]] = -1
    elif len(free) == 1 and all(isinstance(n, int) and n for n in lengths[1:]):
        target = _completed(x, target)
    return reader.call(torch.reshape, x, target)


def _completed(x: OnnxValue, target: list) -> list:
    """The shape with the number that -1 stands for, and -1 for the one that grows with the batch."""
    rests = []
    for k, run in enumerate(x.runs):
        others = math.prod(n.runs[k] if isinstance(n, FreeSize) else n for n in target if n != -1)
        rests.append(run.numel() // max(others, 1))
    rest = agreed(tuple(rests))
    if isinstance(rest, FreeSize):
        return target
    return [-1 if isinstance(n, FreeSize) else rest if n == -1 else n for n in target]


def _flatten(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    x, axis = inputs[0], about.get("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    if axis == 1 and x.rank > 1:
        return x if x.rank == 2 else reader.call(torch.flatten, x, 1)
    rows = [math.prod(run.shape[:axis]) for run in x.runs]
    return reader.call(torch.reshape, x, [agreed(tuple(rows)), -1])


def _squeeze(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    axes = given(inputs, 1, about, "axes")
    if axes is None:
        axes = [k for k, length in enumerate(inputs[0].shape) if length == 1]
    return reader.call(torch.squeeze, inputs[0], axes[0] if len(axes) == 1 else tuple(axes))


def _unsqueeze(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    x, axes = inputs[0], given(inputs, 1, about, "axes") or []
    for axis in sorted(axis % (x.rank + len(axes)) for axis in axes):
        x = reader.call(torch.unsqueeze, x, axis)
    return x


def _transpose(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    order = about.get("perm", list(range(inputs[0].rank))[::-1])
    return inputs[0] if list(order) == sorted(order) else reader.call(torch.permute, inputs[0], list(order))


def _expand(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """Both ways: a length of 1 in the wanted shape leaves the tensor's own."""
    x, wanted = inputs[0], numbers(inputs[1])
    runs = []
    for k, run in enumerate(x.runs):
        asked = [n.runs[k] if isinstance(n, FreeSize) else n for n in wanted]
        try:
            runs.append(torch.broadcast_shapes(run.shape, asked))
        except RuntimeError as error:
            raise UnreadError(f"expands {tuple(run.shape)} to {asked}") from error
    target = [agreed(lengths) for lengths in zip(*runs, strict=True)]
    return x if x.rank == len(target) and runs == [run.shape for run in x.runs] else _broadcast(reader, x, target)


def _broadcast(reader: OnnxReader, x: OnnxValue, target: list) -> OnnxValue:
    """By the method: traced again, its sizes stay open."""
    return reader.call("expand", x, *target)


def _tile(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    times = numbers(inputs[1])
    return inputs[0] if all(n == 1 for n in times) else reader.call("repeat", inputs[0], *times)


# -- parts -------------------------------------------------------------------------------------------------------------


def _concat(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    return inputs[0] if len(inputs) == 1 else reader.call(torch.cat, list(inputs), about["axis"])


def _split(reader: OnnxReader, inputs: list, about: Attributes) -> list[OnnxValue]:
    """In equal parts, the last shorter, where the file names no lengths."""
    x, axis, sizes = inputs[0], about.get("axis", 0), given(inputs, 1, about, "split")
    if sizes is None:
        length, count = x.length(axis), about.get("num_outputs", about["outputs"])
        each = -(-length // count)
        sizes = [each] * (length // each) + ([length % each] if length % each else [])
    return reader.call(torch.split, x, sizes, axis)


def _slice(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """Slices of some axes; a negative step turns what it takes."""
    x = inputs[0]
    starts, ends, axes, steps = _bounds(inputs, about)
    axes = list(range(len(starts))) if axes is None else [axis % x.rank for axis in axes]
    steps = [1] * len(starts) if steps is None else steps
    index, turned = [slice(None)] * x.rank, []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = _forward(x, axis, start, end, step)
        turned += [axis] if step < 0 else []
    last = max((axis for axis, part in enumerate(index) if part != slice(None)), default=-1)
    y = x if last < 0 else reader.call(operator.getitem, x, tuple(index[: last + 1]))
    return reader.call(torch.flip, y, turned) if turned else y


def _bounds(inputs: list, about: Attributes) -> tuple:
    if len(inputs) == 1:
        return about["starts"], about["ends"], about.get("axes"), None
    _, starts, ends, axes, steps = (*inputs, None, None)[:5]
    return (
        numbers(starts),
        numbers(ends),
        None if axes is None else integers(axes),
        None if steps is None else integers(steps),
    )


def _forward(x: OnnxValue, axis: int, start: Any, end: Any, step: int) -> slice:
    """The same entries by a positive step."""
    if step < 0:
        length = x.length(axis)
        start, end = fixed(start, "where a slice starts"), fixed(end, "where a slice ends")
        taken = range(length)[max(start, -length - 1) if start < 0 else start : None if end < -length else end : step]
        return slice(taken[-1], taken[0] + 1, -step) if len(taken) else slice(0, 0)
    size = x.shape[axis]
    is_end = isinstance(end, int) and (end >= size if isinstance(size, int) else end >= 2**31 - 1)
    is_start = start == 0 or (isinstance(size, int) and isinstance(start, int) and start < -size)
    return slice(None if is_start else start, None if is_end else end, None if step == 1 else step)


def _gather(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """Entries of an axis: one by its number, several as a slice where they stand in a row."""
    x, index = inputs
    axis = about.get("axis", 0) % x.rank
    if not index.is_constant:
        if not x.is_constant or axis or x.rank != 2:
            raise UnreadError("takes entries by numbers that the input decides, from what is no table")
        return reader.call(F.embedding, index, x)
    at = constant(index)
    if at.dim() == 0:
        return reader.call(torch.select, x, axis, int(at))
    length = x.length(axis) if (at < 0).any() else 0
    places = [int(k) + length if k < 0 else int(k) for k in at.flatten()]
    steps = {b - a for a, b in pairwise(places)}
    if at.dim() == 1 and len(steps) < 2 and (step := next(iter(steps), 1)) > 0:
        part = slice(places[0], places[-1] + 1, None if step == 1 else step)
        return reader.call(operator.getitem, x, (*[slice(None)] * axis, part))
    y = reader.call(torch.index_select, x, axis, known([torch.tensor(places)] * len(x.runs)))
    return y if at.dim() == 1 else reader.call(torch.unflatten, y, axis, list(at.shape))


# -- pixels ------------------------------------------------------------------------------------------------------------


def _depth_to_space(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    x, b = inputs[0], about["blocksize"]
    if about.get("mode", "DCR") == "CRD":
        return reader.call(F.pixel_shuffle, x, b)
    n, c, h, w = x.shape
    parts = reader.call(torch.reshape, x, [n, b, b, fixed(c, "the number of channels") // b**2, h, w])
    turned = reader.call(torch.permute, parts, [0, 3, 4, 1, 5, 2])
    rows, columns = (_scaled(length, b) for length in (h, w))
    return reader.call(torch.reshape, turned, [n, c // b**2, rows, columns])


def _space_to_depth(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    x, b = inputs[0], about["blocksize"]
    n, c, h, w = x.shape
    rows, columns = (_scaled(length, 1 / b) for length in (h, w))
    parts = reader.call(torch.reshape, x, [n, c, rows, b, columns, b])
    turned = reader.call(torch.permute, parts, [0, 3, 5, 1, 2, 4])
    return reader.call(torch.reshape, turned, [n, fixed(c, "the number of channels") * b * b, rows, columns])


def _scaled(length: int | FreeSize, factor: float) -> int | FreeSize:
    runs = length.runs if isinstance(length, FreeSize) else (length,)
    return agreed(tuple(int(n * factor) for n in runs))


def _pad(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """Numbers around, or what lies there mirrored, repeated or from the other end; negative padding cuts."""
    x, rank = inputs[0], inputs[0].rank
    pads = given(inputs, 1, about, "pads") or []
    axes = range(rank) if len(inputs) < 4 or inputs[3] is None else [axis % rank for axis in integers(inputs[3])]
    before, after = [0] * rank, [0] * rank
    for k, axis in enumerate(axes):
        before[axis], after[axis] = pads[k], pads[k + len(axes)]
    mode = about.get("mode", "constant")
    fill = scalar(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else about.get("value", 0.0)
    first = next((k for k in range(rank) if before[k] or after[k]), None)
    if first is None:
        return x
    if mode == "constant":
        around = [n for k in reversed(range(first, rank)) for n in (before[k], after[k])]
        return reader.call(F.pad, x, around, "constant", fill)
    return _mirrored(reader, x, (before, after), mode, first)


def _mirrored(reader: OnnxReader, x: OnnxValue, pads: tuple, mode: str, first: int) -> OnnxValue:
    torch_mode, rank = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode], x.rank
    before, after = pads
    if 2 <= first and rank in (3, 4, 5) and min(*before, *after) >= 0:
        around = [n for k in reversed(range(2, rank)) for n in (before[k], after[k])]
        return reader.call(F.pad, x, around, torch_mode)
    for axis in range(first, rank):
        if not before[axis] and not after[axis]:
            continue
        length = x.length(axis)
        places = [_source(k, length, mode) for k in range(-before[axis], length + after[axis])]
        x = reader.call(torch.index_select, x, axis, known([torch.tensor(places)] * len(x.runs)))
    return x


def _source(k: int, length: int, mode: str) -> int:
    """Which entry of an axis stands at k, which may lie outside."""
    if mode == "edge":
        return min(max(k, 0), length - 1)
    if mode == "wrap":
        return k % length
    period = max(2 * (length - 1), 1)
    return min(k % period, period - k % period) if length > 1 else 0


FORMS: dict[str, Callable] = {
    "Shape": _shape, "Size": _size, "Constant": _constant, "ConstantOfShape": _constant_of_shape, "Range": _range,
    "Cast": _cast, "CastLike": _cast, "Identity": identity, "Dropout": identity, "Reshape": _reshape,
    "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Transpose": _transpose, "Expand": _expand,
    "Tile": _tile, "Concat": _concat, "Split": _split, "Slice": _slice, "Gather": _gather,
    "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth, "Pad": _pad,
}  # fmt: skip
