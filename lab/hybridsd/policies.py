"""How many steps the cloud takes, chosen: from step times and a link as measured, and the quality that a sweep found.

Ours, not the paper's, which fixes k.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from ..core.fields import real, validate
from ..core.task import evaluating
from .pipeline import HybridPipeline
from .sampler import HybridSampler
from .sweep import SweepPoint

POLICIES = ("latency", "cost", "quality")
_KINDS = ("hybrid", "edge first")  # the ways that take every step of the schedule
_ALONE, _MANY = 1, 8  # pictures of the small and of the large request that tell a link's bandwidth


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one picture's step in the cloud and at the edge and of its decoding, and what a hand-off takes.

    A hand-off takes `link` seconds and its bytes by `bandwidth`, bytes a second; both are 0 and infinite in one
    process.
    """

    cloud: float
    edge: float
    decoder: float = 0.0
    link: float = 0.0
    bandwidth: float = math.inf

    def __post_init__(self) -> None:
        validate(self, **dict.fromkeys(("cloud", "edge", "decoder", "link"), real(0)))
        if not self.bandwidth > 0:
            raise ValueError(f"Timing: bandwidth={self.bandwidth!r} is not allowed: give bytes a second, above 0")

    def seconds(self, k: int, N: int, size: int) -> float:
        """A picture whose first or last k of N steps the cloud takes, and whose hand-offs have `size` bytes in all."""
        crossing = self.link + size / self.bandwidth if k else 0.0
        return k * self.cloud + (N - k) * self.edge + self.decoder + crossing


@dataclass(frozen=True)
class SplitChoice:
    """A way to draw: its point of the sweep, the seconds that it takes, and the policies that choose it."""

    point: SweepPoint
    N: int
    seconds: float
    policies: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[int, int]:
        """What `HybridPipeline.draw` takes as `steps`, with `order`."""
        k = self.point.k
        return (k, self.N - k) if self.point.kind == "hybrid" else (self.N - k, k)

    @property
    def order(self) -> tuple[int, int]:
        """Which model takes the first of them, and which the others."""
        return (0, 1) if self.point.kind == "hybrid" else (1, 0)

    def __repr__(self) -> str:
        point = self.point
        chosen = f"  <- {', '.join(self.policies)}" if self.policies else ""
        return (
            f"{point.kind:<10} k={point.k:<3} {self.seconds:8.3f} s  {point.accuracy:5.1f} %  "
            f"Frechet {point.frechet:6.2f}  {point.cloud_macs / 1e6:10.0f} M MACs in the cloud{chosen}"
        )


@dataclass
class Policy:
    """What `HybridPipeline.draw` takes as `policy`: 'latency', 'cost' or 'quality', and the points of a sweep.

    Without a `timing` it is measured at the first picture, on both sides and over the link, and kept. `within` is what
    `choose` takes.
    """

    name: str
    points: Sequence[SweepPoint] = field(repr=False)
    timing: Timing | None = None
    within: float = 2.0

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            raise ValueError(f"policy={self.name!r} is not allowed: give one of {', '.join(map(repr, POLICIES))}")

    def choice(self, pipeline: HybridPipeline, guidance: float) -> SplitChoice:
        """The way of drawing that it chooses for a pipeline; ServiceError where a cloud elsewhere cannot be timed."""
        self.timing = self.timing or measured(pipeline, guidance)
        return choose(self.name, self.points, self.timing, self.within)


def choose(policy: str, points: Sequence[SweepPoint], timing: Timing, within: float = 2.0) -> SplitChoice:
    """The way of a sweep's points that a policy takes.

    'latency' is the fastest whose semantic accuracy is within so many points of the cloud's alone, 'cost' the one of
    least compute in the cloud within them, 'quality' the most accurate, the nearest by Frechet distance of several.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r} is not allowed: give one of {', '.join(map(repr, POLICIES))}")
    variants = fixed(points, timing)
    alone = variants[-1].point.accuracy
    near = [way for way in variants if way.point.accuracy >= alone - within]
    keys: dict[str, Callable[[SplitChoice], Any]] = {
        "latency": lambda way: (way.seconds, way.point.cloud_macs),
        "cost": lambda way: (way.point.cloud_macs, way.seconds),
        "quality": lambda way: (-way.point.accuracy, way.point.frechet, way.point.cloud_macs),
    }
    best = min(variants if policy == "quality" else near, key=keys[policy])
    return replace(best, policies=(policy,))


def fixed(points: Sequence[SweepPoint], timing: Timing) -> list[SplitChoice]:
    """Every way of a sweep with its seconds, the cloud alone last; ValueError where that was not judged."""
    N = max((p.k for p in points if p.kind == "hybrid"), default=0)
    judged = [p for p in points if p.kind in _KINDS and not math.isnan(p.accuracy)]
    if not N or not any(p.k == N and p.kind == "hybrid" for p in judged):
        raise ValueError(
            "the cloud alone was not judged in this sweep: give the points of a run whose quality is known"
        )
    ordered = sorted(judged, key=lambda p: (p.kind == "hybrid", p.k))
    return [SplitChoice(p, N, timing.seconds(p.k, N, p.bytes)) for p in ordered]


def compared(points: Sequence[SweepPoint], timing: Timing, within: float = 2.0) -> list[SplitChoice]:
    """Every fixed way beside the others, with the policies that choose it."""
    chosen = {policy: choose(policy, points, timing, within).point for policy in POLICIES}
    return [
        replace(way, policies=tuple(policy for policy, point in chosen.items() if point == way.point))
        for way in fixed(points, timing)
    ]


@torch.no_grad()
def measured(pipeline: HybridPipeline, guidance: float, steps: int = 2, repeats: int = 3) -> Timing:
    """The timing of this pipeline, here and at its cloud, as it is now: medians of so many repeats.

    Takes some steps on both sides; a cloud elsewhere is moreover asked for none, with one picture and with eight. A
    service that fails is a ServiceError.
    """
    with evaluating(pipeline):
        sampler = HybridSampler(pipeline, ["a"], guidance)
        start = sampler.start(2 * steps)
        edge = _seconds(lambda: sampler.edge(start, steps), repeats) / steps
        asked = _seconds(lambda: sampler.cloud(start, steps), repeats)
        decoder = _seconds(lambda: pipeline.decode(start.latent), repeats)
        if pipeline.cloud is None:
            return Timing(cloud=asked / steps, edge=edge, decoder=decoder)
        link, bandwidth = _link(pipeline, guidance, 2 * steps, repeats)
        return Timing(cloud=max(0.0, asked - link) / steps, edge=edge, decoder=decoder, link=link, bandwidth=bandwidth)


def _link(pipeline: HybridPipeline, guidance: float, N: int, repeats: int) -> tuple[float, float]:
    """Seconds of a hand-off without bytes, and bytes a second, from requests that ask for no step."""
    many = min(_MANY, pipeline.denoisers[0].max_images or _MANY)
    times, sizes = [], []
    for count in (_ALONE, many):
        # without its seed the noise is sent
        state = replace(HybridSampler(pipeline, ["a"] * count, guidance).start(N), seed=None)
        sizes.append(sum(pipeline.cloud.half(state, state.index)[1:]))
        times.append(_seconds(partial(pipeline.cloud.half, state, state.index), repeats))
    more = times[1] - times[0]
    bandwidth = (sizes[1] - sizes[0]) / more if more > 0 and sizes[1] > sizes[0] else math.inf
    return max(0.0, times[0] - sizes[0] / bandwidth), bandwidth


def _seconds(work: Callable[[], Any], repeats: int) -> float:
    work()  # the first warms up
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
