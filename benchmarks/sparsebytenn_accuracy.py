"""What block sparsity costs in accuracy: networks of Fashion-MNIST and of ImageNet, at 30, 50 and 70 % removed.

    python benchmarks/sparsebytenn_accuracy.py fashion --json data/sparsebytenn/fashion.json
    python benchmarks/sparsebytenn_accuracy.py imagenet --json data/sparsebytenn/imagenet.json

`fashion`: a thin MobileNet-v1. Every rival starts from the network of `data/fashion` and learns from the same batches
of the same number of steps, at the same rates and from the same teacher; only what is masked differs. 'single weights'
is what no kernel makes fast, '2:4' the larger two of each four inputs (half of the weights, no other share), '1 x 4' a
block of four inputs of one row, 'dense' loses no weight. 'retained' is the share of the start's magnitude that a
pattern of these blocks could keep, in percent, and 'sparsity' the share of zeros that the network ended with. Steps and
rate were chosen with seeds 0 to 2.

`imagenet`: the whole MobileNet-v1 in 8 bits where it is at hand (see `imagenet.py`), at 30 and 50 %. It learns from the
dense network's answers alone, to the first 500 pictures in the order of their classes, and is scored on the other 500.
'blocks of 4 x 4' are those of the int8 engine. The rate was chosen with seed 0.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from contest import Contest, Rival, main, placed
from fine_patterns import Mask, Pattern, one_by, trained, two_of_four
from imagenet import HELD_OUT, LEARNED
from imagenet import imagenet as sample
from torch import nn

import lab
from lab.core import cost
from lab.core.task import Task

SHARES = (0.3, 0.5, 0.7)
RECIPE = lab.SparseByteNN(block=4, search="greedy", steps=80, lr=0.003, ramp=0.5, regroup_every=8)
BATCH = 64
METHODS = {
    "blocks of 4": {},
    "single weights": {"block": 1},
    "blocks of 4, rows as they came": {"search": "none"},
    "blocks of 4 at random": {"score": "random"},
    "blocks of 8": {"block": 8},
    "blocks of 16": {"block": 16},
}
DENSE = "dense, trained as long"
OF_IMAGENET = lab.SparseByteNN(block=4, search="greedy", steps=60, lr=0.0001, ramp=0.5, regroup_every=6)
FEW = 8  # pictures a step at 224 x 224


def fashion(quick: bool, device: str = "cpu") -> Contest:
    """A MobileNet-v1 of a quarter of the channels, 28 x 28 pictures."""
    recipe = replace(RECIPE, steps=RECIPE.steps // 10, regroup_every=2) if quick else RECIPE
    task = lambda: placed(lab.tasks.fashion(batch_size=BATCH, net="mobilenet_v1"), device)  # noqa: E731
    rivals: dict[str, Rival] = {name: _blocks(task, replace(recipe, **fields)) for name, fields in METHODS.items()}
    rivals |= {
        "1 x 4": _fine(task, recipe, one_by(4), 4),
        "2:4": _fine(task, recipe, two_of_four, 1),
        DENSE: _blocks(task, recipe, dense=True),
    }
    return Contest(
        name="sparsebytenn-fashion-quick" if quick else "sparsebytenn-fashion",
        rivals=rivals,
        settings={"recipe": repr(recipe), "batch": BATCH, "net": "mobilenet_v1", "rivals": [*rivals]},
        figure="accuracy_drop",
        budgets=SHARES,
        only={"2:4": (0.5,)},
        device=device,
    )


def imagenet(quick: bool, device: str = "cpu") -> Contest:
    """The whole MobileNet-v1, 224 x 224 pictures, without labels."""
    recipe = replace(OF_IMAGENET, steps=2, regroup_every=1) if quick else OF_IMAGENET
    task = lambda: placed(sample(FEW), device)  # noqa: E731
    rivals = {
        "blocks of 4": _blocks(task, recipe),
        "single weights": _blocks(task, replace(recipe, block=1)),
        "2:4": _fine(task, recipe, two_of_four, 1),
        "blocks of 4, rows as they came": _blocks(task, replace(recipe, search="none")),
        "blocks of 4 at random": _blocks(task, replace(recipe, score="random")),
        DENSE: _blocks(task, recipe, dense=True),
        "blocks of 4 x 4": _blocks(task, replace(recipe, block=(4, 4))),
    }
    pictures = {"learned": [LEARNED.start, LEARNED.stop], "held out": [HELD_OUT.start, HELD_OUT.stop]}
    return Contest(
        name="sparsebytenn-imagenet-quick" if quick else "sparsebytenn-imagenet",
        rivals=rivals,
        settings={"recipe": repr(recipe), "batch": FEW, "pictures": pictures, "rivals": [*rivals]},
        figure="accuracy_drop",
        budgets=(0.3, 0.5),
        seeds=(10, 11, 12),
        only={"2:4": (0.5,), DENSE: (0.5,)},
        device=device,
    )


def _blocks(task: Callable[[], Task], recipe: lab.SparseByteNN, dense: bool = False) -> Rival:
    """A rival of the recipe itself."""

    def make(share: float, seed: int, folder: Path) -> tuple[nn.Module, dict[str, float]]:
        ground = task()
        outcome = replace(recipe, sparsity=0.0 if dense else share).run(ground, seed=seed, progress=False)
        report = outcome.report
        retained, lost = report["retained magnitude"].after or 0.0, -report[ground.metric].change
        return outcome.model, {"accuracy_drop": lost, "retained": retained} | sizes(
            ground, outcome.model, outcome.masks
        )

    return make


def _fine(task: Callable[[], Task], recipe: lab.SparseByteNN, mask: Mask, block: int) -> Rival:
    """A rival with a pattern that the recipe does not have."""

    def make(share: float, seed: int, folder: Path) -> tuple[nn.Module, dict[str, float]]:
        ground, sparse = task(), replace(recipe, sparsity=share)
        model, layers, lost, kept = trained(sparse, ground, seed, Pattern(mask, share, block))
        return model, {"accuracy_drop": lost, "retained": 100 * kept} | sizes(ground, model, layers)

    return make


def sizes(task: Task, model: nn.Module, layers: Iterable[str]) -> dict[str, float]:
    """How many times fewer multiply-adds than dense, and the percentage of zeros in the layers that are pruned."""
    weights = {name: model.get_parameter(f"{name}.weight") for name in layers}
    zeros = {name: int((w == 0).sum()) for name, w in weights.items()}
    macs, dense = cost.layer_macs(task.model, task.example), cost.macs(task.model, task.example)
    spared = sum(macs[name] // weights[name].numel() * n for name, n in zeros.items())
    share = sum(zeros.values()) / sum(w.numel() for w in weights.values())
    return {"macs_ratio": dense / (dense - spared), "sparsity": 100 * share}


if __name__ == "__main__":
    main({"fashion": fashion, "imagenet": imagenet}, __doc__)
