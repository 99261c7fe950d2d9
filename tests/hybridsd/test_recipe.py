"""The recipe: every split and control in one run, on models of one's own, resumable, its numbers what they say."""

import math
from dataclasses import replace

import pytest
import torch

import lab
from lab.core import store
from lab.core.training import seeded
from lab.hybridsd import costs, sweep
from lab.hybridsd.pipeline import HybridPipeline
from lab.hybridsd.prompts import PromptTask
from lab.hybridsd.sampler import HybridSampler

from . import small
from .test_sampling import CARRIED, made

QUICK = {"N": 4, "k": 2, "ks": (0, 2, 4), "controls": (2,), "batch": 2}


def own_task(count=5):
    """Prompts on a pipeline of one's own: 'right' is a bright or a dark upper half."""
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    with seeded(3):
        real = torch.rand(12, 3, 16, 16)

    def right(x):
        return torch.stack([x[:, :, :8].mean((1, 2, 3)) > 0.5, x.mean((1, 2, 3)) > 0.5], 1)

    prompts = tuple("abcdefg"[:count])
    return PromptTask(
        model=pipeline,
        prompts=prompts,
        right=right,
        features=lambda x: x.mean((2, 3)),
        real=real,
        parts=("upper", "all"),
    )


@pytest.fixture(scope="module")
def outcome():
    return lab.HybridSD(**QUICK).run(own_task(), progress=False)


@pytest.mark.slow
def test_every_way_is_what_the_pipeline_draws(outcome):
    task = own_task(2)
    pipeline = task.model
    sampler = HybridSampler(pipeline, task.prompts, 4.0, 9)
    latents, sizes = sweep.sampled(sampler, outcome.recipe.variants(), 4)
    cloud, edge = pipeline.unets
    text = pipeline.components()
    for (kind, k), latent in latents.items():
        pair = [edge, cloud] if kind == "edge first" else [cloud, edge]
        steps = {"hybrid": [k, 4 - k], "edge first": [4 - k, k], "fewer steps": [k, 0]}[kind]
        samples = HybridPipeline.of(text | {"unet": pair[0]}, [pair[1]]).draw(
            list(task.prompts), steps=steps, guidance=4.0, seed=9
        )
        assert torch.equal(latent, samples.latent), (kind, k)
        crosses = kind != "fewer steps" and 0 < k < 4
        assert (sizes[kind, k] > 4 * 8 * 8 * 4) == crosses, (kind, k)


def is_what_the_pipeline_draws(scheduler, **fields):
    task = own_task(2)
    task = replace(task, model=task.model.with_solver(scheduler))
    outcome = lab.HybridSD(**{**QUICK, "solver": "own", **fields}).run(task, progress=False)
    for k in (0, 2, 4):
        drawn = task.model.draw(list(task.prompts), steps=[k, 4 - k], guidance=4.0, seed=0)
        pixels = (255 * drawn.pictures).round().to(torch.uint8)
        assert torch.equal(outcome.pictures[f"hybrid, {k}"], pixels), k
    return outcome


@pytest.mark.slow
def test_solvers_of_several_calls_draw_what_the_pipeline_draws_and_pay_for_each():
    per_call, _ = costs.measured(own_task().model, 4.0)
    for name, options, calls in (
        ("PNDM", {"skip_prk_steps": True, "steps_offset": 1}, (3, 2, 5)), ("HeunDiscrete", {}, (4, 3, 7)),
        ("FlowMatchEulerDiscrete", {"shift": 3.0}, (2, 2, 4)),
    ):  # fmt: skip
        outcome = is_what_the_pipeline_draws(made(f"{name}Scheduler", **options))
        asked = [outcome.at(kind)[k].cloud_macs for kind, k in (("hybrid", 2), ("edge first", 2), ("hybrid", 4))]
        assert asked == [n * per_call.cloud for n in calls], name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("name", sorted(CARRIED))
def test_with_every_scheduler_it_is_what_the_pipeline_draws(name):
    is_what_the_pipeline_draws(made(f"{name}Scheduler"), controls=())  # PNDM's first steps want more than two


@pytest.mark.slow
def test_the_report_says_what_a_cast_at_the_border_costs(outcome):
    task = own_task(2)
    task.model.unets[1].half()
    mixed = lab.HybridSD(**QUICK).run(task, progress=False)
    (note,) = [note for note in mixed.report.notes if "cast" in note]
    assert note.startswith("latent cast from float32 to float16: relative error") and 0 < float(note.split()[-1]) < 0.01
    assert not any("cast" in note for note in outcome.report.notes)
    assert (
        torch.equal(mixed.pictures["hybrid, 4"][0], outcome_of_the_cloud(task))
        and mixed.report["cloud macs"].ratio == 2
    )
    with pytest.raises(ValueError, match="the slider draws in one process, device and precision"):
        lab.hybridsd.view.splitting(task.model, ["a"], N=2)


def outcome_of_the_cloud(task):
    """The first picture of the cloud alone, in the recipe's noise."""
    model = task.model.with_solver("dpm++")
    return (
        (255 * model.draw(list(task.prompts), steps=[4, 0], guidance=4.0, seed=0).pictures[0]).round().to(torch.uint8)
    )


