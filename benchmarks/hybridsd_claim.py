"""Hybrid SD's claim in the paper's order, on pictures of two bound things: who should take the first steps, and why.

    python benchmarks/hybridsd_claim.py [--quick] [--json FILE] [--seeds 10,11,12] [--prompts 500] [--work FOLDER]

The models of `data/bound` draw captions whose combinations they never learned from; a prompt counts where colours,
shapes, relation and ground are all right. The Frechet distance is on the reader's features, it is no FID. From the same
noise: every split in both orders, the cloud alone with fewer steps (on the same schedule, and on one that is not
shifted), the cloud in one window of five steps only, and the cloud with the prompt for its first steps only.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import torch
from hybridsd import asked, keep, parser

import lab
from lab.core import cost, store
from lab.core.machine import machine
from lab.hybridsd import bound, sweep
from lab.hybridsd.sampler import HybridSampler
from lab.hybridsd.sampling import Conditioning, fresh, trajectory

RECIPE = lab.HybridSD(ks=(0, 5, 8, 10, 15, 25), controls=(8, 10), k=10, guidance=4.0, batch=60, solver="own")
WINDOW = 5  # steps of the cloud in a window
WITHIN, SAVED = 2.0, 0.60  # points of semantic accuracy, share of the cloud's compute
UNSHIFTED = "fewer steps, unshifted"


def main() -> None:
    told = parser(__doc__, "one seed, 24 prompts")
    told.add_argument("--apart", type=int, default=100, help="prompts a seed of the windows and the prompt withdrawn")
    options = told.parse_args()
    torch.set_num_threads(1)
    count, seeds = asked(options, 24)
    apart = min(count, options.apart)
    settings = {"recipe": repr(RECIPE), "prompts": count, "apart": apart, "within": WITHIN, "saved": SAVED}
    report: dict[str, Any] = {"figures": {}, "settings": settings, "seeds": seeds, "machine": machine("diffusers")}
    report["reader"], report["rows"] = reading(count), []
    for seed in seeds:
        make = partial(rows, seed, count, apart, options.work)
        report["rows"] += kept(options.work, f"{seed} {count} {apart}", make)
        table = pandas.DataFrame(report["rows"])
        print(table[table.seed == seed][["kind", "k", "accuracy", "frechet"]].to_string(), flush=True)
        report["figures"] = figures(table)
        keep(options.json, report)
    report["figures"]["picture_seconds"] = picture_seconds()
    print(json.dumps(report["figures"], indent=1))
    keep(options.json, report)


def kept(work: Path | None, name: str, make: Callable) -> list[dict[str, Any]]:
    """The rows of a seed, from the folder where an earlier start left them."""
    path = None if work is None else work / f"{name}.json"
    if path is not None and path.exists():
        return json.loads(path.read_text())
    made = make()
    if path is not None:
        store.write(path, json.dumps(made).encode())
    return made


def rows(seed: int, count: int, apart: int, work: Path | None) -> list[dict[str, Any]]:
    """One row for each way of drawing, of one seed: its prompts, noise and true pictures are that seed's."""
    task = bound.pairs(count, seed)
    outcome = RECIPE.run(task, seed=seed, progress=False, checkpoint=None if work is None else work / str(seed))
    made = [asdict(point) for point in outcome.points]
    fewer = {k: torch.cat([unshifted(task, start, seed, k) for start in starts(count)]) for k in RECIPE.controls}
    made += [row(UNSHIFTED, k, task, shown) for k, shown in fewer.items()]
    few = bound.pairs(apart, seed, task.model)
    alone = [others(few, start, seed) for start in starts(apart)]
    for batches in zip(*alone, strict=True):
        kind, k, _ = batches[0]
        made.append(row(kind, k, few, torch.cat([shown for *_, shown in batches])))
    return [{"seed": seed, **one} for one in made]


def row(kind: str, k: int, task: Any, shown: torch.Tensor) -> dict[str, Any]:
    """What pictures (N, 3, H, W) of a task's prompts are worth, as a row."""
    return {"kind": kind, "k": k, **sweep.quality(task, shown)._asdict()}


def starts(count: int) -> range:
    """Where the batches of so many prompts begin."""
    return range(0, count, RECIPE.batch)


def sampler_of(task: Any, start: int, seed: int, pipeline: Any = None) -> HybridSampler:
    """The sampler of a batch, from the noise that the sweep draws it from."""
    prompts = task.prompts[start : start + RECIPE.batch]
    return HybridSampler(pipeline or task.model, prompts, RECIPE.guidance, seed * 10_007 + start)


def unshifted(task: Any, start: int, seed: int, k: int) -> torch.Tensor:
    """A batch's pictures by the cloud alone in k steps, spread as a large picture's: the best use of few of them."""
    scheduler = task.model.scheduler
    even = task.model.with_solver(type(scheduler).from_config(scheduler.config, flow_shift=1.0))
    sampler = sampler_of(task, start, seed, even)
    return even.decode(sampler.cloud(sampler.start(k), k).latent)


