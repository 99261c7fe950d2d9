"""HyperFD's platform among clients who are not honest: what the honest ones regret, with and without the others.

    python benchmarks/hyperfd_trust.py [--quick] [--json FILE] [--part hostile] [--orders 5] [--clients 100]

`--part epsilon` asks what differential privacy costs: regret after five of twelve tasks over epsilon, delta 1e-5,
beside an extractor that does not learn either, what is learned without noise, and chance.
A client owns half of the pictures of one of the lab's twelve domains, drawn by its own seed, and is told the table's
results with an error of one percent. What the extractor sees of a picture are the six handcrafted features, as numbers:
a round then takes a part of a second. Up to ten clients learn at once, so that most uploads come late and are merged;
those that come too late learn again from the trials that they have paid for. Regret is that of the later half of the
honest clients, the same ones with and without hostile ones. FILE is a journal too: runs that it holds are not made
again. The hostile ones know the bounds: each tries its ruin at full force, then at a half, down to a sixteenth, until
the platform takes it.

    flipped     the best results are told as the worst, and the model learns from that
    far         the results are told as they are, the model learns from flipped ones, and goes so many times as far
    frozen      all importances grow by the most that is allowed
    turned      the map turns what the memory holds
    ruined      weights by chance
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

import lab
from lab.core import ranking_metrics, store
from lab.core.data import faces
from lab.core.machine import machine
from lab.core.spaces.streams import Stream
from lab.core.training import seeded
from lab.hyperfd import bounds
from lab.hyperfd import equations as eq
from lab.hyperfd.bounds import Rejected
from lab.hyperfd.client import DataOwner, sampled
from lab.hyperfd.features import samples
from lab.hyperfd.learning import RoundConfig
from lab.hyperfd.messages import Offer, Shape, Upload
from lab.hyperfd.platform import Platform

K, TRIALS, AT_ONCE, ERROR = 5, 20, 10, 1.0
FORCES = (16.0, 8.0, 4.0, 2.0, 1.0)  # of a ruin, tried from the first
AFTER = 5  # tasks served, from which on regret is compared
PRIVATE = {f"epsilon {e:g}": {"noise": (e, 1e-5)} for e in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)} | {
    "not learning features": {"features": "frozen"},
    "without noise": {},
}
HOSTILE = ("flipped", "far", "frozen", "turned", "ruined")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one order of 25 clients, 5 of them hostile")
    parser.add_argument("--json", type=Path, help="write all figures, settings, seeds and the machine here")
    parser.add_argument("--part", choices=("hostile", "epsilon"), default="hostile")
    parser.add_argument("--orders", type=int, default=5)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--hostile", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.orders, options.clients, options.hostile = 1, 25, 5
    steps = 30 if options.quick else 60
    if options.part == "epsilon":
        return over_epsilon(options.orders, steps, options.json)
    items = [
        {"seed": seed, "clients": options.clients, "hostile": hostile, "steps": steps}
        for seed in range(options.orders)
        for hostile in (0, options.hostile)
    ]
    runs = journalled(
        items,
        lambda item: run(item["seed"], options.clients, item["hostile"], options.hostile, steps),
        compared,
        options.json,
    )
    print(json.dumps(compared(runs), indent=1))


def journalled(items: list[dict], make: Callable, figures: Callable, path: Path | None) -> list[dict]:
    """All runs: those that the file holds and, made and written one by one with the figures, those that it lacks."""
    runs = json.loads(path.read_text())["runs"] if path and path.exists() else []
    for item in items:
        if any(item.items() <= known.items() for known in runs):
            continue
        runs.append(item | make(item))
        print(json.dumps(runs[-1]), flush=True)
        if path is not None:
            report = {"figures": figures(runs), "runs": runs, "machine": machine()}
            store.write(path, (json.dumps(report, indent=1) + "\n").encode())
    return runs


def compared(runs: list[dict]) -> dict[str, str]:
    """Regret of the honest without and with hostile clients, and the paired difference, over orders that have both."""
    by_kind = [{r["seed"]: r["regret"] for r in runs if bool(r["hostile"]) == kind} for kind in (False, True)]
    seeds = sorted(set(by_kind[0]) & set(by_kind[1]))
    without, among = ([part[seed] for seed in seeds] for part in by_kind)
    return {
        "regret among honest clients": str(ranking_metrics.interval(without)),
        "regret among hostile ones": str(ranking_metrics.interval(among)),
        "difference, the same orders": str(
            ranking_metrics.interval([b - a for a, b in zip(without, among, strict=True)])
        ),
    }


@lru_cache(maxsize=1)
def grounds() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Six numbers a picture of each domain (k, 6), the table (12, 216) and the codes of its columns."""
    table = lab.tasks.detectors()
    rows = [eq.handcrafted_features(samples(faces.composed(name))) for name in table.names]
    return rows, table.scores.nan_to_num(0.0), table.codes()


