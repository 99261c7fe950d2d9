"""FoldGPT's procedure: gates rank the blocks, some are removed, neighbours share, and a short training cures."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import cost, tasks
from ..core.batch import Example, call, inputs, moved
from ..core.data import text
from ..core.fields import by_name, integer, one_of, real, validate
from ..core.modeling_folded import LowRank, blocks, is_linear
from ..core.models import learnable, learning
from ..core.report import Attempts, Report, Row, reported
from ..core.running import Run, running
from ..core.task import Task
from ..core.training import Step, descend
from ..core.zeros import Zeros
from . import equations as eq
from . import measures
from .configuration import validate_kept
from .folding import Fold, Sizes, adapt_alone, alone, gates, merge, recorded
from .layers import Gates, HardConcreteGates
from .outcome import FoldGPTOutcome
from .ranking import BASELINES, of_states
from .rehearsal import emulation, experts, validate_foldable, validate_suits
from .search import UNITS, FoldMove, FoldSearch, order, saver, searched
from .sharing import REPRESENTATIVES, STARTS, inputs_seen, pairs, shared

CALIBRATION = 16  # batches that moves, baselines and similarities are measured on
SHARED_LR = 0.2  # of the rate, for what a group shares and for its adapters: they begin near what is right
LONE_RANK = 16  # of the adapters that blocks with weights of their own are cured with, and that are merged afterwards


@by_name
@dataclass(frozen=True, kw_only=True)
class FoldGPT:
    """A language model folded in depth (Liu et al., 2024, arXiv 2407.00928); every default is this project's own.

    removal: share of the blocks that go. sharing: share of the blocks that live on a neighbour's weights, one a pair.
    rank: of the adapters that a sharing block keeps, 0 for none. ranking: 'gates' learned jointly, 'hard-concrete'
    ones that polarise while they learn, or a baseline's: 'influence' (ShortGPT), 'leave-one-out' (SLEB), 'perplexity'
    and 'taylor' (Shortened LLaMA). Under 'bytes' or 'operations' there is one search over both moves: `removal` is the
    share of these that must go, by blocks that go, those of least loss, and a group of up to four that shares where a
    whole block would be more than is asked; sharing is not asked, and rank grows to what is left of the budget.
    representative: whose weights a group takes, 'first', 'mean', 'least-loss', or the 'regression' of what its members
    read, which alone learns in the cure, at a fifth of the rate. start: of the adapters, 'zero', 'svd' (Relaxed
    Recursive Transformers), or 'activations', the best for what they read. recovery: the cure learns from the text and
    the teacher's 'tail' or 'logits', or from the text alone, 'plain'. gate_steps, cure_steps: updates of each stage.
    hold: part of the gates' steps in which they are soft and learn, before they polarise. beta: weight of the
    distillation. lr: the cure's highest rate, which falls along a cosine. gradient_checkpointing: in the cure a
    block's states are computed again where they are needed, not kept: slower, in less memory.
    """

    removal: float = 1 / 3
    sharing: float = 1 / 12
    rank: int = 4
    ranking: str = "gates"
    representative: str = "regression"
    start: str = "activations"
    recovery: str = "tail"
    gate_steps: int = 24
    hold: float = 0.8
    cure_steps: int = 60
    beta: float = 1.0
    lr: float = 2e-3
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        validate(
            self,
            removal=real(0, 1),
            sharing=real(0, 0.5),
            rank=integer(0),
            ranking=one_of("gates", "hard-concrete", *UNITS, *BASELINES),
            representative=one_of(*REPRESENTATIVES),
            start=one_of(*STARTS),
            recovery=one_of("tail", "logits", "plain"),
            gate_steps=integer(1),
            hold=real(0, 0.95),
            cure_steps=integer(0),
            beta=real(0),
            lr=real(above=0),
            gradient_checkpointing=one_of(False, True),
        )

    @classmethod
    def paper(cls, name: str) -> "FoldGPT":
        """Settings for the paper's models: 'llama-2-7b', 'gemma-2b', 'tinyllama'.

        The paper's own rates and hyper-parameters could not be had: blocks removed and shared are ours, for 36, 31
        and 32 % fewer parameters before adapters.
        """
        rates = {"llama-2-7b": (6 / 32, 6 / 32), "gemma-2b": (3 / 18, 4 / 18), "tinyllama": (4 / 22, 4 / 22)}
        if name not in rates:
            raise ValueError(f"name={name!r}: settings are kept for {', '.join(rates)}")
        removal, sharing = rates[name]
        return cls(removal=removal, sharing=sharing, rank=8, gate_steps=300, cure_steps=3000, lr=2e-4)

    def run(
        self,
        task: Task | None = None,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> FoldGPTOutcome:
        """Fold the task's model and cure it; the model passed in is not changed."""
        task = tasks.prose() if task is None else task
        with running(self, task, seed, device, checkpoint, progress, validate_suits, True, True) as run:
            teacher = learnable(run.model)
            sizes, removals, sharing = self._counts(teacher)
            calibration = tuple(_tokens(run, batch) for batch in islice(iter(task.batches), CALIBRATION))
            alike = of_states(eq.similarity, teacher, calibration)  # (N + 1, N + 1)
            moves: tuple[FoldMove, ...] = ()
            trace: list[Step] = []
            if self.ranking in UNITS:
                fold, moves = self._search(teacher, sizes, calibration)
                ranking, history = order(fold, moves), torch.zeros(0, sizes.N)
            else:
                ranking, history, trace = self._rank(run, removals, calibration)
                fold = self._fold(ranking, removals, sharing, alike.cpu())
            torch.manual_seed(seed)  # equal folds are cured on equal batches, whatever their ranking has drawn
            student = shared(teacher, fold, self.representative, self.start, calibration)
            attempts = Attempts()
            raw = attempts(f"{task.metric}, not cured", task.measure, student)
            cured = self._cure(run, student)
            trace += cured
            if self.cure_steps and not cured:
                attempts.notes.append("all norms and matrices of its blocks are frozen: not cured")
            report = reported(repr(self), self._report, run, student, sizes, fold, raw, attempts)
        return FoldGPTOutcome(
            recipe=self,
            report=report,
            trace=tuple(trace),
            model=student,
            ranking=ranking,
            fold=fold,
            moves=moves,
            gates=history,
            similarity=alike.cpu(),
            tokenizer=getattr(task, "tokenizer", None),
            **run.provenance(),
        )

    def _counts(self, model: nn.Module) -> tuple[Sizes, int, int]:
        """The model's sizes, how many blocks go, how many pairs share; ValueError where that cannot be, or be saved."""
        sizes = Sizes.of(model)
        removals = 1 if self.ranking in UNITS else round(self.removal * sizes.N)
        if removals >= sizes.N:
            raise ValueError(
                f"removal={self.removal} takes all {sizes.N} blocks: give at most {(sizes.N - 1) / sizes.N:.3g}"
            )
        if self.gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", False):
            raise ValueError(f"{type(model).__name__} keeps all its states: give gradient_checkpointing=False")
        wanted = round((self.removal if self.ranking == "bytes" else self.sharing) * sizes.N)
        sharing = 0 if experts(model) or self.ranking == "operations" else wanted
        if removals:  # what cannot be cut is refused before anything is trained
            validate_kept(model, tuple(range(1, sizes.N)))
        if removals or sharing:
            validate_foldable(model, removals, bool(sharing))
        return sizes, removals, sharing

    def _fold(self, ranking: tuple[int, ...], removals: int, sharing: int, alike: Tensor) -> Fold:
        """The last of the ranking are kept; of these the neighbours most alike (N + 1, N + 1) share in pairs."""
        kept = tuple(sorted(ranking[removals:]))
        groups = pairs(kept, alike, sharing)
        return Fold(kept, groups, self.rank if groups else 0)

    def _search(
        self, teacher: nn.Module, sizes: Sizes, calibration: tuple[Example, ...]
    ) -> tuple[Fold, tuple[FoldMove, ...]]:
        """The fold within the budget, and what every move costs alone."""
        sharing = self.ranking == "bytes" and not experts(teacher)
        asked = sharing and ("regression" == self.representative or self.start == "activations")
        return searched(
            FoldSearch(
                model=teacher,
                batches=calibration,
                saved=saver(sizes, self.ranking),
                goal=self.removal,
                rank=self.rank,
                representative=self.representative,
                start=self.start,
                seen=inputs_seen(teacher, range(sizes.N), calibration) if asked else {},
                sharing=sharing,
            )
        )

    def _rank(
        self, run: Run, removals: int, calibration: tuple[Example, ...]
    ) -> tuple[tuple[int, ...], Tensor, list[Step]]:
        """Blocks from the first to go, gates over the training (steps, N), and the stage's steps."""
        teacher = run.model
        if self.ranking in BASELINES:
            return BASELINES[self.ranking](teacher, calibration, removals), torch.zeros(0, len(blocks(teacher))), []
        learned, sgd = self._gates(len(blocks(teacher)), removals, run.device)
        fall = torch.optim.lr_scheduler.LambdaLR(
            sgd, lambda step: max(0.0, 1 - step / max(1.0, self.hold * self.gate_steps))
        )
        stage = run.stage("gates", gates=learned, sgd=sgd, fall=fall)

        def terms(batch: Any) -> dict[str, Tensor]:
            x = inputs(_tokens(run, batch))  # (N, T)
            with torch.no_grad():
                ungated = text.logits(call(teacher, x))  # (N, T, V)
            t = len(stage.trace) / self.gate_steps
            with gates(teacher, learned(t)):  # all blocks at once, weights frozen
                kl = eq.logit_distillation(text.logits(call(teacher, x)), ungated)
            return {"kl": kl, **dict(learned.penalties(t))}

        with learning(teacher.parameters(), False):
            for step in descend(
                terms, run.task.batches, sgd, stage, steps=self.gate_steps, schedule=fall, progress=run.progress
            ):
                learned.note(step.index, (step.index + 1) / self.gate_steps)
        return learned.ranking(), learned.history.cpu(), list(stage.trace)

    def _gates(
        self, N: int, removals: int, device: torch.device
    ) -> tuple[Gates | HardConcreteGates, torch.optim.Optimizer]:
        """The gates that learn, and what moves them."""
        if self.ranking == "hard-concrete":
            hard = HardConcreteGates(N, removals, self.gate_steps).to(device)
            return hard, torch.optim.Adam(hard.parameters(), 0.5)  # far enough to shut a gate in some ten steps
        soft = Gates(N, removals, self.gate_steps, self.hold).to(device)
        return soft, torch.optim.SGD(soft.parameters(), 1.0)  # the unit is their own spread: only the fall counts

    def _cure(self, run: Run, student: nn.Module) -> list[Step]:
        """Train norms and adapters in place; blocks that share nothing have theirs merged at the end.

        What was pruned in them stays 0: a merge leaves it out.
        """
        if not self.cure_steps:
            return []
        zeros = Zeros(student.parameters())
        adapt_alone(student, LONE_RANK)
        learned = trainable(student)
        steps = self._train(run, student, learned) if learned else []
        for block in alone(student):
            merge(block)
        zeros.apply()
        return steps

    def _train(self, run: Run, student: nn.Module, learned: list[nn.Parameter]) -> list[Step]:
        """Train these parameters of the student in place, on the text and under the teacher; it ends in eval mode."""
        teacher = run.model
        slower = in_groups(student) if self.representative == "regression" else []
        apart = {id(p) for p in slower}
        parts: list[dict[str, Any]] = [
            {"params": [p for p in learned if id(p) not in apart]},
            {"params": slower, "lr": self.lr * SHARED_LR},
        ]
        adam = torch.optim.AdamW([part for part in parts if part["params"]], self.lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.cure_steps)
        stage = run.stage("cure", student=student, adam=adam, schedule=schedule)
        student.train()
        none, but_these = learning(student.parameters(), False), learning([*learned, *slower], True)
        again = checkpointed(student, self.gradient_checkpointing)
        with recorded(student) as student_states, recorded(teacher) as teacher_states, none, but_these, again:

            def terms(batch: Any) -> dict[str, Tensor]:
                x = _tokens(run, batch)  # (N, T)
                output = call(student, inputs(x))
                losses = {"text": text.next_token_loss(output, text.targets(x))}
                if self.beta and self.recovery != "plain":
                    with torch.no_grad():
                        target = call(teacher, inputs(x))
                    losses[self.recovery] = self.beta * (
                        eq.tail(student_states[-1], teacher_states[-1])  # (N, T, d), behind the last block of each
                        if self.recovery == "tail"
                        else eq.logit_distillation(text.logits(output), text.logits(target))
                    )
                return losses

            for _ in descend(
                terms, run.task.batches, adam, stage, steps=self.cure_steps, schedule=schedule, progress=run.progress
            ):
                pass
        student.eval()
        return list(stage.trace)

    def _report(
        self, run: Run, student: nn.Module, sizes: Sizes, fold: Fold, raw: float | None, attempts: Attempts
    ) -> Report:
        task, teacher, cache = run.task, run.model, sizes.cache // sizes.N
        cured = attempts(task.metric, task.measure, student) if self.cure_steps else raw
        rows = [
            Row("parameters", sizes.P0, sum(p.numel() for p in student.parameters())),
            Row("blocks", sizes.N, len(fold.kept)),
            Row("macs", *attempts.pair("macs", cost.macs, teacher, student, run.example)),
            Row("bytes", cost.bytes_stored(teacher), cost.bytes_stored(student), "B"),
            Row("cache bytes a token", sizes.cache, cache * len(fold.kept), "B in 16 bits"),
            Row(task.metric, run.before, cured, task.unit, "learned", 2),
            Row(f"{task.metric}, not cured", None, raw, task.unit, "learned", 2),
        ]
        questions = measures.questions(getattr(task, "text", ()))
        if questions:
            tokenizer = getattr(task, "tokenizer", None)
            right = attempts.pair("next word of four", measures.accuracy, teacher, student, tokenizer, questions)
            rows.append(Row("next word of four", *right, "%", "learned", 1))
        gone = sorted(set(range(sizes.N)) - set(fold.kept))
        notes = [f"blocks removed: {gone}; sharing: {[list(group) for group in fold.groups]}; numbered from 0"]
        if experts(student):
            notes.append("blocks with experts are removed and not shared; the cure leaves the experts as they are")
        notes += [note] if (note := emulation(student)) else []
        return Report(repr(self), tuple(rows), (*notes, *attempts.notes))


