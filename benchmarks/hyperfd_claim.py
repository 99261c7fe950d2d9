"""HyperFD's five beside the best average and others, order by order: is it ahead, by how much, and since when.

    python benchmarks/hyperfd_claim.py --json data/faces/claim.json
    python benchmarks/hyperfd_claim.py --stream pictures --orders 3 --json data/faces/claim.json
    python benchmarks/hyperfd_claim.py --orders 6 --first 100    # those on which the rule was chosen

`numbers`: the twelve domains and their table of detectors; of a picture the extractor sees the six handcrafted numbers
of Card (1a), a round is 60 steps and an order takes seconds. `pictures`: as `hyperfd.py` has it, a minute an order.
'highest scores' is HyperFD without its portfolio. Regret: the best of the table less the best of five recommended, in
points of AP; the mean of an order's tasks, then median, mean and 95 % interval over orders; the others less HyperFD on
the same orders. FILE is a journal too: runs that it holds are not made again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas
import torch
from hyperfd import RECOMMENDERS
from hyperfd_trust import numbers

import lab
from lab.core import ranking_metrics, store
from lab.core.machine import machine

BY: dict[str, dict] = RECOMMENDERS | {"highest scores": {"portfolio": False}}
STEPS = {"numbers": 60, "pictures": 300}
PARTS = {"first task": (0, 1), "tasks 1 to 5": (0, 5), "tasks 6 to 12": (5, 12)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one order, numbers: seconds")
    parser.add_argument("--stream", choices=tuple(STEPS), default="numbers")
    parser.add_argument("--orders", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first order; 100 to 105 chose the rule")
    parser.add_argument("--by", action="append", choices=tuple(BY), help="only this one; may be given more than once")
    parser.add_argument("--json", type=Path, help="write all runs, figures and the machine here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    orders = range(options.first, options.first + (1 if options.quick else options.orders))
    items = [{"stream": options.stream, "by": by, "order": order} for order in orders for by in options.by or BY]
    runs = json.loads(options.json.read_text())["runs"] if options.json and options.json.exists() else []
    for item in items:
        if any(item.items() <= known.items() for known in runs):
            continue
        runs.append(item | one(**item))
        print(json.dumps(runs[-1]), flush=True)
        keep(runs, options.json)
    keep(runs, options.json)
    print(json.dumps(figures(runs), indent=1))


def keep(runs: list[dict], path: Path | None) -> None:
    """Write runs and figures, a run a line."""
    if path is None:
        return
    head = json.dumps({"figures": figures(runs), "machine": machine("optuna")}, indent=1).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(run) for run in runs)
    store.write(path, f'{head},\n "runs": [\n  {lines}\n ]\n}}\n'.encode())


def one(stream: str, by: str, order: int) -> dict:
    """One order: the regret of each task, and how well all configurations were ordered."""
    start = time.process_time()
    tasks = numbers() if stream == "numbers" else lab.tasks.detectors()
    outcome = lab.HyperFD(steps=STEPS[stream], **BY[by]).run(tasks, seed=order, progress=False)
    return {
        "regrets": [round(float(task.regret), 3) for task in outcome.served],
        "ndcg": round(float(np.mean([task.ndcg for task in outcome.served[PARTS["tasks 6 to 12"][0] :]])), 4),
        "forgetting": outcome.report["forgetting"].after if "forgetting" in outcome.report else None,
        "seconds": round(time.process_time() - start, 1),
    }


def figures(runs: list[dict]) -> dict:
    """By stream and part of the order: median, mean with interval, and what is more than HyperFD on the same orders."""
    found: dict = {}
    for stream, some in pandas.DataFrame(runs).groupby("stream", sort=False):
        for part, (start, end) in PARTS.items():
            regrets = some.assign(regret=[float(np.mean(r[start:end])) for r in some.regrets])
            wide = regrets.pivot_table(index="order", columns="by", values="regret")
            found[f"{stream}, {part}"] = {
                by: {
                    "orders": int(wide[by].count()),
                    "median": round(float(wide[by].median()), 2),
                    "mean": round(float(wide[by].mean()), 3),
                    "interval": str(ranking_metrics.interval(wide[by].dropna().tolist())),
                    "more than hyperfd": str(ranking_metrics.interval((wide[by] - wide["hyperfd"]).dropna().tolist())),
                }
                for by in wide.columns
                if "hyperfd" in wide
            }
    return found


if __name__ == "__main__":
    main()
