"""The pruning-rate slider: counts that are counted, scores that are measured at every rate."""

import time

import pytest
import torch
from torch import nn

import lab
from lab.core import cost
from lab.core.task import Task
from lab.ui import pruning


def task() -> Task:
    """A small network that names the colour of noisy pictures; it is right about nearly all."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    x = torch.randn(120, 3, 6, 6, generator=generator) + 1.5 * nn.functional.one_hot(y, 3)[:, :, None, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(40, 3),
        )  # fmt: skip
        made = Task(model=network, batches=[(x, y)], score=lab.tasks.accuracy([(x, y)]), name="colours")
        lab.finetune(made, network, steps=40, lr=0.05, progress=False)
    return made


@pytest.fixture(scope="module")
def slider():
    return lab.ui.pruning_rate(task(), progress=False)


@pytest.mark.slow
def test_every_rate_is_counted_on_a_network_that_was_really_cut():
    made = task()
    curve = pruning.curve(made, rates=(0.0, 0.3, 0.6), progress=False)
    for rate, state in curve.states.items():
        model = curve.prune(rate)
        assert state.parameters == cost.parameters(model)
        assert state.macs == cost.macs(model, made.example)
        kept = {name: kept for name, kept, _ in state.layers}
        assert kept == {"0": model.get_submodule("0").out_channels, "3": model.get_submodule("3").out_channels}
    assert sum(kept for _, kept, _ in curve.states[0.3].layers) == 30 - 9


def test_more_pruning_leaves_less(slider):
    seen = [slider.set(rate=rate).frame.facts["parameters"] for rate in (0.0, 0.25, 0.5, 0.75, 0.95)]
    assert seen == sorted(seen, reverse=True) and len(set(seen)) == 5


def test_the_score_of_every_rate_is_measured(slider):
    made = task()
    curve = pruning.curve(made, rates=(0.0, 0.3, 0.5), progress=False)
    for rate, score in curve.measured.items():
        assert score == made.measure(curve.prune(rate))
        assert slider.set(rate=rate).frame.facts["accuracy"] == f"{score:.1f} %, not fine-tuned"
    assert slider.frame.svg.count("<circle") == len(pruning.RATES)


@pytest.mark.slow
def test_the_button_leaves_the_network_that_the_picture_shows():
    made = task()
    slider = lab.ui.pruning_rate(made, start=0.6, progress=False)
    slider.press("Prune for real")
    assert cost.parameters(slider.model) == slider.frame.facts["parameters"] < cost.parameters(made.model)
    assert slider.frame.facts["accuracy"] == f"{made.measure(slider.model):.1f} %, not fine-tuned"


@pytest.mark.slow
def test_an_outcomes_masks_rank_in_place_of_magnitude():
    made = task()
    recipe = lab.GAL(units="channel", steps=60, finetune_steps=0, mask_every=1, mask_lr=0.05)
    outcome = recipe.run(made, progress=False)
    by_masks = pruning.curve(made, outcome, rates=(0.4,), progress=False)
    scores = torch.cat(list(outcome.scores().values()))
    gone = 30 - sum(kept for _, kept, _ in by_masks.states[0.4].layers)
    assert gone == 12
    assert by_masks.states[0.4] != pruning.curve(made, rates=(0.4,), progress=False).states[0.4]
    assert len(scores) == 30 and (scores >= 0).all()


def test_a_step_is_quick_and_small(slider):
    slider.set(rate=0.1)
    start = time.perf_counter()
    slider.set(rate=0.15)
    assert time.perf_counter() - start < 0.15
    assert len(slider.frame.svg.encode()) < 10_000


def test_a_network_in_which_nothing_can_go_says_so():
    whole = Task(model=nn.Linear(4, 2), batches=[torch.zeros(2, 4)], score=lambda _: 0.0)
    with pytest.raises(ValueError, match="nothing in this network can lose channels"):
        lab.ui.pruning_rate(whole, progress=False)


class Transformer(nn.Module):
    """Patches, one encoder layer of torch's own, a head."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.encoder = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def transformer() -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = torch.randn(12, 3, 6, 6), torch.arange(12) % 3
        return Task(model=Transformer().eval(), batches=[(x, y)], score=lab.tasks.accuracy([(x, y)]))


@pytest.mark.slow
def test_heads_and_hidden_units_are_counted_whole():
    made = transformer()
    outcome = lab.GAL(units="channel", steps=4, mask_every=1, finetune_steps=0).run(made, progress=False)
    for ranked_by in (None, outcome):
        curve = pruning.curve(made, ranked_by, rates=(0.0, 0.6), progress=False)
        assert sorted((curve.kind(name), total) for name, _, total in curve.states[0.0].layers) == [
            ("heads", 4), ("hidden units", 24)
        ]  # fmt: skip
        assert all(kept == total for _, kept, total in curve.states[0.0].layers)
        model = curve.prune(0.6)
        kept = {curve.kind(name): kept for name, kept, _ in curve.states[0.6].layers}
        assert kept["hidden units"] == model.get_submodule("encoder.linear1").out_features
        query = next(module for name, module in model.named_modules() if name.endswith("q_proj"))
        assert 4 * kept["heads"] == query.out_features
        assert curve.states[0.6].parameters == cost.parameters(model) < cost.parameters(made.model)
    slider = lab.ui.pruning_rate(made, rates=(0.0, 0.5), progress=False)
    assert "heads kept" in slider.frame.svg and "hidden units kept" in slider.frame.svg


@pytest.mark.slow
def test_what_ranks_no_channels_is_one_line():
    with pytest.raises(TypeError, match="a list ranks no channels: give what GAL left"):
        lab.ui.pruning_rate(task(), [1], progress=False)
    with pytest.raises(ValueError, match=r"rate=1.5: must be in \[0, 1\)"):
        lab.ui.pruning_rate(task(), rates=(0.0, 1.5), progress=False)
