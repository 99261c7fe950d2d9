"""Requests that wait for their turn at a service: bodies within limits, work a few at a time, ended where unwanted."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_unwanted: ContextVar[threading.Event | None] = ContextVar("unwanted", default=None)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a service takes: the bytes of the longest body, how many requests may wait, and for how many seconds.

    `names` are those, beside its addresses, that it may be asked by. A request waits from its first byte to its turn;
    `work` is how many seconds it may then be worked on, `head` how many a connection may take to begin a request, and
    `grace` how many a service that is stopped still gives to those that it has begun. `at_once` requests are worked on
    at a time, each in a thread of its own.
    """

    body: int = 8 << 20
    queue: int = 8
    seconds: float = 120.0
    work: float = 600.0
    head: float = 20.0
    grace: float = 30.0
    names: tuple[str, ...] = ()
    at_once: int = 1


class RequestRefused(Exception):
    """A request that is not answered: an HTTP status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


def validate_wanted() -> None:
    """RequestRefused once nobody waits for the work of this thread: work that takes long asks between its steps."""
    unwanted = _unwanted.get()
    if unwanted is not None and unwanted.is_set():
        raise RequestRefused(503, "nobody waits for this work any more")


class Turns:
    """Requests that wait for their turn, those that are worked on, and what has become of all of them."""

    def __init__(self, work: Callable[[bytes, Mapping[str, str]], bytes], limits: Limits) -> None:
        self.work, self.limits, self.waiting = work, limits, 0
        self.turn, self.threads = asyncio.Semaphore(limits.at_once), ThreadPoolExecutor(limits.at_once, "lab")
        self.responses, self.seconds, self.bytes = Counter[int](), 0.0, Counter[str]()

    async def output(self, request: Any) -> bytes:
        """The work done on the request's body, once it has come and it is its turn, each within its time."""
        if self.waiting >= self.limits.queue:
            raise RequestRefused(503, f"{self.waiting} requests are waiting: ask again later")
        self.waiting += 1
        try:
            body, gone = await self._begun(request)
        finally:
            self.waiting -= 1
        try:
            return await self._worked(body, dict(request.query_params), gone)
        finally:
            gone.cancel()

    async def _begun(self, request: Any) -> tuple[bytes, "asyncio.Future[None]"]:
        """The body, and what is done once its client has gone; it is then this request's turn."""
        start, seconds = time.monotonic(), self.limits.seconds
        try:
            body = await asyncio.wait_for(_body(request, self.limits.body), seconds)
        except TimeoutError:
            raise RequestRefused(408, f"the body did not come within {seconds:g} s: send it again") from None
        self.bytes["in"] += len(body)
        gone, turn = asyncio.ensure_future(_gone(request)), asyncio.ensure_future(self.turn.acquire())
        try:
            left = max(0.0, start + seconds - time.monotonic())
            await asyncio.wait({gone, turn}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise RequestRefused(499, "the client has gone")
            if not turn.done():
                raise RequestRefused(503, f"no turn within {seconds:g} s: ask again later")
            return body, gone
        except BaseException:  # the server may be stopping
            gone.cancel()
            turn.add_done_callback(self._let_go)
            turn.cancel()
            raise

    def _let_go(self, turn: "asyncio.Future[Any]") -> None:
        """Pass on a turn that came too late to be given up."""
        if not turn.cancelled():
            self.turn.release()

    async def _worked(self, body: bytes, query: Mapping[str, str], gone: "asyncio.Future[None]") -> bytes:
        """What the work gives; the turn is over when its thread is, which may be after the request."""
        unwanted, start = threading.Event(), time.monotonic()

        def run() -> bytes:
            _unwanted.set(unwanted)
            return self.work(body, query)

        def done(thread: "asyncio.Future[bytes]") -> None:
            self.seconds += time.monotonic() - start
            self.turn.release()
            if not thread.cancelled():
                thread.exception()  # of work that nobody waits for

        thread = asyncio.get_running_loop().run_in_executor(self.threads, run)
        thread.add_done_callback(done)
        awaited: set[asyncio.Future[Any]] = {thread, gone}
        try:
            await asyncio.wait(awaited, timeout=self.limits.work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            unwanted.set()
        if thread.done():
            self.bytes["out"] += len(thread.result())
            return thread.result()
        if gone.done():
            raise RequestRefused(499, "the client has gone")
        raise RequestRefused(503, f"not done within {self.limits.work:g} s: ask for fewer steps or pictures")

    def metrics(self) -> str:
        """What has become of requests, in Prometheus's text format."""
        lines = ["# TYPE lab_responses_total counter"]
        lines += [f'lab_responses_total{{status="{status}"}} {n}' for status, n in sorted(self.responses.items())]
        lines += ["# TYPE lab_requests_waiting gauge", f"lab_requests_waiting {self.waiting}"]
        lines += ["# TYPE lab_work_seconds_total counter", f"lab_work_seconds_total {self.seconds:.6f}"]
        lines += ["# TYPE lab_body_bytes_total counter"]
        lines += [f'lab_body_bytes_total{{direction="{way}"}} {self.bytes[way]}' for way in ("in", "out")]
        return "\n".join(lines) + "\n"


async def _body(request: Any, most: int) -> bytes:
    """The body; RequestRefused as soon as it is told or seen to be too long, or breaks off."""
    from starlette.requests import ClientDisconnect

    too_long = RequestRefused(413, f"the body has more than {most:,} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > most):
        raise too_long
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_long
            parts.append(part)
    except ClientDisconnect:
        raise RequestRefused(400, "the body broke off: send it again") from None
    return b"".join(parts)


async def _gone(request: Any) -> None:
    """Done once the client of a request whose body has come has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
