"""What crosses the boundary between two machines: the latent, the solver's memory, and what they were made with.

The bytes are one safetensors file with JSON in its metadata. They are read strictly: nothing is unpickled, every name,
shape, type and number is checked, and nothing is built that the reader did not bring itself.
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from . import equations as eq
from .sampling import Conditioning, draws_noise, fresh, restored, solver_state, trajectory

FORMAT = 1
_DAMAGE = (
    SafetensorError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError, UnicodeDecodeError,
    json.JSONDecodeError,
)  # fmt: skip
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_MOST_STEPS, _MOST_BYTES = 1000, 64 << 20
_FIELDS = {"format", "index", "steps", "scheduler", "config", "numbers", "guidance", "seed", "dtype", "int8", "error"}


@dataclass(frozen=True, eq=False)
class Handoff:
    """A trajectory that stands before step `index` of `steps`.

    `latent` (B, C, h, w); `scheduler` and `config` name the solver, `solver` is its memory; `prompt` holds token ids by
    name (or embeddings, where the other side has no text encoder); `noise` is the state of the generator, kept only
    where the solver draws noise; `error` the relative error that an int8 passage left in the latent.
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
        """One safetensors file; with `int8` the latent and the solver's latents in whole numbers, a scale a channel."""
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
        }  # fmt: skip
        return save(
            {name: x.detach().cpu().contiguous() for name, x in tensors.items()}, {"handoff": json.dumps(facts)}
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> "Handoff":
        """What `to_bytes` wrote; ValueError in one line for anything else."""
        if len(content) > _MOST_BYTES:
            raise ValueError(f"the hand-off has {len(content):,} bytes, more than {_MOST_BYTES:,}: send fewer pictures")
        try:
            facts = _facts(content)
            made = _put_together(cls, facts, load(content))
        except _DAMAGE as error:
            reason = next(iter(str(error).splitlines()), "")
            raise ValueError(f"these bytes are no hand-off ({type(error).__name__}: {reason})") from error
        _check(made)
        return made


def begin(
    scheduler: Any, latent: torch.Tensor, N: int, guidance: float, *, prompt=None, seed=None, generator=None
) -> Handoff:
    """The hand-off before the first step: `latent` is noise already scaled by `init_noise_sigma`."""
    made = fresh(scheduler, N, latent.device)
    noise = generator.get_state() if generator is not None and draws_noise(scheduler) else None
    facts = type(scheduler).__name__, plain(scheduler.config), solver_state(made), guidance
    return Handoff(latent, 0, N, *facts, prompt=prompt or {}, seed=seed, noise=noise)


def advance(handoff: Handoff, unet: nn.Module, scheduler: Any, said: Conditioning, until: int) -> Handoff:
    """The hand-off before step `until`, the steps up to it taken by `unet`; the scheduler given is not touched."""
    same_schedule(handoff, scheduler)
    if not handoff.index <= until <= handoff.steps:
        raise ValueError(f"until={until!r} is not allowed: give a step in {handoff.index}..{handoff.steps}")
    solver = restored(scheduler, handoff.steps, handoff.solver, handoff.latent.device)
    generator = handoff.generator()
    latents = trajectory([unet], solver, handoff.latent, said, [until], generator, handoff.index)
    latent = deque(latents, maxlen=1).pop() if handoff.index < until else handoff.latent
    noise = None if generator is None else generator.get_state()
    rest = handoff.scheduler, handoff.config, _copied(solver_state(solver)), handoff.guidance, handoff.prompt
    return Handoff(latent, until, handoff.steps, *rest, seed=handoff.seed, noise=noise, error=handoff.error)


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


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config as JSON keeps it, without the keys that are diffusers' own."""
    return json.loads(json.dumps({key: value for key, value in config.items() if not key.startswith("_")}))


def _taken_apart(solver: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The solver's memory as tensors and as JSON: a list of tensors is its length and those that are filled."""
    tensors, numbers = {}, {}
    for name, value in solver.items():
        if isinstance(value, torch.Tensor):
            tensors[f"solver.{name}"] = value
        elif isinstance(value, Sequence):
            numbers[name] = [x is not None for x in value]
            tensors |= {f"solver.{name}.{i}": x for i, x in enumerate(value) if x is not None}
        else:
            numbers[name] = value
    return tensors, numbers


def _solver(numbers: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in numbers.items():
        if isinstance(value, list):
            found[name] = [tensors[f"solver.{name}.{i}"] if there else None for i, there in enumerate(value)]
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


def _facts(content: bytes) -> dict[str, Any]:
    """The JSON of a safetensors header, which `load` leaves out."""
    length = int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["handoff"])
    if facts["format"] != FORMAT:
        raise ValueError(f"the hand-off has format {facts['format']!r}, this version of the lab reads {FORMAT}")
    if set(facts) != _FIELDS:
        raise ValueError(f"these bytes are no hand-off: fields {', '.join(sorted(set(facts) ^ _FIELDS))}")
    return facts


def _put_together(cls, facts: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Handoff:
    dtype = _DTYPES[facts["dtype"]]
    scales = {name.removeprefix("scale."): tensors.pop(name) for name in list(tensors) if name.startswith("scale.")}
    for name, scale in scales.items():
        tensors[name] = (tensors[name].float() * scale).to(dtype)
    prompt = {name.removeprefix("prompt."): _wide(x) for name, x in tensors.items() if name.startswith("prompt.")}
    return cls(
        tensors["latent"], facts["index"], facts["steps"], facts["scheduler"], facts["config"],
        _solver(facts["numbers"], tensors), facts["guidance"], prompt, facts["seed"], tensors.get("noise"),
        facts["error"],
    )  # fmt: skip


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.is_floating_point() else x.to(torch.int64)


def _check(made: Handoff) -> None:
    """ValueError in one line unless every part is what `to_bytes` would write."""
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (made.index, made.steps))
    demands = {
        f"step {made.index!r} of {made.steps!r}": whole and 0 <= made.index <= made.steps <= _MOST_STEPS,
        f"guidance {made.guidance!r}": isinstance(made.guidance, (int, float)) and math.isfinite(made.guidance),
        f"error {made.error!r}": isinstance(made.error, (int, float)) and math.isfinite(made.error),
        f"seed {made.seed!r}": made.seed is None or isinstance(made.seed, int),
        f"scheduler {made.scheduler!r}": isinstance(made.scheduler, str) and isinstance(made.config, dict),
        f"latent of shape {tuple(made.latent.shape)}": made.latent.ndim == 4 and made.latent.numel() > 0,
        f"latent of type {made.latent.dtype}": made.latent.dtype in _DTYPES.values(),
        "a generator's state": made.noise is None or (made.noise.dtype == torch.uint8 and made.noise.ndim == 1),
        "prompts of another batch": all(x.ndim and len(x) == len(made.latent) for x in made.prompt.values()),
        "numbers that are not finite": all(_finite(x) for x in [made.latent, *made.prompt.values()]),
        "a solver's memory of another shape": _fits(made),
    }
    for what, holds in demands.items():
        if not holds:
            raise ValueError(f"the hand-off holds {what}, which is not allowed: ask the other side again")


def _fits(made: Handoff) -> bool:
    """Whether the solver's memory is finite, latents of the latent's shape, numbers within the steps."""
    for value in made.solver.values():
        listed = value if isinstance(value, list) else []
        if any(x is not None and (x.shape != made.latent.shape or not _finite(x)) for x in listed):
            return False
        if isinstance(value, torch.Tensor) and not (
            value.ndim == 1 and len(value) <= _MOST_STEPS + 1 and _finite(value)
        ):
            return False
        if isinstance(value, int) and not 0 <= value <= _MOST_STEPS:
            return False
    return True


def _finite(x: torch.Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, list) else value for name, value in state.items()}
