"""Decoupling seen: the paths of two pictures through the layers, the filters they share, and what each filter sees."""

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import store
from ..core.task import evaluating
from ..ui import Control, Explorer, Frame, raster, svg, view
from .layers import recording
from .outcome import DecouplingOutcome
from .paths import Paths, class_paths, class_similarity

NOBODY = "none"
STATES = ("both", "only A", "only B", "neither")
COLOURS = ("c2", "c0", "c1", "")  # of STATES
WIDE, TALL = 26, 150  # px: a layer's column with the room to the next, and its height
ROW = 24  # layers in a row of the flow
PAGE = 128  # filters on a page
STRONGEST = 8  # pictures shown for a filter


@dataclass(frozen=True)
class Fork:
    """Two pictures at one layer: the state of each filter, an index into STATES (C_l,)."""

    layer: str
    state: np.ndarray

    def counts(self) -> list[int]:
        """How many filters are in each of STATES."""
        return [int((self.state == k).sum()) for k in range(len(STATES))]


def numbers(paths: Paths, a: int, b: int | None) -> list[Fork]:
    """For each layer which filters are on for picture a, for b, for both or for neither; b may be left out."""
    bits = paths.bits
    first = bits[a]
    second = bits[b] if b is not None else first
    state = np.where(first & second, 0, np.where(first, 1, np.where(second, 2, 3)))
    return [Fork(name, state[paths.span(name)]) for name in paths.layers]


@view.register
def explore(
    outcome: DecouplingOutcome,
    *,
    pictures: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    filters: Sequence[int] | None = None,
) -> Explorer:
    """The paths of pictures A and B as a flow through the layers; a click on a layer shows its filters, one on a filter
    its maps, its classes and its strongest pictures.

    `pictures` (of the outcome's sample), `layers` and `filters` narrow the choice, which `explorer.save` needs: a page
    holds some hundred states.
    """
    chosen = _known_pictures(outcome, pictures)
    names = {f"{k}: {_class(outcome, k)}": k for k in chosen}
    shown = _known_layers(outcome.seen, layers)
    seen = _Seen(outcome)
    sizes = dict(zip(outcome.seen.layers, outcome.seen.sizes, strict=True))
    numbered = _known_filters(max(sizes[name] for name in shown), filters)

    def draw(a: str, b: str, layer: str, filter: int) -> Frame:
        pair = [names[a]] + ([names[b]] if b != NOBODY else [])
        at = [int(outcome.sampled[k]) for k in pair]
        forks = numbers(outcome.seen, at[0], at[1] if len(at) > 1 else None)
        here = next(fork for fork in forks if fork.layer == layer)
        k = min(filter, sizes[layer] - 1)
        picture = [
            flow(forks, layer, set(shown), len(pair) > 1),
            filter_grid(here, k, len(pair) > 1, set(numbered)),
            seen.pictures(pair),
        ]
        picture += [seen.maps(pair, layer, k), seen.classes(layer, k), seen.strongest(layer, k)]
        both, only_a, only_b, _ = here.counts()
        facts: dict[str, str | int | float] = {"filters on": f"{both + only_a} of {sizes[layer]} in {layer}"}
        if len(pair) > 1:
            shared, all_a, all_b = (sum(fork.counts()[i] for fork in forks) for i in range(3))
            facts["shared here"] = f"{both} of {both + only_a + only_b}"
            facts["shared by the whole paths"] = f"{shared} of {shared + all_a + all_b}"
        return Frame("".join(picture), {**facts, "filter": f"{k} is {_state(here, k, len(pair))}"})

    labels = list(names)
    other = next((name for name in labels if _class(outcome, names[name]) != _class(outcome, names[labels[0]])), NOBODY)
    controls = {
        "a": Control(labels, label="picture A"),
        "b": Control([NOBODY, *labels], label="picture B", start=other),
        "layer": Control(shown, start=shown[-1]),
        "filter": Control(numbered),
    }
    return Explorer(draw, controls, title=f"Decoupling(r={outcome.recipe.r:g}): the paths of two pictures")


