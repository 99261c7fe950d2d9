"""Schedulers of any kind: opened anew, stepped, and what they remember between two steps found and put back.

What a scheduler changes as it steps is found by rehearsing the trajectory with a toy latent, never by its name: the
rehearsal says what is remembered before each step, whether noise is drawn, and whether all of it can be handed over.
"""

import inspect
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .schedules import calls_before, close, copied, is_plain, made, opened, plain, same, set_timesteps

_FIXED = "sigmas"  # given by config and N; they travel because two machines may round them differently
_REHEARSING = threading.Lock()  # the global generator is set in it, to see who draws from it
_PROBED = 4  # steps after which is seen what a trajectory changes by itself
_TOY = (2, 4, 3, 5)  # a shape that no list of times or sigmas has by chance
_ALL_CUTS = 40  # steps up to which a rehearsal hands over before each of them
_OTHERS = (
    "give e.g. DPMSolverMultistepScheduler, PNDMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler"
)


def is_finite(x: torch.Tensor) -> bool:
    """Whether all numbers are finite; a tensor of the meta device has none."""
    return x.is_meta or bool(torch.isfinite(x).all())


def is_flow(scheduler: Any) -> bool:
    """Whether it solves a flow, from noise to picture in a straight line, and not a diffusion."""
    return flows(type(scheduler).__name__, scheduler.config)


