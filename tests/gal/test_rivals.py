"""The rivals of GAL's contest: their cuts keep to the budget, their scores are what their papers say."""

import sys
from pathlib import Path

import pytest
import torch

import lab
from lab.core import cost
from lab.gal.budget import Budget
from lab.gal.structures import insert_masks

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
try:
    import joint
    import pruning
finally:
    sys.path.remove(BENCHMARKS)

CUTS = ["uniform L1", "random channels", "group Taylor", "CHIP", "null signal"]


def test_independence_is_what_the_nuclear_norm_loses():
    maps = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0)).relu()
    found = pruning.independence(maps)
    for i in range(5):
        lost = []
        for picture in maps.flatten(2):
            without = picture.clone()
            without[i] = 0
            lost.append(torch.linalg.matrix_norm(picture, "nuc") - torch.linalg.matrix_norm(without, "nuc"))
        assert float(found[i]) == pytest.approx(float(torch.stack(lost).mean()), rel=1e-4)


def test_a_channel_that_repeats_another_is_the_least_independent():
    maps = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    maps[:, 3] = maps[:, 1]
    assert set(pruning.independence(maps).argsort()[:2].tolist()) == {1, 3}


@pytest.mark.slow
def test_maps_are_those_behind_norm_and_activation():
    task = lab.tasks.digits()
    x = task.inputs_of(task.first_batch())[:4]
    maps = dict(pruning.written(task, x))
    assert len(maps) == 9 and all(name.endswith("conv1") for name in maps)
    block, kept = task.model.layer1[0], []
    hook = block.conv1.register_forward_hook(lambda module, inputs, output: kept.append(output))
    task.model.eval()(x)
    hook.remove()
    assert torch.allclose(maps["layer1.0.conv1"], block.bn1(kept[0]).relu(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("ratio", [1.5, 3.0])
def test_cuts_keep_to_the_budget_and_not_far_below(name, ratio):
    task = lab.tasks.digits()
    whole = cost.macs(task.model, task.example)
    torch.manual_seed(0)
    model = pruning.CUTS[name](task, lab.GAL(), whole / ratio, None)
    assert ratio <= whole / cost.macs(model, task.example) < ratio * 1.12
    assert model(task.example).shape == task.model(task.example).shape
    assert not torch.equal(model(task.example), task.model(task.example))


@pytest.mark.slow
def test_distillation_brings_a_cut_network_back_to_the_start():
    task = lab.tasks.digits()
    model = pruning.uniform_l1(task, lab.GAL(), cost.macs(task.model, task.example) / 2, None)
    before = task.measure(model)
    start = {name: value.clone() for name, value in task.model.state_dict().items()}
    pruning.distil(task, model, steps=40, lr=0.01)
    assert task.measure(model) > before + 10
    assert all(torch.equal(value, start[name]) for name, value in task.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "googlenet", "densenet"])
def test_entries_that_close_together_save_no_more_than_one_by_one(name):
    """What lets a count be left out: many masks, closed at random, never leave less than the sum says."""
    kinds = {"resnet": ("channel", "block"), "googlenet": ("channel", "branch"), "densenet": ("channel", "input")}
    net = lab.nets.resnet_cifar(8) if name == "resnet" else joint.SMALL[name]()
    example = torch.zeros(1, 3 if name == "resnet" else 1, 16, 16)
    masked = insert_masks(net.eval(), kinds[name], example)
    budget = Budget(masked, example, 2.0, 3)
    budget.limits = [0.0]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        masks = [(torch.rand(len(m), generator=generator) > 0.15 * seed).float() for m in budget.last]
        for s, m in zip(masked.structures, masks, strict=True):
            m[0] = 1 if s.unit == "branch" else m[0]  # a concatenation needs one
        left = budget._left(masks)
        budget.limits[0] = left
        assert budget._fits(masks), "the bound says that more is left than there is"
        budget.limits[0] = left - 1
        assert not budget._fits(masks)
