"""What is pruned stays pruned: through each recipe that trains, through every pair of them, folding and grids."""

from copy import deepcopy
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import lab
from lab.core.data.text import perplexity
from lab.core.finetune import sgd
from lab.core.graph import surgery
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.training import Stage, descend, seeded
from lab.core.zeros import Zeros, pruned
from lab.decoupling.placement import insert_gates
from lab.decoupling.removal import removed
from lab.sparsebytenn.rearrange import permute
from tests.foldgpt import small as foldgpt

EXAMPLE = torch.zeros(1, 3, 6, 6)
RECIPES = {
    "GAL": lab.GAL(steps=8, mask_every=1, lam=0.6, finetune_steps=4),
    "Decoupling": lab.Decoupling(steps=4),
    "SparseByteNN": lab.SparseByteNN(steps=4, regroup_every=2, sparsity=0.4),
    "SparseByteNN, 4 x 4": lab.SparseByteNN(steps=4, regroup_every=2, sparsity=0.4, block=(4, 4)),
    "PAMS": lab.PAMS(steps=4, calibration=2, placement="full", lr=0.03),
    "PAMS, random student": lab.PAMS(steps=4, calibration=2, placement="full", released="random_student"),
    "DQSS": lab.DQSS(steps=2, calibration=8, candidates=("max", "mse"), scales="uneven", placement="full"),
    "DQSS aware": lab.DQSS(mode="aware", steps=4, calibration=8, algorithm="dqss", lr=1.0),
}
FIRST, THEN = [*RECIPES][:4], [*RECIPES][:5] + [*RECIPES][6:]
# Gates may shut what a mask of GAL's is on, and a network is decoupled once.
PAIRS = [pair for pair in product(FIRST, THEN) if pair not in (("Decoupling", "GAL"), ("Decoupling", "Decoupling"))]


def block(width: int, kind: str) -> list[nn.Module]:
    """A convolution of a kind with what stands behind it, of as many channels as it reads."""
    sizes = {"pointwise": (1, 1), "plain": (3, 1), "depthwise": (3, width)}
    k, groups = sizes[kind]
    conv = nn.Conv2d(width, width, k, padding=k // 2, groups=groups, bias=kind == "plain")
    return [conv, nn.BatchNorm2d(width), nn.ReLU()]


def network(width: int, kinds: list[str], share: float) -> nn.Module:
    """Blocks of these kinds between a first convolution and a classifier, about `share` of each weight 0."""
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for kind in (*kinds, "plain"):
        layers += block(width, kind)
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)).eval()
    with torch.no_grad():
        for weight in filter(lambda p: p.dim() > 1, net.parameters()):
            weight.masked_fill_(torch.rand_like(weight) < share, 0)
    return net


NETWORKS = st.builds(
    lambda seed, *sizes: seeded_network(seed, *sizes),
    st.integers(0, 2**16), st.sampled_from([8, 12]),
    st.lists(st.sampled_from(["pointwise", "plain", "depthwise"]), max_size=2), st.sampled_from([0.2, 0.6]),
)  # fmt: skip


def seeded_network(seed: int, width: int, kinds: list[str], share: float) -> nn.Module:
    with seeded(seed):
        return network(width, kinds, share)


def task(net: nn.Module) -> lab.Task:
    """Pictures of three classes; a loss of the batch, which PAMS takes for classes too."""
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 3, 6, 6, generator=g), torch.arange(8) % 3) for _ in range(3)]
    return lab.Task(
        model=net, batches=batches, score=lambda net: 0.0, batch_loss=lambda net, b: F.cross_entropy(net(b[0]), b[1])
    )


def nonzeros(net: nn.Module) -> nn.Module:
    """A copy whose weights are 1 where they are not 0."""
    copy = deepcopy(net)
    with torch.no_grad():
        for weight in filter(lambda p: p.dim() > 1, copy.parameters()):
            weight.copy_(weight != 0)
    return copy


def carried(outcome, mask: nn.Module) -> nn.Module:
    """The mask of the network that an outcome was made from, as its own network stands."""
    recipe = outcome.recipe
    if isinstance(recipe, lab.GAL):
        return surgery.remove(mask, outcome.plan, EXAMPLE)
    if isinstance(recipe, lab.Decoupling):
        return removed(insert_gates(mask, EXAMPLE), outcome.plan, EXAMPLE).model
    if isinstance(recipe, lab.SparseByteNN):
        return permute(mask, outcome.orders, EXAMPLE)
    return fold_batch_norms(mask, EXAMPLE)


def brought_back(mask: nn.Module, model: nn.Module) -> dict[str, int]:
    """How many zeros of each layer are none in a model; one that has other layers is an error."""
    weights = dict(model.named_parameters())
    lost = {}
    for name, before in mask.named_parameters():
        if before.dim() > 1 and not name.startswith(("gate_", "_")):
            assert weights[name].shape == before.shape, name
            lost[name] = int(((before == 0) & (weights[name] != 0)).sum())
    assert any((p == 0).any() for p in mask.parameters() if p.dim() > 1)
    return {name: count for name, count in lost.items() if count}


