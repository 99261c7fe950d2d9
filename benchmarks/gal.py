"""GAL beside its controls and baselines on the digits: equal multiply-adds, equal fine-tuning, the same seeds.

    python benchmarks/gal.py [--quick] [--json FILE] [--seeds 10,11,12] [--lam 0.25]
    python benchmarks/gal.py --cifar [FOLDER] [--json FILE]

Every baseline cuts the same trained ResNet-20 to at most the multiply-adds that GAL left with that seed, and is then
fine-tuned for as many steps at the same rate. The sparse-training baselines see labels for as many steps as GAL's
pruning stage runs without them.

`--cifar` runs GAL on real data where it is at hand (`mnist/mnist.npz`, and `cifar10/` with its weights): LeNet on
MNIST, ResNet-20 and ResNet-56 on CIFAR-10, each beside two controls of as many multiply-adds. The schedules are short
enough for one core and no measure of the paper's.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pandas
import torch
import torch_pruning as tp
from cifar import cifar
from torch import nn
from tqdm.auto import tqdm

import lab
from lab.core import cost
from lab.core.finetune import finetune
from lab.core.graph import surgery
from lab.core.machine import machine
from lab.core.task import Task
from lab.core.training import seeded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a fifth of the steps: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings, seeds and the machine here")
    parser.add_argument("--seeds", default="10,11,12", help="none of which was used to choose the settings")
    parser.add_argument("--lam", type=float, default=lab.GAL().lam)
    parser.add_argument("--cifar", nargs="?", type=Path, const=Path("../shared/data"), help="real data in this folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cifar:
        return real(options)
    seeds = [int(seed) for seed in options.seeds.split(",")][: 1 if options.quick else None]
    steps = {"steps": 200, "finetune_steps": 100, "mask_every": 1} if options.quick else {}
    recipe, task = lab.GAL(lam=options.lam, **steps), lab.tasks.digits()
    rows = [row for seed in tqdm(seeds, desc="seeds") for row in contest(recipe, task, seed)]
    table = pandas.DataFrame(rows)
    figures = summary(table)
    print(f"{recipe}\nseeds {seeds}; one thread of {machine()['processor']}; torch {torch.__version__}")
    print(by_method(table).to_string())
    print(json.dumps(figures, indent=1))
    if options.json:
        report = {"figures": figures, "rows": rows, "settings": repr(recipe), "seeds": seeds, "machine": machine()}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def contest(recipe: lab.GAL, task: Task, seed: int) -> list[dict]:
    """GAL and all its baselines with one seed: a row each."""
    outcome = recipe.run(task, seed=seed, progress=False)
    budget = outcome.report["macs"].after
    before = outcome.report["accuracy"].before
    rows = [row("GAL", seed, task, outcome.model, before, outcome.report["accuracy before fine-tuning"].after)]
    for name, make in BASELINES.items():
        with seeded(seed):
            model, is_trained = make(recipe, task, seed, budget, outcome)
            untuned = task.measure(model)
            if not is_trained:
                finetune(task, model, steps=recipe.finetune_steps, lr=recipe.finetune_lr, progress=False)
        rows.append(row(name, seed, task, model, before, untuned))
    return rows


def row(name: str, seed: int, task: Task, model: nn.Module, before: float, untuned: float) -> dict:
    timed = cost.latencies({"before": task.model, "after": model}, task.example, repeats=300)
    macs = cost.macs(task.model, task.example) / cost.macs(model, task.example)
    drop = before - task.measure(model)
    return {
        "method": name, "seed": seed, "macs_ratio": macs, "accuracy_drop": drop,
        "drop_before_finetuning": before - untuned, "latency_ratio": timed["before"].over(timed["after"]),
        "parameters": cost.parameters(model),
    }  # fmt: skip


# -- the baselines: each gives a network of at most `budget` multiply-adds, and whether it is trained already -------


def no_adversary(recipe, task, seed, budget, outcome):
    """The same masks against the data loss alone; its own scores ranked, cut to the budget."""
    other = lab.GAL(**{**vars(recipe), "adversary": "off", "finetune_steps": 0}).run(task, seed=seed, progress=False)
    return at_budget(task, other.scores(), budget), False


def null_signal(recipe, task, seed, budget, outcome):
    """Masks with no signal at all, drawn from N(0, 1): what init and decay alone would prune."""
    settings = {**vars(recipe), "mu": 0, "adversary": "off", "lam": 1e-3, "finetune_steps": 0}
    other = lab.GAL(**{**settings, "released": ("normal_masks",)}).run(task, seed=seed, progress=False)
    return at_budget(task, other.scores(), budget), False


def masks_alone(recipe, task, seed, budget, outcome):
    """GAL's own ranking, but on the baseline's weights: what the trained weights of G add."""
    return at_budget(task, outcome.scores(), budget), False


def uniform_l1(recipe, task, seed, budget, outcome):
    """The same share of every layer, smallest L1 norms first (Torch-Pruning)."""
    return torch_pruning(task, tp.pruner.MagnitudePruner, tp.importance.MagnitudeImportance(p=1), budget, uniform=True)


def bn_scale(recipe, task, seed, budget, outcome):
    """Network slimming: sparse training of the batch norms' scales, then a global cut (Torch-Pruning)."""
    return torch_pruning(task, tp.pruner.BNScalePruner, tp.importance.BNScaleImportance(), budget, recipe)


