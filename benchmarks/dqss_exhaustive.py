"""All assignments of strategies to a network of four layers: what a strategy a tensor can gain at all.

The network is a chain, so that the assignments are the leaves of a tree and each layer is computed once a branch: four
strategies for each of seven tensors (the pictures keep one of 8 bits) are up to 16,384 networks. Every one has its loss
on the calibration, its loss on 1,000 test pictures, and how many of those it names rightly. Each seed has a float
network of its own, learned on Fashion-MNIST without augmentation.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from contest import Contest, Rival
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lab
from lab.core import store
from lab.core.data.batches import LabelledImages
from lab.core.data.images import read as read_images
from lab.core.finetune import finetune
from lab.core.nets.parts import conv_bn
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.running import Run, running
from lab.core.task import Task
from lab.core.training import seeded
from lab.dqss import search
from lab.dqss.space import Assignment, StrategySpace

NAMES = ("max", "p99.9", "mse", "kl")
WIDTHS = (8, 16, 32)
LEARNED = {"steps": 300, "lr": 0.1}  # of the float network
HELD_OUT = 1000
FOLDER = store.artefact("fashion/t10k-images-idx3-ubyte.gz").parent
MEAN, STD = (0.2860,), (0.3530,)  # as `lab.tasks.fashion` has them
SEARCH = "DQSS's search"
PICKS = {  # the best of which assignments, on which pictures
    "best assignment for the calibration": ("any", "calibration"),
    "best uniform pair for the calibration": ("uniform", "calibration"),
    "best assignment for the held-out pictures": ("any", "held out"),
    "best uniform pair for the held-out pictures": ("uniform", "held out"),
}


def exhaustive(quick: bool) -> Contest:
    """Bits, and pictures to calibrate on; the figure is the loss on held-out pictures over the least of all, in dB."""
    budgets = ((4, 64),) if quick else tuple(itertools.product((4, 3), (64, 512)))
    rivals = {SEARCH: rival("dqss_safe"), "arg-max of the mixture": rival("dqss"), "random": rival("random")}
    rivals |= {name: rival("uniform", *how) for name, how in PICKS.items()}
    settings = {"recipe": repr(recipe(4, 64, "dqss_safe")), "widths": WIDTHS, "learned": LEARNED, "held out": HELD_OUT}
    return Contest(name="dqss-exhaustive", rivals=rivals, settings=settings, figure="held_out_behind", budgets=budgets)


def recipe(bits: int, pictures: int, algorithm: str) -> lab.DQSS:
    return lab.DQSS(
        algorithm=algorithm, weight_bits=bits, activation_bits=bits, ends=bits, candidates=NAMES, calibration=pictures,
        steps=100,
    )  # fmt: skip


def network() -> nn.Module:
    """Three convolutions and a linear layer for (N, 1, 28, 28) -> (N, 10), fresh."""
    a, b, c = WIDTHS
    parts = [conv_bn(1, a, 3), [nn.MaxPool2d(2)], conv_bn(a, b, 3), [nn.MaxPool2d(2)], conv_bn(b, c, 3)]
    return nn.Sequential(*itertools.chain(*parts), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10))


def trained(seed: int, folder: Path) -> Task:
    """Fashion-MNIST with the network of this seed, learned once."""
    path = folder / f"float_{seed}.safetensors"
    with seeded(seed):
        task = lab.tasks.images(FOLDER, network(), mean=MEAN, std=STD)
        if path.exists():
            task.model.load_state_dict(load_file(path))
        else:
            finetune(task, task.model, progress=False, **LEARNED)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(task.model.state_dict(), path)
    task.model.eval()
    return task


class Ground:
    """One network with its strategies, the pictures that they are chosen on, and others."""

    def __init__(self, run: Run, recipe: lab.DQSS) -> None:
        self.run, self.recipe = run, recipe
        self.teacher, self.plain, mixed = (fold_batch_norms(run.model, run.example) for _ in range(3))
        self.batches = recipe.calibration_batches(run, self.teacher)
        self.x = torch.cat([x for x, _ in self.batches])
        self.space = StrategySpace(mixed, recipe, self.x)
        _leave_one(self.space, "max")
        self.names = [list(role.mixture.names) for role in self.space.roles]
        self.uniform = {tuple(search.same(self.space, w, a)) for w, a in itertools.product(NAMES, NAMES)}

    def losses(self, path: Path) -> dict[str, np.ndarray]:
        """'calibration', 'held out' and 'right' of every assignment, one axis a tensor; computed once."""
        if not path.exists():
            x, y = held_out(HELD_OUT)
            with torch.no_grad():
                every = torch.cat([self.x, x])
                wanted = self.teacher(every)
                rows = [judged(z, wanted, y) for z in leaves(self.space, every)]
            names = ("calibration", "held out", "right")
            np.savez(path, **{name: np.array(v) for name, v in zip(names, zip(*rows, strict=True), strict=True)})
        with np.load(path) as file:
            return {name: file[name].reshape([len(names) for names in self.names]) for name in file.files}

    def found(self) -> Assignment:
        """What the recipe's algorithm keeps, as indices of the strategies before near-duplicates were merged."""
        result = search.Search(self.recipe, self.run, self.space, self.batches).find()
        kept = [role.mixture.names[k] for role, k in zip(self.space.roles, result.chosen, strict=True)]
        return [names.index(name) for names, name in zip(self.names, kept, strict=True)]

    def best(self, which: str, losses: np.ndarray) -> Assignment:
        """The assignment of least loss: of all, or of the uniform pairs."""
        if which == "any":
            return [int(k) for k in np.unravel_index(losses.argmin(), losses.shape)]
        return list(min(self.uniform, key=lambda chosen: losses[chosen]))


