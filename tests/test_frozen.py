"""Frozen parameters stay as they came, in every stage of every recipe, and after an outcome is stored."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lab
from lab.core.data.text import perplexity
from lab.core.graph.tracing import trace
from lab.core.modeling_folded import blocks, is_linear
from lab.core.training import seeded
from lab.foldgpt.folding import unrolled
from lab.hybridsd.blocks import attentions, narrowed, residual_blocks
from lab.pams.layers import RoundedLayer
from tests.hybridsd.small import unet

from .foldgpt import small as foldgpt
from .pams import small as pams
from .test_contract import net, pictures

FROZEN = ("0.", "2.bias")  # of `net`: a whole convolution, and one bias


def partly(model: nn.Module, frozen=FROZEN) -> nn.Module:
    """The model with the parameters frozen whose names begin so."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    return model


def task() -> lab.Task:
    made = pictures()
    return replace(made, model=partly(made.model))


def names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def frozen_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if name.startswith(FROZEN)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stored(outcome, folder, base=None):
    outcome.save(folder)
    return lab.load(folder, base=base)


@pytest.mark.slow
def test_gal_fine_tunes_what_learns_alone(tmp_path):
    """Masks are folded into frozen layers too, and then they stand still."""
    recipe = lab.GAL(units="channel", steps=4, finetune_steps=0)
    untuned, tuned = (replace(recipe, finetune_steps=count).run(task(), progress=False) for count in (0, 5))
    assert names(tuned.model) == {"0.weight", "0.bias", "2.bias"}
    assert same(frozen_of(tuned.model), frozen_of(untuned.model))
    assert not torch.equal(tuned.model.get_parameter("5.weight"), untuned.model.get_parameter("5.weight"))
    assert names(stored(tuned, tmp_path / "gal", net()).model) == names(tuned.model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [lab.Decoupling(steps=4, lam_s=0.0), lab.SparseByteNN(steps=4, sparsity=0.0, search="none")],
    ids=lambda recipe: type(recipe).__name__,
)
def test_weights_that_no_method_cuts_are_kept_bit_for_bit(recipe, tmp_path):
    outcome = recipe.run(task(), progress=False)
    assert names(outcome.model) == {"0.weight", "0.bias", "2.bias"}
    assert same(frozen_of(outcome.model), frozen_of(net()))
    assert not torch.equal(outcome.model.get_parameter("5.weight"), net().get_parameter("5.weight"))
    assert names(stored(outcome, tmp_path / "kept", net()).model) == names(outcome.model)


@pytest.mark.slow
def test_sparsebytenn_zeroes_of_a_frozen_layer_what_it_prunes_and_nothing_else():
    model = partly(net(), ("2.",))
    outcome = lab.SparseByteNN(steps=4, sparsity=0.5, search="none").run(
        replace(pictures(), model=model), progress=False
    )
    after, before = outcome.model.get_parameter("2.weight"), net().get_parameter("2.weight")
    pruned = after == 0
    assert pruned.any() and torch.equal(after[~pruned], before[~pruned])


@pytest.mark.slow
@pytest.mark.parametrize("remedies", [(), ("restart",)], ids=str)
def test_dqss_rounds_frozen_weights_and_does_not_train_them(remedies):
    recipe = lab.DQSS(steps=4, calibration=8, mode="aware", candidates=("dorefa",), remedies=remedies)
    free, held = (recipe.run(made, progress=False).model for made in (pictures(), task()))
    short = replace(recipe, steps=1, lr=1e-9).run(task(), progress=False).model  # hardly trained
    for name in ("0.weight", "0.bias", "2.bias"):
        assert torch.equal(held.get_parameter(name), short.get_parameter(name))
    assert not torch.equal(free.get_parameter("0.bias"), held.get_parameter("0.bias"))
    assert not torch.equal(held.get_parameter("5.bias"), net().get_parameter("5.bias"))


