"""What crosses the boundary between two machines: the latent, the solver's memory, and what they were made with."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from . import equations as eq
from . import families, wire
from .editing import Repaint, edit_noise, generators, normal
from .sampling import Conditioning, trajectory
from .schedules import plain
from .seeding import state as generator_state
from .solvers import first_step, rehearsal, restored, schedule_config, solver_state


@dataclass(frozen=True, eq=False)
class Handoff:
    """A trajectory that stands before step `index` of `steps`.

    `latent` (B, C, h, w); `scheduler` and `config` name the solver, `solver` is its memory; `prompt` holds token ids by
    name (or embeddings, where the other side has no text encoder); `seed` is a number, or one for each picture; `noise`
    is the state of the generator (n,), or of one for each picture (B, n), kept only where the solver draws noise;
    `error` the largest relative error that a passage, in int8 or to a lower precision, has left in the latent;
    `painting` holds the latent `image` (B, C, h, w) of a picture that is painted anew where `mask` (B, 1, h, w) is
    true, empty for one that is drawn whole; `asked` the digest of the request that this answers, '' if it answers none.
    """

    latent: torch.Tensor
    index: int
    steps: int
    scheduler: str
    config: Mapping[str, Any]
    solver: Mapping[str, Any]
    guidance: float
    prompt: Mapping[str, torch.Tensor] = field(default_factory=dict)
    seed: int | list[int] | None = None
    noise: torch.Tensor | None = None
    error: float = 0.0
    painting: Mapping[str, torch.Tensor] = field(default_factory=dict)
    asked: str = ""

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.latent.shape))
        kind = str(self.latent.dtype).removeprefix("torch.")
        return f"Handoff(step {self.index} of {self.steps}, latent {shape} {kind}, {self.scheduler} {self.schedule})"

    @property
    def schedule(self) -> str:
        """Twelve hex digits that two machines compare: the scheduler's name and config."""
        return schedule_hash(self.scheduler, self.config)

    def generator(self) -> Any:
        """A generator that stands where the other side's stood, or a list of them for a list of seeds."""
        if self.noise is None:
            return None
        # copies: torch crashes on a state whose bytes are not aligned
        states = [torch.Generator().set_state(state.clone()) for state in self.noise.reshape(-1, self.noise.shape[-1])]
        return states if self.noise.ndim > 1 else states[0]

    def repaint(self) -> Repaint | None:
        """What keeps the picture outside its mask, None where nothing is kept."""
        if not self.painting:
            return None
        if self.seed is None:
            raise ValueError("a hand-off of a picture that is painted over has no seed: its noise cannot be made again")
        noise = edit_noise(self.seed, self.latent.shape).noise.to(self.latent.device)
        return Repaint(self.painting["image"], self.painting["mask"].to(self.latent.device), noise)

    def to(self, device: Any, dtype: torch.dtype) -> "Handoff":
        """This hand-off where another model computes; `error` then knows what the cast has cost the latent."""

        def cast(value: Any) -> Any:  # the solver's latents go with it, its numbers stay as exact as they are
            if isinstance(value, list):
                return [cast(x) for x in value]
            if not isinstance(value, torch.Tensor) or value.shape != self.latent.shape:
                return value
            return value.to(device, dtype if value.dtype == self.latent.dtype else value.dtype)

        error = eq.relative_error(self.latent, self.latent.to(dtype)) if dtype != self.latent.dtype else 0.0
        solver = {name: cast(value) for name, value in self.solver.items()}
        painting = {name: cast(x) for name, x in self.painting.items()}
        return replace(self, latent=cast(self.latent), solver=solver, painting=painting, error=max(self.error, error))

    def to_bytes(self, int8: bool = False) -> bytes:
        """One safetensors file; with `int8` the latent and the solver's latents in integers, a scale a channel."""
        return wire.encoded(vars(self), int8)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Handoff":
        """What `to_bytes` wrote; ValueError in one line for anything else."""
        return cls(**wire.decoded(content))

    def first(self) -> "Handoff":
        """The hand-off of the batch's first picture alone."""

        def cut(value: Any) -> Any:  # of the memory, what is as large as the latent holds one part a picture
            if isinstance(value, list):
                return [cut(x) for x in value]
            return value[:1] if isinstance(value, torch.Tensor) and value.shape == self.latent.shape else value

        solver = {name: cut(value) for name, value in self.solver.items()}
        prompt, painting = ({name: x[:1] for name, x in part.items()} for part in (self.prompt, self.painting))
        several = isinstance(self.seed, list)
        seed = self.seed[:1] if isinstance(self.seed, list) else self.seed
        noise = self.noise[:1] if several and self.noise is not None else self.noise
        parts: dict[str, Any] = {"solver": solver, "prompt": prompt, "painting": painting, "seed": seed, "noise": noise}
        return replace(self, latent=self.latent[:1], **parts)

    def picture_bytes(self, int8: bool = False) -> int:
        """Bytes of one picture's hand-off, the same for every batch and seed that it is taken from."""
        first, generator = self.first(), generators(0)
        normal(first.latent.shape, generator, first.latent.dtype)
        noise = None if self.noise is None else generator_state(generator)  # which its seed gives, as another's does
        return len(replace(first, seed=0, noise=noise).to_bytes(int8=int8))


