"""The client's side of the wall: owns the pictures, trains the detectors, uploads pooled meta-features and results."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core import service
from ..core.data.faces import FaceTask
from ..core.spaces.draws import draw
from . import equations as eq
from .layers import Ranker
from .learning import Learned, Learning, Record, learn, vectors
from .looking import handmade, samples
from .messages import Offer, Shape, Upload, rounded, synapses

PATH = "/v1/round"
LEAST = 16  # pictures behind each meta-vector that leaves

Failed = service.ServiceError  # what a Remote raises


class Side(Protocol):
    """What a client talks to: a Platform in the same process, or a Remote one."""

    def offer(self) -> bytes: ...

    def accept(self, content: bytes) -> None: ...


@dataclass(frozen=True)
class Recommendation:
    """What is recommended, best first, with the score of all configurations (n,) and its spread over subsets (n,)."""

    rows: tuple[int, ...]
    scores: Tensor
    spread: Tensor


class Client:
    """One owner of data: asks for configurations, tries them, says how well they did, and nothing else.

    data is a FaceTask, or a (k, F) tensor of numbers; codes (n, F) the configurations; evaluate trains these and gives
    their scores. noise > 0 clips and blurs each uploaded meta-vector, Eq. (13). Draws from torch's global generator;
    where scores are equal, the seed chooses. What is uploaded pools LEAST pictures or more: ValueError for fewer.
    """

    def __init__(
        self, data: Any, codes: Tensor, evaluate: Callable[[Sequence[int]], list[float]], how: Learning,
        noise: float = 0.0, clip: float = 1.0, pool: Sequence[int] | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.codes, self.evaluate, self.noise, self.clip = codes, evaluate, noise, clip
        self.how = replace(how, aligned=how.aligned and not noise)
        self.pool = list(range(len(codes))) if pool is None else list(pool)
        self.draws = [draw(code, seed) for code in rounded(codes).tolist()]
        self.x = handmade(data)[None] if how.features == "handmade" else samples(data)
        self.data = data

    def recommend(self, content: bytes, k: int) -> Recommendation:
        """The k most promising configurations by the platform's offer, on R random subsets; Eq. (12)."""
        self.validate_pooled()
        ranker, _ = self._opened(content)
        return self.ranked(ranker, k)

    def ranked(self, ranker: Ranker, k: int, count: int | None = None) -> Recommendation:
        """The same by a ranker at hand."""
        v = vectors(ranker, self.x, self.how, count)
        with torch.no_grad():
            scores, spread = eq.subset_scores(ranker.scores(v, self.codes))
        order = sorted(self.pool, key=lambda row: (-float(scores[row]), self.draws[row]))
        return Recommendation(tuple(order[:k]), scores, spread)

    def upload(
        self, content: bytes, rows: Sequence[int], results: Sequence[float], folder: Path | None = None,
        owner: str = "", progress: bool = False, seen: Sequence[Tensor] = (),
    ) -> tuple[bytes, Learned]:  # fmt: skip
        """Learn from these trials on top of the platform's offer: the message to send, and what was learned.

        What was learned so far is kept in the folder, one a round: its owner names the offer, the trials and the data.
        `seen`, the samples of earlier clients, breaks the wall: see `learn`.
        """
        self.validate_pooled()
        ranker, offer = self._opened(content)
        owner = f"{owner or 'a client'}, round {self._round(offer, rows, results)}"
        pictures, boxes = self._counts()
        v = vectors(ranker, self.x, self.how)
        record = Record("own", v, tuple(rows), tuple(results), pictures, boxes)
        found = learn(ranker, synapses(offer.Omega, ranker), self.x, record, offer.records, self.codes, self.how,
                      folder, owner, progress, seen)  # fmt: skip
        sent = vectors(found.ranker, self.x, self.how)
        if self.noise:
            sent = eq.private(sent, self.clip, self.noise, torch.randn_like(sent))
        message = Upload(
            offer.version, offer.space, sent, record.rows, record.results, pictures, boxes, found.ranker.state_dict(),
            found.synapses.Omega, found.D, found.error,
        )  # fmt: skip
        return message.to_bytes(), found

    def served(self, side: Side, k: int, trials: int | None = None) -> tuple[Recommendation, list[float], int]:
        """One whole round with a platform: what was recommended, its results, and the bytes that were sent.

        Of `trials`, the first k are what was recommended, the others are drawn at random to teach the platform.
        """
        offer = side.offer()
        found = self.recommend(offer, k)
        rows = [*found.rows, *drawn(self.pool, found.rows, (trials or k) - k)]
        results = self.evaluate(rows)
        message, _ = self.upload(offer, rows, results)
        side.accept(message)
        return found, results[:k], len(message)

    def validate_pooled(self) -> None:
        """ValueError, before anything is trained, where a meta-vector would pool so few pictures that it shows them."""
        pictures, _ = self._counts()
        if (least := min(self.how.m, pictures // 2)) < LEAST:
            raise ValueError(f"a subset would pool {least} of {pictures} pictures, m={self.how.m}: fewer than {LEAST} "
                             f"show single ones: give m of {LEAST} or more, {2 * LEAST} pictures or more")  # fmt: skip

    def _opened(self, content: bytes) -> tuple[Ranker, Offer]:
        with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced at once
            ranker = self.how.ranker(self.x.shape[1:], self.codes.shape[1])
        offer = Offer.from_bytes(content, Shape.of(ranker, self.how.R, self.codes))
        ranker.load_state_dict(offer.weights)
        return ranker.eval(), offer

    def _round(self, offer: Offer, rows: Sequence[int], results: Sequence[float]) -> str:
        told = repr((offer.digest(), list(rows), list(results))).encode()
        return hashlib.sha256(told + self.x.contiguous().numpy().tobytes()).hexdigest()[:12]

    def _counts(self) -> tuple[int, int]:
        if isinstance(self.data, FaceTask):
            return len(self.data.learn), sum(map(len, self.data.learn.boxes))
        return len(self.data), len(self.data)


def drawn(pool: Sequence[int], taken: Sequence[int], count: int) -> list[int]:
    """Configurations at random, none of those that were taken."""
    left = [row for row in pool if row not in set(taken)]
    return [left[i] for i in torch.randperm(len(left))[: max(0, count)].tolist()]


class Remote:
    """A platform elsewhere, asked over HTTP; counts the bytes of the bodies that it took and gave.

    `token` left out is LAB_TOKEN's; `seconds` is the time for one whole answer.
    """

    def __init__(self, url: str, token: str | None = None, seconds: float = 60.0) -> None:
        self.url, self.seconds = url.rstrip("/"), seconds
        self.token = token if token is not None else os.environ.get("LAB_TOKEN")
        self.sent, self.received = 0, 0

    def __repr__(self) -> str:
        return f"Remote({self.url!r})"

    def offer(self) -> bytes:
        """The platform's offer; Failed if it does not come."""
        return self._posted("offer", b"")

    def accept(self, content: bytes) -> None:
        """Send an upload; Failed if the platform refuses it."""
        self._posted("upload", content)

    def _posted(self, ask: str, body: bytes) -> bytes:
        query = {"ask": ask}
        answer = service.request(
            "POST", self.url + PATH, query=query, body=body, token=self.token, seconds=self.seconds
        )
        self.sent, self.received = self.sent + len(body), self.received + len(answer)
        return answer
