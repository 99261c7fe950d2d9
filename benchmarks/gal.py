"""GAL beside its rivals and ablations at equal multiply-adds, equal steps in both stages, the same data and seeds.

    python benchmarks/gal.py [fashion|units|resnet20|resnet56] [--quick] [--seeds 10,11] [--budgets 3] [--json FILE]

`fashion`: ResNet-20 on 10,000 pictures of Fashion-MNIST at 2, 3 and 5 times fewer multiply-adds. Every rival cuts the
same trained network to at most as many; then it is distilled from that network without labels for as many steps as
GAL's masks take, and fine-tuned with labels for as many steps, at the same rates. BN scale and group norm see labels
in both stages, for that is how they train. An ablation of the adversary is a whole run of GAL with its own trained
network. `units`: channels and blocks together beside each alone. `resnet20` and `resnet56`: CIFAR-10 where it is at
hand (`../shared/data`), about a night of two cores each.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import contest
import pruning
from cifar import cifar
from torch import nn

import lab
from lab.core import cost
from lab.core.task import Task

SHARED = Path(__file__).parents[1] / "../shared/data"
FASHION = lab.GAL(
    lam=0.1, mask_lr=0.3, mask_every=1, steps=400, finetune_steps=200, finetune_lr=0.005
)  # chosen on seed 0
ABLATIONS = {
    "no adversary": {"adversary": "off"},
    "adversary not held back": {"adversary": "none"},
    "adversary held by L1": {"adversary": "L1"},
    "adversary held by L2": {"adversary": "L2"},
}
UNITS = {
    "channels alone": {"units": ("channel",)},
    "blocks alone": {"units": ("block",)},
}


def fashion(is_quick: bool) -> contest.Contest:
    """ResNet-20 on Fashion-MNIST: all rivals, and GAL with its adversary held otherwise or left out."""
    return gal(
        "gal-fashion", lab.tasks.fashion(batch_size=64), FASHION, ABLATIONS, [*pruning.CUTS], (3, 2, 5), is_quick
    )


def units(is_quick: bool) -> contest.Contest:
    """Channels and blocks together, and each alone, on the same network."""
    return gal("gal-units", lab.tasks.fashion(batch_size=64), FASHION, UNITS, ["uniform L1"], (1.5, 2, 3), is_quick)


def gal(
    name: str, task: Task, recipe: lab.GAL, variants: dict[str, dict], cuts: list[str], ratios: tuple, is_quick: bool
) -> contest.Contest:
    """GAL at these ratios of multiply-adds beside variants of its recipe and rivals' cuts."""
    if is_quick:
        recipe = replace(recipe, steps=recipe.steps // 10, finetune_steps=recipe.finetune_steps // 10, mask_every=1)
        ratios = ratios[:1]
    rivals: dict[str, contest.Rival] = {"GAL": of_recipe(task, recipe)}
    rivals |= {variant: of_recipe(task, replace(recipe, **change)) for variant, change in variants.items()}
    rivals |= {cut: of_cut(task, recipe, cut) for cut in cuts}
    settings = {"recipe": repr(recipe), "task": task.name, "batch": len(task.first_batch()[0])}
    settings["start"] = contest.fingerprint(task.model)
    return contest.Contest(name=name, rivals=rivals, settings=settings, figure="accuracy_drop", budgets=ratios)


def of_recipe(task: Task, recipe: lab.GAL) -> contest.Rival:
    """A rival that is a run of GAL; the outcome is left for those that need it."""

    def made(ratio: float, seed: int, folder: Path) -> tuple[nn.Module, dict[str, float]]:
        outcome = replace(recipe, macs_ratio=ratio).run(task, seed=seed, progress=False)
        if recipe.adversary == "AR":
            outcome.save(outcome_at(folder, ratio, seed))
        between = outcome.report[f"{task.metric} before fine-tuning"].after
        return outcome.model, figures(task, outcome.model, between)

    return made


def of_cut(task: Task, recipe: lab.GAL, name: str) -> contest.Rival:
    """A rival that cuts the start to the budget and then gets both of GAL's stages."""

    def made(ratio: float, seed: int, folder: Path) -> tuple[nn.Module, dict[str, float]]:
        budget = cost.macs(task.model, task.example) / ratio
        outcome = lab.load(outcome_at(folder, ratio, seed)) if name in pruning.AFTER_GAL else None
        model = pruning.CUTS[name](task, recipe, budget, outcome)
        between = pruning.trained(task, model, recipe, name)
        return model, figures(task, model, between)

    return made


def outcome_at(folder: Path, ratio: float, seed: int) -> Path:
    return folder / f"GAL-{ratio}-{seed}"


def figures(task: Task, model: nn.Module, between: float) -> dict[str, float]:
    """Points lost after both stages and between them; ratios of multiply-adds, of latency, and parameters left."""
    before = task.measure(task.model)
    timed = cost.latencies({"before": task.model, "after": model}, task.example, repeats=300)
    return {
        "accuracy_drop": before - task.measure(model), "drop_before_finetuning": before - between,
        "macs_ratio": cost.macs(task.model, task.example) / cost.macs(model, task.example),
        "latency_ratio": timed["before"].over(timed["after"]), "parameters": cost.parameters(model),
    }  # fmt: skip


def resnet20(is_quick: bool) -> contest.Contest:
    """ResNet-20 on CIFAR-10, channels and blocks, at 1.4 times fewer multiply-adds."""
    return on_cifar("gal-resnet20", 20, lab.GAL(), (1.4,), is_quick)


def resnet56(is_quick: bool) -> contest.Contest:
    """ResNet-56 on CIFAR-10, blocks alone as in the paper, at 1.6 times fewer multiply-adds."""
    return on_cifar("gal-resnet56", 56, lab.GAL(units=("block",)), (1.6,), is_quick)


def on_cifar(name: str, depth: int, recipe: lab.GAL, ratios: tuple, is_quick: bool) -> contest.Contest:
    return gal(name, cifar(SHARED, depth, 64), recipe, {}, ["uniform L1", "dense trained as long"], ratios, is_quick)


CONTESTS: dict[str, Callable[[bool], contest.Contest]] = {
    "fashion": fashion, "units": units, "resnet20": resnet20, "resnet56": resnet56,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> Any:
    return contest.main(CONTESTS, __doc__, arguments)


if __name__ == "__main__":
    main()
