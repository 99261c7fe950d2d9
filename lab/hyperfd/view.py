"""HyperFD seen: the tasks as they came and what each regretted, what crossed the wall, domains, detections."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas
import plotly.graph_objects as go
import torch
from torch import Tensor

from ..core import ranking_metrics, store
from ..core.data.faces import Faces
from ..ui import Control, Explorer, Frame, figure, raster, svg, view
from ..ui.svg import PALETTE
from .detector import Detector, detect
from .outcome import HyperFDOutcome
from .space import Configuration

SHOWN = 3  # pictures of detections
LEAST = 0.3  # the score from which on a detection is drawn

Points = list[tuple[float, float]]


def numbers(outcome: HyperFDOutcome) -> dict[str, Points]:
    """(tasks served before, regret) of what was recommended, of chance, the default and the best average, as they came.

    Empty where no table tells. Regret is in the stream's unit.
    """
    columns = {"recommended": "regret", "random": "random", "default": "default", "best average": "best average"}
    return {
        shown: [(float(place), float(one[key])) for place, one in enumerate(outcome.served) if one[key] is not None]
        for shown, key in columns.items()
    }


def crossed(outcome: HyperFDOutcome, place: int) -> dict[str, int]:
    """What left the client at this place, in bytes and counts, beside what stayed with it, pictures as JPEG."""
    one = outcome.served[place]
    memory = len(outcome.state.get("memory", []))
    recipe, raw = outcome.recipe, outcome.known["raw"]  # empty where the data was gone when it was to be counted
    return {
        "bytes sent": int(one["sent"]), "meta-vectors sent": recipe.R if one["sent"] else 0,
        "results sent": len(one["tried"]) if one["sent"] else 0,
        **({"bytes that stayed": int(raw[place])} if raw else {}),
        "pictures sent": 0, "tasks remembered at the end": memory,
    }  # fmt: skip


def contest() -> Any:
    """`data/faces/results.csv` as a frame, one row a recommender, order and task: the benchmark as it was last run."""
    rows = pandas.read_csv(store.artefact("faces/results.csv"), dtype={"settings": str})
    rows = rows[rows["stream"] == "detectors"]
    return rows[rows["settings"] == rows.groupby("by")["settings"].transform("last")]


def bands(outcome: HyperFDOutcome) -> dict[str, list[tuple[float, float, float]]]:
    """(tasks served before, low, high) of the 95 % interval of regret over the benchmark's orders: of HyperFD, by the
    name 'recommended', and of the best average. Empty for other streams, and where the benchmark was not run."""
    if outcome.known["stream"] != "detectors":
        return {}
    try:
        rows = contest()
    except FileNotFoundError:
        return {}
    return {
        shown: [(float(place), found.low, found.high)
                for place, part in rows[rows["by"] == by].groupby("place")
                for found in [ranking_metrics.interval(part["regret"])]]
        for shown, by in (("recommended", "hyperfd"), ("best average", "best average"))
    }  # fmt: skip


def places(outcome: HyperFDOutcome) -> dict[str, Points]:
    """The meta-vectors (R of each task) on the two directions in which they vary most; {} for rivals.

    Signs are fixed: the largest weight of each direction is positive.
    """
    vectors = outcome.meta_vectors()
    if not vectors:
        return {}
    every = torch.cat(list(vectors.values())).double()
    centred = every - every.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False)[2][:2]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    found = (centred @ axes.T).split([len(v) for v in vectors.values()])
    return {name: [(float(a), float(b)) for a, b in part] for name, part in zip(vectors, found, strict=True)}


@view.register
def explore(outcome: HyperFDOutcome) -> Explorer:
    """The stream replayed: each task's regret, what it was recommended, what it sent, where it lies among others."""
    recipe, known, behind = outcome.recipe, outcome.known, bands(outcome)

    def draw(task: int) -> Frame:
        place = task - 1
        pictures = [part for show in (_chosen, _wall, _map) for part in show(outcome, place)]
        return Frame("".join([*_timeline(outcome, place, behind), *pictures]), _facts(outcome, place))

    controls = {"task": Control(list(range(1, len(outcome.served) + 1)), label="task")}
    return Explorer(draw, controls, title=f"HyperFD on {known['stream']}: {recipe.by}, {recipe.K} recommended")


def curves(results: Any, measure: str = "regret", title: str = "") -> go.Figure:
    """A measure against the tasks served before, one line a recommender with its 95 % band over orders.

    `results` is a DataFrame with the columns by, place, seed and the measure, as `benchmarks/hyperfd.py` writes.
    """
    missing = {"by", "place", "seed", measure} - set(results.columns)
    if missing:
        raise ValueError(f"results have no column {sorted(missing)[0]!r}: they have {', '.join(results.columns)}")
    traces: list[Any] = []
    for colour, (name, rows) in zip(PALETTE * 3, results.groupby("by", sort=False), strict=False):
        found = {place: ranking_metrics.interval(part[measure]) for place, part in rows.groupby("place")}
        x, low, high = list(found), [i.low for i in found.values()], [i.high for i in found.values()]
        traces.append(go.Scatter(x=[*x, *x[::-1]], y=[*high, *low[::-1]], fill="toself", fillcolor=colour, opacity=0.18,
                                 line={"width": 0}, hoverinfo="skip", showlegend=False))  # fmt: skip
        traces.append(go.Scatter(x=x, y=[i.mean for i in found.values()], name=name, mode="lines+markers",
                                 line={"color": colour}))  # fmt: skip
    return figure(*traces, x="tasks served before", y=measure, title=title)


