"""Hybrid SD on captioned scenes: quality and cost of every split, beside its controls.

    python benchmarks/hybridsd.py [--quick] [--json FILE] [--seeds 10,11,12] [--prompts 500]

The embedded models (`data/hybridsd`) draw captions whose combinations they never learned from. A trained reader reads
count, colour, shape, place and texture back; a prompt counts where all five are right. The Frechet distance is on that
reader's features, of as many true pictures: it is no FID. Controls in the same run, from the same noise: the cloud
alone, the edge alone, the edge first, and the cloud alone with fewer steps at the same cloud cost. Also: the time of
one picture, and what asking the service for a latent of Stable Diffusion's size costs beside a step of such a U-Net.
"""

import argparse
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import diffusers
import pandas
import torch
import uvicorn

import lab
from lab.core import cost, service, store
from lab.core.machine import machine
from lab.hybridsd import prompts
from lab.hybridsd.cloud import PATH, CloudClient, request_digest
from lab.hybridsd.handoff import Handoff, advance, begin
from lab.hybridsd.sampling import Conditioning

RECIPE = lab.HybridSD(ks=(0, 5, 10, 15, 20, 25), controls=(5, 10), batch=48)
WITHIN, SAVED = 2.0, 0.60  # points of semantic accuracy, share of the cloud's compute
SD = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


def main() -> None:
    options = parser(__doc__, "one seed, 24 prompts, no U-Net of SD's size").parse_args()
    torch.set_num_threads(1)
    count, seeds = asked(options, 24)
    report: dict[str, Any] = {
        "figures": {},
        "settings": {"recipe": repr(RECIPE), "prompts": count, "within": WITHIN, "saved": SAVED},
        "seeds": seeds,
        "machine": machine("diffusers"),
        "rows": [],
    }
    report["reader"] = reading(count)
    print(report["reader"], flush=True)
    for seed in seeds:
        report["rows"] += swept(seed, count, options.work)
        table = pandas.DataFrame(report["rows"]).drop(columns="parts")
        print(table[table.seed == seed].to_string(), flush=True)
        report["figures"] = figures(pandas.DataFrame(report["rows"]))
        keep(options.json, report)
    report["figures"]["picture_seconds"] = picture_seconds()
    if not options.quick:
        report["service"] = service_beside_a_step()
        report["figures"]["service_overhead"] = report["service"]["share"]
    print(json.dumps(report["figures"], indent=1))
    keep(options.json, report)


def parser(doc: str, quick: str, prompts: int = 500) -> argparse.ArgumentParser:
    """What the benchmarks that draw many prompts are told."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--quick", action="store_true", help=quick)
    found.add_argument("--json", type=Path, help="write all figures, settings, seeds and the machine here")
    found.add_argument("--seeds", default="10,11,12", help="none of which was used to choose the settings")
    found.add_argument("--prompts", type=int, default=prompts)
    found.add_argument("--work", type=Path, help="keep finished batches here, so that a kill loses one")
    return found


def asked(options: argparse.Namespace, few: int) -> tuple[int, list[int]]:
    """How many prompts a seed, and the seeds; a quick run has one seed and few prompts."""
    seeds = [int(seed) for seed in options.seeds.split(",")]
    return (few, seeds[:1]) if options.quick else (options.prompts, seeds)


def swept(seed: int, count: int, work: Path | None) -> list[dict[str, Any]]:
    """One row for each way of drawing, of one seed: its prompts, noise and true pictures are that seed's."""
    task = prompts.scenes(count, seed)
    outcome = RECIPE.run(task, seed=seed, progress=False, checkpoint=None if work is None else work / str(seed))
    return [{"seed": seed, **asdict(point)} for point in outcome.points]


def reading(count: int) -> dict[str, float]:
    """How often the reader is right on true pictures, and on what both decoders make of them, in percent."""
    scenes = prompts.held_out(count, 99)
    x, labels = prompts.rendered(scenes)
    reader, right = prompts.Reader.trained(), {}
    for name, tiny in (("true pictures", None), ("KL decoder", False), ("tiny decoder", True)):
        shown = x if tiny is None else rebuilt(x, tiny)
        right[name] = 100 * float((reader.read(shown) == labels).all(1).double().mean())
    return right


