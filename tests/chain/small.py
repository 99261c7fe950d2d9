"""Small tasks and quick recipes that the tests of chains share."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lab
from lab.core.data.text import perplexity
from lab.core.training import seeded

from ..foldgpt import small as foldgpt

# Settings under which each recipe runs in about a second and still changes its network.
QUICK = {
    "GAL": lab.GAL(units="channel", steps=12, lam=3.0, mask_every=1, finetune_steps=3),
    "Decoupling": lab.Decoupling(steps=4),
    "FoldGPT": lab.FoldGPT(removal=1 / 6, sharing=1 / 6, rank=2, gate_steps=3, cure_steps=3),
    "SparseByteNN": lab.SparseByteNN(steps=4, regroup_every=2, sparsity=0.5),
    "PAMS": lab.PAMS(steps=4, calibration=2, placement="full"),
    "DQSS": lab.DQSS(steps=3, calibration=8, candidates=("max", "mse"), weight_bits=8, activation_bits=8),
}


def net() -> nn.Module:
    with seeded(0):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        ).eval()  # fmt: skip


def pictures(generator: torch.Generator | None = None) -> lab.Task:
    """Pictures (1, 8, 8) of three classes; the loader may have a generator of its own."""
    with seeded(1):
        x, y = torch.randn(24, 1, 8, 8), torch.arange(24) % 3
    x = x + y[:, None, None, None]
    batches = DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=generator)
    return lab.Task(
        model=net(), batches=batches, score=lab.tasks.accuracy([(x, y)]), loss=entropy, name="small pictures"
    )


def entropy(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross entropy as a loss of the task's own: by torch's, PAMS would take the labels for pictures."""
    return nn.functional.cross_entropy(output, y)


def text() -> lab.Task:
    """A language model of six blocks, and batches (2, 12) of its tokens."""
    x = [foldgpt.tokens(2, 12) for _ in range(4)]
    return lab.Task(
        model=foldgpt.model("llama"), batches=x, score=perplexity(x), metric="perplexity", unit="",
        higher_is_better=False, name="small text",
    )  # fmt: skip


def task_for(names) -> lab.Task:
    """A task whose network each of these recipes can take."""
    return text() if "FoldGPT" in names else pictures()


def halved(model: nn.Module) -> nn.Module:
    """A function of the user's own: the last layer's weights, halved."""
    with torch.no_grad():
        list(model.parameters())[-2].mul_(0.5)
    return model


def widened(model: nn.Module) -> nn.Module:
    """A function that makes another structure."""
    return nn.Sequential(model, nn.Identity())
