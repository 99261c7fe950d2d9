"""What a wrong method would get wrong: each part of the fold on its own, so that a fault in one is seen in it."""

from dataclasses import replace

import pytest
import torch

import lab
from lab.core.modeling_folded import LowRank, blocks
from lab.foldgpt.folding import Fold, adapt_alone, folded, merge
from lab.foldgpt.layers import Gates, HardConcreteGates, asked
from lab.foldgpt.ranking import BASELINES
from lab.foldgpt.recipe import SHARED_LR

from .small import model, tokens
from .test_models import logits, moved
from .test_recipe import QUICK, idle, told


def test_the_block_of_the_lowest_gate_is_the_first_to_go():
    gates = Gates(4, 1, 2, 0.8)
    with torch.no_grad():
        gates.b.copy_(torch.tensor([0.3, -0.1, 0.9, 0.2]))
    assert gates.ranking() == (1, 3, 0, 2)
    assert gates(1.0).argsort().tolist()[0] == 1


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_takes_the_block_that_does_nothing_first(name):
    net, x = idle(3)
    assert BASELINES[name](net, (x,), 1)[0] == 3


def test_gates_learn_to_shut_the_block_that_does_nothing():
    recipe = lab.FoldGPT(removal=1 / 6, sharing=0.0, gate_steps=6, cure_steps=0)
    outcome = recipe.run(told(*idle(3, 1.0)), progress=False)
    assert outcome.ranking[0] == 3 and int(outcome.gates[-1].argmin()) == 3
    assert [step.stage for step in outcome.trace] == ["gates"] * 6


def test_hard_concrete_gates_polarise_and_shut_the_block_that_does_nothing():
    recipe = lab.FoldGPT(removal=1 / 6, sharing=0.0, ranking="hard-concrete", gate_steps=40, cure_steps=0)
    outcome = recipe.run(told(*idle(3, 1.0)), progress=False)
    last = outcome.gates[-1]
    assert outcome.ranking[0] == 3 and float(last[3]) < 0.1 and float(last.sort().values[1:].min()) > 0.5
    assert {*outcome.trace[0].terms} == {"kl", "budget"}


def test_hard_concrete_gates_ask_for_no_more_than_the_budget():
    gates = HardConcreteGates(4, 2, 3)
    with torch.no_grad():
        gates.b.copy_(torch.tensor([9.0, 9.0, -9.0, -9.0]))
        ((_, half_open),) = gates.penalties(1.0)
        gates.b.fill_(9.0)
        ((_, all_open),) = gates.penalties(1.0)
    assert float(half_open) == pytest.approx(0, abs=1e-5) and float(all_open) == pytest.approx(30 * 0.25, rel=1e-3)
    assert asked(0.4, 0.0) == pytest.approx(0.1)
    gates.note(2, 1.0)
    assert gates.history[2].tolist() == [1.0] * 4 and gates.ranking() == (0, 1, 2, 3)


def test_the_first_of_the_ranking_go_and_the_likest_of_the_others_share():
    alike = torch.zeros(7, 7)
    for first, value in enumerate((0.9, 0.2, 0.8, 0.1, 0.3)):  # blocks 0-1, 1-2, 2-3, 3-4, 4-5
        alike[first + 1, first + 2] = value
    fold = lab.FoldGPT(rank=3)._fold((4, 0, 2, 5, 1, 3), 2, 1, alike)
    assert fold == Fold((1, 2, 3, 5), ((2, 3),), 3)


def test_the_teacher_weighs_as_much_as_beta_says():
    x = tokens(4, 16)
    terms = {
        beta: replace(QUICK, ranking="influence", cure_steps=1, beta=beta).run(told(model("llama"), x), progress=False)
        .trace[0].terms
        for beta in (1.0, 3.0)
    }  # fmt: skip
    assert terms[1.0]["text"] == terms[3.0]["text"] and terms[1.0]["tail"] > 1e-4
    assert terms[3.0]["tail"] == pytest.approx(3 * terms[1.0]["tail"], rel=1e-4)


def test_a_cure_learns_the_text():
    recipe = replace(QUICK, ranking="influence", recovery="plain", cure_steps=20, lr=5e-3)
    cured, raw = (
        replace(recipe, cure_steps=steps).run(told(model("llama"), tokens(4, 16)), progress=False) for steps in (20, 0)
    )
    assert cured.report["perplexity"].after < 0.9 * cured.report["perplexity, not cured"].after
    assert raw.report["perplexity"].after == raw.report["perplexity, not cured"].after


@pytest.mark.parametrize("recovery", ["tail", "logits"])
def test_a_cure_brings_the_student_nearer_to_its_teacher(recovery):
    recipe = replace(QUICK, ranking="influence", recovery=recovery, cure_steps=20, lr=5e-3, beta=100.0)
    trace = recipe.run(told(model("llama"), tokens(4, 16)), progress=False).trace
    assert trace[-1].terms[recovery] < 0.8 * trace[0].terms[recovery]


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # whose matrices stand the other way round
def test_a_merge_keeps_what_an_adapter_says(family):
    net, x = folded(model(family), Fold((0, 2, 3, 4), ((2, 3),), 2)), tokens()
    adapt_alone(net, 4)
    expected = logits(moved(net), x)
    for layer in (0, 3):  # those that share nothing
        merge(blocks(net)[layer])
        assert not any(isinstance(module, LowRank) for module in blocks(net)[layer].modules())
    assert torch.allclose(logits(net, x), expected, atol=1e-4)
    assert sum(isinstance(module, LowRank) for module in net.modules()) == 2 * sum(
        isinstance(module, LowRank) for module in blocks(net)[1].modules()
    )


def test_a_cure_leaves_matrices_that_are_no_regression_and_the_teacher_as_they_were():
    x, net = tokens(4, 16), model("llama")
    before = [p.clone() for p in net.parameters()]
    recipe = replace(QUICK, ranking="influence", cure_steps=2, representative="first")
    outcome = recipe.run(told(net, x), progress=False)
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    first = outcome.fold.groups[0][0]
    layer = outcome.fold.kept.index(first)
    shared = blocks(outcome.model)[layer].mlp.up_proj
    assert shared.base.weight is blocks(outcome.model)[layer + 1].mlp.up_proj.base.weight
    assert torch.equal(shared.base.weight, net.model.layers[first].mlp.up_proj.weight)
    norms = [blocks(outcome.model)[k].input_layernorm.weight for k in (layer, layer + 1)]
    assert not torch.equal(norms[0], net.model.layers[first].input_layernorm.weight) and norms[0] is not norms[1]


def test_what_a_group_shares_learns_at_a_rate_of_its_own():
    x, net = tokens(4, 16), model("llama")
    recipe = replace(QUICK, ranking="influence", representative="regression", lr=1e-2)
    raw, cured = (replace(recipe, cure_steps=steps).run(told(net, x), progress=False).model for steps in (0, 1))
    layer = cured.config.fold["groups"][0][0]
    before, *after = (blocks(m)[k].mlp.up_proj for m, k in ((raw, layer), (cured, layer), (cured, layer + 1)))
    assert after[0].base.weight is after[1].base.weight
    for part in ("base.weight", "A"):
        moved_by = (after[0].get_parameter(part) - before.get_parameter(part)).detach().abs()
        assert float(moved_by.median()) == pytest.approx(SHARED_LR * recipe.lr, rel=1e-2)  # Adam's first step
