"""HyperFD beside its baselines: regret task after task over many orders, what is forgotten, what an upload tells.

    python benchmarks/hyperfd.py [--quick] [--json FILE] [--csv FILE] [--orders 10] [--jobs 2] [--stream detectors]

Streams: the lab's table of face detectors, and NAS-Bench-Graph's data sets (`--stream graphs`). Every recommender names
five configurations before a task's own data are used, but the default, which is one and the same; what is learned from
is the same number of trials for all, the same ones but for those that were recommended. TPE has five trials of its own.
Regret is the best of the table less the best of the five, in percent: an oracle's is 0 by definition and has no line.
'all pictures pooled' crosses the privacy boundary and learns from all tasks' pictures together, an upper bound; the
'joint offline ranker' does so with the first five tasks and learns no more from then on. Ablations are run on the first
orders only, and compared with HyperFD on the same ones.
`--csv` is a journal too: a second start does only what is missing, known by the recipe and the stream's table, and
leaves all other lines as they are. The attacks on uploads are two: see `lab.hyperfd.privacy`.
"""

import argparse
import gzip
import hashlib
import json
import time
from pathlib import Path

import pandas
import torch

import lab
from lab.core import ranking_metrics, store
from lab.core.data import faces
from lab.core.machine import machine
from lab.core.spaces.streams import Stream
from lab.core.training import seeded
from lab.hyperfd import privacy
from lab.hyperfd.client import DataOwner, sampled
from lab.hyperfd.features import samples
from lab.hyperfd.layers import Ranker
from lab.hyperfd.messages import Shape, Upload
from lab.hyperfd.outcome import HyperFDOutcome
from lab.hyperfd.recipe import fingerprint

