"""A small HTTP service around one function from bytes to bytes, and the client that asks it.

Knows no method. The service has a token, limits of size, queue and time, a health page and metrics; it answers only
under its own names and to no other site's page. Bodies are read in pieces and refused as soon as they are too long;
work is done one request at a time, or a few, in threads, while others wait in a queue that has an end (`turns`), and
ends early where nobody waits for it any more. Errors are JSON: {"error": one line}.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
import math
import os
import secrets
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from .distribution import install
from .turns import Limits, RequestRefused, Turns

MAX_BYTES = 64 << 20  # of an answer
Value = TypeVar("Value")
Token = str | Callable[[str], str | None] | None  # one for all, or a function of a token that gives its client's name
_client: ContextVar[str] = ContextVar("client", default="")
_log = logging.getLogger("uvicorn.error")  # where the server's own lines go


class ServiceError(Exception):
    """A service did not answer as it should: why, in one line; `status` is HTTP's, 0 where no answer came."""

    def __init__(self, line: str, status: int = 0) -> None:
        super().__init__(line)
        self.status = status


def asking_client() -> str:
    """The name of the client whose request this thread works on; '' where all share one token."""
    return _client.get()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def validate_token(host: str, token: str | None) -> None:
    """ValueError unless the address is this machine's own or there is a token of 16 characters or more."""
    if not is_loopback(host) and len(token or "") < 16:
        raise ValueError(f"host={host!r} can be reached from elsewhere: give --token of 16 characters or more")


def announced(host: str, port: int, token: str | None) -> str:
    """The token of a service that starts: the one given, or a new one, which is printed with the way to use it."""
    in_use = token or secrets.token_urlsafe(24)
    validate_token(host, in_use)
    print(f"serving on http://{host}:{port}")
    if not token:
        print(f"its token, made for this start; whoever asks runs first:\n    export LAB_TOKEN={in_use}")
    sys.stdout.flush()
    return in_use


