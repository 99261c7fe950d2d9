"""The views' numbers, and that every state is there before the slider moves."""

import time

import pytest
import torch

import lab
from lab.core.service import ServiceError
from lab.hybridsd import branches, view
from lab.hybridsd.pipeline import HybridPipeline
from lab.hybridsd.policies import Timing, compared
from lab.hybridsd.samples import Samples

from . import small
from .test_recipe import QUICK, own_task


@pytest.fixture(scope="module")
def outcome():
    return lab.HybridSD(**QUICK).run(own_task(), progress=False)


@pytest.fixture(scope="module")
def pipeline():
    return HybridPipeline.of(small.sd().components, [small.unet(1)])


def test_numbers_are_the_reports(outcome):
    found = view.numbers(outcome, 2)
    assert found["saved"] == 0.5 and found["cloud"] == outcome.report["cloud macs"].after
    assert found["accuracy"] == outcome.report["semantic accuracy"].after and set(found["parts"]) == {"upper", "all"}
    assert view.curves(outcome.points, "accuracy")["fewer steps"] == [(2, outcome.at("fewer steps")[2].accuracy)]


def test_the_sweep_is_replayed(outcome):
    explorer = lab.view(outcome).set(k=4)
    assert "cloud compute saved 0 %" in repr(explorer) and explorer.frame.svg.count("<svg") == 6
    assert explorer.set(k=0).frame.svg != explorer.set(k=4).frame.svg


@pytest.mark.slow
def test_a_slider_step_is_quick_and_a_page_holds_them_all(pipeline, outcome, tmp_path):
    explorer = view.splitting(pipeline, ["a dog", "two cats"], (0, 1), N=4, outcome=outcome)
    assert explorer.state["k"] == 2
    start = time.perf_counter()
    explorer.set(k=3)
    assert time.perf_counter() - start < 1.0  # drawn beforehand: nothing is sampled
    assert "cloud steps 3, edge steps 1, cloud compute saved 25 %" in repr(explorer)
    cloud_first = explorer.frame
    assert explorer.set(order="edge first").frame.svg != cloud_first.svg and "edge: 1 steps" in explorer.frame.svg
    page = explorer.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "one picture, two machines" in page and "<script src" not in page


@pytest.mark.slow
def test_policies_stand_beside_what_they_choose_in_both_orders(pipeline, outcome):
    timing = Timing(cloud=0.1, edge=0.2)
    explorer = view.splitting(pipeline, ["a dog"], (0,), N=4, outcome=outcome, timing=timing)
    chosen = {
        (order, k): explorer.set(order=order, k=k).frame.facts.get("chosen by")
        for order in ("cloud first", "edge first")
        for k in (0, 2, 4)
    }
    named = {(c.order, c.steps): ", ".join(c.policies) or "no policy" for c in compared(outcome.points, timing)}
    assert chosen["cloud first", 2] == named[(0, 1), (2, 2)] and chosen["edge first", 2] == named[(1, 0), (2, 2)]
    assert chosen["edge first", 4] is None  # which no sweep has drawn


@pytest.mark.slow
def test_any_prompt_can_be_typed(pipeline, tmp_path):
    explorer = view.splitting(pipeline, ["a dog"], (0,), N=4).set(prompt="  a red house ", k=1)
    assert explorer.state["prompt"] == "a red house" and explorer.frame.svg.count("a red house") > 0
    explorer.save(tmp_path / "page.html")  # every k of both prompts
    with pytest.raises(ValueError, match="prompt=' ' is not on this control"):
        explorer.set(prompt=" ")


@pytest.mark.slow
def test_live_asks_the_cloud_and_says_when_it_is_gone(pipeline):
    class Gone:
        def half(self, state, k, int8=False, zeros=True):
            raise ServiceError("nobody listens")

    class Here(Gone):
        def half(self, state, k, int8=False, zeros=True):
            from lab.hybridsd.handoff import advance

            cond = pipeline.conditioning(state.prompt, state.guidance, zeros=True)
            return advance(state, pipeline.unets[0], pipeline.scheduler, cond, k), 200, 1234

    edge = [pipeline.unets[1]]
    for cloud, note in ((Here(), "bytes received 1,234"), (Gone(), "the edge drew all 4 steps alone")):
        live = HybridPipeline(edge, pipeline.scheduler, pipeline.text, pipeline.vae, cloud)
        explorer = view.splitting(pipeline, ["a dog"], (0,), N=4, live=live)
        if isinstance(cloud, Here):
            explorer.press("ask the cloud")
            here = live.draw("a dog", steps=[2, 2], guidance=4.0, seed=0).latent
            assert torch.equal(here, pipeline.draw("a dog", steps=[2, 2], guidance=4.0, seed=0).latent)
        else:
            with pytest.warns(UserWarning, match="nobody listens"):
                explorer.press("ask the cloud")
        assert note in repr(explorer)
    with pytest.warns(UserWarning, match="the cloud did not answer"):
        alone = live.draw("a dog", steps=[2, 2], guidance=4.0, seed=0)
    assert alone.steps == (0, 4)
    assert torch.equal(alone.latent, pipeline.draw("a dog", steps=[0, 4], guidance=4.0, seed=0).latent)


@pytest.mark.slow
def test_words_are_those_of_the_prompt_and_both_models_are_asked(pipeline):
    explorer = view.words(pipeline, "a dog, a", N=3)
    assert explorer._controls["word"].values == ("a", "d", "o", "g", ",", "a (2)")  # this tokenizer spells
    assert "cloud, of the attention" in explorer.frame.facts and "edge, of the attention" in explorer.frame.facts
    asked, images = branches.questions(pipeline, "a dog, a", 0, 4.0, 3)
    drawn = pipeline.draw("a dog, a", steps=[3, 0], guidance=4.0, keep=True)
    assert len(asked) == 3
    torch.testing.assert_close(images[-1:], drawn.pictures)
    assert torch.equal(asked[1].latent, drawn.trail[1])


def test_a_gallery_names_what_is_wrong_in_each_picture():
    task, dark = own_task(2), torch.zeros(2, 3, 16, 16)
    bright, half = torch.ones_like(dark), dark.clone()
    half[:, :, :8] = 0.9  # its upper half is bright, its mean is not
    ways = {"mixed": torch.cat([half[:1], bright[:1]]), "dark": dark}
    explorer = view.gallery({name: Samples(x, x, (3, 1)) for name, x in ways.items()}, task)
    first, second = explorer.frame.svg.split("</svg>")[:2]
    assert ">a<" in first and "wrong: all<" in first and ">b<" in second and "right in all parts" in second
    assert dict(explorer.frame.facts) == {"steps": "[3, 1]", "right": "1 of 2"}
    assert "right 0 of 2" in repr(explorer.set(way="dark")) and "wrong: upper, all<" in explorer.frame.svg
    for samples in ({}, {"three": Samples(dark.repeat(2, 1, 1, 1), dark, (4,))}):
        with pytest.raises(ValueError, match="the task has 2 prompts"):
            view.gallery(samples, task)
