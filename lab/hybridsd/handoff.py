"""What crosses the boundary between two machines: the latent, the solver's memory, and what they were made with.

The bytes are one safetensors file with JSON in its metadata, and a digest of every byte. They are read strictly:
nothing is unpickled, every name, shape, type and size is demanded of the header before a tensor is made of it, and
nothing is built that the reader did not bring itself.
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from ..core import sealing
from . import equations as eq
from .sampling import Conditioning, plain, rehearsal, restored, solver_state, trajectory

FORMAT = 2
_DAMAGE = (
    SafetensorError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError, UnicodeDecodeError,
    RecursionError, json.JSONDecodeError,
)  # fmt: skip
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # as safetensors says them
_MOST_STEPS, _MOST_BYTES, _MOST_HEADER, _MOST_NOISE = 1000, 64 << 20, 256 << 10, 16 << 10
_MOST_GUIDANCE, _MOST_WORDS = 1e6, 4096
_FIELDS = {
    "format", "index", "steps", "scheduler", "config", "numbers", "guidance", "seed", "dtype", "int8", "error", "asked"
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Handoff:
    """A trajectory that stands before step `index` of `steps`.

    `latent` (B, C, h, w); `scheduler` and `config` name the solver, `solver` is its memory; `prompt` holds token ids by
    name (or embeddings, where the other side has no text encoder); `noise` is the state of the generator, kept only
    where the solver draws noise; `error` the relative error that an int8 passage left in the latent; `asked` the digest
    of the request that this answers, '' if it answers none.
    """

    latent: torch.Tensor
    index: int
    steps: int
    scheduler: str
    config: Mapping[str, Any]
    solver: Mapping[str, Any]
    guidance: float
    prompt: Mapping[str, torch.Tensor] = field(default_factory=dict)
    seed: int | None = None
    noise: torch.Tensor | None = None
    error: float = 0.0
    asked: str = ""

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.latent.shape))
        kind = str(self.latent.dtype).removeprefix("torch.")
        return f"Handoff(step {self.index} of {self.steps}, latent {shape} {kind}, {self.scheduler} {self.schedule})"

    @property
    def schedule(self) -> str:
        """Twelve hex digits that two machines compare: the scheduler's name and config."""
        return schedule_hash(self.scheduler, self.config)

    def generator(self) -> torch.Generator | None:
        """A generator that stands where the other side's stood."""
        if self.noise is None:
            return None
        made = torch.Generator()
        made.set_state(self.noise)
        return made

    def to_bytes(self, int8: bool = False) -> bytes:
        """One safetensors file; with `int8` the latent and the solver's latents in integers, a scale a channel."""
        tensors, numbers = _taken_apart(self.solver)
        tensors = {"latent": self.latent, **tensors}
        error = self.error
        if int8:
            tensors, error = _rounded(tensors), eq.relative_error(self.latent, _through_int8(self.latent))
        tensors |= {f"prompt.{name}": _compact(x) for name, x in self.prompt.items()}
        tensors |= {} if self.noise is None else {"noise": self.noise}
        facts = {
            "format": FORMAT, "index": self.index, "steps": self.steps, "scheduler": self.scheduler,
            "config": plain(self.config), "numbers": numbers, "guidance": self.guidance, "seed": self.seed,
            "dtype": str(self.latent.dtype).removeprefix("torch."), "int8": int8, "error": error,
            "asked": self.asked,
        }  # fmt: skip
        plainly = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        return sealing.sealed(plainly, {"handoff": json.dumps(facts)})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Handoff":
        """What `to_bytes` wrote; ValueError in one line for anything else."""
        if len(content) > _MOST_BYTES:
            raise ValueError(f"the hand-off has {len(content):,} bytes, more than {_MOST_BYTES:,}: send fewer pictures")
        try:
            header = _header(content)
            facts = _facts(header)
            _validate_shapes(header, facts)
            made = _put_together(cls, facts, load(content))
            _check(made)
        except _DAMAGE as error:
            reason = next(iter(str(error).splitlines()), "")[:200]
            raise ValueError(f"these bytes are no hand-off ({type(error).__name__}: {reason})") from error
        return made


def begin(
    scheduler: Any, latent: torch.Tensor, N: int, guidance: float, *, prompt=None, seed=None, generator=None
) -> Handoff:
    """The hand-off before the first step: `latent` is noise already scaled by `init_noise_sigma`.

    ValueError where the scheduler cannot be handed over, or draws noise and has no generator.
    """
    known, name = rehearsal(scheduler, N), type(scheduler).__name__
    if known.fault:
        raise ValueError(known.fault)
    if known.draws and generator is None:
        raise ValueError(f"{name} draws noise between its steps: give the generator, or the two halves draw others")
    noise = generator.get_state() if known.draws else None
    facts = name, plain(scheduler.config), dict(known.memory[0]), guidance
    return Handoff(latent, 0, N, *facts, prompt=prompt or {}, seed=seed, noise=noise)


