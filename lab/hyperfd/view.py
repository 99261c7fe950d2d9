"""HyperFD seen: the tasks as they came and what each regretted, what crossed the privacy boundary, detections."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from ..core import ranking_metrics, store
from ..core.data.faces import Faces, FaceTask
from ..lens.changes import Section
from ..lens.explanation import Explanation
from ..lens.sanity import LEVEL, Check
from ..lens.significance import sign_p
from ..ui import Control, Explorer, Frame, svg, view
from ..ui.boxed import boxed
from ..ui.curves import interval_curves
from .boxes import brighter, judged
from .claim import contest
from .detector import FaceDetector, detect, score
from .evaluation import TaskRecord
from .outcome import HyperFDOutcome
from .space import Configuration

SHOWN = 3  # pictures of detections
LEASTS = tuple(round(0.05 * k, 2) for k in range(1, 20))  # scores from which on a detection may be drawn

BANDS = {"recommended": "hyperfd", "best average": "best average"}  # name in the picture: recommender in the benchmark

Points = list[tuple[float, float]]


def numbers(outcome: HyperFDOutcome) -> dict[str, Points]:
    """(tasks served before, regret) of what was recommended, of chance, the default and the best average, as they came.

    Empty where no table tells. Regret is in the stream's unit.
    """
    fields = {"recommended": "regret", "random": "random", "default": "default", "best average": "best_average"}
    return {
        name: [
            (float(position), float(regret))
            for position, task in enumerate(outcome.served)
            if (regret := getattr(task, field)) is not None
        ]
        for name, field in fields.items()
    }


def crossed(outcome: HyperFDOutcome, position: int) -> dict[str, int]:
    """Bytes and counts of what left the client at this position, beside what stayed with it, pictures as JPEG."""
    task = outcome.served[position]
    raw = outcome.context["raw"]  # empty where the data was gone when it was to be counted
    return {
        "bytes sent": task.sent,
        "meta-vectors sent": outcome.recipe.R if task.sent else 0,
        "results sent": len(task.tried) if task.sent else 0,
        **({"bytes that stayed": int(raw[position])} if raw else {}),
        "pictures sent": 0,
        "tasks remembered at the end": len(outcome.state.get("memory", [])),
    }


def bands(outcome: HyperFDOutcome) -> dict[str, list[tuple[float, float, float]]]:
    """(tasks served before, low, high) of the 95 % interval of regret over the benchmark's orders: of HyperFD, by the
    name 'recommended', and of the best average. Empty for other streams, and where the benchmark was not run."""
    if outcome.context["stream"] != "detectors":
        return {}
    try:
        rows = contest()
    except FileNotFoundError:
        return {}
    return {name: _band(rows[rows["by"] == by]) for name, by in BANDS.items()}


def _band(rows: Any) -> list[tuple[float, float, float]]:
    """(tasks served before, low, high) over the orders of one recommender."""
    intervals = {position: ranking_metrics.interval(part["regret"]) for position, part in rows.groupby("place")}
    return [(float(position), max(0.0, i.low), i.high) for position, i in intervals.items()]  # no regret is below 0


def principal_components(outcome: HyperFDOutcome) -> dict[str, Points]:
    """The meta-vectors (R of each task) on the two directions in which they vary most; {} for baselines.

    Signs are fixed: the largest weight of each direction is positive.
    """
    vectors = outcome.meta_vectors()
    if not vectors:
        return {}
    every = torch.cat(list(vectors.values())).double()  # (tasks R, d)
    centred = every - every.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False)[2][:2]  # (2, d)
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    parts = (centred @ axes.T).split([len(v) for v in vectors.values()])
    return {name: [(float(a), float(b)) for a, b in part] for name, part in zip(vectors, parts, strict=True)}


@view.register
def explore(outcome: HyperFDOutcome) -> Explorer:
    """The stream replayed: each task's regret, what it was recommended, what it sent, where it lies among others."""
    recipe, stream, behind = outcome.recipe, outcome.context["stream"], bands(outcome)

    def draw(task: int) -> Frame:
        position = task - 1
        panels = [part for show in (_chosen, _privacy, _map) for part in show(outcome, position)]
        return Frame("".join([*_timeline(outcome, position, behind), *panels]), _facts(outcome, position))

    controls = {"task": Control(list(range(1, len(outcome.served) + 1)), label="task")}
    return Explorer(draw, controls, title=f"HyperFD on {stream}: {recipe.by}, {recipe.K} recommended")


def curves(results: Any, measure: str = "regret", title: str = "") -> go.Figure:
    """A measure against the tasks served before, one line a recommender with its 95 % band over orders.

    `results` is a DataFrame with the columns by, place, seed and the measure, as `benchmarks/hyperfd.py` writes.
    """
    return interval_curves(
        results, "by", "place", measure, "tasks served before", title, 0.0 if measure == "regret" else -math.inf
    )