def flows(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a scheduler of this class and config does."""
    is_set = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return bool(is_set) or name.startswith("FlowMatch")


class NotFinite(ValueError):
    """A step that made numbers that are not finite, in one line."""


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What a toy latent tells of a scheduler of N steps.

    `memory[i]` is what it remembers before step i, `calls[i]` how often a model has been asked by then, for i in 0..N;
    `draws` whether it asks its generator for noise; `fault` why it cannot be handed over between two steps, '' if it
    can. `idle` is such a scheduler before its first step, to be copied.
    """

    idle: Any
    memory: tuple[Mapping[str, Any], ...]
    calls: tuple[int, ...]
    draws: bool
    fault: str


def fresh(scheduler: Any, steps: int, device: Any = None) -> Any:
    """A new scheduler of the same config with `steps` timesteps; the one given is not touched.

    ValueError in one line if it cannot take so many steps, or makes numbers that are not finite.
    """
    solver = deepcopy(rehearsal(scheduler, steps).idle)  # some take a third of a second to be made
    if device is not None and torch.device(device).type != "cpu":
        set_timesteps(solver, steps, schedule_config(scheduler), device)
    return solver


def rehearsal(scheduler: Any, steps: int) -> Rehearsal:
    """The scheduler's N steps rehearsed; ValueError in one line if it cannot take them."""
    kind: Any = type(scheduler)
    return _rehearsed(kind, json.dumps(schedule_config(scheduler)), steps)


def first_sigma(scheduler: Any) -> Any:
    """What normal noise is multiplied by before the first step; 1 in flow matching, whose schedulers do not say it."""
    return getattr(scheduler, "init_noise_sigma", 1.0)


def calls(scheduler: Any, steps: int) -> tuple[int, ...]:
    """How often a model is asked before each of N steps, and in all, (N + 1,): solvers of second order ask it twice."""
    return rehearsal(scheduler, steps).calls


def first_step(scheduler: Any) -> int:
    """The first step that is taken: 0, or a later one of a picture that is drawn over (`families.scheduled`)."""
    return getattr(scheduler, "timestep_options", {}).get("begin", 0)


def schedule_config(scheduler: Any) -> dict[str, Any]:
    """A scheduler's config as JSON keeps it, and as `with` what else makes its schedule.

    That is what `families.scheduled` hands to `set_timesteps`, and as `set` the attributes that were changed after it
    was made, as `set_shift` does. ValueError in one line where one of these is more than a number or a word.
    """
    config, options = plain(scheduler.config), getattr(scheduler, "timestep_options", {})
    config |= {"with": options} if options else {}
    settings = _settings(scheduler, config)
    return config | ({"with": {**options, "set": settings}} if settings else {})


def _settings(scheduler: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that were changed by hand: neither `set_timesteps` nor `step` makes them what they are."""
    kind: Any = type(scheduler)
    new, changed = _new(kind, json.dumps(config)), {}
    for name, value in vars(scheduler).items() if new is not None else ():
        if name in vars(new) and is_plain(value) and not same(value, vars(new)[name]):
            changed[name] = value
    if not changed:
        return {}
    rehearsed = _rehearsed(kind, json.dumps(config), _PROBED)
    remembered = {name for memory in rehearsed.memory for name in memory}
    probe = deepcopy(new)
    for name, value in changed.items():
        setattr(probe, name, value)
    set_timesteps(probe, _PROBED, config)
    idle = vars(rehearsed.idle)
    left = {
        name: value
        for name, value in changed.items()
        if name not in remembered and same(vars(new)[name], idle[name]) and not same(vars(probe)[name], idle[name])
    }
    for name, value in left.items():
        if isinstance(value, list | torch.Tensor | np.ndarray):
            raise ValueError(
                f"{kind.__name__}: its {name!r} was changed after it was made, which does not travel: make it by "
                "from_config(scheduler.config, ...) as it should be"
            )
    return {name: copied(value) for name, value in left.items()}


@lru_cache(32)
def _new(kind: Any, config: str) -> Any:
    """A scheduler of this config before `set_timesteps`, None where none can be made: why is told by a rehearsal."""
    try:
        return made(kind, json.loads(config))
    except Exception:
        return None


def solver_state(scheduler: Any, rehearsed: Rehearsal, index: int) -> dict[str, Any]:
    """What a scheduler remembers before step `index`: numbers, tensors and lists of them (None where not filled)."""
    return {name: copied(getattr(scheduler, name)) for name in rehearsed.memory[index]}


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
        setattr(solver, name, _moved(copied(value), latent) if name != _FIXED else value)
    return solver


# -- rehearsal ---------------------------------------------------------------------------------------------------------


@lru_cache(32)
def _rehearsed(kind: type, config: str, steps: int) -> Rehearsal:
    try:
        with _REHEARSING, torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _walked_twice(kind, json.loads(config), steps)
    except NotFinite:
        raise
    except Exception as error:  # whatever a scheduler of another kind raises where it is used as one of these
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise ValueError(f"{kind.__name__} cannot take {steps} steps here ({reason}): {_OTHERS}") from error


def _walked_twice(kind: type, config: Mapping[str, Any], steps: int) -> Rehearsal:
    """Once in one go, and once handed over at many steps, with the global generator elsewhere."""
    idle = opened(kind, config, steps)
    solver = deepcopy(idle)
    untouched, before = {name: _deep(value) for name, value in vars(solver).items()}, calls_before(solver, steps)
    generator, first = torch.Generator().manual_seed(0), getattr(solver, "first_step", 0)
    x = torch.randn(_TOY, generator=generator) * first_sigma(solver)
    # before the first step all is as it was opened
    latents, memory, noise = [x], [_changed(solver, idle)], [generator.get_state()]
    latents, memory, noise = latents * (first + 1), memory * (first + 1), noise * (first + 1)
    torch.default_generator.manual_seed(0)  # not the other devices', which are not forked
    for index in range(first, steps):
        latents.append(_taken(solver, latents[-1], before[index : index + 2], generator))
        memory.append(_changed(solver, idle))
        noise.append(generator.get_state())
    seen = idle, tuple(memory), before, not torch.equal(noise[0], noise[-1])
    uncarried = {name: value for name, value in vars(solver).items() if not _carried(value)}
    kept = [name for name, value in uncarried.items() if not same(value, untouched.get(name))]
    if kept:
        return Rehearsal(*seen, f"{kind.__name__} cannot be handed over: its {kept[0]!r} does not travel; {_OTHERS}")
    cuts = [cut for cut in _cuts(steps) if cut > first]
    torch.default_generator.manual_seed(1)
    for begin, end in zip(cuts, [*cuts, steps][1:], strict=True):
        solver, x = deepcopy(idle), latents[begin]
        for name, value in memory[begin].items():
            setattr(solver, name, copied(value))
        generator.set_state(noise[begin])
        for index in range(begin, end):
            x = _taken(solver, x, before[index : index + 2], generator)
        if not torch.equal(x, latents[end]):
            fault = f"{kind.__name__} cannot be handed over before step {begin}: what it keeps between steps does not "
            return Rehearsal(*seen, f"{fault}travel; {_OTHERS}")
    return Rehearsal(*seen, "")


def _cuts(steps: int) -> list[int]:
    """Where a rehearsal hands over: before every step, or of many steps the first and the last ones and the middle."""
    near = range(1, steps) if steps <= _ALL_CUTS else [*range(1, 9), steps // 2, *range(steps - 8, steps)]
    return list(near)


def _taken(solver: Any, x: torch.Tensor, within: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """A toy latent after the calls of a step."""
    for call in range(*within):
        x = stepped(solver, _toy, x, call, generator)
    return x


def _toy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x.tanh() / 2


def stepped(scheduler: Any, predict: Callable, latent: torch.Tensor, index: int, generator: Any) -> torch.Tensor:
    t = scheduler.timesteps[index]
    draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    scaled = scheduler.scale_model_input(latent, t) if hasattr(scheduler, "scale_model_input") else latent
    pred = predict(scaled, t)
    after = scheduler.step(pred, t, latent, **draws, return_dict=False)[0]
    if not is_finite(after):
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
        name: copied(value)
        for name, value in vars(scheduler).items()
        if _carried(value) and (name == _FIXED or name not in before or not same(value, before[name]))
    }


def _carried(value: Any) -> bool:
    if isinstance(value, list):
        return all(_carried(x) and not isinstance(x, list | bool) for x in value)
    if isinstance(value, torch.Tensor):  # a latent, or a list of numbers
        return value.shape == _TOY or value.ndim < 2
    return value is None or isinstance(value, bool | int | float | str | np.number | torch.Size)


def _deep(value: Any) -> Any:
    """The value apart from what may be changed in place; what cannot be copied is compared by what it is."""
    try:
        return deepcopy(value) if isinstance(value, dict | list | set | np.ndarray | torch.Tensor) else value
    except (TypeError, RuntimeError):
        return value


def _moved(value: Any, latent: torch.Tensor) -> Any:
    if isinstance(value, list):
        return [_moved(x, latent) for x in value]
    return value.to(latent.device) if isinstance(value, torch.Tensor) else value


def _alike(state: Mapping[str, Any], expected: Mapping[str, Any], name: str, latent: torch.Tensor) -> bool:
    return name in state and name in expected and _fits(state[name], expected[name], latent)


def _fits(given: Any, expected: Any, latent: torch.Tensor) -> bool:
    """Whether a value is the rehearsal's: a latent in place of a toy, all else equal up to rounding."""
    if isinstance(expected, list):
        if [x for x in expected if type(x) is int] == list(_TOY[2:]):  # a size that FlowMatchLCMScheduler keeps
            return given == list(latent.shape[2:])
        if not isinstance(given, list) or len(given) != len(expected):
            return False
        return all(_fits(value, other, latent) for value, other in zip(given, expected, strict=True))
    if not isinstance(expected, torch.Tensor):
        return type(given) is type(expected) and given == expected
    if not isinstance(given, torch.Tensor):
        return False
    if expected.shape == _TOY:
        return given.shape == latent.shape and given.is_floating_point() and is_finite(given)
    near = given.shape == expected.shape and given.dtype == expected.dtype
    return near and close(given.cpu().double(), expected.cpu().double(), 1e-4)
