"""SparseByteNN's procedure: blocks go gradually while rows are regrouped, then the pattern is frozen and distilled."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..core import cost, kernels, tasks
from ..core.batch import Example, call, logits_of, moved, shapes_of, vector
from ..core.fields import by_name, integer, one_of, real, validate
from ..core.finetune import has_labels, validate_batches, validate_labels
from ..core.graph.channels import Channels
from ..core.graph.slices import Slice
from ..core.graph.tracing import trace
from ..core.report import Attempts, Report, Row, grouped_by_reason, reported
from ..core.running import Run, running
from ..core.task import Task
from ..core.training import Step, descend
from . import engine
from . import equations as eq
from .outcome import SparseByteNNOutcome
from .pattern import Pattern, retained
from .rearrange import Block, Ground, moves, rearranged, survey
from .runtime import Engine, race

BLOCKS = (1, 4, 8, 16, (1, 4), (1, 8), (1, 16), (4, 4), (8, 8), (16, 16))


@by_name
@dataclass(frozen=True, kw_only=True)
class SparseByteNN:
    """Fine-grained kernel sparsity with whole-network rearrangement (after the abstract of arXiv 2310.19509).

    sparsity: the share of prunable blocks that is removed, up to 0.95; 0 only trains, as the dense control. block: the
    rows of a block of one input, 1, 4, 8 or 16, as the engine leaves out in fp32; or its (rows, inputs), one of them 1
    or both alike, of which it leaves out (4, 4) in int8. budget: 'layer' removes the same share of every layer,
    'global' ranks all blocks together. search: how rows are ordered, 'none', 'sort', 'greedy' or 'swaps'. score: what
    ranks blocks, 'magnitude' or, as a control, 'random'. steps, lr: updates and rate, which falls to zero along a
    cosine. ramp: the share of steps in which sparsity rises; regroup_every: how many steps lie between new orders and
    masks until then. distil, temperature: weight and temperature of the loss against the dense network.
    """

    sparsity: float = 0.3
    block: Block = 4
    budget: str = "layer"
    search: str = "greedy"
    score: str = "magnitude"
    steps: int = 400
    lr: float = 0.003
    ramp: float = 0.5
    regroup_every: int = 20
    distil: float = 4.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if isinstance(self.block, (tuple, list)):
            rows, inputs = self.block[:1], tuple(self.block[1:])
            object.__setattr__(self, "block", rows[0] if inputs == (1,) else (*rows, *inputs))
        validate(
            self,
            sparsity=real(0, eq.CAP),
            block=one_of(*BLOCKS),
            budget=one_of("layer", "global"),
            search=one_of("none", "sort", "greedy", "swaps"),
            score=one_of("magnitude", "random"),
            steps=integer(1),
            lr=real(above=0),
            ramp=real(0, 1),
            regroup_every=integer(1),
            distil=real(0),
            temperature=real(above=0),
        )

    @classmethod
    def paper(cls, name: str) -> "SparseByteNN":
        """What the paper's abstract fixes: MobileNet-v1 at 30 % sparsity. Every other setting is ours."""
        published = {"mobilenet_v1": 0.3}
        if name not in published:
            raise ValueError(f"name={name!r}: the paper's abstract names {', '.join(published)} only")
        return cls(sparsity=published[name])

    def run(
        self,
        task: Task | None = None,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> SparseByteNNOutcome:
        """Prune the task's network in blocks and rearrange it; the network passed in is not changed."""
        task = tasks.digits(size=32, channels=3) if task is None else task
        with running(self, task, seed, device, checkpoint, progress, several=True) as run:
            validate_labels(task)
            validate_batches(task)
            dense, example = run.model, run.example
            model = trace(dense, example)
            channels = Channels(model)
            ground = survey(model, self.block, channels)
            # masks: layer -> (OC / rows, IC / inputs), orders: class -> (C,); rows stay where they are in training
            pattern = Pattern(channels, ground, self.block, self.budget, self.search, self.score == "random")
            rearranged(deepcopy(model), moves(channels, pattern.orders), example)  # refused before training
            saliencies = {name: eq.saliency(w).cpu() for name, w in pattern.weights.items()}  # layer -> (OC, IC)
            steps = self._train(run, model, pattern)
            parts = moves(channels, pattern.orders)  # columns follow the rows of the layer that they read
            columns = {name: part.columns for name, part in parts.items() if isinstance(part, Slice)}
            masks = {name: M if pattern.inputs > 1 else M[:, columns[name]] for name, M in pattern.masks.items()}
            model = rearranged(deepcopy(model), parts, example)
            report = reported(repr(self), self._report, run, model, ground, pattern, saliencies)
        return SparseByteNNOutcome(
            recipe=self,
            report=report,
            trace=tuple(steps),
            model=model,
            masks=masks,
            orders=pattern.orders,
            classes=ground.classes,
            saliencies={name: S.half() for name, S in saliencies.items()},
            base=run.base,
            **run.provenance(),
            example=shapes_of(example),
        )

    def _train(self, run: Run, model: fx.GraphModule, pattern: Pattern) -> list[Step]:
        """Prune and distil in place: after every update the masked weights are 0 again, whatever momentum adds."""
        task, dense, device, labels = run.task, run.model, run.device, has_labels(run.task)
        if not labels and not self.distil:
            raise ValueError(
                "SparseByteNN: distil=0 and the batches hold no labels: nothing to learn from, raise distil"
            )
        optimiser = SGD(model.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)
        schedule = CosineAnnealingLR(optimiser, self.steps)
        optimiser.register_step_post_hook(pattern.apply)  # what momentum and weight decay put there goes again
        stage = run.stage("prune", model=model, optimiser=optimiser, schedule=schedule, pattern=pattern)

        def terms(batch: Any) -> dict[str, Tensor]:
            x = moved(task.inputs_of(batch), device)
            loss, z = task.fit(model, batch) if labels else (None, call(model, x))
            losses = {"task": loss} if loss is not None else {}
            if self.distil:
                with torch.no_grad():
                    z_dense = call(dense, x)  # (B, classes), as z
                losses["distil"] = self.distil * self._distance(task, z, z_dense)
            return losses

        if not stage.trace:
            self._advance(pattern, 0)
        _lay_out(model.train(), torch.channels_last)  # depthwise gradients are twice as fast on a processor
        for step in descend(
            terms, task.batches, optimiser, stage, steps=self.steps, schedule=schedule, progress=run.progress
        ):
            self._advance(pattern, step.index + 1)
        _lay_out(model.eval(), torch.contiguous_format)
        return list(stage.trace)

    def _advance(self, pattern: Pattern, t: int) -> None:
        """After t updates: regroup and prune to s_t where that is due, never again once s is reached.

        Orders are searched for the final share s from the first step on, masks for the share s_t of now.
        """
        n = round(self.ramp * self.steps)
        if self.sparsity and t <= n and (t == n or t % self.regroup_every == 0):
            pattern.regroup(self.sparsity)
            pattern.prune(eq.cubic(self.sparsity, t, n) if n else self.sparsity)

    def _distance(self, task: Task, z: Any, z_dense: Any) -> Tensor:
        """How far an output is from the dense network's: by Card (12) for classes, else the mean squared error."""
        z, z_dense = logits_of(z), logits_of(z_dense)
        if task.metric == "accuracy" and isinstance(z, Tensor):
            return eq.distillation(z, z_dense, self.temperature)
        return nn.functional.mse_loss(vector(z), vector(z_dense))

    def _report(
        self, run: Run, model: fx.GraphModule, ground: Ground, pattern: Pattern, saliencies: dict[str, Tensor]
    ) -> Report:
        task, attempts, dense, example = run.task, Attempts(), run.model, run.example
        zeros = {
            f"{name}.weight": int(gone.expand_as(pattern.weights[name]).sum()) for name, gone in pattern.gone.items()
        }
        parameters, macs = cost.parameters(dense), attempts("macs", cost.macs, dense, example)
        left = None if macs is None else attempts("macs", cost.macs_without, model, example, zeros)
        kept, blocks = pattern.blocks()
        arranged = {name: pattern.arranged(name, S) for name, S in saliencies.items()}
        before, after = (100 * retained(S, self.block, self.sparsity) for S in (saliencies, arranged))
        rows = [
            Row("parameters", parameters, parameters - sum(zeros.values())),
            Row("macs", macs, left),
            Row("blocks", blocks, kept),
            Row("sparsity", 0.0, 100 * (1 - kept / blocks), "%", "learned", 2),
            Row("retained magnitude", before, after, "%", "learned"),
            Row("bytes", *attempts.pair("bytes", cost.bytes_stored, dense, model), "B"),
            Row(task.metric, run.before, attempts(task.metric, task.measure, model), task.unit, "learned"),
        ]
        rows += _engine_rows(attempts, model, example)
        return Report(repr(self), tuple(rows), tuple(self._notes(task, ground) + attempts.notes))

    def _notes(self, task: Task, ground: Ground) -> list[str]:
        notes = [
            "parameters, macs: without what is pruned; retained magnitude: of the dense weights, before rearranging"
        ]
        notes += grouped_by_reason("left dense,", ground.dense)
        if self.search != "none":
            notes += grouped_by_reason("pruned with rows as they came,", ground.fixed)
        if not has_labels(task):
            notes.append("the batches hold no labels: trained on the dense network's answers alone")
        return notes


def _lay_out(model: nn.Module, form: torch.memory_format) -> None:
    """Give the weights of 2d convolutions another layout in memory; tensors of five axes could not take it."""
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d):
            conv.to(memory_format=form)  # type: ignore[call-overload]


def _engine_rows(attempts: Attempts, model: fx.GraphModule, example: Example) -> list[Row]:
    """The engine's file and its time, with the zeros and without; or a note that says why there is none."""
    engines = attempts("not packed", _engines, model, example)
    if engines is None:
        return []
    dense, sparse = (len(made.data) for made in engines)
    rows = [Row("packed bytes", dense, sparse, "B")]
    if kernels.backend() == "c" and (times := attempts("latency", _times, *engines)) is not None:
        rows.append(Row("latency", *times, "ms", "timed", 2))
    return rows


def _engines(model: fx.GraphModule, example: Example) -> tuple[Engine, Engine]:
    """The dense network and the sparse one, packed."""
    sparse = engine.compile(model, example, strict=True, measure=False)
    return engine.with_zeros(sparse), sparse


def _times(dense: Engine, sparse: Engine) -> tuple[float, float]:
    dense_ms, sparse_ms = race(dense, sparse)
    return dense_ms, sparse_ms
