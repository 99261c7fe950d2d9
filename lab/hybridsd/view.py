"""Hybrid SD seen: a slider of k, the picture and its way there, what each side pays and what the quality is."""

import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from .. import lens
from ..core import store
from ..core.ranking_metrics import interval
from ..ui import Control, Explorer, Frame, figure, raster, svg, view
from . import branches, costs, sweep
from . import equations as eq
from .outcome import HybridSDOutcome
from .pipeline import HybridPipeline
from .policies import Timing, compared
from .prompts import PromptTask, embedded, held_out, verdict
from .samples import Samples
from .sampling import noise_prediction
from .solvers import calls
from .sweep import SweepPoint

_ORDERS, _WITHDRAWN = ("cloud first", "edge first"), "prompt withdrawn"
_SIDE, _STAGE_SIDE = 200, 60  # px of the picture and of its stages
_OTHER_PROMPTS = ("window", "prompt first")  # rows of `bound` that were drawn from fewer prompts
_SHOWN = dict.fromkeys(_ORDERS, 6) | {_WITHDRAWN: 2}  # how many stages


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
        photos = [_photo(title, outcome.pictures[f"hybrid, {at}"][i], prompt) for title, at in ends.items()]
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
    timing: Timing | None = None,
) -> Explorer:
    """The step-splitting slider: every k from 0 to N in both orders, drawn beforehand, with the stages of both halves.

    Beside each stands what the cloud alone draws if the prompt is withdrawn after its k steps: what is in that picture
    was decided by then. `pipeline` left out is the embedded one, `prompts` three captions that it never learned from;
    any other text can be typed into the box, and is drawn at the present k only.
    `outcome` adds the quality measured at its splits, and with a `timing` which policies choose a split. `live` is a
    pipeline whose cloud is a service (see `lab serve cloud`): a button then asks it for the present picture. A page
    saved has all pictures, and no button.
    """
    pipeline = embedded() if pipeline is None else pipeline
    if not pipeline.is_in_one_place:
        raise ValueError("the slider draws in one process, device and precision: give it such a pipeline, and `live`")
    prompts = tuple(prompts or (scene.caption for scene in held_out(3, 5)))
    every = tuple(range(N + 1))
    stages = {
        (seed, way): branches.stages(pipeline, prompts, seed, every, guidance, N, way, _SHOWN[way])
        for seed in seeds
        for way in _SHOWN
    }
    per_call, _ = costs.measured(pipeline, guidance)
    asked = calls(pipeline.scheduler_at(), N)  # (N + 1,)
    sizes = branches.handoff_bytes(pipeline, prompts[0], guidance, N)  # (N + 1,)
    raw_size = 3 * math.prod(pipeline.size)
    chosen = _chosen(outcome, timing)

    def shown(prompt: str, seed: int, k: int, way: str) -> Tensor:
        if prompt in prompts:
            return stages[seed, way][k][prompts.index(prompt)]
        # typed in: only this split is drawn
        return branches.stages(pipeline, (prompt,), seed, (k,), guidance, N, way, _SHOWN[way])[k][0]

    def draw(prompt: str, seed: int, order: str, k: int) -> Frame:
        steps, withdrawn = shown(prompt, seed, k, order), shown(prompt, seed, k, _WITHDRAWN)
        in_cloud = asked[k] if order == "cloud first" else asked[N] - asked[N - k]
        cloud, edge = eq.cloud_share(in_cloud, asked[N], per_call.cloud, per_call.edge, per_call.decoder)
        bars = [(side, share, asked[N] * per_call.cloud) for side, share in (("cloud", cloud), ("edge", edge))]
        parts = [_photo(prompt, steps[-1], prompt), _photo(f"prompt withdrawn after step {k}", withdrawn[-1], prompt)]
        parts += [_strip(steps, k, N, order), svg.bars(_millions(bars), "MACs, millions")]
        sent, received = branches.crossing(sizes, k, order)
        if k:
            most = max(sent, received, raw_size)
            rows = [("to the cloud", sent, most), ("from the cloud", received, most), ("raw picture", raw_size, most)]
            parts.append(svg.bars(rows, "bytes"))
        parts += _quality(outcome.points, k) if outcome else []
        saved = f"{100 * (1 - in_cloud / asked[N]):.0f} %"
        facts: dict[str, Any] = {"cloud steps": k, "edge steps": N - k, "cloud compute saved": saved}
        facts |= {"bytes to the cloud": sent, "bytes from the cloud": received}
        return Frame("".join(parts), facts | chosen.get((order, k), {}))

    controls = {
        "prompt": Control(prompts, free=True),
        "seed": Control(tuple(seeds)),
        "order": Control(_ORDERS),
        "k": Control(every, label="steps in the cloud", start=round(0.4 * N)),
    }
    actions = {} if live is None else {"ask the cloud": _asking(live, N, guidance)}
    return Explorer(draw, controls, title=f"one picture, two machines: {N} steps", actions=actions)


