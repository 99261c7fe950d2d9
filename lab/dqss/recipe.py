"""DQSS's procedure: calibrate all strategies, learn which one each tensor gets, keep one a tensor, and tell the gap."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx

from ..core import cost, tasks
from ..core.batch import Example, each, joined, moved, size, split, tensors
from ..core.fields import by_name, integer, one_of, real, some_of, validate
from ..core.finetune import has_labels, validate_labels
from ..core.models import validate_precision
from ..core.quantisation.bn_folding import fold_batch_norms
from ..core.report import Attempts, Report, Row, grouped_by_reason, reported
from ..core.running import Run, running
from ..core.task import Task
from ..core.training import Stage
from . import equations as eq
from .outcome import DQSSOutcome
from .search import BATCH, Batches, Search, SearchResult, answer
from .space import StrategySpace
from .strategies import AWARE, POST, offered

ALGORITHMS = ("dqss", "dqss_safe", "greedy", "uniform", "random")
REMEDIES = ("warm_up", "temperature", "freeze", "restart")


@by_name
@dataclass(frozen=True, kw_only=True)
class DQSS:
    """A strategy of quantisation for each layer, found by gradient (arXiv 2404.08010).

    mode: 'post' learns nothing but which strategy, 'aware' trains weights and ranges in the same backward pass.
    algorithm: 'dqss' (soft mixture, then arg-max, as in the paper), 'dqss_safe' (never worse on the calibration than
    that or the best uniform strategy), and its controls 'greedy', 'uniform', 'random'. weight_bits, activation_bits:
    2 to 8; ends: bits of the first and last layer. candidates: names of strategies, of POST or AWARE; left empty, all
    of the mode. placement: 'layers' quantises what each layer reads, 'full' all that integers must pass. scales: one
    step a weight 'tensor' or, in 'post', 'channel'; 'uneven' is 'tensor' with a zero point of its own for every tensor
    with negative values that a layer reads. calibration: pictures. temperature: of the classes that are compared with
    the float network's; the higher, the nearer to comparing logits. steps, lr: updates of the logits and their rate; in
    'aware' weights learn at a hundredth of it. remedies: against under-fitting in 'aware', of REMEDIES.
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
    temperature: float = 1.0
    steps: int = 100
    lr: float = 0.05
    remedies: tuple[str, ...] = REMEDIES

    def __post_init__(self) -> None:
        for name in ("candidates", "remedies"):  # a name alone, or a list from a stored outcome
            if isinstance(value := getattr(self, name), (str, list)):
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        validate(self, mode=one_of("post", "aware"))  # first: what else is allowed depends on it
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
            temperature=real(above=0),
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
        return offered(self)

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
        with running(self, task, seed, device, checkpoint, progress, validate_precision, several=True) as run:
            if self.mode == "aware":
                validate_labels(task)
            # Three copies of one network: the float one that is imitated, the one that mixes, the one that is kept.
            teacher = fold_batch_norms(run.model, run.example)
            mixed, plain = deepcopy(teacher), deepcopy(teacher)
            # All of the calibration at once: a range is read from the largest values that any picture has.
            batches = self.calibration_batches(run, teacher)
            space = StrategySpace(mixed, self, joined([x for x, _ in batches]))
            # From logits to one strategy a tensor; 'aware' goes on training what was kept.
            search = Search(self, run, space, batches)
            result = search.find()
            if self.mode == "aware" and "restart" in self.remedies:
                result = search.restart(result, self.calibration_batches(run, teacher))
            # Plain grids from here on: a network like any other quantised one, which ONNX can hold.
            model = space.deployed(result.chosen, plain)
            report = reported(repr(self), self._report, run, teacher, space, model, result)
        return DQSSOutcome(
            recipe=self,
            report=report,
            trace=tuple(result.trace),
            model=model,
            choices=space.choices(result.chosen, model),
            history=result.history.tensors(),
            uniform=result.table,
            losses=result.losses,
            example=each(run.example, lambda x: x.detach().cpu()),
            base=run.base,
            **run.provenance(),
        )

    def calibration_batches(self, run: Run, teacher: fx.GraphModule) -> Batches:
        """As many pictures as asked for, in batches, each with the float network's output; drawn anew at each call."""
        # A loader may give fewer pictures a pass than are asked for: a stream goes round.
        stream = Stage(None, "calibration", "").stream(run.task.batches)
        parts: list[Example] = []
        while sum(map(size, parts)) < self.calibration:
            parts.append(moved(run.task.inputs_of(next(stream)), run.device))
        x = each(joined(parts), lambda part: part[: self.calibration])
        if not all(torch.isfinite(part).all() for part in tensors(x)):
            raise ValueError("calibration: the pictures hold NaN or infinite values: clean Task.batches first")
        # (64, C, H, W) each, with (64, classes) or (64, C, sH, sW): the last batch may be smaller.
        with torch.no_grad():
            return [(part, answer(teacher, part)) for part in split(x, BATCH)]

    def _report(
        self, run: Run, teacher: fx.GraphModule, space: StrategySpace, model: fx.GraphModule, result: SearchResult
    ) -> Report:
        """What the network costs and answers, before and after; bits are counted layer by layer."""
        task, losses, attempts = run.task, result.losses, Attempts()
        after = attempts(task.metric, task.measure, model)
        bits = {role.layer: role.bits for role in space.roles if role.role == "weights"}
        read = {role.layer: role.bits for role in space.roles if role.role == "activations"}
        macs = attempts("macs", cost.layer_macs, teacher, run.example) or {}
        # A layer costs multiply-adds times bits times bits; what no strategy rounds has 32, so a float one 1024.
        count = sum(macs.values()) if macs else None
        bitops = sum(n * bits.get(name, 32) * read.get(name, 32) for name, n in macs.items()) if macs else None
        total = cost.parameters(teacher)
        # Before and after; the loss is that of the best uniform strategy, then of what was kept.
        rows = [
            Row("parameters", total, total),
            Row("macs", count, count),
            Row("bitops", count and 1024 * count, bitops),
            Row("bytes", *attempts.pair("bytes", cost.bytes_stored, run.model, model), "B"),
            Row("calibration loss", losses["uniform"], losses["kept"], "", "learned", 5),
            Row("soft-to-hard gap", None, eq.gap(losses["soft"], losses["kept"]), "dB", "learned", 1),
            Row(f"{task.metric} of the mixture", run.before, result.soft_score, task.unit, "learned", 2),
            Row(task.metric, run.before, after, task.unit, "learned", 2),
        ]
        return Report(repr(self), tuple(rows), (*self._notes(task, space, losses), *attempts.notes))

    def _notes(self, task: Task, space: StrategySpace, losses: dict[str, float]) -> list[str]:
        count = eq.space_size([len(role.mixture.names) for role in space.roles])
        notes = [
            f"{len(space.weights)} layers, {len(space.roles)} tensors with a strategy, {count:.1e} assignments; "
            f"{losses['asked']:.0f} were tried; calibration loss: the best uniform strategy's, then this one's",
            "the list of candidates and all settings are the lab's, not the paper's",
        ]
        notes += grouped_by_reason("left in float,", space.placement.unquantised)
        if self.mode == "aware" and not has_labels(task):
            notes.append("the batches hold no labels: trained on the float network's answers")
        return notes + space.notes
