"""DQSS's search beside uniform strategies and onnxruntime's tool, and all assignments of a network of four layers.

    python benchmarks/dqss.py fashion --device cuda --json data/dqss/fashion.json
    python benchmarks/dqss.py vdsr --device cuda --json data/dqss/vdsr.json
    python benchmarks/dqss.py exhaustive --json data/dqss/exhaustive.json
    python benchmarks/dqss.py aware --json data/dqss/aware.json

fashion: the VGG-16 of `data/fashion`, quantised without training. A seed draws CALIBRATION pictures, the same for all
rivals, of 1,000 test pictures on which nothing is judged. 'plain' is the search with its settings as they come, on
these pictures; 'on learned pictures' draws them of the training pictures instead. 'best uniform pair' is the pair of
strategies (weights, activations) that is best on them when used everywhere; 'uniform max' and its fellows are single
ones. First and last layer keep 8 bits; onnxruntime (`quantize_static`) stands beside at 8 bits only. The figure is
`held_out_loss`, the KL divergence from the float network's answers on the first 1,000 test pictures, in thousandths:
where 4 % of the answers change, accuracy moves by 0.6 points by chance.

vdsr: VDSR with its published weights, calibrated on patches of T91 and judged on Set5 (see `set5.py`), in dB lost.
exhaustive: see `dqss_exhaustive.py`. aware: the same networks of four layers in the quantisation-aware mode, at 3 and 2
bits, all with as many updates.
"""

import math
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from contest import Contest, Rival, main, placed
from dqss_exhaustive import LEARNED, WIDTHS, exhaustive, held_out, trained
from ort_static import deployed
from set5 import vdsr as vdsr_task
from torch import nn
from torch.utils.data import TensorDataset

import lab
from lab.core.batch import device_for
from lab.core.data.batches import in_order, shuffled
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.running import running
from lab.core.task import Task
from lab.dqss import search

CALIBRATION = 512  # pictures of Fashion-MNIST
RECIPE = lab.DQSS(calibration=CALIBRATION, steps=60)
SEARCHED = {"temperature": 8.0}  # what the search has beside RECIPE: on seed 0 what it gains then holds elsewhere
SINGLE = ("max", "p99.9", "mse", "kl", "aciq")
STATIC = ("MinMax", "Entropy", "Percentile")
BUDGETS = {"4 bits": 4, "3 bits": 3, "8 bits": 8}
SUPER = lab.DQSS(calibration=64, steps=60)
PATCH = 48  # of the enlarged luma that VDSR reads
AWARE = lab.DQSS(mode="aware", calibration=256, steps=100)
TRAINED = ("pams", "lsq", "dorefa", "tqt")
PICTURES = 1000  # held out, of the loss

Cell = tuple[nn.Module, dict[str, float]]


def fashion(quick: bool, device: str = "cpu") -> Contest:
    """Bits of the VGG-16."""
    make = partial(_post, device)
    rivals: dict[str, Rival] = {name: partial(make, fields) for name, fields in _ways(SEARCHED).items()}
    rivals["DQSS's search on learned pictures"] = partial(make, SEARCHED, fresh=False)
    rivals["best uniform pair on learned pictures"] = partial(make, {"algorithm": "uniform"}, fresh=False)
    rivals |= {f"onnxruntime {method}": partial(_static, device, method) for method in STATIC}
    settings = {"recipe": repr(RECIPE), "search": SEARCHED, "single": SINGLE, "held out": PICTURES}
    return _without_training("dqss-fashion", rivals, settings, "held_out_loss", quick, device)


def vdsr(quick: bool, device: str = "cpu") -> Contest:
    """Bits of VDSR; on a processor a cell takes minutes."""
    recipe = replace(SUPER, calibration=8, steps=10) if quick and device == "cpu" else SUPER
    make = partial(_enlarging, device, recipe)
    rivals: dict[str, Rival] = {name: partial(make, fields) for name, fields in _ways({}).items()}
    rivals |= {f"onnxruntime {method}": partial(_enlarging_static, device, recipe, method) for method in STATIC}
    settings = {"recipe": repr(recipe), "single": SINGLE, "patch": PATCH}
    return _without_training("dqss-vdsr", rivals, settings, "lost", quick, device)


def aware(quick: bool, device: str = "cpu") -> Contest:
    """Weights and ranges learned with the strategies, then as long again with what was kept."""
    ways = {"DQSS's search": {}, "arg-max of the mixture": {"algorithm": "dqss"}}
    ways |= {f"{name} alone": {"algorithm": "uniform", "candidates": (name,)} for name in TRAINED}
    return Contest(
        name="dqss-aware",
        rivals={name: partial(_aware, device, way) for name, way in ways.items()},
        settings={"recipe": repr(AWARE), "rivals": ways, "widths": WIDTHS, "learned": LEARNED},
        figure="accuracy_drop",
        budgets=("3 bits",) if quick else ("3 bits", "2 bits"),
        device=device,
    )


def _ways(searched: dict) -> dict[str, dict]:
    """What each rival changes of the recipe."""
    ways = {"DQSS's search": searched, "best uniform pair": {"algorithm": "uniform"}}
    ways |= {"DQSS's search, plain": {}} if searched else {}
    ways |= {"arg-max of the mixture": {"algorithm": "dqss"}, "random": {"algorithm": "random"}}
    return ways | {f"uniform {name}": {"algorithm": "uniform", "candidates": (name,)} for name in SINGLE}


