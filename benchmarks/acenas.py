"""AceNAS beside its controls and baselines: how well few labels rank a space, and what is picked.

    python benchmarks/acenas.py [--quick] [--json FILE] [--csv FILE] [--nasbench201 FILE] [--seeds 10] [--jobs 2]

Tables: the lab's cells, and NAS-Bench-201's three where its CSV file is at hand (columns: `lab.tables.nasbench201`).
Every scorer gets the same budget of labels, each one training's test accuracy, and is judged by the mean; searches
without a scorer train budget + 10. Encoders of one seed share their pre-training. Seconds are
CPU time of one core without pre-training, taken at the end. `--csv` is a journal too: a second start does only what
is missing.
"""

import argparse
import gzip
import itertools
import json
import tempfile
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pandas
import torch

import lab
from lab.acenas import metrics
from lab.core import ranking_metrics, store
from lab.core.machine import machine
from lab.core.spaces import tables
from lab.core.spaces.architectures import Space

NASBENCH201 = Path(__file__).parents[1] / "../shared/data/nas/nasbench201_compact.csv.gz"
BUDGETS = (100, 40, 20)
PRETRAINING = {"pretrain_epochs": 14, "pretrain_batch": 256}
SCORERS: dict[str, dict] = {
    "lambdarank": {},
    "lambdarank, label ranks": {"rank_by": "label_ascending"},
    "ranknet": {"loss": "ranknet"},
    "mse": {"loss": "mse"},
    "lambdarank, not pre-trained": {"pretrain": "none"},
    "brp-nas": {"scorer": "brp", "loss": "kl", "pretrain": "costs", "epochs": 250},
    "lightgbm": {"scorer": "lightgbm"},
    "lightgbm, no weak labels": {"scorer": "lightgbm", "pretrain": "none"},
    "lightgbm mse": {"scorer": "lightgbm", "loss": "mse"},
    "random": {"scorer": "random"},
    "evolution": {"scorer": "evolution"},
    "local search": {"scorer": "local search"},
    "tpe": {"scorer": "tpe"},
}
SEARCHES = ("random", "evolution", "local search", "tpe")
BROAD = ("lambdarank", "mse", "lightgbm", "lightgbm, no weak labels", "lightgbm mse", *SEARCHES)
FEW = 3  # seeds, at the largest budget, for the other encoders: a run of each takes a minute or more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, budget 40, the lab's table: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings, seeds and the machine here")
    parser.add_argument("--csv", type=Path, help="one line a run; what is there already is not run again")
    parser.add_argument("--nasbench201", type=Path, default=NASBENCH201)
    parser.add_argument("--table", action="append", help="only this one; may be given more than once")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ["cells", *(tables.NASBENCH201 if options.nasbench201.exists() and not options.quick else ())]
    names = [name for name in names if not options.table or name in options.table]
    seeds, budgets = range(1 if options.quick else options.seeds), (40,) if options.quick else BUDGETS
    with tempfile.TemporaryDirectory() as folder:
        items = [
            (table, scorer, budget, seed, str(options.nasbench201), folder)
            for seed in seeds
            for table in names
            for scorer in SCORERS
            for budget in budgets
            if options.quick or scorer in BROAD or (seed < FEW and budget == BUDGETS[0])
        ]
        rows = run_all(items, options.csv, options.jobs)
        seconds = timed(names, budgets, str(options.nasbench201), folder)
    found = pandas.DataFrame(rows)
    print(summary(found).to_string(), seconds.to_string(), sep="\n")
    figures = all_figures(found, seconds)
    print(json.dumps(figures, indent=1))
    if options.json is not None:
        settings = {name: repr(recipe(name, 100)) for name in SCORERS}
        report = {"figures": figures, "settings": settings, "seeds": list(seeds), "machine": machine()}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def run_all(items: list[tuple], path: Path | None, jobs: int) -> list[dict]:
    """The rows of all items in their order, those in the CSV file first; the file is written as results come."""
    known = pandas.read_csv(path).to_dict("records") if path is not None and path.exists() else []
    wanted = {item[:4] for item in items}
    done = {(row["table"], row["scorer"], row["budget"], row["seed"]) for row in known}
    todo = [item for item in items if item[:4] not in done]
    known = [row for row in known if (row["table"], row["scorer"], row["budget"], row["seed"]) in wanted]
    for start in range(0, len(todo), 24):
        known += lab.map(one, todo[start : start + 24], n_jobs=jobs, progress=False)
        print(f"{start + 24} of {len(todo)}", flush=True)
        if path is not None:
            save(path, pandas.DataFrame(known))
    return known