def group_norm(recipe, task, seed, budget, outcome):
    """DepGraph: sparse training of whole groups, then a global cut (Torch-Pruning)."""
    return torch_pruning(task, tp.pruner.GroupNormPruner, tp.importance.GroupMagnitudeImportance(), budget, recipe)


def same_shape(recipe, task, seed, budget, outcome):
    """GAL's small network from random weights, trained for both stages' steps together."""
    model = deepcopy(outcome.model)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    steps = recipe.steps + recipe.finetune_steps
    finetune(task, model, steps=steps, lr=recipe.finetune_lr, progress=False)
    return model, True


BASELINES: dict[str, Callable] = {
    "no adversary": no_adversary,
    "GAL's masks, baseline's weights": masks_alone,
    "null signal": null_signal,
    "uniform L1 (Torch-Pruning)": uniform_l1,
    "BN scale (Torch-Pruning)": bn_scale,
    "group norm (Torch-Pruning)": group_norm,
    "random weights, GAL's shape": same_shape,
}
CONTROLS = ("no adversary", "GAL's masks, baseline's weights", "null signal", "random weights, GAL's shape")


def at_budget(task: Task, scores: surgery.Scores, budget: float) -> nn.Module:
    """The network of the lowest pruning rate, to a five-hundredth, that fits the budget."""
    low, high = 0, 499
    while low < high:
        middle = (low + high) // 2
        model = surgery.remove(task.model, surgery.plan_at(scores, middle / 500), task.example)
        low, high = (low, middle) if cost.macs(model, task.example) <= budget else (middle + 1, high)
    return surgery.remove(task.model, surgery.plan_at(scores, low / 500), task.example)


def torch_pruning(task, pruner_class, importance, budget, recipe=None, uniform=False):
    """A Torch-Pruning network within the budget; with a recipe, after as many steps of sparse training with labels.

    What the zero-padded shortcuts carry is left out: Torch-Pruning cannot follow it.
    """
    model = deepcopy(task.model)
    kept = [module for name, module in model.named_modules() if is_stream(name, module)]
    pruner = pruner_class(
        model, task.example, importance=importance, global_pruning=not uniform, pruning_ratio=0.98,
        iterative_steps=200, ignored_layers=kept, max_pruning_ratio=0.98,
    )  # fmt: skip
    if recipe is not None:
        pruner.update_regularizer()
        finetune(task, model, steps=recipe.steps, lr=recipe.finetune_lr, penalty=pruner.regularize, progress=False)
    while cost.macs(model, task.example) > budget and pruner.current_step < pruner.iterative_steps:
        pruner.step()
    model.zero_grad(set_to_none=True)
    return model.eval(), False


def is_stream(name: str, module: nn.Module) -> bool:
    """Whether a layer writes the residual stream or the output."""
    return isinstance(module, (nn.Conv2d, nn.Linear)) and not (name.startswith("layer") and name.endswith("conv1"))


# -- real data --------------------------------------------------------------------------------------------------------


