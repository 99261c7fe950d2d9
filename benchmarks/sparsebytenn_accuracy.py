"""What block sparsity costs in accuracy: block sizes, row orders and controls on a thin MobileNet-v1, the same seeds.

    python benchmarks/sparsebytenn_accuracy.py [--quick] [--json FILE] [--seeds 10,11,12]

Every row of the table starts from the same trained network (`data/digits`) and is trained for as many steps at the same
rate; only the pattern differs. The dense control is trained as long and loses no weight. Accuracy is taken on 500
held-out digits, where one picture is 0.2 points.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pandas
import torch
from tqdm.auto import tqdm

import lab
from lab.core.machine import machine

SPARSITIES = (0.3, 0.5)
BLOCK = 4  # the block of the figures
METHODS = {
    "blocks of 4": {},
    "single weights": {"block": 1},
    "blocks of 8": {"block": 8},
    "blocks of 16": {"block": 16},
    "blocks of 4, rows as they came": {"search": "none"},
    "blocks of 16, rows as they came": {"block": 16, "search": "none"},
    "blocks of 4 at random": {"score": "random"},
}
DENSE = "dense, trained as long"


def main(arguments: list[str] | None = None) -> dict:
    """Run, print, and write what was asked for; the report as a dict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a fifth of the steps: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings, seeds and the machine here")
    parser.add_argument(
        "--seeds",
        default="10,11,12",
        help="settings were chosen with 0 and 1: see data/sparsebytenn",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")][: 1 if options.quick else None]
    recipe = lab.SparseByteNN(block=BLOCK)
    recipe = replace(recipe, steps=recipe.steps // 5, regroup_every=5) if options.quick else recipe
    rows: list[dict] = []
    for seed in tqdm(seeds, desc="seeds"):
        rows += contest(recipe, seed)
        done = seeds[: seeds.index(seed) + 1]
        report = {"figures": figures(rows), "rows": rows, "settings": repr(recipe), "seeds": done, "machine": machine()}
        if options.json:  # after each: all of them take a quarter of an hour
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{recipe}\nseeds {seeds}; one thread of {report['machine']['processor']}; torch {torch.__version__}")
    print(by_method(rows).to_string())
    print(json.dumps(report["figures"], indent=1))
    return report


def contest(recipe: lab.SparseByteNN, seed: int) -> list[dict]:
    """Every method at every sparsity with one seed, and the dense control: a row each."""
    rows = [row(DENSE, replace(recipe, sparsity=0.0), seed)]
    for sparsity in SPARSITIES:
        rows += [row(name, replace(recipe, sparsity=sparsity, **change), seed) for name, change in METHODS.items()]
    return rows


def row(name: str, recipe: lab.SparseByteNN, seed: int) -> dict:
    report = recipe.run(seed=seed, progress=False).report
    return {
        "method": name,
        "sparsity": recipe.sparsity,
        "seed": seed,
        "accuracy_drop": -report["accuracy"].change,
        "retained": report["retained magnitude"].after,
        "macs_ratio": report["macs"].ratio,
    }


def by_method(rows: list[dict]) -> pandas.DataFrame:
    """Mean and range over the seeds."""
    grouped = pandas.DataFrame(rows).groupby(["sparsity", "method"], sort=False)
    shown = grouped[["accuracy_drop", "retained", "macs_ratio"]].agg(
        lambda v: f"{v.mean():.2f} ({v.min():.2f} to {v.max():.2f})"
    )
    return shown.rename(columns=lambda name: name.replace("_", " "))


def figures(rows: list[dict]) -> dict[str, float]:
    """Points of accuracy lost with blocks of 4 at 30 and 50 %, mean and spread of the seeds, and by the controls."""
    table = pandas.DataFrame(rows).groupby(["sparsity", "method"])["accuracy_drop"].agg(list)
    points = {}
    for sparsity in SPARSITIES:
        key = f"accuracy_drop_{sparsity * 100:.0f}"
        lost = table[sparsity, "blocks of 4"]
        points |= {key: statistics.fmean(lost), f"{key}_std": statistics.stdev(lost) if len(lost) > 1 else 0.0}
        points[f"{key}_random"] = statistics.fmean(table[sparsity, "blocks of 4 at random"])
    return points | {"accuracy_drop_dense": statistics.fmean(table[0.0, DENSE])}


if __name__ == "__main__":
    main()
