"""Published ways to spend less in the cloud: what they keep is what was computed, and they pay as they say."""

from dataclasses import replace

import pytest
import torch

import lab
from lab.core import cost
from lab.core.training import seeded
from lab.hybridsd import baselines
from lab.hybridsd.pipeline import HybridPipeline
from lab.hybridsd.sampler import HybridSampler
from lab.hybridsd.sampling import noise_prediction

from . import small
from .test_recipe import QUICK, own_task

SD = ("DeepCache", "T-GATE")


def inputs(family):
    pipeline = HybridPipeline.of(small.FAMILIES[family]().components, [small.unet(1)] if family == "sd" else [])
    sampler = HybridSampler(pipeline, ["a dog", "two cats"], 4.0)
    return pipeline.unets[0], sampler.noise(4)[0], sampler.cond


@torch.no_grad()
@pytest.mark.parametrize("family", small.FAMILIES)
def test_with_its_features_at_hand_the_last_layer_gives_what_the_whole_network_gave(family):
    unet, x, cond = inputs(family)
    with baselines._cached("DeepCache", unet, cond) as shallow:
        whole = noise_prediction(unet, x, torch.tensor(500), cond)
        assert torch.equal(noise_prediction(shallow, x, torch.tensor(500), cond), whole)
        other = noise_prediction(
            shallow, 2 * x, torch.tensor(20), cond
        )  # the latent and the time reach it all the same
    assert not torch.equal(other, whole) and not unet.up_blocks[-1].resnets[-1]._forward_pre_hooks


@torch.no_grad()
@pytest.mark.parametrize("family", small.FAMILIES)
def test_cross_attentions_give_what_they_gave_last_and_the_network_is_as_before(family):
    unet, x, cond = inputs(family)
    alone = replace(cond, guidance=1.0)
    modules = dict(unet.named_modules())
    with baselines._cached("T-GATE", unet, alone) as gated:
        whole = noise_prediction(unet, x, torch.tensor(500), alone)
        assert torch.equal(noise_prediction(gated, x, torch.tensor(500), alone), whole)
        swapped = replace(alone, text=torch.zeros_like(alone.text))
        assert torch.equal(noise_prediction(gated, x, torch.tensor(500), swapped), whole)  # no word is read any more
        with pytest.raises(RuntimeError):
            noise_prediction(gated, x[:, :3], torch.tensor(500), alone)
    assert dict(unet.named_modules()) == modules
    assert torch.equal(noise_prediction(unet, x, torch.tensor(500), alone), whole)


@torch.no_grad()
def test_with_guidance_the_mean_of_both_inputs_is_kept_and_one_is_run():
    unet, x, cond = inputs("sd")
    seen = []
    hook = unet.get_submodule(baselines._cross_attentions(unet)[0]).register_forward_hook(
        lambda *all: seen.append(all[-1])
    )
    with baselines._cached("T-GATE", unet, cond) as gated:
        noise_prediction(unet, x, torch.tensor(500), cond)
    hook.remove()
    (output,) = seen  # (2 B, tokens, C)
    kept = gated.outputs[baselines._cross_attentions(unet)[0]]
    torch.testing.assert_close(kept, (output[:2] + output[2:]) / 2)
    assert baselines._cheap_cond("T-GATE", unet, cond).guidance == 1.0


def test_ec_diff_evaluates_what_the_released_code_does():
    """p=7, k=2, s=37: seven steps, then the last of each three."""
    assert baselines._evaluated(17, 50) == (*range(7), *range(9, 37, 3))
    assert baselines._evaluated(1, 25) == (0,) and baselines._evaluated(2, 25) == (0, 1)


def test_ec_diff_goes_on_in_a_line(monkeypatch):
    """Predictions that grow by the step are met exactly after a warm-up; later ones go on by 0.3 of their growth."""
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    sampler, used = HybridSampler(pipeline, ["a"], 4.0), []

    def stepped(solver, predict, latent, call, generator):
        used.append(float(predict(latent, torch.tensor(0)).mean()))
        return latent

    heights = iter([0.0, 2.0, 10.0, 99.0])
    monkeypatch.setattr(baselines, "stepped", stepped)
    monkeypatch.setattr(baselines, "_predicted", lambda model, x, t, cond: torch.full_like(x, next(heights)))
    plan = baselines.BaselinePlan(8, 7, (0, 1, 4), 0, 0)
    baselines.sampled(sampler, "EC-Diff", plan)
    # 2 apiece after 0 and 2; from 6 to 10 there are 4, of which 0.3 goes on; the edge is asked at last
    assert used == pytest.approx([0, 2, 4, 6, 10, 11.2, 12.4, 99])


