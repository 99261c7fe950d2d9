"""One trajectory over several U-Nets: one scheduler, set once, whose history is carried from model to model.

What a scheduler changes as it steps is found by rehearsing the trajectory with a toy latent, never by its name: the
rehearsal says what is remembered before each step, whether noise is drawn, and whether all of it can be handed over.
"""

import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from . import equations as eq

_FIXED = "sigmas"  # given by config and N; they travel because two machines may round them differently
_TOY = (2, 4, 3, 5)  # a shape that no list of times or sigmas has by chance
_ONE_CALL = (
    "give one of one call a step, e.g. DPMSolverMultistepScheduler, DDIMScheduler, EulerDiscreteScheduler, LCMScheduler"
)


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What every U-Net of a trajectory is conditioned on beside latent and time.

    `text` and `negative` are (B, L, D) embeddings, `added` and `added_negative` the SDXL extras (`text_embeds`,
    `time_ids`), each (B, ...). Guidance above 1 runs two inputs a picture, except in a U-Net that embeds the guidance
    itself (`time_cond_proj_dim`).
    """

    text: torch.Tensor
    negative: torch.Tensor | None = None
    guidance: float = 7.5
    added: Mapping[str, torch.Tensor] = field(default_factory=dict)
    added_negative: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: Any, dtype: torch.dtype | None = None) -> "Conditioning":
        """This conditioning on another device or in another precision."""
        negative = None if self.negative is None else self.negative.to(device, dtype)
        extras = ({name: x.to(device, dtype) for name, x in part.items()} for part in (self.added, self.added_negative))
        return Conditioning(self.text.to(device, dtype), negative, self.guidance, *extras)


class NotFinite(ValueError):
    """A step that made numbers that are not finite, in one line."""


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What a toy latent tells of a scheduler of N steps.

    `memory[i]` is what it remembers before step i, for i in 0..N; `draws` whether it asks its generator for noise;
    `fault` why it cannot be handed over between two steps, '' if it can.
    """

    memory: tuple[Mapping[str, Any], ...]
    draws: bool
    fault: str


def fresh(scheduler: Any, steps: int, device: Any = None) -> Any:
    """A new scheduler of the same config with `steps` timesteps; the one given is not touched.

    ValueError in one line if it cannot take so many steps of one model call each, or makes numbers that are not finite.
    """
    rehearsal(scheduler, steps)
    return _opened(type(scheduler), scheduler.config, steps, device)


def rehearsal(scheduler: Any, steps: int) -> Rehearsal:
    """The scheduler's N steps rehearsed; ValueError in one line if it cannot take them."""
    kind: Any = type(scheduler)
    return _rehearsed(kind, json.dumps(plain(scheduler.config)), steps)


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config as JSON keeps it, without the keys that are diffusers' own."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    return json.loads(json.dumps(kept, default=lambda x: x.tolist()))