@torch.no_grad()
def rebuilt(x: torch.Tensor, tiny: bool) -> torch.Tensor:
    """Pictures (N, 3, H, W) encoded, and decoded by the KL decoder or the tiny one."""
    kl = prompts.embedded().vae
    latents = kl.encode(x * 2 - 1).latent_dist.mode() * kl.config.scaling_factor
    return prompts.embedded(tiny).decode(latents)


def figures(table: pandas.DataFrame) -> dict[str, Any]:
    """The issue's figures, in the paper's order of the models, and the same with the edge first."""
    large, small = (cost.parameters(unet) for unet in prompts.embedded().unets)
    other = {f"edge_first_{name}": value for name, value in split_figures(table, "edge first").items()}
    return {"edge_share": small / large, **split_figures(table, "hybrid"), **other}


def split_figures(table: pandas.DataFrame, kind: str) -> dict[str, Any]:
    """Means over seeds at the best split of one order that saves enough, beside the cloud alone and fewer steps."""
    mean = table.groupby(["kind", "k"])[["accuracy", "frechet", "cloud_macs"]].mean()
    cloud, edge = mean.loc["hybrid"].iloc[-1], mean.loc["hybrid"].iloc[0]
    splits = mean.loc[kind]
    saved = 1 - splits.cloud_macs / cloud.cloud_macs
    k = int(splits[(saved >= SAVED) & (splits.index > 0)].accuracy.idxmax())
    chosen, fewer = splits.loc[k], mean.loc[("fewer steps", k)]
    scores = table.pivot(index="seed", columns=["kind", "k"], values="accuracy")
    gap = scores["hybrid"].iloc[:, -1] - scores[kind, k]
    return {
        "k": k,
        "cloud_saving": float(saved[k]),
        "semantic_gap": float(gap.mean()),
        "semantic_gap_range": [float(gap.min()), float(gap.max())],
        "frechet_nearer_to_cloud": bool(abs(chosen.frechet - cloud.frechet) < abs(chosen.frechet - edge.frechet)),
        "beats_fewer_steps_by": float(chosen.accuracy - fewer.accuracy),
    }


def picture_seconds(repeats: int = 5) -> float:
    """The median time of a hybrid picture, k of N steps in this process, one thread."""
    pipeline, times = prompts.embedded(tiny=True), []
    for i in range(repeats + 1):
        start = time.perf_counter()
        pipeline.draw(
            "one red circle on the left", steps=[RECIPE.k, RECIPE.N - RECIPE.k], guidance=RECIPE.guidance, seed=i
        )
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def service_beside_a_step(repeats: int = 20) -> dict[str, float]:
    """Seconds of one guided step of a random U-Net of SD-v1.4's size here, and of asking a service that does nothing.

    The service is the real one without its steps: a hand-off is sent, read, made again, answered and read, on loopback.
    """
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**SD)
    unet = unet.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for p in unet.parameters():
        p.normal_(0, 0.01, generator=generator)
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    text = torch.zeros(1, 77, 768)
    cond = Conditioning(text, text, 7.0)
    latent = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = {"tokens0": torch.full((1, 77), 49407), "negative0": torch.full((1, 77), 49407)}
    state = begin(scheduler, latent, 25, 7.0, prompt=tokens, seed=0)
    start = time.perf_counter()
    state = advance(state, unet, scheduler, cond, 1)
    step = time.perf_counter() - start
    del unet
    with served() as url:
        client, times = CloudClient(url), []
        for _ in range(repeats):
            start = time.perf_counter()
            *_, size = client.half(state, state.index)
            times.append(time.perf_counter() - start)
    asking = statistics.median(times)
    return {"step_seconds": step, "service_seconds": asking, "bytes": size, "share": asking / step}


@contextmanager
def served() -> Iterator[str]:
    """A service in a thread of this process that gives back the hand-off it gets."""

    def work(body: bytes, query: Mapping[str, str]) -> bytes:
        return replace(Handoff.from_bytes(body), asked=request_digest(body, query)).to_bytes()

    app = service.application(work, PATH, {})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def keep(path: Path | None, report: dict[str, Any]) -> None:
    """Write the report as it stands."""
    if path is not None:
        store.write(path, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
