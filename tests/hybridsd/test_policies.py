"""Policies: what is chosen follows from times, the link and the sweep's quality, and can be drawn."""

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.hybridsd import policies, view
from lab.hybridsd.cloud import CloudClient
from lab.hybridsd.pipeline import HybridPipeline
from lab.hybridsd.policies import POLICIES, Policy, Timing, choose, compared, fixed
from lab.hybridsd.sweep import SweepPoint

from . import small

NOBODY = "http://127.0.0.1:1"
SWEPT = {0: 70.0, 5: 88.0, 10: 94.5, 15: 96.5, 20: 95.0, 25: 96.0}
POINTS = tuple(
    SweepPoint("hybrid", k, accuracy, (), 5.0 - k / 10, 100.0 * k, 20.0 * (25 - k), 4000 * (0 < k < 25))
    for k, accuracy in SWEPT.items()
)
FIRST = SweepPoint("edge first", 5, 95.5, (), 3.0, 500.0, 400.0, 4000)
FEWER = SweepPoint("fewer steps", 5, 99.0, (), 1.0, 500.0, 0.0, 0)


def test_each_policy_takes_what_it_says():
    fast_edge, fast_cloud = Timing(cloud=0.1, edge=0.01), Timing(cloud=0.01, edge=0.1, link=0.05, bandwidth=1e6)
    assert [choose(policy, POINTS, fast_edge).point.k for policy in POLICIES] == [10, 10, 15]
    assert [choose(policy, POINTS, fast_cloud).point.k for policy in POLICIES] == [25, 10, 15]
    assert choose("cost", POINTS, fast_edge, within=10).point.k == 5
    slow_link = Timing(cloud=0.01, edge=0.02, link=60.0)
    assert choose("latency", POINTS, slow_link, within=100).point.k == 0  # nothing crosses where the edge is alone


def test_the_edge_may_go_first_and_fewer_steps_are_no_split():
    timing = Timing(cloud=0.1, edge=0.01)
    chosen = choose("cost", (*POINTS, FIRST, FEWER), timing)
    assert chosen.point is FIRST and (chosen.steps, chosen.order) == ((20, 5), (1, 0))
    plain = choose("cost", POINTS, timing)
    assert (plain.steps, plain.order) == ((10, 15), (0, 1))
    assert FEWER not in [way.point for way in fixed((*POINTS, FEWER), timing)]
    drawn = HybridPipeline.of(small.sd().components, [small.unet(1)]).draw("a", steps=chosen.steps, order=chosen.order)
    assert drawn.steps == (20, 5)


