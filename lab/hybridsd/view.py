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
from . import equations as eq
from . import sweep
from .outcome import HybridSDOutcome
from .pipeline import Split
from .prompts import embedded, held_out
from .sampling import fresh, trajectory
from .sweep import Point

_WIDE, _SMALL, _STOPS = 200, 60, 6  # px of the picture and of its stages; how many stages are shown


def numbers(outcome: HybridSDOutcome, k: int) -> dict[str, Any]:
    """One split: its quality in percent and Frechet distance, its cost in MACs and bytes, and the cloud saved."""
    point, whole = outcome.at()[k], outcome.at()[outcome.recipe.N]
    return {
        "accuracy": point.accuracy, "frechet": point.frechet, "cloud": point.cloud_macs, "edge": point.edge_macs,
        "bytes": point.bytes, "saved": 1 - point.cloud_macs / whole.cloud_macs,
        "parts": dict(zip(outcome.parts, point.parts, strict=True)),
    }  # fmt: skip


def curves(points: Sequence[Point], name: str) -> dict[str, list[tuple[float, float]]]:
    """(k, value) of `accuracy` or `frechet` for each kind of drawing."""
    kinds = dict.fromkeys(point.kind for point in points)
    known = [point for point in points if not math.isnan(getattr(point, name))]
    return {kind: [(p.k, getattr(p, name)) for p in known if p.kind == kind] for kind in kinds}


@view.register
def explore(outcome: HybridSDOutcome) -> Explorer:
    """The sweep replayed: a prompt at every split beside both ends, what each side pays, quality against k."""

    def draw(prompt: str, k: int) -> Frame:
        i, found = outcome.prompts.index(prompt), numbers(outcome, k)
        ends = {"edge alone": 0, f"k = {k}": k, "cloud alone": outcome.recipe.N}
        shown = [_photo(title, outcome.pictures[f"hybrid, {at}"][i]) for title, at in ends.items()]
        drawn = [*shown, _costs(found, outcome), *_quality(outcome.points, k)]
        return Frame("".join(drawn), _facts(found))

    controls = {
        "prompt": Control(list(dict.fromkeys(outcome.prompts))),
        "k": Control(list(outcome.at()), label="steps in the cloud", start=outcome.recipe.k),
    }
    return Explorer(draw, controls, title=f"Hybrid SD: {outcome.recipe.N} steps on two machines")


