"""The client's side of the privacy boundary: owns pictures, trains detectors, uploads pooled features and results."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.data.faces import FaceTask
from ..core.service import ServiceClient
from ..core.spaces.draws import draw
from . import equations as eq
from .features import meta_features, samples
from .layers import Ranker
from .learning import Record, RoundConfig, RoundData, RoundResult, train_round, vectors
from .messages import Offer, Shape, Upload, rounded, synapses

PATH = "/v1/round"
LEAST = 16  # pictures behind each meta-vector that leaves


class Side(Protocol):
    """What a client talks to: a Platform in the same process, or a Remote one."""

    def offer(self) -> bytes:
        """The message that a round begins with."""

    def accept(self, content: bytes) -> None:
        """Take the message that ends it."""


@dataclass(frozen=True)
class Recommendation:
    """What is recommended, best first, with the score of all configurations (n,) and its spread over subsets (n,)."""

    rows: tuple[int, ...]
    scores: Tensor
    spread: Tensor


class DataOwner:
    """A client, one owner of data: asks for configurations, tries them, says how well they did, and nothing else.

    data is a FaceTask, or a (k, F) tensor of numbers; codes (n, F) the configurations; evaluate trains these and gives
    their scores. noise > 0 clips and blurs each uploaded meta-vector, Card (13). Draws from torch's global generator;
    where scores are equal, the seed chooses. What is uploaded pools LEAST pictures or more: ValueError for fewer.
    """

    def __init__(
        self,
        data: Any,
        codes: Tensor,
        evaluate: Callable[[Sequence[int]], list[float]],
        config: RoundConfig,
        noise: float = 0.0,
        clip: float = 1.0,
        pool: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        self.codes, self.evaluate, self.noise, self.clip = codes, evaluate, noise, clip
        # the map is fitted on clean vectors, whose directions could be read off it: with noise it stays at home
        self.config = replace(config, sends_map=config.sends_map and not noise)
        self.pool = list(range(len(codes))) if pool is None else list(pool)
        self.tie_breaks = [draw(code, seed) for code in rounded(codes).tolist()]
        self.x = meta_features(data)[None] if config.features == "handmade" else samples(data)
        self.data = data

    def recommend(self, content: bytes, k: int) -> Recommendation:
        """The k most promising configurations by the platform's offer, on R random subsets; Card (12)."""
        self.validate_pooled()
        ranker, _ = self._opened(content)
        return self.ranked(ranker, k)

    def ranked(self, ranker: Ranker, k: int, count: int | None = None) -> Recommendation:
        """The k most promising configurations by a ranker at hand, on R random subsets or `count` of them."""
        v = vectors(ranker, self.x, self.config, count)
        with torch.no_grad():
            scores, spread = eq.subset_scores(ranker.scores(v, self.codes))
        order = sorted(self.pool, key=lambda row: (-float(scores[row]), self.tie_breaks[row]))
        return Recommendation(tuple(order[:k]), scores, spread)

    def upload(
        self,
        content: bytes,
        rows: Sequence[int],
        results: Sequence[float],
        folder: Path | None = None,
        progress: bool = False,
        memory_samples: Sequence[Tensor] = (),
    ) -> tuple[bytes, RoundResult]:
        """Learn from these trials on top of the platform's offer: the message to send, and what was learned.

        What was learned so far is kept in the folder, known by the offer, the trials and the data. `memory_samples`
        cross the privacy boundary: see `RoundData`.
        """
        self.validate_pooled()
        ranker, offer = self._opened(content)
        run_id = f"a client, round {self._round(offer, rows, results)}"
        images, boxes = self._counts()
        record = Record("own", vectors(ranker, self.x, self.config), tuple(rows), tuple(results), images, boxes)
        data = RoundData(self.x, record, offer.records, self.codes, memory_samples)
        before = synapses(offer.Omega, ranker)
        learned = train_round(ranker, before, data, self.config, folder=folder, run_id=run_id, progress=progress)
        v = vectors(learned.ranker, self.x, self.config)  # (R, d), in the new version
        message = Upload(
            base=offer.version,
            space=offer.space,
            vectors=eq.private(v, self.clip, self.noise, torch.randn_like(v)) if self.noise else v,
            rows=record.rows,
            results=record.results,
            images=images,
            boxes=boxes,
            weights=learned.ranker.state_dict(),
            Omega=learned.synapses.Omega,
            D=learned.D,
            error=learned.error,
        )
        return message.to_bytes(), learned

    def run_round(self, side: Side, k: int, trials: int | None = None) -> tuple[Recommendation, list[float], int]:
        """One whole round with a platform: what was recommended, its results, and the bytes that were sent.

        Of `trials`, the first k are what was recommended, the others are drawn at random to teach the platform.
        """
        offer = side.offer()
        recommendation = self.recommend(offer, k)
        rows = [*recommendation.rows, *sampled(self.pool, recommendation.rows, (trials or k) - k)]
        results = self.evaluate(rows)
        message, _ = self.upload(offer, rows, results)
        side.accept(message)
        return recommendation, results[:k], len(message)

    def validate_pooled(self) -> None:
        """ValueError, before anything is trained, where a meta-vector would pool so few pictures that it shows them."""
        images, _ = self._counts()
        if (least := min(self.config.m, images // 2)) < LEAST:
            raise ValueError(
                f"a subset would pool {least} of {images} pictures, m={self.config.m}: fewer than {LEAST} show single "
                f"ones: give m of {LEAST} or more, {2 * LEAST} pictures or more"
            )

    def _opened(self, content: bytes) -> tuple[Ranker, Offer]:
        with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced at once
            ranker = self.config.ranker(self.x.shape[1:], self.codes.shape[1])
        offer = Offer.from_bytes(content, Shape.of(ranker, self.config.R, self.codes))
        ranker.load_state_dict(offer.weights)
        return ranker.eval(), offer

    def _round(self, offer: Offer, rows: Sequence[int], results: Sequence[float]) -> str:
        payload = repr((offer.digest(), list(rows), list(results))).encode()
        return hashlib.sha256(payload + self.x.contiguous().numpy().tobytes()).hexdigest()[:12]

    def _counts(self) -> tuple[int, int]:
        if isinstance(self.data, FaceTask):
            return len(self.data.learn), sum(map(len, self.data.learn.boxes))
        return len(self.data), len(self.data)


def sampled(pool: Sequence[int], taken: Sequence[int], count: int) -> list[int]:
    """Configurations at random, none of those that were taken."""
    left = [row for row in pool if row not in set(taken)]
    return [left[i] for i in torch.randperm(len(left))[: max(0, count)].tolist()]


class Remote(ServiceClient):
    """A platform elsewhere, asked over HTTP; counts the bytes of the bodies that it took and gave.

    `token` left out is LAB_TOKEN's; `seconds` is the time for one whole answer.
    """

    def __init__(self, url: str, token: str | None = None, seconds: float = 60.0) -> None:
        super().__init__(url, token, seconds)
        self.sent, self.received = 0, 0

    def offer(self) -> bytes:
        """The platform's offer; ServiceError if it does not come."""
        return self._post("offer", b"")

    def accept(self, content: bytes) -> None:
        """Send an upload; ServiceError if the platform refuses it."""
        self._post("upload", content)

    def _post(self, ask: str, body: bytes) -> bytes:
        content = self.request("POST", PATH, query={"ask": ask}, body=body)
        self.sent, self.received = self.sent + len(body), self.received + len(content)
        return content