def noise_prediction(unet: Any, latent: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
    """The guided prediction for an input (B, C, h, w) that the scheduler has scaled."""
    width = _guidance_width(unet)
    if width is not None:
        w = torch.tensor(cond.guidance - 1).repeat(len(latent))
        guidance_emb = eq.guidance_embedding(w, width).to(latent.device, latent.dtype)  # (B, width)
        return _output(unet, latent, t, cond.text, cond.added, guidance_emb)
    if not doubles(unet, cond):
        return _output(unet, latent, t, cond.text, cond.added)
    assert cond.negative is not None  # or there would be nothing to double
    # one call of 2 B inputs: first those without the prompt, then those with it
    text = torch.cat([cond.negative, cond.text])
    added = {name: torch.cat([cond.added_negative[name], cond.added[name]]) for name in cond.added}
    unconditional, conditional = _output(unet, torch.cat([latent, latent]), t, text, added).chunk(2)
    return eq.guided(unconditional, conditional, cond.guidance)


class GuidedUNet(nn.Module):
    """A U-Net with its conditioning: the guided prediction for (latent, t), as one module whose cost is counted."""

    def __init__(self, unet: nn.Module, cond: Conditioning) -> None:
        super().__init__()
        self.unet, self.cond = unet, cond

    def forward(self, latent: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return noise_prediction(self.unet, latent, t, self.cond)


def doubles(unet: Any, cond: Conditioning) -> bool:
    """Whether guidance makes this U-Net run twice a step."""
    return cond.guidance > 1 and cond.negative is not None and _guidance_width(unet) is None


def trajectory(
    unets: Sequence[nn.Module],
    scheduler: Any,
    latent: torch.Tensor,
    cond: Conditioning,
    steps: Sequence[int],
    generator: torch.Generator | None = None,
    begin: int = 0,
) -> Iterator[torch.Tensor]:
    """The latent after each step: `steps[i]` steps of `unets[i]`, in that order, on one schedule of sum(steps).

    `scheduler` comes from `fresh(scheduler, sum(steps))`, or from `restored`, with the index that it stands at as
    `begin`. `latent` is (B, C, h, w). Only schedulers that draw noise (LCM) ask `generator`.
    """
    chosen = eq.model_of_step(list(steps))
    for index in range(begin, len(chosen)):
        latent = step(unets[chosen[index]], scheduler, latent, cond, index, generator)
        yield latent


@torch.no_grad()
def step(
    unet: nn.Module, scheduler: Any, latent: torch.Tensor, cond: Conditioning, index: int, generator: Any = None
) -> torch.Tensor:
    """The latent after step `index` of the scheduler's timesteps; ValueError where it is not finite."""
    return _stepped(scheduler, lambda x, t: noise_prediction(unet, x, t, cond), latent, index, generator)


def solver_state(scheduler: Any, rehearsed: Rehearsal, index: int) -> dict[str, Any]:
    """What a scheduler remembers before step `index`: numbers, tensors and lists of them (None where not filled)."""
    return {name: _copied(getattr(scheduler, name)) for name in rehearsed.memory[index]}


def restored(scheduler: Any, steps: int, state: Mapping[str, Any], index: int, latent: torch.Tensor) -> Any:
    """A fresh scheduler that remembers `state` before step `index`.

    ValueError unless that is what the rehearsal remembers there: the same names, numbers, times and lengths, and
    finite tensors of the shape of `latent`.
    """
    expected = rehearsal(scheduler, steps).memory[index]
    wrong = [name for name in sorted({*state, *expected}) if not _alike(state, expected, name, latent)]
    if wrong:
        raise ValueError(
            f"the hand-off's memory ({', '.join(wrong)[:80]}) is not what a {type(scheduler).__name__} keeps before "
            f"step {index} of {steps}: take the same scheduler on both sides, or ask again"
        )
    solver = fresh(scheduler, steps, latent.device)
    for name, value in state.items():
        setattr(solver, name, _moved(value, latent) if name != _FIXED else value)
    return solver


# -- rehearsal ---------------------------------------------------------------------------------------------------------


@lru_cache(32)
def _rehearsed(kind: type, config: str, steps: int) -> Rehearsal:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _walked_twice(kind, json.loads(config), steps)
    except NotFinite:
        raise
    except Exception as error:  # whatever a scheduler of another kind raises where it is used as one of these
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise ValueError(f"{kind.__name__} cannot take {steps} steps here ({reason}): {_ONE_CALL}") from error


def _walked_twice(kind: type, config: Mapping[str, Any], steps: int) -> Rehearsal:
    """Once in one go, and once handed over at several steps, with the global generator elsewhere."""
    solver, idle = (_opened(kind, config, steps) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOY, generator=generator) * solver.init_noise_sigma
    latents, memory, noise = [x], [_changed(solver, idle)], [generator.get_state()]
    torch.default_generator.manual_seed(0)  # not the other devices', which are not forked
    for index in range(steps):
        latents.append(_stepped(solver, _toy, latents[-1], index, generator))
        memory.append(_changed(solver, idle))
        noise.append(generator.get_state())
    cuts = sorted({k for k in (1, 2, 3, 4, 5, steps // 2, steps - 1) if 0 < k < steps})
    torch.default_generator.manual_seed(1)
    for begin, end in zip(cuts, [*cuts, steps][1:], strict=True):
        solver, x = _opened(kind, config, steps), latents[begin]
        for name, value in memory[begin].items():
            setattr(solver, name, _copied(value))
        generator.set_state(noise[begin])
        for index in range(begin, end):
            x = _stepped(solver, _toy, x, index, generator)
        if not torch.equal(x, latents[end]):
            fault = f"{kind.__name__} cannot be handed over before step {begin}: what it keeps between steps does not "
            return Rehearsal(tuple(memory), False, f"{fault}travel; {_ONE_CALL}")
    return Rehearsal(tuple(memory), not torch.equal(noise[0], noise[-1]), "")


def _toy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x.tanh() / 2


def _opened(kind: Any, config: Mapping[str, Any], steps: int, device: Any = None) -> Any:
    with warnings.catch_warnings():  # schedulers of diffusers meet numpy 2
        warnings.filterwarnings("ignore", "__array", DeprecationWarning)
        solver = kind.from_config(config)
        solver.set_timesteps(steps, device=device)
    if len(solver.timesteps) != steps:
        raise ValueError(f"it takes {len(solver.timesteps)} model calls")
    return solver


def _stepped(scheduler: Any, predict: Callable, latent: torch.Tensor, index: int, generator: Any) -> torch.Tensor:
    t = scheduler.timesteps[index]
    draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    pred = predict(scheduler.scale_model_input(latent, t), t)
    after = scheduler.step(pred, t, latent, **draws, return_dict=False)[0]
    if not torch.isfinite(after).all():
        raise NotFinite(_not_finite(scheduler, index))
    return after


def _not_finite(scheduler: Any, index: int) -> str:
    config, name = scheduler.config, type(scheduler).__name__
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type") != "v_prediction":
        return (
            f"{name}: rescale_betas_zero_snr=True with prediction_type={config.get('prediction_type')!r} is not "
            "allowed: give a model of 'v_prediction', or rescale_betas_zero_snr=False"
        )
    return f"{name} made numbers that are not finite in step {index + 1}: take float32 and the model's own scheduler"


def _changed(scheduler: Any, idle: Any) -> dict[str, Any]:
    """Copies of what can be carried and is not as in an idle scheduler, and the sigmas."""
    before = vars(idle)
    return {
        name: _copied(value)
        for name, value in vars(scheduler).items()
        if _carried(value) and (name == _FIXED or name not in before or not _same(value, before[name]))
    }


def _carried(value: Any) -> bool:
    if isinstance(value, list):
        return all(_carried(x) and not isinstance(x, list | bool) for x in value)
    return value is None or isinstance(value, bool | int | float | np.number | torch.Tensor)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def _copied(value: Any) -> Any:
    """The value for itself: its list is another one, its numbers are Python's."""
    if isinstance(value, list):
        return [_copied(x) for x in value]
    return value.item() if isinstance(value, np.number) else value


def _moved(value: Any, latent: torch.Tensor) -> Any:
    if isinstance(value, list):
        return [_moved(x, latent) for x in value]
    return value.to(latent.device) if isinstance(value, torch.Tensor) else value


def _alike(state: Mapping[str, Any], expected: Mapping[str, Any], name: str, latent: torch.Tensor) -> bool:
    return name in state and name in expected and _fits(state[name], expected[name], latent)


def _fits(given: Any, expected: Any, latent: torch.Tensor) -> bool:
    """Whether a value is the rehearsal's: a latent in place of a toy, all else equal up to rounding."""
    if isinstance(expected, list):
        if not isinstance(given, list) or len(given) != len(expected):
            return False
        return all(_fits(value, other, latent) for value, other in zip(given, expected, strict=True))
    if not isinstance(expected, torch.Tensor):
        return type(given) is type(expected) and given == expected
    if not isinstance(given, torch.Tensor):
        return False
    if expected.shape == _TOY:
        return given.shape == latent.shape and given.is_floating_point() and bool(torch.isfinite(given).all())
    near = given.shape == expected.shape and given.dtype == expected.dtype
    return near and torch.allclose(given.cpu().double(), expected.cpu().double(), rtol=1e-4, atol=1e-6)


def _guidance_width(unet: Any) -> int | None:
    """How wide the guidance's embedding is, None for a U-Net that embeds none."""
    return getattr(unet.config, "time_cond_proj_dim", None)


def _output(
    unet: Any,
    latent: torch.Tensor,
    t: torch.Tensor,
    text: torch.Tensor,
    added: Mapping[str, torch.Tensor],
    guidance_emb: torch.Tensor | None = None,
) -> torch.Tensor:
    """The U-Net's output (B, C, h, w) for latents of that shape, text (B, L, D), SDXL's extras (B, ...)."""
    extras = {"timestep_cond": guidance_emb} if guidance_emb is not None else {}
    return unet(
        latent, t, encoder_hidden_states=text, added_cond_kwargs=dict(added) or None, return_dict=False, **extras
    )[0]
