"""PAMS seen: ranges and values of each tensor over the training, and a picture under a slider of bits."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core import store, tasks
from ..core.report import Report, Row
from ..core.task import Task
from ..ui import Control, Explorer, Frame, raster, svg, view
from . import equations as eq
from .outcome import PAMSOutcome

PARTS = {  # where of a picture, as shares of its sides: left, top, width
    "whole": (0.0, 0.0, 1.0),
    "upper left": (0.0, 0.0, 0.5),
    "upper right": (0.5, 0.0, 0.5),
    "lower left": (0.0, 0.5, 0.5),
    "lower right": (0.5, 0.5, 0.5),
}
FACE = (30, 92, 48)  # a part of the first held-out photograph at half its size: top, left, side
_WIDE = 256  # px, the side of a shown picture


def numbers(outcome: PAMSOutcome, tensor: str, snapshot: int) -> dict[str, Any]:
    """One quantised tensor at one snapshot: its alpha and step, its values as (x, share) and the share clipped."""
    q = list(outcome.placement.groups()).index(tensor)
    point, history = outcome.placement.groups()[tensor], outcome.history
    alpha, reach = float(history["alphas"][snapshot, q]), float(history["reach"][q])
    shares = history["histograms"][snapshot, q]
    centres = (torch.arange(len(shares)) + 0.5) / len(shares) * 2 * reach - reach  # of the bins
    bits = 8 if point.image else outcome.recipe.activation_bits
    return {
        "alpha": alpha,
        "step": alpha / eq.levels(bits, point.signed),
        "signed": point.signed,
        "reach": reach,
        "clipped": float(shares[centres.abs() > alpha].sum()),
        "values": list(zip(centres.tolist(), shares.tolist(), strict=True)),
    }


def percent(share: float) -> str:
    """A share to a tenth of a percent; what is less, but not nothing, is not called nothing."""
    return "under 0.05 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def ranges(outcome: PAMSOutcome) -> dict[str, list[tuple[int, float]]]:
    """Each tensor's (step, alpha) over the training."""
    steps, alphas = outcome.history["steps"].tolist(), outcome.history["alphas"].T.tolist()
    return {
        name: list(zip(steps, row, strict=True)) for name, row in zip(outcome.placement.groups(), alphas, strict=True)
    }


