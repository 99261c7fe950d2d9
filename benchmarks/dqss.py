"""DQSS beside uniform strategies and onnxruntime's tool: four networks, two tasks, 8, 4 and 3 bits, three seeds.

    python benchmarks/dqss.py [--quick] [--json FILE] [--seeds 10,11,12]

Each seed draws other calibration pictures; every method gets the same ones. 'uniform' is the best strategy (pair) on
the calibration; 'seen' in a figure means the strategy best on the held-out data, which nobody could have chosen.
'onnxruntime ...' is its `quantize_static` on the same float graph, at 8 bits and at 4; below 8, first and last layer
are left out of it. 'range of ...' puts its activations' ranges, and weights by max-abs, on grids of as many bits here;
that stands in for it at 3 bits, which it cannot. Elsewhere first and last layer keep 8 bits. 'trained': one network in
the quantisation-aware mode, all with as many updates. A gain is in points of accuracy or in dB, as the task scores.
FILE is a journal too: after a kill the same command does only what is missing.
"""

import argparse
import itertools
import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pandas
import torch
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import create_calibrator
from torch import nn

import lab
from lab.core import store
from lab.core.machine import machine
from lab.core.onnx import qdq
from lab.core.onnx.runtime import Deployed
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.quantisation.qparams import FixedQuantiser, QParams, set_int_repr
from lab.core.quantisation.quantisers import largest_code
from lab.core.running import Run, running
from lab.core.task import Task
from lab.core.training import seeded
from lab.dqss import equations as eq
from lab.dqss import search
from lab.dqss.space import Assignment, StrategySpace

RECIPE = lab.DQSS(calibration=64, steps=60)
TRAINED = lab.DQSS(mode="aware", calibration=64, steps=60, weight_bits=3, activation_bits=3)
UNIFORM = ("lsq", "pams", "dorefa", "tqt")
ORT = ("MinMax", "Entropy", "Percentile")
NETWORKS: dict[str, tuple[Callable[[], Task], int, Callable[[], torch.Tensor]]] = {  # task, pictures, held-out data
    "ResNet-20, digits": (lab.tasks.digits, 64, lambda: lab.tasks.digits_data()[2]),
    "MobileNet-v1, digits 32": (
        lambda: lab.tasks.digits(size=32, channels=3),
        64,
        lambda: lab.tasks.digits_data(32, 3)[2],
    ),
    "ResNet-8, scenes": (lab.tasks.scenes, 64, lambda: lab.tasks.scenes_data()[2]),
    "EDSR, photographs x2": (lambda: middles(), 16, lambda: torch.cat([low for low, _ in pairs()])),
}
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
    report = begun(options.json, seeds)
    here = report["machine"]
    print(f"{RECIPE}\nseeds {seeds}; one thread of {here['processor']}; onnxruntime {here['onnxruntime']}")
    with tempfile.TemporaryDirectory() as folder:
        for seed, network, bits in itertools.product(seeds, networks, (4,) if options.quick else (8, 4, 3)):
            if any((row["network"], row["bits"], row["seed"]) == (network, bits, seed) for row in report["rows"]):
                continue
            start = time.perf_counter()
            rows = list(cell(network, bits, seed, Path(folder)))
            report["rows"] += rows
            print(pandas.DataFrame(rows)[["network", "bits", "seed", "method", "score", "gap"]].to_string())
            print(f"{time.perf_counter() - start:.0f} s", flush=True)
            keep(options.json, report)
    for seed in () if options.quick else seeds:
        if all(row["seed"] != seed for row in report["trained"]):
            report["trained"] += trained(seed)
            keep(options.json, report)
    report["steps"] = report["steps"] or step_costs(5)
    keep(options.json, report)
    print(pandas.DataFrame(report["steps"]).to_string(), pandas.DataFrame(report["trained"]).to_string(), sep="\n")
    print(by_method(pandas.DataFrame(report["rows"])).to_string())
    print(json.dumps(report["figures"], indent=1))


def begun(path: Path | None, seeds: list[int]) -> dict:
    """The report of this run as far as it is in the file already; of other settings or another machine nothing is."""
    report: dict = {
        "figures": {},
        "settings": [repr(RECIPE), repr(TRAINED), *(f"{n}: {v[1]}" for n, v in NETWORKS.items())],
        "seeds": seeds,
        "machine": machine("onnxruntime"),
        "rows": [],
        "trained": [],
        "steps": [],
    }
    saved = json.loads(path.read_text()) if path is not None and path.exists() else {}
    return saved if all(saved.get(key) == report[key] for key in ("settings", "seeds", "machine")) else report


def keep(path: Path | None, report: dict) -> None:
    """Bring the figures up to date and write all of it."""
    report["figures"] = figures(pandas.DataFrame(report["rows"])) | cost_figures(report["steps"])
    if report["trained"]:
        scores = pandas.DataFrame(report["trained"]).groupby("method")["score"].mean()
        report["figures"] |= {f"trained_{name}": float(score) for name, score in scores.items()}
    if path is not None:
        store.write(path, (json.dumps(report, indent=1) + "\n").encode())


# -- accuracy ----------------------------------------------------------------------------------------------------------