def over_epsilon(orders: int, steps: int, path: Path | None) -> None:
    """Regret over epsilon, a line a run; the file is a journal."""
    items = [{"by": name, "seed": seed, "steps": steps} for seed in range(orders) for name in PRIVATE]
    runs = journalled(items, served, private_figures, path)
    print(json.dumps(intervals(runs, "regret"), indent=1))


def served(item: dict) -> dict[str, float]:
    """The mean regret of one setting in one order, after so many tasks, and that of chance."""
    recipe = lab.HyperFD(steps=item["steps"], **PRIVATE[item["by"]])
    tasks = recipe.run(numbers(), seed=item["seed"], progress=False).served[AFTER:]
    regrets = {"regret": [task.regret for task in tasks], "chance": [task.random for task in tasks]}
    return {key: float(np.mean(values)) for key, values in regrets.items()}


def private_figures(runs: list[dict]) -> dict[str, dict[str, str]]:
    """What comes out of the runs over epsilon."""
    return {key: intervals(runs, key) for key in ("regret", "chance")} | {"more than without noise": paired(runs)}


def paired(runs: list[dict]) -> dict[str, str]:
    """How much more regret than without noise on the same orders, of each setting."""
    base = {r["seed"]: r["regret"] for r in runs if r["by"] == "without noise"}
    more: dict[str, list[float]] = {name: [] for name in PRIVATE}
    for r in runs:
        if r["seed"] in base:
            more[r["by"]].append(r["regret"] - base[r["seed"]])
    return {name: str(ranking_metrics.interval(values)) for name, values in more.items() if len(values) > 1}


def intervals(runs: list[dict], key: str) -> dict[str, str]:
    """The mean over orders with its interval, of each setting."""
    return {name: str(ranking_metrics.interval([r[key] for r in runs if r["by"] == name])) for name in PRIVATE}


def numbers() -> Stream:
    """The twelve domains, their pictures as six numbers each, and the table of their detectors."""
    rows, _, _ = grounds()
    table = lab.tasks.detectors()
    return replace(table, data=dict(zip(table.names, rows, strict=True)).__getitem__, name="detectors by six numbers")