def gallery(samples: Mapping[str, Samples], task: PromptTask) -> Explorer:
    """Pictures of a task's first prompts under their captions, with what its reader finds wrong in each.

    `samples` are what `draw` gave for these prompts, by the way they were drawn: one way is shown at a time.
    ValueError where there are none, or more pictures than the task has prompts.
    """
    most = max((len(sampled.pictures) for sampled in samples.values()), default=0)
    if not 0 < most <= len(task.prompts):
        prompts = len(task.prompts)
        raise ValueError(f"samples hold {most} pictures, the task has {prompts} prompts: draw those, in order")
    judged = {way: task.right(sampled.pictures) for way, sampled in samples.items()}  # (B, P) bool each

    def draw(way: str) -> Frame:
        pixels, right = (255 * samples[way].pictures).round().to(torch.uint8), judged[way]
        photos = [
            _captioned(x, prompt, [part for part, good in zip(task.parts, row, strict=True) if not good])
            for x, prompt, row in zip(pixels, task.prompts, right.tolist(), strict=False)
        ]
        all_right = f"{right.all(1).sum()} of {len(right)}"
        return Frame("".join(photos), {"steps": str(list(samples[way].steps)), "right": all_right})

    return Explorer(draw, {"way": Control(list(samples), label="drawn by")}, title="asked, drawn, and read back")


def words(
    pipeline: HybridPipeline | None = None,
    prompt: str | None = None,
    seed: int = 0,
    *,
    N: int = 25,
    guidance: float = 4.0,
) -> Explorer:
    """Where cloud and edge put each word of a prompt, at each step of the cloud's way: `lab.lens.words`.

    Both are asked about the same latents, each beside the same network with fresh weights. `pipeline` left out is the
    embedded one, `prompt` a caption that it never learned from. ValueError for models without cross-attention.
    """
    pipeline = embedded() if pipeline is None else pipeline
    prompt = held_out(1, 5)[0].caption if prompt is None else prompt
    asked, images = branches.questions(pipeline, prompt, seed, guidance, N)

    def run(unet: Any) -> None:
        for latent, t, cond in asked:
            noise_prediction(unet, latent, t, cond)

    models = {"cloud": pipeline.unets[0], "edge": pipeline.unets[-1]}
    return lens.words(models, run, pipeline.text.places(prompt), images)


def _chosen(outcome: HybridSDOutcome | None, timing: Timing | None) -> dict[tuple[str, int], dict[str, str]]:
    """By order and k, how long a picture takes and which policies choose it."""
    if outcome is None or timing is None:
        return {}
    return {
        (_ORDERS[choice.point.kind != "hybrid"], choice.point.k): {
            "seconds": f"{choice.seconds:.3g}",
            "chosen by": ", ".join(choice.policies) or "no policy",
        }
        for choice in compared(outcome.points, timing)
    }