def application(
    work: Callable[[bytes, Mapping[str, str]], bytes],
    path: str,
    health: Mapping[str, Any],
    token: Token = None,
    limits: Limits | None = None,
) -> Any:
    """An ASGI application: POST `path` answers `work(body, query)`, GET /health says that it lives and what it is.

    `work` may raise ValueError (400, its line) or RequestRefused; any other exception is a 500 of one line, and a
    traceback in the server's log only. Where it takes long it calls `validate_wanted` between its steps. GET /metrics,
    with the token, counts what was asked in Prometheus's text format. `token` may be a function of a client's key that
    gives its name, which `asking_client` then says, or None. Needs the extra `serve`.
    """
    try:
        from fastapi import FastAPI, Request, Response
        from fastapi.responses import JSONResponse, PlainTextResponse
        from starlette.exceptions import HTTPException
    except ImportError as error:
        raise ImportError(f"a service needs fastapi, uvicorn and httpx: {install('serve')}") from error
    app = FastAPI(title="lab", docs_url=None, redoc_url=None, openapi_url=None)
    limits = limits or Limits()
    requests = Turns(work, limits)

    async def content(request: Request) -> Response:
        _validate_host(request, limits.names)
        if request.url.path == "/health":
            return JSONResponse({"ok": True, "waiting": requests.waiting, **health})
        _client.set(_validate_bearer(request.headers.get("authorization", ""), token))
        if request.url.path == "/metrics":
            return PlainTextResponse(requests.metrics())
        return Response(await requests.output(request), media_type="application/octet-stream")

    async def respond(request: Request) -> Response:
        try:
            response = await content(request)
        except RequestRefused as refused:
            response = JSONResponse({"error": refused.line}, refused.status)
        except ValueError as error:
            response = JSONResponse({"error": _first_line(error)}, 400)
        except Exception as error:  # for those who run the service, not for those who ask
            _log.exception("a request failed")
            line = f"the service failed ({type(error).__name__}): its own log says why"
            response = JSONResponse({"error": line}, 500)
        if request.method == "POST":
            requests.responses[response.status_code] += 1
        return response

    async def elsewhere(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        return JSONResponse({"error": f"{request.method} {request.url.path[:80]} is not served here"}, status)

    app.add_exception_handler(HTTPException, elsewhere)
    app.add_api_route(path, respond, methods=["POST"], response_model=None)
    app.add_api_route("/health", respond, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", respond, methods=["GET"], response_model=None)
    return app


def serve(app: Any, host: str, port: int, limits: Limits | None = None) -> None:
    """Run the application until it is stopped; what it has begun may still end within the limits' `grace`."""
    import uvicorn

    limits = limits or Limits()
    options: dict[str, Any] = {
        "log_level": "warning",
        "timeout_keep_alive": 30,
        "timeout_graceful_shutdown": math.ceil(limits.grace),
    }
    uvicorn.run(app, host=host, port=port, http=_hasty(limits.head), **options)


def _hasty(seconds: float) -> Any:
    """uvicorn's protocol, which hangs up on those that have no request under way for so many seconds."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Hasty(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(seconds, self._look, None)

        def _look(self, before: Any) -> None:
            is_idle = self.cycle is None or self.cycle.response_complete
            if is_idle and self.cycle is before:  # a head that drips, or none
                self.transport.close()
            elif not self.transport.is_closing():
                self.loop.call_later(seconds, self._look, self.cycle)

    return Hasty


class ServiceClient:
    """Asks the service at one address.

    `token` left out is the environment's LAB_TOKEN; `seconds` is the time for one whole answer.
    """

    def __init__(self, url: str, token: str | None = None, seconds: float = 60.0) -> None:
        self.url, self.seconds = url.rstrip("/"), seconds
        self.token = token if token is not None else os.environ.get("LAB_TOKEN")
        if self.token and _is_open(self.url):
            warnings.warn(f"{self.url}: the token crosses the network for all to read; ask by https", stacklevel=2)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def request(
        self, method: str, path: str, *, query: Mapping[str, str] = {}, body: bytes = b"", most: int = MAX_BYTES
    ) -> bytes:
        """The body of the answer to one request, of `most` bytes; ServiceError if it does not come."""
        how: dict[str, Any] = {"token": self.token, "seconds": self.seconds, "most": most}
        return request(method, self.url + path, query=query, body=body, **how)


def request(
    method: str,
    url: str,
    *,
    query: Mapping[str, str] = {},
    body: bytes = b"",
    token: str | None = None,
    seconds: float = 60.0,
    most: int = MAX_BYTES,
) -> bytes:
    """The body of the service's answer to one request.

    `seconds` is the time for the whole answer, from the first byte sent to the last one received, and `most` the
    bytes of its longest body. ServiceError, in one line, if it is slow, gone, too long or refuses. Needs the extra
    `serve`.
    """
    try:
        import httpx
    except ImportError as error:
        raise ImportError(f"to ask a service needs httpx: {install('serve')}") from error
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})

    async def exchange() -> tuple[int, bytes]:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(timeout=None, verify=_trusted()) as client,
            client.stream(method, url, params=query, content=body, headers=headers) as response,
        ):
            parts, size = [], 0
            async for part in response.aiter_raw():
                size += len(part)
                if size > most:
                    raise ServiceError(f"{url} answered more than {most:,} bytes")
                parts.append(part)
            return response.status_code, b"".join(parts)

    try:
        status, content = _in_a_thread(exchange, seconds)
    except TimeoutError:
        raise ServiceError(f"{url}: no whole answer within {seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise ServiceError(f"{url}: {type(error).__name__}") from error
    if status != 200:
        raise ServiceError(f"{url} refused ({status}): {_reason(content)}", status)
    return content


@cache
def _trusted() -> Any:
    """The certificates that are trusted, read once: reading them takes longer than a hand-off."""
    import httpx

    return httpx.create_ssl_context()


def _in_a_thread(work: Callable[[], Coroutine[Any, Any, Value]], seconds: float) -> Value:
    """What the coroutine gives, from a loop of its own, for a notebook has one already; TimeoutError if it hangs."""
    result: Future[Value] = Future()

    def run() -> None:
        try:
            result.set_result(asyncio.run(work()))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(seconds + 1)  # a name server that hangs is beyond the loop's reach


def _reason(content: bytes) -> str:
    try:
        return _first_line(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return _first_line(content[:800].decode(errors="replace"))


def _first_line(text: object) -> str:
    """One line to be shown: what would steer a terminal, which the other side may have sent, is taken out."""
    line = next((line.strip() for line in str(text).splitlines() if line.strip()), "no reason given")
    return "".join(c if c.isprintable() else "\ufffd" for c in line[:300])


def _validate_host(request: Any, names: Sequence[str]) -> None:
    """RequestRefused if a browser was led here: by a name that is another's (DNS rebinding), or by another's page."""
    asked_as = request.headers.get("host", "")
    host = urlsplit(f"//{asked_as}").hostname or ""
    at = (request.scope.get("server") or ("",))[0]
    by_address = _is_address(host) and not is_loopback(at)
    if not (is_loopback(host) or by_address or host in {name.lower() for name in names}):
        raise RequestRefused(
            403, f"Host {host[:80]!r} is not this service's: ask it by its address, or start it with --name"
        )
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != asked_as:
        raise RequestRefused(403, f"Origin {origin[:80]!r} is another's page: only programs may ask this service")


def _is_open(url: str) -> bool:
    """Whether others can read what is sent there: neither encrypted nor to this machine."""
    parts = urlsplit(url)
    return parts.scheme != "https" and not is_loopback(parts.hostname or "")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _validate_bearer(header: str, token: Token) -> str:
    """The name of the client whose token this is, '' where all share one; RequestRefused where it is nobody's."""
    if callable(token):
        name = token(header.removeprefix("Bearer ")) if header.startswith("Bearer ") else None
    else:
        is_good = token is None or hmac.compare_digest(header.encode(), f"Bearer {token}".encode())
        name = "" if is_good else None
    if name is None:
        raise RequestRefused(401, "the bearer token is wrong or missing")
    return name
