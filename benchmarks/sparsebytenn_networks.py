"""Zeros in networks of today: ResNet-50, MobileNet-v3, EfficientNet-B0 and ViT-B/32 in the engine beside onnxruntime.

    python benchmarks/sparsebytenn_networks.py [--quick] [--json FILE] [--only vit]

Whole networks at 224 x 224, fp32, one thread, random weights: onnxruntime dense, and the engine with 0, 50 and 90 % of
the 4 x 1 blocks at zero of every convolution and linear layer but the first and the last (attention's projections among
them), all in one run; rounds and ratios as in sparsebytenn.py. Then where the engine's time goes, by operator. Needs
torchvision's architectures: pip install --no-deps torchvision==0.28.0, or `make test`, which puts them beside the
environment.
"""

import argparse
import json
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import sparsebytenn as mobilenet  # the benchmark beside this one
from zoo import networks

from lab.core import kernels
from lab.core.machine import machine, processor
from lab.core.training import seeded
from lab.sparsebytenn import engine

NETWORKS = ("resnet50", "mobilenet_v3_large", "efficientnet_b0", "vit_b_32")
SHARES = (0.0, 0.5, 0.9)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the second network alone, few rounds: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings and the machine here")
    parser.add_argument("--only", default="", help="networks in whose names this stands")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rounds = 5 if options.quick else 30
    print(f"{processor()}, kernels {kernels.isa_name()}, one thread, {rounds} rounds, fp32")
    rows = []
    for name in NETWORKS[1:2] if options.quick else [name for name in NETWORKS if options.only in name]:
        times, spent = raced(name, rounds)
        table = mobilenet.speedups(times)
        print(f"\n{name}\n{table.to_string()}\n{spent.to_string(float_format='%.3f')}")
        rows.append({"network": name, "times": table.reset_index().to_dict("records"), "spent": spent.to_dict("index")})
    if options.json:
        settings = {"rounds": rounds, "seed": 0, "blocks": "4 x 1 at random"}
        settings |= {"machine": machine() | {"isa": kernels.isa_name()}}
        options.json.write_text(json.dumps({"networks": rows, **settings}, indent=1) + "\n")


def raced(name: str, rounds: int) -> tuple[dict[str, list[float]], pandas.DataFrame]:
    """Seconds of one picture for every contender, an entry a round; and the ms of the engine's operators at 50 %."""
    if (architectures := networks.architectures()) is None:
        raise SystemExit("torchvision is not installed: pip install --no-deps torchvision==0.28.0, or make test")
    with seeded(0):
        model = architectures.get_model(name).eval()
        x = torch.randn(1, 3, 224, 224)
    engines = {share: engine.compile(pruned(model, share), x, strict=True) for share in SHARES}
    contenders: dict[str, Callable[[], object]] = {"onnxruntime, dense": mobilenet.onnxruntime(model, x)}
    image = [np.ascontiguousarray(x[0].numpy())]
    contenders |= {f"engine, {share:.0%}": partial(engines[share]._run, image) for share in SHARES}
    spent = engines[0.5].profile().groupby("operator")[["ms", "macs"]].sum()
    return mobilenet.interleaved(contenders, rounds), spent.assign(**{"GMAC/s": spent.macs / spent.ms / 1e6})


def pruned(model: nn.Module, share: float) -> nn.Module:
    """A copy with a share of the 4 x 1 blocks set to 0, the same ones for the same share."""
    g, copy = torch.Generator().manual_seed(1), deepcopy(model)
    weights = [w for name, w in copy.named_parameters() if w.dim() > 1 and "weight" in name and w.shape[1] > 1]
    for w in weights[1:-1]:
        if len(w) % 4 == 0 and share:
            keep = torch.rand(len(w) // 4, w.shape[1], generator=g) >= share
            w.data *= keep.repeat_interleave(4, 0).view(*w.shape[:2], *[1] * (w.dim() - 2))
    return copy


if __name__ == "__main__":
    main()
