"""The hand-off: what is carried over the boundary makes the trajectory of one machine, bit for bit."""

import hashlib
import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UNet2DConditionModel,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from lab.core import sealing
from lab.core.training import seeded
from lab.hybridsd import equations as eq
from lab.hybridsd import wire
from lab.hybridsd.handoff import Handoff, advance, begin, cloud_half, edge_half
from lab.hybridsd.sampling import Conditioning, trajectory
from lab.hybridsd.solvers import fresh

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "dpm": DPMSolverMultistepScheduler(**SCHEDULE),
    "dpm3": DPMSolverMultistepScheduler(**SCHEDULE, solver_order=3, use_karras_sigmas=True),
    "sde": DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="sde-dpmsolver++"),
    "ddim": DDIMScheduler(**SCHEDULE, clip_sample=False),
    "euler": EulerDiscreteScheduler(**SCHEDULE),
    "lcm": LCMScheduler(**SCHEDULE),
}


def unet(seed=0, **changes):
    with seeded(seed):
        return UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=8, layers_per_block=1,
            attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **changes,
        ).eval()  # fmt: skip


def cond(dtype=torch.float32, guidance=4.0, count=2):
    g = torch.Generator().manual_seed(1)
    text = torch.randn(2, count, 6, 8, generator=g).to(dtype)
    return Conditioning(text[0], text[1], guidance)


def noise(scheduler, steps, dtype=torch.float32, count=2):
    g = torch.Generator().manual_seed(7)
    x = torch.randn(count, 4, 8, 8, generator=g, dtype=dtype)
    return x * fresh(scheduler, steps).init_noise_sigma, g


def one_machine(unets, scheduler, steps, dtype=torch.float32):
    latent, generator = noise(scheduler, sum(steps), dtype)
    *_, last = trajectory(unets, fresh(scheduler, sum(steps)), latent, cond(dtype), steps, generator)
    return last


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_two_machines_make_the_latent_of_one_bit_for_bit(name, dtype):
    scheduler, cloud, edge = SCHEDULERS[name], unet(0).to(dtype), unet(1).to(dtype)
    for k in (0, 1, 3, 6):
        latent, generator = noise(scheduler, 6, dtype)
        sent = cloud_half(cloud, scheduler, latent, cond(dtype), k, 6, seed=7, generator=generator).to_bytes()
        received = Handoff.from_bytes(sent)
        found = edge_half(received, edge, type(scheduler).from_config(scheduler.config), cond(dtype))
        assert received.index == k and torch.equal(found, one_machine([cloud, edge], scheduler, [k, 6 - k], dtype))


def test_a_fresh_scheduler_at_step_k_is_another_trajectory():
    scheduler, cloud, edge = SCHEDULERS["dpm"], unet(0), unet(1)
    latent, _ = noise(scheduler, 6)
    sent, anew = cloud_half(cloud, scheduler, latent, cond(), 3, 6), fresh(scheduler, 6)
    anew.set_begin_index(3)
    *_, found = trajectory([edge], anew, sent.latent, cond(), [6], begin=3)
    error = eq.relative_error(one_machine([cloud, edge], scheduler, [3, 3]), found)
    assert 1e-6 < error < 0.1


def test_three_models_in_any_order():
    a, b = unet(0), unet(1)
    scheduler = SCHEDULERS["dpm"]
    one = one_machine([a, b, a], scheduler, [2, 2, 2])
    latent, _ = noise(scheduler, 6)
    state = begin(scheduler, latent, 6, 4.0)
    for model, until in ((a, 2), (b, 4), (a, 6)):
        state = Handoff.from_bytes(advance(state, model, scheduler, cond(), until).to_bytes())
    assert torch.equal(state.latent, one) and not torch.equal(one, one_machine([b, a], scheduler, [4, 2]))


def test_int8_is_half_of_fp16_and_says_its_error():
    scheduler = SCHEDULERS["dpm"]
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 4, 64, 64, generator=g, dtype=torch.float16)
    made = begin(scheduler, latent, 25, 7.0, prompt={"tokens": torch.full((1, 77), 49407)})
    full, small = made.to_bytes(), made.to_bytes(int8=True)
    assert 32_768 < len(full) < 36_000 and 16_384 < len(small) < 19_500
    back = Handoff.from_bytes(small)
    assert back.error == pytest.approx(eq.relative_error(latent, back.latent), rel=1e-3) and 0 < back.error < 0.02
    assert torch.equal(back.prompt["tokens"], made.prompt["tokens"]) and back.latent.dtype == torch.float16


