"""A hand-off as bytes: one safetensors file with JSON in its metadata, and a digest of every byte.

The bytes are read strictly: nothing is unpickled, every name, shape, type and size in the header is validated before a
tensor is made of it, and nothing is built that the reader did not bring itself.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from ..core import sealing
from ..core.errors import cut, shown
from . import equations as eq
from .schedules import plain
from .seeding import drawn_again, is_seed, left_out, validate_seeding

FORMAT = 3
_DAMAGE = (
    SafetensorError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RuntimeError,
    OverflowError,
    UnicodeDecodeError,
    RecursionError,
    json.JSONDecodeError,
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # as safetensors calls them
MAX_BYTES, MAX_HEADER = 64 << 20, 256 << 10
_MAX_STEPS, _MAX_NOISE = 1000, 16 << 10
_MAX_GUIDANCE, _MAX_TOKENS = 1e6, 4096
_MAX_NUMBERS = 4 * _MAX_STEPS  # solvers of second order have two sigmas a step
_KINDS = {"index": int, "steps": int, "scheduler": str, "config": dict, "numbers": dict, "dtype": str, "int8": bool,
          "asked": str, "drawn": dict}  # fmt: skip
_FIELDS = {*_KINDS, "format", "guidance", "seed", "error"}
_PAINTING = {"image", "mask"}


def encoded(fields: Mapping[str, Any], int8: bool = False) -> bytes:
    """The bytes of a hand-off's fields by name; with `int8` its latents in integers, a scale a channel.

    Noise and a generator's state that come from the seed are left out.
    """
    latent, noise, error = fields["latent"], fields["noise"], fields["error"]
    tensors, numbers = _split_memory(fields["solver"])
    again = left_out(fields)
    tensors = {**({} if "scale" in again else {"latent": latent}), **tensors}
    if int8 and "latent" in tensors:
        tensors, error = _quantised(tensors), max(error, eq.relative_error(latent, _through_int8(latent)))
    tensors |= {f"prompt.{name}": _compact(x) for name, x in fields["prompt"].items()}
    tensors |= {f"painting.{name}": x for name, x in fields["painting"].items()}
    tensors |= {} if noise is None or "draws" in again else {"noise": noise}
    facts = {
        "format": FORMAT,
        "index": fields["index"],
        "steps": fields["steps"],
        "scheduler": fields["scheduler"],
        "config": plain(fields["config"]),
        "numbers": numbers,
        "guidance": fields["guidance"],
        "seed": fields["seed"],
        "dtype": str(latent.dtype).removeprefix("torch."),
        "int8": int8 and "latent" in tensors,
        "drawn": again,
        "error": error,
        "asked": fields["asked"],
    }
    stored = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    return sealing.sealed(stored, {"handoff": json.dumps(facts)})


def decoded(content: bytes) -> dict[str, Any]:
    """The fields that `encoded` wrote, by name; ValueError in one line for anything else."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"the hand-off has {len(content):,} bytes, more than {MAX_BYTES:,}: send fewer pictures")
    try:
        header = _header(content)
        facts = _facts(header)
        _validate_shapes(header, facts)
        tensors = load(content)
        if facts["drawn"]:
            tensors |= drawn_again(facts["drawn"], facts["seed"], DTYPES[facts["dtype"]])
        fields = _fields(facts, tensors)
        _validate_values(fields)
    except _DAMAGE as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise ValueError(f"these bytes are no hand-off ({type(error).__name__}: {reason})") from error
    return fields