def _tokens(run: Run, batch: Any) -> Example:
    """The token numbers of a batch on the run's device: (N, T), or a dictionary of what the model takes and labels."""
    x = moved(run.task.inputs_of(batch), run.device)
    labels = run.task.labels_of(batch) if isinstance(batch, Mapping) or run.task.labels is not None else None
    if labels is None:
        return x
    return {**(x if isinstance(x, dict) else {"input_ids": x}), "labels": labels.to(run.device)}


@contextmanager
def checkpointed(model: Any, wanted: bool) -> Iterator[None]:
    """Where wanted, for a block, a model's blocks are computed again in the backward pass instead of kept."""
    if not wanted:
        yield
        return
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    try:
        yield
    finally:
        (getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable)()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """What the cure learns: adapters and the norms within blocks, but for what is frozen and what experts hold."""
    modules = [module for block in blocks(model) for module in block.modules() if not is_linear(module)]
    return [
        p
        for module in modules
        for p in module.parameters(recurse=False)
        if p.requires_grad and (p.ndim < 2 or isinstance(module, LowRank))
    ]


def in_groups(model: Any) -> list[nn.Parameter]:
    """What blocks that share have besides norms, each once: the matrices of their group, and their adapters."""
    fold = getattr(model.config, "fold", None) or {"groups": []}
    members = [blocks(model)[layer] for group in fold["groups"] for layer in group]
    modules = [module for block in members for module in block.modules()]
    held = [
        p for module in modules if is_linear(module) or isinstance(module, LowRank) for p in module.parameters(False)
    ]
    return [*{id(p): p for p in held if p.requires_grad}.values()]