def similarity(outcome: DecouplingOutcome, paths: Paths | None = None) -> Explorer:
    """How alike the classes' paths are, layer by layer: a slider through the layers, class by class.

    Of the outcome's own paths, or of others. The cosine is that of `paths.class_similarity`.
    """
    seen = paths if paths is not None else outcome.seen
    classes = [str(label) for label in seen.classes()]

    def draw(layer: str) -> Frame:
        alike = class_similarity(seen, layer)
        beside = alike[~np.eye(len(alike), dtype=bool)]
        conditional = int(seen.conditional()[seen.span(layer)].sum())
        facts = {"conditional filters": f"{conditional} of {seen.sizes[seen.layers.index(layer)]}"}
        if conditional and len(classes) > 1:
            i, j = np.unravel_index((alike - 3 * np.eye(len(alike))).argmax(), alike.shape)
            facts["most alike"] = f"{classes[i]} and {classes[j]}, cosine {alike[i, j]:.2f}"
            facts["mean of unlike classes"] = f"{beside.mean():.2f}"
        return Frame(table(alike, classes, f"cosine of class paths in {layer}"), facts)

    return Explorer(draw, {"layer": Control(seen.layers, start=seen.layers[-1])}, title="how alike classes' paths are")


# -- pictures, of plain numbers --------------------------------------------------------------------------------------