def run(seed: int, clients: int, hostile: int, of: int, steps: int) -> dict:
    """One order, `of` of its clients drawn to be hostile, or gone where hostile is 0: the honest ones are the same."""
    rows, _, codes = grounds()
    config = RoundConfig(R=4, m=16, steps=steps, portfolio=False)  # regret is to show the model, which is attacked
    platform = Platform((rows[0].shape[1],), codes, config, seed)
    random = np.random.default_rng([seed, 1])
    bad = set(random.permutation(clients)[:of].tolist())
    everyone = [
        Visitor(number, seed, config, HOSTILE[number % 5] if number in bad else "") for number in range(clients)
    ]
    if not hostile:
        everyone = [visitor for visitor in everyone if not visitor.kind]
    waiting, at_work, regrets = list(everyone), [], []
    while waiting or at_work:
        while waiting and len(at_work) < AT_ONCE:
            visitor = waiting.pop(0)
            regrets += visitor.begin(platform)
            at_work.append(visitor)
        at_work.pop(int(random.integers(len(at_work)))).end(platform)
    honest = [visitor for visitor in everyone if not visitor.kind]
    taken = [visitor for visitor in everyone if visitor.kind and visitor.taken]
    return {
        "regret": float(np.mean(regrets[len(regrets) // 2 :])),
        "regrets": [round(regret, 2) for regret in regrets],
        "honest refused": sum(not visitor.taken for visitor in honest),
        "learned again": sum(visitor.again for visitor in honest),
        "hostile taken": {kind: sum(v.kind == kind for v in taken) for kind in HOSTILE},
        "versions": platform.version,
    }


class Visitor:
    """A client of the simulation: begins with an offer, ends with an upload."""

    def __init__(self, number: int, seed: int, config: RoundConfig, kind: str) -> None:
        rows, table, codes = grounds()
        self.number, self.seed, self.kind, self.taken, self.again = number, seed, kind, False, 0
        self.random = np.random.default_rng([seed, number, 2])
        domain = int(self.random.integers(len(rows)))
        mine = self.random.permutation(len(rows[domain]))[:48]
        self.truth = table[domain]
        self.owner = DataOwner(rows[domain][mine], codes, lambda _: [], config, seed=number)

    def begin(self, platform: Platform) -> list[float]:
        """Be recommended five configurations, and try these and others: the regret of an honest client."""
        with seeded(1000 * self.seed + self.number):
            self.offer = platform.offer()
            chosen = list(self.owner.recommend(self.offer, K).rows)
            self.rows = [*chosen, *sampled(self.owner.pool, chosen, TRIALS - K)]
        errors = self.random.normal(0, ERROR, TRIALS)
        self.results = (self.truth[self.rows].numpy() + errors).clip(0, 100).tolist()
        return [] if self.kind else [float(eq.regret(self.truth, chosen))]

    def end(self, platform: Platform) -> None:
        """Learn and upload."""
        with seeded(1000 * self.seed + self.number + 500):
            if self.kind:
                self.ruin(platform)
            else:
                before = platform.version
                counted = Counted(platform)
                try:
                    self.owner.send(counted, self.rows, self.results, self.offer)
                except Rejected as error:
                    print(f"honest {self.number}: {error}", flush=True)
                self.taken, self.again = platform.version > before, counted.offers  # one that is taken is a version

    def ruin(self, platform: Platform) -> None:
        """Send the ruin with the most force that is taken."""
        flipped = [max(self.results) + min(self.results) - y for y in self.results]
        message, learned = self.owner.upload(self.offer, self.rows, flipped)
        shape = Shape.of(learned.ranker, self.owner.config.R, self.owner.codes)
        upload, offer = Upload.from_bytes(message, shape), Offer.from_bytes(self.offer, shape)
        for force in FORCES:
            try:
                platform.accept(
                    spoiled(self.kind, upload, offer, force, tuple(self.results)).to_bytes(), f"hostile {self.number}"
                )
                self.taken = True
                return
            except Rejected:
                continue


class Counted:
    """A platform that counts how often it was asked for an offer again."""

    def __init__(self, platform: Platform) -> None:
        self.platform, self.offers = platform, 0

    def offer(self) -> bytes:
        self.offers += 1
        return self.platform.offer()

    def accept(self, content: bytes) -> None:
        self.platform.accept(content)


def spoiled(kind: str, upload: Upload, offer: Offer, force: float, results: tuple[float, ...]) -> Upload:
    """An upload that is hostile in this way."""
    d = upload.vectors.shape[1]
    if kind == "far":
        return replace(
            upload,
            results=results,
            weights={n: offer.weights[n] + force * (w - offer.weights[n]) for n, w in upload.weights.items()},
        )
    if kind == "frozen":
        gain = bounds.MOST_GAIN * force / FORCES[0]
        return replace(upload, weights=offer.weights, Omega=[o + gain for o in offer.Omega])
    if kind == "turned":
        return replace(upload, D=upload.D + force / FORCES[0] * torch.randn(d, d) / d**0.5)
    if kind == "ruined":
        return replace(upload, weights={n: w + 0.02 * force * torch.randn_like(w) for n, w in upload.weights.items()})
    return upload


if __name__ == "__main__":
    main()
