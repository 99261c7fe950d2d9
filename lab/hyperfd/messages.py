"""What crosses the privacy boundary between client and platform: two kinds of message, each of a fixed, checked shape.

A message is one safetensors file whose header carries {kind, version, body}, the body in JSON, and a digest of all
bytes. Tensors other than the model's weights are meta-vectors (R, d), one a random subset, a square map (d, d), lists
of results: nothing has an axis for pictures. A message that differs from its schema in a name, a type, a shape or a
number is refused in one line.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..core import sealing
from ..core.errors import cut, first_line, shown
from .bounds import Rejected
from .layers import Ranker
from .learning import Record, Synapses

VERSION = 2
MOST_TRIALS, MOST_RECORDS = 5000, 10_000
OFFER, UPLOAD = "offer", "upload"
MOST_NUMBER, MOST_OMEGA, MOST_SUM = 1e4, 1e9, 1e6  # of weights and vectors, of synapses, of errors summed up
MOST_ERROR = 0.2  # of one map: the embedded domains gave 0.0006 at most, 0.1 on average with noise, which sends no map
ANY, PERCENT = (-1e6, 1e6), (0.0, 100.0)  # what results may be


@dataclass(frozen=True)
class Shape:
    """What both sides know beforehand: R subsets of d numbers, n configurations and the hash of their codes, the
    weights' names and shapes, the least and the largest result."""

    R: int
    d: int
    n: int
    space: str
    weights: Mapping[str, tuple[int, ...]]
    results: tuple[float, float] = ANY

    @classmethod
    def of(cls, ranker: Ranker, R: int, codes: Tensor, results: tuple[float, float] = ANY) -> "Shape":
        weights = {name: tuple(value.shape) for name, value in ranker.state_dict().items()}
        return cls(R, ranker.extractor.width, len(codes), digest(codes), weights, results)


def digest(codes: Tensor) -> str:
    """A short hash of configurations in their order: two sides with the same one mean the same by a row's number."""
    numbers = rounded(codes)
    return hashlib.sha256(repr(tuple(numbers.shape)).encode() + numbers.contiguous().numpy().tobytes()).hexdigest()[:12]


def rounded(codes: Tensor) -> Tensor:
    """Codes as integers: logarithms differ in their last digits between machines."""
    return (codes.double() * 1e4).round().long()


@dataclass(frozen=True)
class Offer:
    """Platform -> client: the present model with its synapses, and the records of earlier clients."""

    version: int
    space: str
    weights: dict[str, Tensor]
    Omega: list[Tensor]
    records: tuple[Record, ...]

    def to_bytes(self) -> bytes:
        """The message as it is sent."""
        tensors = _weights(self.weights, self.Omega) | {f"v.{k}": r.vectors for k, r in enumerate(self.records)}
        records = [{"rows": list(r.rows), "results": list(r.results), "error": r.error} for r in self.records]
        return _packed(OFFER, {"model": self.version, "space": self.space, "records": records}, tensors)

    @classmethod
    def from_bytes(cls, content: bytes, shape: Shape) -> "Offer":
        """The offer in these bytes; Rejected where they are none for a ranker of this shape."""
        body, tensors = _unpacked(content, OFFER, {"model": int, "space": str, "records": list})
        _same_space(OFFER, body["space"], shape)
        if not 0 <= len(body["records"]) <= MOST_RECORDS:
            raise Rejected(f"offer: {len(body['records'])} records: at most {MOST_RECORDS}")
        expected = _model(shape) | {f"v.{k}": (shape.R, shape.d) for k in range(len(body["records"]))}
        _check(OFFER, tensors, expected)
        records = []
        for k, record in enumerate(body["records"]):
            _keys(OFFER, record, {"rows": list, "results": list, "error": (int, float)})
            rows, results = _trials(OFFER, record["rows"], record["results"], shape)
            error = _number(OFFER, "error", record["error"], 0, MOST_SUM)
            records.append(Record(f"record {k}", tensors[f"v.{k}"], rows, results, error=error))
        return cls(body["model"], body["space"], *_model_of(tensors, shape), tuple(records))

    def digest(self) -> str:
        """A short hash of what it says; its bytes may differ, for the header's order is by chance."""
        trials = ((r.rows, r.results) for r in self.records)
        sha = hashlib.sha256(repr([self.version, self.space, *trials]).encode())
        for x in (*self.weights.values(), *self.Omega, *(r.vectors for r in self.records)):
            sha.update(x.detach().contiguous().numpy().tobytes())
        return sha.hexdigest()[:12]