def cell(network: str, bits: int, seed: int, folder: Path) -> Iterator[dict]:
    """A row for each method on one network with one number of bits and one seed."""
    make, count, held_out = NETWORKS[network]
    task, x = make(), held_out()
    recipe = replace(RECIPE, weight_bits=bits, activation_bits=bits, calibration=count)
    about = {"network": network, "bits": bits, "seed": seed, "float": task.measure(task.model), "unit": task.unit}
    with running(recipe, task, seed, None, None, progress=False) as run:
        teacher, graph = (fold_batch_norms(task.model, task.example) for _ in range(2))
        batches = recipe.calibration_batches(run, teacher)
        space = StrategySpace(graph, recipe, torch.cat([x for x, _ in batches]))
        with torch.no_grad():
            wanted = teacher(x)

        def row(method: str, model: nn.Module, **more: float) -> dict:
            with torch.no_grad():
                apart = float(search.distance(model(x), wanted))
            return about | {"method": method, "score": task.measure(model), "held_out_loss": apart} | more

        for name, chosen in ({"random": search.random(space)} | _uniforms(space)).items():
            space.set(chosen)
            yield row(name, space.graph)
        for method in ORT:
            journal = folder / f"{network} {seed} {method}".replace(",", "").replace(" ", "_")
            limits = cached_ranges(journal, task, batches, method)
            yield row(f"range of {method}", with_ranges(task, space, limits))
            if bits > 3:
                yield row(f"onnxruntime {method}", Deployed(static(task, bits, batches, method, journal)))
        yield from searched(recipe, run, space, batches, row)


def _uniforms(space: StrategySpace) -> dict[str, Assignment]:
    return {f"uniform {name}": search.same(space, name, name) for name in space.names}


def searched(recipe: lab.DQSS, run: Run, space: StrategySpace, batches: list, row: Callable) -> Iterator[dict]:
    """The rows of 'dqss_safe' and of what its search passes on the way: the best uniform choice, plain arg-max."""
    start = time.perf_counter()
    space.set(None)
    result = search.Search(recipe, run, space, batches).find()
    losses, seconds = result.losses, time.perf_counter() - start
    kept = {
        "uniform": (result.uniform, losses["uniform"]),
        "dqss": (result.arg_max, losses["arg-max"]),
        "dqss_safe": (result.chosen, losses["kept"]),
    }
    for name, (chosen, loss) in kept.items():
        space.set(chosen)
        more = {} if name == "uniform" else {"soft": result.soft_score, "gap": eq.gap(losses["soft"], loss)}
        yield row(name, space.graph, kept=loss, soft_loss=losses["soft"], seconds=seconds, **more)


def trained(seed: int) -> list[dict]:
    """ResNet-20 in the quantisation-aware mode: both algorithms, and single strategies everywhere."""
    ways = {"dqss_safe": {}, "dqss": {"algorithm": "dqss"}}
    ways |= {f"uniform {name}": {"algorithm": "uniform", "candidates": (name,)} for name in UNIFORM}
    task, rows = lab.tasks.digits(), []
    for name, fields in ways.items():
        start = time.perf_counter()
        report = replace(TRAINED, **fields).run(task, seed=seed, progress=False).report
        rows.append(
            {
                "network": "ResNet-20, digits",
                "bits": TRAINED.weight_bits,
                "seed": seed,
                "method": name,
                "score": report["accuracy"].after,
                "float": report["accuracy"].before,
                "seconds": time.perf_counter() - start,
            }
        )
        print(rows[-1], flush=True)
    return rows


def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The middles of the four held-out photographs: 96 x 96 small, 192 x 192 large."""
    cut = []
    for low, high in lab.tasks.photos_held_out(2):
        top, left = (low.shape[2] - 96) // 2, (low.shape[3] - 96) // 2
        cut.append((low[..., top : top + 96, left : left + 96], high[..., 2 * top :, 2 * left :][..., :192, :192]))
    return cut


def middles() -> Task:
    """Super-resolution scored on those middles."""
    return replace(lab.tasks.photos(2, patch=96, batch_size=4), score=lab.tasks.psnr(pairs(), border=2))


_RANGES: dict[str, dict[str, tuple[float, float]]] = {}


def cached_ranges(journal: Path, task: Task, batches: list, method: str) -> dict[str, tuple[float, float]]:
    """onnxruntime's ranges, which do not depend on the bits: read once a network, seed and method."""
    if journal.name not in _RANGES:
        _RANGES[journal.name] = ranges(task, [x for x, _ in batches], method)
    return _RANGES[journal.name]