def test_a_pipeline_draws_as_a_policy_chooses():
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    points = [replace(p, k=p.k // 5, bytes=0) for p in POINTS]  # of five steps
    policy = Policy("cost", points, Timing(cloud=0.1, edge=0.01))
    samples = pipeline.draw("a dog", policy=policy, guidance=4.0, seed=3)
    assert samples.steps == (2, 3) and samples.notes == ("policy 'cost': the cloud takes the first 2 of 5 steps",)
    assert torch.equal(samples.latent, pipeline.draw("a dog", steps=[2, 3], guidance=4.0, seed=3).latent)
    first = Policy("cost", [*points, replace(FIRST, k=1)], policy.timing)
    samples = pipeline.draw("a dog", policy=first, guidance=4.0, seed=3)
    assert samples.notes == ("policy 'cost': the cloud takes the last 1 of 5 steps",)
    assert torch.equal(samples.latent, pipeline.draw("a dog", steps=[4, 1], order=[1, 0], guidance=4.0, seed=3).latent)
    measured = Policy("quality", points)
    pipeline.draw("a dog", policy=measured, guidance=4.0)
    assert measured.timing is not None and measured.timing.cloud > 0
    gone = HybridPipeline([pipeline.unets[1]], pipeline.scheduler, pipeline.text, pipeline.vae, CloudClient(NOBODY))
    with pytest.warns(UserWarning, match="policy 'cost': the cloud could not be timed .* so the edge draws alone"):
        alone = gone.draw("a dog", policy=Policy("cost", points), guidance=4.0)
    assert alone.steps == (0, 5) and torch.equal(alone.latent, gone.draw("a dog", steps=[0, 5], guidance=4.0).latent)
    for wrong in ({"policy": "cost"}, {"policy": policy, "steps": [2, 3]}, {"policy": policy, "order": [1, 0]}):
        with pytest.raises(ValueError, match=r"is not allowed: give steps, or a lab\.hybridsd\.policies\.Policy alone"):
            pipeline.draw("a dog", **wrong)
    with pytest.raises(ValueError, match="steps=None is not allowed: give 2 integers"):
        pipeline.draw("a dog")
    with pytest.raises(ValueError, match="policy='cheap' is not allowed: give one of 'latency', 'cost', 'quality'"):
        Policy("cheap", points)


def test_seconds_are_steps_and_bytes():
    timing = Timing(cloud=0.5, edge=0.25, decoder=1.0, link=0.125, bandwidth=1000)
    assert timing.seconds(2, 6, 500) == 2 * 0.5 + 4 * 0.25 + 1 + 0.125 + 0.5
    assert timing.seconds(0, 6, 0) == 6 * 0.25 + 1


def test_fixed_ways_stand_beside_what_is_chosen():
    table = compared(POINTS, Timing(cloud=0.1, edge=0.01))
    assert {way.point.k: way.policies for way in table} == {
        0: (), 5: (), 10: ("latency", "cost"), 15: ("quality",), 20: (), 25: ()
    }  # fmt: skip
    assert "k=10" in repr(table[2]) and repr(table[2]).endswith("<- latency, cost") and "<-" not in repr(table[0])


def test_the_slider_says_which_policies_choose_a_split():
    facts = view._chosen(SimpleNamespace(points=POINTS), Timing(cloud=0.1, edge=0.01))
    assert facts["cloud first", 10] == {"seconds": "1.15", "chosen by": "latency, cost"}
    assert facts["cloud first", 5]["chosen by"] == "no policy"
    assert view._chosen(None, Timing(cloud=0.1, edge=0.01)) == {} == view._chosen(SimpleNamespace(points=POINTS), None)


times = st.floats(1e-4, 10)


@settings(deadline=None, max_examples=60)
@given(
    timing=st.builds(Timing, cloud=times, edge=times, decoder=times, link=times, bandwidth=st.floats(1, 1e9)),
    accuracies=st.lists(st.floats(0, 100) | st.just(math.nan), min_size=6, max_size=6),
    within=st.floats(0, 50),
)
def test_nothing_within_the_limit_is_better(timing, accuracies, within):
    points = [SweepPoint(p.kind, p.k, a, (), p.frechet, p.cloud_macs, p.edge_macs, p.bytes)
              for p, a in zip(POINTS, accuracies, strict=True)]  # fmt: skip
    if math.isnan(accuracies[-1]):
        with pytest.raises(ValueError, match="the cloud alone was not judged in this sweep"):
            choose("latency", points, timing, within)
        return
    near = [way for way in fixed(points, timing) if way.point.accuracy >= accuracies[-1] - within]
    assert choose("latency", points, timing, within).seconds == min(way.seconds for way in near)
    assert choose("cost", points, timing, within).point.k == min(way.point.k for way in near)
    assert choose("quality", points, timing, within).point.accuracy == max(a for a in accuracies if not math.isnan(a))


@pytest.mark.parametrize("wrong", [{"cloud": -1.0}, {"edge": "1"}, {"bandwidth": 0}], ids=str)
def test_what_cannot_be_is_one_line(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* is not allowed"):
        Timing(**{"cloud": 1.0, "edge": 1.0, **wrong})
    with pytest.raises(ValueError, match="policy='best' is not allowed: give one of 'latency', 'cost', 'quality'"):
        choose("best", POINTS, Timing(cloud=1.0, edge=1.0))


class Far:
    """A cloud whose link takes so many seconds, and so many for each byte, and which takes its steps at once."""

    def __init__(self, link, byte):
        self.link, self.byte = link, byte

    def half(self, state, until, **_):
        size = state.latent.nbytes
        time.sleep(self.link + 2 * size * self.byte)
        return state if until == state.index else type(state)(**{**vars(state), "index": until}), size, size

    def about(self):
        return {"pictures": 16}


def test_a_link_is_measured_from_two_requests():
    parts = HybridPipeline.of(small.sd().components, [small.unet(1)])
    far = HybridPipeline([parts.unets[1]], parts.scheduler, parts.text, parts.vae, Far(0.02, 1e-6))
    link, bandwidth = policies._link(far, 4.0, 4, 3)
    assert 0.01 < link < 0.2 and 2e5 < bandwidth < 1.1e6  # sleeping may take longer than asked, not less
    near = policies.measured(parts, 4.0, repeats=1)
    assert near.link == 0 and near.bandwidth == math.inf and min(near.cloud, near.edge, near.decoder) > 0
    assert isinstance(near.cloud, float) and torch.is_grad_enabled()
