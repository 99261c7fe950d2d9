"""The cloud half over a real network: a server in another process, its limits, and an edge that goes on without it."""

import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
import torch

import lab
from lab.core import service
from lab.hybridsd import cloud
from lab.hybridsd.handoff import Handoff, begin
from lab.hybridsd.pipeline import Split

from . import small
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
    here = Split.of(small.sd().components, [small.unet(1)], solver="dpm++")
    return here, here.scheduler


def edge_of(here, client):
    return Split([here.unets[1]], here.scheduler, here.text, here.vae, client)


def state(here, steps=4, count=1):
    latent, _ = here.noise(count, 3, steps)
    return begin(here.scheduler, latent, steps, 4.0, prompt=here.text.tokens(["a"] * count), seed=3)


def test_over_the_network_is_bit_for_bit_in_one_process(server):
    here, _ = both()
    client = cloud.Client(server, TOKEN)
    client.mark = cloud.fingerprint(here)
    far = edge_of(here, client).draw(PROMPT, steps=[2, 2], guidance=4.0, seed=5)
    near = here.draw(PROMPT, steps=[2, 2], guidance=4.0, seed=5)
    assert torch.equal(far.pictures, near.pictures) and far.steps == (2, 2) and far.received > 2048 and not far.notes
    whole = edge_of(here, client).draw(PROMPT, steps=[0, 4], guidance=4.0, seed=5)
    assert whole.received == 0 and torch.equal(
        whole.latent, here.draw(PROMPT, steps=[0, 4], guidance=4.0, seed=5).latent
    )


def test_a_sweep_over_the_network_is_the_one_in_one_process(server):
    task = own_task(3)
    client = cloud.Client(server, TOKEN)
    far = lab.HybridSD(**QUICK).run(replace(task, model=edge_of(task.model, client)), progress=False)
    near = lab.HybridSD(**QUICK).run(task, progress=False)
    assert far.points == near.points and far.report["parameters"] == near.report["parameters"]
    assert all(torch.equal(far.pictures[way], near.pictures[way]) for way in near.pictures)
    with pytest.raises(ValueError, match="batch=48 is not allowed: the cloud takes at most 16 pictures"):
        lab.HybridSD(**QUICK | {"batch": 48}).run(replace(task, model=edge_of(task.model, client)), progress=False)
    with pytest.raises(cloud.Failed, match="ConnectError"):
        cloud.Client(f"http://127.0.0.1:{port()}").about()


def test_what_is_refused_and_why(server):
    here, _ = both()
    begun = state(here)
    answers = {
        "bearer token is wrong": lambda: cloud.Client(server, "wrong").half(begun, 2),
        "models differ": lambda: marked(server, "0" * 12).half(begun, 2),
        r"until='9' is not allowed: give a step in 0..4": lambda: cloud.Client(server, TOKEN).half(begun, 9),
        "steps are too many": lambda: cloud.Client(server, TOKEN).half(state(here, 300), 250),
        "pictures are too many": lambda: cloud.Client(server, TOKEN).half(state(here, count=17), 2),
    }
    for words, ask in answers.items():
        with pytest.raises(cloud.Failed, match=words):
            ask()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    found = httpx.post(server + cloud.PATH, content=b"rubbish" * 9, params={"until": "1"}, headers=headers)
    assert found.status_code == 400 and "no hand-off" in found.json()["error"]
    long = httpx.post(server + cloud.PATH, content=b"0" * (9 << 20), headers=headers)
    assert long.status_code == 413 and "more than" in long.json()["error"]
    health = httpx.get(server + "/health").json()
    assert health["ok"] and health["mark"] == cloud.fingerprint(here) and "token" not in str(health)


def marked(url, mark):
    client = cloud.Client(url, TOKEN)
    client.mark = mark
    return client


def test_a_cloud_killed_in_mid_request_leaves_the_edge_alone(tmp_path):
    small.sd().save_pretrained(tmp_path)
    process, url = started(tmp_path)
    here, _ = both()
    threading.Timer(0.3, process.kill).start()
    with pytest.warns(UserWarning, match="the cloud did not answer"):
        found = edge_of(here, cloud.Client(url, TOKEN)).draw(PROMPT, steps=[200, 1], guidance=4.0, seed=5)
    process.wait(20)
    assert found.steps == (0, 201) and "the edge drew all 201 steps alone" in found.notes[0]
    with pytest.raises(cloud.Failed, match="ConnectError"):
        cloud.Client(url, TOKEN).half(state(here), 2)


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
    client = cloud.Client(f"http://127.0.0.1:{server.server_port}", seconds=0.5)
    with pytest.warns(UserWarning, match=words):
        found = edge_of(here, client).draw(PROMPT, steps=[2, 2], guidance=4.0, seed=5)
    server.server_close()
    assert torch.equal(found.latent, here.draw(PROMPT, steps=[0, 4], guidance=4.0, seed=5).latent)


def test_nothing_serves_the_world_without_a_token():
    for host in ("0.0.0.0", "192.168.0.7", "example.org"):
        with pytest.raises(ValueError, match="can be reached from elsewhere: give --token of 16 characters"):
            service.demand_token(host, "short")
    for host in ("127.0.0.1", "localhost", "::1"):
        service.demand_token(host, None)
    service.demand_token("0.0.0.0", TOKEN)


def test_a_full_queue_is_refused():
    release, entered = threading.Event(), threading.Event()

    def work(body, query):
        entered.set()
        assert release.wait(20)
        return body

    app = service.application(work, "/work", {}, limits=service.Limits(queue=1, seconds=20))
    import uvicorn

    at = port()
    server = uvicorn.Server(uvicorn.Config(app, port=at, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    url, found = f"http://127.0.0.1:{at}/work", []
    asking = [
        threading.Thread(target=lambda: found.append(httpx.post(url, content=b"x", timeout=30))) for _ in range(2)
    ]
    asking[0].start()
    assert entered.wait(20)
    asking[1].start()
    while httpx.get(f"http://127.0.0.1:{at}/health").json()["waiting"] < 1:
        time.sleep(0.05)
    refused = httpx.post(url, content=b"x", timeout=30)
    assert refused.status_code == 503 and "1 requests are waiting" in refused.json()["error"]
    release.set()
    for one in asking:
        one.join(20)
    assert [one.status_code for one in found] == [200, 200]
    server.should_exit = True
    thread.join(20)


def test_a_bad_byte_anywhere_is_one_line():
    here, _ = both()
    good = state(here).to_bytes()
    for i in range(0, len(good), 97):
        bad = good[:i] + bytes([good[i] ^ 0xFF]) + good[i + 1 :]
        try:
            Handoff.from_bytes(bad)
        except ValueError as error:
            assert "\n" not in str(error)
    with pytest.raises(ValueError, match="no hand-off"):
        Handoff.from_bytes(good[: len(good) // 2])
