"""Zeros in networks of today: ResNet-50, MobileNet-v3, EfficientNet-B0 and ViT-B/32 in the engine beside dense rivals.

    python benchmarks/sparsebytenn_networks.py [--quick] [--json FILE] [--only vit]

Whole networks at 224 x 224, fp32, one thread, random weights under which every layer matters: onnxruntime, OpenVINO
and MNN dense, and the engine with 0, 50 and 90 % of the 4 x 1 blocks at zero of every convolution and linear layer but
the first and the last (attention's projections among them), all in one run; rounds, ratios and rivals as in
sparsebytenn.py. Then where the engine's time goes at 50 and 90 %, by operator. Needs torchvision's architectures: pip
install --no-deps torchvision==0.28.0, or `make test`, which puts them beside the environment.
"""

import argparse
import json
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import pandas
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from engines import interleaved, packages, remove_blocks, rivals, speedups
from zoo import networks
from zoo.weights import calm, lively, pictures

from lab.core import kernels
from lab.core.machine import machine, processor
from lab.core.training import seeded
from lab.sparsebytenn import engine
from lab.sparsebytenn.runtime import Engine

NETWORKS = ("resnet50", "mobilenet_v3_large", "efficientnet_b0", "vit_b_32")
SHARES = (0.0, 0.5, 0.9)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the second network alone, few rounds: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings and the machine here")
    parser.add_argument("--only", default="", help="networks in whose names this stands")
    options = parser.parse_args(argv)
    if (architectures := networks.architectures()) is None:
        raise SystemExit("torchvision is not installed: pip install --no-deps torchvision==0.28.0, or make test")
    torch.set_num_threads(1)
    rounds = 5 if options.quick else 12
    print(
        f"{processor()}, kernels {kernels.isa_name()} of {', '.join(kernels.isas())}, one thread, {rounds} rounds, fp32"
    )
    rows = []
    for name in NETWORKS[1:2] if options.quick else [name for name in NETWORKS if options.only in name]:
        with seeded(0):
            model, x = architectures.get_model(name), pictures(4, 3, 224, 224)
        table, spent = raced(calm(lively(model, x)), x[:1], rounds)
        print(f"\n{name}\n{table.to_string()}\n{spent.to_string(float_format='%.3f')}", flush=True)
        rows.append({"network": name, "times": table.reset_index().to_dict("records"), "spent": spent.to_dict("index")})
    if options.json:
        settings = {"figures": told(rows), "rounds": rounds, "seed": 0, "blocks": "4 x 1 at random"}
        settings |= {"machine": machine(*packages()) | {"isa": kernels.isa_name(), "isas": kernels.isas()}}
        options.json.write_text(json.dumps({**settings, "networks": rows}, indent=1) + "\n")


def raced(model: nn.Module, x: torch.Tensor, rounds: int) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """The contest on one picture, a row a contender; and where the engine's time goes, a row an operator."""
    engines = {share: engine.compile(pruned(model, share), x, strict=True) for share in SHARES}
    calls: dict[str, Callable[[], object]] = {**rivals(model, x)}
    calls |= {f"engine, {share:.0%}": partial(made._run, [x[0].numpy()]) for share, made in engines.items()}
    return speedups(interleaved(calls, rounds)), pandas.concat(
        [spent(engines[0.5], "50%"), spent(engines[0.9], "90%")], axis=1
    )


def pruned(model: nn.Module, share: float) -> nn.Module:
    """A copy with a share of the 4 x 1 blocks set to 0, the same ones for the same share."""
    g, copy = torch.Generator().manual_seed(1), deepcopy(model)
    weights = [w for name, w in copy.named_parameters() if w.dim() > 1 and "weight" in name and w.shape[1] > 1]
    for w in weights[1:-1]:
        if len(w) % 4 == 0:
            remove_blocks(w, share, g)
    return copy


def spent(made: Engine, share: str) -> pandas.DataFrame:
    """The engine's ms and 10^9 multiply-adds a second by operator, as columns of a share."""
    sums = made.profile().groupby("operator")[["ms", "macs"]].sum()
    return pandas.DataFrame({f"{share} ms": sums.ms, f"{share} GMAC/s": sums.macs / sums.ms / 1e6})


def told(rows: list[dict]) -> dict[str, float]:
    """How many times as fast as the best dense engine each network is, by name and share."""
    return {
        f"{row['network']}_{time['index'].removeprefix('engine, ')[:-1]}": time["over the best dense"]
        for row in rows
        for time in row["times"]
        if time["index"].startswith("engine")
    }


if __name__ == "__main__":
    main()
