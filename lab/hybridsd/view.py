"""Hybrid SD seen: a slider of k, the picture and its way there, what each side pays and what the quality is."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from ..core import store
from ..core.task import evaluating
from ..ui import Control, Explorer, Frame, figure, raster, svg, view
from . import costs, sweep
from . import equations as eq
from .outcome import HybridSDOutcome
from .pipeline import HybridPipeline, HybridSampler
from .prompts import embedded, held_out
from .sampling import fresh, trajectory
from .sweep import SweepPoint

_SIDE, _STAGE_SIDE, _STAGES = 200, 60, 6  # px of the picture and of its stages; how many stages are shown


def numbers(outcome: HybridSDOutcome, k: int) -> dict[str, Any]:
    """One split: its quality in percent and Frechet distance, its cost in MACs and bytes, and the cloud saved."""
    point, cloud = outcome.at()[k], outcome.at()[outcome.recipe.N]
    return {
        "accuracy": point.accuracy,
        "frechet": point.frechet,
        "cloud": point.cloud_macs,
        "edge": point.edge_macs,
        "bytes": point.bytes,
        "saved": 1 - point.cloud_macs / cloud.cloud_macs,
        "parts": dict(zip(outcome.parts, point.parts, strict=True)),
    }


def curves(points: Sequence[SweepPoint], name: str) -> dict[str, list[tuple[float, float]]]:
    """(k, value) of `accuracy` or `frechet` for each kind of drawing."""
    kinds = dict.fromkeys(point.kind for point in points)
    judged = [point for point in points if not math.isnan(getattr(point, name))]
    return {kind: [(p.k, getattr(p, name)) for p in judged if p.kind == kind] for kind in kinds}


@view.register
def explore(outcome: HybridSDOutcome) -> Explorer:
    """The sweep replayed: a prompt at every split beside both ends, what each side pays, quality against k."""

    def draw(prompt: str, k: int) -> Frame:
        i, split = outcome.prompts.index(prompt), numbers(outcome, k)
        ends = {"edge alone": 0, f"k = {k}": k, "cloud alone": outcome.recipe.N}
        photos = [_photo(title, outcome.pictures[f"hybrid, {at}"][i]) for title, at in ends.items()]
        return Frame("".join([*photos, _costs(split, outcome), *_quality(outcome.points, k)]), _facts(split))

    controls = {
        "prompt": Control(list(dict.fromkeys(outcome.prompts))),
        "k": Control(list(outcome.at()), label="steps in the cloud", start=outcome.recipe.k),
    }
    return Explorer(draw, controls, title=f"Hybrid SD: {outcome.recipe.N} steps on two machines")


def splitting(
    pipeline: HybridPipeline | None = None,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1),
    *,
    N: int = 25,
    guidance: float = 4.0,
    outcome: HybridSDOutcome | None = None,
    live: HybridPipeline | None = None,
) -> Explorer:
    """The step-splitting slider: every k from 0 to N, drawn beforehand, with the stages of both halves.

    `pipeline` left out is the embedded one, `prompts` three captions that it never learned from; any other text can
    be typed into the box, and is drawn at the present k only.
    `outcome` adds the quality measured at its splits. `live` is a pipeline whose cloud is a service (see `lab serve
    cloud`): a button then asks it for the present picture. A page saved has all pictures, and no button.
    """
    pipeline = embedded() if pipeline is None else pipeline
    prompts = tuple(prompts or (scene.caption for scene in held_out(3, 5)))
    every = tuple(range(N + 1))
    stages = {seed: _stages(pipeline, prompts, seed, every, guidance, N) for seed in seeds}
    per_step, _ = costs.measured(pipeline, guidance)
    size = _handoff_bytes(pipeline, prompts[0], guidance, N) if N > 1 else 0
    raw_size = 3 * math.prod(pipeline.size)

    def draw(prompt: str, seed: int, k: int) -> Frame:
        if prompt in prompts:
            shown = stages[seed][k][prompts.index(prompt)]
        else:  # typed in: only this split is drawn
            shown = _stages(pipeline, (prompt,), seed, (k,), guidance, N)[k][0]
        cloud, edge = eq.cloud_share(k, N, per_step.cloud, per_step.edge, per_step.decoder)
        bars = [("cloud", cloud, N * per_step.cloud), ("edge", edge, N * per_step.cloud)]
        parts = [_photo(prompt, shown[-1]), _strip(shown, k, N), svg.bars(_millions(bars), "MACs, millions")]
        if 0 < k < N:
            parts.append(svg.bars([("hand-off", size, size), ("raw picture", raw_size, raw_size)], "bytes"))
        parts += _quality(outcome.points, k) if outcome else []
        saved = f"{100 * (1 - k / N):.0f} %"
        return Frame("".join(parts), {"cloud steps": k, "edge steps": N - k, "cloud compute saved": saved})

    controls = {
        "prompt": Control(prompts, free=True),
        "seed": Control(tuple(seeds)),
        "k": Control(every, label="steps in the cloud", start=round(0.4 * N)),
    }
    actions = {} if live is None else {"ask the cloud": _asking(live, N, guidance)}
    return Explorer(draw, controls, title=f"one picture, two machines: {N} steps", actions=actions)


def _asking(live: HybridPipeline, N: int, guidance: float) -> Callable[[Explorer], str | Frame]:
    def ask(explorer: Explorer) -> Frame:
        prompt, seed, k = explorer.state.values()
        samples = live.draw(str(prompt), steps=[int(k), N - int(k)], guidance=guidance, seed=int(seed))
        image = (255 * samples.pictures[0]).round().to(torch.uint8)
        facts: dict[str, Any] = {
            "asked": "the cloud",
            "bytes received": samples.received,
            "steps": str(list(samples.steps)),
        }
        return Frame(_photo(str(prompt), image), facts | ({"note": samples.notes[0]} if samples.notes else {}))

    return ask


@torch.no_grad()
def _stages(
    pipeline: HybridPipeline, prompts: Sequence[str], seed: int, ks: Sequence[int], guidance: float, N: int
) -> dict[int, Tensor]:
    """For each k the latents along the way, decoded: (P, _STAGES, 3, H, W) uint8."""
    with evaluating(pipeline):
        sampler = HybridSampler(pipeline, prompts, guidance, seed)
        latent, generator = sampler.noise(N)
        begun = generator.get_state()
        stops = np.linspace(0, N, _STAGES).round().astype(int).tolist()
        ends = (pipeline.unets[0], pipeline.unets[-1])
        stages = {}
        for k in ks:
            generator.set_state(begun)
            solver = fresh(pipeline.scheduler, N, latent.device)
            trail = [latent, *trajectory(ends, solver, latent, sampler.cond, [k, N - k], generator)]
            images = pipeline.decode(torch.cat([trail[stop] for stop in stops]))  # (_STAGES * P, 3, H, W)
            pixels = (255 * images).round().to(torch.uint8).cpu()
            stages[k] = pixels.view(_STAGES, len(prompts), *pixels.shape[1:]).transpose(0, 1)
        return stages


def _handoff_bytes(pipeline: HybridPipeline, prompt: str, guidance: float, N: int) -> int:
    """Bytes of a picture's hand-off in the middle of N steps, where the solver's memory is full."""
    sampler = HybridSampler(pipeline, [prompt], guidance)
    return sampler.cloud(sampler.start(N), max(1, N // 2)).picture_bytes()


# -- pictures ----------------------------------------------------------------------------------------------------------


def _photo(title: str, x: Tensor) -> str:
    """A picture (3, H, W) uint8, its pixels as squares."""
    h, w = x.shape[1:]
    scale, top = _SIDE / max(h, w), svg.LINE + 5
    image = raster.image(raster.uri(x.permute(1, 2, 0).numpy()), 0, top, w * scale, h * scale, title)
    width = max(w * scale, min(svg.text_width(title) * 1.1, 340))
    return svg.document(width, top + h * scale + 4, svg.fit(title, width / 1.1), title, [image])


def _strip(stages: Tensor, k: int, N: int) -> str:
    """The stages of a picture (S, 3, H, W) in a row, under bars that say whose steps led to them."""
    top, gap = svg.LINE + 36, 6
    row = np.concatenate(list(stages.permute(0, 2, 3, 1).numpy()), 1)
    pitch = _STAGE_SIDE + gap
    width = len(stages) * pitch - gap
    h = stages.shape[2] * _STAGE_SIDE / stages.shape[3]
    split = width * k / N
    parts = [svg.rect(0, top - 12, split, 6, "lab-fill c0"), svg.rect(split, top - 12, width - split, 6, "lab-fill c1")]
    parts += [svg.text(0, top - 17, f"cloud: {k} steps"), svg.text(width - 4, top - 17, f"edge: {N - k}", "end")]
    parts.append(raster.image(raster.uri(row), 0, top, width, h * width / (len(stages) * _STAGE_SIDE), "stages"))
    return svg.document(width, top + h + 12, "from noise to picture", "latents decoded on the way", parts)


def _costs(split: dict[str, Any], outcome: HybridSDOutcome) -> str:
    most = max(point.cloud_macs for point in outcome.points)
    rows = [("cloud", split["cloud"], most), ("edge", split["edge"], most)]
    return svg.bars(_millions(rows), "MACs, millions", width=320)


def _millions(rows: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    return [(name, round(part / 1e6), round(most / 1e6)) for name, part, most in rows]


def _quality(points: Sequence[SweepPoint], k: int) -> list[str]:
    labels = {"accuracy": "semantic accuracy, %", "frechet": "Frechet distance, own features"}
    plots = []
    for name, label in labels.items():
        series = [svg.Series(kind, values) for kind, values in curves(points, name).items()]
        plots.append(svg.lines(series, "steps in the cloud", label, title=label.split(",")[0], at=k, width=320))
    return plots


def _facts(split: dict[str, Any]) -> dict[str, Any]:
    return {
        "semantic accuracy": f"{split['accuracy']:.1f} %",
        "Frechet distance": f"{split['frechet']:.2f}",
        "cloud compute saved": f"{100 * split['saved']:.0f} %",
        "hand-off": f"{split['bytes']:,} bytes",
        "right": ", ".join(f"{name} {share:.0f} %" for name, share in split["parts"].items()),
    }


# -- the benchmark as it was last run ----------------------------------------------------------------------------------


def contest() -> Any:
    """`data/hybridsd/figures.json` as a frame, one row a kind, k and seed."""
    import pandas

    return pandas.DataFrame(json.loads(store.artefact("hybridsd/figures.json").read_text())["rows"])


def controls() -> go.Figure:
    """Semantic accuracy of every way of drawing against k, mean and range of the seeds."""
    table = contest()
    lines = []
    for kind in sweep.KINDS:
        by = table[table.kind == kind].groupby("k")["accuracy"].agg(["mean", "min", "max"])
        whiskers = {"type": "data", "array": by["max"] - by["mean"], "arrayminus": by["mean"] - by["min"]}
        lines.append(go.Scatter(x=list(by.index), y=by["mean"], name=kind, mode="lines+markers", error_y=whiskers))
    return figure(*lines, x="steps in the cloud", y="semantic accuracy (%)", title="one trajectory, two U-Nets")
