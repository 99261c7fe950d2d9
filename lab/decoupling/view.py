"""Decoupling seen: the paths of two pictures through the layers, the filters they share, and what each filter sees."""

from collections.abc import Container, Sequence
from itertools import pairwise

import numpy as np
import torch

from ..core.task import evaluating
from ..lens.tokens import input_maps
from ..ui import Control, Explorer, Frame, raster, svg, view
from .layers import gates, recording
from .outcome import DecouplingOutcome
from .paths import STATES, Fork, Paths, class_paths, class_similarity, numbers

NOBODY = "none"
COLOURS = ("c2", "c0", "c1", "")  # of STATES
WIDE, TALL = 26, 150  # px: a layer's column with the room to the next, and its height
COLUMN = 12  # px, the width of a layer's column
DOWN = TALL + svg.LINE + 8  # px from one row of the flow to the next
LEAST = 320  # px, the least width of a picture with a line of text
ROW = 24  # layers in a row of the flow
PAGE = 128  # filters on a page
STRONGEST = 8  # pictures or patches shown for a filter
SIDE = 48  # px, the longer side of one of them
LONGEST, BESIDE = 96, 130  # px: the longer side of a picture, and from the left of one to the left of the next


@view.register
def explore(
    outcome: DecouplingOutcome,
    *,
    images: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    filters: Sequence[int] | None = None,
) -> Explorer:
    """The paths of pictures A and B as a flow through the layers; a click on a layer shows its filters, one on a filter
    its maps, its classes and its strongest pictures.

    `images` (of the outcome's sample), `layers` and `filters` narrow the choice, which `explorer.save` needs: a page
    holds some hundred states.
    """
    page = _Page(outcome, images, layers, filters)
    return Explorer(page.draw, page.controls(), title=f"Decoupling(r={outcome.recipe.r:g}): the paths of two pictures")


class _Page:
    """What an explorer of paths may show, and the frame of a state."""

    def __init__(
        self,
        outcome: DecouplingOutcome,
        images: Sequence[int] | None,
        layers: Sequence[str] | None,
        filters: Sequence[int] | None,
    ) -> None:
        self.outcome = outcome
        self.names = {f"{k}: {_class(outcome, k)}": k for k in _valid_images(outcome, images)}
        self.layers = _valid_layers(outcome.seen, layers)
        self.responses = _Responses(outcome)
        self.sizes = dict(zip(outcome.seen.layers, outcome.seen.sizes, strict=True))
        self.filters = _valid_filters(max(self.sizes[name] for name in self.layers), filters)

    def controls(self) -> dict[str, Control]:
        """Picture A is the first, B the first of another class."""
        labels = list(self.names)
        classes = {name: _class(self.outcome, k) for name, k in self.names.items()}
        other = next((name for name in labels if classes[name] != classes[labels[0]]), NOBODY)
        return {
            "a": Control(labels, label="picture A"),
            "b": Control([NOBODY, *labels], label="picture B", start=other),
            "layer": Control(self.layers, start=self.layers[-1]),
            "filter": Control(self.filters),
        }

    def draw(self, a: str, b: str, layer: str, filter: int) -> Frame:
        """The paths of the pictures a and b, and what one filter of a layer does for them."""
        pair = [self.names[name] for name in (a, b) if name != NOBODY]
        paths = [int(self.outcome.sampled[k]) for k in pair]
        forks = numbers(self.outcome.seen, paths[0], paths[1] if len(pair) > 1 else None)
        fork = next(fork for fork in forks if fork.layer == layer)
        k = min(filter, self.sizes[layer] - 1)
        parts = [
            flow(forks, layer, set(self.layers), len(pair) > 1),
            filter_grid(fork, k, len(pair) > 1, set(self.filters)),
            self.responses.images(pair),
            self.responses.maps(pair, layer, k),
            self.responses.classes(layer, k),
            self.responses.strongest(layer, k),
        ]
        facts = _shares(forks, fork, len(pair)) | {"filter": f"{k} is {_state(fork, k, len(pair))}"}
        return Frame("".join(parts), facts)