def flow(forks: Sequence[Fork], layer: str, pressable: set[str], two: bool) -> str:
    """The layers from left to right, each a column of what A and B share, what only one of them uses, and what neither
    does, with ribbons between; a click on a column chooses the layer."""
    top = 2 * svg.LINE + 10
    drawn = [_legend(two)]
    places = [(2 + (i % ROW) * WIDE, top + (i // ROW) * (TALL + svg.LINE + 8)) for i in range(len(forks))]
    for i, (fork, (x, y)) in enumerate(zip(forks, places, strict=True)):
        bands = _bands(fork)
        if i + 1 < len(forks) and places[i + 1][1] == y:
            following = _bands(forks[i + 1])
            drawn += [_ribbon(x + 12, y, x + WIDE, bands[k], following[k], COLOURS[k]) for k in range(3)]
        for k in range(4):
            start, end = bands[k]
            kind = f"lab-fill {COLOURS[k]}" if COLOURS[k] else "lab-track"
            if end > start:
                drawn.append(svg.rect(x, y + start, 12, end - start, kind))
        both, a, b, off = fork.counts()
        hint = f"{fork.layer}: {both} shared, {a} only A, {b} only B, {off} off"
        if fork.layer in pressable:
            drawn.append(svg.target((x - 2, y - 2, 16, TALL + 4), hint, fork.layer == layer, layer=fork.layer))
    rows = -(-len(forks) // ROW)
    width = min(len(forks), ROW) * WIDE + 2
    for row in range(rows):
        first, last = forks[row * ROW].layer, forks[min(len(forks), (row + 1) * ROW) - 1].layer
        drawn.append(
            svg.text(0, top + row * (TALL + svg.LINE + 8) + TALL + 16, svg.fit(f"{first} to {last}", max(width, 320)))
        )
    return svg.document(max(width, 320), top + rows * (TALL + svg.LINE + 8), "paths through the layers", "paths", drawn)


def filter_grid(fork: Fork, chosen: int, two: bool, pressable: Container[int]) -> str:
    """The filters of a layer, PAGE at a time, coloured by who uses them; a click chooses one of `pressable`."""
    first = chosen // PAGE * PAGE
    last = min(first + PAGE, len(fork.state))
    cells, top = [], svg.LINE + 5
    for k in range(first, last):
        x, y = (k - first) % 16 * 26, top + (k - first) // 16 * 20
        colour = COLOURS[fork.state[k]]
        box = svg.rect(x, y, 24, 18, f"lab-fill {colour}" if colour else "lab-track")
        hint = f"filter {k}: {_state(fork, k, 1 + two)}"
        text = svg.text(x + 12, y + 13, str(k), "mid on" if colour else "mid")
        known = k in pressable
        cells.append(svg.target((x, y, 24, 18), hint, k == chosen, box + text, filter=k) if known else box + text)
    height = top + -(-(last - first) // 16) * 20 + 4
    if len(fork.state) > PAGE:
        pages = [start for start in range(0, len(fork.state), PAGE) if start in pressable]
        for i, start in enumerate(pages):
            x, y = i % 8 * 52, height + i // 8 * 22
            text = svg.text(x + 24, y + 14, f"{start}…", "mid")
            cells.append(svg.target((x, y, 48, 19), f"filters from {start}", start == first, text, filter=start))
        height += -(-len(pages) // 8) * 22 + 4
    return svg.document(416, height, f"filters of {fork.layer}", "filters", cells)


def table(values: np.ndarray, names: Sequence[str], title: str) -> str:
    """A square table of numbers in [-1, 1] in colour, its rows and columns named."""
    side = max(8, min(28, 420 // len(names)))
    left = max(svg.text_width(name) for name in names) + 6
    top, every = svg.LINE + 24, -(-14 // side)
    scale = raster.Scale(-1.0, 1.0)
    image = raster.png(scale.shades(values), scale.table())
    drawn = [raster.image(image, left, top, side * len(names), side * len(names), title)]
    for k in range(0, len(names), every):
        drawn.append(svg.text(left - 6, top + (k + 0.5) * side + 4, names[k], "end"))
        drawn.append(svg.text(left + (k + 0.5) * side, top - 6, names[k], "mid"))
    below = top + side * len(names) + 10
    drawn.append(raster.legend(scale, left, below, "cosine"))
    return svg.document(max(left + side * len(names), 320), below + 32, title, title, drawn)


def _bands(fork: Fork) -> list[tuple[float, float]]:
    """From where to where the filters of each state reach in a column, in px."""
    ends = np.cumsum([0, *fork.counts()]) * TALL / len(fork.state)
    return [(float(start), float(end)) for start, end in pairwise(ends)]


def _ribbon(x: float, y: float, to: float, here: tuple[float, float], there: tuple[float, float], colour: str) -> str:
    """A band between two columns; nothing where both ends are empty."""
    if here[0] == here[1] and there[0] == there[1]:
        return ""
    middle = (x + to) / 2

    def edge(start: float, end: float, away: float, back: float) -> str:
        return f"{away:g} {y + start:.1f}C{middle:g} {y + start:.1f} {middle:g} {y + end:.1f} {back:g} {y + end:.1f}"

    return (
        f'<path class="lab-ribbon {colour}" d="M{edge(here[0], there[0], x, to)}L{edge(there[1], here[1], to, x)}Z"/>'
    )


def _legend(two: bool) -> str:
    names = STATES if two else ("on", "", "", "off")
    parts, x = [], 0.0
    for name, colour in zip(names, COLOURS, strict=True):
        if name:
            parts.append(svg.rect(x, svg.LINE + 6, 11, 11, f"lab-fill {colour}" if colour else "lab-track"))
            parts.append(svg.text(x + 16, svg.LINE + 16, name))
            x += svg.text_width(name) + 32
    return "".join(parts)


# -- what the network sees -------------------------------------------------------------------------------------------


class _Seen:
    """What the filters of a network see in the sample: their maps for a picture, their means for all of them."""

    def __init__(self, outcome: DecouplingOutcome) -> None:
        self.outcome = outcome
        self.maps_of: dict[tuple[int, str], np.ndarray] = {}
        self.low, self.high = float(outcome.sample.min()), float(outcome.sample.max())
        self.inputs = [_plane(x.numpy()) for x in outcome.sample]
        self.size = self.inputs[0].shape[1:]
        model = outcome.model
        place = next(model.parameters()).device
        with torch.no_grad(), evaluating(model), recording(model) as records:
            for x in outcome.sample.split(8):
                model(x.to(place))
        self.means = [torch.cat([seen.out for seen in record]).cpu() for record in records]
        self.frequency = class_paths(outcome.seen)

    def site(self, layer: str) -> int:
        return self.outcome.seen.layers.index(layer)

    def pictures(self, pair: list[int]) -> str:
        """The inputs themselves, each with what it is called."""
        h, w = self.size
        top, scale, drawn = svg.LINE + 5, 96 / max(h, w), []
        for i, k in enumerate(pair):
            said = int(self.outcome.seen.predicted[self.outcome.sampled[k]])
            pixels = raster.as_picture(self.inputs[k], self.low, self.high)
            drawn.append(raster.image(raster.uri(pixels), 130 * i, top, w * scale, h * scale))
            drawn.append(svg.text(130 * i, top + h * scale + 15, f"{'AB'[i]}: {_class(self.outcome, k)}"))
            drawn.append(svg.text(130 * i, top + h * scale + 15 + svg.LINE, f"called {said}"))
        return svg.document(130 * len(pair), top + h * scale + 2 * svg.LINE + 6, "pictures", "pictures", drawn)

    def maps(self, pair: list[int], layer: str, k: int) -> str:
        """The filter's map for each picture before its gate, on one scale."""
        maps = np.stack([self._map(picture, layer)[k] for picture in pair])
        scale = raster.Scale.of(maps)
        return raster.grid(
            maps, f"filter {k} on {' and '.join('AB'[: len(pair)])}", "before the gate", longest=96, scale=scale
        )

    def _map(self, picture: int, layer: str) -> np.ndarray:
        """What reaches the gate of a layer for one picture: (C_l, H, W)."""
        if (picture, layer) not in self.maps_of:
            gate = self.outcome.model.get_submodule(self.outcome.decoupled.sites[self.site(layer)].gate)
            kept: list[Tensor] = []
            hook = gate.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
            place = next(self.outcome.model.parameters()).device
            try:
                with torch.no_grad(), evaluating(self.outcome.model):
                    self.outcome.model(self.outcome.sample[picture : picture + 1].to(place))
            finally:
                hook.remove()
            self.maps_of[picture, layer] = _plane(kept[0][0].cpu().numpy())
        return self.maps_of[picture, layer]

    def classes(self, layer: str, k: int) -> str:
        """For how many pictures of each class the filter is on."""
        share = self.frequency[:, self.outcome.seen.span(layer)][:, k]
        labels = self.outcome.seen.labels
        totals = [int((labels == label).sum()) for label in self.outcome.seen.classes()]
        rows = [(str(c), round(s * n), n) for c, s, n in zip(self.outcome.seen.classes(), share, totals, strict=True)]
        return svg.bars(rows, title=f"pictures with filter {k} on", width=300, share=True)

    def strongest(self, layer: str, k: int) -> str:
        """The pictures of the sample on which the filter's map has the largest mean, strongest first."""
        means = self.means[self.site(layer)][:, k]
        top, side = svg.LINE + 5, 48
        h, w = self.size
        across, down = side * w / max(h, w), side * h / max(h, w)
        drawn = []
        for i, picture in enumerate(means.argsort(descending=True)[:STRONGEST].tolist()):
            x, y = i % 4 * (side + 10), top + i // 4 * (side + svg.LINE)
            pixels = raster.as_picture(self.inputs[picture], self.low, self.high)
            drawn.append(raster.image(raster.uri(pixels), x, y, across, down))
            drawn.append(svg.text(x + across / 2, y + down + 13, svg.short(float(f"{means[picture]:.2g}")), "mid num"))
        title = f"strongest of {len(means)} pictures (mean before the gate)"
        height = top + -(-min(STRONGEST, len(means)) // 4) * (side + svg.LINE) + 4
        return svg.document(max(4 * (side + 10), svg.text_width(title) * 1.1), height, title, title, drawn)


def _class(outcome: DecouplingOutcome, k: int) -> str:
    label = int(outcome.seen.labels[outcome.sampled[k]])
    return f"class {label}" if label >= 0 else "no label"


def _state(fork: Fork, k: int, pictures: int) -> str:
    words = {0: "on for both", 1: "on for A only", 2: "on for B only", 3: "off for both"}
    return words[int(fork.state[k])] if pictures > 1 else ("on" if fork.state[k] == 0 else "off")


def _known_pictures(outcome: DecouplingOutcome, pictures: Sequence[int] | None) -> list[int]:
    count = len(outcome.sample)
    for k in pictures or ():
        if not 0 <= k < count:
            raise ValueError(f"pictures: there is no picture {k}: give numbers in 0..{count - 1}, the outcome's sample")
    return list(range(count) if pictures is None else pictures)


def _known_filters(most: int, filters: Sequence[int] | None) -> list[int]:
    wrong = [k for k in filters or () if not 0 <= k < most]
    if wrong:
        raise ValueError(f"filters: there is no filter {wrong[0]}: give numbers in 0..{most - 1}")
    return list(range(most) if filters is None else filters)


def _plane(x: np.ndarray) -> np.ndarray:
    """Channels of any rank as planes (C, H, W): a sequence is one row high, a volume is seen in its middle slice."""
    while x.ndim > 3:
        x = x[:, x.shape[1] // 2]
    return x.reshape(len(x), -1, x.shape[-1]) if x.ndim > 1 else x[:, None, None]


def _known_layers(paths: Paths, layers: Sequence[str] | None) -> list[str]:
    for name in layers or ():
        paths.layer(name)  # a one-line error that names the layers there are
    return list(layers or paths.layers)


def kept(part: str) -> Any:
    """A table of the benchmark as it was last run (`data/decoupling`): 'rows', 'controls', 'detectors' or 'speed'."""
    import pandas

    return pandas.DataFrame(json.loads(store.artefact("decoupling/figures.json").read_text())[part])
