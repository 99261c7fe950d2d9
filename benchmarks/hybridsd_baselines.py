"""Hybrid SD beside other ways to spend less in the cloud, all at the cloud cost of k of its 25 steps.

    python benchmarks/hybridsd_baselines.py [--quick] [--json FILE] [--seeds 10,11,12] [--prompts 300] [--work FOLDER]

Drawn from the same noise, on the embedded models, through the recipe's own sweep: the split, T-Stitch's order (the edge
first), fewer steps, DeepCache, T-GATE and EC-Diff. What each pays in the cloud and at the edge is counted in
multiply-adds, beside the cloud alone and the edge alone. With --work a kill loses one batch.
"""

from dataclasses import asdict
from typing import Any

import pandas
import torch
from hybridsd import asked, keep, parser

import lab
from lab.core.machine import machine
from lab.hybridsd import prompts
from lab.hybridsd.baselines import BASELINES

RECIPE = lab.HybridSD(ks=(0, 5, 10, 25), controls=(5, 10), baselines=BASELINES, batch=50)


def main() -> None:
    options = parser(__doc__, "one seed, 12 prompts", 300).parse_args()
    torch.set_num_threads(1)
    count, seeds = asked(options, 12)
    report: dict[str, Any] = {"settings": {"recipe": repr(RECIPE), "prompts": count}, "seeds": seeds}
    report |= {"machine": machine("diffusers"), "rows": []}
    for seed in seeds:
        work = None if options.work is None else options.work / str(seed)
        outcome = RECIPE.run(prompts.scenes(count, seed), seed=seed, progress=False, checkpoint=work)
        rows = [{"seed": seed, **asdict(point)} for point in outcome.points]
        report["rows"] += [{name: value for name, value in row.items() if name != "parts"} for row in rows]
        report["figures"] = figures(pandas.DataFrame(report["rows"]))
        print(pandas.DataFrame(report["figures"]).T.to_string(), flush=True)
        keep(options.json, report)


def figures(table: pandas.DataFrame) -> dict[str, dict[str, Any]]:
    """Of each way of drawing: means over seeds, the accuracies' range, costs in steps of the cloud."""
    step = table[(table.kind == "hybrid") & (table.k == RECIPE.N)].cloud_macs.mean() / RECIPE.N
    rows = {}
    for (kind, k), drawn in table.groupby(["kind", "k"], sort=False):
        row: dict[str, Any] = {"accuracy": float(drawn.accuracy.mean())}
        row |= {"accuracy_range": [float(drawn.accuracy.min()), float(drawn.accuracy.max())]}
        row |= {"frechet": float(drawn.frechet.mean()), "bytes": int(drawn.bytes.max())}
        costs = {f"{at}_steps": float(drawn[f"{at}_macs"].mean() / step) for at in ("cloud", "edge")}
        rows[f"{kind}, {k}"] = row | costs
    return rows


if __name__ == "__main__":
    main()
