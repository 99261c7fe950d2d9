"""Latent consistency distillation: a U-Net that hears the guidance and jumps to the end from anywhere on the way."""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.fields import integer, real, validate
from ..core.task import evaluating
from ..core.training import Stage, Step, descend
from . import equations as eq
from .distillation import clipped, follow


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """The paper's settings of latent consistency distillation.

    levels: DDIM times between which one step is taught. guidance: the range that w is drawn from. decay: of the
    target's running mean. c: of the pseudo-Huber loss. data, scaling: of the boundary scalings, Eq. (12).
    """

    steps: int = 20_000
    lr: float = 1e-6
    levels: int = 50
    guidance: tuple[float, float] = (5.0, 15.0)
    decay: float = 0.95
    c: float = 0.001
    data: float = 0.5
    scaling: float = 10.0

    def __post_init__(self) -> None:
        validate(
            self, steps=integer(1), lr=real(above=0), levels=integer(1), decay=real(0, 1), c=real(above=0),
            data=real(above=0), scaling=real(above=0),
        )  # fmt: skip
        low, high = self.guidance
        if not 0 <= low <= high:
            raise ValueError(
                f"Consistency: guidance={self.guidance} is not allowed: give (low, high), 0 <= low <= high"
            )


def hearing_guidance(unet: Any, dimension: int = 256) -> Any:
    """A copy with `time_cond_proj`, which adds `dimension` x first width weights; they are drawn, the rest is kept.

    A U-Net that hears the guidance already is copied as it is.
    """
    made = deepcopy(unet)
    if made.config["time_cond_proj_dim"] is None:
        embedding = made.time_embedding
        like = embedding.linear_1.weight
        kind = {"device": like.device, "dtype": like.dtype}
        embedding.cond_proj = nn.Linear(dimension, embedding.linear_1.in_features, bias=False, **kind)
        made.register_to_config(time_cond_proj_dim=dimension)
    return made


def times(levels: int, T: int) -> torch.Tensor:
    """The DDIM times, (levels,), from T / levels - 1 up to T - 1."""
    if levels > T:
        raise ValueError(f"levels={levels} is not allowed: give at most the schedule's {T} times")
    return torch.arange(1, levels + 1) * (T // levels) - 1


def consistent(
    teacher: Any, student: Any, alphas: torch.Tensor, text: Callable, nothing: torch.Tensor,
    batches: Iterable, how: Consistency = Consistency(), *, checkpoint: str | Path | None = None,
    owner: str = "consistency", progress: bool = True, target: Any | None = None,
) -> Iterator[Step]:  # fmt: skip
    """Train `student` in place so that what it says at one time is what its running mean says one DDIM step later.

    Batches are (latents (B, C, h, w), token ids); `text(ids)` gives embeddings, `nothing` (1, L, D) is the embedding
    of no prompt. `alphas` are the schedule's cumulative products, the U-Nets predict noise. `target` is the running
    mean, a copy of the student if left out.
    """
    if student.config["time_cond_proj_dim"] is None:
        raise ValueError("the student does not hear the guidance: give hearing_guidance(unet)")
    if not float(alphas.min()) > 0:
        raise ValueError(
            f"alphas reach {float(alphas.min()):g}, where a prediction of the noise tells nothing of the latents: give "
            "a schedule without zero terminal SNR"
        )
    place = next(student.parameters()).device
    alphas, at = alphas.to(place), times(how.levels, len(alphas)).to(place)
    target = (deepcopy(student) if target is None else target).requires_grad_(False)
    optimiser = torch.optim.AdamW(student.parameters(), how.lr, weight_decay=0.0)
    clipped(optimiser)
    stage = Stage(checkpoint, "consistency", owner, student=student, target=target, adam=optimiser)

    def terms(batch: Any) -> dict[str, torch.Tensor]:
        x, told = batch[0].to(place), text(batch[1])
        i = torch.randint(how.levels, (len(x),), device=place)
        low, high = how.guidance
        w = low + (high - low) * torch.rand(len(x), device=place)
        t, later = at[i], (at[i] - len(alphas) // how.levels).clamp_min(0)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * x + (1 - a).sqrt() * torch.randn_like(x)
        said = jump(student, noisy, t, told, w, alphas, how)
        with torch.no_grad(), evaluating(teacher):
            nearer = _guided_step(teacher, noisy, (t, later), told, nothing.expand_as(told), w, alphas)
            aim = jump(target, nearer, later, told, w, alphas, how)
        return {"consistency": eq.pseudo_huber(said, aim, how.c)}

    for step in descend(terms, batches, optimiser, stage, steps=how.steps, progress=progress):
        follow(target, student, how.decay)
        yield step


def jump(
    unet: Any, x: torch.Tensor, t: torch.Tensor, told: torch.Tensor, w: torch.Tensor, alphas: torch.Tensor,
    how: Consistency = Consistency(),
) -> torch.Tensor:  # fmt: skip
    """f(x, t) = c_skip x + c_out x_0, the clean latents (B, C, h, w) that a consistency model sees from time t (B,)."""
    skip, out = (one.view(-1, 1, 1, 1) for one in eq.boundary_scalings(t.float(), how.data, how.scaling))
    heard = eq.guidance_embedding(w.cpu(), unet.config["time_cond_proj_dim"]).to(x.device, x.dtype)
    e = unet(x, t, told, timestep_cond=heard).sample
    return skip * x + out * _clean(x, e, alphas[t])


def _guided_step(teacher, x, when, told, nothing, w, alphas) -> torch.Tensor:
    """One DDIM step of the teacher: both x_0 and noise are extrapolated by w from without to with the prompt."""
    t, later = when
    w, a = w.view(-1, 1, 1, 1), alphas[t]
    e, e_u = (teacher(x, t, words).sample for words in (told, nothing))
    x0, x0_u = _clean(x, e, a), _clean(x, e_u, a)
    return eq.ddim_step(x0 + w * (x0 - x0_u), e + w * (e - e_u), alphas[later].view(-1, 1, 1, 1))


def _clean(x: torch.Tensor, e: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    a = a.view(-1, 1, 1, 1)
    return (x - (1 - a).sqrt() * e) / a.sqrt()
