"""GAL beside its rivals and ablations at equal multiply-adds, equal steps in both stages, the same data and seeds.

    python benchmarks/gal.py fashion --json data/gal/fashion.json [--quick] [--seeds 10,11] [--device cuda]
    python benchmarks/gal.py longer | units | resnet20 | resnet56 | vgg16

`fashion`: ResNet-20 on 10,000 pictures of Fashion-MNIST at 2, 3 and 5 times fewer multiply-adds. Every rival cuts the
same trained network to at most as many; then it is distilled from that network without labels for as many steps as
GAL's masks take, and fine-tuned with labels for as many steps, at the same rates. BN scale and group norm see labels
in both stages, for that is how they train. An ablation of the adversary is a whole run of GAL with its own trained
network. `longer`: the same with four times the steps, for GAL, GAL without its adversary, uniform L1 and the dense
network. `units`: structures together, each kind alone, and one kind after the other, on ResNet-20, a small GoogLeNet
and a small DenseNet. `resnet20`, `resnet56` and `vgg16`: CIFAR-10 where it is at hand (`../shared/data`, or SHARED).
On a processor's core `fashion` takes half an hour a seed and budget, a contest on CIFAR-10 some hours a seed.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import contest
import joint
import pruning
from cifar import cifar
from torch import nn

import lab
from lab.core import cost
from lab.core.task import Task

BATCH = 64
FASHION = lab.GAL(
    lam=0.1, mask_lr=0.3, mask_every=1, steps=400, finetune_steps=100, finetune_lr=0.002
)  # chosen on seed 0: 800 steps lose half a point less, in twice the time
LONG = replace(FASHION, steps=1_500, finetune_steps=500)
CIFAR = replace(FASHION, steps=800, finetune_steps=400)
ABLATIONS = {
    "no adversary": {"adversary": "off"},
    "adversary not held back": {"adversary": "none"},
    "adversary held by L1": {"adversary": "L1"},
    "adversary held by L2": {"adversary": "L2"},
}
UNITS = {"resnet20": ("channel", "block"), "googlenet": ("channel", "branch"), "densenet": ("channel", "input")}


def fashion(is_quick: bool, device: str = "cpu") -> contest.Contest:
    """ResNet-20 on Fashion-MNIST: all rivals, and GAL with its adversary held otherwise or left out."""
    task = contest.placed(lab.tasks.fashion(batch_size=BATCH), device)
    recipe = shortened(FASHION, is_quick)
    rivals = against(task, recipe, ABLATIONS, [*pruning.CUTS])
    return contested("gal-fashion", task, rivals, recipe, (3,) if is_quick else (3, 2, 5), device)


def longer(is_quick: bool, device: str = "cpu") -> contest.Contest:
    """The same with four times the steps, for the masks, the adversary and uniform L1 alone."""
    task = contest.placed(lab.tasks.fashion(batch_size=BATCH), device)
    recipe = shortened(LONG, is_quick)
    rivals = against(task, recipe, {"no adversary": ABLATIONS["no adversary"]}, ["uniform L1", "dense trained as long"])
    return contested("gal-longer", task, rivals, recipe, (3,), device)


def resnet20(is_quick: bool, device: str = "cpu") -> contest.Contest:
    """ResNet-20 on CIFAR-10, channels and blocks, at 1.4 times fewer multiply-adds."""
    task = contest.placed(cifar(contest.SHARED, 20, BATCH), device)
    return on_cifar("resnet20", task, CIFAR, 1.4, is_quick, device)


def resnet56(is_quick: bool, device: str = "cpu") -> contest.Contest:
    """ResNet-56 on CIFAR-10, blocks alone as in the paper, at 1.6 times fewer multiply-adds."""
    task = contest.placed(cifar(contest.SHARED, 56, BATCH), device)
    return on_cifar("resnet56", task, replace(CIFAR, units=("block",)), 1.6, is_quick, device)


def vgg16(is_quick: bool, device: str = "cpu") -> contest.Contest:
    """VGG-16 on CIFAR-10, channels, at the paper's 1.8 times fewer multiply-adds; its start is trained here."""
    task = joint.vgg16(BATCH, device, is_quick)
    return on_cifar("vgg16", task, replace(CIFAR, units=("channel",)), 1.8, is_quick, device)


def on_cifar(name: str, task: Task, recipe: lab.GAL, ratio: float, is_quick: bool, device: str) -> contest.Contest:
    """One network of CIFAR-10 at one ratio."""
    recipe = shortened(recipe, is_quick)
    cuts = ["uniform L1", "group Taylor", "random channels", "dense trained as long"]
    rivals = against(task, recipe, {"no adversary": ABLATIONS["no adversary"]}, cuts)
    made = contested(f"gal-{name}", task, rivals, recipe, (ratio,), device)
    return replace(made, seeds=(10, 11, 12), settings={**made.settings, "pictures": len(task.batches) * BATCH})


