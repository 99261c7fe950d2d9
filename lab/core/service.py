"""A small HTTP service around one function from bytes to bytes, and the client that asks it.

Knows no method. The service has a token, limits of size, queue and time, and a health page; it answers only under its
own names and to no other site's page. Bodies are read in pieces and refused as soon as they are too long; work is done
one request at a time, in a thread, while others wait in a queue that has an end. Errors are JSON: {"error": one line}.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

MAX_BYTES = 64 << 20  # of an answer
Value = TypeVar("Value")
_log = logging.getLogger("uvicorn.error")  # where the server's own lines go


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a service takes: the bytes of the longest body, how many requests may wait, and for how many seconds.

    `names` are those, beside its addresses, that it may be asked by. A request waits from its first byte to its turn.
    """

    body: int = 8 << 20
    queue: int = 8
    seconds: float = 120.0
    names: tuple[str, ...] = ()


class RequestRefused(Exception):
    """A request that is not answered: an HTTP status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


class ServiceError(Exception):
    """A service did not answer as it should: why, in one line."""


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
    token: str | None = None,
    limits: Limits = Limits(),
) -> Any:
    """An ASGI application: POST `path` answers `work(body, query)`, GET /health says that it lives and what it is.

    `work` may raise ValueError (400, its line) or RequestRefused; any other exception is a 500 of one line, and a
    traceback in the server's log only. Needs the extra `serve`.
    """
    try:
        from fastapi import FastAPI, Request, Response
        from fastapi.concurrency import run_in_threadpool
        from fastapi.responses import JSONResponse
        from starlette.requests import ClientDisconnect
    except ImportError as error:
        raise ImportError("a service needs fastapi, uvicorn and httpx: pip install 'lab[serve]'") from error
    app = FastAPI(title="lab", docs_url=None, redoc_url=None, openapi_url=None)
    turn, waiting = asyncio.Lock(), [0]

    async def worked(request: Request) -> bytes:
        """The work done on the request's body, once it has come and it is its turn, both within the time allowed."""
        if waiting[0] >= limits.queue:
            raise RequestRefused(503, f"{waiting[0]} requests are waiting: ask again later")
        waiting[0] += 1
        late = RequestRefused(408, f"the body did not come within {limits.seconds:g} s: send it again")
        try:
            async with asyncio.timeout(limits.seconds):
                body = await _body(request, limits.body)
                late = RequestRefused(503, f"no turn within {limits.seconds:g} s: ask again later")
                await turn.acquire()
        except TimeoutError:
            raise late from None
        except ClientDisconnect:
            raise RequestRefused(400, "the body broke off: send it again") from None
        finally:
            waiting[0] -= 1
        try:
            return await run_in_threadpool(work, body, dict(request.query_params))
        finally:
            turn.release()

    async def respond(request: Request) -> Response:
        try:
            _validate_host(request, limits.names)
            if request.method == "GET":
                return JSONResponse({"ok": True, "waiting": waiting[0], **health})
            _validate_bearer(request.headers.get("authorization", ""), token)
            return Response(await worked(request), media_type="application/octet-stream")
        except RequestRefused as refused:
            return JSONResponse({"error": refused.line}, refused.status)
        except ValueError as error:
            return JSONResponse({"error": _first_line(error)}, 400)
        except Exception as error:  # for those who run the service, not for those who ask
            _log.exception("a request failed")
            return JSONResponse({"error": f"the service failed ({type(error).__name__}): its own log says why"}, 500)

    app.add_api_route(path, respond, methods=["POST"], response_model=None)
    app.add_api_route("/health", respond, methods=["GET"], response_model=None)
    return app


def serve(app: Any, host: str, port: int) -> None:
    """Run the application until it is stopped."""
    import uvicorn

    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_keep_alive=30)


class ServiceClient:
    """Asks the service at one address.

    `token` left out is the environment's LAB_TOKEN; `seconds` is the time for one whole answer.
    """

    def __init__(self, url: str, token: str | None = None, seconds: float = 60.0) -> None:
        self.url, self.seconds = url.rstrip("/"), seconds
        self.token = token if token is not None else os.environ.get("LAB_TOKEN")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def request(self, method: str, path: str, *, query: Mapping[str, str] = {}, body: bytes = b"") -> bytes:
        """The body of the answer to one request; ServiceError if it does not come."""
        return request(method, self.url + path, query=query, body=body, token=self.token, seconds=self.seconds)


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
        raise ImportError("to ask a service needs httpx: pip install 'lab[serve]'") from error
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})

    async def exchange() -> tuple[int, bytes]:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(timeout=None) as client,
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
        raise ServiceError(f"{url} refused ({status}): {_reason(content)}")
    return content


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
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "no reason given")[:300]


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


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _validate_bearer(header: str, token: str | None) -> None:
    if token is not None and not hmac.compare_digest(header.encode(), f"Bearer {token}".encode()):
        raise RequestRefused(401, "the bearer token is wrong or missing")


async def _body(request: Any, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise RequestRefused(413, f"the body has more than {most:,} bytes")
        parts.append(part)
    return b"".join(parts)