def _split_memory(solver: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The solver's memory as tensors and as JSON, in which true stands for a tensor of a list."""
    tensors, numbers = {}, {}
    for name, value in solver.items():
        if isinstance(value, torch.Tensor):
            tensors[f"solver.{name}"] = value
        elif isinstance(value, list):
            numbers[name] = [True if isinstance(x, torch.Tensor) else x for x in value]
            tensors |= {f"solver.{name}.{i}": x for i, x in enumerate(value) if isinstance(x, torch.Tensor)}
        else:
            numbers[name] = value
    return tensors, numbers


def _joined_memory(numbers: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The memory that `_split_memory` took apart."""
    memory: dict[str, Any] = {}
    for name, value in numbers.items():
        if isinstance(value, list):
            memory[name] = [tensors[f"solver.{name}.{i}"] if x is True else x for i, x in enumerate(value)]
        else:
            memory[name] = value
    alone = {name.removeprefix("solver."): x for name, x in tensors.items() if name.startswith("solver.")}
    return memory | {name: x for name, x in alone.items() if "." not in name}


def _quantised(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Latents (B, C, h, w) in int8 beside their scales (B, C, 1, 1), other tensors as they are."""
    quantised = {}
    for name, x in tensors.items():
        if x.ndim == 4:
            quantised[name], quantised[f"scale.{name}"] = eq.int8(x)
        else:
            quantised[name] = x
    return quantised


def _through_int8(x: torch.Tensor) -> torch.Tensor:
    q, scale = eq.int8(x)
    return (q.float() * scale).to(x.dtype)


def _compact(x: torch.Tensor) -> torch.Tensor:
    """Token ids in two bytes each where they fit, as 49,408 words do."""
    return x.to(torch.uint16) if not x.is_floating_point() and 0 <= int(x.min()) and int(x.max()) < 1 << 16 else x


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x if x.is_floating_point() else x.to(torch.int64)


def _fields(facts: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The hand-off's fields of these facts and tensors, whose shapes have been validated."""
    dtype = DTYPES[facts["dtype"]]
    scales = {name.removeprefix("scale."): tensors.pop(name) for name in list(tensors) if name.startswith("scale.")}
    for name, scale in scales.items():
        tensors[name] = (tensors[name].float() * scale).to(dtype)
    prompt = {name.removeprefix("prompt."): _widened(x) for name, x in tensors.items() if name.startswith("prompt.")}
    painting = {name.removeprefix("painting."): x for name, x in tensors.items() if name.startswith("painting.")}
    same = ("index", "steps", "scheduler", "config", "guidance", "seed", "error", "asked")
    return {name: facts[name] for name in same} | {
        "latent": tensors["latent"],
        "solver": _joined_memory(facts["numbers"], tensors),
        "prompt": prompt,
        "painting": painting,
        "noise": tensors.get("noise"),
    }


# -- what is no hand-off -----------------------------------------------------------------------------------------------


def _header(content: bytes) -> dict[str, Any]:
    """The header of a hand-off, by which its digest holds."""
    try:
        return sealing.header(content, MAX_HEADER)
    except ValueError as error:
        raise ValueError(f"these bytes are no hand-off ({error})") from error


def _facts(header: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of the metadata, its fields and kinds as `to_bytes` writes them."""
    facts = json.loads(header["__metadata__"]["handoff"])
    if facts["format"] != FORMAT:
        raise ValueError(f"the hand-off has format {shown(facts['format'])}, this version of the lab reads {FORMAT}")
    if set(facts) != _FIELDS:
        raise ValueError(f"these bytes are no hand-off: fields {', '.join(sorted(set(facts) ^ _FIELDS))[:200]}")
    for name, kind in _KINDS.items():
        if type(facts[name]) is not kind:
            raise ValueError(f"the hand-off's {name} is a {type(facts[name]).__name__}, not a {kind.__name__}")
    if facts["drawn"]:
        validate_seeding(facts["drawn"], facts["seed"])
    return facts


def _validate_shapes(header: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """ValueError unless every tensor has a name, a type and a shape that belong to the latent's; reads no tensor."""
    entries = {name: (x["dtype"], tuple(x["shape"])) for name, x in header.items() if name != "__metadata__"}
    if "scale" in facts["drawn"]:
        entries |= {"latent": (_FLOATS[facts["dtype"]], tuple(facts["drawn"]["shape"]))}
    shape = entries["latent"][1]
    if len(shape) != 4 or not all(type(n) is int and 0 < n < 1 << 16 for n in shape):
        raise ValueError(f"the hand-off's latent has shape {shown(shape)}: send (B, C, h, w)")
    for name, (kind, size) in entries.items():
        if not _belongs(name, kind, size, entries, facts):
            what = f"{shown(name)} is {cut(str(kind), 60)} {shown(size)}"
            raise ValueError(f"the hand-off's tensor {what}, which does not belong there")


def _belongs(name: str, kind: str, size: tuple, entries: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether a tensor of this name may have this type and size, beside the latent (B, C, h, w)."""
    shape, (part, _, rest) = entries["latent"][1], name.partition(".")
    latents = ["I8"] if f"scale.{name}" in entries else [*_FLOATS.values()]
    match part:
        case "latent":
            return not rest and kind == ("I8" if facts["int8"] else _FLOATS[facts["dtype"]])
        case "scale":  # (B, C, 1, 1)
            scaled = entries.get(rest) == ("I8", shape)
            return facts["int8"] and kind == "F32" and size == (*shape[:2], 1, 1) and scaled
        case "solver" if rest:  # a latent, or a list of a number a step
            short = len(size) < 2 and math.prod(size) <= _MAX_NUMBERS and kind in ("F32", "F64", "I32", "I64")
            return short or (kind in latents and size == shape)
        case "prompt" if rest:  # ids (B, L), or embeddings (B, L, D)
            words = len(size) in (2, 3) and size[0] == shape[0] and size[1] <= _MAX_TOKENS
            return words and 0 < math.prod(size[1:]) and kind in ("U16", "I32", "I64", *_FLOATS.values())
        case "painting":
            return (
                (kind, size) == ("BOOL", (shape[0], 1, *shape[2:]))
                if rest == "mask"
                else (rest == "image" and kind in _FLOATS.values() and size == shape)
            )
        case "noise":  # one generator's state, or those of one a picture
            return (
                not rest
                and kind == "U8"
                and 0 < len(size) < 3
                and size[-1] <= _MAX_NOISE
                and size[:-1] in ((), shape[:1])
            )
    return False


def _validate_values(fields: Mapping[str, Any]) -> None:
    """ValueError in one line unless every part is what `encoded` would write."""
    for words, holds in _ALLOWED.items():
        if not holds(fields):
            wrong = words.format_map(fields)[:80]
            raise ValueError(f"the hand-off holds {wrong}, which is not allowed: ask the other side again")


def _is_number(value: Any, most: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= most


def _are_generator_states(noise: torch.Tensor, seed: Any) -> bool:
    if (noise.ndim == 2) != isinstance(seed, list):
        return False
    try:
        for state in noise.reshape(-1, noise.shape[-1]):
            torch.Generator().set_state(state.clone())  # torch crashes where the bytes are not aligned
    except RuntimeError:
        return False
    return True


def _is_finite(fields: Mapping[str, Any]) -> bool:
    tensors = [fields["latent"], *fields["prompt"].values(), *fields["painting"].values()]
    return all(bool(torch.isfinite(x).all()) for x in tensors)


def _has_token_ids(fields: Mapping[str, Any]) -> bool:
    return all(int(x.min()) >= 0 for x in fields["prompt"].values() if not x.is_floating_point())


_ALLOWED: dict[str, Callable[[Mapping[str, Any]], bool]] = {  # what the fields hold where it is not so
    "step {index!r} of {steps!r}": lambda f: 0 <= f["index"] <= f["steps"] <= _MAX_STEPS and f["steps"] > 0,
    "guidance {guidance!r}": lambda f: _is_number(f["guidance"], _MAX_GUIDANCE),
    "error {error!r}": lambda f: _is_number(f["error"], math.inf),
    "seed {seed!r}": lambda f: f["seed"] is None or is_seed(f["seed"], len(f["latent"])),
    "half of what is painted over": lambda f: set(f["painting"]) in (set(), _PAINTING),
    "latent of type {latent.dtype}": lambda f: f["latent"].dtype in DTYPES.values(),
    "a generator's state that is none": lambda f: f["noise"] is None or _are_generator_states(f["noise"], f["seed"]),
    "numbers that are not finite": _is_finite,
    "negative token ids": _has_token_ids,
}
