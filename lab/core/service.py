"""A small HTTP service around one function from bytes to bytes: token, size, queue and time limits, a health page.

Knows no method. Bodies are read in pieces and refused as soon as they are too long; work is done one request at a time,
in a thread, while others wait in a queue that has an end. Errors are JSON: {"error": one line}.
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The longest body in bytes, how many requests may wait, and after how many seconds a waiting one is refused."""

    body: int = 8 << 20
    queue: int = 8
    seconds: float = 120.0


class Refused(Exception):
    """A request that is not answered: a status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def demand_token(host: str, token: str | None) -> None:
    """ValueError unless the address is this machine's own or there is a token of 16 characters or more."""
    if not is_loopback(host) and len(token or "") < 16:
        raise ValueError(f"host={host!r} can be reached from elsewhere: give --token of 16 characters or more")


def application(
    work: Callable[[bytes, Mapping[str, str]], bytes], path: str, health: Mapping[str, Any],
    token: str | None = None, limits: Limits = Limits(),
) -> Any:  # fmt: skip
    """An ASGI application: POST `path` answers `work(body, query)`, GET /health says that it lives and what it is.

    `work` may raise ValueError (400, its line) or Refused. Needs the extra `serve`.
    """
    try:
        from fastapi import FastAPI, Request, Response
        from fastapi.concurrency import run_in_threadpool
        from fastapi.responses import JSONResponse
    except ImportError as error:
        raise ImportError("a service needs fastapi, uvicorn and httpx: pip install 'lab[serve]'") from error
    app = FastAPI(title="lab", docs_url=None, redoc_url=None, openapi_url=None)
    turn, waiting = asyncio.Lock(), [0]

    async def answer(request: Request) -> Response:
        try:
            _demand_bearer(request.headers.get("authorization", ""), token)
            body = await _body(request, limits.body)
            if waiting[0] >= limits.queue:
                raise Refused(503, f"{waiting[0]} requests are waiting: ask again later")
            waiting[0] += 1
            try:
                await asyncio.wait_for(turn.acquire(), limits.seconds)
            except TimeoutError:
                raise Refused(503, f"no turn within {limits.seconds:g} s: ask again later") from None
            finally:
                waiting[0] -= 1
            try:
                made = await run_in_threadpool(work, body, dict(request.query_params))
            finally:
                turn.release()
        except Refused as refused:
            return JSONResponse({"error": refused.line}, refused.status)
        except ValueError as error:
            return JSONResponse({"error": str(error).splitlines()[0]}, 400)
        return Response(made, media_type="application/octet-stream")

    app.add_api_route(path, answer, methods=["POST"], response_model=None)
    app.add_api_route("/health", lambda: {"ok": True, "waiting": waiting[0], **health}, methods=["GET"])
    return app


def serve(app: Any, host: str, port: int) -> None:
    """Run the application until it is stopped."""
    import uvicorn

    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_keep_alive=30)


def _demand_bearer(header: str, token: str | None) -> None:
    if token is not None and not hmac.compare_digest(header.encode(), f"Bearer {token}".encode()):
        raise Refused(401, "the bearer token is wrong or missing")


async def _body(request: Any, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refused(413, f"the body has more than {most:,} bytes")
        parts.append(part)
    return b"".join(parts)
