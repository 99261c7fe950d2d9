"""A weight that two modules have is one weight: it is cut for neither, and what is left computes what it did."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import lab
from lab.core import cost
from lab.core.graph import surgery
from lab.core.graph.channels import Channels
from lab.core.graph.tracing import shared, trace
from lab.core.training import seeded
from lab.decoupling.removal import never_on


class Convs(nn.Module):
    """Two convolutions of one weight, with others before, between and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(c, 8, 3, padding=1) for c in (1, 8, 8))
        self.c, self.d, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        for layer in (self.stem, self.a, self.c, self.d, self.b):
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


class Words(nn.Module):
    """An embedding whose weight is the head's, around an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(12, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.down(torch.relu(self.up(x))))


class Read(nn.Module):
    """A head that is written as a product with the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(12, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        x = self.embed(x)
        return (x + self.down(torch.relu(self.up(x)))) @ self.embed.weight.T


PICTURES, TOKENS = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(10).view(2, 5)
NETS = {"convolutions": (Convs, PICTURES), "words": (Words, TOKENS), "read": (Read, TOKENS)}


def net(kind) -> nn.Module:
    with seeded(0):
        return kind().eval()


@pytest.mark.parametrize("name", NETS)
def test_what_is_tied_is_shared(name):
    kind, x = NETS[name]
    wanted = {"convolutions": {"a", "b"}, "words": {"embed", "head"}, "read": {"embed"}}[name]
    assert shared(trace(net(kind), x)) == wanted


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_no_plan_parts_a_tied_weight(name, embeddings):
    """Everything that may go, but one channel of each group, goes; counts and answers are those of the masked."""
    kind, x = NETS[name]
    model = net(kind)
    channels = Channels(trace(model, x), embeddings)
    free = {channels.producers[group][0] for group, _ in channels.free()}
    assert free == ({"c"} if name == "convolutions" else {"up"})
    small = surgery.remove(model, surgery.plan_at(surgery.magnitude(model, x), 0.5), x)
    assert len(dict(small.named_parameters(remove_duplicate=False))) - len(dict(small.named_parameters())) == (
        name != "read"
    )
    assert cost.parameters(small) < cost.parameters(model)


def task(kind=Convs) -> lab.Task:
    batches = [(PICTURES, torch.arange(4)) for _ in range(3)]
    return lab.Task(model=net(kind), batches=batches, score=lab.tasks.accuracy(batches))


def is_tied(model: nn.Module) -> bool:
    return model.get_submodule("a").weight is model.get_submodule("b").weight


@pytest.mark.slow
def test_gal_leaves_them_dense_and_says_why():
    recipe = lab.GAL(units="channel", steps=12, lam=2.0, mask_every=1, finetune_steps=2, released="uniform_masks")
    outcome = recipe.run(task(), progress=False)
    assert is_tied(outcome.model) and any("a is used more than once" in n for n in outcome.report.notes)
    assert {structure.name for structure in outcome.structures} == {"c"}


@pytest.mark.slow
def test_decoupling_gates_both_and_cuts_neither():
    outcome = lab.Decoupling(steps=3).run(task(), progress=False)
    assert is_tied(outcome.model) and {"a", "b", "c", "d"} == {site.layer for site in outcome.decoupled.sites}
    paths = outcome.paths(task().batches)
    nothing = replace(paths, packed=np.zeros_like(paths.packed))
    plan = never_on(outcome.decoupled, nothing, task().example)
    assert plan.channels.keys() | plan.outputs.keys() == {"c", "d"}


@pytest.mark.slow
def test_sparsebytenn_prunes_neither():
    outcome = lab.SparseByteNN(steps=3, sparsity=0.5).run(task(), progress=False)
    assert is_tied(outcome.model) and not outcome.masks.keys() & {"a", "b"}


@pytest.mark.slow
def test_dqss_stores_a_weight_for_each_and_counts_both(tmp_path):
    """Each layer may round it by a strategy of its own; floats are what no layer rounds."""
    recipe = lab.DQSS(steps=2, calibration=4, candidates=("max", "mse"), weight_bits=8)
    outcome = recipe.run(task(), progress=False)
    weights = [p for name, p in net(Convs).named_parameters(remove_duplicate=False) if name.endswith("weight")]
    biases = [p for name, p in net(Convs).named_parameters() if name.endswith("bias")]
    steps = sum(name.endswith("step") for name in outcome.model.state_dict())  # of weights and of what they read
    wanted = sum(p.numel() for p in weights) + 4 * sum(p.numel() for p in biases) + 4 * steps
    assert outcome.report["bytes"].after == wanted
    outcome.save(tmp_path / "tied")
    loaded = lab.load(tmp_path / "tied", base=net(Convs))
    with torch.no_grad():
        assert torch.equal(loaded.model(PICTURES), outcome.model(PICTURES))
