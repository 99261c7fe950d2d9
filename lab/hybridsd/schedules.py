"""A scheduler opened for a trajectory: its config, what else makes its schedule, and comparing what it holds."""

import json
import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config as JSON keeps it, without the keys that are diffusers' own."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    return json.loads(json.dumps(kept, default=lambda x: x.tolist()))


def opened(kind: Any, config: Mapping[str, Any], steps: int) -> Any:
    """A scheduler of this class with `steps` timesteps; `config` is what `solvers.schedule_config` gives."""
    solver = made(kind, config)
    for name, value in config.get("with", {}).get("set", {}).items():
        setattr(solver, name, value)
    set_timesteps(solver, steps, config)
    return solver


def made(kind: Any, config: Mapping[str, Any]) -> Any:
    """A scheduler of this class before `set_timesteps`."""
    with warnings.catch_warnings():  # schedulers of diffusers meet numpy 2
        warnings.filterwarnings("ignore", "__array", DeprecationWarning)
        return kind.from_config({name: value for name, value in config.items() if name != "with"})


def set_timesteps(solver: Any, steps: int, config: Mapping[str, Any], device: Any = None) -> None:
    """`set_timesteps` with what `families.scheduled` has found: mu, sigmas on a line, the step that is the first."""
    options, further = config.get("with", {}), dict[str, Any]()
    if "mu" in options:
        further["mu"] = options["mu"]
    if options.get("linear"):
        further["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    if device is not None:
        further["device"] = device
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array", DeprecationWarning)
        solver.set_timesteps(steps, **further)
    first = options.get("begin", 0)
    if first:
        solver.first_step = first
    if first and hasattr(solver, "set_begin_index"):
        solver.set_begin_index(first * getattr(solver, "order", 1))


def calls_before(scheduler: Any, steps: int) -> tuple[int, ...]:
    """Model calls before each step and in all (N + 1,), as diffusers' pipelines count them.

    A solver of order n asks n times a step; what is more belongs to the first step (PNDM), what is less to the last.
    Where a picture is drawn over, the calls before its first step are left out and counted all the same.
    """
    total, order = len(scheduler.timesteps), getattr(scheduler, "order", 1)
    first = getattr(scheduler, "first_step", 0)
    warmup = max(0, total - order * steps)
    left_out = [order * k for k in range(first + 1)]
    before = (*left_out, *(warmup + order * k for k in range(first + 1, steps)), total)
    if any(a >= b for a, b in pairwise(before)):
        raise ValueError(f"it has {total} timesteps of order {order}")
    return before


def is_plain(value: Any) -> bool:
    """Whether a value is one that can be compared: a number, a word, an array of numbers, a list of these."""
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | np.number | np.ndarray | torch.Tensor)


def same(a: Any, b: Any) -> bool:
    """Whether two attributes are the same, bit for bit."""
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, torch.Tensor):
        alike = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return alike and close(a.cpu(), b.cpu(), 0.0)
    return type(a) is type(b) and a == b


def copied(value: Any) -> Any:
    """The value for itself: its list and its latents are others, its numbers are Python's."""
    if isinstance(value, list | torch.Size):
        return [copied(x) for x in value]
    if isinstance(value, torch.Tensor) and value.ndim > 1:  # PNDM adds to it in place
        return value.clone()
    return value.item() if isinstance(value, np.number) else value


def close(a: torch.Tensor, b: torch.Tensor, rtol: float) -> bool:
    """Whether numbers are equal up to rounding."""
    return torch.allclose(a, b, rtol, 1e-2 * rtol, equal_nan=True)  # KDPM2's sigmas between others end in NaN