def _leave_one(space: StrategySpace, name: str) -> None:
    """Give the first tensor, the pictures, this strategy alone."""
    mixture = space.roles[0].mixture
    mixture.set_strategies({name: mixture.strategies[space.aliases[0][name]]})
    space.aliases[0] = dict.fromkeys(space.names, 0)
    space.known_errors.pop(mixture, None)


def held_out(count: int) -> tuple[Tensor, Tensor]:
    """The first of Fashion-MNIST's test pictures as the task gives them, (count, 1, 28, 28), and their labels."""
    split = read_images(FOLDER)
    return LabelledImages(split.x_test, split.y_test, MEAN, STD)[torch.arange(count)]


def leaves(space: StrategySpace, x: Tensor) -> Iterator[Tensor]:
    """The output of every assignment in the order of its indices, the last tensor's first; the network is a chain."""
    mixtures = {f"quantisers.{group}": mixture for group, mixture in space.activations.items()} | space.weights
    start, *nodes, end = space.graph.graph.nodes
    if any(node.op != "call_module" for node in nodes) or [node.all_input_nodes for node in (*nodes, end)] != [
        [node] for node in (start, *nodes)
    ]:
        raise ValueError("the network is no chain of modules: its assignments are no tree")

    def walk(at: int, value: Tensor) -> Iterator[Tensor]:
        if at == len(nodes):
            yield value
            return
        name = str(nodes[at].target)
        for k in range(len(mixtures[name].names) if name in mixtures else 1):
            if name in mixtures:
                mixtures[name].chosen = k
            yield from walk(at + 1, space.graph.get_submodule(name)(value))

    yield from walk(0, x)


def judged(z: Tensor, wanted: Tensor, y: Tensor) -> tuple[float, float, int]:
    """The loss on the first pictures, the loss on the last len(y), and how many of those are right."""
    first, last = (search.distance(*parts) for parts in zip(_split(z, len(y)), _split(wanted, len(y)), strict=True))
    return float(first), float(last), int((z[-len(y) :].argmax(1) == y).sum())


def _split(z: Tensor, last: int) -> tuple[Tensor, Tensor]:
    return z[:-last], z[-last:]


def rival(algorithm: str, which: str = "", where: str = "") -> Rival:
    """What an algorithm of the recipe finds, or the best of `which` assignments on the pictures `where`."""

    def make(budget: tuple[int, int], seed: int, folder: Path) -> tuple[nn.Module, dict[str, float]]:
        task, settings = trained(seed, folder), recipe(*budget, algorithm)
        with running(settings, task, seed, None, None, progress=False) as run:
            ground = Ground(run, settings)
            losses = ground.losses(folder / f"losses_{budget[0]}_{budget[1]}_{seed}.npz")
            chosen = ground.best(which, losses[where]) if which else ground.found()
            ground = Ground(run, settings) if not which else ground  # as it was before the search merged strategies
            model = ground.space.deployed(chosen, ground.plain)
        return model, figures(losses, tuple(chosen))

    return make


def figures(losses: dict[str, np.ndarray], chosen: tuple[int, ...]) -> dict[str, float]:
    """dB behind the best of all assignments on either pictures, how many percent are better, and the accuracy."""
    told = {"held_out_behind": behind(losses["held out"], chosen)}
    told["calibration_behind"] = behind(losses["calibration"], chosen)
    told["better_held_out"] = 100 * float((losses["held out"] < losses["held out"][chosen]).mean())
    return told | {"accuracy": 100 * float(losses["right"][chosen]) / HELD_OUT}


def behind(losses: np.ndarray, chosen: tuple[int, ...]) -> float:
    """10 log10 of a loss over the least of all."""
    return 10 * float(np.log10(losses[chosen] / losses.min()))
