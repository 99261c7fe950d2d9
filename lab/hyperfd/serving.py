"""The platform as a service: a client asks for an offer, and sends its upload; see `client.Remote`."""

import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import service, store
from ..core.spaces.streams import coded, detector_choices
from ..core.turns import RequestRefused
from . import database
from .bounds import Stale
from .client import PATH
from .features import SIDE
from .learning import RoundConfig
from .platform import Platform

BODY, QUEUE = 2 << 20, 64  # bytes of an upload, which has 0.6 million; requests that wait


def application(platform: Platform, token: str | None = None, limits: service.Limits | None = None) -> Any:
    """The service of a platform, an ASGI application: POST with ask=offer or ask=upload.

    Where the platform's folder has clients with keys of their own (`lab clients`), each upload needs such a key.
    """

    def client_name(given: str) -> str | None:
        if platform.folder is not None and (name := database.client_of(platform.folder, given)) is not None:
            return name
        return "" if token is None or hmac.compare_digest(given.encode(), token.encode()) else None

    def work(body: bytes, query: Mapping[str, str]) -> bytes:
        ask, client = query.get("ask", ""), service.asking_client()
        if ask == "offer":
            return platform.offer()
        if ask == "upload":
            if not client and platform.folder is not None and database.clients(platform.folder):
                raise RequestRefused(
                    403, "an upload needs its client's own key: `lab clients DIR --add NAME` gives one"
                )
            _accepted(platform, body, client)
            return b"{}"
        raise ValueError(f"ask={ask!r} is not allowed: give 'offer' or 'upload'")

    health = {"service": "hyperfd", "configurations": len(platform.codes), "subsets": platform.config.R}
    who = client_name if platform.folder is not None else token
    return service.application(work, PATH, health, who, limits or service.Limits())


def _accepted(platform: Platform, body: bytes, client: str) -> None:
    """Take an upload; 409 for one to be learned again; what does not fit is a ValueError, and changes nothing."""
    try:
        platform.accept(body, client)
    except Stale as error:
        raise RequestRefused(409, str(error)) from None


def serve(folder: str | Path | None, host: str, port: int, token: str | None = None, names: Sequence[str] = ()) -> None:
    """Serve a platform for the 216 face detectors until stopped; `folder` keeps its state between starts.

    ValueError in one line if another platform serves the folder.
    A token left out is made and printed. `names` are further names of this machine.
    """
    with store.held(folder):
        platform = Platform((4, SIDE, SIDE), coded(detector_choices()), RoundConfig(), folder=folder)
        token = service.announced(host, port, token)
        limits = service.Limits(names=(host, *names), body=BODY, queue=QUEUE)
        service.serve(application(platform, token, limits), host, port)
