"""What a seed gives does not cross the boundary, and what it does not give does."""

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.hybridsd import seeding
from lab.hybridsd.handoff import Handoff, advance, begin
from lab.hybridsd.pipeline import HybridPipeline
from lab.hybridsd.sampler import HybridSampler

from . import small
from .test_families import edge_of
from .test_handoff import crafted


def sampler(kind=None, seed=3, dtype=torch.float32):
    parts = small.sd().components
    scheduler = kind.from_config(parts["scheduler"].config) if kind else parts["scheduler"]
    unets = [small.unet(i).to(dtype) for i in (0, 1)]
    pipeline = HybridPipeline.of(parts | {"unet": unets[0], "scheduler": scheduler}, unets[1:])
    return HybridSampler(pipeline, ["a", "b"], 4.0, seed)


def is_same(a, b):
    noise = (a.noise is None and b.noise is None) or torch.equal(a.noise, b.noise)
    return noise and torch.equal(a.latent, b.latent) and a.latent.dtype == b.latent.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("seed", [3, [3, 8]], ids=str)
@pytest.mark.parametrize("kind", [None, EulerDiscreteScheduler, LCMScheduler, DDPMScheduler], ids=str)
def test_noise_and_a_generator_do_not_cross_where_the_seed_gives_them(kind, seed, dtype):
    made = sampler(kind, seed, dtype)
    state = made.start(4)
    sent = state.to_bytes()
    assert len(sent) < 3000 < state.latent.nbytes + 2000  # neither the latent nor a generator's state
    assert is_same(Handoff.from_bytes(sent), state)
    if dtype == torch.float32:
        after = made.edge(state, 2)
        sent = after.to_bytes()
        assert is_same(Handoff.from_bytes(sent), after)
        assert (b'\\"draws\\"' in sent) == (kind in (LCMScheduler, DDPMScheduler))
        assert len(sent) < 3000 + 3 * after.latent.nbytes  # a latent and two of history; a state has 5056 bytes


def test_what_a_seed_does_not_give_is_sent():
    made = sampler(LCMScheduler)
    state = made.start(4)
    latent = state.latent.clone()
    latent[0, 0, 0, 0] += 1e-3
    for other in (
        {"latent": latent}, {"seed": None}, {"seed": 4}, {"noise": torch.Generator().manual_seed(9).get_state()},
    ):  # fmt: skip
        changed = Handoff(**{**vars(state), **other})
        assert is_same(Handoff.from_bytes(changed.to_bytes()), changed)
        assert len(changed.to_bytes()) > len(state.to_bytes()) + 1000


def test_what_is_drawn_over_the_network_is_counted_both_ways():
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    far = edge_of(pipeline).draw(["a", "b"], steps=[2, 2, 2], order=[0, 1, 0], guidance=4.0, seed=5)
    (first, last), latent = far.crossings, far.latent.nbytes
    assert (first.step, last.step) == (2, 6) and far.sent == first.sent + last.sent
    assert first.sent < 3000 and last.sent > 2 * latent and far.received > 4 * latent  # a latent and its history
    assert far.received == first.received + last.received
    near = pipeline.draw(["a", "b"], steps=[1, 2, 1], order=[1, 0, 1], guidance=4.0, seed=5, int8=True)
    assert [(bool(c.sent), bool(c.received)) for c in near.crossings] == [(True, False), (False, True)]


@settings(max_examples=60, deadline=None)
@given(
    facts=st.fixed_dictionaries(
        {},
        optional={
            "shape": st.lists(st.integers(-1, 1 << 17), max_size=5) | st.just([2, 4, 8, 8]) | st.none(),
            "scale": st.floats() | st.integers() | st.none() | st.just(True),
            "draws": st.integers(-2, 1 << 40) | st.none() | st.floats(),
            "more": st.just(1),
        },
    ),
    seed=st.none() | st.integers() | st.lists(st.integers(), max_size=3) | st.text(max_size=3),
)
def test_facts_that_are_none_are_refused_before_anything_is_drawn(facts, seed):
    body = crafted(START.to_bytes(), {"drawn": facts, "seed": seed})
    try:
        made = Handoff.from_bytes(body)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert facts and made.latent.shape == tuple(facts["shape"])


def test_more_than_a_second_of_drawing_is_refused():
    large, often = {"shape": [1, 1, 1 << 13, 1 << 12], "scale": 1.0}, {"shape": [2, 4, 8, 8], "draws": 1 << 20}
    for facts in (large, often):
        with pytest.raises(ValueError, match="cannot be drawn again"):
            seeding.validate_seeding(facts, 3)
    seeding.validate_seeding({"shape": [2, 4, 8, 8], "draws": 1 << 10, "scale": 1.0}, 3)


START = sampler().start(4)


def test_a_latent_that_is_drawn_again_goes_on_as_it_was():
    made = sampler()
    sent = Handoff.from_bytes(START.to_bytes())
    ends = [advance(x, small.unet(0), made.scheduler, made.cond, 4).latent for x in (sent, START)]
    assert torch.equal(*ends)
    plain = begin(made.scheduler, START.latent, 4, 4.0)  # without a seed the latent is there
    assert len(plain.to_bytes()) > START.latent.nbytes
