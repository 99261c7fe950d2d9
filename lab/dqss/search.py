"""From logits to one strategy a role: they are learned, then kept by arg-max or by the safe way; and the controls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..core.batch import Example, call, each, joined, logits_of, size, vector
from ..core.finetune import has_labels
from ..core.progress import tqdm
from ..core.report import attempt
from ..core.running import Run
from ..core.training import Step, descend
from . import equations as eq
from .space import Assignment, StrategySpace

BATCH = 64  # pictures in one forward pass where the float network's outputs are the target
SNAPSHOTS = 24  # how often shares are kept

Batches = list[tuple[Example, Tensor]]  # pictures (N, C, H, W), or several inputs, with the float network's outputs


def answer(net: nn.Module, x: Example) -> Tensor:
    """What a network gives for pictures, as one tensor: all its outputs side by side, (N, 1, numbers), for several."""
    output = logits_of(call(net, x))
    return output if isinstance(output, Tensor) else vector(output)[:, None]


def distance(output: Tensor, target: Tensor, T: float = 1.0) -> Tensor:
    """How far a network's output is from the float one: KL of classes (N, C), squared error of pictures.

    T^2 KL(softmax(target / T) || softmax(output / T)), which goes to half the variance of their difference as T grows.
    """
    if output.dim() == 2 and output.shape[1] > 1:
        # The mean over pictures of sum_c p_c (log p_c - log q_c), p the float network's.
        log_q, log_p = (output / T).log_softmax(1), (target / T).log_softmax(1)
        return T**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return F.mse_loss(output, target)


@dataclass
class Objective:
    """The mean distance over the calibration's batches; counts how often it was asked for what it did not know."""

    space: StrategySpace
    batches: Batches
    T: float = 1.0
    asked: int = 0
    losses: dict[tuple[int, ...], float] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, chosen: Assignment | None) -> float:
        key = None if chosen is None else tuple(chosen)
        if key is not None and key in self.losses:
            return self.losses[key]
        self.asked += 1
        self.space.set(chosen)
        total = sum(
            size(x) * float(distance(answer(self.space.graph, x), target, self.T)) for x, target in self.batches
        )
        loss = total / sum(size(x) for x, _ in self.batches)
        if key is not None:
            self.losses[key] = loss
        return loss


# -- hard assignments --------------------------------------------------------------------------------------------------


def same(space: StrategySpace, weights: str, activations: str) -> Assignment:
    """One strategy for all weights and one for all activations."""
    names = {"weights": weights, "activations": activations}
    return [alias[names[role.role]] for role, alias in zip(space.roles, space.aliases, strict=True)]


def uniform(objective: Objective) -> tuple[Assignment, dict[str, float]]:
    """The best of all strategies used everywhere, and of pairs in which one role has another; all with their losses."""
    space, names = objective.space, objective.space.names
    table = {name: objective(same(space, name, name)) for name in names}
    # All pairs would be N^2: the best of one strategy, then the weights' best beside it, then the activations'.
    best = min(table, key=lambda name: table[name])
    pairs = {(best, best): table[best]}
    pairs |= {(name, best): objective(same(space, name, best)) for name in names}
    first = min(pairs, key=lambda pair: pairs[pair])[0]
    pairs |= {(first, name): objective(same(space, first, name)) for name in names}
    w, a = min(pairs, key=lambda pair: pairs[pair])
    return same(space, w, a), table | {f"{w} | {a}": pairs[w, a]}


def random(space: StrategySpace) -> Assignment:
    """Any strategy for each role, each as likely."""
    return [int(torch.randint(len(role.mixture.names), ())) for role in space.roles]


def arg_max(space: StrategySpace) -> Assignment:
    """The strategy of the largest logit for each role."""
    return [eq.hard(role.mixture.logits.detach()) for role in space.roles]


def descent(objective: Objective, start: Assignment, sweeps: int = 1, progress: bool = False) -> Assignment:
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


def safe(objective: Objective, starts: Sequence[Assignment], progress: bool = False) -> Assignment:
    """Coordinate descent from the best of several starts and of arg-max: never worse than any of them."""
    return descent(objective, min((*starts, arg_max(objective.space)), key=objective), 1, progress)


def draw(space: StrategySpace) -> tuple[Assignment, Tensor]:
    """A strategy for each role sampled from its probabilities, and the logarithm of that draw's probability."""
    logs = [torch.log_softmax(role.mixture.logits, 0) for role in space.roles]
    sampled = [int(torch.multinomial(log.detach().exp(), 1)) for log in logs]
    return sampled, torch.stack([log[k] for log, k in zip(logs, sampled, strict=True)]).sum()


def expected(space: StrategySpace, x: Tensor, target: Tensor, T: float = 1.0) -> Tensor:
    """Card (9) on one batch, on the logarithm of the loss, for its size means nothing."""
    losses, logs = [], []  # of two draws, each the other's baseline
    for _ in range(2):
        chosen, log = draw(space)
        space.set(chosen)
        with torch.no_grad():
            losses.append(distance(answer(space.graph, x), target, T).clamp(min=1e-20).log())
        logs.append(log)
    space.set(None)
    return eq.policy((losses[0], losses[1]), (logs[0], logs[1]))