@view.register
def explore(outcome: PAMSOutcome) -> Explorer:
    """The run replayed: what a quantised tensor holds and how it is clipped at every step, its range, the losses."""
    steps, over = outcome.history["steps"].tolist(), ranges(outcome)

    def draw(tensor: str, step: int) -> Frame:
        state = numbers(outcome, tensor, steps.index(step))
        curve = svg.Series(tensor, over[tensor])
        panels = [
            _values(state, tensor),
            svg.lines([curve], "step", "alpha", title="clip range over the run", at=step),
            *_losses(outcome, step),
        ]
        facts: dict[str, Any] = {
            "alpha": float(f"{state['alpha']:.4g}"),
            "step of the grid": float(f"{state['step']:.3g}"),
            "clipped": percent(state["clipped"]),
            "grid": "signed" if state["signed"] else "from 0",
        }
        return Frame("".join(panels), facts)

    names = list(over)
    controls = {
        "tensor": Control(names, label="tensor", start=names[len(names) // 2]),
        "step": Control(steps, label="step", start=steps[-1]),
    }
    recipe = outcome.recipe
    title = f"PAMS W{recipe.weight_bits}A{recipe.activation_bits}, placement {recipe.placement}: ranges found"
    return Explorer(draw, controls, title=title)


def bits(outcomes: Sequence[PAMSOutcome], task: Task, image: Tensor | None = None, measure: bool = False) -> Explorer:
    """A picture under a slider of activation bits, beside what the float network makes of it, with size and operations.

    `image` is small, (1, C, H, W) in [0, 1]; left out, a face of the held-out photographs. A click on a quarter
    enlarges it. `measure` adds each network's ms in onnxruntime, here. Raises ValueError for outcomes of equal bits.
    """
    by_bits = {outcome.recipe.activation_bits: outcome for outcome in sorted(outcomes, key=_bits)}
    if len(by_bits) < len(outcomes) or not by_bits:
        raise ValueError(f"outcomes have {[_bits(o) for o in outcomes]} bits: give one or more, each of other bits")
    low = face() if image is None else image
    before = _enlarged(task.model, low)
    after = lru_cache(maxsize=None)(lambda b: _enlarged(by_bits[b].model, low))
    times = {b: outcome.race(task.model)["int8"].median for b, outcome in by_bits.items()} if measure else {}
    scale = raster.Scale(0.0, max(float(_apart(before, after(b)).max()) for b in by_bits))

    def draw(bits: int, part: str) -> Frame:
        report = by_bits[bits].report
        in_float, quantised = (_cut(x, part) for x in (before, after(bits)))
        invites = "float: click a quarter" if part == "whole" else "float: click to go back"
        panels = [
            _photo(invites, in_float, _clicks(in_float, part)),
            _photo(f"W{by_bits[bits].recipe.weight_bits}A{bits}", quantised),
            _difference(in_float, quantised, scale),
            *_curves(by_bits, bits),
        ]
        score = _score(report)
        facts: dict[str, Any] = {
            score.name: f"{score.after:.2f} {score.unit}",
            "float": f"{score.before:.2f} {score.unit}",
            "mean difference": f"{_apart(in_float, quantised).mean():.3f} of 255",
            "bytes": report["bytes"].shown(report["bytes"].after),
            "bitops": f"{report['bitops'].ratio:.2f}x fewer",
        }
        return Frame("".join(panels), facts | ({"ms": f"{times[bits]:.2f}"} if times else {}))

    controls = {
        "bits": Control(list(by_bits), label="activation bits", start=max(by_bits)),
        "part": Control(list(PARTS)),
    }
    placements = ", ".join(sorted({outcome.recipe.placement for outcome in outcomes}))
    return Explorer(draw, controls, title=f"PAMS, placement {placements}: what bits cost")


def face() -> Tensor:
    """The part of a held-out photograph that pictures show, small: (1, 3, 48, 48)."""
    low, _ = next(iter(tasks.photos_held_out(2)))
    top, left, side = FACE
    return low[:, :, top : top + side, left : left + side]


# -- pictures ----------------------------------------------------------------------------------------------------------


def _values(state: dict[str, Any], name: str, width: int = 380) -> str:
    """A histogram on a root scale, the range as two marks; bars outside the range are clipped."""
    tall, left, top = 170, 6, svg.LINE * 2 + 6
    values, reach = state["values"], state["reach"]
    slot = (width - 2 * left) / len(values)
    most = max(share for _, share in values) ** 0.5 or 1.0
    parts = [svg.text(left, top - 8, "share of values, root scale")]
    for k, (x, share) in enumerate(values):
        high = tall * share**0.5 / most
        kind = "lab-fill c1" if abs(x) > state["alpha"] else "lab-fill c0"
        parts += [svg.rect(left + k * slot, top + tall - high, slot - 1, high, kind)] if share else []
    floor = top + tall
    parts.append(svg.rect(left, floor, width - 2 * left, 1, "lab-track"))
    ends = (-state["alpha"], state["alpha"]) if state["signed"] else (0.0, state["alpha"])
    for end in ends:
        at = min(max(left + (end + reach) / (2 * reach) * (width - 2 * left), left), width - left)
        parts.append(svg.rect(at, top, 1.5, tall, "lab-fill c3"))
        parts.append(svg.text(min(max(at, 24), width - 24), floor + 16, f"{end:.3g}", "mid num"))
    parts += _key(width, floor + 16 + svg.LINE)
    return svg.document(width, floor + 22 + svg.LINE, _fitted(f"values of {name}", width), f"values of {name}", parts)


def _key(width: float, y: float) -> list[str]:
    """What the axis holds and what the colours mean, in a line."""
    parts, x = [svg.text(0, y, "value")], width
    for word, kind in (("range", "lab-fill c3"), ("clipped", "lab-fill c1"), ("kept", "lab-fill c0")):
        x -= svg.text_width(word) + 26
        parts += [svg.rect(x, y - 9, 9, 9, kind), svg.text(x + 14, y, word)]
    return parts


def _fitted(text: str, width: float) -> str:
    """A title, shortened to the room that its picture has."""
    return svg.fit(text, width / 1.1)


def _photo(title: str, x: Tensor, press: dict[str, tuple[float, float, float, float]] | None = None) -> str:
    """A picture (C, H, W), every pixel exact; `press` are the parts that a click shows: left, top, width, height."""
    h, w = x.shape[1:]
    scale, top = _WIDE / max(h, w), svg.LINE + 5
    pixels = raster.as_picture(x.numpy(), 0.0, 1.0)
    parts = [raster.image(raster.uri(pixels, exact=True), 0, top, w * scale, h * scale, title)]
    for part, (left, down, wide, tall) in (press or {}).items():
        box = (left * scale, top + down * scale, wide * scale, tall * scale)
        parts.append(svg.target(box, part, part=part))
    return svg.document(max(w * scale, svg.text_width(title) * 1.1), top + h * scale + 4, title, title, parts)


def _difference(a: Tensor, b: Tensor, scale: raster.Scale | None = None) -> str:
    apart = _apart(a, b)
    return raster.grid(
        apart[None],
        "difference",
        "of 255",
        columns=1,
        longest=_WIDE,
        scale=scale or raster.Scale(0.0, max(apart.max(), 1e-3)),
    )


def _apart(a: Tensor, b: Tensor) -> np.ndarray:
    """How far two pictures are apart, mean of the channels, on the scale 0..255: (H, W)."""
    return 255 * (a - b).abs().mean(0).numpy()


def _cut(x: Tensor, part: str) -> Tensor:
    h, w = x.shape[1:]
    left, top, size = PARTS[part]
    return x[:, round(top * h) : round((top + size) * h), round(left * w) : round((left + size) * w)]


def _clicks(x: Tensor, part: str) -> dict[str, tuple[float, float, float, float]]:
    """What a click on a picture leads to: from the whole to its quarters, from a quarter back."""
    h, w = x.shape[1:]
    if part != "whole":
        return {"whole": (0, 0, w, h)}
    return {name: (left * w, top * h, size * w, size * h) for name, (left, top, size) in PARTS.items() if size < 1}


def _curves(by_bits: dict[int, PAMSOutcome], at: int) -> list[str]:
    """The score, the size and the operations against bits."""
    score = _score(by_bits[at].report)

    def both(name: str) -> list[svg.Series]:
        rows = {b: outcome.report[name] for b, outcome in by_bits.items()}
        after = [(float(b), row.after or 0.0) for b, row in rows.items()]
        return [
            svg.Series("quantised", after),
            svg.Series("float", [(b, row.before or 0.0) for b, row in rows.items()]),
        ]

    fewer = svg.Series("bitops", [(b, outcome.report["bitops"].ratio) for b, outcome in by_bits.items()])
    shown: dict[str, Any] = {"x": "activation bits", "at": at, "width": _WIDE}
    return [
        svg.lines(both(score.name), y=f"{score.name} ({score.unit})", title="what is lost", **shown),
        svg.lines(both("bytes"), y="bytes", title="size", **shown),
        svg.lines([fewer], y="times fewer bit operations", title="operations", **shown),
    ]


def _score(report: Report) -> Row:
    return next(row for row in report if row.kind == "learned")


def _losses(outcome: PAMSOutcome, at: int) -> list[str]:
    """Each term of the loss on axes of its own: they are of unlike size."""
    thin = outcome.trace[:: max(1, len(outcome.trace) // 60)]
    titles = {
        "l1": ("reconstruction loss", "L1, of 255"),
        "task": ("the task's own loss", "loss"),
        "skt": ("knowledge transfer (skt)", "loss, weighted"),
    }
    series = [svg.Series(name, [(step.index, step.terms[name]) for step in thin]) for name in thin[0].terms]
    return [svg.lines([c], "step", titles[c.name][1], title=titles[c.name][0], at=at) for c in series]


def _enlarged(model: nn.Module, low: Tensor) -> Tensor:
    """What a network makes of a small picture: (C, H, W) on the processor."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return model(low.to(device))[0].clamp(0, 1).cpu()


def _bits(outcome: PAMSOutcome) -> int:
    return outcome.recipe.activation_bits


# -- the benchmark as it was last run ----------------------------------------------------------------------------------


def speeds() -> Any:
    """`data/pams/speed.json` as a frame: EDSR-baseline in onnxruntime, one row a form."""
    import pandas

    return pandas.DataFrame(json.loads(store.artefact("pams/speed.json").read_text())["speed"])