def advance(handoff: Handoff, unet: nn.Module, scheduler: Any, said: Conditioning, until: int) -> Handoff:
    """The hand-off before step `until`, the steps up to it taken by `unet`; the scheduler given is not touched."""
    if not handoff.index <= until <= handoff.steps:
        raise ValueError(f"until={until!r} is not allowed: give a step in {handoff.index}..{handoff.steps}")
    solver, generator = resumed(handoff, scheduler), handoff.generator()
    latents = trajectory([unet], solver, handoff.latent, said, [until], generator, handoff.index)
    latent = deque(latents, maxlen=1).pop() if handoff.index < until else handoff.latent
    noise = None if generator is None else generator.get_state()
    memory = solver_state(solver, rehearsal(scheduler, handoff.steps), until)
    rest = handoff.scheduler, handoff.config, memory, handoff.guidance, handoff.prompt
    return Handoff(latent, until, handoff.steps, *rest, seed=handoff.seed, noise=noise, error=handoff.error)


def resumed(handoff: Handoff, scheduler: Any) -> Any:
    """A copy of the scheduler that stands where the hand-off's stood; ValueError in one line unless all of it fits."""
    same_schedule(handoff, scheduler)
    known = rehearsal(scheduler, handoff.steps)
    if known.fault:
        raise ValueError(known.fault)
    if known.draws != (handoff.noise is not None):
        kind = "draws noise and the hand-off lacks" if handoff.noise is None else "draws no noise and the hand-off has"
        raise ValueError(f"{handoff.scheduler} {kind} a generator's state: take the same lab on both sides")
    return restored(scheduler, handoff.steps, handoff.solver, handoff.index, handoff.latent)


def validate_continued(made: Handoff, state: Handoff, until: int, scheduler: Any) -> None:
    """ValueError that names what differs, unless `made` is `state` taken to step `until`, as far as can be seen."""
    alike = {
        "step": made.index == until and made.steps == state.steps,
        "schedule": made.schedule == state.schedule,
        "guidance": made.guidance == state.guidance,
        "seed": made.seed == state.seed,
        "latent's shape": made.latent.shape == state.latent.shape and made.latent.dtype == state.latent.dtype,
        "prompt": made.prompt.keys() == state.prompt.keys()
        and all(torch.equal(made.prompt[name].cpu(), x.cpu()) for name, x in state.prompt.items()),
    }
    other = [name for name, same in alike.items() if not same]
    if other:
        raise ValueError(f"{made!r} has another {', another '.join(other)} than was asked")
    resumed(made, scheduler)


def cloud_half(
    unet: nn.Module, scheduler: Any, latent: torch.Tensor, said: Conditioning, k: int, N: int, **context: Any
) -> Handoff:
    """The first k of N steps; `context` is what `begin` takes: prompt, seed, generator."""
    return advance(begin(scheduler, latent, N, said.guidance, **context), unet, scheduler, said, k)


def edge_half(handoff: Handoff, unet: nn.Module, scheduler: Any, said: Conditioning) -> torch.Tensor:
    """The latent after the remaining steps, bit for bit what one machine would have made in fp32 and fp16."""
    return advance(handoff, unet, scheduler, said, handoff.steps).latent


def same_schedule(handoff: Handoff, scheduler: Any) -> None:
    """ValueError that names what differs, unless the scheduler is the hand-off's."""
    name, config = type(scheduler).__name__, plain(scheduler.config)
    if schedule_hash(name, config) == handoff.schedule:
        return
    theirs, mine = {"class": handoff.scheduler, **handoff.config}, {"class": name, **config}
    differs = [key for key in sorted(theirs | mine) if theirs.get(key) != mine.get(key)]
    shown = ", ".join(f"{key}: {theirs.get(key)!r} there, {mine.get(key)!r} here" for key in differs[:3])
    raise ValueError(f"the schedulers of both halves differ ({shown}): load both sides from one scheduler config")


def schedule_hash(name: str, config: Mapping[str, Any]) -> str:
    """Twelve hex digits of a scheduler's name and config."""
    return hashlib.sha256(json.dumps([name, plain(config)], sort_keys=True).encode()).hexdigest()[:12]