# -- the search --------------------------------------------------------------------------------------------------------


class ShareHistory:
    """Each role's shares over the search, and how far each strategy is from its own tensor in dB."""

    def __init__(self, space: StrategySpace) -> None:
        self.space = space
        self.steps: list[int] = []
        self.shares: list[Tensor] = []  # (R, N) each
        self.names = list(dict.fromkeys(name for role in space.roles for name in role.mixture.names))
        errors = [space.errors(role).diagonal().clamp(min=1e-12) for role in space.roles]
        self.errors = self._table([10 * error.log10() for error in errors])
        self.kept: list[str] = []

    def _table(self, rows: list[Tensor]) -> Tensor:
        """Rows by strategy, nan where a role does not have one: (R, N)."""
        table = torch.full((len(rows), len(self.names)), torch.nan)
        for at, (role, row) in enumerate(zip(self.space.roles, rows, strict=True)):
            table[at, [self.names.index(name) for name in role.mixture.names]] = row.detach().cpu().float()
        return table

    def note(self, done: int, kept: Assignment | None = None) -> None:
        """Take a snapshot of the shares after `done` updates; `kept` are the strategies of the end."""
        if done not in self.steps:
            self.steps.append(done)
            self.shares.append(self._table([eq.probabilities(r.mixture.logits, r.mixture.T) for r in self.space.roles]))
        if kept is not None:
            self.kept = [role.mixture.names[k] for role, k in zip(self.space.roles, kept, strict=True)]

    def tensors(self) -> dict[str, Any]:
        """What an outcome keeps: steps (S,), shares (S, R, N), errors (R, N), and the names of roles and strategies."""
        return {
            "steps": torch.tensor(self.steps),
            "shares": torch.stack(self.shares),
            "errors": self.errors,
            "roles": [f"{role.layer}, {role.role}" for role in self.space.roles],
            "names": self.names,
            "kept": self.kept,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.steps), "shares": list(self.shares)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.shares = list(state["steps"]), list(state["shares"])


@dataclass(frozen=True)
class SearchResult:
    """What a search kept, and the losses on the calibration: of the soft mixture, of arg-max, of what was kept.

    `uniform` is the best uniform choice, `arg_max` the one of the largest logits of the mixture; table: the losses of
    all uniform choices. soft_score: the task's score of the mixture, None where it could not be taken.
    """

    chosen: Assignment
    uniform: Assignment
    arg_max: Assignment
    table: dict[str, float]
    losses: dict[str, float]
    soft_score: float | None
    trace: list[Step]
    history: ShareHistory


