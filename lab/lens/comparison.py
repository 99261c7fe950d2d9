"""Two models on the same pictures: the maps of one, of the other, and their difference."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from ..ui import Control, Explorer, Frame, raster
from .activations import as_images, maps, named, placed
from .atlas import span, strip

_PAGE = 32


def compare_maps(
    before: nn.Module,
    after: nn.Module,
    x: torch.Tensor,
    layers: Sequence[str] | str | None = None,
    *,
    kept: Mapping[str, Sequence[int]] | None = None,
) -> Explorer:
    """An explorer of two models' feature maps on the same pictures: before, after, and after minus before.

    Layers are matched by name. Where a layer has as many filters in both they are matched by number; where it has
    fewer after, `kept` names the filters of the model before that stayed, by layer, else each is matched to the one
    whose maps correlate most with its maps (an assignment). Filters that went have no map after. ValueError where no
    layer gives maps in both, or where their maps have different sizes.
    """
    x = as_images(x)
    pairs = pairs_of(before, after, x, layers, kept or {})
    return explored(pairs, x, f"{type(before).__name__}: before and after")


def explored(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], x: torch.Tensor, title: str = "", pages: int | None = None
) -> Explorer:
    """The explorer of maps before and after, by layer (N, C, h, w) each; `pages` of 32 filters, all if left out."""
    names, images = list(pairs), x.float().cpu().numpy()
    low, high = span(images)
    if pages is None:
        pages = max(-(-old.shape[1] // _PAGE) for old, _ in pairs.values())

    def draw(layer: str, page: int = 1, image: int = 0) -> Frame:
        old, new = (maps[image] for maps in pairs[layer])  # (C, h, w) each
        at = min(page, -(-len(old) // _PAGE)) - 1
        part = slice(at * _PAGE, (at + 1) * _PAGE)
        there = np.isfinite(new).all((1, 2))
        scale = raster.Scale.of(np.concatenate((old.ravel(), new[there].ravel())))
        change = new - old
        shown = f"{layer}: filters {part.start} to {min(part.stop, len(old)) - 1} of {len(old)}"
        stayed = f"after: {there[part].sum()} of these stayed, the others are left empty"
        reach = float(np.nan_to_num(abs(change)).max()) or 1.0
        parts = [
            raster.grid(maps[part], title, unit, scale=colours, longest=36)
            for maps, title, unit, colours in (
                (old, f"{shown}, before", "activation", scale),
                (new, stayed, "activation", scale),
                (change, "after minus before", "change of the activation", raster.Scale(-reach, reach)),
            )
        ]
        parts.append(raster.photo(images[image], f"picture {image}", low, high, longest=120))
        norm = float(np.linalg.norm(old[there])) or 1.0
        facts: dict[str, str | int | float] = {"filters before": len(old), "filters after": int(there.sum())}
        facts |= {"relative change": f"{np.linalg.norm(change[there]) / norm:.1%} of those that stayed"}
        return Frame(strip({n: o.shape[1] for n, (o, _) in pairs.items()}, layer) + "".join(parts), facts)

    controls = {"layer": Control(names)}
    if pages > 1:
        controls["page"] = Control(range(1, pages + 1))
    if len(x) > 1:
        controls["image"] = Control(range(len(x)), label="picture")
    return Explorer(draw, controls, title=title)


def pairs_of(
    before: nn.Module, after: nn.Module, x: torch.Tensor, layers: Sequence[str] | str | None, kept: Mapping
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By layer the maps before (N, C, h, w), and those after in the same places, NaN where a filter went."""
    old = {name: output.float().cpu().numpy() for name, output in maps(before, x, layers).items()}
    names = {name for name, _ in after.named_modules()}
    if layers is not None:
        named(after, layers)
    shared = [name for name in old if name.split("#")[0] in names]
    outputs = placed(after, x, list(dict.fromkeys(name.split("#")[0] for name in shared))) if shared else {}
    pairs = {}
    for name in shared:
        if name not in outputs or outputs[name].ndim != 4:
            continue
        new = outputs[name].float().cpu().numpy()
        if new.shape[2:] != old[name].shape[2:]:
            raise ValueError(
                f"{name!r} gives maps of {old[name].shape[2:]} before and {new.shape[2:]} after: leave it out"
            )
        spread = np.full_like(old[name], np.nan)
        spread[:, matched(old[name], new, kept.get(name), name)] = new
        pairs[name] = (old[name], spread)
    if not pairs:
        raise ValueError("the models share no layer that gives feature maps: their layers have other names")
    return pairs


def matched(old: np.ndarray, new: np.ndarray, kept: Sequence[int] | None, name: str) -> np.ndarray:
    """For each filter after, its number before: given, the same, or by the highest sum of correlations."""
    count, total = new.shape[1], old.shape[1]
    if kept is not None:
        numbers = np.asarray(list(kept), dtype=int)
        if (
            len(numbers) != count
            or len(set(numbers.tolist())) != count
            or (count and not 0 <= numbers.min() <= numbers.max() < total)
        ):
            raise ValueError(
                f"kept[{name!r}] names {len(numbers)} filters: {count} different ones of 0 to {total - 1} stayed"
            )
        return numbers
    if count == total:
        return np.arange(total)
    if count > total:
        raise ValueError(f"{name!r} has {count} filters after and {total} before: give the models the other way round")
    a, b = (_normed(maps) for maps in (old, new))
    return linear_sum_assignment(-(b @ a.T))[1]


def _normed(maps: np.ndarray) -> np.ndarray:
    """Each filter's values over all pictures as a vector of mean 0 and length 1: (N, C, h, w) -> (C, N h w)."""
    flat = maps.swapaxes(0, 1).reshape(maps.shape[1], -1)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(length > 0, length, 1)
