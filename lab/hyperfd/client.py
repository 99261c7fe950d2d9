"""The client's side of the privacy boundary: owns pictures, trains detectors, uploads pooled features and results."""

import hashlib
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.data.faces import FaceTask
from ..core.service import ServiceClient, ServiceError
from ..core.spaces.draws import draw
from . import equations as eq
from .accounting import noise_multiplier
from .bounds import Rejected, Stale
from .features import meta_features, samples
from .layers import Extractor, Ranker
from .learning import Record, RoundConfig, RoundData, RoundResult, train_round, vectors
from .messages import Offer, Shape, Upload, rounded, synapses
from .portfolio import recommended

PATH = "/v1/round"
LEAST = 16  # pictures behind each meta-vector that leaves
RETRIES = 5  # of an upload that came too late
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a busy platform is asked again
BUSY = 503  # HTTP's status
CLIP = 4.0  # of a picture's vector: those of the embedded domains have lengths from 2.4 to 6.9

Noise = float | tuple[float, float]  # (epsilon, delta); 0 for none


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
    their scores. noise=(epsilon, delta): all that is sent, but the results and the number of pictures, is computed from
    one noised release of the pictures' features, each clipped to length `clip`, Card (15) and (16). The noise hangs on
    `secret`, left out on the system's randomness. A number > 0, which is deprecated, only blurs the vectors, Card (13).
    Draws from torch's global generator; where scores are equal, the seed chooses. What is uploaded pools LEAST pictures
    or more: ValueError for fewer.
    """

    def __init__(
        self,
        data: Any,
        codes: Tensor,
        evaluate: Callable[[Sequence[int]], list[float]],
        config: RoundConfig,
        noise: Noise = 0.0,
        clip: float = CLIP,
        pool: Sequence[int] | None = None,
        seed: int = 0,
        secret: int | None = None,
    ) -> None:
        self.codes, self.evaluate, self.noise, self.clip, self.secret = codes, evaluate, noise, clip, secret
        validate_noise(noise, config)
        self.is_private = isinstance(noise, tuple)
        # the map is fitted on clean vectors, whose directions could be read off it: with noise it stays at home
        self.config = replace(config, sends_map=config.sends_map and not noise, is_private=self.is_private)
        self.pool = list(range(len(codes))) if pool is None else list(pool)
        self.tie_breaks = [draw(code, seed) for code in rounded(codes).tolist()]
        self.x = meta_features(data)[None] if config.features == "handmade" else samples(data)
        self.data = data
        self.release: tuple[str, Tensor] | None = None

    def recommend(self, content: bytes, k: int) -> Recommendation:
        """The k most promising configurations by the platform's offer, on R random subsets; Card (12)."""
        self.validate_pooled()
        ranker, offer = self._opened(content)
        return self.ranked(ranker, k, records=offer.records)

    def ranked(
        self, ranker: Ranker, k: int, count: int | None = None, *, records: Sequence[Record] | None = None
    ) -> Recommendation:
        """The k most promising configurations by a ranker at hand, on R random subsets or `count` of them.

        With the records that a platform offers they are chosen as `portfolio` says; without, by their scores alone.
        """
        v = self._vectors(ranker, count)
        with torch.no_grad():
            scores, spread = eq.subset_scores(ranker.scores(v, self.codes))
        order = sorted(self.pool, key=lambda row: (-float(scores[row]), self.tie_breaks[row]))
        if records is not None and self.config.portfolio:
            order = recommended(order, records, self.codes, k)
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
        record = Record("own", self._vectors(ranker), tuple(rows), tuple(results), images, boxes)
        # a private round is given no picture at all
        data = RoundData(self.x[:0] if self.is_private else self.x, record, offer.records, self.codes, memory_samples)
        before = synapses(offer.Omega, ranker)
        learned = train_round(ranker, before, data, self.config, folder=folder, run_id=run_id, progress=progress)
        v = self._vectors(learned.ranker)  # (R, d), in the new version
        if self.noise and not isinstance(self.noise, tuple):
            v = eq.private(v, 1.0, self.noise, torch.randn_like(v))
        message = Upload(
            base=offer.version,
            space=offer.space,
            vectors=v,
            rows=record.rows,
            results=record.results,
            images=images,
            boxes=images if self.is_private else boxes,
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
        return recommendation, results[:k], self.send(side, rows, results, offer)

    def send(self, side: Side, rows: Sequence[int], results: Sequence[float], offer: bytes | None = None) -> int:
        """Learn from trials that are paid and upload, again where others came first: the bytes of the upload.

        An error carries the trials as a note, so that none has to be repeated.
        """
        try:
            for left in range(RETRIES, -1, -1):
                message, _ = self.upload(offer if offer is not None else side.offer(), rows, results)
                try:
                    side.accept(message)
                    return len(message)
                except Stale:
                    if not left:
                        raise
                    offer = None
        except (Rejected, ServiceError) as error:
            error.add_note(f"these trials are paid, `send(side, rows, results)` takes them: {list(rows)}, {results}")
            raise
        raise AssertionError("the last try returns or raises")

    def _vectors(self, ranker: Ranker, count: int | None = None) -> Tensor:
        """The meta-vectors (R, d) of random subsets, or `count` of them; where noise is asked for, R times what of all
        pictures together was released, once: another extractor would need another release, and spend as much again.
        """
        if not self.is_private:
            return vectors(ranker, self.x, self.config, count)
        assert isinstance(ranker.extractor, Extractor) and isinstance(self.noise, tuple)
        sha = hashlib.sha256(b"".join(w.detach().numpy().tobytes() for w in ranker.extractor.parameters())).hexdigest()
        if self.release is None:
            self.release = (sha, self._released(ranker.extractor, *self.noise))
        if self.release[0] != sha:
            raise ValueError(
                f"noise={self.noise}: the platform's extractor has changed, and a second release would spend as much "
                "again: make another DataOwner where that is meant"
            )
        return self.release[1].repeat(count or self.config.R, 1)

    def _released(self, extractor: Extractor, epsilon: float, delta: float) -> Tensor:
        """The one vector (d,) that this owner's pictures give, noised; Card (16)."""
        with torch.no_grad():
            q = eq.clipped_moments(extractor.features(self.x), self.clip, extractor.spread)
        random = torch.Generator().manual_seed(secrets.randbits(63) if self.secret is None else self.secret)
        sample = torch.randn(q.shape, generator=random)
        noise = noise_multiplier(epsilon, delta)
        return eq.released(q, self.clip, len(self.x), noise, sample, extractor.spread)

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


def validate_noise(noise: Noise, config: RoundConfig) -> None:
    """ValueError where noise is neither (epsilon, delta) nor a number, or where the features have no bounded part."""
    if isinstance(noise, tuple):
        if len(noise) != 2 or not all(_is_number(x) for x in noise) or not (noise[0] > 0 and 0 < noise[1] < 1):
            raise ValueError(f"noise={noise!r}: give (epsilon, delta), epsilon > 0 and delta between 0 and 1")
        if config.features == "handmade" or config.stale == "pooled":
            field = "features='handmade'" if config.features == "handmade" else "stale='pooled'"
            raise ValueError(f"noise={noise} with {field}: one picture's part in what is sent has no bound there")
    elif not _is_number(noise) or not noise >= 0:
        raise ValueError(f"noise={noise!r}: give (epsilon, delta), or 0 for none")


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


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
        """Send an upload; ServiceError if the platform refuses it, Stale where it is to be learned again."""
        try:
            self._post("upload", content)
        except ServiceError as error:
            if error.status == 409:
                raise Stale(str(error)) from None
            raise

    def _post(self, ask: str, body: bytes) -> bytes:
        """The answer; asked again where the platform is busy or, since it takes the same upload once, none came."""
        for wait in (*WAITS, None):
            try:
                content = self.request("POST", PATH, query={"ask": ask}, body=body)
                break
            except ServiceError as error:
                lost = not error.status and ask == "upload"
                if wait is None or not (lost or error.status == BUSY):
                    raise
                time.sleep(wait)
        self.sent, self.received = self.sent + len(body), self.received + len(content)
        return content