def real(options: argparse.Namespace) -> None:
    """GAL on MNIST and CIFAR-10, one seed: a report a network, with its controls."""
    kept = []
    for make in (lenet, resnet20, resnet56):
        task, recipe = make(options.cifar)
        outcome = recipe.run(task, seed=10)
        figures = {"task": task.name, **outcome.report.to_dict(), "controls": real_controls(recipe, task, outcome)}
        print(task.name, outcome, json.dumps(figures["controls"], indent=1), "", sep="\n", flush=True)
        kept.append(figures)
        if options.json:  # after each: the last one takes most of the time
            options.json.write_text(json.dumps({"reports": kept, "seed": 10, "machine": machine()}, indent=1) + "\n")


def real_controls(recipe: lab.GAL, task: Task, outcome) -> list[dict]:
    """Two controls of at most as many multiply-adds: one fine-tuned alike, one trained as long from random weights."""
    budget, before = outcome.report["macs"].after, outcome.report["accuracy"].before
    from_scratch = replace(recipe, finetune_lr=0.05)
    makers = {
        "uniform magnitude": (uniform_magnitude, recipe),
        "random weights, GAL's shape": (same_shape, from_scratch),
    }
    rows = []
    for name, (make, settings) in makers.items():
        with seeded(10):
            model, is_trained = make(settings, task, 10, budget, outcome)
            untuned = task.measure(model)
            if not is_trained:
                finetune(task, model, steps=recipe.finetune_steps, lr=recipe.finetune_lr)
        rows.append(row(name, 10, task, model, before, untuned))
    return rows


def uniform_magnitude(recipe, task, seed, budget, outcome):
    """The same share of every layer's channels, smallest norms first, by the lab's own surgery.

    Torch-Pruning cannot follow the zero-padded shortcuts.
    """
    norms = surgery.magnitude(task.model, task.example)
    ranks = {layer: norm.argsort().argsort() / len(norm) for layer, norm in norms.items()}
    return at_budget(task, ranks, budget), False


def lenet(folder: Path) -> tuple[Task, lab.GAL]:
    """LeNet on MNIST, trained here for two passes."""
    with seeded(0):
        task = lab.tasks.images(folder / "mnist" / "mnist.npz", lab.nets.lenet())
        lab.finetune(task, task.model, steps=2 * len(task.batches), lr=0.05)
    return replace(task, name="LeNet, MNIST"), lab.GAL(units="channel", finetune_steps=400, finetune_lr=0.01)


def resnet20(folder: Path) -> tuple[Task, lab.GAL]:
    """ResNet-20 on CIFAR-10, channels and blocks."""
    return cifar(folder, 20), lab.GAL(lam=0.05, steps=1500, finetune_lr=0.01)


def resnet56(folder: Path) -> tuple[Task, lab.GAL]:
    """ResNet-56 on CIFAR-10, blocks alone as in the paper."""
    settings = {"lam": 0.6, "steps": 1500, "lr": 0.01, "mask_lr": 0.05, "mask_every": 10}
    return cifar(folder, 56), lab.GAL(units="block", **settings, finetune_lr=0.01)


# -- what is reported -----------------------------------------------------------------------------------------------


def by_method(table: pandas.DataFrame) -> pandas.DataFrame:
    """Mean and range over the seeds."""
    numbers = ["macs_ratio", "accuracy_drop", "drop_before_finetuning", "latency_ratio"]
    shown = table.groupby("method", sort=False)[numbers].agg(
        lambda v: f"{v.mean():.2f} ({v.min():.2f} to {v.max():.2f})"
    )
    return shown.rename(columns=lambda name: name.replace("_", " "))


def summary(table: pandas.DataFrame) -> dict[str, float]:
    """The figures: GAL's means, and the best true baseline's accuracy minus GAL's, in points, at equal MACs."""
    mean = table.groupby("method")[["macs_ratio", "accuracy_drop", "latency_ratio"]].mean()
    gal = mean.loc["GAL"]
    baselines = mean.drop(index=["GAL", *CONTROLS])["accuracy_drop"]
    drops = table[table.method == "GAL"].accuracy_drop
    return {
        "macs_ratio": gal.macs_ratio,
        "accuracy_drop": gal.accuracy_drop,
        "accuracy_drop_std": statistics.stdev(drops) if len(drops) > 1 else 0.0,
        "rival_gap": gal.accuracy_drop - baselines.min(),
        "latency_ratio": gal.latency_ratio,
    }


if __name__ == "__main__":
    main()