@torch.no_grad()
def others(task: Any, start: int, seed: int) -> Iterator[tuple[str, int, torch.Tensor]]:
    """A batch's pictures with the cloud in one window only, and with the prompt for the first k steps only."""
    sampler, pipeline, N = sampler_of(task, start, seed), task.model, RECIPE.N
    (cloud, edge), cond, (noise, _) = pipeline.unets, sampler.cond, sampler.noise(N)
    for first in range(0, N, WINDOW):
        turns = [first, WINDOW, N - first - WINDOW]
        *_, latent = trajectory([edge, cloud, edge], fresh(sampler.scheduler, N), noise, cond, turns)
        yield "window", first, pipeline.decode(latent)
    nothing, solver, latent, before = Conditioning(cond.negative, None, 1.0), fresh(sampler.scheduler, N), noise, 0
    walk = trajectory([cloud], solver, noise, cond, [N])
    for k in RECIPE.ks[1:-1]:
        for _ in range(k - before):
            latent = next(walk)
        before = k
        *_, last = trajectory([cloud], deepcopy(solver), latent, nothing, [N], begin=k)
        yield "prompt first", k, pipeline.decode(last)


def reading(count: int) -> dict[str, float]:
    """How often the reader is right on true pictures, and on what the decoder makes of them, in percent."""
    x, labels = bound.rendered(bound.held_out(count, 99))
    reader = bound.reader()
    shown = {"true pictures": x, "KL decoder": bound.rebuilt(x, bound.embedded().vae)}
    return {name: 100 * float((reader.read(y) == labels).all(1).double().mean()) for name, y in shown.items()}


def figures(table: pandas.DataFrame) -> dict[str, Any]:
    """The claim's figures: of the smallest split that meets it, or of the best that saves enough; and of each split."""
    large, small = (cost.parameters(unet) for unet in bound.embedded().unets)
    splits = {k: split_figures(table, k) for k in RECIPE.controls}
    enough = {k: found for k, found in splits.items() if found["cloud_saving"] >= SAVED - 1e-9}
    meets = [k for k, found in enough.items() if found["meets"]]
    k = min(meets) if meets else max(enough, key=lambda k: enough[k]["accuracy"])
    return {"edge_share": small / large, "k": k, **splits[k], "splits": {str(k): found for k, found in splits.items()}}


def split_figures(table: pandas.DataFrame, k: int) -> dict[str, Any]:
    """The cloud's first k steps beside the cloud alone, the edge alone and the same cloud steps used otherwise."""
    by = table.pivot(index="seed", columns=["kind", "k"], values=["accuracy", "frechet", "cloud_macs"])
    ways = {
        "split": ("hybrid", k),
        "cloud": ("hybrid", RECIPE.N),
        "edge": ("hybrid", 0),
        "edge first": ("edge first", k),
    }
    accuracy, frechet = ({way: by[name][key] for way, key in ways.items()} for name in ("accuracy", "frechet"))
    gap = accuracy["cloud"] - accuracy["split"]
    near, far = ((frechet["split"] - frechet[way]).abs() for way in ("cloud", "edge"))
    macs = by["cloud_macs"].mean()
    found = {
        "cloud_saving": float(1 - macs["hybrid", k] / macs["hybrid", RECIPE.N]),
        "accuracy": float(accuracy["split"].mean()),
        "semantic_gap": float(gap.mean()),
        "semantic_gap_range": [float(gap.min()), float(gap.max())],
        "frechet": {way: float(values.mean()) for way, values in frechet.items()},
        "frechet_nearer_to_cloud": bool((near < far).all()),
        "ahead": {
            kind: {name: ahead(by[name]["hybrid", k], by[name][kind, k], name) for name in ("accuracy", "frechet")}
            for kind in ("edge first", "fewer steps", UNSHIFTED)
        },
    }
    clear = found["ahead"]["fewer steps"]["accuracy"]["clear"]
    return found | {"meets": bool(gap.mean() <= WITHIN and found["frechet_nearer_to_cloud"] and clear)}


def ahead(ours: pandas.Series, theirs: pandas.Series, name: str) -> dict[str, Any]:
    """By how much the split is better, seed by seed; clearly if the mean is more than the seeds differ."""
    by = (theirs - ours) if name == "frechet" else (ours - theirs)
    spread = float(by.max() - by.min())
    return {"mean": float(by.mean()), "range": [float(by.min()), float(by.max())], "clear": float(by.mean()) > spread}


def picture_seconds(repeats: int = 5) -> float:
    """The median time of a hybrid picture, k of N steps in this process, one thread."""
    pipeline, times = bound.embedded(), []
    for i in range(repeats + 1):
        start = time.perf_counter()
        pipeline.draw(
            "a red circle left of a blue square",
            steps=[RECIPE.k, RECIPE.N - RECIPE.k],
            guidance=RECIPE.guidance,
            seed=i,
        )
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