def begin(
    scheduler: Any,
    latent: torch.Tensor,
    N: int,
    guidance: float,
    *,
    prompt: Mapping[str, torch.Tensor] | None = None,
    seed: int | list[int] | None = None,
    generator: Any = None,
    painting: Mapping[str, torch.Tensor] | None = None,
) -> Handoff:
    """The hand-off before the first step: `latent` is noise already scaled by `init_noise_sigma`.

    Or a noisy picture, where the scheduler's first step is a later one; `generator` may be a list of one a picture.

    ValueError where the scheduler cannot be handed over, or draws noise and has no generator.
    """
    rehearsed, name = rehearsal(scheduler, N), type(scheduler).__name__
    if rehearsed.fault:
        raise ValueError(rehearsed.fault)
    noise = None
    if rehearsed.draws:
        if generator is None:
            raise ValueError(f"{name} draws noise between its steps: give the generator, or the two halves draw others")
        noise = generator_state(generator)
    first = first_step(scheduler)
    return Handoff(
        latent,
        first,
        N,
        name,
        schedule_config(scheduler),
        dict(rehearsed.memory[first]),
        guidance,
        prompt=prompt or {},
        seed=seed,
        noise=noise,
        painting=painting or {},
    )


def advance(handoff: Handoff, unet: nn.Module, scheduler: Any, cond: Conditioning, until: int) -> Handoff:
    """The hand-off before step `until`, the steps up to it taken by `unet`; the scheduler given is not touched."""
    if not handoff.index <= until <= handoff.steps:
        raise ValueError(f"until={until!r} is not allowed: give a step in {handoff.index}..{handoff.steps}")
    generator, solver = handoff.generator(), resumed(handoff, scheduler)
    cond = families.painting_over(unet, cond, handoff.painting)
    drawing = generator, handoff.index, None if families.paints(unet) else handoff.repaint()
    latents = trajectory([unet], solver, handoff.latent, cond, [handoff.steps], *drawing)
    latent = handoff.latent
    for after in islice(latents, until - handoff.index):
        latent = after
    noise = None if generator is None else generator_state(generator)
    memory = solver_state(solver, rehearsal(scheduler, handoff.steps), until)
    return replace(handoff, latent=latent, index=until, solver=memory, noise=noise, asked="")


def resumed(handoff: Handoff, scheduler: Any) -> Any:
    """A copy of the scheduler that stands where the hand-off's stood; ValueError in one line unless all of it fits."""
    same_schedule(handoff, scheduler)
    rehearsed = rehearsal(scheduler, handoff.steps)
    if rehearsed.fault:
        raise ValueError(rehearsed.fault)
    if rehearsed.draws != (handoff.noise is not None):
        kind = "draws noise and the hand-off lacks" if handoff.noise is None else "draws no noise and the hand-off has"
        raise ValueError(f"{handoff.scheduler} {kind} a generator's state: take the same lab on both sides")
    return restored(scheduler, handoff.steps, handoff.solver, handoff.index, handoff.latent)


def validate_continued(after: Handoff, state: Handoff, until: int, scheduler: Any) -> None:
    """ValueError that names what differs, unless `after` is `state` taken to step `until`, as far as can be seen."""
    alike = {
        "step": after.index == until and after.steps == state.steps,
        "schedule": after.schedule == state.schedule,
        "guidance": after.guidance == state.guidance,
        "seed": after.seed == state.seed,
        "latent's shape": after.latent.shape == state.latent.shape,  # a cloud may have a precision of its own
        "prompt": _is_same(after.prompt, state.prompt),
        "picture": _is_same(after.painting, state.painting),
    }
    other = [name for name, same in alike.items() if not same]
    if other:
        raise ValueError(f"{after!r} has another {', another '.join(other)} than was asked")
    resumed(after, scheduler)


def _is_same(after: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> bool:
    """Whether the tensors are those of before, which the other side may have cast."""
    return after.keys() == before.keys() and all(
        torch.equal(after[name].cpu(), x.cpu().to(after[name].dtype)) for name, x in before.items()
    )


def cloud_half(
    unet: nn.Module, scheduler: Any, latent: torch.Tensor, cond: Conditioning, k: int, N: int, **context: Any
) -> Handoff:
    """The first k of N steps; `context` is what `begin` takes: prompt, seed, generator."""
    return advance(begin(scheduler, latent, N, cond.guidance, **context), unet, scheduler, cond, k)


def edge_half(handoff: Handoff, unet: nn.Module, scheduler: Any, cond: Conditioning) -> torch.Tensor:
    """The latent after the remaining steps, bit for bit what one machine would have made in fp32 and fp16."""
    return advance(handoff, unet, scheduler, cond, handoff.steps).latent


def same_schedule(handoff: Handoff, scheduler: Any) -> None:
    """ValueError that names what differs, unless the scheduler is the hand-off's."""
    name, config = type(scheduler).__name__, schedule_config(scheduler)
    if schedule_hash(name, config) == handoff.schedule:
        return
    theirs, mine = {"class": handoff.scheduler, **handoff.config}, {"class": name, **config}
    differs = [key for key in sorted(theirs | mine) if theirs.get(key) != mine.get(key)]
    shown = ", ".join(f"{key}: {theirs.get(key)!r} there, {mine.get(key)!r} here" for key in differs[:3])
    raise ValueError(f"the schedulers of both halves differ ({shown}): load both sides from one scheduler config")


def schedule_hash(name: str, config: Mapping[str, Any]) -> str:
    """Twelve hex digits of a scheduler's name and config."""
    return hashlib.sha256(json.dumps([name, plain(config)], sort_keys=True).encode()).hexdigest()[:12]
