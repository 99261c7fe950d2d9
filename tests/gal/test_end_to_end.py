"""Networks of other shapes than a classifier's, from the run to onnxruntime: a U-Net, a detector with two heads."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lab
from lab.core.batch import tensors
from lab.core.task import Task

QUICK = {"steps": 40, "mask_every": 1, "mask_lr": 0.05, "lam": 1.5, "finetune_steps": 10}


def layer(inside, outside, **options):
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1, **options), nn.BatchNorm2d(outside), nn.ReLU())


class UNet(nn.Module):
    """Three levels; each way up is joined to what came down on its level."""

    def __init__(self):
        super().__init__()
        self.down, self.middle, self.deep = layer(3, 8), layer(8, 12), layer(12, 16)
        self.up_middle, self.up = nn.ConvTranspose2d(16, 12, 2, 2), nn.ConvTranspose2d(12, 8, 2, 2)
        self.join_middle, self.join, self.head = layer(24, 12), layer(16, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        a = self.down(x)
        b = self.middle(F.max_pool2d(a, 2))
        c = self.deep(F.max_pool2d(b, 2))
        b = self.join_middle(torch.cat([self.up_middle(c), b], 1))
        return self.head(self.join(torch.cat([self.up(b), a], 1)))


def learned(net, x, loss):
    """A network after a few steps on its own loss."""
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        loss(net(x)).backward()
        optimiser.step()
    return net.eval().requires_grad_(True)


def segmenter() -> Task:
    """Which of three colours each pixel has."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (24, 4, 4), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    x = F.one_hot(y, 3).permute(0, 3, 1, 2) + 0.3 * torch.randn(24, 3, 16, 16, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = learned(UNet(), x, lambda output: F.cross_entropy(output, y))
    batches = [(x[:12], y[:12]), (x[12:], y[12:])]
    return Task(model=net, batches=batches, score=lambda m: 100 * float((m(x).argmax(1) == y).float().mean()))


def assert_runs_in_onnxruntime(outcome, x, folder):
    """Saved, loaded and exported, the network gives the same outputs."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    path = outcome.export(folder / "net.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = outcome.model.eval()(x)
    for got, want in zip(session.run(None, {"input": x.numpy()}), tensors(expected), strict=True):
        assert (torch.from_numpy(got) - want).abs().max() < 1e-4 * want.abs().max().clamp(min=1)


@pytest.mark.slow
def test_a_unet_is_pruned_saved_loaded_and_run_by_onnxruntime(tmp_path):
    task = segmenter()
    outcome = lab.GAL(**{**QUICK, "lam": 0.8, "finetune_steps": 40}).run(task, progress=False)
    found = Counter(structure.name.split(".")[0] for structure in outcome.structures)
    assert set(found) == {"down", "middle", "deep", "up_middle", "up", "join_middle", "join"}
    assert outcome.report["macs"].ratio > 1.1 and outcome.report["accuracy"].after > 80
    assert_kept_and_run(outcome, task, torch.randn(2, 3, 16, 16), tmp_path)


class Detector(nn.Module):
    """Two levels, each with a head for boxes and one for classes; `form` is how the four outputs are given."""

    def __init__(self, form):
        super().__init__()
        self.form, self.stem, self.next = form, layer(3, 8, stride=2), layer(8, 12, stride=2)
        self.boxes = nn.ModuleList([nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(12, 4, 3, padding=1)])
        self.classes = nn.ModuleList([nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(12, 2, 3, padding=1)])

    def forward(self, x):
        a = self.stem(x)
        levels = [a, self.next(a)]
        boxes = [100 * head(y).flatten(2) for head, y in zip(self.boxes, levels, strict=True)]
        classes = [head(y).flatten(2) for head, y in zip(self.classes, levels, strict=True)]
        boxes, classes = torch.cat(boxes, 2), torch.cat(classes, 2)
        return {"boxes": boxes, "classes": classes} if self.form is dict else (boxes, classes)


def detector(form) -> Task:
    """Boxes and classes of every cell, from colours."""
    x = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Detector(form).eval()
        with torch.no_grad():
            boxes, classes = tensors(net(x))
        boxes, classes = boxes.roll(1, 2), classes.argmax(1)  # what it learns

    def loss(output, y):
        got_boxes, got_classes = tensors(output)
        return (got_boxes - y["boxes"]).abs().mean() / 100 + F.cross_entropy(got_classes, y["classes"])

    batches = [(x[i : i + 12], {"boxes": boxes[i : i + 12], "classes": classes[i : i + 12]}) for i in (0, 12)]
    return Task(model=net, batches=batches, loss=loss, score=lambda m: float(next(tensors(m(x))).abs().mean()))


@pytest.mark.slow
@pytest.mark.parametrize("form", [tuple, dict])
def test_a_detector_of_two_heads_is_pruned_saved_loaded_and_run_by_onnxruntime(form, tmp_path):
    task = detector(form)
    outcome = lab.GAL(**QUICK).run(task, progress=False)
    assert {structure.name for structure in outcome.structures} == {"stem.0", "next.0"}
    assert outcome.report["macs"].ratio > 1.1
    assert {step.stage for step in outcome.trace} == {"prune", "finetune"}
    assert_kept_and_run(outcome, task, torch.randn(2, 3, 16, 16), tmp_path)


@pytest.mark.slow
def test_each_head_counts_alike_whatever_its_size():
    """Boxes in hundredths and in hundreds: the same masks close."""
    recipe = lab.GAL(**{**QUICK, "steps": 6, "lr": 1e-6, "finetune_steps": 0})
    histories = []
    for size in (1, 64):
        task = detector(tuple)
        for head in task.model.boxes:
            head.weight.data.mul_(size)
            head.bias.data.mul_(size)
        histories.append(recipe.run(task, progress=False).history)
    assert torch.allclose(*histories, atol=1e-3) and (histories[0][-1] < 1).any()


def assert_kept_and_run(outcome, task, x, folder):
    """What is stored is found again, and does the same in torch and onnxruntime."""
    outcome.save(folder / "kept")
    again = lab.load(folder / "kept", base=task.model)
    with torch.no_grad():
        outputs = (tensors(net.eval()(x)) for net in (again.model, outcome.model))
        assert all(map(torch.equal, *outputs))
    assert again.structures == outcome.structures and again.report == outcome.report
    assert_runs_in_onnxruntime(again, x, folder)
