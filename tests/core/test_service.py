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
def running(app, **options):
    """The application behind a real server in a thread, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", **options))
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


def test_what_is_not_there_is_one_line_too():
    for method, path, status in (("GET", "/", 404), ("GET", "/work", 405), ("DELETE", "/health", 405)):
        response = asking().request(method, path)
        assert (response.status_code, response.json()) == (status, {"error": f"{method} {path} is not served here"})


def test_metrics_are_for_those_with_the_token():
    client, bearer = asking(token=TOKEN), {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/metrics").status_code == 401
    assert client.post("/work", content=b"abc", headers=bearer).content == b"abc"
    assert client.post("/work", content=b"x").status_code == 401
    lines = client.get("/metrics", headers=bearer).text.splitlines()
    assert 'lab_responses_total{status="200"} 1' in lines and 'lab_responses_total{status="401"} 1' in lines
    assert 'lab_body_bytes_total{direction="in"} 3' in lines and "lab_requests_waiting 0" in lines
    assert [line for line in lines if line.startswith("#")] == [
        f"# TYPE lab_{name}" for name in (
            "responses_total counter", "requests_waiting gauge", "work_seconds_total counter",
            "body_bytes_total counter",
        )
    ]  # fmt: skip


def test_a_token_that_all_can_read_is_warned_of():
    for url in ("http://192.0.2.1:8765", "http://cloud.example", "HTTP://cloud.example/"):
        with pytest.warns(UserWarning, match="the token crosses the network for all to read; ask by https") as caught:
            service.ServiceClient(url, TOKEN)
        assert len(caught) == 1 and TOKEN not in str(caught[0].message)
    for url, token in (("https://cloud.example", TOKEN), ("http://127.0.0.1:9", TOKEN), ("http://cloud.example", "")):
        service.ServiceClient(url, token)  # warnings are errors


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


def test_a_head_that_drips_is_hung_up_on():
    protocol = service._hasty(0.3)
    with running(service.application(echo, "/work", {}), http=protocol) as port:
        start, at = time.monotonic(), ("127.0.0.1", port)
        with socket.create_connection(at) as dripping, socket.create_connection(at, 20) as silent:
            with pytest.raises(OSError):
                for _ in range(200):
                    dripping.sendall(b"P")
                    time.sleep(0.05)
            assert silent.recv(10) == b"" and time.monotonic() - start < 9  # of the ten that it would take
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as kept:  # one connection for several requests
            for _ in range(3):
                assert kept.post("/work", content=b"x").content == b"x"
                time.sleep(0.1)


def test_a_body_that_is_told_to_be_too_long_is_refused_unread():
    with running(service.application(echo, "/work", {}, limits=Limits(body=10))) as port:
        for length in (b"11", b"1000000000", b"9" * 19):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"POST /work HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %b\r\n\r\n" % length)
                client.settimeout(20)
                assert client.recv(65536).startswith(b"HTTP/1.1 413"), length


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
        (b'{"error": "\\u001b[2Jgone\\u0007"}', "\ufffd[2Jgone\ufffd"),  # a terminal would be cleared
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
            {"query": {"a": "1"}, "body": b"x", "token": client.token, "seconds": 60.0, "most": service.MAX_BYTES},
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


def test_certificates_are_read_once(monkeypatch):
    """Each request would read them anew, for 50 ms."""
    read, real = [], httpx.create_ssl_context
    monkeypatch.setattr(httpx, "create_ssl_context", lambda *_, **__: read.append(1) or real())
    service._trusted.cache_clear()
    with saying([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nyes"[:-1]], 0.001) as url:
        service.request("GET", url)
    with saying([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"], 0.001) as url:
        assert service.request("GET", url) == b"no"
    assert read == [1]
