"""Resizing in an ONNX file: torch's interpolation where it takes the same numbers, else tables of rows and columns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .values import FreeSize, OnnxReader, OnnxValue, UnreadError, agreed, constant, fixed, numbers

Attributes = dict[str, Any]
_MODES = {3: "linear", 4: "bilinear", 5: "trilinear"}
_ALIGNED = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}


@dataclass(frozen=True)
class _Way:
    """How places are found: `coordinates` of numbers between others, `nearest` how these are rounded, `mode`."""

    mode: str
    coordinates: str
    nearest: str


def resize(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """Resize, and Upsample; opset 10 and before had one way only, later files name theirs."""
    x, way = inputs[0], _way(reader, about)
    scales, sizes = _asked(reader, inputs, about)
    axes = [axis % x.rank for axis in about.get("axes", range(x.rank))]
    ratios = None if scales is None else dict(zip(axes, scales, strict=True))
    lengths = _lengths(x, axes, ratios, sizes, about)
    changed = [axis for axis in axes if lengths[axis] != x.shape[axis] and _runs(x, axis) != _of(lengths[axis], x)]
    if not changed:
        return x
    if min(changed) > 1 and x.rank in _MODES and (mode := _torchs(way, x, lengths, ratios)) is not None:
        spatial = range(2, x.rank)
        options: dict[str, Any] = {"size": [lengths[axis] for axis in spatial]}
        if ratios is not None:
            options = {"scale_factor": [ratios.get(axis, 1.0) for axis in spatial]}
        return reader.call(F.interpolate, x, **options, **mode)
    if way.mode == "cubic":
        raise UnreadError(f"resizes by cubics with {way.coordinates} coordinates: half_pixel or align_corners are read")
    for axis in changed:
        x = _by_table(reader, x, axis, _fixed_table(way, x, axis, lengths[axis], ratios))
    return x


def _way(reader: OnnxReader, about: Attributes) -> _Way:
    mode = about.get("mode", "nearest")
    for name, value in {"antialias": 0, "exclude_outside": 0}.items():
        if about.get(name, value) != value:
            raise UnreadError(f"resizes with {name}={about[name]}: {value} is read here")
    if about.get("cubic_coeff_a", -0.75) != -0.75:
        raise UnreadError(f"resizes by cubics of {about['cubic_coeff_a']}: -0.75 is read here")
    if reader.opset < 11:
        return _Way(mode, "asymmetric", "floor")
    coordinates = about.get("coordinate_transformation_mode", "half_pixel")
    if coordinates in ("tf_crop_and_resize", "tf_half_pixel_for_nn"):
        raise UnreadError(f"resizes with {coordinates} coordinates: write half_pixel, asymmetric or align_corners")
    return _Way(mode, coordinates, about.get("nearest_mode", "round_prefer_floor"))


def _asked(
    reader: OnnxReader, inputs: list, about: Attributes
) -> tuple[list[float] | None, list[int | FreeSize] | None]:
    """The scales or the sizes of the axes."""
    if reader.opset < 11:
        value = inputs[1] if len(inputs) > 1 else None
    else:
        _, _, value, sizes = (*inputs, None, None, None)[:4]
        if sizes is not None and (value is None or value.runs[0].numel() == 0):
            return None, numbers(sizes)
    return (about["scales"] if value is None else [float(n) for n in constant(value)]), None


def _runs(x: OnnxValue, axis: int) -> tuple[int, ...]:
    return tuple(run.shape[axis] for run in x.runs)


def _of(length: int | FreeSize, x: OnnxValue) -> tuple[int, ...]:
    return length.runs if isinstance(length, FreeSize) else (length,) * len(x.runs)


def _lengths(x: OnnxValue, axes: list[int], ratios: Any, sizes: Any, about: Attributes) -> list[int | FreeSize]:
    """The lengths of all axes."""
    lengths = x.shape
    policy = about.get("keep_aspect_ratio_policy", "stretch")
    if sizes is not None and policy != "stretch":
        wanted = [fixed(size, "the size asked for") for size in sizes]
        each = [size / x.length(axis) for size, axis in zip(wanted, axes, strict=True)]
        ratio = min(each) if policy == "not_larger" else max(each)
        sizes = [int(np.floor(ratio * x.length(axis) + 0.5)) for axis in axes]
    for k, axis in enumerate(axes):
        if sizes is None:
            lengths[axis] = agreed(tuple(int(np.floor(n * np.float64(ratios[axis]) + 1e-7)) for n in _runs(x, axis)))
        else:
            lengths[axis] = sizes[k]
    return lengths


def _torchs(way: _Way, x: OnnxValue, lengths: list, ratios: Any) -> dict[str, Any] | None:
    """The settings of torch's own interpolation that takes the same numbers; None if none does."""
    if way.mode != "nearest":
        if way.coordinates not in _ALIGNED or (way.coordinates == "half_pixel" and 1 in lengths[2:]):
            return None
        if way.mode == "cubic":
            return {"mode": "bicubic", "align_corners": _ALIGNED[way.coordinates]} if x.rank == 4 else None
        return {"mode": _MODES[x.rank], "align_corners": _ALIGNED[way.coordinates]}
    for mode, shift in {"nearest": 0.0, "nearest-exact": 0.5}.items():
        if all(_is_alike(way, x, axis, lengths[axis], ratios, shift) for axis in range(2, x.rank)):
            return {"mode": mode}
    return None