def test_schedulers_that_differ_are_named():
    latent, _ = noise(SCHEDULERS["dpm"], 6)
    made = begin(SCHEDULERS["dpm"], latent, 6, 4.0)
    with pytest.raises(ValueError, match="class: 'DPMSolverMultistepScheduler' there, 'DDIMScheduler' here"):
        edge_half(made, unet(), SCHEDULERS["ddim"], cond())
    other = DPMSolverMultistepScheduler(**{**SCHEDULE, "beta_end": 0.02})
    with pytest.raises(ValueError, match=r"beta_end: 0.012 there, 0.02 here"):
        edge_half(made, unet(), other, cond())
    with pytest.raises(ValueError, match=r"until=7 is not allowed: give a step in 0..6"):
        advance(made, unet(), SCHEDULERS["dpm"], cond(), 7)


# -- bytes that are none -----------------------------------------------------------------------------------------------


def crafted(content, facts=None, tensors=None, drop=()):
    """The bytes with other facts and tensors, and the digest that belongs to them."""
    length = int.from_bytes(content[:8], "little")
    known = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["handoff"])
    kept = {name: x for name, x in {**load(content), **(tensors or {})}.items() if name not in drop}
    return sealing.sealed(kept, {"handoff": json.dumps({**known, **(facts or {})})})


@pytest.fixture(scope="module")
def sent():
    scheduler = SCHEDULERS["dpm"]
    latent, _ = noise(scheduler, 6)
    tokens = {"tokens0": torch.full((2, 5), 7)}
    return cloud_half(unet(), scheduler, latent, cond(), 3, 6, prompt=tokens, seed=7)


def test_crafted_bytes_are_read_as_the_others(sent):
    assert Handoff.from_bytes(crafted(sent.to_bytes())).index == 3
    assert torch.equal(Handoff.from_bytes(sent.to_bytes()).prompt["tokens0"], sent.prompt["tokens0"])


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_bit_that_flips_is_told(sent, data):
    good = bytearray(sent.to_bytes(int8=data.draw(st.booleans())))
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    good[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError) as caught:
        Handoff.from_bytes(bytes(good))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no hand-off"):
        Handoff.from_bytes(bytes(good[: data.draw(st.integers(0, len(good) - 1))]))


HOSTILE = {
    "scales that would spread": {"scale.latent": torch.ones(4096, 4, 1, 1)},
    "scales of places": {"scale.latent": torch.ones(2, 4, 4096, 1)},
    "scales of another tensor": {"scale.solver.sigmas": torch.ones(2, 4, 1, 1)},
    "scales of none": {"scale.other": torch.ones(2, 4, 1, 1)},
    "a latent of five axes": {"latent": torch.zeros(1, 2, 4, 8, 8, dtype=torch.int8)},
    "an empty latent": {"latent": torch.zeros(0, 4, 8, 8, dtype=torch.int8)},
    "a wide memory": {"solver.model_outputs.0": torch.zeros(2, 4, 80, 80)},
    "a long list": {"solver.sigmas": torch.zeros(5000)},
    "a prompt of another batch": {"prompt.tokens0": torch.zeros(3, 5, dtype=torch.int64)},
    "a long prompt": {"prompt.tokens0": torch.zeros(2, 5000, dtype=torch.int64)},
    "a prompt of bytes": {"prompt.tokens0": torch.zeros(2, 5, dtype=torch.uint8)},
    "a long state": {"noise": torch.zeros(20_000, dtype=torch.uint8)},
    "a tensor of no name": {"picture": torch.zeros(3, 8, 8)},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_shapes_are_demanded_before_a_tensor_is_made(sent, name, monkeypatch):
    bad = crafted(sent.to_bytes(int8=True), tensors=HOSTILE[name])
    monkeypatch.setattr(wire, "load", lambda content: pytest.fail("tensors were made"))
    with pytest.raises(ValueError, match=r"the hand-off's (latent|tensor)") as caught:
        Handoff.from_bytes(bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["dtype", "shape", "format"])
def test_a_header_of_many_words_is_one_short_line(sent, field):
    content, long = sent.to_bytes(), "x" * 3000
    if field == "format":
        bad = crafted(content, {"format": long})
    else:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header["latent"][field] = long if field == "dtype" else [1] * 3000
        header["__metadata__"]["sha256"] = "0" * 64
        text = json.dumps(header, separators=(",", ":")).encode()
        blank = len(text).to_bytes(8, "little") + text + content[8 + length :]
        bad = blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)
    with pytest.raises(ValueError, match=r"the hand-off's (latent|tensor)|the hand-off has format") as caught:
        Handoff.from_bytes(bad)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_name_that_comes_twice_is_refused():
    header = b'{"latent":1,"latent":2}'
    with pytest.raises(ValueError, match="a name comes twice"):
        Handoff.from_bytes(len(header).to_bytes(8, "little") + header)


def test_a_deep_header_is_one_line():
    for header in (b"[" * 100_000, b'{"__metadata__":{"sha256":' + b"[" * 50_000):
        with pytest.raises(ValueError, match="no hand-off") as caught:
            Handoff.from_bytes(len(header).to_bytes(8, "little") + header)
        assert "\n" not in str(caught.value)