def detections(
        nets: Mapping[str, tuple[FaceDetector, Configuration]], faces: Faces, least: float | None = None,
    rows: Sequence[int] = (),
) -> Explorer:  # fmt: skip
    """Pictures with what detectors find in them: faces found, faces missed, and false alarms, each in a colour of its
    own; a slider of the score, a list of the detectors. A detection finds a face that it overlaps by half or more.

    nets: {name: (detector, its configuration)}, such as one before and one after, of which the last is shown first;
    least: the score where the slider starts, left out one at which the last finds as many boxes as there are faces;
    rows: numbers of the pictures. Dark pictures are shown brighter than the detectors see them.
    """
    shown = list(rows) or list(range(min(SHOWN, len(faces))))
    images = [faces.images[row] for row in shown]
    detected = {name: detect(net, images, c.side) for name, (net, c) in nets.items()}

    def draw(detector: str, least: float) -> Frame:
        parts, counts = [], dict.fromkeys(("faces", "found", "missed", "false alarms"), 0)
        for row, image, (boxes, scores) in zip(shown, images, detected[detector], strict=True):
            by_name = judged(boxes[scores >= least], faces.boxes[row])
            of = len(faces.boxes[row])
            parts.append(_boxed(image, by_name, f"{faces.names[row]}: {len(by_name['found'])} of {of} found"))
            for name, count in zip(counts, (of, *map(len, by_name.values())), strict=True):
                counts[name] += count
        return Frame("".join(parts), {**counts, "least score": least})

    last = list(nets)[-1]
    if least is None:
        least = _least(torch.cat([scores for _, scores in detected[last]]), sum(len(faces.boxes[row]) for row in shown))
    controls = {
        "detector": Control(list(nets), label="detector", start=last),
        "least": Control(sorted({*LEASTS, least}), label="least score", start=least),
    }
    return Explorer(draw, controls, title="detections")


# -- pictures ----------------------------------------------------------------------------------------------------------


def _boxed(image: Tensor, boxes: Mapping[str, Tensor], title: str) -> str:
    """A picture (3, H, W), brighter than it is, with boxes by name."""
    pixels = brighter(image).permute(1, 2, 0).contiguous().numpy()
    return boxed(pixels, {name: some.tolist() for name, some in boxes.items()}, title)


def _least(scores: Tensor, faces: int) -> float:
    """The least score at which the number of detections is nearest to that of faces."""
    return min(LEASTS, key=lambda least: (abs(int((scores >= least).sum()) - faces), -least))


def _timeline(outcome: HyperFDOutcome, position: int, behind: Mapping[str, Sequence]) -> list[str]:
    """Regrets in the order in which the tasks came, before what they are over many orders; the present task marked."""
    lines = {name: points for name, points in numbers(outcome).items() if points}
    series = [svg.Series(name, points, band=behind.get(name, ())) for name, points in lines.items()]
    unit = outcome.context["unit"]
    title = "as tasks came" + ("; shaded: 95 % of the benchmark's orders" if behind else "")
    return [svg.lines(series, "tasks served before", f"regret ({unit})", title, at=position)] if series else []


def _chosen(outcome: HyperFDOutcome, position: int) -> list[str]:
    """What was recommended, by how far its result is below the best of the table."""
    task, truth, context = outcome.served[position], outcome.context["truth"], outcome.context
    best = max(task.tried_results) if truth is None else float(truth[position].nan_to_num(-1e9).max())
    names = [" ".join(map(str, context["choices"][row])) for row in task.rows]
    below = [max(best - y, 0.0) for y in task.results]
    left, top, width = max(map(svg.text_width, names)) + 12, svg.HEAD + 2 * svg.LINE, 460
    room = (width - left - 60) / (max(below) or 1)
    parts = [svg.text(0, top - svg.LINE - 4, svg.fit(", ".join(context["decisions"]), width))]
    parts.append(svg.text(left, top - 4, f"{context['metric']} below the best of all, {best:.1f} {context['unit']}"))
    for k, (name, value) in enumerate(zip(names, below, strict=True)):
        y = top + k * svg.LINE
        parts += [svg.text(0, y + svg.BASE, name), svg.rect(left, y + 3, value * room, svg.LINE - 6, "lab-fill c0")]
        parts.append(svg.text(left + value * room + 6, y + svg.BASE, f"{value:.1f}", "num"))
    title = f"recommended to {task.name}"
    return [svg.document(width, top + len(names) * svg.LINE + 4, title, title, parts)]


