"""Networks of other shapes than a classifier's, from the run to onnxruntime: a U-Net, a detector with two heads."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lab
from lab.core.task import Task

QUICK = {"steps": 30, "mask_every": 1, "mask_lr": 0.05, "lam": 0.6, "finetune_steps": 8}


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
    expected = expected if isinstance(expected, tuple) else tuple(expected.values()) if isinstance(expected, dict) else (expected,)
    for got, want in zip(session.run(None, {"input": x.numpy()}), expected, strict=True):
        assert (torch.from_numpy(got) - want).abs().max() < 1e-4 * want.abs().max().clamp(min=1)


@pytest.mark.slow
def test_a_unet_is_pruned_saved_loaded_and_run_by_onnxruntime(tmp_path):
    task = segmenter()
    outcome = lab.GAL(**QUICK).run(task, progress=False)
    found = Counter(structure.name.split(".")[0] for structure in outcome.structures)
    assert set(found) == {"down", "middle", "deep", "up_middle", "up", "join_middle", "join"}
    assert outcome.report["macs"].ratio > 1.1 and outcome.report["accuracy"].after > 80
    outcome.save(tmp_path / "unet")
    again = lab.load(tmp_path / "unet", base=task.model)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.model.eval()(x), outcome.model.eval()(x))
    assert again.structures == outcome.structures and again.report == outcome.report
    assert_runs_in_onnxruntime(again, x, tmp_path)