@dataclass(frozen=True)
class Search:
    """One search: the recipe's settings, the run it belongs to, the space, and the calibration it is judged on."""

    recipe: Any
    run: Run
    space: StrategySpace
    batches: Batches

    def find(self) -> SearchResult:
        """Learn the logits and keep a strategy for each role; the space is left hard, and with what was merged."""
        recipe, run, space = self.recipe, self.run, self.space
        # Soft: the mixture's logits, then what it loses, and how its network scores while nothing is chosen yet.
        history, objective = ShareHistory(space), Objective(space, self.batches, recipe.temperature)
        trace = self.learn("search", history)
        soft, asked = objective(None), 0
        soft_score, failed = attempt(f"{run.task.metric} of the mixture", run.task.measure, space.graph)
        space.notes += [failed] if failed else []  # a score that fails costs its row, not the search
        # Hard: the two that the safe way must not fall behind.
        best, table = uniform(objective)
        first = arg_max(space)
        losses = {"soft": soft, "arg-max": objective(first), "uniform": objective(best)}
        # The safe way of 'post' learns again, now what a draw of hard strategies loses.
        if recipe.algorithm == "dqss_safe" and recipe.mode == "post":
            best, first = space.merge(keep=(best, first))  # near-duplicates split the vote
            history, asked = ShareHistory(space), objective.asked
            objective = Objective(space, self.batches, recipe.temperature)
            trace += self.learn("draws", history)
        chosen = self._kept(objective, best, first)
        losses |= {"kept": objective(chosen), "asked": float(asked + objective.asked)}
        if recipe.algorithm not in ("dqss", "dqss_safe"):
            losses["soft"] = losses["kept"]  # nothing soft was trained
        trace = trace or [Step("tried", k, {"distance": loss}) for k, loss in enumerate(objective.losses.values())]
        history.note(recipe.steps, chosen)
        space.set(chosen)
        return SearchResult(chosen, best, first, table, losses, soft_score, trace, history)

    def _kept(self, objective: Objective, best: Assignment, first: Assignment) -> Assignment:
        """What the recipe's algorithm ends with: from the best uniform choice, and the mixture's arg-max."""
        algorithm = self.recipe.algorithm
        if algorithm == "dqss_safe":
            return safe(objective, (best, first), self.run.progress)
        if algorithm == "greedy":
            return descent(objective, best, 1, self.run.progress)
        return {"dqss": first, "uniform": best}.get(algorithm) or random(self.space)

    def learn(self, name: str, history: ShareHistory) -> list[Step]:
        """Learn the logits; in 'aware' mode weights and ranges too, by the same backward pass. No step, no trace."""
        recipe, run, space = self.recipe, self.run, self.space
        is_choice = any(len(role.mixture.names) > 1 for role in space.roles)
        aware, learns = recipe.mode == "aware", is_choice and recipe.algorithm in ("dqss", "dqss_safe")
        if not aware and not learns:
            history.note(0)
            return []
        # 'post' moves the logits alone; 'aware' all that is not frozen, each group at its own rate, in one pass.
        if not aware:
            space.graph.requires_grad_(False)
        for logit in space.logits():
            logit.requires_grad_(learns)
        groups: list[dict[str, Any]] = [{"params": space.logits(), "lr": recipe.lr}]
        if aware:
            groups += self._trained()
        optimiser = Adam(groups)
        schedule = CosineAnnealingLR(optimiser, recipe.steps)
        stage = run.stage(name, space=space, optimiser=optimiser, schedule=schedule, history=history)
        # 'aware' trains on the task's own batches; 'post' has nothing but its calibration.
        loss, data = self._loss(name), run.task.batches if aware else self.batches
        remedy(recipe, space, len(stage.trace), learns)
        for step in descend(loss, data, optimiser, stage, steps=recipe.steps, schedule=schedule, progress=run.progress):
            done = step.index + 1
            remedy(recipe, space, done, learns)
            if done % max(1, recipe.steps // SNAPSHOTS) == 0:
                history.note(done)
        return list(stage.trace)

    def restart(self, result: SearchResult, batches: Batches) -> SearchResult:
        """Train on with the strategies that were kept, for as long again, from a fresh rate.

        `batches` take the place of the task's where those hold no labels.
        """
        recipe, run, space = self.recipe, self.run, self.space
        for logit in space.logits():
            logit.requires_grad_(False)
        optimiser = Adam(self._trained())
        schedule = CosineAnnealingLR(optimiser, recipe.steps)
        stage = run.stage("restart", space=space, optimiser=optimiser, schedule=schedule)
        loss, data = self._task_loss(batches), run.task.batches
        for _ in descend(loss, data, optimiser, stage, steps=recipe.steps, schedule=schedule, progress=run.progress):
            pass
        losses = result.losses | {"restarted": Objective(space, self.batches, recipe.temperature)(result.chosen)}
        return replace(result, trace=result.trace + list(stage.trace), losses=losses)

    def _loss(self, name: str) -> Callable[[Any], dict[str, Tensor]]:
        space, T = self.space, self.recipe.temperature
        if name == "draws":
            return lambda batch: {"policy": expected(space, batch[0], batch[1], T)}
        if self.recipe.mode == "post":
            return lambda batch: {"distance": distance(answer(space.graph, batch[0]), batch[1], T)}
        return self._task_loss(self.batches)

    def _task_loss(self, batches: Batches) -> Callable[[Any], dict[str, Tensor]]:
        """The task's own loss where there are labels, else the distance to the float outputs on these batches."""
        task, space, T = self.run.task, self.space, self.recipe.temperature
        if has_labels(task):
            return lambda batch: {"task": task.fit(space.graph, batch)[0]}
        inputs, targets = zip(*batches, strict=True)
        x, target = joined(inputs), torch.cat(targets)  # (calibration, C, H, W), its outputs

        def near(_: Any) -> dict[str, Tensor]:
            at = torch.randint(len(target), (BATCH,))
            return {"distance": distance(answer(space.graph, each(x, lambda part: part[at])), target[at], T)}

        return near

    def _trained(self) -> list[dict[str, Any]]:
        """Weights and ranges with their rates; a range that its paper fixes learns nothing."""
        strategies = [strategy for role in self.space.roles for strategy in role.mixture.strategies]
        ranges = [p for strategy in strategies for p in strategy.parameters()]
        others = {id(p) for p in (*ranges, *self.space.logits())}
        weights = [p for p in self.space.graph.parameters() if id(p) not in others]
        for strategy in strategies:
            for p in strategy.parameters():
                p.requires_grad_(getattr(strategy, "learned", True))
        return [{"params": weights, "lr": self.recipe.lr / 100}, {"params": ranges, "lr": self.recipe.lr / 10}]


def remedy(recipe: Any, space: StrategySpace, done: int, learns: bool) -> None:
    """The remedies of 'aware' mode after `done` updates: wait, cool, freeze."""
    if recipe.mode == "post":
        return
    waits = "warm_up" in recipe.remedies and done < recipe.steps // 10
    for role in space.roles:
        mixture = role.mixture
        mixture.logits.requires_grad_(learns and not waits)
        # From an even softmax to nearly arg-max: a tenth of the temperature is ten times the logits.
        mixture.T = 1 - 0.9 * done / recipe.steps if "temperature" in recipe.remedies else 1.0
        p = eq.probabilities(mixture.logits.detach(), mixture.T)
        if "freeze" in recipe.remedies and learns and not waits and float(p.max()) > 0.9 and len(p) > 1:
            mixture.chosen = int(p.argmax())
