"""A real detector of faces: one stage, anchors on three levels, hard negatives, non-maximum suppression."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import store
from ..core.data.faces import Faces, FaceTask
from ..core.task import Task
from ..core.training import Stage, Step, descend, seeded
from .precision import average_precision
from .space import Configuration

STRIDES = (4, 8, 16)  # px of the input between the anchors of a level
SIZES = ((8.0, 11.3), (16.0, 22.6), (32.0, 50.0))  # px, the sides of the square anchors of a level
CHANNELS = (12, 24, 48, 48)  # at width 1: the stem, then one stage a level
VARIANCES = (0.1, 0.2)  # the usual scale of offsets and of log-sizes
BATCH = 8
BUDGET = 150  # steps of the cheapest detector that could be; dearer ones get fewer, see `affordable`
CLIP, WARM = 5.0, 0.1  # norm to which gradients are cut; the part of the steps in which the rate rises
AMONG = 0.1  # the part of the negatives in which a step seeks the hardest
RATES = {"sgd": 1e-2, "adamw": 2e-3}
CANDIDATES, OVERLAP, MOST = 300, 0.4, 100  # into suppression, where a weaker box goes, boxes a picture


class FaceDetector(nn.Module):
    """Pictures (N, 3, S, S) in [-1, 1] -> logits (N, A) and offsets (N, A, 4), A anchors from fine to coarse."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        stem, *stages = (max(4, round(width * channels)) for channels in CHANNELS)
        neck = stages[0]
        self.stem = _convolution(3, stem, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(a, b, 2), _convolution(b, b)) for a, b in pairwise((stem, *stages))
        )
        self.laterals = nn.ModuleList(nn.Conv2d(channels, neck, 1) for channels in stages)
        anchors = len(SIZES[0])
        self.mix = _convolution(neck, neck)
        self.logits, self.offsets = (nn.Conv2d(neck, anchors * k, 3, padding=1) for k in (1, 4))
        nn.init.constant_(self.logits.bias, -math.log(3))  # type: ignore[arg-type]  # one in four is a face, as hard negatives leave it

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)  # (N, C, S / stride, S / stride)
        joined: list[Tensor] = []
        for lateral, level in zip(reversed(self.laterals), reversed(levels), strict=True):
            here = lateral(level)
            joined.insert(0, here if not joined else here + F.interpolate(joined[0], size=here.shape[-2:]))
        mixed = [self.mix(level) for level in joined]  # one head for all levels
        logits = [self.logits(level).permute(0, 2, 3, 1).flatten(1) for level in mixed]
        offsets = [self.offsets(level).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4) for level in mixed]
        return torch.cat(logits, 1), torch.cat(offsets, 1)


def _convolution(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b, momentum=0.3), nn.ReLU())


# -- anchors and boxes -------------------------------------------------------------------------------------------------


