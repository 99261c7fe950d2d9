"""DQSS's procedure: calibrate all strategies, learn which one each tensor gets, keep one a tensor, and tell the gap."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..core import cost, tasks
from ..core.fields import integer, one_of, real, some_of, validate
from ..core.finetune import has_labels, validate_labels
from ..core.quantisation import grids
from ..core.quantisation.bn_folding import prepared
from ..core.report import Attempts, Report, Row, attempt, reported
from ..core.running import Run, running
from ..core.task import Task, inputs
from ..core.training import Stage, Step, descend
from . import equations as eq
from . import search
from .outcome import DQSSOutcome, History, deployed
from .space import AWARE, POST, Space, place

ALGORITHMS = ("dqss", "dqss_safe", "greedy", "uniform", "random")
REMEDIES = ("warm_up", "temperature", "freeze", "restart")
BATCH = 64  # calibration pictures in one forward pass


@dataclass(frozen=True, kw_only=True)
class DQSS:
    """A strategy of quantisation for each layer, found by gradient (arXiv 2404.08010).

    mode: 'post' learns nothing but which strategy, 'aware' trains weights and ranges in the same backward pass.
    algorithm: 'dqss' (soft mixture, then arg-max, as in the paper), 'dqss_safe' (never worse on the calibration than
    that or the best uniform strategy), and its controls 'greedy', 'uniform', 'random'. weight_bits, activation_bits:
    2 to 8; ends: bits of the first and last layer. candidates: names of strategies, of POST or AWARE; left empty, all
    of the mode. placement: 'layers' quantises what each layer reads, 'full' all that integers must pass. scales: one
    step a weight 'tensor' or, in 'post', 'channel'; 'uneven' is 'tensor' with a zero point of its own for every tensor
    with negative values that a layer reads. calibration: pictures. steps, lr: updates of the logits and their
    rate; in 'aware' weights learn at a hundredth of it. remedies: against under-fitting in 'aware', of REMEDIES.
    """

    mode: str = "post"
    algorithm: str = "dqss_safe"
    weight_bits: int = 4
    activation_bits: int = 4
    ends: int = 8
    candidates: tuple[str, ...] = ()
    placement: str = "layers"
    scales: str = "tensor"
    calibration: int = 128
    steps: int = 100
    lr: float = 0.05
    remedies: tuple[str, ...] = REMEDIES

    def __post_init__(self) -> None:
        for name in ("candidates", "remedies"):
            if isinstance(value := getattr(self, name), (str, list)):
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        validate(self, mode=one_of("post", "aware"))
        validate(
            self,
            algorithm=one_of(*ALGORITHMS),
            weight_bits=integer(2, 8),
            activation_bits=integer(2, 8),
            ends=integer(2, 8),
            candidates=some_of(*(POST if self.mode == "post" else AWARE)),
            placement=one_of("layers", "full"),
            scales=one_of(*(("tensor", "channel", "uneven") if self.mode == "post" else ("tensor",))),
            calibration=integer(2),
            steps=integer(1),
            lr=real(above=0),
            remedies=some_of(*REMEDIES),
        )
        if self.candidates == ("pact",):
            raise ValueError("DQSS: candidates=('pact',) is not allowed: give 'dorefa' too, which rounds its weights")

    @classmethod
    def paper(cls, name: str) -> "DQSS":
        """The paper's procedure, 'ptq' or 'qat': soft search, then arg-max; candidates and settings are the lab's."""
        if name not in ("ptq", "qat"):
            raise ValueError(f"name={name!r}: the paper's two uses are ptq, qat")
        return cls(mode="post" if name == "ptq" else "aware", algorithm="dqss", calibration=256, steps=500)

    def names(self) -> tuple[str, ...]:
        """The strategies that are offered."""
        return self.candidates or (POST if self.mode == "post" else AWARE)

    def run(
        self,
        task: Task | None = None,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> DQSSOutcome:
        """Quantise the task's network, a strategy a tensor; the network passed in is not changed."""
        task = tasks.digits() if task is None else task
        with running(self, task, seed, device, checkpoint, progress) as run:
            if self.mode == "aware":
                validate_labels(task)
            original, example = run.model, run.example
            teacher = prepared(original, example)
            batches = self._calibration(run, teacher)
            graph = prepared(original, example)
            space = Space(graph, place(graph, self), self, torch.cat([x for x, _ in batches]))
            found, trace, history = self.find(run, space, batches)
            chosen, losses = found.chosen, found.losses
            history.note(self.steps, chosen)
            space.set(chosen)
            if self.mode == "aware" and "restart" in self.remedies:
                trace = trace + self._restart(run, space, teacher)
                losses = losses | {"restarted": search.Objective(space, batches)(chosen)}
            model = deployed(space, chosen, prepared(original, example))
            report = reported(repr(self), self._report, run, teacher, space, model, losses, found.soft_score)
        return DQSSOutcome(
            recipe=self, report=report, trace=tuple(trace), model=model, choices=space_choices(space, chosen, model),
            history=history.tensors(), uniform=found.table, losses=losses, example=example.detach().cpu(),
            base=getattr(task.model, "config", None),
        )  # fmt: skip

    def _calibration(self, run: Run, teacher: fx.GraphModule) -> list[tuple[Tensor, Tensor]]:
        """As many pictures as asked for, in batches, each with the float network's answer."""
        stream, found, count = Stage(None, "calibration", "").stream(run.task.batches), [], 0
        while count < self.calibration:
            found.append(inputs(next(stream)).to(run.device))
            count += len(found[-1])
        x = torch.cat(found)[: self.calibration]
        if not torch.isfinite(x).all():
            raise ValueError("calibration: the pictures hold NaN or infinite values: clean Task.batches first")
        with torch.no_grad():
            return [(part, teacher(part)) for part in x.split(BATCH)]

    def find(self, run: Run, space: Space, batches: list) -> tuple[search.Found, list[Step], History]:
        """Learn the logits and keep a strategy for each role of the space, which is left with what was merged."""
        task, history, objective = run.task, History(space), search.Objective(space, batches)
        trace = self._search(run, "search", space, batches, history)
        soft, asked = objective(None), 0
        soft_score, failed = attempt(f"{task.metric} of the mixture", task.measure, space.graph)
        space.notes += [failed] if failed else []
        best, table = search.uniform(objective)
        first = search.arg_max(space)
        losses = {"soft": soft, "arg-max": objective(first), "uniform": objective(best)}
        if self.algorithm == "dqss_safe" and self.mode == "post":
            best, first = space.merge(keep=(best, first))
            history, asked, objective = History(space), objective.asked, search.Objective(space, batches)
            trace += self._search(run, "draws", space, batches, history)
        if self.algorithm == "dqss_safe":
            chosen = search.safe(objective, (best, first), run.progress)
        elif self.algorithm == "greedy":
            chosen = search.descent(objective, best, 1, run.progress)
        else:
            chosen = {"dqss": first, "uniform": best}.get(self.algorithm) or search.random(space)
        losses |= {"kept": objective(chosen), "asked": float(asked + objective.asked)}
        if self.algorithm not in ("dqss", "dqss_safe"):
            losses["soft"] = losses["kept"]  # nothing soft was trained
        trace = trace or [Step("tried", k, {"distance": loss}) for k, loss in enumerate(objective.known.values())]
        return search.Found(chosen, best, first, table, losses, soft_score), trace, history

    def _search(self, run: Run, name: str, space: Space, batches: list, history: History) -> list[Step]:
        """Learn the logits; in 'aware' mode weights and ranges too, by the same backward pass. No step, no trace."""
        is_choice = any(len(role.mixture.names) > 1 for role in space.roles)
        aware, learns = self.mode == "aware", is_choice and self.algorithm in ("dqss", "dqss_safe")
        if not aware and not learns:
            history.note(0)
            return []
        for parameter in space.graph.parameters():
            parameter.requires_grad_(aware)
        logits = space.logits()
        for logit in logits:
            logit.requires_grad_(learns)
        groups: list[dict[str, Any]] = [{"params": logits, "lr": self.lr}]
        if aware:
            groups += self._trained(space)
        optimiser = Adam(groups)
        schedule = CosineAnnealingLR(optimiser, self.steps)
        stage = run.stage(name, space=space, optimiser=optimiser, schedule=schedule, history=history)
        loss = self._loss(name, run.task, space, batches)
        data = run.task.batches if aware else batches
        self._decide(space, len(stage.trace), learns)
        for step in descend(loss, data, optimiser, stage, steps=self.steps, schedule=schedule, progress=run.progress):
            done = step.index + 1
            self._decide(space, done, learns)
            if done % max(1, self.steps // 24) == 0:
                history.note(done)
        return list(stage.trace)

    def _loss(self, name: str, task: Task, space: Space, batches: list) -> Any:
        if name == "draws":
            return lambda batch: {"policy": search.expected(space, *batch)}
        if self.mode == "post":
            return lambda batch: {"distance": search.distance(space.graph(batch[0]), batch[1])}
        return self._task_loss(task, space, batches)

    def _task_loss(self, task: Task, space: Space, batches: list, teacher: nn.Module | None = None) -> Any:
        """The task's own loss where there are labels, else the distance to the float answers."""
        device = batches[0][0].device
        if has_labels(task):
            return lambda batch: {"task": task.loss(space.graph(batch[0].to(device)), batch[1].to(device))}
        x = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

        def near(_: Any) -> dict[str, Tensor]:
            at = torch.randint(len(x[0]), (BATCH,))
            return {"distance": search.distance(space.graph(x[0][at]), x[1][at])}

        return near

    def _trained(self, space: Space) -> list[dict[str, Any]]:
        """Weights and ranges with their rates."""
        ranges = [p for role in space.roles for p in role.mixture.strategies.parameters()]
        known = {id(p) for p in (*ranges, *space.logits())}
        weights = [p for p in space.graph.parameters() if id(p) not in known]
        for role in space.roles:
            for strategy in role.mixture.strategies:
                for name, p in strategy.named_parameters():
                    p.requires_grad_(not (type(strategy).__name__ in ("DoReFa", "MaxAbs") and name == "alpha"))
        return [{"params": weights, "lr": self.lr / 100}, {"params": ranges, "lr": self.lr / 10}]

    def _decide(self, space: Space, done: int, learns: bool) -> None:
        """The remedies of 'aware' mode: wait, cool, freeze."""
        if self.mode == "post":
            return
        waits = "warm_up" in self.remedies and done < self.steps // 10
        for role in space.roles:
            mixture = role.mixture
            mixture.logits.requires_grad_(learns and not waits)
            mixture.T = 1 - 0.9 * done / self.steps if "temperature" in self.remedies else 1.0
            p = eq.probabilities(mixture.logits.detach(), mixture.T)
            if "freeze" in self.remedies and learns and not waits and float(p.max()) > 0.9 and len(p) > 1:
                mixture.chosen = int(p.argmax())

    def _restart(self, run: Run, space: Space, teacher: fx.GraphModule) -> list[Step]:
        """Train on with the strategies that were kept, for as long again, from a fresh rate."""
        for logit in space.logits():
            logit.requires_grad_(False)
        optimiser = Adam(self._trained(space))
        schedule = CosineAnnealingLR(optimiser, self.steps)
        stage = run.stage("restart", space=space, optimiser=optimiser, schedule=schedule)
        loss = self._task_loss(run.task, space, self._calibration(run, teacher))
        for _ in descend(
            loss, run.task.batches, optimiser, stage, steps=self.steps, schedule=schedule, progress=run.progress
        ):
            pass
        return list(stage.trace)

    def _report(self, run: Run, teacher, space: Space, model, losses, soft_score) -> Report:
        task, attempts = run.task, Attempts()
        after = attempts(task.metric, task.measure, model)
        bits = {role.layer: role.bits for role in space.roles if role.role == "weights"}
        read = {role.layer: role.bits for role in space.roles if role.role == "activations"}
        macs = attempts("macs", cost.layer_macs, teacher, run.example) or {}
        count = sum(macs.values()) if macs else None
        bitops = sum(n * bits.get(name, 32) * read.get(name, 32) for name, n in macs.items()) if macs else None
        total = cost.parameters(teacher)
        rounded = {name: teacher.get_submodule(name).weight.numel() for name in bits}
        size = 4 * (total - sum(rounded.values())) + sum(-(-n * bits[name] // 8) for name, n in rounded.items())
        rows = [
            Row("parameters", total, total),
            Row("macs", count, count),
            Row("bitops", count and 1024 * count, bitops),
            Row("bytes", 4 * total, size, "B"),
            Row("calibration loss", losses["uniform"], losses["kept"], "", "learned", 5),
            Row("soft-to-hard gap", None, eq.gap(losses["soft"], losses["kept"]), "dB", "learned", 1),
            Row(f"{task.metric} of the mixture", run.before, soft_score, task.unit, "learned", 2),
            Row(task.metric, run.before, after, task.unit, "learned", 2),
        ]
        return Report(repr(self), tuple(rows), (*self._notes(task, space, losses), *attempts.notes))

    def _notes(self, task: Task, space: Space, losses: dict[str, float]) -> list[str]:
        count = eq.space_size([len(role.mixture.names) for role in space.roles])
        notes = [
            f"{len(space.weights)} layers, {len(space.roles)} tensors with a strategy, {count:.1e} assignments; "
            f"{losses['asked']:.0f} were tried; calibration loss: the best uniform strategy's, then this one's; "
            "bytes: as packed",
            "the list of candidates and all settings are the lab's, not the paper's",
        ]
        notes += [f"left in float, {reason}: {name}" for name, reason in space.where.left.items()]
        if self.mode == "aware" and not has_labels(task):
            notes.append("the batches hold no labels: trained on the float network's answers")
        return notes + space.notes


def space_choices(space: Space, chosen: search.Chosen, model: fx.GraphModule) -> dict[str, dict[str, Any]]:
    """{layer: {weights, activations, weight_step, step, zero, bits}}: what was kept, as numbers and names."""
    found: dict[str, dict[str, Any]] = {}
    for role, k in zip(space.roles, chosen, strict=True):
        row = found.setdefault(role.layer, {})
        row[role.role] = role.mixture.names[k]
        if role.role == "weights":
            step = grids.codes(model.get_submodule(role.layer))[1]  # type: ignore[index]
            row |= {"weight_bits": role.bits, "weight_scale": step.flatten().tolist()}
        else:
            group = next(g for g, mixture in space.activations.items() if mixture is role.mixture)
            grid = model.get_submodule(f"quantisers.{group}").grid()  # type: ignore[operator]
            row |= {"activation_bits": role.bits, "scale": grid.step, "zero_point": grid.zero}
    return found
