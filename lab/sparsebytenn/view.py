"""SparseByteNN seen: which blocks of a layer go, and what the order of its rows saves."""

import json
from functools import lru_cache
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from ..core import store
from ..ui import Control, Explorer, Frame, figure, svg, view
from ..ui.classifier import Classifier
from . import engine, web
from . import equations as eq
from .outcome import SparseByteNNOutcome
from .pattern import search
from .rearrange import sides

SEARCHES = ("none", "sort", "greedy", "swaps")
SHARES = tuple(round(0.1 * k, 1) for k in range(10))
SHOWN = (16, 48)  # the groups and inputs of a layer that a picture shows


def arranged(outcome: SparseByteNNOutcome, layer: str, rows: bool = True) -> Tensor:
    """A layer's saliencies (OC, IC) as they stand in the rearranged network; without `rows` only their columns do.

    Columns stand as they came where blocks have one input, for which their order says nothing.
    """
    S = outcome.saliencies[layer].float()
    S = S[:, outcome.columns(layer)] if sides(outcome.recipe.block)[1] > 1 else S
    return S[outcome.order(layer)] if rows else S


def pattern(outcome: SparseByteNNOutcome, layer: str, s: float, rearranged: bool = True) -> Tensor:
    """Which blocks of a layer of the dense network stay when the share s goes: (groups, IC), True is kept."""
    S = arranged(outcome, layer) if rearranged else outcome.saliencies[layer].float()
    return eq.mask_layer(eq.block_scores(S, *sides(outcome.recipe.block)), s)


def numbers(outcome: SparseByteNNOutcome, s: float) -> dict[str, tuple[float, float]]:
    """For each layer, the shares of its dense magnitude that the largest blocks hold: rows as they came, rearranged."""
    (G, H), shares = sides(outcome.recipe.block), {}
    for layer, half in outcome.saliencies.items():
        shares[layer] = eq.retained(half.float(), G, s, H), eq.retained(arranged(outcome, layer), G, s, H)
    return shares


def measured(outcome: SparseByteNNOutcome) -> dict[str, str]:
    """The score that the run measured of its own network, dense and at the sparsity that it reached."""
    removed, scores = outcome.report["sparsity"], {}
    for row in outcome.report.rows:
        if row.kind == "learned" and row.name not in ("sparsity", "retained magnitude"):
            dense, pruned = (f"{row.shown(value)} {row.unit}".rstrip() for value in (row.before, row.after))
            scores[row.name] = f"{dense} dense, {pruned} with {removed.shown(removed.after)} % removed"
    return scores


def searched(outcome: SparseByteNNOutcome, layer: str) -> dict[str, list[float]]:
    """For each search, the retained share of a layer over SHARES; orders are searched at the recipe's sparsity.

    The layers of a class are searched together, as they must share one order. Blocks of one row have an order of inputs
    in the place of one of rows, searched for this layer alone.
    """
    recipe, (G, H) = outcome.recipe, sides(outcome.recipe.block)
    together = next((layers for layers in outcome.classes.values() if layer in layers), ())
    came = arranged(outcome, layer, rows=False)
    parts = [eq.block_scores(arranged(outcome, name, rows=False), 1, H) for name in together] if G > 1 else [came.T]
    curves = {}
    for name in SEARCHES:
        order = search(parts, name, max(G, H), recipe.sparsity) if parts else torch.arange(len(came))
        S = came[order] if G > 1 else came[:, order]
        curves[name] = [eq.retained(S, G, s, H) for s in SHARES]
    return curves


