"""What became of the outputs: class by class, picture by picture, their confidence, and under corruptions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ui import Control, Explorer, Frame, raster, svg
from .atlas import span
from .attribution import attribution, correlation
from .corruptions import KINDS, corrupted
from .examples import CLASSES, IMAGES, SCORES, TOKENS, Compared, as_shown
from .significance import BINS, calibrated_error, calibration_error, sign_p

_CLASSES, _FLIPS, _SIDE = 24, 6, 132  # classes and pictures that are drawn at most; px of a picture
_STRENGTHS = (0, 1, 3, 5)
_CERTAIN = 0.05  # the chance that any class is marked that has not changed


@dataclass(frozen=True)
class Section:
    """A part of an explanation: its title, what it says, its numbers, and pictures (SVG) or explorers."""

    title: str
    text: str
    numbers: Any
    parts: Sequence[str | Explorer] = ()


def class_changes(pair: Compared) -> list[dict[str, Any]]:
    """Of each class its examples, the accuracy before and after in percent, and the exact p-value of a change."""
    assert pair.examples.y is not None
    y, rows = pair.examples.y.numpy(), []
    before, after = pair.scores["before"] > 0, pair.scores["after"] > 0
    for number in np.unique(y).tolist():
        old, new = before[y == number], after[y == number]
        lost, gained = int((old & ~new).sum()), int((new & ~old).sum())
        p = min(1.0, 2 * sign_p(max(lost, gained), min(lost, gained)))
        shares = {"before": 100 * float(old.mean()), "after": 100 * float(new.mean())}
        rows.append(
            {"class": pair.name(number), "examples": len(old), **shares, "lost": lost, "gained": gained, "p": p}
        )
    return rows


def classes(pair: Compared) -> Section | None:
    """Class by class, what was lost and what was gained."""
    if pair.examples.kind != CLASSES or not pair.scores:
        return None
    rows = class_changes(pair)
    certain = [row["class"] for row in rows if row["p"] * len(rows) <= _CERTAIN]
    rows_shown = sorted(rows, key=lambda row: row["after"] - row["before"])[:_CLASSES]
    text = (
        f"Changed by more than chance: {', '.join(certain)}."
        if certain
        else "No class has changed by more than chance."
    )
    text += f" By an exact sign test of each of {len(rows)} classes, at {_CERTAIN:.0%} for all together"
    text += f"; drawn are the {_CLASSES} that lost most." if len(rows) > _CLASSES else "."
    return Section("Class by class", text, rows, [_class_chart(rows_shown)])


def _class_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """A bar a class after the change over a hollow one before it, with both numbers."""
    left, room, tall = max(svg.text_width(row["class"]) for row in rows) + 10, 170, 24
    shapes = []
    for k, row in enumerate(rows):
        y = svg.HEAD + k * tall
        shapes += [
            svg.text(0, y + 15, row["class"]),
            svg.rect(left, y + 3, row["after"] / 100 * room, 8, "lab-shade c0") if row["after"] else "",
            svg.rect(left, y + 12, row["before"] / 100 * room, 6, "lab-track") if row["before"] else "",
            svg.text(left + room + 8, y + 15, f"{row['before']:.0f} to {row['after']:.0f} %", "num"),
            svg.text(left + room + 94, y + 15, f"{row['lost']} lost, {row['gained']} gained", "num"),
        ]
    bottom = svg.HEAD + len(rows) * tall
    shapes.append(svg.text(0, bottom + svg.BASE + 2, "filled: after; hollow: before; beside them examples"))
    width = max(left + room + 200, 440)
    return svg.document(width, bottom + svg.LINE + 6, "accuracy by class", "accuracy by class", shapes)


def flips(pair: Compared) -> Section | None:
    """The pictures whose answer changed, with what either network's answer hangs on."""
    x, y = pair.examples.images, pair.examples.y
    if pair.examples.kind != CLASSES:
        return None
    old, new = (pair.outputs[name].argmax(1).numpy() for name in ("before", "after"))
    changed = np.flatnonzero(old != new)
    numbers: dict[str, Any] = {"changed": len(changed), "of": len(old)}
    text = f"{len(changed)} of {len(old)} answers changed."
    if y is not None:
        right = {name: classes == y.numpy() for name, classes in (("before", old), ("after", new))}
        numbers["right to wrong"] = int((right["before"] & ~right["after"]).sum())
        numbers["wrong to right"] = int((right["after"] & ~right["before"]).sum())
        text = f"{text[:-1]}: {numbers['right to wrong']} from right to wrong, {numbers['wrong to right']} back."
    if x is None or not len(changed):
        return Section("Answers that flipped", text, numbers)
    sure = pair.outputs["before"].softmax(1).max(1).values.numpy()
    some = changed[np.argsort(-sure[changed], kind="stable")][:_FLIPS]
    text += f" Shown are the {len(some)} of which the network before was surest, with integrated gradients."
    return Section("Answers that flipped", text, numbers, [_flip_explorer(pair, x, some, old, new)])