def _asking(live: HybridPipeline, N: int, guidance: float) -> Callable[[Explorer], str | Frame]:
    def ask(explorer: Explorer) -> Frame:
        prompt, seed, order, k = explorer.state.values()
        steps, in_turn = ([int(k), N - int(k)], [0, 1]) if order == "cloud first" else ([N - int(k), int(k)], [1, 0])
        samples = live.draw(str(prompt), steps=steps, order=in_turn, guidance=guidance, seed=int(seed))
        image = (255 * samples.pictures[0]).round().to(torch.uint8)
        facts: dict[str, Any] = {
            "asked": "the cloud",
            "bytes sent": samples.sent,
            "bytes received": samples.received,
            "steps": str(list(samples.steps)),
        }
        return Frame(
            _photo(str(prompt), image, str(prompt)), facts | ({"note": samples.notes[0]} if samples.notes else {})
        )

    return ask


# -- pictures ----------------------------------------------------------------------------------------------------------


def _photo(title: str, x: Tensor, prompt: str) -> str:
    """A picture (3, H, W) uint8, its pixels as squares, over what the reader of scenes says of it."""
    h, w = x.shape[1:]
    scale, top = _SIDE / max(h, w), svg.LINE + 5
    image = raster.image(raster.uri(x.permute(1, 2, 0).numpy()), 0, top, w * scale, h * scale, title)
    bottom, note = top + h * scale, verdict(prompt, x / 255)
    width = max(w * scale, min(svg.title_width(title), 340), svg.text_width(note))
    caption = svg.text(0, bottom + svg.UNDER, note)
    return svg.document(
        width, bottom + (svg.LINE + 4 if note else 4), svg.fit(title, width / 1.1), title, [image, caption]
    )


