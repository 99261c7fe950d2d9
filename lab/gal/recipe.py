"""GAL's procedure: two players train the masks without labels, zeros are removed, labels fine-tune what is left."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import StepLR

from ..core import cost, tasks
from ..core.batch import call, moved, shapes_of, vector, vectors
from ..core.fields import by_name, integer, one_of, real, some_of, validate
from ..core.finetune import finetune_stage, has_labels, sgd, validate_batches, validate_classes, validate_labels
from ..core.graph import surgery
from ..core.graph.operators import NORMS
from ..core.report import Attempts, Report, Row, grouped_by_reason, reported
from ..core.running import Run, running
from ..core.task import Task
from ..core.training import Step, descend
from . import equations as eq
from .budget import Budget
from .layers import Discriminator, Fista, MaskHistory
from .outcome import GALOutcome
from .players import ADVERSARIES, Adversary
from .structures import KINDS, UNITS, Masked, fold, insert_masks, plan

RELEASED = (
    "l1_in_gradient",
    "grad_at_current",
    "normal_masks",
    "uniform_masks",
    "affine_discriminator",
    "batch_statistics",
    "raw_outputs",
)
SNAPSHOTS = 120  # the most mask states that an outcome keeps
FOLLOW = 15  # towards a `macs_ratio`, weights follow each round for one in so many updates of the masks


@by_name
@dataclass(frozen=True, kw_only=True)
class GAL:
    """Generative adversarial learning of what to prune (Lin et al., CVPR 2019, arXiv 1903.09291).

    lam: weight of ||m||_1; more prunes more. mu: weight of the data loss, the share of the original output's variance
    that G misses. units: which structures are masked, of 'channel' (whatever layers write: filters, heads of an
    attention, hidden units of an MLP), 'block', 'branch', 'input', and 'stream' (the channels of a residual stream).
    adversary: the discriminator's regulariser, 'AR', 'L1', 'L2' or 'none'; 'off' plays without a discriminator. steps,
    lr: updates and rate of the pruning stage; mask_lr, mask_every: FISTA's own rate, and how many steps lie between its
    updates; clip: the largest norm of a step's gradient, over G's weights and over its masks, None for no limit.
    macs_ratio: how many times fewer multiply-adds shall be left (ours): masks then close in rounds, the weights follow
    each, and lam and mask_lr are relative to what each entry loses; None for the paper's procedure, in which lam alone
    decides.
    finetune_steps, finetune_lr: the stage with labels. released: behaviours of the authors' code to switch on, of
    RELEASED. Both rates fall tenfold each 30 % of a stage, with a `macs_ratio` counted from the last round on.
    """

    lam: float = 0.07
    mu: float = 10.0
    units: tuple[str, ...] = ("channel", "block")
    adversary: str = "AR"
    steps: int = 600
    lr: float = 0.01
    mask_lr: float = 0.03
    mask_every: int = 2
    macs_ratio: float | None = None
    clip: float | None = 10.0
    finetune_steps: int = 500
    finetune_lr: float = 0.05
    released: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("units", "released"):
            value = getattr(self, name)
            if isinstance(value, (str, list)):
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        validate(
            self,
            lam=real(0),
            mu=real(0),
            units=some_of(*UNITS, least=1),
            adversary=one_of(*ADVERSARIES),
            steps=integer(1),
            lr=real(above=0),
            mask_lr=real(above=0),
            macs_ratio=real(above=1) if self.macs_ratio is not None else one_of(None),
            clip=real(above=0) if self.clip is not None else one_of(None),
            finetune_steps=integer(0),
            finetune_lr=real(above=0),
            released=some_of(*RELEASED),
        )
        validate(self, mask_every=integer(1, self.steps))
        if {"normal_masks", "uniform_masks"} <= {*self.released}:
            raise ValueError(f"released={self.released} is not allowed: masks start 'normal_masks' or 'uniform_masks'")

    @classmethod
    def paper(cls, name: str) -> "GAL":
        """The published settings by network: 100 epochs of CIFAR-10 each stage, masks updated each 200th step.

        Masks start where the release draws them: with these rates few that start at 1 could close.
        """
        # network: lam, mu, unit, batch size of the 50,000 training pictures, start of the masks
        published = {
            "resnet56": (0.6, 1.0, "block", 128, "normal_masks"),
            "vgg16": (0.05, 0.1, "channel", 128, "normal_masks"),
            "googlenet": (0.05, 0.1, "branch", 64, "normal_masks"),
            "densenet40": (0.01, 0.1, "input", 64, "uniform_masks"),
        }
        if name not in published:
            raise ValueError(f"name={name!r}: the paper's settings are kept for {', '.join(published)}")
        lam, mu, unit, batch, start = published[name]
        steps = 100 * -(-50_000 // batch)
        return cls(
            lam=lam,
            mu=mu,
            units=(unit,),
            steps=steps,
            lr=0.01,
            mask_lr=0.01,
            mask_every=200,
            clip=None,
            finetune_steps=steps,
            finetune_lr=1e-4,
            released=("raw_outputs", start),
        )

    def run(
        self,
        task: Task | None = None,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> GALOutcome:
        """Prune the task's network (Algorithm 1) and fine-tune what is left; the network passed in is not changed."""
        task = tasks.digits() if task is None else task
        with running(self, task, seed, device, checkpoint, progress, several=True) as run:
            if self.finetune_steps:
                validate_labels(task)
                validate_batches(task)
            masked = insert_masks(run.model, self.units, run.example)
            trace, history = self._prune(run, masked)
            removal, empty = plan(masked)
            model = surgery.remove(fold(masked), removal, run.example)  # folded masks are weights, zeros are cut out
            attempts = Attempts()
            untuned = attempts(f"{task.metric} before fine-tuning", task.measure, model)
            if self.finetune_steps and has_labels(task):
                trace += finetune_stage(run, model, self.finetune_steps, self.finetune_lr)
            report = reported(repr(self), self._report, run, masked, model, untuned, empty, attempts)
        return GALOutcome(
            recipe=self,
            report=report,
            trace=tuple(trace),
            model=model,
            plan=removal,
            structures=masked.structures,
            history=history,
            base=run.base,
            **run.provenance(),
            example=shapes_of(run.example),
        )

    def _prune(self, run: Run, masked: Masked) -> tuple[list[Step], Tensor]:
        """Stage 1, without labels: D and G play, FISTA closes the masks. The mask entries over time are the history."""
        G, masks = masked.model, masked.masks()
        self._start(masks)
        adversary = self._adversary(run)
        weights = [p for p in G.parameters() if not any(p is m for m in masks)]  # SGD moves these, FISTA the masks
        optimiser, schedule = sgd(weights, self.lr, self.steps)
        optimiser.register_step_pre_hook(lambda *_: self._clip(weights, masks))
        budget = Budget(masked, run.example, self.macs_ratio, self.steps // self.mask_every // FOLLOW)
        optimiser.register_step_pre_hook(lambda *_: budget.hold(weights))
        fista = Fista(masks, "grad_at_current" not in self.released, is_bounded=bool(budget.limits))
        history = MaskHistory(masks, every=max(1, self.steps // SNAPSHOTS))
        is_labelled = self.finetune_steps > 0 and has_labels(run.task)
        stage = run.stage(
            "prune",
            G=G,
            D=adversary.D,
            optimiser_G=optimiser,
            optimiser_D=adversary.optimiser,
            schedule=schedule,
            schedule_D=adversary.schedule,
            fista=fista,
            history=history,
            budget=budget,
        )

        def play(batch: Any) -> dict[str, Tensor]:
            x = moved(run.task.inputs_of(batch), run.device)  # (N, C, H, W)
            with torch.no_grad():
                output = call(run.model, x)
            if is_labelled:
                validate_classes(run.task, output, run.task.labels_of(batch))  # now, not after the whole stage
            sigmas = self._sigmas(vectors(output))

            def scaled(heads: list[Tensor]) -> list[Tensor]:
                return [f / sigma for f, sigma in zip(heads, sigmas, strict=True)]

            budget.begin(lambda: torch.cat(scaled(vectors(call(G, x))), 1), self.mu)
            f_b, f_g = scaled(vectors(output)), scaled(vectors(call(G, x)))
            return self._round(f_b, f_g, masks, adversary, budget.lams(self.lam))

        # FISTA takes its gradient at y, Card (10): masks look ahead before the step in which they are due, Card (11) is
        # taken behind it, and the masks stand still until the next.
        self._training(G, budget)
        if self._mask_due(len(stage.trace)):
            fista.look_ahead()
        falls = None if budget.limits else schedule  # towards a budget the rates fall behind the last round
        for step in descend(
            play, run.task.batches, optimiser, stage, steps=self.steps, schedule=falls, progress=run.progress
        ):
            if self._mask_due(step.index):
                if budget.is_closing or not budget.limits:
                    fista.step(budget.rates(self._mask_rate(schedule)), budget.lams(self.lam), budget.closed)
                if budget.limits:
                    budget.update(fista)
                    self._training(G, budget)
                self._validate_survivors(fista, step)
            if self._mask_due(step.index + 1):
                fista.look_ahead()
            if budget.limits and budget.is_over:
                schedule.step()
            if self.adversary != "off":
                adversary.schedule.step()
            history.note(step.index, fista.now)
        fista.settle()
        return list(stage.trace), history.states()

    def _round(
        self, f_b: list[Tensor], f_g: list[Tensor], masks: list[nn.Parameter], adversary: Adversary, lams: list[float]
    ) -> dict[str, Tensor]:
        """One round on output vectors (N, classes), one a head: D learns to tell them apart, then G's losses."""
        losses = [eq.data_loss(b, g) for b, g in zip(f_b, f_g, strict=True)]
        terms = {"data": self.mu * torch.stack(losses).mean()}
        if self.adversary != "off":
            b, g = torch.cat(f_b, 1), torch.cat(f_g, 1)
            adversary.learn(b, g.detach())  # D's update must not reach G
            terms["adversary"] = adversary.generator_loss(g)
        if "l1_in_gradient" in self.released:
            terms["sparsity"] = torch.stack([eq.sparsity(m, lam) for m, lam in zip(masks, lams, strict=True)]).sum()
        for m in masks:  # G's optimiser does not hold them: FISTA takes the gradient of the round that comes
            m.grad = None
        return terms

    def _sigmas(self, f_b: list[Tensor]) -> list[Tensor | int]:
        """Card (12) of each head: scalars, so that one mu fits all networks."""
        return [1 if "raw_outputs" in self.released else eq.output_scale(f) for f in f_b]

    def _adversary(self, run: Run) -> Adversary:
        """A fresh D for output vectors of the network's size: all tensors that it gives, side by side."""
        with torch.no_grad():
            output = vector(call(run.model, run.example))
        D = Discriminator(output.shape[1], affine="affine_discriminator" in self.released)
        D.to(run.device, output.dtype)
        return Adversary(D, *sgd(D.parameters(), self.lr, self.steps), self.adversary)

    def _training(self, G: fx.GraphModule, budget: Budget) -> None:
        """Put G in training mode, but its batch norms on the baseline's statistics while masks shrink.

        On batch statistics a mask in front of a batch norm could shrink at no cost: the norm undoes every scale. Where
        a budget has been reached nothing shrinks any more, and the norms learn what is left.
        """
        G.train()
        if (self.macs_ratio is None or budget.is_closing) and "batch_statistics" not in self.released:
            for module in G.modules():
                if isinstance(module, NORMS):
                    module.eval()

    def _start(self, masks: list[nn.Parameter]) -> None:
        """Masks that are 1 are left so, or drawn as the release draws them."""
        for m in masks:
            if "normal_masks" in self.released:
                nn.init.normal_(m).data.clamp_(min=0)
            elif "uniform_masks" in self.released:
                nn.init.uniform_(m)

    def _mask_rate(self, schedule: StepLR) -> float:
        """FISTA's rate, which falls with that of the weights: tenfold each 30 % of the stage."""
        return self.mask_lr * float(schedule.get_last_lr()[0]) / self.lr

    def _clip(self, *players: list[nn.Parameter]) -> None:
        """Weights and masks each by their own norm: a steep loss of weights must not weaken what holds masks open."""
        if self.clip is not None:
            for parameters in players:
                clip_grad_norm_(parameters, self.clip)

    def _mask_due(self, index: int) -> bool:
        """Whether the masks are updated behind the step of this index: each `mask_every`-th."""
        return (index + 1) % self.mask_every == 0

    def _validate_survivors(self, fista: Fista, step: Step) -> None:
        """Raise a one-line ValueError where every entry of every mask is closed."""
        zeros, entries = fista.zeros()
        if zeros == entries:
            raise ValueError(
                f"lam={self.lam}: all {entries} mask entries are 0 after step {step.index}, nothing is left "
                f"(data loss {step.terms['data']:.3g}); lower lam (a tenth, say), mask_lr or lr"
            )

    def _report(
        self,
        run: Run,
        masked: Masked,
        model: fx.GraphModule,
        untuned: float | None,
        empty: tuple[str, ...],
        attempts: Attempts,
    ) -> Report:
        task, baseline, example = run.task, run.model, run.example
        before, tuned = run.before, attempts(task.metric, task.measure, model)
        macs = Row("macs", *attempts.pair("macs", cost.macs, baseline, model, example))
        rows = [
            *_counts(masked, model),
            Row("parameters", cost.parameters(baseline), cost.parameters(model)),
            macs,
            Row("bytes", cost.bytes_stored(baseline), cost.bytes_stored(model), "B"),
            Row("latency", *attempts.times(baseline, model, example), "ms", "timed", 2),
            Row(f"{task.metric} before fine-tuning", before, untuned, task.unit, "learned"),
            Row(task.metric, before, tuned, task.unit, "learned"),
        ]
        return Report(repr(self), tuple(rows), (*self._notes(task, masked, model, empty, macs), *attempts.notes))

    def _notes(self, task: Task, masked: Masked, model: nn.Module, empty: tuple[str, ...], macs: Row) -> list[str]:
        notes = grouped_by_reason("left dense, since", masked.dense)
        alive = {name for name, _ in model.named_modules()}
        if dead := [name for name in empty if name in alive]:
            notes.append(f"wholly masked, kept with one dead channel: {', '.join(dead)}")
        if not has_labels(task):
            notes.append("the batches hold no labels: not fine-tuned")
        if self.macs_ratio is not None and macs.ratio < self.macs_ratio:
            short = f"macs_ratio={self.macs_ratio} was not reached: {macs.ratio:.1f}x"
            notes.append(f"{short}; raise lam, mask_lr or steps")
        if self.steps // self.mask_every < 100:
            notes.append(f"only {self.steps // self.mask_every} mask updates: fewer than about 100 rarely settle")
        return notes


def _counts(masked: Masked, model: fx.GraphModule) -> list[Row]:
    """One row a unit: how many of its entries there were and how many of them the smaller network still has."""
    alive = {name for name, _ in model.named_modules()}
    rows = []
    for unit in KINDS:
        entries = [(s, m) for s, m in zip(masked.structures, masked.masks(), strict=True) if s.unit == unit]
        if entries:
            kept = sum(max(int((m > 0).sum()), int(m.numel() > 1)) for s, m in entries if s.name in alive)
            rows.append(Row(f"{unit}s" if unit != "branch" else "branches", sum(s.entries for s, _ in entries), kept))
    return rows
