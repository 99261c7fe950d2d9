"""The small U-Net learns from the data, from the large one's outputs, and from its features in between."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.task import evaluating
from ..core.training import Stage, Step, descend
from . import equations as eq


def pairs(teacher: Any, student: Any) -> list[tuple[str, str]]:
    """(teacher's, student's) modules whose outputs are compared: stages from the outside in and out again.

    For SD-v1.4 and its block-removed student these are the six of the release: two going down, the deepest attention,
    three going up.
    """
    stages = len(student.down_blocks)
    skipped = len(teacher.up_blocks) - len(student.up_blocks)
    down = [(f"down_blocks.{i}", f"down_blocks.{i}") for i in range(stages - 1)]
    deepest = [(f"down_blocks.{stages - 1}.attentions.{_last(net)}.proj_out") for net in (teacher, student)]
    up = [(f"up_blocks.{i + skipped}", f"up_blocks.{i}") for i in range(len(student.up_blocks))]
    return [*down, (deepest[0], deepest[1]), *up]


def distil(
    teacher: nn.Module,
    student: nn.Module,
    alphas: torch.Tensor,
    text: Callable,
    batches: Iterable,
    *,
    steps: int,
    lr: float = 5e-5,
    checkpoint: str | Path | None = None,
    run_id: str = "distil",
    progress: bool = True,
    schedule: Callable | None = None,
    average: nn.Module | None = None,
    velocity: bool = False,
    flow: bool = False,
    often: torch.Tensor | None = None,
) -> Iterator[Step]:
    """Train `student` in place; batches are (latents (B, C, h, w), token ids (B, L)); `text(ids)` gives (B, L, D).

    `alphas` (T,) are the cumulative products of the noise schedule. `schedule(optimiser)` gives a schedule of the rate,
    the released one is constant. `average` is a copy of the student that follows as a running mean. `velocity` is for
    U-Nets of 'v_prediction': the first loss is then about (19). With `flow`, for those of 'flow_prediction', `alphas`
    are the noise's shares by time (20), and the first loss is about (21). `often` (T,) says how often each time is
    drawn beside the others, so that late steps can count more; left out, all are drawn alike.
    """
    device = next(student.parameters()).device
    optimiser = torch.optim.AdamW(student.parameters(), lr, betas=(0.9, 0.999), weight_decay=1e-2)
    rate = None if schedule is None else schedule(optimiser)
    state: dict[str, Any] = {"student": student, "adam": optimiser}
    state |= {name: part for name, part in (("schedule", rate), ("average", average)) if part is not None}
    stage = Stage(checkpoint, "distil", run_id, **state)
    clipped(optimiser)
    named = pairs(teacher, student)
    features = [_Outputs(net, [pair[i] for pair in named]) for i, net in enumerate((teacher, student))]

    def terms(batch: Any) -> dict[str, torch.Tensor]:
        x, text_emb = batch[0].to(device), text(batch[1])
        t, noise = _times(len(alphas), len(x), often).to(device), torch.randn_like(x)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy, target = _flowed(x, noise, a) if flow else _diffused(x, noise, a, velocity)
        with torch.no_grad(), evaluating(teacher):
            teacher_pred = teacher(noisy, t, text_emb).sample
        pred = student(noisy, t, text_emb).sample
        return {
            "noise": eq.noise_loss(pred, target),
            "output": eq.output_loss(pred, teacher_pred),
            "features": eq.feature_loss(features[1].last, features[0].last),
        }

    try:
        yield from descend(terms, batches, optimiser, stage, steps=steps, schedule=rate, progress=progress)
    finally:
        for outputs in features:
            outputs.remove()


def _times(most: int, count: int, often: torch.Tensor | None) -> torch.Tensor:
    """`count` times out of `most`, all alike or as often as told."""
    return torch.randint(most, (count,)) if often is None else torch.multinomial(often, count, replacement=True)


def _diffused(x: torch.Tensor, noise: torch.Tensor, a: torch.Tensor, velocity: bool) -> tuple[torch.Tensor, ...]:
    """A diffusion's noisy latents (B, C, h, w) at cumulative products a (B, 1, 1, 1), and what is to be told."""
    return a.sqrt() * x + (1 - a).sqrt() * noise, eq.velocity(x, noise, a) if velocity else noise


def _flowed(x: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A flow's latents (B, C, h, w) at the noise's shares (B, 1, 1, 1), and what is to be told."""
    return eq.mixed(x, noise, sigma), eq.flow(x, noise)


def clipped(optimiser: torch.optim.Optimizer, norm: float = 1.0) -> None:
    """From now on every update of `optimiser` takes gradients of at most this norm, as all released runs do."""

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], norm)

    optimiser.register_step_pre_hook(clip)


@torch.no_grad()
def follow(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the running mean towards the network: m <- decay m + (1 - decay) w; buffers are copied."""
    for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
        mean.lerp_(weight.to(mean.dtype), 1 - decay)
    for kept, buffer in zip(average.buffers(), net.buffers(), strict=True):
        kept.copy_(buffer)


class _Outputs:
    """`last`: the last outputs of the modules of these names, of several outputs the first."""

    def __init__(self, net: nn.Module, names: list[str]) -> None:
        self.last: list[Any] = [None] * len(names)
        self.hooks = [
            net.get_submodule(name).register_forward_hook(lambda *a, i=i: self._take(i, a[2]))
            for i, name in enumerate(names)
        ]

    def _take(self, i: int, output: Any) -> None:
        self.last[i] = output[0] if isinstance(output, tuple) else output

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def _last(net: Any) -> int:
    """The index of the last attention of the innermost stage that has some."""
    deepest = [block for block in net.down_blocks if hasattr(block, "attentions")][-1]
    return len(deepest.attentions) - 1
