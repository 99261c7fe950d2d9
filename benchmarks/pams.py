"""What PAMS's integers gain in onnxruntime, and what its files take; what bits cost is `pams_accuracy.py`'s.

    python benchmarks/pams.py [--quick] [--json data/pams/speed.json]

EDSR-baseline (16 blocks of 64 channels) with random weights, which time does not depend on, one thread, interleaved,
one run; and the bytes of its files beside the formula.
"""

import argparse
import json
import logging
from pathlib import Path

import pandas
import torch
from ort_static import quantised
from torch import fx, nn

import lab
from lab.core import cost, store
from lab.core.machine import machine
from lab.core.onnx import qdq
from lab.core.onnx.ort_report import fusion
from lab.core.onnx.runtime import Deployed
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.training import seeded
from lab.pams import packed, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: half a minute")
    parser.add_argument("--json", type=Path, help="write all figures and the machine here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # onnxruntime's quantiser speaks of a preparation that our graphs do not need
    rows, bytes_ = speed(repeats=5 if options.quick else 30), file_sizes()
    report = {"figures": speed_figures(rows), "speed": rows, "sizes": bytes_, "machine": machine("onnxruntime")}
    print(pandas.DataFrame(rows).to_string(), pandas.DataFrame(bytes_).to_string(), sep="\n")
    print(json.dumps(report["figures"], indent=1))
    if options.json is not None:
        store.write(options.json, (json.dumps(report, indent=1) + "\n").encode())


# -- speed and size ----------------------------------------------------------------------------------------------------


def speed(repeats: int) -> list[dict]:
    """ms of EDSR-baseline on a picture of 48 x 48, and how many times as fast as its float graph, a row a form."""
    rows = []
    for scale in (2, 4):
        with seeded(0):
            net, x = lab.nets.edsr(blocks=16, width=64, scale=scale), torch.rand(1, 3, 48, 48)
        graphs = {"fp32": fold_batch_norms(net, x)}
        for placement, grid in (("fig1", "signed"), ("repo", "signed"), ("cadyq", "unsigned"), ("full", "unsigned")):
            graphs[f"{placement}, {grid}"] = calibrated(net, [x], lab.PAMS(placement=placement, grid=grid))
        files = {name: qdq.to_model(graph).SerializeToString() for name, graph in graphs.items()}
        files["onnxruntime static"] = quantised(graphs["fp32"], [x], "MinMax")
        timed = cost.latencies({name: Deployed(file) for name, file in files.items()}, x, repeats=repeats)
        for name, file in files.items():
            made = fusion(file)
            rows.append(
                {
                    "scale": scale,
                    "form": name,
                    "ms": timed[name].median,
                    "low": timed[name].low,
                    "high": timed[name].high,
                    "speedup": timed["fp32"].over(timed[name]),
                    "fused_share": made.share,
                    "convolutions": len(made.rows),
                    "operators": made.operators,
                }
            )
    return rows


def calibrated(net: nn.Module, pictures: list[torch.Tensor], recipe: lab.PAMS) -> fx.GraphModule:
    """The network quantised as the recipe says, calibrated on these batches and not trained."""
    graph = fold_batch_norms(net, pictures[0][:1])
    made = recipe.quantise(graph, recipe.place(graph))
    graph.train()
    calibrate(made, True)
    with torch.no_grad():
        for x in pictures:
            graph(x)
    calibrate(made, False)
    packed.bake(graph)
    return graph.eval()


def calibrate(made: list[nn.Module], on: bool) -> None:
    for quantiser in made:
        quantiser.calibrating = on


def file_sizes() -> list[dict]:
    """Bytes of EDSR-baseline x4 as files, beside b / 8 a rounded weight and 4 all else; and the paper's own count."""
    with seeded(0):
        net, x = lab.nets.edsr(blocks=16, width=64, scale=4), torch.rand(1, 3, 16, 16)
    rows = []
    for placement, bits in (("cadyq", 8), ("cadyq", 4), ("cadyq", 2), ("full", 8)):
        graph = calibrated(net, [x], lab.PAMS(placement=placement, weight_bits=bits))
        counts = sizes.count(fold_batch_norms(net, x), graph, x)
        rows.append(
            {
                "placement": placement,
                "weight_bits": bits,
                "formula": counts.bytes,
                "packed": len(packed.to_bytes(graph)),
                "onnx": len(qdq.to_model(graph).SerializeToString()),
                "paper": 4 * counts.equivalent,
            }
        )
    return rows


# -- what is reported --------------------------------------------------------------------------------------------------


def speed_figures(rows: list[dict]) -> dict[str, float]:
    """At x4: the share of integer convolutions in `full`, and the speed-ups of `full` and of PAMS's own scope."""
    four = {row["form"]: row for row in rows if row["scale"] == 4}
    full, scope = four["full, unsigned"], four["cadyq, unsigned"]
    return {
        "fused_share_full": full["fused_share"],
        "int8_speedup_full": full["speedup"],
        "int8_speedup_scope": scope["speedup"],
    }


if __name__ == "__main__":
    main()
