"""All assignments of strategies to a network of four layers: what a strategy a tensor can gain at all.

The network is a chain, so that the assignments are the leaves of a tree and each layer is computed once a branch: four
strategies for each of seven tensors (the pictures keep one of 8 bits) are up to 16,384 networks. Every one has its loss
on the calibration, its loss on 1,000 test pictures, and how many of those it names rightly. Each seed has a float
network of its own, learned on Fashion-MNIST without augmentation.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
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
LEARNED = {"steps": 600, "lr": 0.1}  # of the float network
HELD_OUT, PICTURES = 1000, 256  # to judge on, to calibrate on
SHARP, SOFT = 1.0, 8.0  # temperatures of the classes that are compared
FOLDER = store.artefact("fashion/t10k-images-idx3-ubyte.xz").parent
MEAN, STD = (0.2860,), (0.3530,)  # as `lab.tasks.fashion` has them
LOSSES = {"calibration": SHARP, "calibration at 8": SOFT, "held-out pictures": SHARP}


def exhaustive(quick: bool, device: str = "cpu") -> Contest:
    """Assignments by bits; the figure is the loss on held-out pictures over the least of all assignments, in dB.

    'best ... for the held-out pictures' nobody could have chosen: it says what there is to gain.
    """
    rivals = {"DQSS's search": rival("dqss_safe"), "DQSS's search at 8": rival("dqss_safe", SOFT)}
    rivals |= {"arg-max of the mixture": rival("dqss"), "random": rival("random")}
    for which, where in itertools.product(("assignment", "uniform pair"), LOSSES):
        rivals[f"best {which} for the {where}"] = picked(which, where)
    settings = {"recipe": repr(recipe(4, "dqss_safe")), "widths": WIDTHS, "learned": LEARNED, "held out": HELD_OUT}
    return Contest(
        name="dqss-exhaustive", rivals=rivals, settings=settings, figure="held_out_behind",
        budgets=("4 bits",) if quick else ("4 bits", "3 bits"),
    )  # fmt: skip


def recipe(bits: int, algorithm: str, temperature: float = SHARP) -> lab.DQSS:
    return lab.DQSS(
        algorithm=algorithm, weight_bits=bits, activation_bits=bits, ends=bits, candidates=NAMES, calibration=PICTURES,
        temperature=temperature, steps=100,
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
        self.teacher, self.plain = (fold_batch_norms(run.model, run.example) for _ in range(2))
        self.batches = recipe.calibration_batches(run, self.teacher)
        self.x = torch.cat([x for x, _ in self.batches])
        self.space = self._space()
        self.names = [list(role.mixture.names) for role in self.space.roles]
        self.uniform = {tuple(search.same(self.space, w, a)) for w, a in itertools.product(NAMES, NAMES)}

    def _space(self) -> StrategySpace:
        space = StrategySpace(fold_batch_norms(self.run.model, self.run.example), self.recipe, self.x)
        _leave_one(space, "max")
        return space

    def losses(self, path: Path) -> dict[str, np.ndarray]:
        """Each of LOSSES, and how many held-out pictures are named rightly, of every assignment; computed once."""
        if not path.exists():
            x, y = held_out(HELD_OUT)
            with torch.no_grad():
                every = torch.cat([self.x, x])
                wanted = self.teacher(every)
                rows = [judged(z, wanted, y) for z in leaves(self.space, every)]
            np.savez(
                path, **{name: np.array(v) for name, v in zip((*LOSSES, "right"), zip(*rows, strict=True), strict=True)}
            )
        with np.load(path) as file:
            return {name: file[name].reshape([len(names) for names in self.names]) for name in file.files}

    def found(self) -> Assignment:
        """What the recipe's algorithm keeps; it merges strategies that are alike, in a space of its own."""
        space = self._space()
        result = search.Search(self.recipe, self.run, space, self.batches).find()
        kept = [role.mixture.names[k] for role, k in zip(space.roles, result.chosen, strict=True)]
        return [names.index(name) for names, name in zip(self.names, kept, strict=True)]

    def best(self, which: str, losses: np.ndarray) -> Assignment:
        """The 'assignment' of least loss, or the 'uniform pair' of least loss."""
        if which == "assignment":
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


def judged(z: Tensor, wanted: Tensor, y: Tensor) -> tuple[float, ...]:
    """The losses on the first pictures, the loss on the last len(y), and how many of those are right."""
    (a, b), (a_wanted, b_wanted) = ((part[: -len(y)], part[-len(y) :]) for part in (z, wanted))
    sharp, soft = (float(search.distance(a, a_wanted, T)) for T in (SHARP, SOFT))
    return sharp, soft, float(search.distance(b, b_wanted)), int((b.argmax(1) == y).sum())


def rival(algorithm: str, temperature: float = SHARP) -> Rival:
    """What an algorithm of the recipe finds."""

    def make(budget: str, seed: int, folder: Path) -> tuple[nn.Module, dict[str, float]]:
        with grounded(recipe(int(budget[0]), algorithm, temperature), seed, folder) as (ground, losses):
            chosen = ground.found()
        return told(ground, losses, chosen)

    return make


def picked(which: str, where: str) -> Rival:
    """The best of which assignments, by which of LOSSES."""

    def make(budget: str, seed: int, folder: Path) -> tuple[nn.Module, dict[str, float]]:
        with grounded(recipe(int(budget[0]), "uniform"), seed, folder) as (ground, losses):
            chosen = ground.best(which, losses[where])
        return told(ground, losses, chosen)

    return make


@contextmanager
def grounded(recipe: lab.DQSS, seed: int, folder: Path) -> Iterator[tuple[Ground, dict[str, np.ndarray]]]:
    """The network of a seed with its strategies, and the losses of all assignments, kept in the folder."""
    with running(recipe, trained(seed, folder), seed, None, None, progress=False) as run:
        ground = Ground(run, recipe)
        yield ground, ground.losses(folder / f"losses_{recipe.weight_bits}_{seed}.npz")


def told(ground: Ground, losses: dict[str, np.ndarray], chosen: Assignment) -> tuple[nn.Module, dict[str, float]]:
    """The network, and figures: dB behind the best of all, the percentage of assignments that are better, accuracy."""
    at, apart = tuple(chosen), losses["held-out pictures"]
    figures = {"held_out_behind": behind(apart, at), "calibration_behind": behind(losses["calibration"], at)}
    figures["better"] = 100 * float((apart < apart[at]).mean())
    figures["accuracy"] = 100 * float(losses["right"][at]) / HELD_OUT
    return ground.space.deployed(chosen, ground.plain), figures


def behind(losses: np.ndarray, chosen: tuple[int, ...]) -> float:
    """10 log10 of a loss over the least of all."""
    return 10 * float(np.log10(losses[chosen] / losses.min()))