def _shares(forks: Sequence[Fork], fork: Fork, count: int) -> dict[str, str | int | float]:
    """How many filters of a layer are on for A, and how many of those that are on A and B share."""
    both, only_a, only_b, _ = fork.counts()
    facts: dict[str, str | int | float] = {"filters on": f"{both + only_a} of {len(fork.state)} in {fork.layer}"}
    if count > 1:
        shared, all_a, all_b = (sum(fork.counts()[i] for fork in forks) for i in range(3))
        facts["shared here"] = f"{both} of {both + only_a + only_b}"
        facts["shared by the whole paths"] = f"{shared} of {shared + all_a + all_b}"
    return facts


def similarity(outcome: DecouplingOutcome, paths: Paths | None = None) -> Explorer:
    """How alike the classes' paths are, layer by layer: a slider through the layers, class by class.

    Of the outcome's paths, or of others. The cosine is that of `paths.class_similarity`.
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
    shapes = [_legend(two)]
    corners = [(2 + (i % ROW) * WIDE, top + (i // ROW) * DOWN) for i in range(len(forks))]
    for i, (fork, (x, y)) in enumerate(zip(forks, corners, strict=True)):
        bands = _bands(fork)
        if i + 1 < len(forks) and corners[i + 1][1] == y:
            following = _bands(forks[i + 1])
            shapes += [_ribbon(x + COLUMN, y, x + WIDE, bands[k], following[k], COLOURS[k]) for k in range(3)]
        shapes += [
            svg.rect(x, y + start, COLUMN, end - start, _look(colour))
            for (start, end), colour in zip(bands, COLOURS, strict=True)
            if end > start
        ]
        both, a, b, off = fork.counts()
        hint = f"{fork.layer}: {both} shared, {a} only A, {b} only B, {off} off"
        if fork.layer in pressable:
            shapes.append(svg.target((x - 2, y - 2, COLUMN + 4, TALL + 4), hint, fork.layer == layer, layer=fork.layer))
    rows = -(-len(forks) // ROW)
    width = max(min(len(forks), ROW) * WIDE + 2, LEAST)
    for row in range(rows):
        first, last = forks[row * ROW].layer, forks[min(len(forks), (row + 1) * ROW) - 1].layer
        shapes.append(svg.text(0, top + row * DOWN + TALL + 16, svg.fit(f"{first} to {last}", width)))
    return svg.document(width, top + rows * DOWN, "paths through the layers", "paths", shapes)


def filter_grid(fork: Fork, chosen: int, two: bool, pressable: Container[int]) -> str:
    """The filters of a layer, PAGE at a time, coloured by who uses them; a click chooses one of `pressable`."""
    first = chosen // PAGE * PAGE
    last = min(first + PAGE, len(fork.state))
    cells, top = [], svg.HEAD
    for k in range(first, last):
        x, y = (k - first) % 16 * 26, top + (k - first) // 16 * 20
        colour = COLOURS[fork.state[k]]
        box = svg.rect(x, y, 24, 18, _look(colour))
        hint = f"filter {k}: {_state(fork, k, 1 + two)}"
        text = svg.text(x + 12, y + 13, str(k), "mid on" if colour else "mid")
        target = svg.target((x, y, 24, 18), hint, k == chosen, box + text, filter=k)
        cells.append(target if k in pressable else box + text)
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
    shapes = [raster.image(image, left, top, side * len(names), side * len(names), title)]
    for k in range(0, len(names), every):
        shapes.append(svg.text(left - 6, top + (k + 0.5) * side + 4, names[k], "end"))
        shapes.append(svg.text(left + (k + 0.5) * side, top - 6, names[k], "mid"))
    below = top + side * len(names) + 10
    shapes.append(raster.legend(scale, left, below, "cosine"))
    return svg.document(max(left + side * len(names), LEAST), below + 32, title, title, shapes)


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


def _look(colour: str) -> str:
    """The class of a shape of one of COLOURS."""
    return f"lab-fill {colour}" if colour else "lab-track"


def _legend(two: bool) -> str:
    names = STATES if two else ("on", "", "", "off")
    parts, x = [], 0.0
    for name, colour in zip(names, COLOURS, strict=True):
        if name:
            parts.append(svg.rect(x, svg.LINE + 6, 11, 11, _look(colour)))
            parts.append(svg.text(x + 16, svg.LINE + 16, name))
            x += svg.text_width(name) + 32
    return "".join(parts)


# -- what the filters answer -------------------------------------------------------------------------------------------


class _Responses:
    """What the filters of a network answer to the sample: their maps for a picture, their means for all of them."""

    def __init__(self, outcome: DecouplingOutcome) -> None:
        self.outcome = outcome
        self.maps_of: dict[tuple[int, str], np.ndarray] = {}
        self.low, self.high = float(outcome.sample.min()), float(outcome.sample.max())
        self.inputs = [_plane(x.numpy()) for x in outcome.sample]
        self.size = self.inputs[0].shape[1:]
        model = outcome.model
        self.device = next(model.parameters()).device
        with torch.no_grad(), evaluating(model), recording(model) as records:
            for x in outcome.sample.split(8):
                model(x.to(self.device))
        self.means = [torch.cat([gate.out for gate in record]).cpu() for record in records]  # (n, C_l) each
        self.frequency = class_paths(outcome.seen)

    def site(self, layer: str) -> int:
        """The index of a gated layer."""
        return self.outcome.seen.layers.index(layer)

    def images(self, pair: list[int]) -> str:
        """The inputs themselves, each with what it is called."""
        h, w = self.size
        scale, shapes = LONGEST / max(h, w), []
        bottom = svg.HEAD + h * scale
        for i, k in enumerate(pair):
            pred = int(self.outcome.seen.predicted[self.outcome.sampled[k]])
            pixels = raster.as_picture(self.inputs[k], self.low, self.high)
            shapes.append(raster.image(raster.uri(pixels), BESIDE * i, svg.HEAD, w * scale, h * scale))
            shapes.append(svg.text(BESIDE * i, bottom + svg.UNDER, f"{'AB'[i]}: {_class(self.outcome, k)}"))
            shapes.append(svg.text(BESIDE * i, bottom + svg.UNDER + svg.LINE, f"called {pred}"))
        return svg.document(BESIDE * len(pair), bottom + 2 * svg.LINE + 6, "pictures", "pictures", shapes)

    def maps(self, pair: list[int], layer: str, k: int) -> str:
        """The filter's map for each picture before its gate, apart, on one scale."""
        maps = np.stack([self._map(image, layer)[k] for image in pair])
        scale, names = raster.Scale.of(maps), "AB"[: len(pair)]
        return "".join(
            raster.grid(part[None], f"filter {k} on {name}", "before the gate", longest=LONGEST, scale=scale)
            for part, name in zip(maps, names, strict=True)
        )

    def _map(self, image: int, layer: str) -> np.ndarray:
        """What reaches the gate of a layer for one picture: (C_l, H, W)."""
        if (image, layer) not in self.maps_of:
            x = self.outcome.sample[image : image + 1].to(self.device)
            with evaluating(self.outcome.model):
                out = input_maps(self.outcome.model, self._gate(layer), x)
            flat = out.movedim(-1, 1) if self._of_tokens(layer) and out.ndim == 3 else out  # tokens without places
            self.maps_of[image, layer] = _plane(flat[0].cpu().numpy())
        return self.maps_of[image, layer]

    def _of_tokens(self, layer: str) -> bool:
        return gates(self.outcome.model)[self._gate(layer)].axis == -1

    def _gate(self, layer: str) -> str:
        return self.outcome.decoupled.sites[self.site(layer)].gate

    def classes(self, layer: str, k: int) -> str:
        """For how many pictures of each class the filter is on."""
        share = self.frequency[:, self.outcome.seen.span(layer)][:, k]
        labels = self.outcome.seen.labels
        totals = [int((labels == label).sum()) for label in self.outcome.seen.classes()]
        rows = [(str(c), round(s * n), n) for c, s, n in zip(self.outcome.seen.classes(), share, totals, strict=True)]
        return svg.bars(rows, title=f"pictures with filter {k} on", width=300, share=True)

    def strongest(self, layer: str, k: int) -> str:
        """What the filter answers to most: pictures of the sample, or patches where it is a unit of tokens."""
        is_patch = self._of_tokens(layer) and self._map(0, layer).shape[1] > 1
        return self._strongest_patches(layer, k) if is_patch else self._strongest_pictures(layer, k)

    def _strongest_patches(self, layer: str, k: int) -> str:
        """The patches with the largest values, one of a picture, strongest first: framed, and alone below."""
        maps = np.stack([self._map(image, layer)[k] for image in range(len(self.inputs))])  # (n, h, w)
        best = np.argsort(-maps.max((1, 2)), kind="stable")[:STRONGEST]
        (h, w), step, down, shapes = self.size, SIDE + 10, 2 * SIDE + 12 + svg.LINE, []
        scale = SIDE / max(h, w)
        for i, image in enumerate(best.tolist()):
            x, y = i % 4 * step, svg.HEAD + i // 4 * down
            row, column = np.unravel_index(maps[image].argmax(), maps.shape[1:])
            (top, bottom), (left, right) = _cell(int(row), h, maps.shape[1]), _cell(int(column), w, maps.shape[2])
            pixels = raster.as_picture(self.inputs[image], self.low, self.high)
            shapes.append(raster.image(raster.uri(pixels), x, y, w * scale, h * scale))
            box = (x + left * scale, y + top * scale, (right - left) * scale, (bottom - top) * scale)
            shapes.append(svg.rect(*box, "lab-frame"))
            patch = raster.uri(pixels[top:bottom, left:right])
            zoom = SIDE / max(right - left, bottom - top)
            shapes.append(raster.image(patch, x, y + SIDE + 4, zoom * (right - left), zoom * (bottom - top)))
            value = svg.short(float(f"{maps[image].max():.2g}"))
            shapes.append(svg.text(x + SIDE / 2, y + 2 * SIDE + 17, value, "mid num"))
        title = f"strongest patches of {len(maps)} pictures (before the gate)"
        height = svg.HEAD + -(-len(best) // 4) * down + 4
        return svg.document(max(4 * step, svg.title_width(title)), height, title, title, shapes)

    def _strongest_pictures(self, layer: str, k: int) -> str:
        """The pictures of the sample on which the filter's map has the largest mean, strongest first."""
        means = self.means[self.site(layer)][:, k]
        top, side = svg.HEAD, SIDE
        h, w = self.size
        across, down = side * w / max(h, w), side * h / max(h, w)
        shapes = []
        for i, image in enumerate(means.argsort(descending=True)[:STRONGEST].tolist()):
            x, y = i % 4 * (side + 10), top + i // 4 * (side + svg.LINE)
            pixels = raster.as_picture(self.inputs[image], self.low, self.high)
            shapes.append(raster.image(raster.uri(pixels), x, y, across, down))
            shapes.append(svg.text(x + across / 2, y + down + 13, svg.short(float(f"{means[image]:.2g}")), "mid num"))
        title = f"strongest of {len(means)} pictures (mean before the gate)"
        height = top + -(-min(STRONGEST, len(means)) // 4) * (side + svg.LINE) + 4
        return svg.document(max(4 * (side + 10), svg.title_width(title)), height, title, title, shapes)


def _class(outcome: DecouplingOutcome, k: int) -> str:
    """What a picture of the sample is called: its class, if it has one."""
    label = int(outcome.seen.labels[outcome.sampled[k]])
    return f"class {label}" if label >= 0 else "no label"


def _cell(position: int, pixels: int, cells: int) -> tuple[int, int]:
    """The first pixel of a row or column of a grid, and the one behind its last."""
    first = position * pixels // cells
    return first, max(first + 1, (position + 1) * pixels // cells)


def _plane(x: np.ndarray) -> np.ndarray:
    """Channels of any rank as planes (C, H, W): a sequence is one row high, a volume is seen in its middle slice."""
    while x.ndim > 3:
        x = x[:, x.shape[1] // 2]
    return x.reshape(len(x), -1, x.shape[-1]) if x.ndim > 1 else x[:, None, None]


def _state(fork: Fork, k: int, count: int) -> str:
    words = {0: "on for both", 1: "on for A only", 2: "on for B only", 3: "off for both"}
    return words[int(fork.state[k])] if count > 1 else ("on" if fork.state[k] == 0 else "off")


def _valid_images(outcome: DecouplingOutcome, images: Sequence[int] | None) -> list[int]:
    count = len(outcome.sample)
    for k in images or ():
        if not 0 <= k < count:
            raise ValueError(f"images: there is no picture {k}: give numbers in 0..{count - 1}, the outcome's sample")
    return list(range(count) if images is None else images)


def _valid_filters(most: int, filters: Sequence[int] | None) -> list[int]:
    wrong = [k for k in filters or () if not 0 <= k < most]
    if wrong:
        raise ValueError(f"filters: there is no filter {wrong[0]}: give numbers in 0..{most - 1}")
    return list(range(most) if filters is None else filters)


def _valid_layers(paths: Paths, layers: Sequence[str] | None) -> list[str]:
    for name in layers or ():
        paths.layer(name)  # a one-line error that names the layers there are
    return list(layers or paths.layers)