def _flip_explorer(pair: Compared, x: Tensor, some: np.ndarray, old: np.ndarray, new: np.ndarray) -> Explorer:
    nets = {"before": pair.before, "after": pair.after, "fresh": pair.fresh}
    targets = {"before": old[some], "after": new[some], "fresh": new[some]}
    marks = {  # (n, h, w) each
        name: attribution(net, x[some], torch.from_numpy(targets[name]), steps=16).sum(1).float().cpu().numpy()
        for name, net in nets.items()
    }
    images = x[some].float().cpu().numpy()
    low, high = span(x.float().cpu().numpy())
    chance = {name: pair.outputs[name].softmax(1).max(1).values.numpy() for name in ("before", "after")}

    def draw(image: int = 1) -> Frame:
        k, number = image - 1, int(some[image - 1])
        parts = [raster.photo(images[k], f"example {number}", low, high, longest=_SIDE)]
        facts: dict[str, str] = {}
        for name, named in (("before", old), ("after", new)):
            label = f"{pair.name(int(named[number]))}, {chance[name][number]:.0%}"
            mark = marks[name][k : k + 1]
            parts.append(
                raster.grid(mark, f"{name}: {label}", "attribution", longest=_SIDE, scale=raster.Scale.of(mark))
            )
            facts[name] = label
        if pair.examples.y is not None:
            facts["label"] = pair.name(int(pair.examples.y[number]))
        facts["correlation of both"] = correlation(marks["before"][k].ravel(), marks["after"][k].ravel())
        facts["of after with fresh weights"] = correlation(marks["after"][k].ravel(), marks["fresh"][k].ravel())
        return Frame("".join(parts), facts)

    return Explorer(draw, {"image": Control(range(1, len(some) + 1), label="picture")} if len(some) > 1 else {})


def calibration(pair: Compared) -> Section | None:
    """Whether the networks are as sure as they are right."""
    if pair.examples.kind not in (CLASSES, TOKENS) or not pair.scores:
        return None
    series, numbers = [], dict[str, float](bins=BINS)
    for name in ("before", "after"):
        sure, right = confidence(pair, name)
        numbers[f"ECE {name}"] = 100 * calibration_error(sure, right)
        numbers[f"by chance {name}"] = 100 * calibrated_error(sure)
        number = np.minimum((sure * BINS).astype(int), BINS - 1)
        bins = [number == k for k in np.unique(number)]
        series.append(svg.Series(name, [(float(sure[b].mean()), float(right[b].mean())) for b in bins]))
    text = (
        f"The expected calibration error (ECE, {BINS} bins of equal width) went from {numbers['ECE before']:.1f} to "
        f"{numbers['ECE after']:.1f} points; a perfectly calibrated network of the same confidences would show "
        f"{numbers['by chance before']:.1f} and {numbers['by chance after']:.1f} on so few examples. Above the "
        "diagonal a network is right more often than it claims."
    )
    series.append(svg.Series("perfectly calibrated", [(0, 0), (1, 1)]))
    chart = svg.lines(series, x="confidence", y="share that is right", title="calibration", width=420)
    return Section("Calibration", text, numbers, [chart])