@pytest.mark.slow
def test_costs_are_counted_apart(outcome):
    by = outcome.at()
    whole, half, alone = by[4], by[2], by[0]
    assert alone.cloud_macs == 0 and whole.cloud_macs == 2 * half.cloud_macs > 0
    cost, _ = costs.measured(own_task().model, 4.0)
    assert whole.edge_macs == cost.decoder and alone.edge_macs == 4 * cost.edge + cost.decoder
    assert outcome.at("fewer steps")[2].cloud_macs == half.cloud_macs == outcome.at("edge first")[2].cloud_macs
    single, _ = costs.measured(own_task().model, 1.0)
    assert cost.cloud == 2 * single.cloud  # guidance runs two inputs a picture
    assert half.bytes > 4 * 8 * 8 * 4 and whole.bytes == alone.bytes == 0


def test_the_report_is_about_k(outcome):
    report = outcome.report
    assert report["cloud macs"].ratio == 2.0 and report["bytes"].before == 16 * 16 * 3
    assert report["semantic accuracy"].after == outcome.at()[2].accuracy
    assert report["semantic accuracy, fewer steps, 2"].after == outcome.at("fewer steps")[2].accuracy
    assert outcome.nearest(100.0) == outcome.at()[0]


@pytest.mark.slow
def test_a_kill_loses_one_batch(outcome, tmp_path, monkeypatch):
    calls, real = [], sweep.sampled

    def dying(*args):
        calls.append(args[0].count)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(sweep, "sampled", dying)
    with pytest.raises(KeyboardInterrupt):
        lab.HybridSD(**QUICK).run(own_task(), progress=False, checkpoint=tmp_path)
    again = lab.HybridSD(**QUICK).run(own_task(), progress=False, checkpoint=tmp_path)
    assert calls == [2, 2, 1, 1] and again.report == outcome.report and again.points == outcome.points
    with pytest.raises(ValueError, match="belongs to HybridSD"):
        lab.HybridSD(**QUICK | {"guidance": 2.0}).run(own_task(), progress=False, checkpoint=tmp_path)
    other, fewer = own_task(), own_task(4)
    next(other.model.unets[1].parameters()).data += 0.01
    for task in (other, fewer):  # another network, other prompts
        with pytest.raises(ValueError, match="belongs to HybridSD"):
            lab.HybridSD(**QUICK).run(task, progress=False, checkpoint=tmp_path)


@pytest.mark.slow
def test_what_cannot_be_judged_is_a_note_and_the_pictures_are_kept(outcome):
    def blind(x):
        raise RuntimeError("the reader\nis away")

    found = lab.HybridSD(**QUICK).run(replace(own_task(), right=blind), progress=False)
    assert all(torch.equal(found.pictures[way], x) for way, x in outcome.pictures.items())
    assert found.report.notes[-1] == "quality not judged: RuntimeError: the reader is away"
    assert math.isnan(found.report["semantic accuracy"].after) and found.report["cloud macs"].ratio == 2.0
    assert "cloud compute saved 50 %" in repr(lab.view(found)) and found.nearest() is None


def test_the_bytes_of_int8_are_fewer():
    sampler = HybridSampler(own_task(1).model, ["a"], 4.0)
    state = sampler.cloud(sampler.start(4), 2)
    sizes = [state.picture_bytes(int8) for int8 in (False, True)]
    assert 0 < sizes[0] - sizes[1] < 3 * 1024


def test_bytes_are_one_pictures_in_every_batch_and_for_every_seed():
    pipeline = own_task(1).model
    sizes = set()
    for prompts, seed in ((["a"], 0), (["a", "b", "c"], 12_345), (["c", "a"], 0)):
        sampler = HybridSampler(pipeline, prompts, 4.0, seed)
        sizes.add(sampler.cloud(sampler.start(4), 2).picture_bytes())
    sampler = HybridSampler(pipeline, ["a"], 4.0)
    assert sizes == {len(sampler.cloud(sampler.start(4), 2).to_bytes())}


@pytest.mark.slow
def test_a_batch_that_an_earlier_version_kept_is_drawn_again(outcome, tmp_path):
    lab.HybridSD(**QUICK).run(own_task(), progress=False, checkpoint=tmp_path)
    saved = store.load(tmp_path, "batch-2")
    assert saved.pop("bytes")
    store.save(tmp_path, "batch-2", saved)
    again = lab.HybridSD(**QUICK).run(own_task(), progress=False, checkpoint=tmp_path)
    assert again.report == outcome.report and "bytes" in store.load(tmp_path, "batch-2")


def test_one_kind_of_error_for_each_wrong_field():
    with pytest.raises(ValueError, match=r"HybridSD: k=26 is not allowed: give an integer in 0..25"):
        lab.HybridSD(k=26)
    with pytest.raises(ValueError, match=r"HybridSD: ks=\(0, 99\) is not allowed"):
        lab.HybridSD(ks=(0, 99))
    with pytest.raises(ValueError, match=r"HybridSD: cloud='/no/such/folder' is not allowed: give '' or a folder"):
        lab.HybridSD(cloud="/no/such/folder")
    with pytest.raises(ValueError, match="belong together: give both"):
        lab.HybridSD(cloud="owner/name").pipeline()
    with pytest.raises(ValueError, match="kept for sd, sdxl, lcm"):
        lab.HybridSD.paper("flux")
    assert lab.HybridSD.paper("lcm").k == 4


def test_folders_by_field(tmp_path):
    small.sd().save_pretrained(tmp_path / "cloud")
    small.unet(1).save_pretrained(tmp_path / "edge")
    recipe = lab.HybridSD(cloud=str(tmp_path / "cloud"), edge=str(tmp_path / "edge"), **QUICK)
    pipeline = recipe.pipeline()
    assert torch.equal(pipeline.unets[1].conv_in.weight, small.unet(1).conv_in.weight)