def test_without_a_skipped_step_ec_diff_is_the_split():
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    sampler = HybridSampler(pipeline, ["a dog"], 4.0, 3)
    (plan,) = baselines.plans(sampler, [("EC-Diff", 2)], 4).values()
    latent, size = baselines.sampled(sampler, "EC-Diff", plan)
    drawn = pipeline.draw("a dog", steps=[2, 2], guidance=4.0, seed=3)
    assert torch.equal(latent, drawn.latent)
    assert size == sampler.cloud(sampler.start(4), 2).picture_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
def test_what_is_paid_is_what_runs(scheduler):
    """The plan's MACs are those that are counted while the pictures are drawn, and no more than k steps'."""
    import diffusers

    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    pipeline = pipeline.with_solver(getattr(diffusers, scheduler)(**small.SCHEDULE))
    sampler = HybridSampler(pipeline, ["a dog"], 4.0)
    variants = [(name, k) for name in baselines.BASELINES for k in (1, 4)]
    plans = baselines.plans(sampler, variants, 9)
    whole, _ = lab.hybridsd.costs.measured(pipeline, 4.0)
    for (name, k), plan in plans.items():
        with cost._counting() as counter:
            baselines.sampled(sampler, name, plan)
        assert counter.get_total_flops() // 2 == plan.cloud + plan.edge, (name, k)
        asked = 1 if "DPM" in scheduler else 2
        assert plan.cloud <= asked * k * whole.cloud and len(plan.full) <= k
    assert plans["DeepCache", 4].steps > 4 and plans["EC-Diff", 4].until > 4


@pytest.mark.slow
def test_baselines_stand_in_the_sweep():
    recipe = lab.HybridSD(**QUICK, baselines=("T-GATE", "EC-Diff"))
    outcome = recipe.run(own_task(3), progress=False)
    plain = lab.HybridSD(**QUICK).run(own_task(3), progress=False)
    assert [(p.kind, p.k) for p in outcome.points] == [(p.kind, p.k) for p in plain.points] + [
        ("T-GATE", 2), ("EC-Diff", 2),
    ]  # fmt: skip
    assert outcome.points[: len(plain.points)] == plain.points  # they change nothing of the others
    saved = outcome.report["semantic accuracy, T-GATE, 2"]
    assert saved.after == outcome.at("T-GATE")[2].accuracy
    assert outcome.at("EC-Diff")[2].cloud_macs == plain.at()[2].cloud_macs
    assert "T-GATE" in lab.view(outcome).frame.svg


def test_what_cannot_be_asked_so_is_told():
    with pytest.raises(ValueError, match=r"HybridSD: baselines=\('DeepCash',\) is not allowed: give different ones of"):
        lab.HybridSD(baselines=("DeepCash",))
    flow = HybridPipeline.of(small.sd3().components)
    with pytest.raises(ValueError, match="look into a U-Net and the cloud's is a transformer of SD3: give 'EC-Diff'"):
        baselines.validate_baselines(SD, flow)
    baselines.validate_baselines(("EC-Diff",), flow)
    pipeline = own_task(1).model
    remote = HybridPipeline([pipeline.unets[1]], pipeline.scheduler, pipeline.text, pipeline.vae, cloud=object())
    with pytest.raises(ValueError, match="give one that is in this process"):
        baselines.validate_baselines(("EC-Diff",), remote)
    with seeded(0):
        deaf = small.unet(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type=None)
    with pytest.raises(ValueError, match="T-GATE needs a U-Net with attention to the text"):
        baselines.validate_baselines(("T-GATE",), HybridPipeline([deaf], pipeline.scheduler, pipeline.text, None))
