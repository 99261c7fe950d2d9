"""The cloud half over a real network: a server in another process, its limits, and an edge that goes on without it."""

import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
import torch
from diffusers import LCMScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import lab
from lab.core import service
from lab.hybridsd import cloud
from lab.hybridsd.handoff import advance, begin
from lab.hybridsd.pipeline import HybridPipeline

from . import small
from .test_handoff import crafted
from .test_recipe import QUICK, own_task

TOKEN = "a token of the tests"
PROMPT = "two cats"


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def started(folder):
    """A real server in another process, once it answers."""
    at = port()
    command = [sys.executable, "-m", "lab", "serve", "cloud", "--model", str(folder), "--port", str(at)]
    process = subprocess.Popen([*command, "--token", TOKEN], env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{at}"
    for _ in range(600):
        try:
            httpx.get(url + "/health", timeout=1)
            return process, url
        except httpx.HTTPError:
            assert process.poll() is None
            time.sleep(0.2)
    raise AssertionError("the server never answered")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloud")
    small.sd().save_pretrained(folder)
    process, url = started(folder)
    yield url
    process.terminate()
    process.wait(20)


def both():
    """Both models here, and the edge's alone."""
    here = HybridPipeline.of(small.sd().components, [small.unet(1)], solver="dpm++")
    return here, here.scheduler


def edge_of(here, client):
    return HybridPipeline([here.unets[1]], here.scheduler, here.text, here.vae, client)


def state(here, steps=4, count=1):
    latent, _ = here.noise(count, 3, steps)
    return begin(here.scheduler, latent, steps, 4.0, prompt=here.text.tokens(["a"] * count), seed=3)


@pytest.mark.slow
def test_over_the_network_is_bit_for_bit_in_one_process(server):
    here, _ = both()
    client = cloud.CloudClient(server, TOKEN)
    client.mark = cloud.fingerprint(here)
    far = edge_of(here, client).draw(PROMPT, steps=[2, 2], guidance=4.0, seed=5)
    near = here.draw(PROMPT, steps=[2, 2], guidance=4.0, seed=5)
    assert torch.equal(far.pictures, near.pictures) and far.steps == (2, 2) and far.received > 2048 and not far.notes
    whole = edge_of(here, client).draw(PROMPT, steps=[0, 4], guidance=4.0, seed=5)
    assert whole.received == 0 and torch.equal(
        whole.latent, here.draw(PROMPT, steps=[0, 4], guidance=4.0, seed=5).latent
    )


@pytest.mark.slow
def test_a_sweep_over_the_network_is_the_one_in_one_process(server):
    task = own_task(3)
    client = cloud.CloudClient(server, TOKEN)
    far = lab.HybridSD(**QUICK).run(replace(task, model=edge_of(task.model, client)), progress=False)
    near = lab.HybridSD(**QUICK).run(task, progress=False)
    assert far.points == near.points and far.report["parameters"] == near.report["parameters"]
    assert all(torch.equal(far.pictures[way], near.pictures[way]) for way in near.pictures)
    with pytest.raises(ValueError, match="batch=48 is not allowed: the cloud takes at most 16 pictures"):
        lab.HybridSD(**QUICK | {"batch": 48}).run(replace(task, model=edge_of(task.model, client)), progress=False)
    with pytest.raises(service.ServiceError, match="ConnectError"):
        cloud.CloudClient(f"http://127.0.0.1:{port()}").about()


@pytest.mark.slow
def test_what_is_refused_and_why(server):
    here, _ = both()
    begun = state(here)
    answers = {
        "bearer token is wrong": lambda: cloud.CloudClient(server, "wrong").half(begun, 2),
        "models differ": lambda: marked(server, "0" * 12).half(begun, 2),
        r"until='9' is not allowed: give a step in 0..4": lambda: cloud.CloudClient(server, TOKEN).half(begun, 9),
        "steps are too many": lambda: cloud.CloudClient(server, TOKEN).half(state(here, 300), 250),
        "pictures are too many": lambda: cloud.CloudClient(server, TOKEN).half(state(here, count=17), 2),
    }
    for words, ask in answers.items():
        with pytest.raises(service.ServiceError, match=words):
            ask()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    found = httpx.post(server + cloud.PATH, content=b"rubbish" * 9, params={"until": "1"}, headers=headers)
    assert found.status_code == 400 and "no hand-off" in found.json()["error"]
    long = httpx.post(server + cloud.PATH, content=b"0" * (9 << 20), headers=headers)
    assert long.status_code == 413 and "more than" in long.json()["error"]
    health = httpx.get(server + "/health").json()
    assert health["ok"] and health["mark"] == cloud.fingerprint(here) and "token" not in str(health)


def marked(url, mark):
    client = cloud.CloudClient(url, TOKEN)
    client.mark = mark
    return client


@pytest.mark.slow
def test_a_cloud_killed_in_mid_request_leaves_the_edge_alone(tmp_path):
    small.sd().save_pretrained(tmp_path)
    process, url = started(tmp_path)
    here, _ = both()
    threading.Timer(0.3, process.kill).start()
    with pytest.warns(UserWarning, match="the cloud did not answer"):
        found = edge_of(here, cloud.CloudClient(url, TOKEN)).draw(PROMPT, steps=[200, 1], guidance=4.0, seed=5)
    process.wait(20)
    assert found.steps == (0, 201) and "the edge drew all 201 steps alone" in found.notes[0]
    with pytest.raises(service.ServiceError, match="ConnectError"):
        cloud.CloudClient(url, TOKEN).half(state(here), 2)


class Liar(BaseHTTPRequestHandler):
    """Answers what `server.answer(body)` says, after `server.delay` seconds."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.delay)
        answer = self.server.answer(body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("delay", "answer", "words"),
    [
        (0.0, lambda body: b"rubbish", "it answered rubbish"),
        (0.0, lambda body: body, "it answered another question"),  # not a step further
        (2.0, lambda body: body, "no whole answer within 0.5 s"),
    ],
    ids=["rubbish", "another", "slow"],
)
def test_rubbish_and_slowness_are_told_apart(delay, answer, words):
    server = HTTPServer(("127.0.0.1", 0), Liar)
    server.delay, server.answer = delay, answer
    threading.Thread(target=server.handle_request, daemon=True).start()
    here, _ = both()
    client = cloud.CloudClient(f"http://127.0.0.1:{server.server_port}", seconds=0.5 if delay else 30.0)
    with pytest.warns(UserWarning, match=words):
        found = edge_of(here, client).draw(PROMPT, steps=[2, 2], guidance=4.0, seed=5)
    server.server_close()
    assert torch.equal(found.latent, here.draw(PROMPT, steps=[0, 4], guidance=4.0, seed=5).latent)


# -- an answer is bound to its question --------------------------------------------------------------------------------


class Altering:
    """A cloud in this process that takes the steps and then changes its answer."""

    def __init__(self, pipeline, change):
        self.pipeline, self.change = pipeline, change

    def half(self, state, until, int8=False, zeros=True):
        cond = self.pipeline.conditioning(state.prompt, state.guidance, zeros=zeros)
        return self.change(advance(state, self.pipeline.unets[0], self.pipeline.scheduler, cond, until)), 1, 1


def memory(**changes):
    return lambda made: replace(made, solver={**made.solver, **{k: f(made.solver) for k, f in changes.items()}})


ALTERED = {
    "prompt": lambda made: replace(made, prompt={name: x.flip(1) for name, x in made.prompt.items()}),
    "a prompt less": lambda made: replace(made, prompt={}),
    "guidance": lambda made: replace(made, guidance=7.0),
    "seed": lambda made: replace(made, seed=6),
    "step": lambda made: replace(made, index=1),
    "steps": lambda made: replace(made, steps=5),
    "schedule": lambda made: replace(made, config={**made.config, "beta_end": 0.02}),
    "latent's shape": lambda made: replace(made, latent=made.latent.repeat(2, 1, 1, 1)),
    "noise": lambda made: replace(made, noise=torch.Generator().get_state()),
    "step index": memory(_step_index=lambda solver: 0),
    "reversed sigmas": memory(sigmas=lambda solver: solver["sigmas"].flip(0)),
    "short sigmas": memory(sigmas=lambda solver: solver["sigmas"][:-1]),
    "long memory": memory(model_outputs=lambda solver: solver["model_outputs"] * 2),
    "forgotten": memory(model_outputs=lambda solver: [None, None]),
    "wide memory": memory(model_outputs=lambda solver: [x.repeat(1, 1, 2, 1) for x in solver["model_outputs"]]),
    "NaN in memory": memory(model_outputs=lambda solver: [x * torch.nan for x in solver["model_outputs"]]),
    "order": memory(lower_order_nums=lambda solver: 1),
    "more memory": memory(timesteps=lambda solver: torch.zeros(4)),
    "no memory": lambda made: replace(made, solver={}),
}


@pytest.fixture(scope="module")
def here():
    return both()[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALTERED)
def test_what_was_not_asked_is_refused_and_the_edge_draws_alone(here, name):
    cloud_side = Altering(here, ALTERED[name])
    with pytest.warns(UserWarning, match="it answered another question"):
        found = edge_of(here, cloud_side).draw(PROMPT, steps=[2, 2], guidance=4.0, seed=5)
    assert found.steps == (0, 4) and "the edge drew all 4 steps alone" in found.notes[0]
    assert torch.equal(found.latent, here.draw(PROMPT, steps=[0, 4], guidance=4.0, seed=5).latent)
    honest = edge_of(here, Altering(here, lambda made: made)).draw(PROMPT, steps=[2, 2], guidance=4.0, seed=5)
    assert honest.steps == (2, 2) and not honest.notes


@pytest.mark.parametrize(("steps", "order"), [([2, 2], [1, 0]), ([1, 2, 1], [1, 0, 1]), ([1, 2, 1], [0, 1, 0])])
def test_the_order_is_free_over_the_network_too(here, steps, order):
    far = edge_of(here, Altering(here, lambda made: made))
    drawn = [x.draw(PROMPT, steps=steps, order=order, guidance=4.0, seed=5) for x in (far, here)]
    assert torch.equal(drawn[0].latent, drawn[1].latent) and drawn[0].steps == tuple(steps) and not drawn[0].notes
    assert drawn[0].received == order.count(0)


def test_the_edge_takes_the_steps_of_a_cloud_that_fails_in_any_order(here):
    def silent(made):
        raise service.ServiceError("it is away")

    far, alone = edge_of(here, Altering(here, silent)), here.draw(PROMPT, steps=[0, 4], guidance=4.0, seed=5).latent
    for steps, order, took in (
        ([2, 2], [1, 0], (2, 0, 2)), ([1, 2, 1], [0, 1, 0], (0, 3, 0, 1)), ([1, 2, 1], [1, 0, 1], (1, 0, 3))
    ):  # fmt: skip
        with pytest.warns(UserWarning, match=r"the cloud did not answer \(it is away\): the edge takes [12] steps"):
            samples = far.draw(PROMPT, steps=steps, order=order, guidance=4.0, seed=5)
        assert torch.equal(samples.latent, alone) and samples.steps == took


@cache
def door(pipeline):
    """The service in this process."""
    return TestClient(cloud.application(pipeline), base_url="http://127.0.0.1")


def posted(pipeline, body, **query):
    """What the service says to a body."""
    return door(pipeline).post(cloud.PATH, content=body, params={"until": "2"} | query)


@pytest.mark.slow
def test_an_answer_says_to_which_request_it_belongs(here, monkeypatch):
    client = cloud.CloudClient("http://127.0.0.1:1")
    mine, other = (replace(state(here), prompt=here.text.tokens([text])) for text in ("a", "b"))
    answered = {}

    def ask(method, url, *, query, body, **_):
        answered.setdefault("first", posted(here, body, **query).content)
        return answered["first"]

    monkeypatch.setattr(service, "request", ask)
    made, sent, size = client.half(mine, 2)
    assert made.index == 2 and size == len(answered["first"]) and sent == len(mine.to_bytes()) and made.asked == ""
    for question, until, how in (
        (other, 2, {}), (mine, 1, {}), (mine, 2, {"int8": True}), (mine, 2, {"zeros": False}),
        (replace(mine, latent=-mine.latent), 2, {}),
    ):  # fmt: skip
        with pytest.raises(service.ServiceError, match="it answered another question"):
            client.half(question, until, **how)
    client.half(mine, 2)
    flipped = bytearray(answered["first"])
    flipped[-100] ^= 1
    answered["first"] = bytes(flipped)
    with pytest.raises(service.ServiceError, match=r"it answered rubbish: .*their digest is another"):
        client.half(mine, 2)


# -- bodies that are none ----------------------------------------------------------------------------------------------


def bodies(here):
    """What a client with a token could send: each was once a crash."""
    begun = state(here)
    half = advance(begun, here.unets[0], here.scheduler, here.conditioning(begun.prompt, 4.0), 1)
    noisy = here.with_solver(LCMScheduler.from_config(here.scheduler.config))
    latent, generator = noisy.noise(1, 0, 4)
    drawing = begin(noisy.scheduler, latent, 4, 4.0, prompt=begun.prompt, generator=generator)
    return {
        "negative ids": replace(begun, prompt={name: x - 60 for name, x in begun.prompt.items()}).to_bytes(),
        "float prompt": replace(begun, prompt={name: x.float() for name, x in begun.prompt.items()}).to_bytes(),
        "step index": replace(half, solver={**half.solver, "_step_index": 900}).to_bytes(),
        "short sigmas": replace(half, solver={**half.solver, "sigmas": half.solver["sigmas"][:2]}).to_bytes(),
        "no sigmas": replace(half, solver={}).to_bytes(),
        "short noise": replace(drawing, noise=drawing.noise[:100]).to_bytes(),
        "noise of rubbish": replace(drawing, noise=torch.full_like(drawing.noise, 255)).to_bytes(),
        "NaN guidance": crafted(begun.to_bytes(), {"guidance": math.nan}),
        "huge guidance": crafted(begun.to_bytes(), {"guidance": 10**400}),
        "null index": crafted(begun.to_bytes(), {"index": None}),
        "null guidance": crafted(begun.to_bytes(), {"guidance": None}),
        "no steps": crafted(begun.to_bytes(), {"steps": 0}),
        "numbers in numbers": crafted(half.to_bytes(), {"numbers": {"_step_index": {"a": [[1]]}}}),
        "long ids": replace(begun, prompt={name: x.repeat(1, 3) for name, x in begun.prompt.items()}).to_bytes(),
        "a class": crafted(begun.to_bytes(), {"scheduler": "DDIMScheduler"}),
        "huge latents": replace(begun, latent=begun.latent * 1e38).to_bytes(),
    }


def test_bodies_that_are_none_are_one_line(here):
    for name, body in bodies(here).items():
        found = posted(here, body)
        line = found.json()["error"]
        assert found.status_code == 400 and "\n" not in line and len(line) < 400, (name, found.status_code, line)


plain = st.none() | st.booleans() | st.integers(-3, 2000) | st.floats() | st.text(max_size=4) | st.just(10**400)
listed = st.lists(plain, max_size=3) | st.dictionaries(st.text(max_size=4), plain, max_size=2)
values = plain | listed | st.lists(listed, max_size=2) | st.dictionaries(st.text(max_size=4), listed, max_size=2)
FIELDS = ["format", "index", "steps", "scheduler", "config", "numbers", "guidance", "seed", "dtype", "int8", "error"]
NAMES = ["latent", "scale.latent", "solver.sigmas", "solver.model_outputs.0", "prompt.tokens0", "noise", "other"]
DTYPES = [torch.float32, torch.float16, torch.int64, torch.int8, torch.uint8, torch.uint16, torch.bool, torch.float64]


@st.composite
def changes(draw):
    facts = draw(st.dictionaries(st.sampled_from(FIELDS), values, max_size=2))
    shapes = st.lists(st.integers(0, 9), max_size=5) | st.just([1, 4, 8, 8]) | st.just([1, 16])
    tensors = {
        name: torch.full(draw(shapes), draw(st.integers(-3, 70))).to(draw(st.sampled_from(DTYPES)))
        for name in draw(st.lists(st.sampled_from(NAMES), max_size=2, unique=True))
    }
    return facts, tensors


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=changes())
def test_no_body_is_a_crash(here, change):
    body = crafted(state(here).to_bytes(), *change)
    found = posted(here, body)
    assert found.status_code in (200, 400) and (found.status_code == 200 or "\n" not in found.json()["error"]), change


@pytest.mark.slow
def test_one_command_makes_a_token_and_asks_for_it(tmp_path, monkeypatch, capsys):
    from lab.__main__ import main

    small.sd().save_pretrained(tmp_path)
    monkeypatch.delenv("LAB_TOKEN", raising=False)
    started = []
    monkeypatch.setattr(service, "serve", lambda app, *where: started.append(app))
    assert main(["serve", "cloud", "--model", str(tmp_path), "--port", "4321", "--name", "lab.example",
                 "--device", "cpu", "--dtype", "bfloat16"]) == 0  # fmt: skip
    told = capsys.readouterr().out
    token = re.search(r"export LAB_TOKEN=(\S{32,})", told)[1]
    assert "serving on http://127.0.0.1:4321" in told
    client = TestClient(started[0], base_url="http://127.0.0.1:4321")
    assert client.get("/health").json()["dtype"] == "bfloat16"
    for host, given_token, status in (
        ("127.0.0.1", "", 401), ("127.0.0.1", token, 400), ("lab.example", token, 400), ("evil.example", token, 403)
    ):  # fmt: skip
        headers = {"Host": f"{host}:4321", "Authorization": f"Bearer {given_token}"}
        assert client.post(cloud.PATH, content=b"rubbish", headers=headers).status_code == status