RECOMMENDERS: dict[str, dict] = {
    "hyperfd": {},
    "joint offline ranker": {"by": "offline"},
    "random": {"by": "random"},
    "default": {"by": "default"},
    "best average": {"by": "best average"},
    "nearest": {"by": "nearest"},
    "tpe": {"by": "tpe"},
}
ABLATIONS: dict[str, dict] = {
    "neither si nor transformation": {"si": 0.0, "stale": "reuse"},
    "all pictures pooled": {"stale": "pooled"},
    "no triplet": {"triplet": 0.0},
    "no si": {"si": 0.0},
    "stale vectors": {"stale": "reuse"},
    "no memory": {"stale": "drop"},
    "frozen extractor": {"features": "frozen"},
    "mean only": {"features": "mean"},
    "hand-made": {"features": "handmade"},
    "m = 16": {"m": 16},
    "noise 0.1": {"noise": 0.1},
}
ALL = RECOMMENDERS | ABLATIONS
QUICK = ("hyperfd", "random", "default", "best average", "tpe", "frozen extractor")
FEW = 3  # orders of an ablation
AFTER = 5  # tasks served, from which on regret is compared
NOISES = (0.0, 0.1, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one order, few recommenders: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings, seeds and the machine here")
    parser.add_argument("--csv", type=Path, help="one line a task; what is there already is not run again")
    parser.add_argument("--stream", choices=("detectors", "graphs"), default="detectors")
    parser.add_argument("--orders", type=int, default=10)
    parser.add_argument("--by", help="only these recommenders, with commas between")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(1 if options.quick else options.orders)
    names = options.by.split(",") if options.by else QUICK if options.quick else ALL
    if not set(QUICK[:5]) <= set(names) <= set(ALL):
        parser.error(
            f"--by {options.by!r}: give {', '.join(QUICK[:5])}, which the figures need, and any of {', '.join(ALL)}"
        )
    chosen = {name: seeds if name in RECOMMENDERS else seeds[:FEW] for name in names}
    items = [(options.stream, name, seed, options.quick) for seed in seeds for name in chosen if seed in chosen[name]]
    rows = run_all(items, options.csv, options.jobs)
    found = pandas.DataFrame(rows)
    print(summary(found).to_string())
    figures = all_figures(found)
    if options.stream == "detectors":
        figures["attack"] = attack(options.quick)
    print(json.dumps(figures, indent=1))
    if options.json is not None:
        settings = {name: repr(recipe(name, options.quick)) for name in chosen}
        report = {
            "figures": figures,
            "settings": settings,
            "stream": options.stream,
            "note": stream(options.stream).note,
            "seeds": list(seeds),
            "orders": {name: int(part.seed.nunique()) for name, part in found.groupby("by", sort=False)},
            "machine": machine("optuna"),
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def stream(name: str) -> Stream:
    return lab.tasks.detectors() if name == "detectors" else lab.tasks.graphs()


def recipe(name: str, quick: bool) -> lab.HyperFD:
    """What is run under a name."""
    return lab.HyperFD(**({"steps": 20} if quick else {}) | ALL[name])


def settings_of(table: str, name: str, quick: bool) -> str:
    """A short hash of the recipe and of the stream's table: rows of others are none of this run's."""
    return hashlib.sha256(f"{recipe(name, quick)!r} {fingerprint(stream(table))}".encode()).hexdigest()[:12]


def run_all(items: list[tuple], path: Path | None, jobs: int) -> list[dict]:
    """One row a task of every run; the file is written as runs come, and loses no line of other runs."""
    known = pandas.read_csv(path, dtype={"settings": str}).to_dict("records") if path and path.exists() else []
    keys = {item: (*item[:3], settings_of(item[0], item[1], item[3])) for item in items}
    done = {key(row) for row in known}
    todo = [item for item in items if keys[item] not in done]
    for start in range(0, len(todo), 2 * jobs):
        known += [
            row for rows in lab.map(one, todo[start : start + 2 * jobs], n_jobs=jobs, progress=False) for row in rows
        ]
        print(f"{min(start + 2 * jobs, len(todo))} of {len(todo)}", flush=True)
        if path is not None:
            save(path, pandas.DataFrame(known))
    rows = [row for row in known if key(row) in set(keys.values())]
    return sorted(rows, key=lambda row: (list(ALL).index(row["by"]), row["seed"], row["place"]))


def key(row: dict) -> tuple:
    """What a line of the file belongs to."""
    return row["stream"], row["by"], row["seed"], row.get("settings")


def save(path: Path, rows: pandas.DataFrame) -> None:
    """Write the CSV file, packed where its name ends in .gz."""
    content = rows.to_csv(index=False, float_format="%.6g").encode()
    store.write(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def one(item: tuple) -> list[dict]:
    """One order with one recommender, a row a task."""
    table, name, seed, quick = item
    began = time.process_time()
    outcome = recipe(name, quick).run(stream(table), seed=seed, progress=False)
    seconds = time.process_time() - began
    run = {"stream": table, "by": name, "seed": seed, "settings": settings_of(table, name, quick)}
    now = outcome.context["now"] or [None] * len(outcome.served)
    return [
        {
            **run,
            "place": position,
            "task": task.name,
            "regret": task.regret,
            "chance": task.random,
            "rank": task.rank,
            "ndcg10": task.ndcg,
            "tau": task.tau,
            "sent": task.sent,
            "kept": task.kept,
            "now": last,
            "seconds": seconds,
        }
        for position, (task, last) in enumerate(zip(outcome.served, now, strict=True))
    ]


def summary(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Means over orders with their 95 % intervals: regret before, and after five tasks; order; what was forgotten."""
    groups = rows.groupby("by", sort=False)
    return groups.apply(
        lambda part: pandas.Series(
            {
                "regret, tasks 1-5": str(ranking_metrics.interval(over_orders(part[part.place < AFTER], "regret"))),
                "regret, later tasks": str(ranking_metrics.interval(over_orders(part[part.place >= AFTER], "regret"))),
                "over HyperFD": str(over_hyperfd(rows, part)),
                "ndcg@10, later": f"{part[part.place >= AFTER].ndcg10.mean():.3f}",
                "tau, later": f"{part[part.place >= AFTER].tau.mean():.3f}",
                "forgetting %": f"{forgotten(part):.1f}",
                "seconds": f"{part.seconds.mean():.1f}",
            }
        )
    )


def over_orders(part: pandas.DataFrame, column: str) -> list[float]:
    """The mean of each order: orders are what repeats, tasks of one order are not independent."""
    return part.groupby("seed")[column].mean().tolist()


def over_hyperfd(rows: pandas.DataFrame, part: pandas.DataFrame) -> ranking_metrics.Interval:
    """How much more regret than HyperFD's on later tasks of the same orders; its own is 0."""
    later = [one[one.place >= AFTER].groupby("seed").regret.mean() for one in (part, rows[rows.by == "hyperfd"])]
    return ranking_metrics.interval((later[0] - later[1]).dropna().tolist())


def forgotten(part: pandas.DataFrame) -> float:
    """By how many percent NDCG@10 of old tasks fell since they were learned, all orders together."""
    old = part[(part.place < part.place.max()) & part.kept.notna() & part.now.notna()]
    return float(100 * (old.kept - old.now).sum() / old.kept.sum()) if len(old) else float("nan")


def all_figures(rows: pandas.DataFrame) -> dict:
    """The figures that are asked for: regret after five tasks served, over orders; ablations beside them."""
    later = rows[rows.place >= AFTER]
    regrets = {name: float(part.regret.mean()) for name, part in later.groupby("by", sort=False)}
    known = {
        "hyperfd": "hyperfd",
        "random": "random",
        "default": "default",
        "best average": "best_average",
        "tpe": "tpe",
    }
    hyperfd = rows[rows.by == "hyperfd"]
    early = hyperfd[(hyperfd.place >= 1) & (hyperfd.place < AFTER)]
    return {
        **{f"regret_{short}": regrets[name] for name, short in known.items()},
        "forgetting": forgotten(hyperfd),
        "upload_bytes": float(hyperfd.sent.mean()),
        "regret_hyperfd_first": float(hyperfd[hyperfd.place == 0].regret.mean()),
        "regret_hyperfd_tasks_2_to_5": float(early.regret.mean()),
        "chance": float(later.chance.mean()),
        "regrets": {name: round(value, 4) for name, value in regrets.items()},
        "forgettings": {
            name: round(forgotten(part), 3) for name, part in rows.groupby("by", sort=False) if part.kept.notna().any()
        },
        "over_hyperfd": {name: str(over_hyperfd(rows, part)) for name, part in rows.groupby("by", sort=False)},
        "intervals": {
            name: str(ranking_metrics.interval(over_orders(part, "regret")))
            for name, part in later.groupby("by", sort=False)
        },
    }


def attack(quick: bool) -> dict[str, dict[str, str]]:
    """The AUCs of two membership attacks on uploads, means with intervals over the domains, by the noise.

    Pictures of the client against others of its domain; the tracing one also knows pictures of a third seed.
    """
    outcome = recipe("hyperfd", quick).run(progress=False)
    found: dict[str, dict[str, list[float]]] = {name: {f"noise {n}": [] for n in NOISES} for name in ("near", "traced")}
    for domain in list(faces.DOMAINS)[: 4 if quick else None]:
        others, known = (samples(faces.composed(domain, seed=seed)) for seed in (1, 2))
        for noise in NOISES:
            learned, sent, x = uploaded(outcome, domain, noise)
            found["near"][f"noise {noise}"].append(privacy.membership(learned, sent, x, others))
            found["traced"][f"noise {noise}"].append(privacy.traced(learned, sent, x, others, known))
    return {
        name: {noise: str(ranking_metrics.interval(values)) for noise, values in part.items()}
        for name, part in found.items()
    }


def uploaded(outcome: HyperFDOutcome, domain: str, noise: float) -> tuple[Ranker, torch.Tensor, torch.Tensor]:
    """What a client of this domain sends after a whole round with the platform: model and vectors, and what it has."""
    platform, config, table = outcome.platform(), outcome.recipe.learning(), stream("detectors")
    task = table.names.index(domain)
    with seeded(0):
        client = DataOwner(faces.composed(domain), platform.codes, lambda rows: [], config, noise)
        rows = sampled(table.pool(task), (), outcome.recipe.trials)
        message, learned = client.upload(platform.offer(), rows, table.evaluate(task, rows))
    sent = Upload.from_bytes(message, Shape.of(learned.ranker, config.R, platform.codes))
    return learned.ranker, sent.vectors, client.x


if __name__ == "__main__":
    main()
