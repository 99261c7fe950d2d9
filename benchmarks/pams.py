"""PAMS beside its baselines and controls: what bits cost on photographs, and what integers gain in onnxruntime.

    python benchmarks/pams.py [--quick] [--json FILE] [--seeds 10,11,12] [--part accuracy|speed]

Accuracy: the lab's small EDSR at x2 on the photographs that scikit-image and scikit-learn ship, held-out pictures.
Every baseline quantises the same tensors and weights (the placement is named in each row), starts from the same network
and trains for as many steps on the same batches at the same rates. onnxruntime's own static quantisation stands beside.
Speed: EDSR-baseline (16 blocks of 64 channels) with random weights, which time does not depend on, one thread,
interleaved, one run; and the bytes of its files beside the formula.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas
import torch
from ort_static import quantised
from torch import nn
from torch.nn.utils import parametrize
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import lab
from lab.core import cost
from lab.core.data.batches import enlarged
from lab.core.machine import machine
from lab.core.onnx import qdq
from lab.core.onnx.ort_report import fusion, parity, worst
from lab.core.onnx.runtime import Deployed
from lab.core.quantisation import quantisers
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.quantisation.placement import QuantPoint, insert_quantisers
from lab.core.task import Task
from lab.core.training import Stage, descend, seeded
from lab.pams import equations as eq
from lab.pams import packed, sizes
from lab.pams.placement import place_quantisers

EIGHT = lab.PAMS(placement="fig1", steps=300, lr=1e-4, alpha_lr=3e-3)
FOUR = replace(EIGHT, weight_bits=4, activation_bits=4, lr=1e-3)
BASELINES: dict[str, tuple[Callable, Callable]] = {  # activations, weights
    "max-abs": (quantisers.MaxAbs, lambda bits, W: quantisers.MaxAbsWeight(bits)),
    "least squares": (quantisers.LeastSquares, lambda bits, W: quantisers.MaxAbsWeight(bits)),
    "DoReFa": (quantisers.MaxAbs, quantisers.DoReFaWeight),
    "PACT": (quantisers.PACT, quantisers.DoReFaWeight),
    "LSQ": (quantisers.LSQ, quantisers.LSQWeight),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the steps: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings, seeds and the machine here")
    parser.add_argument("--seeds", default="10,11,12", help="none of which was used to choose the settings")
    parser.add_argument("--part", choices=("accuracy", "speed"), help="only this part")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # onnxruntime's quantiser speaks of a preparation that our graphs do not need
    seeds = [int(seed) for seed in options.seeds.split(",")][: 1 if options.quick else None]
    here = machine("onnxruntime")
    report: dict = {"figures": {}, "settings": [repr(EIGHT), repr(FOUR)], "seeds": seeds, "machine": here}
    print(f"{FOUR}\nseeds {seeds}; one thread of {here['processor']}; onnxruntime {here['onnxruntime']}")
    if options.part != "accuracy":
        report["speed"] = speed(repeats=5 if options.quick else 30)
        report["sizes"] = file_sizes()
        report["figures"] |= speed_figures(report["speed"])
        print(pandas.DataFrame(report["speed"]).to_string(), pandas.DataFrame(report["sizes"]).to_string(), sep="\n")
    if options.part != "speed":
        report["rows"], report["float"] = [], unquantised()
        print(report["float"])
        for seed in seeds:
            for row in accuracy(seed, 0.1 if options.quick else 1.0):
                print(row, flush=True)
                report["rows"].append(row)
            keep(options.json, report)
        table = pandas.DataFrame(report["rows"])
        report["figures"] |= accuracy_figures(table)
        print(by_method(table).to_string())
    print(json.dumps(report["figures"], indent=1))
    keep(options.json, report)


def keep(path: Path | None, report: dict) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n")


# -- accuracy ----------------------------------------------------------------------------------------------------------


def accuracy(seed: int, share: float) -> Iterator[dict]:
    """A row for each method with one seed; `share` of the steps is taken."""
    task = lab.tasks.photos(2, patch=96, batch_size=4)
    eight, four = (replace(r, steps=int(r.steps * share)) for r in (EIGHT, FOUR))
    runs = [
        ("PAMS", eight),
        ("PAMS", four),
        ("PAMS, no SKT", replace(four, skt=0.0)),
        ("PAMS, paper's grid", replace(four, grid="signed")),
        ("PAMS", replace(eight, placement="full")),
        ("PAMS", replace(eight, placement="cadyq")),
        ("PAMS", replace(four, placement="cadyq")),
    ]
    for name, recipe in runs if share == 1 else runs[:2]:
        outcome = recipe.run(task, seed=seed, progress=False)
        yield row(name, seed, recipe, task, outcome.model, outcome)
    for name in BASELINES:
        with seeded(seed):
            yield row(name, seed, four, task, baseline(task, four, *BASELINES[name]))
    yield from static_quantisation(task, seed)


def row(name: str, seed: int, recipe: lab.PAMS, task: Task, model: nn.Module, outcome=None) -> dict:
    scores = scored(task, model)
    kept = {
        "method": name,
        "seed": seed,
        "placement": recipe.placement,
        "weight_bits": recipe.weight_bits,
        "activation_bits": recipe.activation_bits,
        **scores,
    }
    if outcome is not None and recipe.activation_bits == 8:
        deployed = Deployed(qdq.to_model(outcome.model).SerializeToString())
        apart = worst(parity(outcome.model, task.example))
        kept |= {"psnr_onnxruntime": task.measure(deployed), "parity_steps": apart.steps}
    return kept


def unquantised() -> dict:
    """The float network and the bicubic enlargement on the same pictures."""
    task, pairs = lab.tasks.photos(2), lab.tasks.photos_held_out(2)
    models = {"float": task.model, "bicubic": Bicubic()}
    return {name: {"psnr": task.measure(m), "ssim": lab.tasks.ssim(pairs, border=2)(m)} for name, m in models.items()}


class Bicubic(nn.Module):
    """The control of super-resolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return enlarged(x, 2)