def anchors(side: int) -> Tensor:
    """The anchors of an input of `side` px, (A, 4): left, top, right, bottom; a row of the picture after another."""
    levels = []
    for stride, sizes in zip(STRIDES, SIZES, strict=True):
        middle = (torch.arange(-(-side // stride)) + 0.5) * stride
        y, x = torch.meshgrid(middle, middle, indexing="ij")
        half = torch.tensor(sizes) / 2
        boxes = torch.stack([x[..., None] - half, y[..., None] - half, x[..., None] + half, y[..., None] + half], -1)
        # (rows, columns, 2 sizes, 4)
        levels.append(boxes.reshape(-1, 4))
    return torch.cat(levels)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every a with every b: (n, 4), (m, 4) -> (n, m)."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    area = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    return shared / (area[0][:, None] + area[1] - shared).clamp_min(1e-9)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes as offsets from their anchors, both (n, 4)."""
    (c, s), (ca, sa) = _middle(boxes), _middle(anchors)
    return torch.cat([(c - ca) / sa / VARIANCES[0], (s / sa).log() / VARIANCES[1]], -1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """What `encode` turned into offsets; sizes are held within e^4 of the anchor's."""
    ca, sa = _middle(anchors)
    middle = ca + offsets[..., :2] * VARIANCES[0] * sa
    half = sa * (offsets[..., 2:] * VARIANCES[1]).clamp(-4, 4).exp() / 2
    return torch.cat([middle - half, middle + half], -1)


def _middle(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def match(boxes: Tensor, anchors: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """What each anchor is to learn: (A,) 1 face, 0 none, -1 left out (within 0.1 below the threshold); (A, 4) offsets.

    Every face has at least the anchor that fits it best.
    """
    label, target = torch.zeros(len(anchors)), torch.zeros(len(anchors), 4)
    if not len(boxes):
        return label, target
    overlap = iou(anchors, boxes)  # (A, n)
    best, which = overlap.max(1)
    label[best >= threshold - 0.1] = -1
    favourite = overlap.max(0).indices  # (n,): of each face the anchor that fits it best
    best[favourite], which[favourite] = 1.0, torch.arange(len(boxes))
    positive = best >= threshold
    label[positive] = 1
    target[positive] = encode(boxes[which[positive]], anchors[positive])
    return label, target


def loss_terms(
    logits: Tensor, offsets: Tensor, label: Tensor, target: Tensor, ratio: int, weight: float, among: float = AMONG
) -> dict[str, Tensor]:
    """Cross-entropy of the faces and of the `ratio` times as many hardest others of each picture, and smooth L1 of the
    offsets of faces times `weight`; both a face. (N, A), (N, A, 4), (N, A), (N, A, 4).

    The hardest are sought in a random part `among` of the others: in all of them, a new network learns nothing from
    negatives that are all as hard as faces.
    """
    positive, negative = label == 1, label == 0
    entropy = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    eligible = negative & (torch.rand(entropy.shape) < among) if among < 1 else negative  # (N, A)
    hardness = entropy.detach().masked_fill(~eligible, -1)
    wanted = (ratio * positive.sum(1)).clamp_min(ratio)  # (N,): pictures without a face have some, too
    most = int(wanted.max().clamp_max(label.shape[1]))
    order = hardness.topk(most, dim=1)
    hard = torch.zeros_like(positive)
    hard.scatter_(1, order.indices, (torch.arange(most) < wanted[:, None]) & (order.values >= 0))
    count = positive.sum().clamp_min(1)
    located = F.smooth_l1_loss(offsets[positive], target[positive], reduction="sum")
    return {"faces": entropy[positive | hard].sum() / count, "boxes": weight * located / count}


def suppressed(boxes: Tensor, scores: Tensor, overlap: float = OVERLAP, most: int = MOST) -> Tensor:
    """Greedy non-maximum suppression: numbers of the boxes that stay, best first."""
    order = scores.argsort(descending=True, stable=True)
    near = iou(boxes[order], boxes[order]) > overlap
    gone = torch.zeros(len(order), dtype=torch.bool)
    kept = []
    for index in range(len(order)):
        if not gone[index]:
            kept.append(index)
            gone |= near[index]
            if len(kept) == most:
                break
    return order[kept]


# -- learning and use --------------------------------------------------------------------------------------------------


def letterboxed(image: Tensor, side: int) -> tuple[Tensor, float]:
    """The picture in the upper left of a black square, uint8 (3, side, side), and the scale it was brought to."""
    scale = side / max(image.shape[1:])
    size = [max(1, round(length * scale)) for length in image.shape[1:]]
    small = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=scale < 1, align_corners=False)
    return F.pad(small[0], (0, side - size[1], 0, side - size[0])).round().clamp(0, 255).to(torch.uint8), scale


@dataclass(frozen=True)
class _Prepared:
    """All pictures, mirrored ones too, with what each anchor is to learn from them."""

    x: Tensor
    label: Tensor
    target: Tensor

    @classmethod
    def of(cls, faces: Faces, configuration: Configuration) -> "_Prepared":
        side, priors = configuration.side, anchors(configuration.side)  # (A, 4)
        rows = []
        for image, boxes in zip(faces.images, faces.boxes, strict=True):
            x, scale = letterboxed(image, side)
            scaled = boxes * scale
            mirrored = torch.stack([side - scaled[:, 2], scaled[:, 1], side - scaled[:, 0], scaled[:, 3]], 1)
            rows.append((x, *match(scaled, priors, configuration.iou)))
            rows.append((x.flip(2), *match(mirrored, priors, configuration.iou)))
        return cls(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def __len__(self) -> int:
        return max(1, len(self.x) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = torch.randperm(len(self.x))
        for index in range(len(self)):
            rows = order[index * BATCH : (index + 1) * BATCH]
            yield _scaled(self.x[rows]), self.label[rows], self.target[rows]


def _scaled(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1


def affordable(configuration: Configuration, budget: int = BUDGET) -> int:
    """The steps that a configuration gets: budget / cost^0.6, between equal steps and equal time for all.

    The cost of a step is 1 + 4 width (side / 128)², in units of about 12 ms, as measured on one core. Ours.
    """
    return max(1, round(budget / (1 + 4 * configuration.width * (configuration.side / 128) ** 2) ** 0.6))


def train(
    faces: Faces,
    configuration: Configuration,
    budget: int = BUDGET,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    fresh: bool = False,
) -> tuple[FaceDetector, tuple[Step, ...]]:
    """A detector of this configuration, trained on these faces from its own seed; larger ones get fewer steps.

    It starts from weights that have learned plain scenes (`data/faces`), with fresh=True from random ones.
    """
    steps = affordable(configuration, budget)
    with seeded(seed):
        net, batches = FaceDetector(configuration.width), _Prepared.of(faces, configuration)
        if not fresh:
            net.load_state_dict(started(configuration.width))
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on a CPU
        rate = RATES[configuration.optimiser]
        optimiser: torch.optim.Optimizer = (
            torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-2, fused=True)
            if configuration.optimiser == "adamw"
            else torch.optim.SGD(net.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
        )
        optimiser.register_step_pre_hook(_clipped)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
        run_id = f"a detector of {configuration}, {steps} steps, seed {seed}"
        stage = Stage(checkpoint, "detector", run_id, net=net, optimiser=optimiser, schedule=schedule)

        def terms(batch: Sequence[Tensor]) -> dict[str, Tensor]:
            x, label, target = batch
            logits, offsets = net(x)
            return loss_terms(logits, offsets, label, target, configuration.ratio, configuration.weight)

        net.train()
        for _ in descend(terms, batches, optimiser, stage, steps=steps, schedule=schedule, progress=progress):
            pass
    return net.eval(), tuple(stage.trace)


def _clipped(optimiser: torch.optim.Optimizer, *_: object) -> None:
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], CLIP)


def _rate(step: int, steps: int) -> float:
    """The share of the rate: a rise, then a half cosine to 0."""
    rise = max(1, round(WARM * steps))
    return (step + 1) / rise if step < rise else (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


@lru_cache(maxsize=3)
def started(width: float) -> dict[str, Tensor]:
    """The weights that a detector of this width starts from."""
    kept = load_file(store.artefact("faces/start.safetensors"))
    weights = {name.removeprefix(f"{width} "): value for name, value in kept.items() if name.startswith(f"{width} ")}
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def detect(net: nn.Module, images: Sequence[Tensor], side: int) -> list[tuple[Tensor, Tensor]]:
    """(boxes (n, 4) in px of the picture, scores (n,) in [0, 1]) of each picture, best first, at most a hundred."""
    priors, detections = anchors(side), []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            part = [letterboxed(image, side) for image in images[start : start + BATCH]]
            logits, offsets = net(_scaled(torch.stack([x for x, _ in part])))
            for row, (_, scale) in enumerate(part):
                top = logits[row].topk(min(CANDIDATES, logits.shape[1]))
                boxes = decode(offsets[row, top.indices], priors[top.indices]) / scale  # px of the picture
                height, width = images[start + row].shape[1:]
                boxes = torch.minimum(boxes.clamp_min(0), torch.tensor([width, height, width, height]).float())
                kept = suppressed(boxes, top.values)
                detections.append((boxes[kept], top.values[kept].sigmoid()))
    return detections


def score(net: nn.Module, faces: Faces, side: int) -> dict[str, float]:
    """Average precision on these faces in percent: 'ap50' at an overlap of 0.5, 'ap' the mean from 0.5 to 0.95."""
    return average_precision(detect(net, faces.images, side), faces.boxes)


def detection(net: FaceDetector, faces: FaceTask, configuration: Configuration) -> Task:
    """A detector of this configuration and faces as a task for methods that compress networks.

    Batches are (x, label, target) of all anchors, as `match` gives them; the score is 'ap50' on the faces held out.
    """

    def loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        x, label, target = batch
        logits, offsets = model(x)
        terms = loss_terms(logits, offsets, label, target, configuration.ratio, configuration.weight)
        return torch.stack([*terms.values()]).sum()

    return Task(
        model=net.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
        batches=_Prepared.of(faces.learn, configuration),
        batch_loss=loss,
        score=lambda model: score(model, faces.held_out, configuration.side)["ap50"],
        metric="average precision",
        name=f"faces, {faces.name}",
    )


def evaluated(task: FaceTask, configuration: Configuration, budget: int = BUDGET, seed: int = 0) -> dict[str, float]:
    """Train on what the task has to learn from, score on what it holds out; percent."""
    net, _ = train(task.learn, configuration, budget, seed)
    return score(net, task.held_out, configuration.side)
