"""One set of prompts drawn at every split, beside its controls: all of them start from the same noise."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ..core import store
from ..core.progress import tqdm
from ..core.task import evaluating
from . import baselines
from . import equations as eq
from .costs import StepCost, split_cost
from .pipeline import HybridPipeline
from .prompts import PromptTask
from .sampler import HybridSampler

KINDS = ("hybrid", "edge first", "fewer steps")
Variant = tuple[str, int]  # the kind, and k steps in the cloud


@dataclass(frozen=True)
class SweepPoint:
    """One way of drawing: its kind, k steps in the cloud, its quality in percent and Frechet distance, its cost.

    `parts` are the shares of prompts whose count, colour ... is right. MACs are those of one picture, guidance and one
    decoding counted; `bytes` is one picture's hand-off.
    """

    kind: str
    k: int
    accuracy: float
    parts: tuple[float, ...]
    frechet: float
    cloud_macs: float
    edge_macs: float
    bytes: int


class Sampled(NamedTuple):
    """By variant, what some prompts became, latents or pictures (B, C, H, W), and the bytes of a picture's hand-off."""

    images: dict[Variant, torch.Tensor]
    bytes: dict[Variant, int]


class Quality(NamedTuple):
    """What pictures are worth: percent of prompts with all parts right, percent of each part, Frechet distance."""

    accuracy: float
    parts: tuple[float, ...]
    frechet: float


@torch.no_grad()
def sampled(
    sampler: HybridSampler,
    variants: Sequence[Variant],
    N: int,
    int8: bool = False,
    plans: Mapping[Variant, baselines.BaselinePlan] = {},
) -> Sampled:
    """The final latents of each variant, and of the baselines as planned; steps that several share are taken once."""
    latents: dict[Variant, torch.Tensor] = {}
    sizes = dict.fromkeys(variants, 0)
    for kind in ("hybrid", "edge first"):
        # the first model's trajectory is walked once: at each switch the second one goes on from a copy
        state, models = sampler.start(N), (sampler.cloud, sampler.edge)
        first, second = models if kind == "hybrid" else models[::-1]
        # (after so many of the first model's steps, k), in the order in which one trajectory comes by
        switches = sorted((k if kind == "hybrid" else N - k, k) for name, k in variants if name == kind)
        for switch, k in dict.fromkeys(switches):
            state = first(state, switch)
            sizes[kind, k] = state.picture_bytes(int8) if 0 < switch < N else 0
            latents[kind, k] = second(state, N).latent
    for kind, k in variants:
        if kind == "fewer steps":
            latents[kind, k] = sampler.cloud(sampler.start(k), k).latent
    for (kind, k), plan in plans.items():
        latents[kind, k], sizes[kind, k] = baselines.sampled(sampler, kind, plan, int8)
    return Sampled(latents, sizes)


def cast_notes(sampler: HybridSampler, N: int, k: int) -> tuple[str, ...]:
    """What it costs that the models of a split at k compute in two precisions, measured on these prompts."""
    if len({denoiser.dtype for denoiser in sampler.denoisers}) == 1:
        return ()
    first = sampler.advance(sampler.start(N), k, 0)
    last = sampler.advance(first.state, N, -1)
    return tuple(note for note in (first.note, last.note) if note)


def batches(
    task: PromptTask,
    pipeline: HybridPipeline,
    variants: Sequence[Variant],
    *,
    N: int,
    guidance: float,
    batch: int,
    seed: int,
    int8: bool = False,
    plans: Mapping[Variant, baselines.BaselinePlan] = {},
    progress: bool = False,
    checkpoint: str | Path | None = None,
    run_id: str = "",
) -> Iterator[Sampled]:
    """The pictures of each batch of prompts by variant; batches of a checkpoint are read, not drawn again."""
    for start in tqdm(range(0, len(task.prompts), batch), desc="sweep", disable=not progress, leave=False):
        name = f"batch-{start}"
        kept = None if checkpoint is None else _kept(checkpoint, name, run_id, variants)
        if kept is not None:
            yield kept
            continue
        with evaluating(pipeline):
            prompts = task.prompts[start : start + batch]
            # noise of its own for each batch, so that one is drawn without those before it
            sampler = HybridSampler(pipeline, prompts, guidance, seed * 10_007 + start)
            latents, sizes = sampled(sampler, variants, N, int8, plans)
            images = {variant: pipeline.decode(latent).cpu() for variant, latent in latents.items()}
        if checkpoint is not None:
            by_variant = {"pictures": [images[v] for v in variants], "bytes": [sizes[v] for v in variants]}
            store.save(checkpoint, name, {"owner": run_id, **by_variant})
        yield Sampled(images, sizes)


def quality(task: PromptTask, images: torch.Tensor) -> Quality:
    """What pictures (N, 3, H, W) of the task's prompts are worth."""
    right = task.right(images)  # (N, P)
    distance = eq.frechet_distance(task.features(images), task.features(task.real))
    parts = tuple(100 * float(share) for share in right.double().mean(0))
    return Quality(100 * float(right.all(1).double().mean()), parts, distance)


def point(variant: Variant, worth: Quality, per_call: StepCost, calls: Sequence[int], size: int) -> SweepPoint:
    """One way of drawing, with what it is worth and what it costs; `size`: bytes of a hand-off.

    `calls` (N + 1,) is how often a model has been asked before each step of this variant's trajectory, and in all.
    """
    kind, k = variant
    cloud = calls[-1] - calls[-1 - k] if kind == "edge first" else calls[k]
    total = split_cost(per_call, cloud, calls[-1])
    return SweepPoint(kind, k, *worth, total.cloud, total.edge, size)


def baseline_point(
    variant: Variant, worth: Quality, plan: baselines.BaselinePlan, decoder: float, size: int
) -> SweepPoint:
    """One baseline, which pays as it has planned, and for one decoding at the edge."""
    kind, k = variant
    return SweepPoint(kind, k, *worth, plan.cloud, plan.edge + decoder, size)


def _kept(folder: str | Path, name: str, run_id: str, variants: Sequence[Variant]) -> Sampled | None:
    """A batch that a checkpoint holds, None if it does not; ValueError where it is another run's."""
    if not store.exists(folder, name):
        return None
    saved = store.load(folder, name)
    if saved["owner"] != run_id:
        raise ValueError(
            f"checkpoint={str(folder)!r} belongs to {saved['owner']}, this run is {run_id}: give another folder, or "
            "delete that one"
        )
    if "bytes" not in saved:  # of an earlier version, which measured them apart: the batch is drawn again
        return None
    parts = (dict(zip(variants, saved[key], strict=True)) for key in ("pictures", "bytes"))
    return Sampled(*parts)