def _captioned(x: Tensor, prompt: str, wrong: Sequence[str]) -> str:
    """A picture (3, H, W) uint8 under its prompt, over the parts of it that the reader misses."""
    verdict = f"✗ wrong: {', '.join(wrong)}".replace("_", " ") if wrong else "✓ right in all parts"
    asked, read = (textwrap.wrap(words, _SIDE // 8) for words in (prompt, verdict))
    top, (h, w) = len(asked) * svg.LINE + 5, x.shape[1:]
    bottom = top + h * _SIDE / w
    lines = [svg.text(0, svg.BASE + i * svg.LINE, line) for i, line in enumerate(asked)]
    lines += [svg.text(0, bottom + svg.UNDER + i * svg.LINE, line, "strong") for i, line in enumerate(read)]
    image = raster.image(raster.uri(x.permute(1, 2, 0).numpy()), 0, top, _SIDE, h * _SIDE / w, prompt)
    return svg.document(_SIDE, bottom + len(read) * svg.LINE + 8, "", prompt, [*lines, image])


def _strip(stages: Tensor, k: int, N: int, order: str) -> str:
    """The stages of a picture (S, 3, H, W) in a row, under bars that say whose steps led to them."""
    top, gap = svg.LINE + 36, 6
    row = np.concatenate(list(stages.permute(0, 2, 3, 1).numpy()), 1)
    pitch = _STAGE_SIDE + gap
    width = len(stages) * pitch - gap
    h = stages.shape[2] * _STAGE_SIDE / stages.shape[3]
    sides = [("cloud", k, "lab-fill c0"), ("edge", N - k, "lab-fill c1")][:: 1 if order == "cloud first" else -1]
    split = width * sides[0][1] / N
    parts = [svg.rect(0, top - 12, split, 6, sides[0][2]), svg.rect(split, top - 12, width - split, 6, sides[1][2])]
    first, second = (f"{side}: {steps} steps" for side, steps, _ in sides)
    parts += [svg.text(0, top - 17, first), svg.text(width - 4, top - 17, second, "end")]
    parts.append(raster.image(raster.uri(row), 0, top, width, h * width / (len(stages) * _STAGE_SIDE), "stages"))
    return svg.document(width, top + h + 12, "from noise to picture", "latents decoded on the way", parts)


def _costs(split: dict[str, Any], outcome: HybridSDOutcome) -> str:
    most = max(point.cloud_macs for point in outcome.points)
    rows = [("cloud", split["cloud"], most), ("edge", split["edge"], most)]
    return svg.bars(_millions(rows), "MACs, millions", width=320)


def _millions(rows: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    return [(name, round(part / 1e6), round(most / 1e6)) for name, part, most in rows]


def _quality(points: Sequence[SweepPoint], k: int) -> list[str]:
    labels = {"accuracy": ("semantic accuracy", "%"), "frechet": ("Frechet distance", "of the reader's features")}
    plots = []
    for name, (title, unit) in labels.items():
        series = [svg.Series(kind, values) for kind, values in curves(points, name).items()]
        plots.append(svg.lines(series, "steps in the cloud", unit, title=title, at=k, width=320))
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


def contest(name: str = "figures") -> Any:
    """`data/hybridsd/figures.json` as a frame, one row a kind, k and seed; or 'baselines', beside others' savings."""
    import pandas

    if name not in ("figures", "baselines"):
        raise ValueError(f"name={name!r} is not allowed: give 'figures' or 'baselines'")
    return pandas.DataFrame(json.loads(store.artefact(f"hybridsd/{name}.json").read_text())["rows"])


def beside(rows: Any, k: int) -> Any:
    """Every variant at k steps of the cloud, and each model alone, as text: right in percent, and beside the split.

    Mean and standard deviation over seeds, and by how much a variant is ahead of the split on the same seeds, with the
    95 % interval. `rows` are as `contest` gives them, here or in `bound.view`.
    """
    import pandas

    by = rows[~rows.kind.isin(_OTHER_PROMPTS)].pivot(index="seed", columns=["kind", "k"], values="accuracy")
    if ("hybrid", k) not in by:
        raise ValueError(f"k={k!r} was not drawn: give one of {sorted({at for _, at in by if at})}")
    split, N = by["hybrid", k], max(at for _, at in by)
    variants = {"the split": ("hybrid", k)} | {kind: (kind, at) for kind, at in by if at == k and kind != "hybrid"}
    variants |= {"cloud alone": ("hybrid", N), "edge alone": ("hybrid", 0)}
    table = pandas.DataFrame(index=pandas.Index(list(variants), name=f"k = {k} of {N}"))
    table["seeds"] = [len(by[variant]) for variant in variants.values()]
    table["right, %"] = [f"{by[variant].mean():.1f} ± {by[variant].std():.1f}" for variant in variants.values()]
    leads = [interval(by[variant] - split) for variant in list(variants.values())[1:]]
    table["ahead of the split"] = ["", *(lead.shown(1, "+") for lead in leads)]
    return table


def controls() -> go.Figure:
    """Semantic accuracy of every variant of drawing against k, mean and range of the seeds."""
    table = contest()
    lines = []
    for kind in sweep.KINDS:
        by = table[table.kind == kind].groupby("k")["accuracy"].agg(["mean", "min", "max"])
        whiskers = {"type": "data", "array": by["max"] - by["mean"], "arrayminus": by["mean"] - by["min"]}
        lines.append(go.Scatter(x=list(by.index), y=by["mean"], name=kind, mode="lines+markers", error_y=whiskers))
    return figure(*lines, x="steps in the cloud", y="semantic accuracy (%)", title="one trajectory, two U-Nets")


# -- before and after --------------------------------------------------------------------------------------------------


def explained(
    outcome: HybridSDOutcome,
    task: PromptTask | None = None,
    prompt: str | None = None,
    *,
    seed: int = 0,
    places: Mapping[str, Sequence[int]] | None = None,
) -> lens.Explanation:
    """What the edge's model makes of what the cloud's is asked on its way to a picture: `lab.lens.compare`.

    `task` left out is the embedded pipeline, `prompt` a caption that it never learned from, `places` the tokens of its
    words.
    """
    pipeline = embedded() if task is None else task.model
    prompt = held_out(1, 5)[0].caption if prompt is None else prompt
    asked, _ = branches.questions(pipeline, prompt, seed, outcome.recipe.guidance, outcome.recipe.N)
    batches = [
        {"sample": latent, "timestep": t.reshape(1), "encoder_hidden_states": cond.text} for latent, t, cond in asked
    ]
    places = pipeline.text.places(prompt) if places is None else places
    return lens.compare(pipeline.unets[0], pipeline.unets[-1], batches, places=places, seed=seed)
