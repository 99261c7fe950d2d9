"""Eight clients of one cloud of Hybrid SD at a time: the model's calls shared between them, beside one after another.

    python benchmarks/hybridsd_clients.py [--json FILE] [--width 32] [--side 16] [--steps 10] [--rounds 3] [--clients 8]

A random U-Net of Stable Diffusion's shape (four levels, its attentions, widths 1:2:4:4) is served in this process on
loopback, by the service that `lab serve cloud` runs, without and with `--batch`. All clients begin together, each asks
for its own picture's steps with guidance, and the time is that until the last has its answer. Rounds of both ways
alternate, and their ratio is what counts: on a processor whose cores one picture keeps busy a batch gains what calls
cost apart from their products, so the ratio falls with the width. `bound` is what the U-Net itself gains, called with
eight clients' rows instead of one's, without any service: no service can be above it.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import diffusers
import torch
from starlette.testclient import TestClient

from lab.core import store
from lab.core.machine import machine
from lab.hybridsd import cloud, prompts
from lab.hybridsd.handoff import begin
from lab.hybridsd.pipeline import HybridPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all figures, settings and the machine here")
    for name, value in {"width": 32, "side": 16, "steps": 10, "rounds": 3, "clients": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = random_pipeline(options.width, options.side)
    bodies = [body(pipeline, seed, options.steps) for seed in range(options.clients)]
    ways = {"one after another": 1, "together": options.clients}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with ExitStack() as stack:
        doors = {way: stack.enter_context(door_of(pipeline, n)) for way, n in ways.items()}
        for _ in range(options.rounds + 1):
            for way, door in doors.items():
                seconds[way].append(answered(door, bodies, options.steps))
    medians = {way: statistics.median(times[1:]) for way, times in seconds.items()}  # the first warms up
    ratio = medians["one after another"] / medians["together"]
    bound = (
        options.clients
        * call_seconds(pipeline, 1, options.side)
        / call_seconds(pipeline, options.clients, options.side)
    )
    report: dict[str, Any] = {
        "seconds": seconds,
        "medians": medians,
        "ratio": ratio,
        "bound": bound,
        "machine": machine(),
    }
    report["settings"] = {name: value for name, value in vars(options).items() if name != "json"}
    print(f"{options.clients} clients, seconds: {medians}; together {ratio:.2f} times as fast; at most {bound:.2f}")
    if options.json is not None:
        store.write(options.json, (json.dumps(report, indent=1) + "\n").encode())


def random_pipeline(width: int, side: int) -> HybridPipeline:
    """A U-Net of SD's shape with random weights, beside the embedded words and decoder."""
    parts = prompts.embedded()
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        cross_attention_dim=parts.unets[0].config.cross_attention_dim,
        attention_head_dim=8,
        norm_num_groups=8,
        sample_size=side,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    ).eval()
    return HybridPipeline([unet], parts.scheduler, parts.text, parts.vae)


@torch.no_grad()
def call_seconds(pipeline: HybridPipeline, clients: int, side: int, repeats: int = 9) -> float:
    """Processor seconds of one guided call of the U-Net for the pictures of so many clients, the median."""
    unet: Any = pipeline.unets[0]
    rows, seconds = 2 * clients, []
    latent, text = torch.randn(rows, 4, side, side), torch.randn(rows, 16, unet.config.cross_attention_dim)
    for _ in range(repeats):
        start = time.process_time()
        unet(latent, torch.full((rows,), 500), encoder_hidden_states=text)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def door_of(pipeline: HybridPipeline, batch: int) -> TestClient:
    """The service of `lab serve cloud` in this process."""
    return TestClient(cloud.application(pipeline, batch=batch), base_url="http://127.0.0.1")


def body(pipeline: HybridPipeline, seed: int, steps: int) -> bytes:
    """What a client sends: a picture of its own before its first step."""
    latent, generator = pipeline.noise(1, seed, steps)
    prompt = pipeline.text.tokens(["one red circle on the left"])
    return begin(pipeline.scheduler, latent, steps, 7.0, prompt=prompt, seed=seed, generator=generator).to_bytes()


def answered(door: TestClient, bodies: list[bytes], steps: int) -> float:
    """Seconds until every client has its answer."""

    def ask(content: bytes) -> int:
        return door.post(cloud.PATH, content=content, params={"until": str(steps)}).status_code

    with ThreadPoolExecutor(len(bodies)) as clients:
        start = time.perf_counter()
        statuses = list(clients.map(ask, bodies))
        seconds = time.perf_counter() - start
    if set(statuses) != {200}:
        raise RuntimeError(f"the service answered {statuses}")
    return seconds


if __name__ == "__main__":
    main()
