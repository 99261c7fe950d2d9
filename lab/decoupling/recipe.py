"""Decoupling's procedure: gates learn, together with the network, which filters each input needs."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from ..core import cost, tasks
from ..core.batch import call, logits_of, moved
from ..core.fields import Allowed, by_name, integer, one_of, real, validate
from ..core.finetune import has_labels, validate_batches, validate_labels
from ..core.report import Attempts, Report, Row, grouped_by_reason, reported
from ..core.running import Run, running
from ..core.task import Task
from ..core.training import Step, descend
from . import equations as eq
from .layers import MIXES, Gate, GateRecord, recording
from .outcome import DecouplingOutcome
from .paths import Paths, class_numbers, record
from .placement import Decoupled, insert_gates
from .removal import never_on, removed
from .skipping import skipping

KL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"out||z": eq.kl_out_z, "z||out": eq.kl_z_out}
PICTURES = 2_000  # the most pictures of the task's batches that on-rates are measured on
SAMPLE, VALUES = 40, 2**20  # the most pictures that an outcome keeps, and the most values in them


@by_name
@dataclass(frozen=True, kw_only=True)
class Decoupling:
    """Interpretable neural network decoupling (Li et al., ECCV 2020, arXiv 1906.01166).

    lam_m, lam_k, lam_s: weights of the losses of mutual information, of agreement between a layer's output and its
    encoding, and of sparsity. r: the share of filters that is to stay on in each layer; 0 presses it as low as lam_s
    can. kl: the direction of the divergence, 'out||z' or 'z||out'; detach: the side that takes no gradient from it,
    'none', 'out' or 'z'. mix: what is binarised in training, half of the 'sample's, half of the 'element's, or as in
    the releases 'channel' or 'index'. target: what encodings tell about, the 'label' or the network's own 'prediction'.
    bias: where the controllers' logits start. steps, lr, milestones: updates, rate, and the shares of the steps after
    which it falls tenfold.
    """

    lam_m: float = 0.3
    lam_k: float = 1.0
    lam_s: float = 0.02
    r: float = 0.6
    kl: str = "out||z"
    detach: str = "none"
    mix: str = "sample"
    target: str = "label"
    bias: float = 2.0
    steps: int = 500
    lr: float = 0.1
    milestones: tuple[float, ...] = (0.5, 0.75)

    def __post_init__(self) -> None:
        if isinstance(self.milestones, list):
            object.__setattr__(self, "milestones", tuple(self.milestones))
        validate(
            self,
            lam_m=real(0),
            lam_k=real(0),
            lam_s=real(0),
            r=real(0, 1),
            kl=one_of(*KL),
            detach=one_of("none", "out", "z"),
            mix=one_of(*MIXES),
            target=one_of("label", "prediction"),
            bias=real(),
            steps=integer(1),
            lr=real(above=0),
            milestones=Allowed(_are_shares, "a tuple of rising numbers between 0 and 1"),
        )

    @classmethod
    def paper(cls, name: str) -> "Decoupling":
        """The released settings by network: CIFAR-10 in 200 epochs of batches of 128, ImageNet in 120 of 256 or 64."""
        quarters, cifar, imagenet = (0.25, 0.5, 0.75), 200 * -(-50_000 // 128), 1_281_167
        # network: lam_m, lam_s, r, rate, milestones, steps, direction
        published = {
            "resnet56": (0.01, 1.5e-4, 0, 0.1, (0.5, 0.75), cifar, "out||z"),
            "resnet56 v1": (0.005, 1e-4, 0, 0.01, (0.5,), cifar, "out||z"),
            "vgg19": (0.04, 2e-4, 0, 0.1, (0.5, 0.75), cifar, "z||out"),
            "googlenet": (0.006, 5e-5, 0, 0.1, (0.5, 0.75), cifar, "out||z"),
            "resnet18": (0.005, 0.01, 0.6, 0.01, quarters, 120 * -(-imagenet // 256), "out||z"),
            "vgg16": (0.01, 0.01, 0.5, 0.01, quarters, 120 * -(-imagenet // 64), "z||out"),
        }
        if name not in published:
            raise ValueError(f"name={name!r}: the released settings are kept for {', '.join(published)}")
        lam_m, lam_s, r, lr, milestones, steps, kl = published[name]
        return cls(lam_m=lam_m, lam_k=1.0, lam_s=lam_s, r=r, kl=kl, lr=lr, milestones=milestones, steps=steps, bias=1.0)

    def run(
        self,
        task: Task | None = None,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> DecouplingOutcome:
        """Decouple the task's network: train it with its gates, and take out what is never on."""
        task = tasks.digits() if task is None else task
        with running(self, task, seed, device, checkpoint, progress, _suits) as run:
            validate_labels(task)
            self._validate_target(task)
            validate_batches(task)
            baseline, example = run.model, run.example
            classes = _classes(baseline, example)  # the rows of every head
            decoupled = insert_gates(baseline, example, bias=self.bias, mix=self.mix)
            images = _images(task)
            started = record(decoupled, [images]).on_rate()
            trace = self._train(run, decoupled, classes)
            plan = never_on(decoupled, record(decoupled, [images]), example)
            smaller = removed(decoupled, plan, example)
            seen = record(smaller, [images])  # the same paths, without the filters that no path uses
            sampled = _sample(seen, images[0])
            report = reported(repr(self), self._report, run, decoupled, smaller, seen, started)
        return DecouplingOutcome(
            recipe=self,
            report=report,
            trace=tuple(trace),
            model=smaller.model,
            decoupled=smaller,
            plan=plan,
            seen=seen,
            sample=images[0][sampled],
            sampled=sampled,
            base=run.base,
            **run.provenance(),
            example=tuple(example.shape),
        )

    def _train(self, run: Run, decoupled: Decoupled, classes: int) -> list[Step]:
        """All weights together: the network's, the controllers', and the heads that are there in training only."""
        task, baseline, device, G = run.task, run.model, run.device, decoupled.model
        heads = nn.ModuleList(nn.Linear(site.filters, classes, bias=False) for site in decoupled.sites)
        heads.to(next(baseline.parameters()))  # its device and dtype
        weights = [*G.parameters(), *heads.parameters()]
        optimiser = SGD(weights, lr=self.lr, momentum=0.9, weight_decay=1e-4)
        schedule = MultiStepLR(optimiser, [round(share * self.steps) for share in self.milestones], 0.1)
        stage = run.stage("decouple", model=G, heads=heads, optimiser=optimiser, schedule=schedule)
        labelled = has_labels(task)
        G.train()

        def learn(batch: Any) -> dict[str, Tensor]:
            """The task's loss, and the three losses of every gate."""
            x = moved(task.inputs_of(batch), device)  # (N, C, H, W)
            y = moved(task.labels_of(batch), device) if labelled else _predicted(baseline, x)  # (N,)
            t = y if self.target == "label" else _predicted(baseline, x)  # (N,), what encodings tell about
            with recording(G) as records:
                fit = task.fit(G, batch)[0] if labelled else F.cross_entropy(logits_of(call(G, x)), y)
            pairs = zip(records, heads, strict=True)  # a gate each, in the order in which they run
            losses = [self._gate_losses(record.pop(), head.get_parameter("weight"), t) for record, head in pairs]
            mi, kl, sparse = (torch.stack(terms).sum() for terms in zip(*losses, strict=True))
            return {"task": fit, "mutual information": mi, "agreement": kl, "sparsity": sparse}

        for _ in descend(
            learn, task.batches, optimiser, stage, steps=self.steps, schedule=schedule, progress=run.progress
        ):
            pass
        G.eval()
        return list(stage.trace)

    def _validate_target(self, task: Task) -> None:
        """Raise a one-line ValueError where encodings are to tell about labels that name no class of each picture."""
        y = task.labels_of(task.first_batch())
        if self.target == "label" and has_labels(task) and not (isinstance(y, Tensor) and y.dim() == 1):
            kind = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"target='label': the labels of Task.batches are {kind}, not one class number a picture (N,): give "
                "target='prediction'"
            )

    def _gate_losses(self, gate: GateRecord, W: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """lam_m L_mi, lam_k L_kl and lam_s L_s of one gate; W (classes, C_l) is its head, t (N,) the classes."""
        z, out = gate.z, gate.out  # (N, C_l) each
        fixed_z, fixed_out = z.detach() if self.detach == "z" else z, out.detach() if self.detach == "out" else out
        return (
            self.lam_m * eq.mutual_information_loss(z, W, t),
            self.lam_k * KL[self.kl](fixed_out, fixed_z),
            self.lam_s * (eq.sparsity_at(z, self.r) if self.r else eq.sparsity(z)),
        )

    def _report(self, run: Run, before: Decoupled, after: Decoupled, paths: Paths, started: float) -> Report:
        task, baseline, example, attempts = run.task, run.model, run.example, Attempts()
        deployed = attempts("skipping", skipping, after, example)
        timed = (None, None) if deployed is None else attempts.times(baseline, deployed, example)
        states = paths.states().sum()
        on = [torch.from_numpy(bits) for bits in paths.split()]
        filters = [sum(site.filters for site in sites) for sites in (before.sites, after.sites)]
        rows = [
            Row("gated filters", filters[0], filters[1]),
            Row("conditional filters", None, int(states["conditional"]), kind="learned", digits=0),
            Row("on-rate", started, _on_rate(paths, before), "of filters", "learned", 3),
            Row("parameters", cost.parameters(baseline), cost.parameters(after.model)),
            Row("macs", before.dense, float(after.macs(on).mean()), "a picture, mean", "learned", 0),
            Row("bytes", cost.bytes_stored(baseline), cost.bytes_stored(after.model), "B"),
            Row("latency", *timed, "ms", "timed", 2),
            Row(task.metric, run.before, attempts(task.metric, task.measure, after.model), task.unit, "learned"),
        ]
        return Report(repr(self), tuple(rows), (*self._notes(task, before, paths), *attempts.notes))

    def _notes(self, task: Task, before: Decoupled, paths: Paths) -> list[str]:
        notes = grouped_by_reason("not gated, since", before.ungated)
        if not has_labels(task):
            notes.append("the batches hold no labels: trained on the network's own predictions")
        notes.append(f"on-rate, macs and conditional filters of {len(paths):,} pictures of the task's batches")
        return notes


def _images(task: Task) -> tuple[Tensor, Tensor]:
    """Up to PICTURES pictures of the task's batches (N, C, H, W) with their labels (N,)."""
    x: list[Tensor] = []
    y: list[Tensor] = []
    for batch in task.batches:
        x.append(moved(task.inputs_of(batch), "cpu"))
        y.append(class_numbers(task.labels_of(batch), len(x[-1])))
        if sum(map(len, x)) >= PICTURES:
            break
    return torch.cat(x)[:PICTURES], torch.cat(y)[:PICTURES]


def _sample(paths: Paths, x: Tensor) -> Tensor:
    """Which pictures are kept to be looked at: the first of every class, the second ..., as many as may be kept."""
    most = max(2, min(SAMPLE, VALUES // x[0].numel()))
    by_class = [np.flatnonzero(paths.labels == label).tolist() for label in paths.classes()]
    in_turn = [index for turn in zip_longest(*by_class) for index in turn if index is not None]
    return torch.tensor(in_turn[:most])


def _on_rate(paths: Paths, before: Decoupled) -> float:
    """The share of the filters that there were which is on, the mean over layers and pictures."""
    rates = [bits.sum(1).mean() / site.filters for bits, site in zip(paths.split(), before.sites, strict=True)]
    return float(np.mean(rates))


def _predicted(baseline: nn.Module, x: Tensor) -> Tensor:
    """The class that the network as it came gives to each picture: (N,)."""
    with torch.no_grad():
        return logits_of(call(baseline, x)).argmax(1)


def _suits(baseline: nn.Module, example: Tensor) -> None:
    """Raise a one-line ValueError for a network without class scores, or with gates already."""
    _classes(baseline, example)
    if any(isinstance(module, Gate) for module in baseline.modules()):
        raise ValueError("the model has gates already: decouple the network that it was made from")


def _classes(baseline: nn.Module, example: Tensor) -> int:
    """How many classes the network tells apart."""
    with torch.no_grad():
        output = logits_of(call(baseline, example))
    if not isinstance(output, Tensor) or output.dim() != 2:
        kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"the model answers with {kind}: decoupling needs class scores of shape (N, classes)")
    return output.shape[1]


def _are_shares(values: Any) -> bool:
    """Whether the milestones are floats that rise between 0 and 1."""
    rising = isinstance(values, tuple) and all(isinstance(v, float) and 0 < v < 1 for v in values)
    return rising and list(values) == sorted(set(values))