def save(path: Path, rows: pandas.DataFrame) -> None:
    """Write the CSV file, packed where its name ends in .gz."""
    content = rows.to_csv(index=False, float_format="%.6g").encode()
    store.write(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def one(item: tuple) -> dict:
    """One run, as a row."""
    table, name, budget, seed, nasbench201, folder = item
    space, settings = known_space(table, nasbench201), recipe(name, budget)
    outcome = settings.run(
        space, seed=seed, progress=False, checkpoint=pretrained(table, space, settings, seed, folder)
    )
    scores, truth, pick = outcome.scores[-1], space.truth, list(space.names).index(outcome.pick)
    top = [list(space.names).index(name) for name in outcome.ranking[:10]]
    return {
        "table": table,
        "scorer": name,
        "budget": budget,
        "seed": seed,
        "trainings": len(outcome.rows),
        "ndcg10": metrics.ndcg(scores, truth),
        "tau": ranking_metrics.kendall_tau(scores, truth),
        "best_of_top10": float(truth[top].max()),
        "best_rank_of_top10": min(ranking_metrics.rank(row, truth) for row in top),
        "pick": float(truth[pick]),
        "pick_rank": ranking_metrics.rank(pick, truth),
        "gap": outcome.regret(),
    }


def pretrained(table: str, space: Space, settings: lab.AceNAS, seed: int, folder: str) -> Path | None:
    """The checkpoint with this seed's pre-trained encoder, where there is one; all three tables share weak labels."""
    if settings.pretrain == "none" or settings.scorer not in ("gcn", "brp"):
        return None
    place = table if table == "cells" else "nasbench201"
    checkpoint = Path(folder) / f"{place} {settings.scorer} {settings.pretrain} {seed}"
    replace(settings, budget=2, rounds=1, epochs=1).run(space, seed=seed, progress=False, checkpoint=checkpoint)
    return checkpoint


def timed(names: list[str], budgets: tuple[int, ...], nasbench201: str, folder: str) -> pandas.Series:
    """CPU seconds of a search, pre-training apart, seed 0; a busy neighbour that shares the core can double them."""
    rows = []
    for table in names:
        space = known_space(table, nasbench201)
        for name, budget in itertools.product(("lambdarank", "lightgbm"), budgets):
            settings = recipe(name, budget)
            checkpoint = pretrained(table, space, settings, 0, folder)
            began = time.process_time()
            settings.run(space, seed=0, progress=False, checkpoint=checkpoint)
            rows.append({"table": table, "budget": budget, "scorer": name, "seconds": time.process_time() - began})
    return pandas.DataFrame(rows).set_index(["table", "budget", "scorer"])["seconds"]


@lru_cache(maxsize=4)
def known_space(table: str, nasbench201: str) -> Space:
    return lab.tasks.cells() if table == "cells" else tables.nasbench201(nasbench201, table)


def recipe(name: str, budget: int) -> lab.AceNAS:
    return lab.AceNAS(budget=budget, **{**PRETRAINING, **SCORERS[name]})


def summary(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Means over seeds with their 95 % intervals."""
    shown = {
        "ndcg@10": "ndcg10",
        "tau": "tau",
        "best of top 10": "best_of_top10",
        "pick": "pick",
        "gap": "gap",
    }
    groups = rows.groupby(["table", "budget", "scorer"], sort=False)

    def intervals(part: pandas.DataFrame) -> pandas.Series:
        return pandas.Series({name: str(ranking_metrics.interval(part[column])) for name, column in shown.items()})

    return groups.apply(intervals)


def all_figures(rows: pandas.DataFrame, seconds: pandas.Series) -> dict:
    """Means over seeds by table and budget; `pick_gap` is the best scorer's of those that ran with every seed."""
    figures: dict = {}
    for (table, budget), part in rows.groupby(["table", "budget"], sort=False):
        mean = part.groupby("scorer", sort=False)[["ndcg10", "gap"]].mean()
        learned = [name for name in BROAD if name not in ("random", "evolution", "tpe")]
        best = min((name for name in learned if "mse" not in name), key=lambda name: mean.gap[name])
        figures.setdefault(table, {})[str(budget)] = {
            "ndcg10_lambdarank": mean.ndcg10["lambdarank"],
            "ndcg10_mse": mean.ndcg10["mse"],
            "ndcg10_lightgbm": mean.ndcg10["lightgbm"],
            "pick_gap": mean.gap[best],
            "pick_gap_by": best,
            "search_seconds": seconds[table, budget, "lambdarank"],
            "search_seconds_lightgbm": seconds[table, budget, "lightgbm"],
            "gaps": mean.gap.round(4).to_dict(),
        }
    return figures


if __name__ == "__main__":
    main()
