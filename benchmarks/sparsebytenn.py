"""SparseByteNN's claim, measured: a sparse MobileNet-v1 that is faster than the best dense engine on the same core.

    python benchmarks/sparsebytenn.py [--quick] [--json FILE] [--isa avx2]

Whole MobileNet-v1 at 224 x 224, fp32, one thread: onnxruntime dense, and the engine with 0, 30, 50, 70 and 90 % of
the pointwise layers' 4 x 1 blocks at zero, all in one run. In every round each contender runs once unclocked and three
times on the clock, the fastest of which counts; ratios are medians over rounds, against the faster of the dense ones.
Blocks are drawn at random: time does not depend on which they are. Then every pointwise layer alone, as a share of the
multiply-adds that this core does on registers (`core.kernels.peak`, taken between the layers).

The accuracy of sparse networks is measured in sparsebytenn_accuracy.py, the browser in sparsebytenn_web.py, ARM in
sparsebytenn_arm.py; with --json the figures of the first two are taken over from where they were kept.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import nn

import lab
from lab.core import kernels, store
from lab.core.machine import machine, processor
from lab.core.onnx import export
from lab.core.training import seeded
from lab.sparsebytenn import compiler, packed
from lab.sparsebytenn.packed import Map, Network, Op
from lab.sparsebytenn.runtime import Engine, clocked
from lab.sparsebytenn.tuning import tuned

SHARES = (0.0, 0.3, 0.5, 0.7, 0.9)
LAYERS = (  # inputs, outputs, pixels of MobileNet-v1's pointwise layers
    (32, 64, 112), (64, 128, 56), (128, 128, 56), (128, 256, 28), (256, 256, 28), (256, 512, 14), (512, 512, 14),
    (512, 1024, 7), (1024, 1024, 7),
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and layers: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings and the machine here")
    parser.add_argument("--isa", choices=kernels.isas(), help="the instruction set, else the best of this machine")
    options = parser.parse_args(argv)
    if options.isa:
        os.environ["LAB_ISA"] = options.isa
    torch.set_num_threads(1)
    rounds = 12 if options.quick else 60
    times = whole_network(rounds)
    table = speedups(times)
    print(f"{processor()}, kernels {kernels.isa_name()}, one thread, {rounds} rounds, fp32")
    print(table.to_string())
    layers = peak_shares(LAYERS[4:7] if options.quick else LAYERS, repeats=20 if options.quick else 60)
    print(layers.pivot(index="layer", columns="sparsity", values="share").to_string(float_format="%.3f"))
    figures = {f"speedup_{round(100 * s)}": table["over the best dense"][f"engine, {s:.0%}"] for s in SHARES[1:]}
    sides = layers[layers.sparsity <= 0.7].groupby("side").share.min()
    figures |= {"peak_share": sides[sides.index.isin((56, 28, 14))].min(), "peak_share_7x7": sides.get(7, np.nan)}
    figures |= kept_figures()
    print(json.dumps(figures, indent=1))
    if options.json:
        rows = {"network": table.reset_index().to_dict("records"), "layers": layers.to_dict("records")}
        kernel = {"isa": kernels.isa_name(), "isas": kernels.isas(), "peak GMAC/s": round(kernels.peak(), 1)}
        settings = {"rounds": rounds, "seed": 0, "blocks": "4 x 1 at random", "machine": machine() | kernel}
        options.json.write_text(json.dumps({"figures": figures, **rows, **settings}, indent=1) + "\n")


# -- the whole network -------------------------------------------------------------------------------------------------


def whole_network(rounds: int) -> dict[str, list[float]]:
    """Seconds of one picture for every contender: a list each, one entry a round."""
    with seeded(0):
        model = lab.nets.mobilenet_v1().eval()
        x = torch.randn(1, 3, 224, 224)
    contenders: dict[str, Callable[[], object]] = {"onnxruntime, dense": onnxruntime(model, x)}
    for share in SHARES:
        contenders[f"engine, {share:.0%}"] = ours(pruned(model, share), x)
    return interleaved(contenders, rounds)


def interleaved(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender: in each round one run unclocked and three clocked, of which the fastest counts."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for r in range(rounds):
        for name in list(contenders) if r % 2 == 0 else reversed(contenders):
            contenders[name]()
            times[name].append(min(clocked(contenders[name]) for _ in range(3)))
    return times


def pruned(model: nn.Module, share: float) -> nn.Module:
    """The network with a share of its pointwise layers' 4 x 1 blocks set to 0, the same ones for the same share."""
    g = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        copy = lab.nets.build(model.config)
    copy.load_state_dict(model.state_dict())
    for module in copy.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            keep = torch.rand(module.out_channels // 4, module.in_channels, generator=g) >= share
            module.weight.data *= keep.repeat_interleave(4, 0)[:, :, None, None]
    return copy.eval()


def ours(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """One call of the engine, which must give torch's answer."""
    engine = Engine(packed.write(tuned(compiler.compile(model, x))))
    with torch.no_grad():
        wrong = (engine(x) - model(x)).abs().max() / model(x).abs().max()
    if wrong > 1e-4:
        raise RuntimeError(f"the engine differs from torch by {wrong:.1e} of the largest output")
    image = np.ascontiguousarray(x[0].numpy())
    return lambda: engine._run(image)


def onnxruntime(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """One call of the dense network in onnxruntime, one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = export.onnx(model, Path(folder) / "dense.onnx", x)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": x.numpy()})


def speedups(times: dict[str, list[float]]) -> pandas.DataFrame:
    """Median ms, and how many times faster than each dense one and than the faster of both, round by round."""
    dense = {"onnxruntime": times["onnxruntime, dense"], "our dense": times["engine, 0%"]}
    best = min(dense.values(), key=statistics.median)
    rows = {}
    for name, mine in times.items():
        over = {f"over {engine}": ratio(theirs, mine) for engine, theirs in dense.items()}
        quartiles = statistics.quantiles([a / b for a, b in zip(best, mine, strict=True)], n=4)
        spread = f"{quartiles[0]:.2f} to {quartiles[2]:.2f}"
        ms = 1000 * statistics.median(mine)
        rows[name] = {"ms": round(ms, 2), **over, "over the best dense": ratio(best, mine), "quartiles": spread}
    return pandas.DataFrame(rows).T


def ratio(theirs: list[float], mine: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(theirs, mine, strict=True)), 3)


# -- one layer alone ---------------------------------------------------------------------------------------------------


def peak_shares(layers: tuple, repeats: int) -> pandas.DataFrame:
    """Multiply-adds a second of each pointwise layer as a share of the peak, zero blocks not counted."""
    rows = []
    for c_in, c_out, side in layers:
        for share in SHARES[:4]:
            done, seconds = layer(c_in, c_out, side, share, repeats)
            name = f"{c_in} -> {c_out}, {side} x {side}"
            rows.append(
                {"layer": name, "side": side, "sparsity": share, "share": done / seconds / 1e9 / kernels.peak()}
            )
    return pandas.DataFrame(rows)


def layer(c_in: int, c_out: int, side: int, share: float, repeats: int) -> tuple[int, float]:
    """Multiply-adds of a layer, and the median of its seconds."""
    g = np.random.default_rng(0)
    w = g.normal(size=(c_out, c_in)) * np.repeat(g.random((c_out // 4, c_in)) >= share, 4, 0)
    op = Op("pointwise", "layer", 0, 1, weights=kernels.pack(w), bias=np.zeros(c_out), clamp=(0.0, np.inf))
    network = tuned(Network([Map(c_in, side, side), Map(c_out, side, side)], [op], (0,), (1,)))
    engine = Engine(packed.write(network))
    engine(torch.randn(1, c_in, side, side))
    file, arena, isa = engine._ready()
    times = [clocked(lambda: kernels.lib.engine_step(file, arena, isa, 0)) for _ in range(repeats)]
    return int((w != 0).sum()) * side * side, statistics.median(times)


# -- what is reported --------------------------------------------------------------------------------------------------


def kept_figures() -> dict[str, float]:
    """The figures of the other files of this benchmark, as they were last kept."""
    kept = {}
    for name in ("accuracy", "web"):
        try:
            kept |= json.loads(store.artefact(f"sparsebytenn/{name}.json").read_text())["figures"]
        except FileNotFoundError:
            print(f"data/sparsebytenn/{name}.json is not there: run benchmarks/sparsebytenn_{name}.py --json FILE")
    return kept


if __name__ == "__main__":
    main()