def _without_training(
    name: str, rivals: dict[str, Rival], settings: dict, figure: str, quick: bool, device: str
) -> Contest:
    return Contest(
        name=name,
        rivals=rivals,
        settings=settings,
        figure=figure,
        budgets=("4 bits",) if quick else tuple(BUDGETS),
        only={rival: ("8 bits",) for rival in rivals if rival.startswith("onnxruntime")},
        device=device,
    )


# -- classes ----------------------------------------------------------------------------------------------------------


@cache
def ground(device: str, fresh: bool = True) -> Task:
    """A network judged on 1,000 test pictures; it is calibrated on 1,000 others, or on its own training pictures."""
    x, y = held_out(2 * PICTURES)
    judged, others = (TensorDataset(x[part], y[part]) for part in (slice(PICTURES), slice(PICTURES, None)))
    task = replace(lab.tasks.fashion(net="vgg16"), score=lab.tasks.accuracy(in_order(judged)))
    return placed(replace(task, batches=shuffled(others, 128)) if fresh else task, device)


def _post(device: str, fields: dict, budget: str, seed: int, folder: Path, fresh: bool = True) -> Cell:
    """The recipe with these fields changed, calibrated on fresh pictures or on those that the network learned from."""
    bits, task = BUDGETS[budget], ground(device, fresh)
    recipe = replace(RECIPE, weight_bits=bits, activation_bits=bits, **fields)
    outcome = recipe.run(task, seed=seed, progress=False)
    told = {"accuracy_drop": -outcome.report[task.metric].change, "held_out_loss": lost(task, outcome.model)}
    return outcome.model, told | {"calibration_loss": 1000 * outcome.losses["kept"]}


def _static(device: str, method: str, budget: str, seed: int, folder: Path) -> Cell:
    """onnxruntime's tool, on the calibration that the recipe draws with this seed."""
    task = ground(device)
    network, before, apart = _by_tool(task, RECIPE, method, seed)
    told = {"accuracy_drop": before - task.measure(network), "held_out_loss": lost(task, network)}
    return network, told | {"calibration_loss": 1000 * apart}


def _by_tool(task: Task, recipe: lab.DQSS, method: str, seed: int) -> tuple[nn.Module, float, float]:
    """The network of onnxruntime's tool, the score of the float one, and the mean distance on the calibration."""
    with running(recipe, task, seed, None, None, progress=False) as run:
        teacher = fold_batch_norms(run.model, run.example)
        batches = [(x.cpu(), target.cpu()) for x, target in recipe.calibration_batches(run, teacher)]  # type: ignore
    network = deployed(task, [x for x, _ in batches], method)
    with torch.no_grad():
        apart = sum(len(x) * float(search.distance(network(x), target)) for x, target in batches) / recipe.calibration
    return network, run.before, apart


@torch.no_grad()
def lost(task: Task, network: nn.Module) -> float:
    """Thousandths of the KL divergence from the float answers on held-out pictures."""
    parts = held_out(PICTURES)[0].split(250)

    def answers(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return net(x.to(device_for(net))).cpu()

    return 1000 * sum(float(search.distance(answers(network, x), answers(task.model, x))) for x in parts) / len(parts)


# -- pictures ---------------------------------------------------------------------------------------------------------


def _enlarging(device: str, recipe: lab.DQSS, fields: dict, budget: str, seed: int, folder: Path) -> Cell:
    """VDSR quantised by the recipe with these fields changed."""
    task, bits = vdsr_task(device, PATCH), BUDGETS[budget]
    outcome = replace(recipe, weight_bits=bits, activation_bits=bits, **fields).run(task, seed=seed, progress=False)
    return outcome.model, _decibels(task, outcome.model, outcome.losses["kept"])


def _enlarging_static(device: str, recipe: lab.DQSS, method: str, budget: str, seed: int, folder: Path) -> Cell:
    task = vdsr_task(device, PATCH)
    network, _, apart = _by_tool(task, recipe, method, seed)
    return network, _decibels(task, network, apart)


def _decibels(task: Task, network: nn.Module, apart: float) -> dict[str, float]:
    """dB below the float network on Set5, dB there, and the distance on the calibration in dB below 1."""
    psnr = task.measure(network)
    return {"lost": task.measure(task.model) - psnr, "psnr": psnr, "calibration": -10 * math.log10(apart)}


# -- trained ----------------------------------------------------------------------------------------------------------


def _aware(device: str, fields: dict, budget: str, seed: int, folder: Path) -> Cell:
    task, bits = placed(trained(seed, folder), device), int(budget[0])
    recipe = replace(AWARE, weight_bits=bits, activation_bits=bits, ends=bits, **fields)
    outcome = recipe.run(task, seed=seed, progress=False)
    return outcome.model, {"accuracy_drop": -outcome.report[task.metric].change}


if __name__ == "__main__":
    main({"fashion": fashion, "vdsr": vdsr, "exhaustive": exhaustive, "aware": aware}, __doc__)
