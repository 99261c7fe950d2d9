"""From logits to one strategy a role: uniform, random, greedy, and the safe way between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from . import equations as eq
from .space import Space

Chosen = list[int]


def distance(answer: Tensor, wanted: Tensor) -> Tensor:
    """How far a network's answer is from the float one: KL of classes (N, C), squared error of pictures."""
    if answer.dim() == 2 and answer.shape[1] > 1:
        return F.kl_div(answer.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
    return F.mse_loss(answer, wanted)


@dataclass
class Objective:
    """The mean distance over the calibration's batches (x, float answer); counts how often it was asked."""

    space: Space
    batches: list[tuple[Tensor, Tensor]]
    asked: int = 0
    known: dict[tuple[int, ...], float] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, chosen: Chosen | None) -> float:
        key = None if chosen is None else tuple(chosen)
        if key is not None and key in self.known:
            return self.known[key]
        self.asked += 1
        self.space.set(chosen)
        total = sum(len(x) * float(distance(self.space.graph(x), wanted)) for x, wanted in self.batches)
        value = total / sum(len(x) for x, _ in self.batches)
        if key is not None:
            self.known[key] = value
        return value


def same(space: Space, weights: str, activations: str) -> Chosen:
    """One strategy for all weights and one for all activations."""
    names = {"weights": weights, "activations": activations}
    return [alias[names[role.role]] for role, alias in zip(space.roles, space.aliases, strict=True)]


def uniform(objective: Objective) -> tuple[Chosen, dict[str, float]]:
    """The best of all strategies used everywhere, and of pairs in which one role has another; all with their losses."""
    space = objective.space
    names = space.recipe.names()
    table = {name: objective(same(space, name, name)) for name in names}
    best = min(table, key=lambda name: table[name])
    pairs = {(best, best): table[best]}
    pairs |= {(name, best): objective(same(space, name, best)) for name in names}
    first = min(pairs, key=lambda pair: pairs[pair])[0]
    pairs |= {(first, name): objective(same(space, first, name)) for name in names}
    w, a = min(pairs, key=lambda pair: pairs[pair])
    return same(space, w, a), table | {f"{w} | {a}": pairs[w, a]}


def random(space: Space) -> Chosen:
    """Any strategy for each role, each as likely."""
    return [int(torch.randint(len(role.mixture.names), ())) for role in space.roles]


def arg_max(space: Space) -> Chosen:
    """The strategy of the largest logit for each role."""
    return [eq.hard(role.mixture.logits.detach()) for role in space.roles]


def descent(objective: Objective, start: Chosen, sweeps: int = 1, progress: bool = False) -> Chosen:
    """Coordinate descent: role by role, take the strategy of least loss, all others as they are."""
    best, loss = list(start), objective(start)
    for _ in range(sweeps):
        before = loss
        for at, role in enumerate(tqdm(objective.space.roles, "descent", disable=not progress, leave=False)):
            for k in range(len(role.mixture.names)):
                tried = [*best[:at], k, *best[at + 1 :]]
                if (value := objective(tried)) < loss:
                    best, loss = tried, value
        if loss >= before:
            break
    return best


def draw(space: Space) -> tuple[Chosen, Tensor]:
    """A strategy for each role drawn from its probabilities, and the logarithm of that draw's probability."""
    logs = [torch.log_softmax(role.mixture.logits, 0) for role in space.roles]
    drawn = [int(torch.multinomial(log.detach().exp(), 1)) for log in logs]
    return drawn, torch.stack([log[k] for log, k in zip(logs, drawn, strict=True)]).sum()


def expected(space: Space, x: Tensor, wanted: Tensor) -> Tensor:
    """Eq. (9) on one batch, on the logarithm of the loss, for its size means nothing."""
    losses, logs = [], []
    for _ in range(2):
        chosen, log = draw(space)
        space.set(chosen)
        with torch.no_grad():
            losses.append(distance(space.graph(x), wanted).clamp(min=1e-20).log())
        logs.append(log)
    space.set(None)
    return eq.policy((losses[0], losses[1]), (logs[0], logs[1]))


def safe(objective: Objective, starts: Sequence[Chosen], progress: bool = False) -> Chosen:
    """Coordinate descent from the best of several starts and of arg-max: never worse than any of them."""
    return descent(objective, min((*starts, arg_max(objective.space)), key=objective), 1, progress)


@dataclass(frozen=True)
class Found:
    """What a search kept, and the losses on the calibration: of the soft mixture, of arg-max, of what was kept.

    `best` is the best uniform choice, `arg_max` the one of the largest logits of the mixture; table: the losses of all
    uniform choices.
    """

    chosen: Chosen
    best: Chosen
    arg_max: Chosen
    table: dict[str, float]
    losses: dict[str, float]
    soft_score: float | None