def _privacy(outcome: HyperFDOutcome, position: int) -> list[str]:
    """Bytes that left beside bytes that stayed, as two bars of one scale."""
    bytes_ = crossed(outcome, position)
    if "bytes that stayed" not in bytes_:
        return []
    left, stayed = float(bytes_["bytes sent"]), float(bytes_["bytes that stayed"])
    rows = [
        ("left the client", left, left + stayed),
        (f"stayed, as {outcome.context['raw as']}", stayed, left + stayed),
    ]
    return [svg.bars(rows, title="bytes on either side of the privacy boundary")]


def _map(outcome: HyperFDOutcome, position: int) -> list[str]:
    """Where the tasks lie: the present one, those before and those after it."""
    clouds = principal_components(outcome)
    if not clouds:
        return []
    order = {task.name: index for index, task in enumerate(outcome.served)}
    groups: dict[str, Points] = {"this task": [], "before": [], "after": []}
    for name, points in clouds.items():
        key = "this task" if order[name] == position else "before" if order[name] < position else "after"
        groups[key] += points
    series = [svg.Series(name, points, joined=False) for name, points in groups.items() if points]
    return [svg.lines(series, "first direction", "second direction", title="meta-vectors of all tasks, at the end")]


def _facts(outcome: HyperFDOutcome, position: int) -> dict[str, Any]:
    task, unit = outcome.served[position], outcome.context["unit"]
    facts: dict[str, Any] = {"data set": task.name, f"best result ({unit})": f"{max(task.results):.1f}"}
    if task.regret is not None:
        facts |= {
            f"regret ({unit})": f"{task.regret:.1f}",
            f"by chance ({unit})": f"{task.random:.1f}",
            "rank of the best recommended": task.rank,
        }
    return facts | {name: value for name, value in crossed(outcome, position).items() if "end" not in name}


def privacy_curve(runs: Any, title: str = "") -> go.Figure:
    """Regret over epsilon with its 95 % band over orders, and lines for what is learned without noise and for chance.

    `runs` is a DataFrame with the columns by ('epsilon 4', and others without noise), seed, regret and chance, as
    `benchmarks/hyperfd_trust.py --part epsilon` writes; see `privacy_contest`.
    """
    private = runs[runs["by"].str.startswith("epsilon ")].assign(recommender="with noise")
    private = private.assign(epsilon=private["by"].str.removeprefix("epsilon ").astype(float)).sort_values("epsilon")
    curve = interval_curves(private, "recommender", "epsilon", "regret", "epsilon", title, 0.0)
    others = runs[~runs["by"].str.startswith("epsilon ")].groupby("by")["regret"].mean().sort_values()
    for k, (name, mean) in enumerate(others.items()):  # the lowest is named below its line, so that names keep apart
        at = "top right" if k else "bottom right"
        curve.add_hline(mean, line_dash="dash", annotation_text=name, annotation_position=at)
    curve.add_hline(runs["chance"].mean(), line_dash="dot", annotation_text="chance")
    return curve.update_xaxes(type="log")


def privacy_contest() -> Any:
    """`data/faces/epsilon.json` as a frame, one row a run: the benchmark as it was last run."""
    import pandas

    return pandas.DataFrame(json.loads(store.artefact("faces/epsilon.json").read_text(encoding="utf-8"))["runs"])


# -- recommended beside tried ------------------------------------------------------------------------------------------

WORTH = (
    f"Recommendations and scores that know nothing pass these checks at most once in {1 / LEVEL:,.0f}: exact sign "
    "tests over the tasks of the stream but the first, when nobody knows anything."
)


def explained(
    outcome: HyperFDOutcome,
    faces: FaceTask | None = None,
    detectors: Mapping[str, tuple[FaceDetector, Configuration]] | None = None,
) -> Explanation:
    """What was recommended beside what else was tried, predicted and measured; detectors on the faces held out."""
    if faces is not None and not isinstance(faces, FaceTask):
        raise TypeError(f"explain() of a stream takes a FaceTask, not a {type(faces).__name__}: see lab.tasks.faces")
    if (faces is None) != (not detectors):
        raise ValueError("explain() asks detectors about faces: give a FaceTask and detectors={name: (net, settings)}")
    sections = [_against(outcome), _predicted(outcome), _stream(outcome), _detectors(faces, detectors)]
    report = replace(outcome.report, title="HyperFD: the recommended and what else was tried")
    return Explanation(report, tuple(_checks(outcome)), tuple(sections), WORTH)


def _checks(outcome: HyperFDOutcome) -> list[Check]:
    """Whether recommendations beat chance, and scores order what was tried, over the tasks but the first."""
    later, checks = outcome.served[1:], []
    if 0.5 ** len(later) > LEVEL:
        return [Check("recommendations", False, f"{len(outcome.served)} tasks are too few to tell")]
    pairs = [(task.regret, task.random) for task in later if task.regret is not None and task.random is not None]
    if pairs:
        p = sign_p(sum(a < b for a, b in pairs), sum(a > b for a, b in pairs))
        text = f"what was recommended is {'no ' if p > LEVEL else ''}better than as many random choices"
        checks.append(Check("recommendations", p > LEVEL, text, p))
    if outcome.state:
        taus = [tau for task in later if (tau := order(task)) is not None]
        p = sign_p(sum(tau > 0 for tau in taus), sum(tau < 0 for tau in taus))
        text = f"the scores order what was tried {'no ' if p > LEVEL else ''}better than chance"
        checks.append(Check("order of the scores", p > LEVEL, text, p))
    return checks