@dataclass(frozen=True)
class Upload:
    """Client -> platform: pooled meta-vectors, trials, two counts, the updated model and the map to its version."""

    base: int
    space: str
    vectors: Tensor
    rows: tuple[int, ...]
    results: tuple[float, ...]
    images: int
    boxes: int
    weights: dict[str, Tensor]
    Omega: list[Tensor]
    D: Tensor
    error: float

    def to_bytes(self) -> bytes:
        """The message as it is sent."""
        body = {
            "model": self.base,
            "space": self.space,
            "rows": list(self.rows),
            "results": list(self.results),
            "pictures": self.images,
            "boxes": self.boxes,
            "error": self.error,
        }
        return _packed(UPLOAD, body, _weights(self.weights, self.Omega) | {"vectors": self.vectors, "D": self.D})

    @classmethod
    def from_bytes(cls, content: bytes, shape: Shape) -> "Upload":
        """The upload in these bytes; Rejected where they are none for a ranker of this shape."""
        lists, counts = {"rows": list, "results": list}, {"pictures": int, "boxes": int}
        kinds = {"model": int, "space": str, **lists, **counts, "error": (int, float)}
        body, tensors = _unpacked(content, UPLOAD, kinds)
        _same_space(UPLOAD, body["space"], shape)
        _check(UPLOAD, tensors, _model(shape) | {"vectors": (shape.R, shape.d), "D": (shape.d, shape.d)})
        rows, results = _trials(UPLOAD, body["rows"], body["results"], shape)
        for name in ("pictures", "boxes"):
            if not 1 <= body[name] < 2**31:
                raise Rejected(f"upload: {name}={body[name]}: give a count, 1 or more")
        error = _number(UPLOAD, "error", body["error"], 0, MOST_ERROR)
        weights, Omega = _model_of(tensors, shape)
        return cls(
            base=body["model"],
            space=body["space"],
            vectors=tensors["vectors"],
            rows=rows,
            results=results,
            images=body["pictures"],
            boxes=body["boxes"],
            weights=weights,
            Omega=Omega,
            D=tensors["D"],
            error=error,
        )


def synapses(Omega: list[Tensor], ranker: Ranker) -> Synapses:
    """The synapses of a message, for this ranker."""
    return Synapses(list(Omega), [w.detach().clone() for w in ranker.parameters()])


# -- parts -------------------------------------------------------------------------------------------------------------


def _weights(weights: Mapping[str, Tensor], Omega: list[Tensor]) -> dict[str, Tensor]:
    return {f"w.{name}": value for name, value in weights.items()} | {f"o.{k}": o for k, o in enumerate(Omega)}


