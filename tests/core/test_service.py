"""A service and the function that asks it: who may ask, how long and how much, and what an error tells."""

import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from lab.core import service
from lab.core.service import Limits

TOKEN = "a token of the tests"


def echo(body, query):
    return body


@contextmanager
def running(app):
    """The application behind a real server in a thread, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield port
    server.should_exit = True
    thread.join(20)


def asking(work=echo, at="http://127.0.0.1:8765", **options):
    """A client of an application in this process."""
    return TestClient(service.application(work, "/work", {}, **options), base_url=at)


# -- who may ask -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/work", "/health"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8765"},
        {"Host": "203.0.113.5:8765"},  # no address of this machine's own loopback
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:8766"},  # another service of this machine
        {"Origin": "null"},
    ],
    ids=lambda headers: " ".join(*headers.items()),
)
def test_a_foreign_host_or_page_is_refused_with_and_without_a_token(path, headers):
    for token in (None, TOKEN):
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        client = asking(token=token)
        response = client.request("POST" if path == "/work" else "GET", path, headers=headers | bearer)
        assert response.status_code == 403 and "\n" not in response.json()["error"]


def test_its_own_names_are_answered():
    names = {"127.0.0.1": ["127.0.0.1:8765", "localhost:8765", "[::1]:8765", "lab.example"], "192.0.2.1": ["192.0.2.1"]}
    for at, hosts in names.items():
        for host in hosts:
            client = asking(at=f"http://{at}:8765", limits=Limits(names=("lab.example",)))
            assert client.post("/work", content=b"x", headers={"Host": host}).content == b"x"
            same = {"Host": host, "Origin": f"http://{host}"}
            assert client.post("/work", content=b"x", headers=same).content == b"x"


def test_a_token_is_made_and_told_once(capsys):
    token = service.announced("127.0.0.1", 8765, None)
    printed = capsys.readouterr().out
    assert len(token) >= 32 and printed.count(token) == 1 and f"export LAB_TOKEN={token}" in printed
    assert token != service.announced("127.0.0.1", 8765, "")
    capsys.readouterr()
    assert service.announced("0.0.0.0", 8765, TOKEN) == TOKEN
    assert TOKEN not in capsys.readouterr().out
    with pytest.raises(ValueError, match="give --token of 16 characters"):
        service.announced("0.0.0.0", 8765, "short")


def test_nothing_serves_the_world_without_a_token():
    for host in ("0.0.0.0", "192.168.0.7", "example.org"):
        with pytest.raises(ValueError, match="can be reached from elsewhere: give --token of 16 characters"):
            service.validate_token(host, "short")
    for host in ("127.0.0.1", "localhost", "::1"):
        service.validate_token(host, None)
    service.validate_token("0.0.0.0", TOKEN)


# -- what an error tells -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("one\ntwo"), 400, "one"),
        (service.RequestRefused(409, "they differ"), 409, "they differ"),
        (RuntimeError("/home/someone/secret.py"), 500, "the service failed (RuntimeError): its own log says why"),
        (ValueError(""), 400, "no reason given"),
    ],
)
def test_every_error_is_one_line(error, status, line):
    def work(body, query):
        raise error

    response = asking(work).post("/work", content=b"x")
    assert (response.status_code, response.json()) == (status, {"error": line})


# -- how long and how much, at the server ------------------------------------------------------------------------------


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


def test_a_long_body_is_refused():
    response = asking(limits=Limits(body=10)).post("/work", content=b"x" * 11)
    assert response.status_code == 413 and response.json()["error"] == "the body has more than 10 bytes"


# -- how long and how much, at the client ------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def saying(pieces, pause):
    """A server that answers one request with these pieces, a pause after each."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run():
            near, _ = listening.accept()
            with near:
                near.recv(65536)
                try:
                    for piece in pieces:
                        near.sendall(piece)
                        time.sleep(pause)
                except OSError:  # the other side has gone
                    pass

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/work"
        thread.join(20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + b"Content-Length: 1000\r\n\r\n", *[b"x"] * 100],
        [*[bytes([byte]) for byte in HEAD * 5]],  # the head itself drips
        [b""] * 20,
    ],
    ids=["body", "head", "silence"],
)
def test_the_deadline_is_for_the_whole_answer(pieces):
    with saying(pieces, 0.1) as url:
        start = time.perf_counter()
        with pytest.raises(service.ServiceError, match=r"no whole answer within 0\.5 s"):
            service.request("POST", url, seconds=0.5)
        assert time.perf_counter() - start < 5  # of the 10 that it would take


@pytest.mark.parametrize("length", [b"Content-Length: 1500000000\r\n", b""])
def test_an_answer_of_any_size_is_not_read(length):
    with saying([HEAD + length + b"\r\n", *[b"x" * 4096] * 50], 0.001) as url:
        with pytest.raises(service.ServiceError, match="answered more than 10,000 bytes"):
            service.request("POST", url, most=10_000)


def test_compressed_answers_are_not_unpacked():
    import gzip

    bomb = gzip.compress(b"0" * 1_000_000)
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    with saying([head + bomb], 0.001) as url:
        assert service.request("POST", url, most=10_000) == bomb


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"error": "one\\ntwo"}', "one"),
        (b"<html>\nno\n", "<html>"),
        (b"", "no reason given"),
        (b"[" * 100_000, "[" * 300),
    ],
)
def test_a_refusal_is_one_line(content, line):
    head = b"HTTP/1.1 418 No\r\nContent-Length: %d\r\n\r\n" % len(content)
    with saying([head + content], 0.001) as url, pytest.raises(service.ServiceError) as caught:
        service.request("POST", url)
    assert str(caught.value) == f"{url} refused (418): {line}"


def test_a_client_knows_its_address_and_the_environments_token(monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", "the environment's")
    client = service.ServiceClient("http://127.0.0.1:9/")
    assert (client.url, client.token, service.ServiceClient("", "").token) == (
        "http://127.0.0.1:9",
        "the environment's",
        "",
    )
    sent = []
    monkeypatch.setattr(service, "request", lambda *where, **what: sent.append((where, what)) or b"body")
    assert client.request("POST", "/work", query={"a": "1"}, body=b"x") == b"body"
    assert sent == [
        (
            ("POST", "http://127.0.0.1:9/work"),
            {"query": {"a": "1"}, "body": b"x", "token": client.token, "seconds": 60.0},
        )
    ]


def test_it_asks_from_within_a_running_loop():
    import asyncio

    async def notebook(url):
        return service.request("POST", url)

    with saying([HEAD + b"Content-Length: 2\r\n\r\nok"], 0.001) as url:
        assert asyncio.run(notebook(url)) == b"ok"
    with pytest.raises(service.ServiceError, match="ConnectError"):
        service.request("GET", "http://127.0.0.1:9/work")
