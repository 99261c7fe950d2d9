"""What a seed gives need not cross the boundary: noise before the first step, and where a generator stands."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from .editing import generators, normal

_LARGEST, _MOST = 1 << 24, 1 << 26  # numbers of a latent, and drawn again in all: less than a second


def left_out(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What says how a hand-off's noise and its generator come from its seed, {} where they do not.

    `shape` is the latent's; `scale` is there where the latent is noise times it, `draws` where the generator stands
    behind so many latents of noise, the first included. Either is tried before it is told: bits of another kind are
    sent.
    """
    latent, seed, first = fields["latent"], fields["seed"], fields["config"].get("with", {}).get("begin", 0)
    if seed is None or latent.is_meta or latent.numel() > _LARGEST:
        return {}
    facts: dict[str, Any] = {}
    generator = generators(seed)
    noise = normal(latent.shape, generator, latent.dtype)
    if fields["index"] == first == 0:
        scale = _scale(latent.cpu(), noise, fields["solver"])
        facts |= {} if scale is None else {"scale": scale}
    draws = None if fields["noise"] is None else _draws(fields, generator)
    facts |= {} if draws is None else {"draws": draws}
    return facts and {"shape": list(latent.shape), **facts}


def drawn_again(facts: Mapping[str, Any], seed: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors `latent` and `noise` that `left_out` has left out."""
    shape, generator = facts["shape"], generators(seed)
    noise = normal(shape, generator, dtype)
    tensors = {"latent": noise * facts["scale"]} if "scale" in facts else {}
    if "draws" in facts:
        for _ in range(facts["draws"] - 1):
            normal(shape, generator, dtype)
        tensors["noise"] = state(generator)
    return tensors


def validate_seeding(facts: Any, seed: Any) -> None:
    """ValueError in one line unless `left_out` could have said this; nothing is drawn before."""
    shape = facts.get("shape") if isinstance(facts, dict) else None
    holds = (
        isinstance(shape, list)
        and len(shape) == 4
        and all(type(n) is int and 0 < n < 1 << 16 for n in shape)
        and math.prod(shape) <= _LARGEST
        and set(facts) <= {"shape", "scale", "draws"}
        and type(facts.get("scale", 1.0)) in (int, float)
        and math.isfinite(facts.get("scale", 1.0))
        and type(facts.get("draws", 1)) is int
        and 0 < facts.get("draws", 1)
        and math.prod(shape) * facts.get("draws", 1) <= _MOST
        and is_seed(seed, shape[0])
    )
    if not holds:
        raise ValueError(f"the hand-off's noise {facts!r:.120} of seed {seed!r:.40} cannot be drawn again")


def is_seed(seed: Any, count: int) -> bool:
    """Whether this is a seed of 64 bits, or a list of one for each of so many pictures."""
    if isinstance(seed, list):
        return len(seed) == count and all(type(n) is int and -(2**63) <= n < 2**63 for n in seed)
    return type(seed) is int and -(2**63) <= seed < 2**63


def state(generator: Any) -> torch.Tensor:
    """A generator's state (n,), or those of a list (B, n)."""
    return torch.stack([g.get_state() for g in generator]) if isinstance(generator, list) else generator.get_state()


def _scale(latent: torch.Tensor, noise: torch.Tensor, solver: Mapping[str, Any]) -> float | None:
    """The number that makes the noise the latent, bit for bit; None if none does.

    A scheduler's first sigma is 1, its largest sigma m, or sqrt(m^2 + 1): these are tried, and the quotient.
    """
    at = int(noise.abs().argmax())
    candidates = [1.0, float(latent.flatten()[at].double() / noise.flatten()[at].double())]
    if isinstance(solver.get("sigmas"), torch.Tensor) and solver["sigmas"].numel():
        most = solver["sigmas"].max()
        candidates += [float(most), float((most**2 + 1) ** 0.5), float((float(most) ** 2 + 1) ** 0.5)]
    return next((s for s in candidates if math.isfinite(s) and torch.equal(noise * s, latent)), None)


def _draws(fields: Mapping[str, Any], generator: Any) -> int | None:
    """How many latents of noise lie before the state of a hand-off's generator, None if no number of them does."""
    latent = fields["latent"]
    for draws in range(1, min(2 * fields["index"] + 2, _MOST // latent.numel()) + 1):
        if torch.equal(state(generator), fields["noise"]):
            return draws
        normal(latent.shape, generator, latent.dtype)
    return None
