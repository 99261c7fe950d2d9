"""Latent consistency distillation: a U-Net that embeds the guidance and goes to the end in one step from any time."""

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
    target's running mean. c: of the pseudo-Huber loss. data, scaling: of the boundary scalings, Card (12).
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
            self,
            steps=integer(1),
            lr=real(above=0),
            levels=integer(1),
            decay=real(0, 1),
            c=real(above=0),
            data=real(above=0),
            scaling=real(above=0),
        )
        low, high = self.guidance
        if not 0 <= low <= high:
            raise ValueError(
                f"Consistency: guidance={self.guidance} is not allowed: give (low, high), 0 <= low <= high"
            )


def with_guidance_embedding(unet: Any, dimension: int = 256) -> Any:
    """A copy with `time_cond_proj`, which adds `dimension` x first width weights; they are drawn, the rest is kept.

    A U-Net that embeds the guidance already is copied as it is.
    """
    student = deepcopy(unet)
    if student.config["time_cond_proj_dim"] is None:
        embedding = student.time_embedding
        like = embedding.linear_1.weight
        kind = {"device": like.device, "dtype": like.dtype}
        embedding.cond_proj = nn.Linear(dimension, embedding.linear_1.in_features, bias=False, **kind)
        student.register_to_config(time_cond_proj_dim=dimension)
    return student


def times(levels: int, T: int) -> torch.Tensor:
    """The DDIM times, (levels,), from T / levels - 1 up to T - 1."""
    if levels > T:
        raise ValueError(f"levels={levels} is not allowed: give at most the schedule's {T} times")
    return torch.arange(1, levels + 1) * (T // levels) - 1


def distil_consistency(
    teacher: Any,
    student: Any,
    alphas: torch.Tensor,
    text: Callable,
    nothing: torch.Tensor,
    batches: Iterable,
    how: Consistency = Consistency(),
    *,
    checkpoint: str | Path | None = None,
    run_id: str = "consistency",
    progress: bool = True,
    target: Any | None = None,
) -> Iterator[Step]:
    """Train `student` in place so that its output at one time is its running mean's output one DDIM step later.

    Batches are (latents (B, C, h, w), token ids (B, L)); `text(ids)` gives embeddings (B, L, D), `nothing` (1, L, D) is
    the embedding of no prompt. `alphas` (T,) are the schedule's cumulative products, the U-Nets predict noise. `target`
    is the running mean, a copy of the student if left out. ValueError where the two do not fit.
    """
    _validate_consistent(student, alphas)
    device = next(student.parameters()).device
    alphas, levels = alphas.to(device), times(how.levels, len(alphas)).to(device)
    target = (deepcopy(student) if target is None else target).requires_grad_(False)
    optimiser = torch.optim.AdamW(student.parameters(), how.lr, weight_decay=0.0)
    clipped(optimiser)
    stage = Stage(checkpoint, "consistency", run_id, student=student, target=target, adam=optimiser)

    def terms(batch: Any) -> dict[str, torch.Tensor]:
        x, text_emb = batch[0].to(device), text(batch[1])
        i = torch.randint(how.levels, (len(x),), device=device)
        low, high = how.guidance
        w = low + (high - low) * torch.rand(len(x), device=device)
        t, t_prev = levels[i], (levels[i] - len(alphas) // how.levels).clamp_min(0)  # sampling goes from t to t_prev
        a = alphas[t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * x + (1 - a).sqrt() * torch.randn_like(x)
        pred = consistency_function(student, x_t, t, text_emb, w, alphas, how)
        with torch.no_grad(), evaluating(teacher):
            x_prev = _guided_step(teacher, x_t, (t, t_prev), text_emb, nothing.expand_as(text_emb), w, alphas)
            target_pred = consistency_function(target, x_prev, t_prev, text_emb, w, alphas, how)
        return {"consistency": eq.pseudo_huber(pred, target_pred, how.c)}

    for step in descend(terms, batches, optimiser, stage, steps=how.steps, progress=progress):
        follow(target, student, how.decay)
        yield step


def _validate_consistent(student: Any, alphas: torch.Tensor) -> None:
    """ValueError unless the student can be told its guidance, and the noise tells of the latents at every time."""
    if student.config["time_cond_proj_dim"] is None:
        raise ValueError("the student does not embed the guidance: give with_guidance_embedding(unet)")
    if not float(alphas.min()) > 0:
        raise ValueError(
            f"alphas reach {float(alphas.min()):g}, where a prediction of the noise tells nothing of the latents: give "
            "a schedule without zero terminal SNR"
        )


def consistency_function(
    unet: Any,
    x: torch.Tensor,
    t: torch.Tensor,
    text_emb: torch.Tensor,
    w: torch.Tensor,
    alphas: torch.Tensor,
    how: Consistency = Consistency(),
) -> torch.Tensor:
    """f(x, t) = c_skip x + c_out x_0, the clean latents (B, C, h, w) that a consistency model sees from time t (B,).

    x (B, C, h, w) is noisy, text_emb (B, L, D), w (B,) the guidance less 1, alphas (T,).
    """
    skip, out = (scaling.view(-1, 1, 1, 1) for scaling in eq.boundary_scalings(t.float(), how.data, how.scaling))
    guidance_emb = eq.guidance_embedding(w.cpu(), unet.config["time_cond_proj_dim"]).to(x.device, x.dtype)
    e = unet(x, t, text_emb, timestep_cond=guidance_emb).sample
    return skip * x + out * _clean(x, e, alphas[t])


def _guided_step(
    teacher: Any,
    x: torch.Tensor,
    when: tuple[torch.Tensor, torch.Tensor],
    text_emb: torch.Tensor,
    nothing: torch.Tensor,
    w: torch.Tensor,
    alphas: torch.Tensor,
) -> torch.Tensor:
    """One DDIM step of the teacher from when[0] to when[1], (B,) each: x_{t-1} of the latents (B, C, h, w).

    Both x_0 and noise are extrapolated by w from without to with the prompt.
    """
    t, t_prev = when
    w, a = w.view(-1, 1, 1, 1), alphas[t]
    e, e_u = (teacher(x, t, embedding).sample for embedding in (text_emb, nothing))
    x0, x0_u = _clean(x, e, a), _clean(x, e_u, a)
    return eq.ddim_step(x0 + w * (x0 - x0_u), e + w * (e - e_u), alphas[t_prev].view(-1, 1, 1, 1))


def _clean(x: torch.Tensor, e: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """x_0 of latents (B, C, h, w) whose noise is e, at cumulative products a (B,)."""
    a = a.view(-1, 1, 1, 1)
    return (x - (1 - a).sqrt() * e) / a.sqrt()
