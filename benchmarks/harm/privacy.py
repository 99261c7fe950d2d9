"""What leaves HyperFD's clients, taken off the wire: no picture of theirs is in it, in any encoding, nor one's vector.

Each of twelve clients owns a domain of composed scenes and does two rounds with a platform over a socket; a relay
between them keeps every byte of both directions. These are held against all pictures at several scales and encodings,
and against the vector of every single picture. Sixteen bytes in a row are a find. So that the search is known to see:
each encoding of one picture is hidden among the bytes; `unseen` are those that are not found then.
"""

import base64
import io
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from lab.core.data import faces
from lab.core.training import seeded
from lab.hyperfd.client import DataOwner, Remote
from lab.hyperfd.learning import RoundConfig
from lab.hyperfd.platform import Platform

from . import service

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.hyperfd import small

HOW = RoundConfig(R=4, m=16, steps=4)


def cells(quick: bool) -> list[tuple[str]]:
    """Each a client, by the domain of its pictures."""
    return [(name,) for name in list(faces.DOMAINS)[: 1 if quick else None]]


@contextmanager
def relayed(port: int) -> Iterator[tuple[int, bytearray]]:
    """A port that leads to another one, and every byte that goes through it."""
    taken, lock = bytearray(), threading.Lock()
    listening = socket.create_server(("127.0.0.1", 0))

    def carry(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while content := one.recv(1 << 16):
                with lock:
                    taken.extend(content)
                other.sendall(content)
            other.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.create_connection(("127.0.0.1", port))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with closing(listening):
        yield listening.getsockname()[1], taken


def encodings(image: torch.Tensor) -> Iterator[tuple[str, bytes]]:
    """A picture, uint8 (3, H, W), as it may be sent: by name its bytes."""
    for scale in (1, 2, 4):
        x = F.avg_pool2d(image.float()[None], scale)[0] if scale > 1 else image.float()
        pixels = x.round().to(torch.uint8)
        rows = pixels.permute(1, 2, 0).contiguous().numpy()
        arrays = {"planes": pixels.numpy(), "pixels": rows, "grey": x.mean(0).round().to(torch.uint8).numpy()}
        arrays |= {"floats": (x / 255).numpy(), "halves": (x / 255).half().numpy(), "levels": x.numpy()}
        for name, array in arrays.items():
            yield f"{name} / {scale}", array.tobytes()
        yield f"base64 / {scale}", base64.b64encode(rows.tobytes())
        for kind, options in (("PNG", {}), ("JPEG", {"quality": 75}), ("JPEG", {"quality": 95})):
            file = io.BytesIO()
            Image.fromarray(rows).save(file, kind, **options)
            yield f"{kind} / {scale}", file.getvalue()[700:]  # behind the tables that all JPEG files share


def chunks(content: bytes, least: int) -> np.ndarray:
    """Eight bytes at a time as integers, but 0 for those of fewer different bytes: an even wall is in many things."""
    words = np.frombuffer(content[: len(content) // 8 * 8], np.uint8).reshape(-1, 8)
    ordered = np.sort(words, 1)
    various = (ordered[:, 1:] != ordered[:, :-1]).sum(1) >= least - 1
    return np.where(various, words.copy().view(np.uint64)[:, 0], np.uint64(0))


def windows(content: bytes) -> np.ndarray:
    """Eight bytes from every place, sorted."""
    parts = [np.frombuffer(content[k : k + (len(content) - k) // 8 * 8], np.uint64) for k in range(8)]
    return np.unique(np.concatenate(parts))


def is_in(content: bytes, sought: np.ndarray, name: str) -> bool:
    """Whether sixteen bytes in a row of the content are among the windows.

    Of numbers of several bytes, two equal ones have up to four different bytes; a grey pixel's three are one.
    """
    words = chunks(content, 5 if name.startswith(("floats", "halves", "levels", "vector")) else 3)
    if not len(words):
        return False
    at = np.minimum(np.searchsorted(sought, words), len(sought) - 1)
    hit = (sought[at] == words) & (words != 0)
    return bool((hit[1:] & hit[:-1]).any())


def run(item: tuple[str]) -> dict[str, Any]:
    """A client's life, and what of its pictures is on the wire."""
    task, codes = faces.composed(item[0]), small.stream().codes()
    with seeded(0):
        platform = Platform((4, 64, 64), codes, HOW)
        client = DataOwner(task, codes, lambda rows: [50.0 + row % 7 for row in rows], HOW)
        with listening(platform) as port, relayed(port) as (near, taken):
            for _ in range(2):
                client.run_round(Remote(f"http://127.0.0.1:{near}", service.TOKEN), 2, 4)
    content = bytes(taken)
    sought = windows(content)
    images = [*task.learn.images, *task.held_out.images]
    faults = [
        f"{name} of picture {k}" for k, x in enumerate(images) for name, y in encodings(x) if is_in(y, sought, name)
    ]
    faults += [
        f"the vector of picture {k}" for k, v in enumerate(vectors(client, platform)) if is_in(v, sought, "vector")
    ]
    unseen = [name for name, y in encodings(images[0]) if not is_in(y, windows(content[:9999] + b"." + y), name)]
    tried = len(list(encodings(images[0])))
    return {"bytes": len(content), "images": len(images), "encodings": tried, "unseen": unseen, "faults": faults[:20]}


def vectors(client: DataOwner, platform: Platform) -> Iterator[bytes]:
    """The vector of each single picture, by the networks that the client has had."""
    for base in platform.bases.values():
        ranker = HOW.ranker(client.x.shape[1:], client.codes.shape[1])
        ranker.load_state_dict(base.weights)
        with torch.no_grad():
            for x in client.x:
                vector = ranker.eval().extractor(x[None, None]).flatten()
                yield from (vector.numpy().tobytes(), vector.half().numpy().tobytes())


@contextmanager
def listening(platform: Platform) -> Iterator[int]:
    """The platform as a service in a thread of this process, by its port."""
    import uvicorn

    from lab.hyperfd import serving

    app = serving.application(platform, service.TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()


def figures(rows: dict[tuple[str], dict[str, Any]]) -> dict[str, Any]:
    """Clients, pictures, bytes on the wire, and what was found there."""
    faults = [f"{name}: {line}" for (name,), row in rows.items() for line in row["faults"]]
    sums = {part: sum(row[part] for row in rows.values()) for part in ("images", "bytes")}
    unseen, hidden = sum(len(row["unseen"]) for row in rows.values()), sum(row["encodings"] for row in rows.values())
    return {"clients": len(rows), **sums, "hidden": hidden, "seen": hidden - unseen, "faults": faults}
