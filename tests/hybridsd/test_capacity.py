"""What a cloud takes on: bodies of the pictures that it promises, steps that somebody waits for, its own precision."""

import time
from dataclasses import replace

import httpx
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LMSDiscreteScheduler, SASolverScheduler

from lab.core import service
from lab.hybridsd import cloud, wire
from lab.hybridsd.handoff import advance, begin
from lab.hybridsd.pipeline import HybridPipeline

from ..core.test_service import HEAD, running, saying
from . import small
from .test_cloud import PROMPT, both, door, edge_of, posted, state
from .test_sampling import COND, Secretive, Toy


@pytest.fixture(scope="module")
def here():
    return both()[0]


@pytest.mark.slow
def test_a_cloud_in_half_precision_serves_an_edge_in_single(here, monkeypatch):
    lower = HybridPipeline.of(small.sd().components, [small.unet(1)], solver="dpm++").half()
    facts = door(lower).get("/health").json()
    assert facts["dtype"] == "float16" and facts["mark"] == cloud.fingerprint(here)
    client = cloud.CloudClient("http://127.0.0.1:1")
    monkeypatch.setattr(
        service, "request", lambda method, url, *, query, body, **_: posted(lower, body, **query).content
    )
    mixed = edge_of(here, client).draw(PROMPT, steps=[2, 2], guidance=4.0, seed=5)
    exact = here.draw(PROMPT, steps=[2, 2], guidance=4.0, seed=5)
    assert mixed.steps == (2, 2) and mixed.latent.dtype == torch.float32
    assert 0 < float((mixed.latent - exact.latent).norm() / exact.latent.norm()) < 0.05
    assert len(mixed.notes) == 1 and "latent cast from float32 to float16: relative error" in mixed.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, LMSDiscreteScheduler, SASolverScheduler])
def test_the_pictures_that_it_promises_fit_into_a_request(kind):
    parts = small.sdxl().components | {"unet": small.unet(0, **small.XL, sample_size=128)}
    pipeline = HybridPipeline.of(parts | {"scheduler": kind(**small.SCHEDULE | {"steps_offset": 0})})
    pictures, most = cloud.capacity(pipeline)
    latent, generator = pipeline.noise(pictures, 3, 25)
    tokens = pipeline.text.tokens(["a"] * pictures)
    state = begin(pipeline.scheduler, latent, 25, 1.0, prompt=tokens, seed=3, generator=generator)
    state = advance(state, Toy(0.5), pipeline.scheduler, COND, 6)
    mask = torch.ones(pictures, 1, *latent.shape[2:], dtype=torch.bool)
    state = replace(state, painting={"image": latent, "mask": mask})  # the most that there can be
    size = len(state.to_bytes())
    assert pictures == 16 and 8 << 20 < size <= most <= wire.MAX_BYTES and most - size < 1 << 20


def test_a_body_beyond_what_it_promises_is_refused_by_its_length(here):
    _, most = cloud.capacity(here)
    assert door(here).get("/health").json()["bytes"] == most
    assert posted(here, b"0" * most).status_code == 400 and posted(here, b"0" * (most + 1)).status_code == 413


def test_an_answer_longer_than_any_to_this_request_is_not_read(here):
    with saying([HEAD + b"\r\n", *[b"x" * 65536] * 200], 0.0) as url:
        with pytest.raises(service.ServiceError, match=r"answered more than [23]..,... bytes"):
            cloud.CloudClient(url).half(state(here), 2)


@pytest.mark.slow
def test_steps_that_nobody_waits_for_are_not_taken(here):
    pipeline, calls = both()[0], []
    pipeline.unets[0].register_forward_pre_hook(lambda *_: calls.append(1))
    app = cloud.application(pipeline, None, service.Limits(work=0.2))
    counted = len(calls)
    with running(app) as at:
        late = httpx.post(f"http://127.0.0.1:{at}{cloud.PATH}", content=state(here, 200).to_bytes(),
                          params={"until": "200"}, timeout=30)  # fmt: skip
        assert late.status_code == 503 and "not done within 0.2 s" in late.json()["error"]
        time.sleep(0.3)
        taken = len(calls)
        time.sleep(0.3)
        assert len(calls) == taken < counted + 200


@pytest.mark.slow
def test_a_scheduler_that_cannot_be_handed_over_is_not_served():
    pipeline = both()[0].with_solver(Secretive(**small.SCHEDULE, clip_sample=False))
    with pytest.raises(ValueError, match="Secretive cannot be handed over"):
        cloud.application(pipeline)
