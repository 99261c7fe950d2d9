"""HyperFD beside its rivals: regret task after task over many orders, what is forgotten, what an upload tells.

    python benchmarks/hyperfd.py [--quick] [--json FILE] [--csv FILE] [--orders 10] [--jobs 2] [--stream detectors]

Streams: the lab's table of face detectors, and NAS-Bench-Graph's data sets (`--stream graphs`). Every recommender names
five configurations before a task's own data are used; what it learns from is the same number of trials for all. TPE has
five trials of its own. Regret is the best of the table less the best of the five, in percent. Ablations and the upper
bound are run on the first orders only, and compared with HyperFD on the same ones. `--csv` is a journal too: a second
start does only what is missing.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import pandas
import torch

import lab
from lab.core import faces, judging, store
from lab.core.descent import seeded
from lab.core.machine import machine
from lab.core.streams import Stream
from lab.hyperfd import privacy
from lab.hyperfd.client import Client
from lab.hyperfd.looking import samples
from lab.hyperfd.messages import Upload

RECOMMENDERS: dict[str, dict] = {
    "hyperfd": {},
    "offline": {"by": "offline"},
    "random": {"by": "random"},
    "default": {"by": "default"},
    "best average": {"by": "best average"},
    "nearest": {"by": "nearest"},
    "tpe": {"by": "tpe"},
    "no si, stale vectors": {"si": 0.0, "stale": "reuse"},
}
ABLATIONS: dict[str, dict] = {
    "pooled pictures": {"stale": "pooled"},
    "no triplet": {"triplet": 0.0},
    "no si": {"si": 0.0},
    "stale vectors": {"stale": "reuse"},
    "no memory": {"stale": "drop"},
    "frozen extractor": {"features": "frozen"},
    "mean only": {"features": "mean"},
    "hand-made": {"features": "handmade"},
    "m = 8": {"m": 8},
    "noise 0.1": {"noise": 0.1},
}
ALL = RECOMMENDERS | ABLATIONS
QUICK = ("hyperfd", "random", "default", "best average", "tpe", "frozen extractor")
FEW = 4  # orders of an ablation
AFTER = 5  # tasks served, from which on regret is compared
NOISES = (0.0, 0.1, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one order, few recommenders: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings, seeds and the machine here")
    parser.add_argument("--csv", type=Path, help="one line a task; what is there already is not run again")
    parser.add_argument("--stream", choices=("detectors", "graphs"), default="detectors")
    parser.add_argument("--orders", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(1 if options.quick else options.orders)
    chosen = {name: seeds if name in RECOMMENDERS else seeds[:FEW] for name in (QUICK if options.quick else ALL)}
    items = [(options.stream, name, seed, options.quick) for seed in seeds for name in chosen if seed in chosen[name]]
    rows = run_all(items, options.csv, options.jobs)
    found = pandas.DataFrame(rows)
    print(summary(found).to_string())
    figures = all_figures(found)
    if options.stream == "detectors":
        figures["attack"] = attack(options.quick)
    print(json.dumps(figures, indent=1))
    if options.json is not None:
        settings = {name: repr(lab.HyperFD(**ALL[name])) for name in chosen}
        report = {"figures": figures, "settings": settings, "stream": options.stream,
                  "note": stream(options.stream).note, "seeds": list(seeds), "machine": machine("optuna")}  # fmt: skip
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def stream(name: str) -> Stream:
    return lab.tasks.detectors() if name == "detectors" else lab.tasks.graphs()


def run_all(items: list[tuple], path: Path | None, jobs: int) -> list[dict]:
    """One row a task of every run; the file is written as runs come."""
    known = pandas.read_csv(path).to_dict("records") if path is not None and path.exists() else []
    wanted = {item[:3] for item in items}
    done = {(row["stream"], row["by"], row["seed"]) for row in known}
    todo = [item for item in items if item[:3] not in done]
    known = [row for row in known if (row["stream"], row["by"], row["seed"]) in wanted]
    for start in range(0, len(todo), 2 * jobs):
        known += [
            row for rows in lab.map(one, todo[start : start + 2 * jobs], n_jobs=jobs, progress=False) for row in rows
        ]
        print(f"{min(start + 2 * jobs, len(todo))} of {len(todo)}", flush=True)
        if path is not None:
            store.write(path, pandas.DataFrame(known).to_csv(index=False, float_format="%.6g").encode())
    return known


def one(item: tuple) -> list[dict]:
    """One order with one recommender, a row a task."""
    table, name, seed, quick = item
    began = time.process_time()
    recipe = lab.HyperFD(**ALL[name])
    recipe = replace(recipe, steps=20) if quick else recipe
    outcome = recipe.run(stream(table), seed=seed, progress=False)
    seconds = time.process_time() - began
    now = outcome.known["now"] or [None] * len(outcome.served)
    return [
        {"stream": table, "by": name, "seed": seed, "place": place, "task": one["name"], "regret": one["regret"],
         "chance": one["random"], "rank": one["rank"], "ndcg10": one["ndcg"], "tau": one["tau"], "sent": one["sent"],
         "error": one["error"], "kept": one.get("kept"), "now": last, "seconds": seconds}
        for place, (one, last) in enumerate(zip(outcome.served, now, strict=True))
    ]  # fmt: skip


def summary(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Means over orders with their 95 % intervals: regret before, and after five tasks; order; what was forgotten."""
    groups = rows.groupby("by", sort=False)
    return groups.apply(
        lambda part: pandas.Series({
            "regret, tasks 1-5": str(judging.interval(over_orders(part[part.place < AFTER], "regret"))),
            "regret, later tasks": str(judging.interval(over_orders(part[part.place >= AFTER], "regret"))),
            "over HyperFD": str(over_hyperfd(rows, part)),
            "ndcg@10, later": f"{part[part.place >= AFTER].ndcg10.mean():.3f}",
            "tau, later": f"{part[part.place >= AFTER].tau.mean():.3f}",
            "forgetting %": f"{forgotten(part):.1f}", "transformation error": f"{part.error.mean():.4f}",
            "seconds": f"{part.seconds.mean():.1f}",
        })
    )  # fmt: skip