def units(is_quick: bool, device: str = "cpu") -> contest.Contest:
    """Structures together, each kind alone, and large ones first, at half the multiply-adds of three networks."""
    recipe = shortened(FASHION, is_quick)
    tasks = {net: joint.ground(net, BATCH, device, is_quick) for net in UNITS}

    def on(make: Callable[..., contest.Rival], **given: Any) -> contest.Rival:
        return lambda net, seed, folder: make(tasks[net], recipe, net, **given)(2, seed, folder)

    rivals = {"together": on(_of_units), "the first kind alone": on(_of_units, kinds=slice(1)),
              "the second kind alone": on(_of_units, kinds=slice(1, 2)), "the second kind, then the first": on(in_turn),
              "uniform L1": on(lambda task, recipe, net: of_cut(task, recipe, "uniform L1"))}  # fmt: skip
    made = contested("gal-units", tasks["resnet20"], rivals, recipe, tuple(UNITS), device)
    starts = {net: contest.fingerprint(task.model) for net, task in tasks.items()}
    return replace(made, settings={**made.settings, "units": UNITS, "start": starts, "ratio": 2})


def _of_units(task: Task, recipe: lab.GAL, net: str, kinds: slice = slice(None)) -> contest.Rival:
    return of_recipe(task, replace(recipe, units=UNITS[net][kinds]))


def in_turn(task: Task, recipe: lab.GAL, net: str) -> contest.Rival:
    """Large structures to the root of the ratio, then channels to the whole, each in half of the steps."""
    channel, large = UNITS[net]
    half = replace(recipe, steps=recipe.steps // 2)

    def made(ratio: float, seed: int, folder: Path) -> tuple[nn.Module, dict[str, float]]:
        first = replace(half, units=(large,), macs_ratio=ratio**0.5, finetune_steps=0)
        model = first.run(task, seed=seed, progress=False).model
        rest = ratio * cost.macs(model, task.example) / cost.macs(task.model, task.example)
        last = replace(half, units=(channel,), macs_ratio=rest)
        outcome = last.run(replace(task, model=model), seed=seed, progress=False)
        return outcome.model, figures(task, outcome.model, outcome.report[f"{task.metric} before fine-tuning"].after)

    return made


def against(task: Task, recipe: lab.GAL, variants: dict[str, dict], cuts: list[str]) -> dict[str, contest.Rival]:
    """GAL beside variants of its recipe and rivals' cuts."""
    rivals: dict[str, contest.Rival] = {"GAL": of_recipe(task, recipe)}
    rivals |= {variant: of_recipe(task, replace(recipe, **change)) for variant, change in variants.items()}
    return rivals | {cut: of_cut(task, recipe, cut) for cut in cuts}


def contested(
    name: str, task: Task, rivals: dict[str, contest.Rival], recipe: lab.GAL, budgets: tuple, device: str
) -> contest.Contest:
    """A contest of these rivals in points lost."""
    settings = {"recipe": repr(recipe), "task": task.name, "batch": BATCH, "start": contest.fingerprint(task.model)}
    return contest.Contest(
        name=name, rivals=rivals, settings=settings, figure="accuracy_drop", budgets=budgets, device=device
    )


def shortened(recipe: lab.GAL, is_quick: bool) -> lab.GAL:
    """A twentieth of the steps for a quick look."""
    if not is_quick:
        return recipe
    return replace(recipe, steps=recipe.steps // 20, finetune_steps=recipe.finetune_steps // 20)


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
    here = {"before": deepcopy(task.model).cpu(), "after": deepcopy(model).cpu()}
    timed = cost.latencies(here, task.example.cpu(), repeats=300)  # on a core, wherever they were trained
    return {
        "accuracy_drop": before - task.measure(model), "drop_before_finetuning": before - between,
        "macs_ratio": cost.macs(task.model, task.example) / cost.macs(model, task.example),
        "latency_ratio": timed["before"].over(timed["after"]), "parameters": cost.parameters(model),
    }  # fmt: skip


CONTESTS: dict[str, Callable[..., contest.Contest]] = {
    "fashion": fashion, "longer": longer, "units": units, "resnet20": resnet20, "resnet56": resnet56, "vgg16": vgg16,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> Any:
    return contest.main(CONTESTS, __doc__, arguments)


if __name__ == "__main__":
    main()
