"""SparseByteNN's claim, measured: a sparse MobileNet-v1 that is faster than the best dense engine on the same core.

    python benchmarks/sparsebytenn.py [--quick] [--json FILE] [--isa avx2]

Whole MobileNet-v1 at 224 x 224, fp32, one thread, all in one run: onnxruntime, OpenVINO and MNN dense, the engine with
0, 30, 50, 70 and 90 % of the pointwise layers' 4 x 1 blocks at zero, and MNN's sparse kernels on the same zeros. In
every round each contender runs once unclocked and three times on the clock, the fastest of which counts; ratios are
medians over rounds, against the fastest of the dense ones. Blocks are drawn at random: time does not depend on which
they are. Then two threads on one picture, by the wall's clock; batches of 8 pictures; and every pointwise layer alone,
as a share of the multiply-adds that this core does on registers (`core.kernels.peak`, taken between the layers).

OpenVINO and MNN take part where they are installed: pip install openvino MNN. None of the rivals can be told which
instruction set to take: --isa avx2 holds the engine alone to AVX2, and all of them only on a processor that has no
more. What the processor has is printed and kept.

The accuracy of sparse networks is measured in sparsebytenn_accuracy.py, the browser in sparsebytenn_web.py, ARM in
sparsebytenn_arm.py, networks of today in sparsebytenn_networks.py.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from engines import checked, interleaved, packages, ratio, remove_blocks, rivals, sparse_mnn, speedups

import lab
from lab.core import kernels
from lab.core.machine import machine, processor
from lab.core.training import seeded
from lab.sparsebytenn import compiler, packed
from lab.sparsebytenn.packed import Map, Network, Op
from lab.sparsebytenn.runtime import Engine
from lab.sparsebytenn.tuning import tuned

SHARES = (0.0, 0.3, 0.5, 0.7, 0.9)
THREADS, BATCH = 2, 8
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
    rounds = 10 if options.quick else 60
    print(f"{processor()}, kernels {kernels.isa_name()} of {', '.join(kernels.isas())}, {rounds} rounds, fp32")
    model, x = network()
    engines = {share: engine(pruned(model, share), x) for share in SHARES}
    table = speedups(interleaved(contenders(model, engines, x), rounds))
    print(f"one thread\n{table.to_string()}")
    threads = in_threads(model, engines, x, rounds // 2)
    print(f"one picture on 1 and {THREADS} threads, ms by the wall's clock\n{threads.to_string()}")
    batches = in_batches(model, engines, x, max(5, rounds // 6))
    print(f"ms a picture, alone and in batches of {BATCH}, one thread\n{batches.to_string()}")
    layers = peak_shares(LAYERS[4:7] if options.quick else LAYERS, repeats=20 if options.quick else 60)
    print(layers.pivot(index="layer", columns="sparsity", values="share").to_string(float_format="%.3f"))
    figures = told(table, threads, batches, layers)
    print(json.dumps(figures, indent=1))
    if options.json:
        rows = {
            "network": json.loads(table.reset_index().to_json(orient="records")),
            "layers": layers.to_dict("records"),
        }
        rows |= {"threads": threads.to_dict("index"), "batches": batches.to_dict("index")}
        kernel = {"isa": kernels.isa_name(), "isas": kernels.isas(), "peak GMAC/s": round(kernels.peak(), 1)}
        settings = {"rounds": rounds, "seed": 0, "blocks": "4 x 1 at random", "machine": machine(*packages()) | kernel}
        options.json.write_text(json.dumps({"figures": figures, **rows, **settings}, indent=1) + "\n")


def told(
    table: pandas.DataFrame, threads: pandas.DataFrame, batches: pandas.DataFrame, layers: pandas.DataFrame
) -> dict[str, float]:
    """The figures that count, by name."""
    names = {f"{100 * share:.0f}": f"engine, {share:.0%}" for share in SHARES[1:]}
    figures = {f"speedup_{share}": table["over the best dense"][name] for share, name in names.items()}
    if "over MNN, same zeros" in table:
        figures |= {f"over_mnn_sparse_{share}": table["over MNN, same zeros"][name] for share, name in names.items()}
    figures |= {f"two_threads_{share:.0%}": threads.gain[f"engine, {share:.0%}"] for share in (0.0, 0.5)}
    figures |= {f"batch_8_{share:.0%}": batches.gain[f"engine, {share:.0%}"] for share in (0.0, 0.5)}
    sides = layers[layers.sparsity <= 0.7].groupby("side").share.min()
    return figures | {"peak_share": sides[sides.index.isin((56, 28, 14))].min(), "peak_share_7x7": sides.get(7, np.nan)}


# -- the whole network -------------------------------------------------------------------------------------------------


def network() -> tuple[nn.Module, torch.Tensor]:
    """MobileNet-v1 and a picture (1, 3, 224, 224)."""
    with seeded(0):
        return lab.nets.mobilenet_v1().eval(), torch.randn(1, 3, 224, 224)


def pruned(model: nn.Module, share: float) -> nn.Module:
    """The network with a share of its pointwise layers' 4 x 1 blocks set to 0, the same ones for the same share."""
    g = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        copy = lab.nets.build(model.config)
    copy.load_state_dict(model.state_dict())
    for module in copy.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            remove_blocks(module.weight, share, g)
    return copy.eval()


