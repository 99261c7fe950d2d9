"""What became of the layers: their maps, the filters that went, the heads of attention, and the blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..ui import raster, svg
from .activations import first_tensor, maps, run
from .atlas import span
from .attention import attention, rollout
from .changes import Section
from .comparison import explored, matched, pairs_of
from .examples import TOKENS, Compared
from .sanity import layer_outputs

_LAYERS, _LOST, _THUMBS, _SIDE = 4, 8, 5, 44  # layers, filters and pictures a filter that are shown; px
_IMAGES = 4


def feature_maps(pair: Compared) -> Section | None:
    """The feature maps of a picture, before, after, and their difference."""
    x = pair.examples.images
    if x is None:
        return None
    first = x[:1]
    try:
        old, new = (maps(net, first) for net in (pair.before, pair.after))
    except ValueError:
        return None
    shared = [name for name, output in old.items() if name in new and _fits(output, new[name]) and "#" not in name]
    shared = [name for name in shared if "[" not in name]
    if not shared:
        text = "The networks share no layer whose feature maps could be laid side by side."
        return Section("Feature maps", text, {})
    chosen = [shared[k] for k in np.unique(np.linspace(0, len(shared) - 1, _LAYERS).round().astype(int))]
    kept = {name: numbers for name, numbers in pair.kept.items() if name in chosen}
    explorer = explored(pairs_of(pair.before, pair.after, first, chosen, kept), first, pages=1)
    text = (
        f"{len(chosen)} of the {len(shared)} layers that both have, on the first picture; at most 32 filters of each."
    )
    return Section("Feature maps", text, {"layers": chosen}, [explorer])


def _fits(old: Tensor, new: Tensor) -> bool:
    return old.shape[2:] == new.shape[2:] and old.shape[1] >= new.shape[1]


def lost_filters(pair: Compared) -> list[dict[str, Any]]:
    """The filters that went, or that answer everything alike: layer, number, the class that each spoke of.

    `between` is the share of a filter's variance that lies between the classes, `shuffled` the same with the labels
    shuffled. The layers with weights of their own speak; most telling first.
    """
    y = None if pair.examples.y is None or pair.examples.y.ndim != 1 else pair.examples.y.numpy()
    old, new = (layer_outputs(net, pair, most=len(pair.examples)) for net in (pair.before, pair.after))
    random, rows = np.random.default_rng(pair.seed), []
    for name, output in old.items():
        weight = getattr(dict(pair.before.named_modules()).get(name), "weight", None)
        if name not in new or weight is None or weight.ndim < 2 or output.shape[1] < new[name].shape[1]:
            continue
        means = output.mean(2)  # (N, filters)
        for number in _gone(pair, name, output, new[name]):
            row: dict[str, Any] = {
                "layer": name,
                "filter": number,
                "strongest": np.argsort(-means[:, number])[:_THUMBS],
            }
            if y is not None:
                row |= _spoke_of(means[:, number], y[: len(means)], random)
            rows.append(row)
    return sorted(rows, key=lambda row: -row.get("between", 0.0))


def _gone(pair: Compared, name: str, old: np.ndarray, new: np.ndarray) -> list[int]:
    """The numbers before of the filters that are no more, or give the same for all examples."""
    if old.shape[2] != new.shape[2] and name not in pair.kept:
        return []
    numbers = matched(old[..., None], new[..., None], pair.kept.get(name), name)
    silent = (np.ptp(new, axis=0).max(1) == 0) & (np.ptp(old[:, numbers], axis=0).max(1) > 0)
    return sorted({*range(old.shape[1])} - {*numbers.tolist()} | {*numbers[silent].tolist()})


def _spoke_of(values: np.ndarray, y: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
    means = {c: values[y == c].mean() for c in np.unique(y)}
    shares = [_between(values, order) for order in (y, *(random.permutation(y) for _ in range(5)))]
    best = max(means, key=lambda c: means[c])
    return {"class": int(best), "between": shares[0], "shuffled": float(np.mean(shares[1:]))}


def _between(values: np.ndarray, y: np.ndarray) -> float:
    """The share of the variance of values (N,) that lies between classes (N,)."""
    total = values.var() * len(values)
    classes = [values[y == c] for c in np.unique(y)]
    between = sum(len(c) * (c.mean() - values.mean()) ** 2 for c in classes)
    return float(between / total) if total else 0.0


def filters_lost(pair: Compared) -> Section | None:
    """The filters that went and what they stood for."""
    if not isinstance(pair.examples.x, Tensor) or pair.examples.images is None:
        return None
    rows = lost_filters(pair)
    if not rows:
        return Section("Filters lost", "Every filter of the layers that both have still answers.", {"lost": 0})
    layers = {row["layer"] for row in rows}
    text = f"{len(rows)} filters of {len(layers)} layers are gone or silent."
    if len(rows) > _LOST:
        text += f" Shown are the {_LOST} that told the classes apart best."
    text += " Beside each are the pictures that it answered to most, before."
    numbers = {"lost": len(rows), "layers": len(layers)}
    return Section("Filters lost", text, numbers, [_gallery(pair, rows[:_LOST])])


def _gallery(pair: Compared, rows: list[dict[str, Any]]) -> str:
    """A line a filter: its pictures, its layer and number, and what it spoke of."""
    x = pair.examples.images
    assert x is not None
    low, high = span(x.cpu().numpy())
    step, shapes, lines = _SIDE + 4, [], []
    for k, row in enumerate(rows):
        top = svg.HEAD + k * (_SIDE + 8)
        for i, number in enumerate(row["strongest"]):
            image = raster.as_picture(x[int(number)].float().cpu().numpy(), low, high)
            share = _SIDE / max(image.shape[:2])
            size = image.shape[1] * share, image.shape[0] * share
            shapes.append(raster.image(raster.uri(raster.shrunk(image, _SIDE)), i * step, top, *size))
        first = f"{row['layer']}, filter {row['filter']}"
        second = ""
        if "class" in row:
            second = f"{pair.name(row['class'])}: {row['between']:.0%} between classes, shuffled {row['shuffled']:.0%}"
        lines += [first, second]
        left = _THUMBS * step + 8
        shapes += [svg.text(left, top + 16, first, "strong"), svg.text(left, top + 34, second)]
    width = _THUMBS * step + 12 + max(svg.title_width(line) for line in lines)
    title = "filters that went, and the pictures that they answered to most"
    height = svg.HEAD + len(rows) * (_SIDE + 8)
    return svg.document(max(width, svg.title_width(title)), height, title, title, shapes)


def heads(pair: Compared) -> Section | None:
    """The heads of attention, and what of each patch reaches the answer."""
    x = pair.examples.images
    if x is None:
        return None
    try:
        old, new = (attention(net, x[:_IMAGES]) for net in (pair.before, pair.after))
    except (ValueError, NotImplementedError):
        return None
    alike = [_alike(a, b) for a, b in zip(old, new, strict=False) if a.shape == b.shape and a.ndim == 4]
    parts = []
    if alike and len({len(row) for row in alike}) == 1:
        names = [f"layer {k}" for k in range(len(alike))]
        parts.append(svg.heat(alike, names, "head", "correlation of attention before and after"))
    try:
        nets = {"before": pair.before, "after": pair.after, "control: fresh weights": pair.fresh}
        images, (low, high) = x[:_IMAGES].float().cpu().numpy(), span(x.cpu().numpy())
        photos = [raster.photo(image, f"example {k}", low, high, longest=72) for k, image in enumerate(images)]
        for name, net in nets.items():
            rolled = rollout(net, x[:_IMAGES]).float().cpu().numpy()
            parts.append(
                raster.grid(rolled, f"rollout, {name}", "attention", longest=72, scale=raster.Scale.of(rolled))
            )
        parts += photos
    except ValueError as error:
        text = f" Rollout: {error}."
    else:
        text = " Rollout is what of each patch reaches the answer through all layers."
    mean = float(np.mean([np.mean(row) for row in alike])) if alike else float("nan")
    numbers = {"layers before": len(old), "layers after": len(new), "correlation": mean}
    lead = f"{len(old)} layers of attention before, {len(new)} after; heads of one number correlate by {mean:.2f}."
    return Section("Tokens and heads", lead + text, numbers, parts)


def _alike(a: Tensor, b: Tensor) -> list[float]:
    """The correlation of each head's weights before and after, cut at 0: (N, heads, T, T) twice -> a number a head."""
    flat = [x.transpose(0, 1).flatten(1).double() for x in (a, b)]
    first, second = (x - x.mean(1, keepdim=True) for x in flat)
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=1, eps=1e-12)
    return [float(value) for value in cosine.clamp(min=0)]


