"""What weak labels save AceNAS, beside searches without a scorer; and fronts of accuracy and latency beside NSGA-II.

    python benchmarks/acenas_labels.py --json data/acenas/labels.json
    python benchmarks/acenas_labels.py --part fronts --json data/acenas/fronts.json
    python benchmarks/acenas_labels.py --quick

Tables: the lab's cells, and NAS-Bench-201's where its CSV files are at hand (see `acenas.py`). A search without a
scorer trains budget + 10, as many as AceNAS. `gap` is the best of the table less the pick, in points of accuracy; `tau`
and `ndcg` are of the last ranking over the whole table. Labels that are saved at equal quality: 1 - b / 100, where b is
the budget from which on the search with weak labels is as good as without them at 100, between budgets along a line in
log b; below the smallest budget the least saving is told. `--scorer gcn` asks the same of the graph encoder.
`fronts`: percent of the hypervolume of the table's own front (`lab.acenas.fronts`).

FILE is a journal too: runs that it holds are not made again, and several processes may not share it.
"""

import argparse
import json
import math
import time
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

NAS = Path(__file__).parents[1] / "../shared/data/nas"
TABLES = ("cells", *tables.NASBENCH201)
BUDGETS = (20, 40, 100)
WITH, WITHOUT = "weak labels", "no weak labels"
SEARCHES = ("random", "evolution", "local search", "tpe")
LATENCY = {"cells": "latency_ms"}  # the cost of a front; of NAS-Bench-201 that of its first device
FRONTS = {
    "acenas": {"scorer": "lightgbm"},
    "acenas, label alone": {"scorer": "lightgbm", "objectives": None},
    "nsga2": {"scorer": "nsga2"},
    "random": {"scorer": "random"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, budget 20, the lab's table: seconds")
    parser.add_argument("--part", choices=("labels", "fronts"), default="labels")
    parser.add_argument("--scorer", choices=("lightgbm", "gcn"), default="lightgbm")
    parser.add_argument("--table", action="append", choices=TABLES, help="only this one; may be given more than once")
    parser.add_argument("--by", action="append", help="only this searcher; may be given more than once")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write all runs, figures, settings and the machine here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.table or (TABLES if NAS.exists() and not options.quick else TABLES[:1])
    by = tuple(FRONTS) if options.part == "fronts" else (WITH, WITHOUT, *SEARCHES)
    items = [
        {"part": options.part, "scorer": options.scorer, "table": table, "by": name, "budget": budget, "seed": seed}
        for seed in range(1 if options.quick else options.seeds)
        for table in names
        for budget in (BUDGETS[:1] if options.quick else BUDGETS)
        for name in options.by or by
    ]
    runs = journalled(items, options.json)
    print(json.dumps(figures(runs), indent=1))


def journalled(items: list[dict], path: Path | None) -> list[dict]:
    """All runs: those that the file holds, and those that it lacks, which are made and written one by one."""
    runs = json.loads(path.read_text())["runs"] if path and path.exists() else []
    done = {tuple(run[key] for key in items[0]) for run in runs}
    for item in items:
        if tuple(item.values()) in done:
            continue
        start = time.process_time()
        runs.append(item | one(item) | {"seconds": round(time.process_time() - start, 2)})
        print(json.dumps(runs[-1]), flush=True)
        keep(runs, path)
    keep(runs, path)
    return runs


def keep(runs: list[dict], path: Path | None) -> None:
    """Write runs and figures, a run a line."""
    if path is None:
        return
    head = {"figures": figures(runs), "machine": machine("lightgbm", "optuna")}
    text, lines = json.dumps(head, indent=1).removesuffix("\n}"), ",\n  ".join(json.dumps(run) for run in runs)
    store.write(path, f'{text},\n "runs": [\n  {lines}\n ]\n}}\n'.encode())


@lru_cache(maxsize=4)
def space(table: str, timed: bool) -> Space:
    """A table; with the latencies of its devices, where these are asked for."""
    if table == "cells":
        return lab.tasks.cells()
    latency = NAS / "nasbench201_latency_ms.csv.gz" if timed else None
    return tables.nasbench201(NAS / "nasbench201_compact.csv.gz", table, latency=latency)


def one(item: dict) -> dict[str, float]:
    """The figures of a run."""
    return front(item) if item["part"] == "fronts" else labels(item)


def labels(item: dict) -> dict[str, float]:
    """One search: how far its pick lies below the best, and how well it ranks the table."""
    table, by = space(item["table"], False), item["by"]
    scorer = by if by in SEARCHES else item["scorer"]
    pretrain = "none" if by == WITHOUT else "all"
    outcome = lab.AceNAS(scorer=scorer, budget=item["budget"], pretrain=pretrain).run(
        table, seed=item["seed"], progress=False
    )
    scores, truth = outcome.scores[-1], table.truth
    ranking = {"ndcg": metrics.ndcg(scores, truth), "tau": ranking_metrics.kendall_tau(scores, truth)}
    return {"gap": round(outcome.regret(), 4), **{key: round(value, 4) for key, value in ranking.items()}}


def front(item: dict) -> dict[str, float]:
    """One search for accuracy and latency: what its front covers."""
    table = space(item["table"], True)
    cost = LATENCY.get(item["table"]) or next(name for name in table.costs if "latency" in name)
    recipe = lab.AceNAS(**{"budget": item["budget"], "objectives": ("accuracy", cost)} | FRONTS[item["by"]])
    outcome = recipe.run(table, seed=item["seed"], progress=False)
    both = lab.acenas.fronts.CostObjective.of(table, range(len(table)), cost, [])
    return {"hypervolume": round(both.share(outcome.rows.tolist(), outcome.labels.tolist(), table.truth), 3)}


def figures(runs: list[dict]) -> dict:
    """What comes out, by part, scorer and table."""
    frame = pandas.DataFrame(runs)
    return {
        f"{part}, {scorer}, {table}": _fronts(some) if part == "fronts" else _labels(some)
        for (part, scorer, table), some in frame.groupby(["part", "scorer", "table"], sort=False)
    }


def _labels(runs: pandas.DataFrame) -> dict:
    """Gaps by budget, what weak labels change of them on the same seeds, and what they save."""
    means = {key: runs.groupby(["by", "budget"])[key].mean() for key in ("gap", "tau")}
    every = set(zip(runs.by, runs.budget, strict=True)) >= {(by, b) for by in (WITH, WITHOUT) for b in BUDGETS}
    saved = {key: saving(means[key][WITH], means[key][WITHOUT], key == "gap") for key in means} if every else {}
    return {
        "gap": intervals(runs, "gap"),
        "tau": intervals(runs[runs.by.isin([WITH, WITHOUT])], "tau"),
        "less gap with weak labels": paired(runs, "gap", WITHOUT, WITH),
        "less gap than tpe": paired(runs, "gap", "tpe", WITH),
        "less gap than tpe, without weak labels": paired(runs, "gap", "tpe", WITHOUT),
        "labels saved": saved,
    }


def _fronts(runs: pandas.DataFrame) -> dict:
    return {
        "hypervolume": intervals(runs, "hypervolume"),
        "more than nsga2": paired(runs, "hypervolume", "acenas", "nsga2"),
    }


def intervals(runs: pandas.DataFrame, key: str) -> dict:
    """Means with 95 % intervals over seeds, by budget."""
    return {
        str(budget): {by: str(ranking_metrics.interval(part[key])) for by, part in some.groupby("by", sort=False)}
        for budget, some in runs.groupby("budget")
    }


def paired(runs: pandas.DataFrame, key: str, first: str, second: str) -> dict:
    """first - second on the same seeds, mean with 95 % interval, by budget."""
    wide = runs.pivot_table(index=["budget", "seed"], columns="by", values=key)
    if not {first, second} <= set(wide.columns):
        return {}
    difference = (wide[first] - wide[second]).dropna()
    return {str(b): str(ranking_metrics.interval(part.tolist())) for b, part in difference.groupby("budget")}


def saving(with_weak: pandas.Series, without: pandas.Series, less: bool) -> float | None:
    """1 - b / 100 for the budget b from which on weak labels give what 100 labels give without them; < 0 costs some."""
    sign = -1 if less else 1
    aim, values = sign * without[100], [sign * with_weak[b] for b in BUDGETS]
    if values[0] >= aim:
        return 1 - BUDGETS[0] / 100
    for low, high in ((0, 1), (1, 2)):
        if values[high] >= aim:
            share = (aim - values[low]) / (values[high] - values[low])
            b = math.exp(math.log(BUDGETS[low]) + share * math.log(BUDGETS[high] / BUDGETS[low]))
            return round(1 - b / 100, 3)
    return None  # not reached at 100


if __name__ == "__main__":
    main()