def confidence(pair: Compared, name: str) -> tuple[np.ndarray, np.ndarray]:
    """How sure a network was of each answer, and whether it was right: (N,) twice, of tokens all of them."""
    output, y = pair.outputs[name], pair.examples.y
    assert y is not None
    if pair.examples.kind == TOKENS:
        output, y = output[:, :-1].flatten(0, 1), y[:, 1:].flatten()
        output, y = output[y >= 0], y[y >= 0]
    sure, named = output.double().softmax(1).max(1)
    return sure.numpy(), (named == y).numpy()


def robustness(pair: Compared) -> Section | None:
    """The score under the usual corruptions, in growing strength."""
    x = pair.examples.images
    if x is None or not pair.scores:
        return None
    metric, unit, _ = SCORES[pair.examples.kind]
    low, high = span(x.cpu().numpy())
    numbers: dict[str, dict[str, list[float]]] = {}
    for kind in KINDS:
        images = [corrupted(x, kind, strength, low, high, pair.seed) for strength in _STRENGTHS[1:]]
        numbers[kind] = {}
        for name, net in (("before", pair.before), ("after", pair.after)):
            scores = [pair.examples.scores(pair.examples.outputs(net, image)) for image in images]
            every = [pair.scores[name], *scores]
            numbers[kind][name] = [as_shown(pair.examples.kind, score) for score in every]
        numbers[kind]["fresh weights"] = [as_shown(pair.examples.kind, pair.scores["fresh"])] * len(_STRENGTHS)
    means = {name: float(np.mean([numbers[kind][name][1:] for kind in KINDS])) for name in ("before", "after")}
    plain = {name: as_shown(pair.examples.kind, pair.scores[name]) for name in means}
    text = (
        f"Over all corruptions and strengths the {metric} is {means['before']:.1f} {unit} before and "
        f"{means['after']:.1f} {unit} after; on the pictures as given {plain['before']:.1f} and {plain['after']:.1f}. "
        "Kinds and strengths (0 to 5) are those of CIFAR-10-C (Hendrycks and Dietterich, 2019); fresh weights are "
        "asked about the pictures as given."
    )
    return Section(
        "Corruptions", text, numbers, [_curves(kind, of, f"{metric} ({unit})") for kind, of in numbers.items()]
    )


def _curves(kind: str, of: Mapping[str, Sequence[float]], y: str) -> str:
    series = [svg.Series(name, list(zip(_STRENGTHS, scores, strict=True))) for name, scores in of.items()]
    return svg.lines(series, x="strength", y=y, title=kind, width=320)


def images(pair: Compared) -> Section | None:
    """Where pictures that networks make have changed most."""
    if pair.examples.kind != IMAGES:
        return None
    worst = np.argsort(pair.agreement, kind="stable")[:4]
    numbers = {"agreement, dB": [float(value) for value in pair.agreement[worst]]}
    old, new = (pair.outputs[name][worst].numpy() for name in ("before", "after"))
    low, high = span(old)

    def draw(image: int = 1) -> Frame:
        k = image - 1
        parts = [raster.photo(x[k], name, low, high, longest=200) for name, x in (("before", old), ("after", new))]
        change = np.abs(new[k] - old[k]).mean(0, keepdims=True)
        title = "how far after is from before"
        parts.append(raster.grid(change, title, "mean over channels", longest=200, scale=raster.Scale.of(change)))
        facts = {"example": str(worst[k]), "agreement": f"{pair.agreement[worst[k]]:.1f} dB"}
        if pair.scores:
            facts |= {name: f"{pair.scores[name][worst[k]]:.1f} dB" for name in ("before", "after")}
        return Frame("".join(parts), facts)

    controls = {"image": Control(range(1, len(worst) + 1), label="picture")} if len(worst) > 1 else {}
    text = "The examples whose outputs are farthest apart, in decibels of before over the difference."
    return Section("Outputs that changed most", text, numbers, [Explorer(draw, controls)])
