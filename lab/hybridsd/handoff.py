"""What crosses the boundary between two machines: the latent, the solver's memory, and what they were made with."""

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from . import wire
from .sampling import Conditioning, plain, rehearsal, restored, solver_state, trajectory


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
        return None if self.noise is None else torch.Generator().set_state(self.noise)

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
        prompt = {name: x[:1] for name, x in self.prompt.items()}
        return replace(self, latent=self.latent[:1], solver=solver, prompt=prompt)

    def picture_bytes(self, int8: bool = False) -> int:
        """Bytes of one picture's hand-off, the same for every batch and seed that it is taken from."""
        return len(replace(self.first(), seed=0).to_bytes(int8=int8))


def begin(
    scheduler: Any,
    latent: torch.Tensor,
    N: int,
    guidance: float,
    *,
    prompt: Mapping[str, torch.Tensor] | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Handoff:
    """The hand-off before the first step: `latent` is noise already scaled by `init_noise_sigma`.

    ValueError where the scheduler cannot be handed over, or draws noise and has no generator.
    """
    rehearsed, name = rehearsal(scheduler, N), type(scheduler).__name__
    if rehearsed.fault:
        raise ValueError(rehearsed.fault)
    noise = None
    if rehearsed.draws:
        if generator is None:
            raise ValueError(f"{name} draws noise between its steps: give the generator, or the two halves draw others")
        noise = generator.get_state()
    memory = dict(rehearsed.memory[0])
    return Handoff(
        latent, 0, N, name, plain(scheduler.config), memory, guidance, prompt=prompt or {}, seed=seed, noise=noise
    )


def advance(handoff: Handoff, unet: nn.Module, scheduler: Any, cond: Conditioning, until: int) -> Handoff:
    """The hand-off before step `until`, the steps up to it taken by `unet`; the scheduler given is not touched."""
    if not handoff.index <= until <= handoff.steps:
        raise ValueError(f"until={until!r} is not allowed: give a step in {handoff.index}..{handoff.steps}")
    generator, solver = handoff.generator(), resumed(handoff, scheduler)
    latents = trajectory([unet], solver, handoff.latent, cond, [until], generator, handoff.index)
    latent = deque(latents, maxlen=1).pop() if handoff.index < until else handoff.latent
    noise = None if generator is None else generator.get_state()
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
        "latent's shape": after.latent.shape == state.latent.shape and after.latent.dtype == state.latent.dtype,
        "prompt": after.prompt.keys() == state.prompt.keys()
        and all(torch.equal(after.prompt[name].cpu(), x.cpu()) for name, x in state.prompt.items()),
    }
    other = [name for name, same in alike.items() if not same]
    if other:
        raise ValueError(f"{after!r} has another {', another '.join(other)} than was asked")
    resumed(after, scheduler)


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
