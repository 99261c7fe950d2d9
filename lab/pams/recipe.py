"""PAMS's procedure: alphas are calibrated, then trained with the weights, under a teacher of the same architecture."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from ..core import cost, tasks
from ..core.batch import each, logits_of, moved, tensors
from ..core.errors import first_line
from ..core.fields import by_name, integer, one_of, real, some_of, validate
from ..core.finetune import has_labels, validate_labels
from ..core.models import validate_precision
from ..core.quantisation.bn_folding import fold_batch_norms
from ..core.quantisation.placement import Placement, QuantPoint, insert_quantisers, with_feature_output
from ..core.quantisation.quantisers import LEAST
from ..core.report import Attempts, Report, Row, grouped_by_reason, reported
from ..core.running import Run, running
from ..core.task import Task
from ..core.training import Step, descend
from ..core.zeros import Zeros
from . import equations as eq
from . import packed, sizes
from .history import AlphaHistory
from .layers import Quantiser, Taught, rounded_layer
from .outcome import PAMSOutcome, rebuilt
from .placement import PLACEMENTS, place_quantisers

RELEASED = ("last_batch", "halved_rates", "random_student")
SNAPSHOTS = 24  # how often alphas and histograms are kept
BRIGHT = 16  # no pixel in [0, 1] is as large, however it is normalised; pictures in 0..255 are brighter somewhere
PROBE = 4  # pictures of the first batch that histograms are taken on


@by_name
@dataclass(frozen=True, kw_only=True)
class PAMS:
    """Quantised super-resolution with a parameterised max scale (Li et al., ECCV 2020, arXiv 2011.04212).

    weight_bits, activation_bits: 2 to 8 each. placement: which tensors are quantised: 'fig1' (the paper's drawing),
    'repo' (the released code), 'cadyq' (its later correction) or 'full' (every layer, for integer kernels).
    grid: behind a ReLU 'unsigned' uses all codes, 'signed' is the paper's. scales: one step for a weight 'tensor',
    as in the paper, or for each output 'channel'. steps, lr: updates of the weights and their rate; alpha_lr: the
    rate of the alphas, for pixels in [0, 1], and 255 times that for pixels in 0..255; both fall to zero along a
    cosine. calibration: the first steps, in which alpha is the moving average of what it sees. statistic: what it sees
    of a batch, the 'mean' of each picture's largest |x|, as in the paper, or the 'largest' of all batches, which clips
    nothing. skt: weight of structured knowledge transfer. released: behaviours of the authors' code to switch on, of
    RELEASED.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    placement: str = "cadyq"
    grid: str = "unsigned"
    scales: str = "tensor"
    steps: int = 300
    lr: float = 1e-4
    alpha_lr: float = 3e-3
    calibration: int = 20
    statistic: str = "mean"
    skt: float = 1000.0
    released: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.released, (str, list)):  # a name alone, or a list from a stored outcome
            object.__setattr__(
                self, "released", (self.released,) if isinstance(self.released, str) else tuple(self.released)
            )
        validate(
            self,
            weight_bits=integer(2, 8),
            activation_bits=integer(2, 8),
            placement=one_of(*PLACEMENTS),
            grid=one_of("unsigned", "signed"),
            scales=one_of("tensor", "channel"),
            steps=integer(1),
            lr=real(above=0),
            alpha_lr=real(above=0),
            statistic=one_of("mean", "largest"),
            skt=real(0),
            released=some_of(*RELEASED),
        )
        validate(self, calibration=integer(1, self.steps))

    @classmethod
    def paper(cls, name: str) -> "PAMS":
        """The released settings by network and bits: 'edsr-8', 'edsr-4', 'rdn-8', 'rdn-4'; 30 epochs of 1,000 steps.

        The placement is the release's; the student starts from the teacher, without which its numbers were not met.
        """
        published = {f"{net}-{bits}": bits for net in ("edsr", "rdn") for bits in (8, 4)}
        if name not in published:
            raise ValueError(f"name={name!r}: the released settings are kept for {', '.join(published)}")
        bits = published[name]
        # Its alphas learn at 1e-2 on pixels that go to 255, and follow the data for one epoch of 1,000 steps.
        return cls(
            weight_bits=bits,
            activation_bits=bits,
            placement="repo",
            grid="signed",
            steps=30_000,
            lr=1e-4,
            alpha_lr=1e-2 / 255,
            calibration=1000,
            released=("last_batch", "halved_rates"),
        )

    def run(
        self,
        task: Task | None = None,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> PAMSOutcome:
        """Quantise the task's network and train it under itself; the network passed in is not changed."""
        if task is None:
            task = tasks.photos(2, patch=96, batch_size=4)  # 48 x 48 small, as in the paper
        with running(self, task, seed, device, checkpoint, progress, validate_precision) as run:
            if _has_own_loss(task):
                validate_labels(task)
            # The float network teaches its own copy, whose layers and tensors are then rounded in place.
            teacher, student = (fold_batch_norms(run.model, run.example) for _ in range(2))
            placement = self.place(student)
            quantisers = self.quantise(student, placement)
            trace, history = self._train(run, teacher, student, placement, quantisers)
            packed.bake(student)  # weights as they are stored: codes (int8) times a step, no longer rounded anew
            report = reported(repr(self), self._report, run, teacher, student, placement)
        return PAMSOutcome(
            recipe=self,
            report=report,
            trace=tuple(trace),
            model=student,
            placement=placement,
            history=history.tensors(),
            example=run.example.detach().cpu(),
            base=run.base,
            **run.provenance(),
        )

    def place(self, graph: fx.GraphModule) -> Placement:
        """Where this recipe's quantisers stand in a traced network."""
        return place_quantisers(graph, self.placement, self.grid == "unsigned")

    def quantise(self, graph: fx.GraphModule, placement: Placement) -> list[Quantiser]:
        """Put this recipe's quantisers and rounded layers into a network, in place; gives the quantisers."""
        # Weights need no quantiser that learns: their step is read from them at every forward pass, (2) and (3).
        rounded = partial(rounded_layer, bits=self.weight_bits, per_channel=self.scales == "channel")
        device = next(graph.parameters()).device
        return insert_quantisers(graph, placement, lambda point: self._quantiser(point).to(device), rounded)

    def _quantiser(self, point: QuantPoint) -> Quantiser:
        bits = 8 if point.image else self.activation_bits
        track_max = point.image or self.statistic == "largest"
        return Quantiser(bits, point.signed, last_batch="last_batch" in self.released, track_max=track_max)

    def _train(
        self,
        run: Run,
        teacher: fx.GraphModule,
        student: fx.GraphModule,
        placement: Placement,
        quantisers: list[Quantiser],
    ) -> tuple[list[Step], AlphaHistory]:
        """One stage: while alphas are calibrated they have no gradient, so that Adam meets them without a past."""
        task = run.task
        if "random_student" in self.released:
            zeros = Zeros(student.parameters())
            _reset(student)
            zeros.apply()
        alphas = [q.alpha for q in quantisers]
        # Parameters are compared by identity: == of tensors would be a tensor.
        weights = [p for p in student.parameters() if not any(p is alpha for alpha in alphas)]
        # Adam moves a parameter by its rate, whatever its gradient's size: alphas in units of pixels, weights not.
        peak = _peak(task)
        optimiser = Adam([{"params": weights, "lr": self.lr}, {"params": alphas, "lr": peak * self.alpha_lr}])
        schedule = self._schedule(optimiser)
        probe = each(task.inputs_of(task.first_batch()), lambda x: x[:PROBE].to(run.device))
        history = AlphaHistory(student, quantisers, probe, every=-(-self.steps // SNAPSHOTS))
        spread = _Spread()
        stage = run.stage(
            "quantise", student=student, optimiser=optimiser, schedule=schedule, history=history, spread=spread
        )
        # Both networks give their picture (N, C, sH, sW) and what their upsampler reads, F (N, C', H, W).
        both, guide = (with_feature_output(graph, placement.feature) for graph in (student, teacher))
        guide.requires_grad_(False)
        taught = Taught(both, guide)

        def own_terms(batch: Any) -> dict[str, Tensor]:
            """The task's own loss in the place of L1."""
            spread.note(moved(task.inputs_of(batch), run.device))
            losses = {"task": task.fit(taught, batch)[0]}
            if self.skt:
                losses["skt"] = self.skt * eq.knowledge_transfer(*taught.features())
            return losses

        def terms(batch: Any) -> dict[str, Tensor]:
            x = moved(task.inputs_of(batch), run.device)
            spread.note(x)
            sr, F_student = _image(*both(x))  # (N, C, sH, sW) and (N, C', H, W)
            with torch.no_grad():
                target, F_teacher = _image(*guide(x))
            large = _large(task, batch)  # without large pictures the teacher's are the target
            hr = target if large is None else large.to(run.device)
            if sr.shape != hr.shape:
                raise ValueError(
                    f"the model gives shape {tuple(sr.shape)}, the batches want {tuple(hr.shape)}: match its scale"
                )
            losses = {"l1": eq.pixel_loss(sr, hr, peak)}
            if self.skt:
                losses["skt"] = self.skt * eq.knowledge_transfer(F_student, F_teacher)
            return losses

        student.train()  # quantisers follow the data in training mode only, so that a score never moves an alpha
        guide.eval()
        self._calibrate(quantisers, len(stage.trace))
        loss_terms = own_terms if _has_own_loss(task) else terms
        for step in descend(
            loss_terms, task.batches, optimiser, stage, steps=self.steps, schedule=schedule, progress=run.progress
        ):
            done = step.index + 1
            if done == self.calibration:  # here alphas have followed their last batch, and none has learned yet
                _validate_signal(placement, quantisers, spread)
            self._calibrate(quantisers, done)
            history.note(done, last=done == self.steps)
        student.eval()
        return list(stage.trace), history

    def _schedule(self, optimiser: Adam) -> LRScheduler:
        """Rates that fall to zero, as a short run needs; the release halves them after each third."""
        if "halved_rates" in self.released:
            return StepLR(optimiser, max(1, self.steps // 3), 0.5)
        return CosineAnnealingLR(optimiser, self.steps)

    def _calibrate(self, quantisers: list[Quantiser], done: int) -> None:
        """Whether alphas follow the data after `done` updates, or learn."""
        for quantiser in quantisers:
            quantiser.calibrating = done < self.calibration

    def _report(self, run: Run, teacher: fx.GraphModule, student: fx.GraphModule, placement: Placement) -> Report:
        """What the network costs and gives, before and after; a float layer has 32 bits, so 1024 a multiply-add."""
        task, attempts = run.task, Attempts()
        counts = sizes.count(teacher, student, run.example)
        rows = [
            Row("parameters", counts.parameters, counts.parameters),
            Row("32-bit parameters", counts.parameters, round(counts.equivalent)),
            Row("macs", counts.macs, counts.macs),
            Row("bitops", 1024 * counts.macs, counts.bitops),
            Row("bytes", *attempts.pair("bytes", cost.bytes_stored, run.model, student), "B"),
            Row(task.metric, run.before, attempts(task.metric, task.measure, student), task.unit, "learned", 2),
        ]
        return Report(repr(self), tuple(rows), (*self._notes(task, placement, student, counts), *attempts.notes))

    def _notes(self, task: Task, placement: Placement, student: nn.Module, counts: sizes.Counts) -> list[str]:
        w, a = self.weight_bits, self.activation_bits
        notes = [
            f"placement {self.placement!r}: {len(placement.layers)} layers, {len(placement.groups())} alphas, W{w}A{a}"
        ]
        notes += grouped_by_reason("left in float,", placement.unquantised)
        if _peak(task) > 1:
            notes.append("pixels go to 255: L1 is taken on them as they are, and alphas learn at 255 times alpha_lr")
        collapsed = [name for name, q in student.named_modules() if isinstance(q, Quantiser) and _is_zero(q)]
        if collapsed:
            notes.append(f"ranges that fell to 0 in training, lower alpha_lr: {', '.join(collapsed)}")
        if counts.half:
            notes.append(f"weights rounded, input in float: {', '.join(counts.half)}")
        if _has_own_loss(task):
            notes.append("trained on the task's own loss in place of L1")
        elif _large(task, task.first_batch()) is None:
            notes.append("the batches hold no large pictures: trained on the teacher's alone")
        return notes


def unpack(path: str | Path, base: nn.Module | None = None) -> fx.GraphModule:
    """The network that `PAMSOutcome.pack` wrote, in eval mode; `base` is the user's own network, with any weights."""
    state, about = packed.read(path)
    try:
        config, recipe, example = about["base"], PAMS(**about["fields"]), torch.zeros(about["example"])
    except (KeyError, TypeError, RuntimeError) as error:
        reason = first_line(error)
        raise ValueError(f"{path} is of another version of the lab ({reason}): write it again with pack") from error
    return rebuilt(config, base, recipe, example, state)[0]


def _peak(task: Task) -> float:
    """What pixels go to: 255 where a picture that the network is to give (or reads, where none is given) says so."""
    batch = task.first_batch()
    wanted = None if _has_own_loss(task) else _large(task, batch)
    pixels = next(tensors([wanted, task.inputs_of(batch)]))
    return 255.0 if float(pixels.max()) > BRIGHT else 1.0


def _has_own_loss(task: Task) -> bool:
    """Whether the task says what is learned from: a loss of the batch, or one of labels that is not L1."""
    return task.batch_loss is not None or (task.loss not in (F.cross_entropy, F.l1_loss) and has_labels(task))


def _large(task: Task, batch: Any) -> Tensor | None:
    """The large pictures of a batch (N, C, sH, sW), where it holds some."""
    y = task.labels_of(batch)
    return y if isinstance(y, Tensor) else None


def _image(output: Any, feature: Tensor) -> tuple[Tensor, Tensor]:
    """The one tensor of a network's output, beside its feature; ValueError for a network that gives several."""
    image = logits_of(output)
    if not isinstance(image, Tensor):
        raise ValueError(f"the model answers with a {type(output).__name__}: PAMS compares pictures; return one tensor")
    return image, feature


class _Spread:
    """Whether any calibration picture held more than one value."""

    def __init__(self) -> None:
        self.varies = False

    def note(self, x: Tensor) -> None:
        self.varies = self.varies or bool((x.flatten(1).amax(1) > x.flatten(1).amin(1)).any())

    def state_dict(self) -> dict[str, Any]:
        return {"varies": self.varies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.varies = state["varies"]


def _validate_signal(placement: Placement, quantisers: list[Quantiser], spread: _Spread) -> None:
    """Raise a one-line ValueError if the calibration saw nothing that a range could be read from."""
    if not spread.varies:
        raise ValueError("calibration: every picture holds one constant value: give Task.batches of real pictures")
    for group, quantiser in zip(placement.groups(), quantisers, strict=True):
        if _is_zero(quantiser):
            raise ValueError(
                f"calibration: the tensor {group} is 0 on all pictures: its layer is dead, check the model"
            )


def _is_zero(quantiser: Quantiser) -> bool:
    return float(quantiser.alpha.detach()) <= LEAST


def _reset(model: nn.Module) -> None:
    """Draw the weights of the layers that learn anew."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.requires_grad:
            module.reset_parameters()
