"""One trajectory and all that branch off it: the first model walks it once, and at each step the second goes on."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..core.task import evaluating
from .handoff import Handoff
from .pipeline import HybridPipeline
from .sampler import HybridSampler
from .sampling import Conditioning, doubles, noise_prediction, trajectory
from .solvers import calls, fresh, stepped

_DIGEST = 64  # hexadecimal digits of the request that an answer repeats


class Denoiser(NamedTuple):
    """Who takes steps: a model, and what it is conditioned on."""

    unet: nn.Module
    cond: Conditioning


def sides(pipeline: HybridPipeline, cond: Conditioning, way: str) -> tuple[Denoiser, Denoiser]:
    """Who begins and who goes on: 'cloud first', 'edge first', or the cloud with its 'prompt withdrawn'."""
    cloud, edge = Denoiser(pipeline.unets[0], cond), Denoiser(pipeline.unets[-1], cond)
    if way == "prompt withdrawn":
        blank = without_prompt(cond)  # guidance from it to itself leads nowhere: one input is enough
        return cloud, Denoiser(cloud.unet, replace(blank, guidance=1.0) if doubles(cloud.unet, cond) else blank)
    return (edge, cloud) if way == "edge first" else (cloud, edge)


def without_prompt(cond: Conditioning) -> Conditioning:
    """The conditioning of one who does not know the prompt: the negative text stands in its place."""
    if cond.negative is None:
        raise ValueError("there is no text to stand in the prompt's place: give a conditioning with a negative one")
    return replace(cond, text=cond.negative, added=cond.added_negative)


@torch.no_grad()
def branched(
    sampler: HybridSampler, first: Denoiser, second: Denoiser, switches: Sequence[int], N: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """(switch, the N + 1 latents of its trajectory) for each switch, the number of the first one's steps, ascending."""
    latent, generator = sampler.noise(N)
    solver, trail = fresh(sampler.scheduler, N, latent.device), [latent]
    walk = trajectory([first.unet], solver, latent, first.cond, [N], generator)
    for switch in sorted(switches):
        trail += islice(walk, switch - len(trail) + 1)
        stands = generator.get_state()
        other = deepcopy(solver), trail[-1], second.cond, [N], generator, switch
        yield switch, [*trail, *trajectory([second.unet], *other)]
        generator.set_state(stands)


@torch.no_grad()
def stages(
    pipeline: HybridPipeline,
    prompts: Sequence[str],
    seed: int,
    ks: Sequence[int],
    guidance: float,
    N: int,
    way: str,
    count: int,
) -> dict[int, Tensor]:
    """For each k steps of the cloud, `count` latents along the way, decoded: (P, count, 3, H, W) uint8.

    Where the prompt is withdrawn the cloud takes all N steps, k of them with it.
    """
    with evaluating(pipeline):
        sampler = HybridSampler(pipeline, prompts, guidance, seed)
        stops = np.linspace(0, N, count).round().astype(int).tolist()
        switches, images = [N - k if way == "edge first" else k for k in ks], dict[int, Tensor]()
        for switch, trail in branched(sampler, *sides(pipeline, sampler.cond, way), switches, N):
            decoded = pipeline.decode(torch.cat([trail[stop] for stop in stops]))  # (count * P, 3, H, W)
            pixels = (255 * decoded).round().to(torch.uint8).cpu()
            by_prompt = pixels.view(count, len(prompts), *pixels.shape[1:]).transpose(0, 1)
            images[N - switch if way == "edge first" else switch] = by_prompt
        return images


class StepInput(NamedTuple):
    """What a model is asked in a step: the scaled latent (1, C, h, w), the time, and the prompt, without guidance."""

    latent: Tensor
    t: Tensor
    cond: Conditioning


@torch.no_grad()
def questions(
    pipeline: HybridPipeline, prompt: str, seed: int, guidance: float, N: int
) -> tuple[list[StepInput], Tensor]:
    """What the first model is asked on its way in each of N steps, and the pictures (N, 3, H, W) of its latents."""
    with evaluating(pipeline):
        sampler = HybridSampler(pipeline, [prompt], guidance, seed)
        unet, alone, asked = pipeline.unets[0], replace(sampler.cond, guidance=1.0), list[StepInput]()
        latent, generator = sampler.noise(N)
        solver, latents = fresh(sampler.scheduler, N, latent.device), list[Tensor]()

        def predict(x: Tensor, t: Tensor) -> Tensor:
            asked.append(StepInput(x, t, alone))
            return noise_prediction(unet, x, t, sampler.cond)

        for first, end in pairwise(calls(sampler.scheduler, N)):
            for call in range(first, end):
                latent = stepped(solver, predict, latent, call, generator)
            del asked[len(latents) + 1 :]  # of a step that asks twice, the first time
            latents.append(latent)
        return asked, pipeline.decode(torch.cat(latents))


def handoff_bytes(pipeline: HybridPipeline, prompt: str, guidance: float, N: int) -> list[int]:
    """Bytes of a picture's hand-off before each of N steps, and after the last (N + 1,)."""
    sampler = HybridSampler(pipeline, [prompt], guidance)
    states: list[Handoff] = [sampler.start(N)]
    for until in range(1, N + 1):
        states.append(sampler.edge(states[-1], until))
    return [state.picture_bytes() for state in states]


def crossing(sizes: Sequence[int], k: int, way: str) -> tuple[int, int]:
    """The bytes to the cloud and from it of a picture of which it takes k steps, the first or the last ones.

    `sizes` is what `handoff_bytes` gives. An answer moreover repeats its request's digest.
    """
    if not k:
        return 0, 0
    N = len(sizes) - 1
    begin, end = (N - k, N) if way == "edge first" else (0, k)
    return sizes[begin], sizes[end] + _DIGEST