def blocks(pair: Compared) -> Section | None:
    """How much each block of a language model changes the states that pass through it."""
    if pair.examples.kind != TOKENS:
        return None
    numbers = {}
    for name, net in (("before", pair.before), ("after", pair.after), ("fresh weights", pair.fresh)):
        changes = block_changes(net, pair.examples.x)
        if changes:
            numbers[name] = changes
    if len(numbers) < 3:
        return None
    series = [svg.Series(name, list(enumerate(values, 1))) for name, values in numbers.items()]
    chart = svg.lines(series, x="block", y="1 - cosine of what goes in and comes out", title="blocks", width=460)
    text = (
        f"{len(numbers['before'])} blocks before, {len(numbers['after'])} run after. A block whose states come out "
        "much as they went in could be missed; with fresh weights the curve says how blocks of this kind lie, not what "
        "they have learned."
    )
    return Section("Blocks", text, numbers, [chart])


def block_changes(model: nn.Module, x: Any) -> list[float]:
    """1 - cosine between the states that enter and leave each block, in the order in which they run; [] without."""
    lists = [module for module in model.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    chosen = max(lists, key=len, default=None)
    if chosen is None or len(chosen) < 2:
        return []
    changes: list[float] = []
    with _watched(chosen, changes):
        run(model, x)
    return changes


@contextmanager
def _watched(blocks: Any, changes: list[float]) -> Iterator[None]:
    """For a `with` block, note of each call of a block how far its output turns away from its input."""

    def note(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        given = next((part for part in (*args, *named.values()) if isinstance(part, Tensor) and part.ndim == 3), None)
        state = output if isinstance(output, Tensor) else first_tensor(output, "a block")
        if given is not None and state.shape == given.shape:
            cosine = torch.nn.functional.cosine_similarity(given.double(), state.double(), dim=-1)
            changes.append(1 - float(cosine.mean()))

    handles = [block.register_forward_hook(note, with_kwargs=True) for block in dict.fromkeys(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