def splitting(
    split: Split | None = None, prompts: Sequence[str] | None = None, seeds: Sequence[int] = (0, 1), *, N: int = 25,
    guidance: float = 4.0, outcome: HybridSDOutcome | None = None, live: Split | None = None,
) -> Explorer:  # fmt: skip
    """The step-splitting slider: every k from 0 to N, drawn beforehand, with the stages of both halves.

    `split` left out is the embedded pipeline, `prompts` three captions that it never learned from; any other text can
    be typed into the box, and is drawn at the present k only.
    `outcome` adds the quality measured at its splits. `live` is a pipeline whose cloud is a service (see `lab serve
    cloud`): a button then asks it for the present picture. A page saved has all pictures, and no button.
    """
    split = embedded() if split is None else split
    prompts = tuple(prompts or (scene.caption for scene in held_out(3, 5)))
    every = tuple(range(N + 1))
    stages = {seed: _stages(split, prompts, seed, every, guidance, N) for seed in seeds}
    price = sweep.price(split, guidance)
    size = sweep.handoff_bytes(split, prompts[0], max(1, N // 2), N, guidance) if N > 1 else 0

    def draw(prompt: str, seed: int, k: int) -> Frame:
        if prompt in prompts:
            shown = stages[seed][k][prompts.index(prompt)]
        else:  # typed in: only this split is drawn
            shown = _stages(split, (prompt,), seed, (k,), guidance, N)[k][0]
        cloud, edge = eq.cloud_share(k, N, price.cloud, price.edge, price.decoder)
        bars = [("cloud", cloud, N * price.cloud), ("edge", edge, N * price.cloud)]
        drawn = [_photo(prompt, shown[-1]), _strip(shown, k, N), svg.bars(_millions(bars), "MACs, millions")]
        if 0 < k < N:
            drawn.append(
                svg.bars([("hand-off", size, size), ("raw picture", 3 * _area(split), 3 * _area(split))], "bytes")
            )
        drawn += _quality(outcome.points, k) if outcome else []
        saved = f"{100 * (1 - k / N):.0f} %"
        return Frame("".join(drawn), {"cloud steps": k, "edge steps": N - k, "cloud compute saved": saved})

    controls = {
        "prompt": Control(prompts, free=True),
        "seed": Control(tuple(seeds)),
        "k": Control(every, label="steps in the cloud", start=round(0.4 * N)),
    }
    actions = {} if live is None else {"ask the cloud": _asking(live, N, guidance)}
    return Explorer(draw, controls, title=f"one picture, two machines: {N} steps", actions=actions)


def _asking(live: Split, N: int, guidance: float) -> Callable[[Explorer], str | Frame]:
    def ask(explorer: Explorer) -> Frame:
        prompt, seed, k = explorer.state.values()
        found = live.draw(str(prompt), steps=[int(k), N - int(k)], guidance=guidance, seed=int(seed))
        picture = (255 * found.pictures[0]).round().to(torch.uint8)
        facts: dict[str, Any] = {
            "asked": "the cloud",
            "bytes received": found.received,
            "steps": str(list(found.steps)),
        }
        return Frame(_photo(str(prompt), picture), facts | ({"note": found.notes[0]} if found.notes else {}))

    return ask


@torch.no_grad()
def _stages(
    split: Split, prompts: Sequence[str], seed: int, ks: Sequence[int], guidance: float, N: int
) -> dict[int, Tensor]:
    """For each k the latents along the way, decoded: (P, _STOPS, 3, H, W) uint8."""
    with evaluating(split):
        said = split.conditioning(split.text.tokens(prompts), guidance, zeros=True)
        latent, generator = split.noise(len(prompts), seed, N)
        stood = generator.get_state()
        stops = np.linspace(0, N, _STOPS).round().astype(int).tolist()
        found = {}
        for k in ks:
            steps, solver = [k, N - k], fresh(split.scheduler, N, latent.device)
            generator.set_state(stood)
            ends = (split.unets[0], split.unets[-1])
            trail = [latent, *trajectory(ends, solver, latent, said, steps, generator)]
            seen = split.decode(torch.cat([trail[stop] for stop in stops]))  # (_STOPS * P, 3, H, W)
            pixels = (255 * seen).round().to(torch.uint8).cpu()
            found[k] = pixels.view(_STOPS, len(prompts), *pixels.shape[1:]).transpose(0, 1)
        return found


# -- pictures ----------------------------------------------------------------------------------------------------------


def _photo(title: str, x: Tensor) -> str:
    """A picture (3, H, W) uint8, its pixels as squares."""
    h, w = x.shape[1:]
    scale, top = _WIDE / max(h, w), svg.LINE + 5
    drawn = raster.image(raster.uri(x.permute(1, 2, 0).numpy()), 0, top, w * scale, h * scale, title)
    wide = max(w * scale, min(svg.text_width(title) * 1.1, 340))
    return svg.document(wide, top + h * scale + 4, svg.fit(title, wide / 1.1), title, [drawn])


def _strip(stages: Tensor, k: int, N: int) -> str:
    """The stages of a picture (S, 3, H, W) in a row, under bars that say whose steps led to them."""
    top, gap = svg.LINE + 36, 6
    row = np.concatenate(list(stages.permute(0, 2, 3, 1).numpy()), 1)
    pitch = _SMALL + gap
    width = len(stages) * pitch - gap
    h = stages.shape[2] * _SMALL / stages.shape[3]
    split = width * k / N
    parts = [svg.rect(0, top - 12, split, 6, "lab-fill c0"), svg.rect(split, top - 12, width - split, 6, "lab-fill c1")]
    parts += [svg.text(0, top - 17, f"cloud: {k} steps"), svg.text(width - 4, top - 17, f"edge: {N - k}", "end")]
    parts.append(raster.image(raster.uri(row), 0, top, width, h * width / (len(stages) * _SMALL), "stages"))
    return svg.document(width, top + h + 12, "from noise to picture", "latents decoded on the way", parts)


def _costs(found: dict[str, Any], outcome: HybridSDOutcome) -> str:
    most = max(point.cloud_macs for point in outcome.points)
    rows = [("cloud", found["cloud"], most), ("edge", found["edge"], most)]
    return svg.bars(_millions(rows), "MACs, millions", width=320)


def _millions(rows: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    return [(name, round(part / 1e6), round(whole / 1e6)) for name, part, whole in rows]


def _quality(points: Sequence[Point], k: int) -> list[str]:
    labels = {"accuracy": "semantic accuracy, %", "frechet": "Frechet distance, own features"}
    found = []
    for name, label in labels.items():
        series = [svg.Series(kind, values) for kind, values in curves(points, name).items()]
        found.append(svg.lines(series, "steps in the cloud", label, title=label.split(",")[0], at=k, width=320))
    return found


def _facts(found: dict[str, Any]) -> dict[str, Any]:
    parts = ", ".join(f"{name} {share:.0f} %" for name, share in found["parts"].items())
    return {
        "semantic accuracy": f"{found['accuracy']:.1f} %", "Frechet distance": f"{found['frechet']:.2f}",
        "cloud compute saved": f"{100 * found['saved']:.0f} %", "hand-off": f"{found['bytes']:,} bytes", "right": parts,
    }  # fmt: skip


def _area(split: Split) -> int:
    h, w = split.size
    return h * w


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
