"""DQSS beside uniform strategies and onnxruntime's calibration: four networks, two tasks, 8, 4 and 3 bits, three seeds.

    python benchmarks/dqss.py [--quick] [--json FILE] [--seeds 10,11,12]

Each seed draws other calibration pictures; every method gets the same ones. 'uniform' is the best strategy (pair) on
the calibration; 'seen' in a figure means the strategy best on the held-out data, which nobody could have chosen.
onnxruntime's ranges are its own; below 8 bits its tool has no form, so its ranges are put on grids of as many bits
here. First and last layers keep 8 bits for all. A gain is in points of accuracy or in dB, as the task scores.
"""

import argparse
import json
import logging
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pandas
import torch
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import create_calibrator
from torch import nn

import lab
from lab.core import qdq
from lab.core.descent import seeded
from lab.core.grids import FixedQuantiser, between
from lab.core.prepared import prepared
from lab.core.task import Task
from lab.dqss import equations as eq
from lab.dqss import search
from lab.dqss.outcome import History, deployed
from lab.dqss.space import Space, place

RECIPE = lab.DQSS(calibration=64, steps=60)
NETWORKS: dict[str, tuple[Callable[[], Task], int, Callable[[], torch.Tensor]]] = {  # task, pictures, held-out data
    "ResNet-20, digits": (lab.tasks.digits, 64, lambda: lab.tasks.digits_data()[2]),
    "MobileNet-v1, digits 32": (
        lambda: lab.tasks.digits(size=32, channels=3), 32, lambda: lab.tasks.digits_data(32, 3)[2]
    ),
    "ResNet-8, scenes": (lab.tasks.scenes, 64, lambda: lab.tasks.scenes_data()[2]),
    "EDSR, photographs x2": (lambda: middles(), 16, lambda: torch.cat([low for low, _ in pairs()])),
}  # fmt: skip
FIVE = ("max", "p99.99", "mse", "kl", "aciq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, two networks, 4 bits: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings, seeds and the machine here")
    parser.add_argument("--seeds", default="10,11,12", help="none of which was used to choose the settings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    seeds = [int(seed) for seed in options.seeds.split(",")][: 1 if options.quick else None]
    networks = [*NETWORKS][:: 3 if options.quick else 1]
    report: dict = {"figures": {}, "settings": [repr(RECIPE)], "seeds": seeds, "machine": machine()}
    print(f"{RECIPE}\nseeds {seeds}; one thread of {machine()['processor']}; onnxruntime {onnxruntime.__version__}")
    report["rows"] = []
    for seed in seeds:
        for network in networks:
            for bits in (4,) if options.quick else (8, 4, 3):
                rows = list(cell(network, bits, seed))
                report["rows"] += rows
                print(
                    pandas.DataFrame(rows)[["network", "bits", "seed", "method", "score", "gap"]].to_string(),
                    flush=True,
                )
                report["figures"] = figures(pandas.DataFrame(report["rows"]))
                keep(options.json, report)
    report["steps"] = step_costs(5)
    report["figures"] |= cost_figures(report["steps"])
    keep(options.json, report)
    print(pandas.DataFrame(report["steps"]).to_string())
    print(by_method(pandas.DataFrame(report["rows"])).to_string())
    print(json.dumps(report["figures"], indent=1))


def keep(path: Path | None, report: dict) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n")


# -- accuracy ----------------------------------------------------------------------------------------------------------


def cell(network: str, bits: int, seed: int) -> Iterator[dict]:
    """A row for each method on one network with one number of bits and one seed."""
    make, count, held_out = NETWORKS[network]
    task, x = make(), held_out()
    recipe = replace(RECIPE, weight_bits=bits, activation_bits=bits, calibration=count)
    about = {"network": network, "bits": bits, "seed": seed, "float": task.measure(task.model), "unit": task.unit}
    with seeded(seed):
        teacher, graph = (prepared(task.model, task.example) for _ in range(2))
        batches = recipe._calibration(task, teacher)
        space = Space(graph, place(graph, recipe), recipe, torch.cat([x for x, _ in batches]))
        objective = search.Objective(space, batches)
        with torch.no_grad():
            wanted = teacher(x)

        def row(method: str, model: nn.Module, **more: float) -> dict:
            with torch.no_grad():
                apart = float(search.distance(model(x), wanted))
            return about | {"method": method, "score": task.measure(model), "held_out_loss": apart} | more

        best, _ = search.uniform(objective)
        kept = {"uniform": best, "random": search.random(space)}
        kept |= {f"uniform {name}": search.same(space, name, name) for name in recipe.names()}
        for name, chosen in kept.items():
            loss = objective(chosen)
            space.set(chosen)
            yield row(name, space.graph, kept=loss)
        for method in ("MinMax", "Entropy", "Percentile"):
            yield row(
                f"onnxruntime {method}", with_ranges(task, space, found_ranges(network, seed, task, batches, method))
            )
        for algorithm in ("dqss", "dqss_safe"):
            yield searched(replace(recipe, algorithm=algorithm), task, space, batches, row)


def searched(recipe: lab.DQSS, task: Task, space: Space, batches: list, row: Callable) -> dict:
    """The row of an algorithm with logits, as `DQSS.run` goes about it, on strategies that are calibrated already."""
    start = time.perf_counter()
    space.set(None)
    if recipe.algorithm == "dqss_safe":
        space.merge()
    objective = search.Objective(space, batches)
    recipe._search(task, space, batches, History(space), None, "benchmark", False)
    soft = objective(None)
    soft_score = task.measure(space.graph)
    chosen, best, _ = search.harden(recipe.algorithm, objective)
    losses = {"soft_loss": soft, "kept": objective(chosen), "uniform_loss": objective(best)}
    seconds = time.perf_counter() - start
    space.set(chosen)
    return row(
        recipe.algorithm, space.graph, soft=soft_score, gap=eq.gap(soft, losses["kept"]), seconds=seconds, **losses
    )


def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The middles of the four held-out photographs: 96 x 96 small, 192 x 192 large."""
    found = []
    for low, high in lab.tasks.photos_held_out(2):
        top, left = (low.shape[2] - 96) // 2, (low.shape[3] - 96) // 2
        found.append((low[..., top : top + 96, left : left + 96], high[..., 2 * top :, 2 * left :][..., :192, :192]))
    return found


def middles() -> Task:
    """Super-resolution scored on those middles."""
    return replace(lab.tasks.photos(2, patch=96, batch_size=4), score=lab.tasks.psnr(pairs(), border=2))


_FOUND: dict[tuple, dict[str, tuple[float, float]]] = {}


def found_ranges(network: str, seed: int, task: Task, batches: list, method: str) -> dict[str, tuple[float, float]]:
    """onnxruntime's ranges, which do not depend on the bits: read once a network, seed and method."""
    key = (network, seed, method)
    if key not in _FOUND:
        _FOUND[key] = ranges(task, [x for x, _ in batches], method)
    return _FOUND[key]


def ranges(task: Task, batches: list[torch.Tensor], method: str) -> dict[str, tuple[float, float]]:
    """The range that onnxruntime's calibrator finds for each tensor of the float graph."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        qdq.write(prepared(task.model, task.example), path)
        calibrator = create_calibrator(
            str(path), None, str(Path(folder) / "augmented.onnx"), quantization.CalibrationMethod[method]
        )
        calibrator.set_execution_providers(["CPUExecutionProvider"])
        calibrator.collect_data(Pictures(batches))
        found = calibrator.compute_data()
    return {name: tuple(float(end.item()) for end in found[name].range_value) for name in found.keys()}


class Pictures(quantization.CalibrationDataReader):
    """Pictures as onnxruntime's tool asks for them."""

    def __init__(self, pictures: list[torch.Tensor]) -> None:
        self.rest = iter(pictures)

    def get_next(self) -> dict | None:
        x = next(self.rest, None)
        return None if x is None else {"input": x.numpy()}


def with_ranges(task: Task, space: Space, found: dict[str, tuple[float, float]]) -> nn.Module:
    """The network with these ranges for its activations, on the grids of all codes, and max-abs for its weights."""
    model = deployed(space, search.same(space, "max", "max"), prepared(task.model, task.example))
    entry = next(node.name for node in model.graph.nodes if node.op == "placeholder")
    for group, spot in space.where.groups().items():
        low, high = found["input" if spot.source == entry else spot.source]
        bits = space._spot_bits(spot)
        model.set_submodule(f"quantisers.{group}", FixedQuantiser(between(low, high, bits)))
    return model.eval()


# -- the cost of a step ------------------------------------------------------------------------------------------------


class Naive(nn.Module):
    """A layer as N_a * N_w branches, Eq. (2)."""

    def __init__(self, layer: nn.Module, reads: nn.Module, weight: nn.Module) -> None:
        super().__init__()
        self.layer, self.reads, self.weight = layer, reads, weight
        self.W = layer.parametrizations.weight.original

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        X = [strategy(x) for strategy in self.reads.strategies]
        W = [strategy(self.W) for strategy in self.weight.strategies]
        q, p = (eq.probabilities(one.logits) for one in (self.reads, self.weight))
        y = eq.branches(X, W, q, p, lambda a, w: self.layer._conv_forward(a, w, None))
        return y if self.layer.bias is None else y + self.layer.bias.view(-1, 1, 1)


def step_costs(repeats: int) -> list[dict]:
    """A step (forward and backward), interleaved: plain quantised, five strategies, five times five branches."""
    with seeded(0):
        cases = {
            "EDSR, 8 x 64 channels": (lab.nets.edsr(blocks=8, width=64), torch.rand(4, 3, 32, 32)),
            "VGG-16, 32 x 32": (lab.nets.vgg16_cifar(), torch.rand(16, 3, 32, 32)),
            "ResNet-20, 32 x 32": (lab.nets.resnet_cifar(20), torch.rand(16, 3, 32, 32)),
        }
    return [{"network": name} | one_cost(net.eval(), x, repeats) for name, (net, x) in cases.items()]


def one_cost(net: nn.Module, x: torch.Tensor, repeats: int) -> dict:
    wanted = prepared(net, x[:1])(x).detach()
    graphs = {"plain": spaced(net, x, ("mse",)), "five": spaced(net, x, FIVE), "naive": naive(spaced(net, x, FIVE))}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for round in range(repeats):
        for name, space in graphs.items():
            if name == "naive" and round > 0:  # it takes twenty times as long
                continue
            start = time.perf_counter()
            search.distance(space.graph(x), wanted).backward()
            times[name].append(time.perf_counter() - start)
    over = {name: statistics.median(a / b for a, b in zip(times[name], times["plain"], strict=False)) for name in times}
    return {"five": over["five"], "naive": over["naive"], "plain_ms": 1000 * statistics.median(times["plain"])}


def spaced(net: nn.Module, x: torch.Tensor, names: tuple[str, ...]) -> Space:
    recipe = replace(RECIPE, candidates=names)
    graph = prepared(net, x[:1])
    return Space(graph, place(graph, recipe), recipe, x)


def naive(space: Space) -> Space:
    """The same space as branches; linear layers stay mixtures."""
    for group, spot in space.where.groups().items():
        name = space._readers(spot)[0]
        layer = space.graph.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            space.graph.set_submodule(name, Naive(layer, space.activations[group], space.weights[name]))
            space.graph.set_submodule(f"quantisers.{group}", nn.Identity())
    return space


# -- what is reported --------------------------------------------------------------------------------------------------


def figures(table: pandas.DataFrame) -> dict[str, float]:
    """Gains of dqss_safe over the best uniform strategy, means over networks and seeds; the least of them, by network
    and bits; and the mean soft-to-hard gap of plain arg-max in dB.
    """
    wide = table.pivot_table(index=["network", "bits", "seed"], columns="method", values="score")
    gain = wide["dqss_safe"] - wide["uniform"]
    seen = wide[[name for name in wide if name.startswith("uniform ")]].max(axis=1)
    loss = table.pivot_table(index=["network", "bits", "seed"], columns="method", values="held_out_loss")
    nearer = 10 * (loss["uniform"].clip(lower=1e-12) / loss["dqss_safe"].clip(lower=1e-12)).map(math.log10)
    rivals = [name for name in wide if name.startswith("onnxruntime")]
    found = {f"gain_{bits}": float(part.mean()) for bits, part in gain.groupby("bits")}
    by_cell, apart = gain.groupby(["network", "bits"]).mean(), (wide["dqss_safe"] - seen).groupby("bits").mean()
    found |= {"worst_gap": float(by_cell.min()), "worst_gap_std": float(gain.groupby(["network", "bits"]).std().max())}
    found |= {f"nearer_to_float_{bits}": float(part.mean()) for bits, part in nearer.groupby("bits")}
    found |= {f"gain_over_seen_{bits}": float(value) for bits, value in apart.items()}
    found |= {
        f"gain_over_arg_max_{bits}": float(value)
        for bits, value in (wide["dqss_safe"] - wide["dqss"]).groupby("bits").mean().items()
    }
    for name in rivals:
        behind = (wide["dqss_safe"] - wide[name]).groupby("bits").mean()
        found |= {f"gain_over_{name.split()[1]}_{bits}": float(value) for bits, value in behind.items()}
    found["soft_hard_gap"] = float(table[table.method == "dqss"]["gap"].mean())
    found["soft_hard_gap_safe"] = float(table[table.method == "dqss_safe"]["gap"].mean())
    return found


def cost_figures(steps: list[dict]) -> dict[str, float]:
    """Plain quantised steps that one with five strategies takes, at most, and one with five times five branches."""
    return {
        "step_cost": max(row["five"] for row in steps),
        "step_cost_naive": statistics.mean(row["naive"] for row in steps),
    }


def by_method(table: pandas.DataFrame) -> pandas.DataFrame:
    """Mean and range over the seeds."""
    shown = table.groupby(["network", "bits", "method"], sort=False)["score"]
    return shown.agg(lambda v: f"{v.mean():.2f} ({v.min():.2f} to {v.max():.2f})").unstack("bits")


def machine() -> dict:
    return {
        "processor": platform.processor() or platform.machine(), "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__,
        "python": sys.version.split()[0],
    }  # fmt: skip


if __name__ == "__main__":
    main()