def ranges(task: Task, batches: list[torch.Tensor], method: str) -> dict[str, tuple[float, float]]:
    """The range that onnxruntime's calibrator finds for each tensor of the float graph."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        qdq.write(fold_batch_norms(task.model, task.example), path)
        calibrator = create_calibrator(
            str(path), None, str(Path(folder) / "augmented.onnx"), quantization.CalibrationMethod[method]
        )
        calibrator.set_execution_providers(["CPUExecutionProvider"])
        calibrator.collect_data(Pictures(batches))
        limits = calibrator.compute_data()
    return {name: tuple(float(end.item()) for end in limits[name].range_value) for name in limits.keys()}


def static(task: Task, bits: int, batches: list, method: str, journal: Path) -> bytes:
    """The float graph as onnxruntime's `quantize_static` leaves it: QDQ, unsigned activations, signed weights."""
    kinds = quantization.QuantType
    a, w = (kinds.QUInt8, kinds.QInt8) if bits == 8 else (kinds.QUInt4, kinds.QInt4)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "rounded.onnx"
        model = qdq.to_model(fold_batch_norms(task.model, task.example))
        for node in model.graph.node:
            node.name = node.output[0]
        layers = [node.name for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")]
        onnx.save(model, before)
        quantization.quantize_static(
            before,
            after,
            Pictures([x for x, _ in batches]),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=a,
            weight_type=w,
            calibrate_method=quantization.CalibrationMethod[method],
            nodes_to_exclude=[] if bits == 8 else [layers[0], layers[-1]],
            calibration_cache_path=journal.with_suffix(".json"),
        )
        return after.read_bytes()


class Pictures(quantization.CalibrationDataReader):
    """Pictures as onnxruntime's tool asks for them."""

    def __init__(self, pictures: list[torch.Tensor]) -> None:
        self.rest = iter(pictures)

    def get_next(self) -> dict | None:
        x = next(self.rest, None)
        return None if x is None else {"input": x.numpy()}


def with_ranges(task: Task, space: StrategySpace, limits: dict[str, tuple[float, float]]) -> nn.Module:
    """The network with these ranges for its activations, on the grids of all codes, and max-abs for its weights."""
    plain, again = (fold_batch_norms(task.model, task.example) for _ in range(2))
    model = space.deployed(search.same(space, "max", "max"), plain)  # all replaced below
    entry = next(node.name for node in model.graph.nodes if node.op == "placeholder")
    for group, point in space.placement.groups().items():
        low, high = limits["input" if point.source == entry else point.source]
        qparams = QParams.from_min_max(low, high, space.activation_bits[group])
        model.set_submodule(f"quantisers.{group}", FixedQuantiser(qparams))
    for name, bits in space.bits.items():
        W = again.get_submodule(name).weight.detach()
        step = W.abs().max() / largest_code(bits)
        set_int_repr(model.get_submodule(name), (W / step).round(), step)
    return model.eval()


# -- the cost of a step ------------------------------------------------------------------------------------------------


class Naive(nn.Module):
    """A layer as N_a * N_w branches, Card (2)."""

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
    wanted = fold_batch_norms(net, x[:1])(x).detach()
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


def spaced(net: nn.Module, x: torch.Tensor, names: tuple[str, ...]) -> StrategySpace:
    recipe = replace(RECIPE, candidates=names)
    graph = fold_batch_norms(net, x[:1])
    return StrategySpace(graph, recipe, x)


def naive(space: StrategySpace) -> StrategySpace:
    """The same space as branches; linear layers stay mixtures."""
    for group, (name, *_) in space.readers.items():
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
    gains = {f"gain_{bits}": float(part.mean()) for bits, part in gain.groupby("bits")}
    by_cell, apart = gain.groupby(["network", "bits"]).mean(), (wide["dqss_safe"] - seen).groupby("bits").mean()
    gains |= {"worst_gap": float(by_cell.min()), "worst_gap_std": float(gain.groupby(["network", "bits"]).std().max())}
    gains |= {f"nearer_to_float_{bits}": float(part.mean()) for bits, part in nearer.groupby("bits")}
    gains |= {f"gain_over_seen_{bits}": float(value) for bits, value in apart.items()}
    gains |= {
        f"gain_over_arg_max_{bits}": float(value)
        for bits, value in (wide["dqss_safe"] - wide["dqss"]).groupby("bits").mean().items()
    }
    for name in ORT:
        real = wide.get(f"onnxruntime {name}", wide["dqss_safe"] * math.nan).fillna(wide[f"range of {name}"])
        for label, other in (("", real), ("range_of_", wide[f"range of {name}"])):
            ahead = (wide["dqss_safe"] - other).groupby("bits").mean()
            gains |= {f"gain_over_{label}{name}_{bits}": float(value) for bits, value in ahead.items()}
    gains["soft_hard_gap"] = float(table[table.method == "dqss"]["gap"].mean())
    gains["soft_hard_gap_safe"] = float(table[table.method == "dqss_safe"]["gap"].mean())
    return gains


def cost_figures(steps: list[dict]) -> dict[str, float]:
    """Plain quantised steps that one with five strategies takes, at most, and one with five times five branches."""
    if not steps:
        return {}
    return {
        "step_cost": max(row["five"] for row in steps),
        "step_cost_naive": statistics.mean(row["naive"] for row in steps),
    }


def by_method(table: pandas.DataFrame) -> pandas.DataFrame:
    """Mean and range over the seeds."""
    shown = table.groupby(["network", "bits", "method"], sort=False)["score"]
    return shown.agg(lambda v: f"{v.mean():.2f} ({v.min():.2f} to {v.max():.2f})").unstack("bits")


if __name__ == "__main__":
    main()