def detections(
    nets: Mapping[str, tuple[Detector, Configuration]], faces: Faces, least: float = LEAST, rows: Sequence[int] = ()
) -> Explorer:
    """Pictures with what detectors find in them beside the true boxes: a slider of the score, a list of the detectors.

    nets: {name: (detector, its configuration)}, such as one before and one after; rows: numbers of the pictures.
    """
    shown = list(rows) or list(range(min(SHOWN, len(faces))))
    pictures = [faces.pictures[row] for row in shown]
    found = {name: detect(net, pictures, c.side) for name, (net, c) in nets.items()}

    def draw(detector: str, least: float) -> Frame:
        parts, hits = [], 0
        for row, picture, (boxes, scores) in zip(shown, pictures, found[detector], strict=True):
            kept = boxes[scores >= least]
            hits += len(kept)
            parts.append(boxed(picture, faces.boxes[row], kept, f"{detector}: {faces.names[row]}"))
        truth = sum(len(faces.boxes[row]) for row in shown)
        return Frame("".join(parts), {"faces": truth, "detections": hits, "least score": least})

    steps = [round(0.1 * k, 1) for k in range(1, 10)]
    return Explorer(draw, {"detector": Control(list(nets), label="detector"),
                           "least": Control(steps, label="least score", start=least)}, title="detections")  # fmt: skip


# -- pictures ----------------------------------------------------------------------------------------------------------


def boxed(picture: Tensor, truth: Tensor, found: Tensor, title: str, width: int = 240) -> str:
    """A picture with its true boxes (dashed) and those that were found."""
    scale = width / picture.shape[2]
    tall, top = picture.shape[1] * scale, svg.LINE + 6.0
    pixels = picture.permute(1, 2, 0).contiguous().numpy()
    parts = [raster.image(raster.uri(pixels), 0, top, width, tall, title)]
    for boxes, style in ((truth, 'stroke="#E69F00" stroke-dasharray="4 3"'), (found, 'stroke="#56B4E9"')):
        for left, right_top, right, bottom in (boxes * scale).tolist():
            parts.append(f'<rect x="{left:.1f}" y="{top + right_top:.1f}" width="{right - left:.1f}" '
                         f'height="{bottom - right_top:.1f}" fill="none" stroke-width="2" {style}/>')  # fmt: skip
    return svg.document(width, top + tall + 2, title, title, parts)


def _timeline(outcome: HyperFDOutcome, place: int, behind: Mapping[str, Sequence]) -> list[str]:
    """Regrets in the order in which the tasks came, before what they are over many orders; the present task marked."""
    known = {name: points for name, points in numbers(outcome).items() if points}
    series = [svg.Series(name, points, band=behind.get(name, ())) for name, points in known.items()]
    unit = outcome.known["unit"]
    title = "the order they came in" + (", on 95 % bands" if behind else "")
    return [svg.lines(series, "tasks served before", f"regret ({unit})", title, at=place)] if series else []


def _chosen(outcome: HyperFDOutcome, place: int) -> list[str]:
    """What was recommended, by its result, beside the best of the table."""
    one, known = outcome.served[place], outcome.known
    best = max(one["tried_results"]) if known["truth"] is None else float(known["truth"][place].nan_to_num(-1e9).max())
    bars = [(_named(outcome, row), max(0.0, y), max(best, y, 1e-9))
            for row, y in zip(one["rows"], one["results"], strict=True)]  # fmt: skip
    return [svg.bars(bars, title=f"recommended to {one['name']}: {known['metric']} of the best", width=460)]


def _wall(outcome: HyperFDOutcome, place: int) -> list[str]:
    """Bytes that left beside bytes that stayed, as two bars of one scale."""
    found = crossed(outcome, place)
    if "bytes that stayed" not in found:
        return []
    total = float(found["bytes sent"] + found["bytes that stayed"])
    rows = [
        ("left the client", float(found["bytes sent"]), total),
        (f"stayed, as {outcome.known['raw as']}", float(found["bytes that stayed"]), total),
    ]
    return [svg.bars(rows, title="bytes on either side of the wall")]


def _map(outcome: HyperFDOutcome, place: int) -> list[str]:
    """Where the tasks lie: the present one, those before and those after it."""
    found = places(outcome)
    if not found:
        return []
    order = {one["name"]: index for index, one in enumerate(outcome.served)}
    groups: dict[str, Points] = {"this task": [], "before": [], "after": []}
    for name, points in found.items():
        key = "this task" if order[name] == place else "before" if order[name] < place else "after"
        groups[key] += points
    series = [svg.Series(name, points, joined=False) for name, points in groups.items() if points]
    return [svg.lines(series, "first direction", "second", title="meta-vectors of all tasks, at the end")]


def _named(outcome: HyperFDOutcome, row: int) -> str:
    return " ".join(map(str, outcome.known["choices"][row]))


def _facts(outcome: HyperFDOutcome, place: int) -> dict[str, Any]:
    one, unit = outcome.served[place], outcome.known["unit"]
    facts: dict[str, Any] = {"data set": one["name"], f"best result ({unit})": f"{max(one['results']):.1f}"}
    if one["regret"] is not None:
        facts |= {f"regret ({unit})": f"{one['regret']:.1f}", f"by chance ({unit})": f"{one['random']:.1f}",
                  "rank of the best recommended": one["rank"]}  # fmt: skip
    return facts | {name: value for name, value in crossed(outcome, place).items() if "end" not in name}