def _model(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The model's tensors: all of its state are parameters, each with its importance."""
    sizes = list(shape.weights.items())
    return {f"w.{name}": size for name, size in sizes} | {f"o.{k}": size for k, (_, size) in enumerate(sizes)}


def _model_of(tensors: Mapping[str, Tensor], shape: Shape) -> tuple[dict[str, Tensor], list[Tensor]]:
    weights = {name: tensors[f"w.{name}"] for name in shape.weights}
    return weights, [tensors[f"o.{k}"] for k in range(len(weights))]


def _packed(kind: str, body: dict[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    plain = {name: value.detach().float().contiguous().clone() for name, value in tensors.items()}
    return sealing.sealed(plain, {"kind": kind, "version": str(VERSION), "body": json.dumps(body)})


def _unpacked(content: bytes, kind: str, kinds: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Body and tensors of a message of this kind and version."""
    try:
        header = sealing.header(content, len(content))["__metadata__"]
        header_kind, version, body = header["kind"], header["version"], json.loads(header["body"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = first_line(error)[:120]
        raise Rejected(f"{kind}: {len(content):,} bytes are no message of HyperFD ({reason})") from error
    if version != str(VERSION):
        theirs = cut(str(version), 60)
        raise Rejected(f"{kind}: the message has version {theirs}, this side speaks {VERSION}: update the older side")
    if header_kind != kind or set(header) != {"kind", "version", "body", sealing.SEAL}:
        raise Rejected(f"{kind}: the message is of kind {shown(header_kind)}")
    _keys(kind, body, kinds)
    try:
        return body, load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise Rejected(f"{kind}: the tensors are damaged ({first_line(error)})") from error


def _keys(kind: str, body: Any, kinds: dict[str, Any]) -> None:
    """Exactly these fields, each of its type."""
    if not isinstance(body, dict) or set(body) != set(kinds):
        keys = sorted(body) if isinstance(body, dict) else type(body).__name__
        raise Rejected(f"{kind}: the body has {shown(keys)}: the schema has {sorted(kinds)}")
    for name, allowed in kinds.items():
        if not isinstance(body[name], allowed) or isinstance(body[name], bool):
            raise Rejected(f"{kind}: {name} is a {type(body[name]).__name__}")


def _check(kind: str, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Exactly these tensors, float32, of these shapes, finite."""
    if set(tensors) != set(expected):
        odd = sorted(set(tensors) ^ set(expected))[0]
        raise Rejected(f"{kind}: tensor {shown(odd)} is {'not in the schema' if odd in tensors else 'missing'}")
    for name, size in expected.items():
        value = tensors[name]
        if tuple(value.shape) != size or value.dtype != torch.float32:
            actual = f"{value.dtype} {tuple(value.shape)}"
            raise Rejected(f"{kind}: tensor {name!r} is {actual}: the schema has float32 {size}")
        if not torch.isfinite(value).all():
            raise Rejected(f"{kind}: tensor {name!r} is not finite")
        low, high = (0.0, MOST_OMEGA) if name.startswith("o.") else (-MOST_NUMBER, MOST_NUMBER)
        if value.numel() and not low <= float(value.min()) <= float(value.max()) <= high:
            raise Rejected(f"{kind}: tensor {name!r} has numbers outside {low:g}..{high:g}")


def _same_space(kind: str, space: str, shape: Shape) -> None:
    if space != shape.space:
        raise Rejected(
            f"{kind}: its configurations are {space[:12]!r}, this side's are {shape.space!r}: rows would mean others, "
            "give both sides the same codes"
        )


def _number(kind: str, name: str, value: Any, low: float, high: float) -> float:
    """A number of JSON, which may be NaN, or an integer too large for a float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise Rejected(f"{kind}: {name}={str(value)[:20]} is not a finite number in {low:g}..{high:g}")
    return float(value)


def _trials(kind: str, rows: list, results: list, shape: Shape) -> tuple[tuple[int, ...], tuple[float, ...]]:
    if not 1 <= len(rows) == len(results) <= MOST_TRIALS:
        raise Rejected(f"{kind}: {len(rows)} configurations and {len(results)} results: give one of each, 1 or more")
    if not all(isinstance(row, int) and not isinstance(row, bool) and 0 <= row < shape.n for row in rows):
        raise Rejected(f"{kind}: a configuration is not one of 0..{shape.n - 1}")
    if len(set(rows)) < len(rows):
        raise Rejected(f"{kind}: a configuration comes twice")
    return tuple(rows), tuple(_number(kind, "a result", y, *shape.results) for y in results)
