"""Requests that wait for their turn: a queue with an end, work that ends with its time, its client or its service."""

import socket
import threading
import time

import httpx
import pytest

from lab.core import service
from lab.core.service import Limits
from lab.core.turns import validate_wanted

from .test_service import echo, running


def test_a_full_queue_is_refused():
    release, entered = threading.Event(), threading.Event()

    def work(body, query):
        entered.set()
        assert release.wait(20)
        return body

    with running(service.application(work, "/work", {}, limits=Limits(queue=1, seconds=20))) as port:
        url, responses = f"http://127.0.0.1:{port}/work", []
        clients = [threading.Thread(target=lambda: responses.append(httpx.post(url, content=b"x", timeout=30)))
                   for _ in range(2)]  # fmt: skip
        clients[0].start()
        assert entered.wait(20)
        clients[1].start()
        until(port, 1)
        refused = httpx.post(url, content=b"x", timeout=30)
        assert refused.status_code == 503 and "1 requests are waiting" in refused.json()["error"]
        release.set()
        for client in clients:
            client.join(20)
        assert [response.status_code for response in responses] == [200, 200]


def until(port, waiting):
    while httpx.get(f"http://127.0.0.1:{port}/health").json()["waiting"] != waiting:
        time.sleep(0.02)


@pytest.mark.slow
def test_half_a_body_waits_in_the_queue_and_not_for_ever():
    with running(service.application(echo, "/work", {}, limits=Limits(queue=1, seconds=1.0))) as port:
        head = b"POST /work HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
        halves = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        for half in halves:
            half.sendall(head % 100 + b"half")
        heads = sorted(half.recv(65536) for half in halves)  # one waits, the other finds the queue full
        for half in halves:
            half.close()
        assert heads[0].startswith(b"HTTP/1.1 408") and heads[1].startswith(b"HTTP/1.1 503")
        assert httpx.post(f"http://127.0.0.1:{port}/work", content=b"x").content == b"x"


class Slow:
    """Work of many steps, which asks between them; it tells how many it took."""

    def __init__(self, steps=2000):
        self.steps, self.taken, self.begun, self.ended = steps, 0, threading.Event(), threading.Event()

    def __call__(self, body, query):
        if body == b"quick":
            return body
        self.begun.set()
        try:
            for _ in range(self.steps):
                validate_wanted()
                time.sleep(0.01)
                self.taken += 1
            return body
        finally:
            self.ended.set()


def hanging_up(port, body=b"slow"):
    """A client that has sent its request, and may hang up."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"POST /work HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    return client


def test_work_ends_where_its_client_has_gone():
    work = Slow()
    with running(service.application(work, "/work", {})) as port:
        client = hanging_up(port)
        assert work.begun.wait(20)
        client.close()
        assert work.ended.wait(20) and work.taken < work.steps
        assert httpx.post(f"http://127.0.0.1:{port}/work", content=b"quick").content == b"quick"


@pytest.mark.slow
def test_who_has_gone_leaves_the_queue():
    work = Slow()
    with running(service.application(work, "/work", {}, limits=Limits(queue=1))) as port:
        first = hanging_up(port)
        assert work.begun.wait(20)
        for _ in range(3):
            second = hanging_up(port)
            until(port, 1)
            second.close()
            until(port, 0)
        assert not work.ended.is_set()
        first.close()


def test_work_has_a_time_limit_and_the_next_request_its_turn():
    work = Slow()
    with running(service.application(work, "/work", {}, limits=Limits(work=0.2))) as port:
        url = f"http://127.0.0.1:{port}/work"
        late = httpx.post(url, content=b"slow", timeout=30)
        assert (late.status_code, late.json()) == (
            503, {"error": "not done within 0.2 s: ask for fewer steps or pictures"}
        )  # fmt: skip
        assert httpx.post(url, content=b"quick", timeout=30).content == b"quick"
        assert work.ended.is_set() and work.taken < work.steps


@pytest.mark.parametrize(("steps", "grace", "status"), [(50, 20, 200), (2000, 1, None)])
def test_a_service_that_is_stopped_ends_what_it_has_begun_within_its_grace(steps, grace, status):
    work, responses = Slow(steps), []

    def ask(url):
        try:
            responses.append(httpx.post(url, content=b"slow", timeout=30).status_code)
        except httpx.HTTPError:
            responses.append(None)

    with running(service.application(work, "/work", {}), timeout_graceful_shutdown=grace) as port:
        client = threading.Thread(target=ask, args=(f"http://127.0.0.1:{port}/work",))
        client.start()
        assert work.begun.wait(20)
    client.join(20)
    assert work.ended.wait(20) and (work.taken == work.steps) == (status == 200)
    assert responses in ([status], [500])  # uvicorn answers for what it has cut off