@view.register
def explore(outcome: SparseByteNNOutcome) -> Explorer:
    """A layer's pattern before and after rearrangement, and what blocks retain: sliders for layer and sparsity."""
    curves = lru_cache(maxsize=None)(lambda layer: searched(outcome, layer))
    layers, inputs = list(outcome.saliencies), sides(outcome.recipe.block)[1]
    what = "inputs" if inputs == 1 else f"groups of {inputs} inputs"

    def draw(layer: str, sparsity: float) -> Frame:
        shares = numbers(outcome, sparsity)
        plots = [
            _blocks(pattern(outcome, layer, sparsity, rearranged=False), "blocks kept, rows as they came"),
            _blocks(pattern(outcome, layer, sparsity), "blocks kept, rows rearranged"),
            _curves(curves(layer), layer, sparsity),
            _by_layer(shares, layers.index(layer)),
        ]
        unordered, rearranged = shares[layer]
        mask = pattern(outcome, layer, sparsity)
        facts: dict[str, Any] = {
            "blocks kept": f"{int(mask.sum()):,} of {mask.numel():,}",
            "shown": _part(mask, what),
            "magnitude retained as it came": f"{100 * unordered:.1f} %",
            "rearranged": f"{100 * rearranged:.1f} %",
            **measured(outcome),
        }
        return Frame("".join(plots), facts)

    sparsity = outcome.recipe.sparsity
    controls = {
        "layer": Control(layers, label="layer", start=layers[len(layers) // 2]),
        "sparsity": Control(sorted({*SHARES, sparsity}), label="share of blocks removed", start=sparsity),
    }
    title = f"SparseByteNN(block={outcome.recipe.block}, search={outcome.recipe.search!r}): what a row order saves"
    return Explorer(draw, controls, title=title)


# -- pictures of numbers -----------------------------------------------------------------------------------------------


def _blocks(mask: Tensor, title: str) -> str:
    """The first groups and inputs of a layer: a cell is a block, dark where it is kept."""
    return svg.heat(mask[: SHOWN[0], : SHOWN[1]].float().tolist(), x="input", title=title)


def _part(mask: Tensor, what: str = "inputs") -> str:
    groups, inputs = mask.shape
    return f"{min(groups, SHOWN[0])} of {groups} groups, {min(inputs, SHOWN[1])} of {inputs} {what}"


def _curves(retained: dict[str, list[float]], layer: str, sparsity: float) -> str:
    """What each search gains over rows as they came: the retained shares themselves lie too close to be told apart."""
    series = [
        svg.Series(
            name, [(s, 100 * (v - v0)) for s, v, v0 in zip(SHARES, retained[name], retained["none"], strict=True)]
        )
        for name in SEARCHES[1:]
    ]
    return svg.lines(series, "share of blocks removed", "points gained by the row order", title=layer, at=sparsity)


def _by_layer(shares: dict[str, tuple[float, float]], at: int) -> str:
    series = [
        svg.Series(name, [(i, 100 * share) for i, share in enumerate(column)], joined=False)
        for name, column in zip(("as it came", "rearranged"), zip(*shares.values(), strict=True), strict=True)
    ]
    return svg.lines(series, "layer", "magnitude retained (%)", title="all layers", at=at)


# -- the engine --------------------------------------------------------------------------------------------------------


def layer_times(outcome: SparseByteNNOutcome, repeats: int = 20) -> Any:
    """Each operator's ms in the dense engine and in the sparse one, on this machine: one row an operator."""
    dense, sparse = (outcome.engine(dense=dense, measure=False).profile(repeats) for dense in (True, False))
    return sparse[["layer", "operator", "blocks kept"]].assign(dense=dense.ms, sparse=sparse.ms)


def layers(outcome: SparseByteNNOutcome, repeats: int = 20) -> go.Figure:
    """Each operator's ms, dense and sparse, as bars: where the time goes, and what the zeros save."""
    table = layer_times(outcome, repeats)
    bars = [go.Bar(x=table.layer, y=table[name], name=name) for name in ("dense", "sparse")]
    return figure(*bars, y="ms for one picture, one thread, here")


def browser(outcome: SparseByteNNOutcome, **options: Any) -> Classifier:
    """A widget that classifies pictures in the reader's own browser and times the network there, sparse beside dense.

    Options (labels, mean, std, images, title) as `web.bundle` takes them.
    """
    sparse = outcome.engine(strict=True, measure=False)
    return Classifier(**web.widget(sparse, **({"dense": engine.with_zeros(sparse)} | options)))


def speeds() -> Any:
    """`data/sparsebytenn/speed_avx512.json` as a frame: whole MobileNet-v1, one row a contender."""
    import pandas

    return pandas.DataFrame(_kept("speed", "avx512")["network"])


def _kept(name: str, isa: str) -> dict[str, Any]:
    """What a benchmark of speed has left, with an instruction set."""
    return dict(json.loads(store.artefact(f"sparsebytenn/{name}_{isa}.json").read_text()))


def speedups() -> list[tuple[float, float]]:
    """(share of blocks removed, times as fast as the best dense engine) as last measured, whole MobileNet-v1."""
    table = speeds()
    ours = table[table["index"].str.startswith("engine")]
    return [
        (float(name.split(", ")[1][:-1]) / 100, ratio) for name, ratio in ours[["index", "over the best dense"]].values
    ]


def races(isa: str = "avx2") -> Any:
    """Whole networks against dense engines, as last measured on a core with AVX2 and no more: a row a contender.

    isa: 'avx512' for a core with AVX-512. Zeros are in MobileNet-v1's pointwise layers
    (`data/sparsebytenn/speed_avx2.json`), and in all layers of the others but the first and the last
    (`networks_avx2.json`). 'ratio': times as fast as the best dense engine.
    """
    import pandas

    if isa not in ("avx2", "avx512"):
        raise ValueError(f"isa={isa!r}: races are kept of 'avx2' and 'avx512'")
    networks = {"mobilenet_v1": _kept("speed", isa)["network"]}
    networks |= {network["network"]: network["times"] for network in _kept("networks", isa)["networks"]}
    rows = [
        {"network": name, "contender": row["index"], "ms": row["ms"], "ratio": row["over the best dense"]}
        for name, table in networks.items()
        for row in table
    ]
    return pandas.DataFrame(rows)


def race(isa: str = "avx2") -> go.Figure:
    """The same as bars, a group a network; above the line a contender is faster than every dense engine."""
    table = races(isa)
    shown = [name for name in table.contender.unique() if (table.contender == name).sum() == table.network.nunique()]
    bars = []
    for name, color in zip(shown, ("#c4c4c4", "#9a9a9a", "#707070", *svg.PALETTE), strict=False):
        rows, (who, form) = table[table.contender == name], name.split(", ")
        label = f"{who}, dense" if form in ("dense", "0%") else f"{who}, {form.replace('%', ' % zeros')}"
        numbers = {"text": rows.ratio.map("{:.2f}".format), "textposition": "outside", "textangle": -90}
        bars.append(go.Bar(x=rows.network, y=rows.ratio, name=label, marker_color=color, cliponaxis=False, **numbers))
    chart = figure(*bars, y="times as fast as the best dense engine")
    chart.add_hline(y=1, line_dash="dot", line_color="#707070", layer="below")
    return chart.update_layout(bargap=0.15)