def engine(model: nn.Module, x: torch.Tensor) -> Engine:
    """The network in the engine, which must give torch's answer."""
    made = Engine(packed.write(tuned(compiler.compile(model, x))))
    checked("the engine", lambda: made(x).numpy(), model, x, 1)
    return made


def contenders(model: nn.Module, engines: dict[float, Engine], x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """All of them by name, each as a call on one picture on one thread."""
    calls: dict[str, Callable[[], object]] = {**rivals(model, x)}
    for share, made in engines.items():
        calls[f"engine, {share:.0%}"] = partial(made._run, [x[0].numpy()])
        if share and (theirs := sparse_mnn(pruned(model, share), x)):
            calls[f"MNN, {share:.0%}"] = theirs
    return calls


def in_threads(model: nn.Module, engines: dict[float, Engine], x: torch.Tensor, rounds: int) -> pandas.DataFrame:
    """Median ms of one picture on one thread and on two, and how many times as fast two are: a row a contender."""
    calls: dict[str, Callable[[], object]] = {}
    for n in (1, THREADS):
        calls |= {f"{name}; {n}": call for name, call in rivals(model, x, n).items()}
        calls |= {f"engine, {share:.0%}; {n}": partial(engines[share], x, threads=n) for share in (0.0, 0.5)}
    return _gains(interleaved(calls, rounds, time.perf_counter), 1, THREADS)


def in_batches(model: nn.Module, engines: dict[float, Engine], x: torch.Tensor, rounds: int) -> pandas.DataFrame:
    """Median ms a picture, alone and in batches of 8 on one thread, and the gain of the batch: a row a contender."""
    calls: dict[str, Callable[[], object]] = {}
    for n in (1, BATCH):
        batch = x.repeat(n, 1, 1, 1)
        calls |= {f"{name}; {n}": call for name, call in rivals(model, batch).items()}
        calls |= {f"engine, {share:.0%}; {n}": partial(engines[share], batch) for share in (0.0, 0.5)}
    times = interleaved(calls, rounds)
    return _gains({name: [t / int(name.split("; ")[1]) for t in times[name]] for name in times}, 1, BATCH)


def _gains(times: dict[str, list[float]], few: int, many: int) -> pandas.DataFrame:
    """A row a contender of 'name; number': median ms with both numbers, and times as fast with the second."""
    rows = {}
    for name in (key.removesuffix(f"; {few}") for key in times if key.endswith(f"; {few}")):
        one, more = times[f"{name}; {few}"], times[f"{name}; {many}"]
        ms = {str(n): round(1000 * statistics.median(t), 2) for n, t in ((few, one), (many, more))}
        rows[name] = ms | {"gain": ratio(one, more)}
    return pandas.DataFrame(rows).T


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
    made = Engine(packed.write(tuned(Network([Map(c_in, side, side), Map(c_out, side, side)], [op], (0,), (1,)))))
    return int((w != 0).sum()) * side * side, made.times(repeats)[0] / 1000


if __name__ == "__main__":
    main()
