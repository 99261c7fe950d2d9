"""GAL beside its controls and rivals on the digits: equal multiply-adds, equal fine-tuning, the same seeds.

    python benchmarks/gal.py [--quick] [--json FILE] [--seeds 10,11,12] [--lam 0.3]

Every rival cuts the same trained ResNet-20 to at most the multiply-adds that GAL left with that seed, and is then
fine-tuned for as many steps at the same rate. The sparse-training rivals see labels for as many steps as GAL's pruning
stage runs without them.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pandas
import torch
import torch_pruning as tp
from torch import nn
from tqdm.auto import tqdm

import lab
from lab.core import cost, surgery
from lab.core.descent import seeded
from lab.core.finetune import finetune
from lab.core.task import Task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a fifth of the steps: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings, seeds and the machine here")
    parser.add_argument("--seeds", default="10,11,12", help="none of which was used to choose the settings")
    parser.add_argument("--lam", type=float, default=lab.GAL().lam)
    options = parser.parse_args()
    torch.set_num_threads(1)
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
    """GAL and all its rivals with one seed: a row each."""
    outcome = recipe.run(task, seed=seed, progress=False)
    budget = outcome.report["macs"].after
    before = outcome.report["accuracy"].before
    rows = [row("GAL", seed, task, outcome.model, before, outcome.report["accuracy before fine-tuning"].after)]
    for name, make in RIVALS.items():
        with seeded(seed):
            model, is_trained = make(recipe, task, seed, budget, outcome)
            untuned = task.measure(model)
            if not is_trained:
                finetune(task, model, steps=recipe.finetune_steps, lr=recipe.finetune_lr, progress=False)
        rows.append(row(name, seed, task, model, before, untuned))
    return rows


def row(name: str, seed: int, task: Task, model: nn.Module, before: float, untuned: float) -> dict:
    timed = cost.latencies({"before": task.model, "after": model}, task.example)
    macs = cost.macs(task.model, task.example) / cost.macs(model, task.example)
    drop = before - task.measure(model)
    return {
        "method": name, "seed": seed, "macs_ratio": macs, "accuracy_drop": drop,
        "drop_before_finetuning": before - untuned, "latency_ratio": timed["before"].over(timed["after"]),
        "parameters": cost.parameters(model),
    }  # fmt: skip


# -- the rivals: each gives a network of at most `budget` multiply-adds, and whether it is trained already -----------


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


RIVALS: dict[str, Callable] = {
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


# -- what is reported -----------------------------------------------------------------------------------------------


def by_method(table: pandas.DataFrame) -> pandas.DataFrame:
    """Mean and range over the seeds."""
    numbers = ["macs_ratio", "accuracy_drop", "drop_before_finetuning", "latency_ratio"]
    shown = table.groupby("method", sort=False)[numbers].agg(
        lambda v: f"{v.mean():.2f} ({v.min():.2f} to {v.max():.2f})"
    )
    return shown.rename(columns=lambda name: name.replace("_", " "))


def summary(table: pandas.DataFrame) -> dict[str, float]:
    """The figures: GAL's means, and the best true rival's accuracy minus GAL's, in points, at equal multiply-adds."""
    mean = table.groupby("method")[["macs_ratio", "accuracy_drop", "latency_ratio"]].mean()
    gal = mean.loc["GAL"]
    rivals = mean.drop(index=["GAL", *CONTROLS])["accuracy_drop"]
    drops = table[table.method == "GAL"].accuracy_drop
    return {
        "macs_ratio": gal.macs_ratio,
        "accuracy_drop": gal.accuracy_drop,
        "accuracy_drop_std": statistics.stdev(drops) if len(drops) > 1 else 0.0,
        "rival_gap": gal.accuracy_drop - rivals.min(),
        "latency_ratio": gal.latency_ratio,
    }


def machine() -> dict:
    return {
        "processor": platform.processor() or platform.machine(), "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "python": sys.version.split()[0],
    }  # fmt: skip


if __name__ == "__main__":
    main()