def scored(task: Task, model: nn.Module) -> dict:
    similarity = lab.tasks.ssim(lab.tasks.photos_held_out(2), border=2)
    psnr = task.measure(model)
    return {"psnr": psnr, "gap": task.measure(task.model) - psnr, "ssim": similarity(model)}


def baseline(task: Task, recipe: lab.PAMS, activation: Callable, weight: Callable) -> nn.Module:
    """The task's network with another paper's quantisers at the recipe's placement, trained on L1 alone."""
    graph = fold_batch_norms(task.model, task.example)
    placement = place_quantisers(graph, recipe.placement, recipe.grid == "unsigned")
    make = partial(_activation, recipe, activation)
    made = insert_quantisers(graph, placement, make, partial(_weight, recipe, weight))
    ranges = [p for name, p in graph.named_parameters() if name.endswith((".alpha", ".step")) and p.requires_grad]
    weights = [p for p in graph.parameters() if p.requires_grad and not any(p is r for r in ranges)]
    groups = [{"params": weights, "lr": recipe.lr}] + ([{"params": ranges, "lr": recipe.alpha_lr}] if ranges else [])
    adam = Adam(groups)
    stage = Stage(None, "baseline", "benchmark", graph=graph, adam=adam)

    def terms(batch):
        return {"l1": eq.pixel_loss(graph(batch[0]), batch[1])}

    graph.train()
    calibrate(made, True)
    schedule = CosineAnnealingLR(adam, recipe.steps)
    for step in descend(terms, task.batches, adam, stage, steps=recipe.steps, schedule=schedule, progress=False):
        calibrate(made, step.index + 1 < recipe.calibration)
    return graph.eval()


def calibrate(made: list[nn.Module], on: bool) -> None:
    for quantiser in made:
        quantiser.calibrating = on


def _activation(recipe: lab.PAMS, kind: Callable, point: QuantPoint) -> nn.Module:
    return kind(recipe.activation_bits, point.signed)


