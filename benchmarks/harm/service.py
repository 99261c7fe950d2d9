"""A service under faults: twenty clients ask a real one, and most of them do it harm.

It is HyperFD's platform in a process of its own, asked over sockets. Every request has its answer: the one that it
should have, or a refusal of one line. Hybrid SD's service has a benchmark of its own, `hybridsd_faults.py`.
"""

import http.client
import json
import multiprocessing
import os
import random
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from lab.core import service
from lab.hyperfd import serving
from lab.hyperfd.client import PATH

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.hyperfd import small

TOKEN, CLIENTS, BODY = "a token of the benchmark", 20, 2 << 20


def cells(quick: bool) -> list[tuple[str, int]]:
    """One service, and how often it is asked."""
    return [("platform", 60 if quick else 1000)]


def serve(port: int) -> None:
    """A process that serves a platform until it is killed."""
    torch.set_num_threads(1)
    limits = service.Limits(body=BODY, queue=64, head=3.0, seconds=5.0)
    service.serve(serving.application(small.platform(), TOKEN, limits), "127.0.0.1", port, limits)


@contextmanager
def served() -> Iterator[tuple[int, int]]:
    """A service, by its port and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = multiprocessing.get_context("forkserver").Process(target=serve, args=(port,), daemon=True)
    process.start()
    try:
        for _ in range(600):
            with suppress(OSError):
                ask(port, "GET", "/health")
                break
            time.sleep(0.1)
        yield port, process.pid or 0
    finally:
        process.kill()
        process.join()


def ask(port: int, method: str, path: str, body: bytes = b"", token: str = TOKEN) -> tuple[int, bytes]:
    """Status and content of an answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        return response.status, response.read()


def raw(port: int, content: bytes, *more: bytes, wait: float = 0.0) -> int:
    """Send these bytes, piece by piece, and give the status of what comes; 0 where the service hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        with suppress(OSError):
            connection.sendall(content)
            for part in more:
                time.sleep(wait)
                connection.sendall(part)
        with suppress(OSError, ValueError, IndexError):
            return int(connection.recv(4096).split()[1])
    return 0


def head(length: int, token: str = TOKEN) -> bytes:
    """The head of an upload of so many bytes."""
    lines = [f"POST {PATH}?ask=upload HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def dropped(port: int) -> int:
    """Hang up in the midst of an upload."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head(100_000) + bytes(50_000))
    return 0


OFFER, UPLOAD = f"{PATH}?ask=offer", f"{PATH}?ask=upload"
# by name: what a client does, and the statuses that it may be given; 0 is a connection that ends
ASKED: dict[str, tuple[Callable[[int], int], set[int]]] = {
    "an offer": (lambda port: ask(port, "POST", OFFER)[0], {200}),
    "wrong token": (lambda port: ask(port, "POST", OFFER, token="another token")[0], {401}),
    "no such path": (lambda port: ask(port, "POST", "/v1/other")[0], {404}),
    "no such method": (lambda port: ask(port, "PUT", PATH)[0], {405}),
    "no such question": (lambda port: ask(port, "POST", f"{PATH}?ask=all")[0], {400}),
    "rubbish": (lambda port: ask(port, "POST", UPLOAD, random.randbytes(2000))[0], {400}),
    "another's model": (lambda port: ask(port, "POST", UPLOAD, foreign())[0], {400}),
    "too long": (lambda port: raw(port, head(BODY + 1)), {413}),
    "wrong token, too long": (lambda port: raw(port, head(1 << 40, "another")), {401, 413}),
    "another site's page": (lambda port: raw(port, head(0).replace(b"Host: 127.0.0.1", b"Host: evil.example")), {403}),
    "no HTTP": (lambda port: raw(port, b"\x16\x03\x01 rubbish\r\n\r\n"), {0, 400}),
    "hangs up": (dropped, {0}),
    "a head that drips": (lambda port: raw(port, head(10)[:20], *[b"x"] * 12, wait=0.5), {0, 400, 408}),
    "a body that drips": (lambda port: raw(port, head(100), *[b"x"] * 16, wait=0.5), {0, 400, 408}),
}
AT_ONCE = ("wrong token", "no such path", "no such method", "no such question", "too long")  # refusals


def foreign() -> bytes:
    """An upload that belongs to other configurations."""
    from lab.core import sealing

    return sealing.sealed({"w": torch.zeros(3)}, {"kind": "upload", "version": "1", "body": "{}"})


def run(item: tuple[str, int]) -> dict[str, Any]:
    """A thousand requests: what each was given, how long refusals took, and what the service's memory did."""
    random.seed(0)
    names = [name for name in ASKED if "drips" not in name]
    asked = [random.choice(names) if k % 25 else random.choice(list(ASKED)) for k in range(item[1])]
    with served() as (port, process):
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(lambda name: one(port, name), asked[: item[1] // 5]))
            before = megabytes(process)
            found = list(clients.map(lambda name: one(port, name), asked))
        after, alive = megabytes(process), ask(port, "POST", OFFER)[0] == 200
    faults = Counter(f"{name}: {status}" for name, status, _ in found if status not in ASKED[name][1])
    faults += Counter() if alive else Counter(["it answers no more"])
    faults += Counter([f"memory grew from {before:.0f} to {after:.0f} MB"] if after > 1.05 * before + 4 else [])
    lines = [f"{line} ({count} times)" for line, count in faults.items()]
    refusals = sorted(1000 * seconds for name, _, seconds in found if name in AT_ONCE)
    return {
        "requests": len(found), "answers": dict(Counter(str(status) for _, status, _ in found)),
        "memory_mb": [round(before, 1), round(after, 1)], "faults": lines,
        "refusal_ms": {"median": statistics.median(refusals), "p99": refusals[int(0.99 * len(refusals))]},
    }  # fmt: skip


def one(port: int, name: str) -> tuple[str, int, float]:
    """One request: its name, its status and its seconds; -1 where there was no answer."""
    start = time.perf_counter()
    try:
        status = ASKED[name][0](port)
    except (OSError, http.client.HTTPException):
        status = -1
    return name, status, time.perf_counter() - start


def megabytes(process: int) -> float:
    """MB of a process that are in memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def figures(rows: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """The row of the one service."""
    ((_, row),) = rows.items()
    return json.loads(json.dumps(row)) | {"clients": CLIENTS}
