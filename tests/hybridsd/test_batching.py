"""Requests of several clients share a model's calls: each gets its own rows, and none fails for another."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from starlette.testclient import TestClient
from torch import nn

from lab.core import service as serving
from lab.core.turns import Limits
from lab.hybridsd import cloud, families
from lab.hybridsd import equations as eq
from lab.hybridsd.batching import SharedModel
from lab.hybridsd.handoff import begin
from lab.hybridsd.pipeline import HybridPipeline

from . import small


class Slow(nn.Module):
    """Adds its time and its text to a latent, and notes how many rows came at once; refuses a latent of minus ones."""

    config = small.unet().config

    def __init__(self):
        super().__init__()
        self.rows, self.gate = [], threading.Event()

    def forward(self, x, t, encoder_hidden_states, **_):
        self.gate.wait(5)
        self.rows.append(len(x))
        if (x == -1).flatten(1).all(1).any():
            raise ValueError("ones are not allowed")
        return (x + t.view(-1, 1, 1, 1) + encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1),)


def asked(shared, i, rows=1, side=8, value=None):
    """What a client gets for a latent, a time and a text of its own."""
    latent = torch.full((rows, 4, side, side), float(i) if value is None else value)
    with shared.in_use():
        return families.predict(shared, latent, torch.tensor(100.0 * i), torch.full((rows, 3, 2), float(i)), {}, 1.0)


def waiting_behind(slow, shared, calls):
    """The ended calls, (i, options) each of `asked`: the first had begun before the others came, which all waited."""
    with ThreadPoolExecutor(len(calls)) as threads:
        first, *others = calls
        outputs = [threads.submit(asked, shared, first[0], **first[1])]
        while not shared.is_running:
            pass
        outputs += [threads.submit(asked, shared, i, **how) for i, how in others]
        while len(shared.calls) < len(others):
            pass
        slow.gate.set()
    return outputs


def test_calls_that_come_together_are_run_as_one_and_each_gets_its_own():
    slow = Slow()
    shared = SharedModel(slow, most=16)
    calls = [(1, {}), *((i, {"rows": 1 + i % 2}) for i in range(2, 9))]
    for (i, how), output in zip(calls, waiting_behind(slow, shared, calls), strict=True):
        assert torch.equal(output.result(), torch.full((how.get("rows", 1), 4, 8, 8), 102.0 * i))
    assert slow.rows == [1, 10] and shared.sizes == [1, 7] and shared.users == 0


def test_a_batch_has_one_shape_and_no_more_rows_than_fit():
    slow = Slow()
    shared = SharedModel(slow, most=3)
    outputs = waiting_behind(slow, shared, [(i, {"side": 8 if i % 2 else 4}) for i in range(1, 9)])
    assert all(float(x.result().mean()) == 102 * i for i, x in enumerate(outputs, 1))
    assert slow.rows[0] == 1 and sorted(slow.rows[1:]) == [1, 3, 3]


def test_none_fails_for_another():
    slow = Slow()
    shared = SharedModel(slow, most=16)
    first, bad, good = waiting_behind(slow, shared, [(2, {}), (3, {"value": -1.0}), (4, {})])
    with pytest.raises(ValueError, match="ones are not allowed"):
        bad.result()
    assert float(good.result().mean()) == 408 and float(first.result().mean()) == 204
    assert slow.rows == [1, 2, 1, 1] and not shared.calls and not shared.is_running


@pytest.mark.parametrize("name", ["sd", "lcm", "sd3", "flux", "pixart"])
def test_clients_at_different_steps_share_calls_over_the_service(name):
    stock = small.FAMILIES.get(name, small.TRANSFORMERS.get(name))()
    pipeline = HybridPipeline.of(stock.components)
    door = TestClient(cloud.application(pipeline, batch=4), base_url="http://127.0.0.1")
    sides = (8, 8)

    def body(i):
        latent, generator = pipeline.noise(1, i, 4, sides)
        prompt = pipeline.text.tokens([f"{'abcd'[i]} dog"])
        scheduler = pipeline.scheduler_at(sides)
        return begin(scheduler, latent, 4, 4.0, prompt=prompt, seed=i, generator=generator).to_bytes()

    def client(i):
        return door.post(cloud.PATH, content=body(i), params={"until": str(2 + i % 3)})

    with door, ThreadPoolExecutor(4) as threads:
        found = list(threads.map(client, range(4)))
    assert door.get("/health").json()["batch"] == 4
    alone = TestClient(cloud.application(pipeline), base_url="http://127.0.0.1")
    for i, response in enumerate(found):
        assert response.status_code == 200, response.text
        made = cloud.Handoff.from_bytes(response.content)
        expected = alone.post(cloud.PATH, content=body(i), params={"until": str(2 + i % 3)}).content
        assert made.index == 2 + i % 3
        assert eq.relative_error(made.latent, cloud.Handoff.from_bytes(expected).latent) < 1e-4


def test_as_many_requests_as_said_are_worked_on_at_once():
    seen, gate, busy = [], threading.Barrier(3, timeout=20), threading.Semaphore(3)

    def work(body, query):
        assert busy.acquire(blocking=False)  # never more than three
        gate.wait()  # never less, or it breaks
        seen.append(body)
        busy.release()
        return body

    door = TestClient(serving.application(work, "/", {}, limits=Limits(at_once=3)), base_url="http://127.0.0.1")
    with door, ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda i: door.post("/", content=bytes([i])), range(6)))
    assert [response.content for response in found] == [bytes([i]) for i in range(6)] and len(seen) == 6


@pytest.mark.parametrize("batch", [0, -1, 65, 2.0, True])
def test_a_batch_that_is_none_is_one_line(batch):
    with pytest.raises(ValueError, match=r"batch=.* is not allowed: give 1..64 requests that share a call"):
        cloud.serve(None, "127.0.0.1", 1, batch=batch)