def _weight(recipe: lab.PAMS, kind: Callable, conv: nn.Conv2d) -> nn.Conv2d:
    parametrize.register_parametrization(conv, "weight", kind(recipe.weight_bits, conv.weight))
    return conv


def static_quantisation(task: Task, seed: int) -> Iterator[dict]:
    """onnxruntime's own tool on the same float graph, calibrated on as many batches: every convolution, no training."""
    for method in ("MinMax", "Entropy", "Percentile"):
        with seeded(seed):
            model = quantised(fold_batch_norms(task.model, task.example), [x for x, _ in batches(task, 20)], method)
        yield {
            "method": f"onnxruntime static, {method}",
            "seed": seed,
            "placement": "its own",
            "weight_bits": 8,
            "activation_bits": 8,
            **scored(task, Deployed(model)),
            "fused_share": fusion(model).share,
        }


def batches(task: Task, count: int) -> list:
    stage = Stage(None, "batches", "benchmark").stream(task.batches)
    return [next(stage) for _ in range(count)]


# -- speed and size ----------------------------------------------------------------------------------------------------


def speed(repeats: int) -> list[dict]:
    """ms of EDSR-baseline on a picture of 48 x 48, and how many times as fast as its float graph, a row a form."""
    rows = []
    for scale in (2, 4):
        with seeded(0):
            net, x = lab.nets.edsr(blocks=16, width=64, scale=scale), torch.rand(1, 3, 48, 48)
        graphs = {"fp32": fold_batch_norms(net, x)}
        for placement, grid in (("fig1", "signed"), ("repo", "signed"), ("cadyq", "unsigned"), ("full", "unsigned")):
            graphs[f"{placement}, {grid}"] = calibrated(net, x, lab.PAMS(placement=placement, grid=grid))
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


def calibrated(net: nn.Module, x: torch.Tensor, recipe: lab.PAMS):
    """The network quantised as the recipe says, calibrated on one picture and not trained."""
    graph = fold_batch_norms(net, x)
    made = recipe.quantise(graph, place_quantisers(graph, recipe.placement, recipe.grid == "unsigned"))
    graph.train()
    calibrate(made, True)
    with torch.no_grad():
        graph(x)
    calibrate(made, False)
    packed.bake(graph)
    return graph.eval()


def file_sizes() -> list[dict]:
    """Bytes of EDSR-baseline x4 as files, beside b / 8 a rounded weight and 4 all else; and the paper's own count."""
    with seeded(0):
        net, x = lab.nets.edsr(blocks=16, width=64, scale=4), torch.rand(1, 3, 16, 16)
    rows = []
    for placement, bits in (("cadyq", 8), ("cadyq", 4), ("cadyq", 2), ("full", 8)):
        graph = calibrated(net, x, lab.PAMS(placement=placement, weight_bits=bits))
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


def accuracy_figures(table: pandas.DataFrame) -> dict[str, float]:
    """Means over the seeds of fp32 minus quantised, dB, placement fig1: PAMS at 8 and 4 bits, best baseline at 4."""
    ours = table[(table.placement == "fig1") & (table.method == "PAMS")].groupby("weight_bits")["gap"]
    baselines = table[table.method.isin(BASELINES)].groupby("method")["gap"].mean()
    mean, spread = ours.mean(), ours.agg(lambda gaps: statistics.stdev(gaps) if len(gaps) > 1 else 0.0)
    return {
        "psnr_gap_8": mean[8],
        "psnr_gap_8_std": spread[8],
        "psnr_gap_4": mean[4],
        "psnr_gap_4_std": spread[4],
        "best_rival_gap_4": baselines.min(),
        **{f"gap_4_{name}": gap for name, gap in baselines.items()},
    }


def by_method(table: pandas.DataFrame) -> pandas.DataFrame:
    """Mean and range over the seeds."""
    shown = table.groupby(["placement", "weight_bits", "method"], sort=False)[["psnr", "gap", "ssim"]]
    return shown.agg(lambda v: f"{v.mean():.3f} ({v.min():.3f} to {v.max():.3f})")


if __name__ == "__main__":
    main()