def over_orders(part: pandas.DataFrame, column: str) -> list[float]:
    """The mean of each order: orders are what repeats, tasks of one order are not independent."""
    return part.groupby("seed")[column].mean().tolist()


def over_hyperfd(rows: pandas.DataFrame, part: pandas.DataFrame) -> judging.Interval:
    """How much more regret than HyperFD's on later tasks of the same orders; its own is 0."""
    later = [one[one.place >= AFTER].groupby("seed").regret.mean() for one in (part, rows[rows.by == "hyperfd"])]
    return judging.interval((later[0] - later[1]).dropna().tolist())


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
        "forgetting": forgotten(hyperfd), "upload_bytes": float(hyperfd.sent.mean()),
        "regret_hyperfd_first": float(hyperfd[hyperfd.place == 0].regret.mean()),
        "regret_hyperfd_tasks_2_to_5": float(early.regret.mean()), "chance": float(later.chance.mean()),
        "regrets": {name: round(value, 4) for name, value in regrets.items()},
        "forgettings": {name: round(forgotten(part), 3) for name, part in rows.groupby("by", sort=False)},
        "over_hyperfd": {name: str(over_hyperfd(rows, part)) for name, part in rows.groupby("by", sort=False)},
        "intervals": {name: str(judging.interval(over_orders(part, "regret")))
                      for name, part in later.groupby("by", sort=False)},
    }  # fmt: skip


def attack(quick: bool) -> dict[str, float]:
    """The AUC of a membership attack on uploads, by the noise: pictures of the client against others of its domain."""
    outcome = lab.HyperFD(steps=20 if quick else 100).run(progress=False)
    ranker, how = outcome.ranker()
    found: dict[str, list[float]] = {f"noise {noise}": [] for noise in NOISES}
    offer = outcome.platform().offer()
    for domain in list(faces.DOMAINS)[: 3 if quick else None]:
        mine, others = faces.composed(domain), samples(faces.composed(domain, seed=1))
        for noise in NOISES:
            with seeded(0):
                client = Client(mine, outcome.known["codes"], lambda rows: [], replace(how, steps=1), noise)
                message, learned = client.upload(offer, [0, 1], [0.0, 1.0])
                sent = Upload.from_bytes(message, lab.hyperfd.messages.Shape.of(ranker, how.R, client.codes))
            auc = privacy.membership(learned.ranker, sent.vectors, client.x, others)
            found[f"noise {noise}"].append(auc)
    return {name: sum(values) / len(values) for name, values in found.items()}


if __name__ == "__main__":
    main()
