"""Significance of layers, the rule that turns it into ratios, and each defect of the released code by its name."""

import pytest
import torch

from lab.core import cost
from lab.core.training import seeded
from lab.hybridsd import blocks, references, scores
from lab.hybridsd import equations as eq
from lab.hybridsd.scores import EXTRA, Rules

from . import small

SMALL = Rules(unit=4, least=0, heads=0)


def sample(unet, seed):
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    text = torch.randn(6, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return x - unet(x, 500, text).sample


@pytest.fixture(scope="module")
def unet():
    return small.unet(width=16)


def test_significance_is_the_distance_of_means_and_of_deviations():
    a, b = torch.randn(2, 50, 4, 3, 3)
    shift = torch.full_like(a, 2.0)
    assert eq.significance(a, a) == 0 and eq.significance(a, a + shift) == pytest.approx(2 * 36**0.5, rel=1e-5)
    theirs = (a.numpy().mean(0) - b.numpy().mean(0), a.numpy().std(0, ddof=1) - b.numpy().std(0, ddof=1))
    assert eq.significance(a, b) == pytest.approx(sum((d**2).sum() ** 0.5 for d in theirs), rel=1e-5)


@pytest.mark.slow
def test_bk_tiny_has_27_units_and_the_released_guards():
    tiny = references.unet("bk-tiny")
    found = scores.units(tiny)
    assert len(found) == 27 and sum("attn" in name for name in found) == 18
    with torch.device("meta"):
        quarter, half = (
            scores.pruned(tiny, {name: ratio for name, unit in found.items() if hasattr(unit, "conv1")})
            for ratio in (0.25, 0.5)
        )
        looks = scores.pruned(tiny, dict.fromkeys([name for name in found if "attn" in name], 0.25))
    assert cost.parameters(quarter) == 211_636_356 and cost.parameters(half) == 248_568_324
    assert cost.parameters(looks) == cost.parameters(tiny)  # two heads or fewer: left alone


@pytest.mark.slow
def test_every_unit_is_scored_from_the_same_noise(unet):
    found = scores.significance_scores(unet, sample, rules=SMALL, progress=False)
    assert list(found) == list(scores.units(unet)) and all(score > 0 for score in found.values())
    assert found == scores.significance_scores(unet, sample, rules=SMALL, progress=False)
    silent = next(name for name in found if name.endswith("resnets.0"))
    with seeded(0):
        idle = small.unet(width=16)
    torch.nn.init.zeros_(idle.get_submodule(silent).conv2.weight)
    assert scores.significance_scores(idle, sample, rules=SMALL, progress=False)[silent] == 0


@pytest.mark.slow
def test_without_reseeding_noise_is_scored_too(unet):
    rules = Rules(unit=4, least=0, heads=0, paper_compat=("no reseed", "extra unit"))
    fixed = Rules(unit=4, least=0, heads=0, paper_compat=("extra unit",))
    noisy, clean = (scores.significance_scores(unet, sample, rules=r, progress=False) for r in (rules, fixed))
    assert clean[EXTRA] == 0 and noisy[EXTRA] > max(clean.values())


def test_ratios_by_rank():
    found = scores.keep_ratios({"d": 4.0, "a": 1.0, "c": 3.0, "b": 2.0}, a=1, b=3)
    assert found == {"a": 0.25, "b": 0.5, "c": 0.5, "d": 0.75}
    twenty_seven = list(scores.keep_ratios({str(i): i for i in range(27)}).values())
    assert [twenty_seven.count(ratio) for ratio in (0.25, 0.5, 0.75)] == [19, 2, 6]
    with pytest.raises(ValueError, match=r"a=19, b=21 are not allowed: give 0 <= a <= b <= 1, "):
        scores.keep_ratios({"a": 1.0})


def test_the_defects_of_the_release():
    given = {"x.attn1": 1.0, "y.attn1": 2.0, "r": 3.0, "z.attn1": 4.0}
    assert scores.keep_ratios(given, 1, 3) == {"x.attn1": 0.25, "y.attn1": 0.5, "r": 0.5, "z.attn1": 0.75}
    shifted = scores.keep_ratios(given, 1, 3, Rules(paper_compat=("shifted slots",)))
    assert shifted == {"x.attn1": 0.5, "y.attn1": 0.75, "r": 0.5, "z.attn1": 0.5}
    assert EXTRA not in scores.keep_ratios({EXTRA: 0.0, **given}, 1, 3)
    assert scores.keep_ratios({EXTRA: 0.0, **given}, 1, 3)["x.attn1"] == 0.5  # the extra unit took the 0.25


def test_pruned_leaves_its_input_and_keeps_what_is_named(unet):
    name = next(name for name in scores.units(unet) if name.endswith("resnets.0"))
    before = cost.parameters(unet)
    made = scores.pruned(unet, {name: 0.5}, SMALL)
    assert cost.parameters(unet) == before > cost.parameters(made)
    assert made.get_submodule(name).conv1.out_channels == unet.get_submodule(name).conv1.out_channels // 2
    assert len(blocks.residual_blocks(made)) == len(blocks.residual_blocks(unet))


def test_what_does_not_fit_is_told(unet):
    with pytest.raises(ValueError, match="'conv_in' is not a unit of this U-Net"):
        scores.pruned(unet, {"conv_in": 0.5})
    with pytest.raises(ValueError, match=r"=2 is not allowed: give a number > 0 and <= 1"):
        scores.pruned(unet, {next(iter(scores.units(unet))): 2})
    with pytest.raises(ValueError, match="paper_compat: typo is not known: give any of no reseed"):
        Rules(paper_compat=("typo",))