def _is_alike(way: _Way, x: OnnxValue, axis: int, length: Any, ratios: Any, shift: float) -> bool:
    """Whether torch takes the same entries of an axis in every run."""
    for n, size in zip(_runs(x, axis), _of(length, x), strict=True):
        ratio = size / n if ratios is None else ratios.get(axis, 1.0)
        theirs = np.minimum(np.floor((np.arange(size, dtype=np.float32) + shift) * np.float32(1 / ratio)), n - 1)
        if not np.array_equal(_table(way, n, size, ratio)[0], theirs.astype(np.int64)):
            return False
    return True


def _fixed_table(way: _Way, x: OnnxValue, axis: int, length: Any, ratios: Any) -> tuple[np.ndarray, ...]:
    n, size = x.length(axis), fixed(length, f"the new length of axis {axis}")
    return _table(way, n, size, size / n if ratios is None else ratios[axis])


def _table(way: _Way, n: int, size: int, ratio: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two entries of an axis between which each new one lies, and how far it is from the first."""
    at = _places(way.coordinates, n, size, np.float32(ratio))
    if way.mode == "nearest":
        rules: dict[str, Any] = {
            "floor": np.floor, "ceil": np.ceil, "round_prefer_floor": lambda v: np.ceil(v - np.float32(0.5)),
            "round_prefer_ceil": lambda v: np.floor(v + np.float32(0.5)),
        }  # fmt: skip
        rounded = rules[way.nearest](at)
        index = np.clip(rounded, 0, n - 1).astype(np.int64)
        return index, index, np.zeros(size, np.float32)
    at = np.clip(at, 0, n - 1)
    low = np.minimum(np.floor(at).astype(np.int64), n - 1)
    return low, np.minimum(low + 1, n - 1), (at - low).astype(np.float32)


def _places(coordinates: str, n: int, size: int, ratio: np.float32) -> np.ndarray:
    """Where new entries lie among the old ones, in float32 as onnxruntime does."""
    i, half = np.arange(size, dtype=np.float32), np.float32(0.5)
    if coordinates == "asymmetric":
        return i / ratio
    if coordinates == "align_corners":
        return np.zeros(size, np.float32) if size == 1 else i * np.float32(n - 1) / np.float32(size - 1)
    if coordinates == "pytorch_half_pixel" and size == 1:
        return np.zeros(size, np.float32)
    offset = np.float32(0)
    if coordinates == "half_pixel_symmetric":
        offset = np.float32(n / 2) * (np.float32(1) - np.float32(size) / (ratio * np.float32(n)))
    return offset + (i + half) / ratio - half


def _by_table(reader: OnnxReader, x: OnnxValue, axis: int, table: tuple[np.ndarray, ...]) -> OnnxValue:
    """An axis whose entries are others, or lie between two of them."""
    first, second, share = (torch.from_numpy(part) for part in table)
    a = _taken(reader, x, axis, first)
    if not share.any():
        return a
    b = _taken(reader, x, axis, second)
    along = share.reshape([-1 if k == axis else 1 for k in range(x.rank)])
    step = reader.call(torch.mul, reader.call(torch.sub, b, a), OnnxValue("share", (along,) * len(x.runs)))
    return reader.call(torch.add, a, step)


def _taken(reader: OnnxReader, x: OnnxValue, axis: int, places: torch.Tensor) -> OnnxValue:
    return reader.call(torch.index_select, x, axis, OnnxValue("places", (places,) * len(x.runs)))