@pytest.mark.slow
@pytest.mark.parametrize("released", [(), ("random_student",)], ids=str)
def test_pams_rounds_frozen_weights_and_does_not_train_them(released, tmp_path):
    frozen = ("blocks.0.", "head")
    recipe = lab.PAMS(steps=4, calibration=2, lr=0.1, released=released)
    outcome = recipe.run(pams.task(partly(pams.edsr(), frozen)), progress=False)
    plain, _ = pams.quantised(pams.edsr(), outcome.example)
    count = 0
    for (name, layer), after in zip(rounded(plain), [part for _, part in rounded(outcome.model)], strict=True):
        is_same = torch.equal(layer.weight, after.weight)
        assert is_same == name.startswith(frozen)
        count += is_same
    assert count == 2 and torch.equal(outcome.model.get_parameter("head.weight"), pams.edsr().head.weight)
    held = names(outcome.model)
    assert held == {name for name, _ in outcome.model.named_parameters() if name.startswith(frozen)}
    assert names(stored(outcome, tmp_path / "pams", pams.edsr()).model) == held


def rounded(model: nn.Module) -> list[tuple[str, RoundedLayer]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, RoundedLayer)]


# -- language models ---------------------------------------------------------------------------------------------------


def fold(model: nn.Module, **fields):
    x = [foldgpt.tokens(2, 12) for _ in range(2)]
    made = lab.Task(model=model, batches=x, score=perplexity(x), metric="perplexity", unit="")
    recipe = lab.FoldGPT(**{"removal": 1 / 6, "sharing": 1 / 6, "rank": 2, "gate_steps": 3, "cure_steps": 3} | fields)
    return recipe.run(made, progress=False)


def norms(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if "norm" in name and "layers" in name}


@pytest.mark.slow
def test_foldgpt_cures_no_norm_that_is_frozen(tmp_path):
    model = foldgpt.model("llama")
    for parameter in norms(model).values():
        parameter.requires_grad_(False)
    outcome = fold(model)
    assert names(outcome.model) == set(norms(outcome.model)) != set()
    before = {tuple(p.tolist()) for p in norms(model).values()}
    assert {tuple(p.tolist()) for p in norms(outcome.model).values()} <= before
    assert all(p.grad is None for p in model.parameters()) and names(model) == set(norms(model))
    assert names(stored(outcome, tmp_path / "fold").model) == names(outcome.model)
    assert names(outcome.unroll()) == names(outcome.model)


@pytest.mark.slow
def test_foldgpt_merges_nothing_into_frozen_matrices():
    model = foldgpt.model("llama")
    for block in blocks(model):
        for module in filter(is_linear, block.modules()):
            module.requires_grad_(False)
    outcome = fold(model, sharing=0.0)
    kept = [blocks(model)[number] for number in outcome.fold.kept]
    for old, new in zip(kept, blocks(outcome.model), strict=True):
        for (name, a), b in zip(old.named_parameters(), new.parameters(), strict=True):
            assert torch.equal(a, b) == ("norm" not in name), name
    assert names(unrolled(outcome.model)) == names(outcome.model)


@pytest.mark.slow
def test_foldgpt_says_that_nothing_is_left_to_cure():
    model = foldgpt.model("llama")
    blocks(model).requires_grad_(False)
    outcome = fold(model, sharing=0.0)
    assert {step.stage for step in outcome.trace} == {"gates"}
    assert "all norms and matrices of its blocks are frozen: not cured" in outcome.report.notes
    assert outcome.report["perplexity"].after == outcome.report["perplexity, not cured"].after


@pytest.mark.slow
@pytest.mark.parametrize("cure_steps", [0, 3])
def test_all_of_a_language_model_learns_where_all_of_it_is_frozen(cure_steps):
    free = fold(foldgpt.model("llama"), cure_steps=cure_steps)
    held = fold(foldgpt.model("llama").requires_grad_(False), cure_steps=cure_steps)
    assert held.trace == free.trace
    assert names(held.model) == names(free.model) == set()


# -- copies ------------------------------------------------------------------------------------------------------------


def test_a_frozen_weight_that_is_computed_stays_frozen_in_a_traced_copy():
    with seeded(0):
        model = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(2)))
    model[0].requires_grad_(False)
    assert names(trace(model, torch.zeros(1, 4))) == {"0.weight", "0.bias"}


def test_what_is_left_of_a_narrowed_unet_is_frozen_as_it_was():
    large = unet()
    for name, parameter in large.named_parameters():
        parameter.requires_grad_("conv" not in name and "norm2" not in name and "to_" not in name)
    widths = [block.conv1.out_channels // 2 for block in residual_blocks(large)]
    small = narrowed(large, widths, [1] * len(attentions(large)))
    assert names(small) == names(large) != set()