def order(task: TaskRecord) -> float | None:
    """Kendall's tau of the scores of all that a client tried with its results; None where it tried fewer than three."""
    if len(task.tried) < 3:
        return None
    return ranking_metrics.kendall_tau(task.scores[list(task.tried)], torch.tensor(task.tried_results))


def _against(outcome: HyperFDOutcome) -> Section:
    """The mean regret of what was recommended and of its rivals."""
    rows = {name: [y for position, y in points if position] for name, points in numbers(outcome).items()}
    means = {name: sum(values) / len(values) for name, values in rows.items() if values}
    if not means:
        text = "Every result was trained, and what else there would have been is not known: nothing tells the regret."
        return Section("The recommended and their rivals", text, {})
    unit = outcome.context["unit"]
    listed = ", ".join(f"{name} {mean:.1f}" for name, mean in sorted(means.items(), key=lambda item: item[1]))
    text = f"Mean regret in {unit} of all tasks but the first, the lowest first: {listed}. The default is one choice."
    return Section("The recommended and their rivals", text, means)


def _predicted(outcome: HyperFDOutcome) -> Section:
    """Task by task the score of each configuration that was tried, and what it did."""
    unit, metric = outcome.context["unit"], outcome.context["metric"]

    def draw(task: int) -> Frame:
        record = outcome.served[task - 1]
        points = [(float(record.scores[row]), y) for row, y in zip(record.tried, record.tried_results, strict=True)]
        groups = {"recommended": points[: len(record.rows)], "drawn at random": points[len(record.rows) :]}
        series = [svg.Series(name, some, joined=False) for name, some in groups.items() if some]
        tau = order(record)
        facts = {"data set": record.name, "kendall tau": "-" if tau is None else f"{tau:.2f}"}
        return Frame(svg.lines(series, "predicted score", f"{metric} ({unit})", title="tried by this client"), facts)

    taus = {task.name: order(task) for task in outcome.served}
    defined = [tau for tau in taus.values() if tau is not None]
    mean = sum(defined) / len(defined) if defined else math.nan
    text = "What the platform predicted of each configuration that a client tried, and what the client measured. "
    text += f"Kendall's tau is {mean:.2f} on average; of shuffled scores it is 0."
    controls = {"task": Control(list(range(1, len(outcome.served) + 1)), label="task")}
    return Section("Predicted and measured", text, {"kendall tau": taus}, [Explorer(draw, controls)])


def _stream(outcome: HyperFDOutcome) -> Section:
    text = "Each task as it came: its regret, what was recommended to it, and what crossed the privacy boundary."
    return Section("The stream", text, [crossed(outcome, k) for k in range(len(outcome.served))], [explore(outcome)])


def _detectors(faces: FaceTask | None, detectors: Mapping[str, tuple[FaceDetector, Configuration]] | None) -> Section:
    """Average precision of detectors on the faces that a task holds out, and what they find in two of its pictures."""
    if faces is None or not detectors:
        text = "The clients keep their detectors, the outcome has none: give explain() a FaceTask and detectors={name: "
        return Section("Detectors", text + "(net, configuration)}, such as one before and one after.", {})
    held_out = faces.held_out
    precisions = {name: score(net, held_out, settings.side) for name, (net, settings) in detectors.items()}
    listed = ", ".join(f"{name} {scores['ap50']:.1f} %" for name, scores in precisions.items())
    text = f"Average precision at an overlap of 0.5 on {len(held_out)} pictures held out: {listed}."
    parts = [
        _detections(held_out, k, name, *of) for k in range(min(2, len(held_out))) for name, of in detectors.items()
    ]
    return Section("Detectors", text, precisions, parts)


def _detections(faces: Faces, number: int, name: str, net: FaceDetector, settings: Configuration) -> str:
    """What a detector finds in one picture, as many boxes as there are faces, drawn small."""
    image, truth = faces.images[number], faces.boxes[number]
    boxes = detect(net, [image], settings.side)[0][0][: len(truth)]
    scale = min(1.0, 160 / max(image.shape[1:]))
    size = [max(1, round(side * scale)) for side in image.shape[1:]]
    small = torch.nn.functional.interpolate(image[None].float(), size=size, mode="area")[0].to(torch.uint8)
    return _boxed(small, judged(boxes * scale, truth * scale), f"{name}: {faces.names[number]}")