def _taken_apart(solver: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
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


def _solver(numbers: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in numbers.items():
        if isinstance(value, list):
            found[name] = [tensors[f"solver.{name}.{i}"] if x is True else x for i, x in enumerate(value)]
        else:
            found[name] = value
    whole = {name.removeprefix("solver."): x for name, x in tensors.items() if name.startswith("solver.")}
    return found | {name: x for name, x in whole.items() if "." not in name}


def _rounded(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, x in tensors.items():
        if x.ndim == 4:
            found[name], found[f"scale.{name}"] = eq.int8(x)
        else:
            found[name] = x
    return found


def _through_int8(x: torch.Tensor) -> torch.Tensor:
    whole, scale = eq.int8(x)
    return (whole.float() * scale).to(x.dtype)


def _compact(x: torch.Tensor) -> torch.Tensor:
    """Token ids in two bytes each where they fit, as 49,408 words do."""
    return x.to(torch.uint16) if not x.is_floating_point() and 0 <= int(x.min()) and int(x.max()) < 1 << 16 else x


def _header(content: bytes) -> dict[str, Any]:
    """The header of a hand-off, by which its digest holds."""
    try:
        return sealing.header(content, _MOST_HEADER)
    except ValueError as error:
        raise ValueError(f"these bytes are no hand-off ({error})") from error


def _facts(header: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of the metadata, its fields and kinds as `to_bytes` writes them."""
    facts = json.loads(header["__metadata__"]["handoff"])
    if facts["format"] != FORMAT:
        raise ValueError(f"the hand-off has format {facts['format']!r}, this version of the lab reads {FORMAT}")
    if set(facts) != _FIELDS:
        raise ValueError(f"these bytes are no hand-off: fields {', '.join(sorted(set(facts) ^ _FIELDS))[:200]}")
    kinds = {"index": int, "steps": int, "scheduler": str, "config": dict, "numbers": dict, "dtype": str,
             "int8": bool, "asked": str}  # fmt: skip
    for name, kind in kinds.items():
        if type(facts[name]) is not kind:
            raise ValueError(f"the hand-off's {name} is a {type(facts[name]).__name__}, not a {kind.__name__}")
    return facts


def _validate_shapes(header: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """ValueError unless every tensor has a name, a type and a shape that belong to the latent's; reads no tensor."""
    told = {name: (one["dtype"], tuple(one["shape"])) for name, one in header.items() if name != "__metadata__"}
    shape = told["latent"][1]
    if len(shape) != 4 or not all(type(n) is int and 0 < n < 1 << 16 for n in shape):
        raise ValueError(f"the hand-off's latent has shape {shape!r}: send (B, C, h, w)")
    for name, (kind, size) in told.items():
        if not _belongs(name, kind, size, told, facts):
            raise ValueError(f"the hand-off's tensor {name[:80]!r} is {kind} {size!r}, which does not belong there")


def _belongs(name: str, kind: str, size: tuple, told: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    shape, (part, _, rest) = told["latent"][1], name.partition(".")
    latents = ["I8"] if f"scale.{name}" in told else [*_FLOATS.values()]
    match part:
        case "latent":
            return not rest and kind == ("I8" if facts["int8"] else _FLOATS[facts["dtype"]])
        case "scale":
            of = told.get(rest)
            return facts["int8"] and kind == "F32" and size == (*shape[:2], 1, 1) and of == ("I8", shape)
        case "solver" if rest:
            short = len(size) < 2 and math.prod(size) <= _MOST_STEPS + 1 and kind in ("F32", "F64", "I32", "I64")
            return short or (kind in latents and size == shape)
        case "prompt" if rest:
            known = kind in ("U16", "I32", "I64", *_FLOATS.values())
            return (
                known
                and len(size) in (2, 3)
                and size[0] == shape[0]
                and 0 < math.prod(size[1:])
                and size[1] <= _MOST_WORDS
            )
        case "noise":
            return not rest and kind == "U8" and len(size) == 1 and size[0] <= _MOST_NOISE
    return False


def _put_together(cls, facts: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Handoff:
    dtype = _DTYPES[facts["dtype"]]
    scales = {name.removeprefix("scale."): tensors.pop(name) for name in list(tensors) if name.startswith("scale.")}
    for name, scale in scales.items():
        tensors[name] = (tensors[name].float() * scale).to(dtype)
    prompt = {name.removeprefix("prompt."): _wide(x) for name, x in tensors.items() if name.startswith("prompt.")}
    return cls(
        tensors["latent"], facts["index"], facts["steps"], facts["scheduler"], facts["config"],
        _solver(facts["numbers"], tensors), facts["guidance"], prompt, facts["seed"], tensors.get("noise"),
        facts["error"], facts["asked"],
    )  # fmt: skip


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.is_floating_point() else x.to(torch.int64)


def _check(made: Handoff) -> None:
    """ValueError in one line unless every part is what `to_bytes` would write."""
    demands = {
        f"step {made.index!r} of {made.steps!r}": 0 <= made.index <= made.steps <= _MOST_STEPS and made.steps > 0,
        f"guidance {made.guidance!r}": _number(made.guidance, _MOST_GUIDANCE),
        f"error {made.error!r}": _number(made.error, math.inf),
        f"seed {made.seed!r}": made.seed is None or type(made.seed) is int,
        f"latent of type {made.latent.dtype}": made.latent.dtype in _DTYPES.values(),
        "a generator's state that is none": _is_state(made.noise),
        "numbers that are not finite": all(_finite(x) for x in [made.latent, *made.prompt.values()]),
        "negative token ids": all(int(x.min()) >= 0 for x in made.prompt.values() if not x.is_floating_point()),
    }
    for what, holds in demands.items():
        if not holds:
            raise ValueError(f"the hand-off holds {what[:80]}, which is not allowed: ask the other side again")


def _number(value: Any, most: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= most


def _is_state(noise: torch.Tensor | None) -> bool:
    """Whether a generator can stand there."""
    try:
        return noise is None or torch.Generator().set_state(noise) is not None
    except RuntimeError:
        return False


def _finite(x: torch.Tensor) -> bool:
    return bool(torch.isfinite(x).all())
