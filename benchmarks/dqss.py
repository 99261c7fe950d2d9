"""DQSS's search beside uniform strategies and onnxruntime's tool, and all assignments of a network of four layers.

    python benchmarks/dqss.py fashion --json data/dqss/fashion.json
    python benchmarks/dqss.py exhaustive --json data/dqss/exhaustive.json
    python benchmarks/dqss.py aware --json data/dqss/aware.json

fashion: the VGG-16 of `data/fashion`, quantised without training. A seed draws 256 calibration pictures, the same for
all rivals, of 1,000 test pictures on which nothing is judged; 'on learned pictures' draws them of the training pictures
instead, and 'at 8' compares answers at a temperature of 8. 'best uniform pair' is the pair of strategies (weights,
activations) that is best on them when used everywhere; 'uniform max' and its fellows are single ones. First and last
layer keep 8 bits; onnxruntime (`quantize_static`) stands beside at 8 bits only. The figure is
`held_out_loss`, the KL divergence from the float network's answers on the first 1,000 test pictures, in thousandths:
where 4 % of the answers change, accuracy moves by 0.6 points by chance. exhaustive: see `dqss_exhaustive.py`. aware:
the same networks of four layers in the quantisation-aware mode, at 3 and 2 bits, all with as many updates.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from contest import Contest, Rival, main
from dqss_exhaustive import LEARNED, WIDTHS, exhaustive, held_out, trained
from ort_static import deployed
from torch import nn
from torch.utils.data import TensorDataset

import lab
from lab.core.data.batches import in_order, shuffled
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.running import running
from lab.core.task import Task
from lab.dqss import search

RECIPE = lab.DQSS(calibration=256, steps=60)
SINGLE = ("max", "p99.9", "mse", "kl", "aciq")
STATIC = ("MinMax", "Entropy", "Percentile")
NETS = ("vgg16",)  # a search on ResNet-20 takes five times as long
BUDGETS = {f"{net}, {bits} bits": (net, bits) for bits in (4, 3, 8) for net in NETS}
AWARE = lab.DQSS(mode="aware", calibration=256, steps=100)
TRAINED = ("pams", "lsq", "dorefa", "tqt")
PICTURES = 1000  # held out, of the loss


def fashion(quick: bool) -> Contest:
    """Networks by bits."""
    uniform = {"algorithm": "uniform"}
    rivals: dict[str, Rival] = {"DQSS's search": partial(_post, {}), "best uniform pair": partial(_post, uniform)}
    rivals["arg-max of the mixture"] = partial(_post, {"algorithm": "dqss"})
    rivals["random"] = partial(_post, {"algorithm": "random"})
    rivals["DQSS's search on learned pictures"] = partial(_post, {}, fresh=False)
    rivals["DQSS's search on learned pictures at 8"] = partial(_post, {"temperature": 8.0}, fresh=False)
    rivals["best uniform pair on learned pictures"] = partial(_post, uniform, fresh=False)
    rivals |= {f"uniform {name}": partial(_post, {"algorithm": "uniform", "candidates": (name,)}) for name in SINGLE}
    rivals |= {f"onnxruntime {method}": partial(_static, method) for method in STATIC}
    return Contest(
        name="dqss-fashion",
        rivals=rivals,
        settings={"recipe": repr(RECIPE), "single": SINGLE, "held out": PICTURES},
        figure="held_out_loss",
        budgets=("vgg16, 4 bits",) if quick else tuple(BUDGETS),
        only={f"onnxruntime {name}": tuple(b for b in BUDGETS if BUDGETS[b][1] == 8) for name in STATIC},
    )


def aware(quick: bool) -> Contest:
    """Weights and ranges learned with the strategies, then as long again with what was kept."""
    ways = {"DQSS's search": {}, "arg-max of the mixture": {"algorithm": "dqss"}}
    ways |= {f"{name} alone": {"algorithm": "uniform", "candidates": (name,)} for name in TRAINED}
    return Contest(
        name="dqss-aware",
        rivals={name: partial(_aware, way) for name, way in ways.items()},
        settings={"recipe": repr(AWARE), "rivals": ways, "widths": WIDTHS, "learned": LEARNED},
        figure="accuracy_drop",
        budgets=("3 bits",) if quick else ("3 bits", "2 bits"),
    )


def ground(net: str, fresh: bool = True) -> Task:
    """A network judged on 1,000 test pictures; it is calibrated on 1,000 others, or on its own training pictures."""
    x, y = held_out(2 * PICTURES)
    judged, others = (TensorDataset(x[part], y[part]) for part in (slice(PICTURES), slice(PICTURES, None)))
    task = replace(lab.tasks.fashion(net=net), score=lab.tasks.accuracy(in_order(judged)))
    return replace(task, batches=shuffled(others, 128)) if fresh else task


def _post(fields: dict, budget: str, seed: int, folder: Path, fresh: bool = True) -> tuple[nn.Module, dict[str, float]]:
    """The recipe with these fields changed, calibrated on fresh pictures or on those that the network learned from."""
    net, bits = BUDGETS[budget]
    task = ground(net, fresh)
    recipe = replace(RECIPE, weight_bits=bits, activation_bits=bits, **fields)
    outcome = recipe.run(task, seed=seed, progress=False)
    report = outcome.report
    told = {"accuracy_drop": -report[task.metric].change, "held_out_loss": lost(task, outcome.model)}
    return outcome.model, told | {"calibration_loss": 1000 * outcome.losses["kept"]}


def _static(method: str, budget: str, seed: int, folder: Path) -> tuple[nn.Module, dict[str, float]]:
    """onnxruntime's tool, on the calibration that the recipe draws with this seed."""
    task = ground(BUDGETS[budget][0])
    with running(RECIPE, task, seed, None, None, progress=False) as run:
        teacher = fold_batch_norms(run.model, run.example)
        batches = RECIPE.calibration_batches(run, teacher)
    network = deployed(task, [x for x, _ in batches], method)
    with torch.no_grad():
        apart = sum(len(x) * float(search.distance(network(x), target)) for x, target in batches) / RECIPE.calibration
    told = {"accuracy_drop": run.before - task.measure(network), "held_out_loss": lost(task, network)}
    return network, told | {"calibration_loss": 1000 * apart}


def _aware(fields: dict, budget: str, seed: int, folder: Path) -> tuple[nn.Module, dict[str, float]]:
    task, bits = trained(seed, folder), int(budget[0])
    recipe = replace(AWARE, weight_bits=bits, activation_bits=bits, ends=bits, **fields)
    outcome = recipe.run(task, seed=seed, progress=False)
    return outcome.model, {"accuracy_drop": -outcome.report[task.metric].change}


@torch.no_grad()
def lost(task: Task, network: nn.Module) -> float:
    """Thousandths of the KL divergence from the float answers on held-out pictures."""
    parts = held_out(PICTURES)[0].split(250)
    return 1000 * sum(float(search.distance(network(x), task.model(x))) for x in parts) / len(parts)


if __name__ == "__main__":
    main({"fashion": fashion, "exhaustive": exhaustive, "aware": aware}, __doc__)