# -- the hook ----------------------------------------------------------------------------------------------------------


def test_what_is_pruned_are_zeros_beside_other_numbers():
    assert pruned(torch.tensor([[0.0, 1], [2, -0.0]])).tolist() == [[True, False], [False, True]]
    assert pruned(torch.zeros(2, 2)) is None and pruned(torch.ones(2, 2)) is None and pruned(torch.zeros(3)) is None
    weight = nn.Parameter(torch.tensor([[0.0, 1.0]]))
    zeros = Zeros([weight])
    weight.data.fill_(5)
    zeros.apply()
    assert weight.tolist() == [[0, 5]]


def steps(net: nn.Module, folder, count: int, stop: int | None = None) -> None:
    """Train as a run does, or until a kill."""
    optimiser, _ = sgd(net.parameters(), 0.1, 10)
    stage = Stage(folder, "fit", "run", every=1, net=net, optimiser=optimiser)
    batches = [(torch.ones(2, 3), torch.ones(2, 2))]
    for step in descend(
        lambda b: {"l": F.mse_loss(net(b[0]), b[1])}, batches, optimiser, stage, steps=count, progress=False
    ):
        if step.index == 0:
            net.weight.data[1, 0] = 0  # a zero of the run's own making, which may come back
        if step.index == stop:
            return


def test_a_resumed_stage_holds_what_was_pruned_when_it_began(tmp_path):
    def fresh() -> nn.Linear:
        with seeded(0):
            net = nn.Linear(3, 2)
        net.weight.data[0, 1] = 0
        return net

    unbroken, resumed = fresh(), fresh()
    steps(unbroken, None, 4)
    steps(resumed, tmp_path, 4, stop=2)
    resumed = fresh()
    steps(resumed, tmp_path, 4)
    assert torch.equal(unbroken.weight, resumed.weight)
    assert unbroken.weight[0, 1] == 0 and unbroken.weight[1, 0] != 0


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(net=NETWORKS)
def test_a_recipe_leaves_zeros_where_they_are(name, net):
    outcome = RECIPES[name].run(task(net), progress=False)
    assert brought_back(carried(outcome, nonzeros(net)), outcome.model) == {}


@settings(max_examples=3, deadline=None)
@given(net=NETWORKS)
def test_fine_tuning_and_folding_leave_zeros_where_they_are(net):
    mask = nonzeros(net)
    lab.finetune(task(net), net, steps=3, lr=0.1, progress=False)
    assert brought_back(mask, net) == {}
    assert brought_back(mask, fold_batch_norms(net, EXAMPLE)) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), PAIRS)
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(net=NETWORKS)
def test_two_recipes_after_one_another_leave_zeros_where_they_are(first, then, net):
    ground = task(net)
    one = RECIPES[first].run(ground, progress=False)
    ground = replace(ground, model=one.model)
    mask = nonzeros(one.model)
    two = RECIPES[then].run(ground, progress=False)
    assert brought_back(carried(one, nonzeros(net)), one.model) == {}
    assert brought_back(carried(two, mask), two.model) == {}


def test_masks_of_torch_are_multiplied_in_and_stay():
    net = seeded_network(0, 8, ["pointwise"], 0.0)
    layers = {name: module for name, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    for layer in layers.values():
        prune.random_unstructured(layer, "weight", 0.5)
    ground = task(net)
    assert not any(name.endswith("_orig") for name, _ in ground.model.named_parameters())
    assert prune.is_pruned(net) and torch.equal(ground.model(batch := torch.randn(2, 3, 6, 6)), net(batch))
    outcome = RECIPES["SparseByteNN"].run(ground, progress=False)
    assert brought_back(carried(outcome, nonzeros(ground.model)), outcome.model) == {}


@pytest.mark.slow
def test_a_folded_language_model_keeps_its_zeros():
    net = foldgpt.model("llama")
    with torch.no_grad():
        for weight in filter(lambda p: p.dim() > 1, net.model.layers.parameters()):
            weight.masked_fill_(torch.rand_like(weight) < 0.5, 0)
    batches = [foldgpt.tokens(4, 12) for _ in range(2)]
    ground = lab.Task(
        model=net, batches=batches, score=perplexity(batches), metric="perplexity", unit="", higher_is_better=False
    )
    outcome = lab.FoldGPT(removal=0.2, sharing=0.0, gate_steps=2, cure_steps=3).run(ground, progress=False)
    kept = [net.model.layers[block] for block in outcome.fold.kept]
    before = nn.ModuleList(nonzeros(layer) for layer in kept)
    assert brought_back(before, outcome.model.model.layers) == {}
    changed = [
        (a != b).any()
        for a, b in zip(nn.ModuleList(kept).parameters(), outcome.model.model.layers.parameters(), strict=True)
    ]
    assert any(changed)
