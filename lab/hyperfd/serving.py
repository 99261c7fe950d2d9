"""The platform as a service: a client asks for an offer, and sends its upload; see `client.Remote`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import service, store
from ..core.spaces.streams import coded, detector_choices
from .client import PATH
from .features import SIDE
from .learning import RoundConfig
from .platform import Platform


def application(platform: Platform, token: str | None = None, limits: service.Limits | None = None) -> Any:
    """The service of a platform, an ASGI application: POST with ask=offer or ask=upload."""

    def work(body: bytes, query: Mapping[str, str]) -> bytes:
        ask = query.get("ask", "")
        if ask == "offer":
            return platform.offer()
        if ask == "upload":
            platform.accept(body)  # what does not fit is a ValueError, and changes nothing
            return b"{}"
        raise ValueError(f"ask={ask!r} is not allowed: give 'offer' or 'upload'")

    health = {"service": "hyperfd", "configurations": len(platform.codes), "subsets": platform.config.R}
    return service.application(work, PATH, health, token, limits or service.Limits())


def serve(folder: str | Path | None, host: str, port: int, token: str | None = None, names: Sequence[str] = ()) -> None:
    """Serve a platform for the 216 face detectors until stopped; `folder` keeps its state between starts.

    ValueError in one line if another platform serves the folder.
    A token left out is made and printed. `names` are further names of this machine.
    """
    with store.held(folder):
        platform = Platform((4, SIDE, SIDE), coded(detector_choices()), RoundConfig(), folder=folder)
        token = service.announced(host, port, token)
        service.serve(application(platform, token, service.Limits(names=(host, *names))), host, port)
