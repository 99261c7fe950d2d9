"""What a step of DQSS's search costs: five strategies in one convolution, and as five times five branches.

    python benchmarks/dqss_cost.py [--json data/dqss/cost.json]

Forward and backward of three networks, in turn with a plain quantised step: processor time of one thread, which other
processes do not count in; medians of the ratios within one round.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import lab
from lab.core import store
from lab.core.machine import machine
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.training import seeded
from lab.dqss import equations as eq
from lab.dqss import search
from lab.dqss.space import StrategySpace

FIVE = ("max", "p99.99", "mse", "kl", "aciq")
RECIPE = lab.DQSS(calibration=64, steps=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", type=Path, help="write all figures and the machine here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = step_costs(1 if options.quick else 5)
    report = {"figures": cost_figures(rows), "steps": rows, "machine": machine()}
    if options.json:
        store.write(options.json, (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps(report, indent=1))


def cost_figures(steps: list[dict]) -> dict[str, float]:
    """Plain quantised steps that one with five strategies takes, at most, and one with five times five branches."""
    return {
        "step_cost": max(row["five"] for row in steps),
        "step_cost_naive": statistics.mean(row["naive"] for row in steps),
    }


class Naive(nn.Module):
    """A layer as N_a * N_w branches, Card (2)."""

    def __init__(self, layer: nn.Module, reads: nn.Module, weight: nn.Module) -> None:
        super().__init__()
        self.layer, self.reads, self.weight = layer, reads, weight
        self.W = layer.parametrizations.weight.original

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        X = [strategy(x) for strategy in self.reads.strategies]
        W = [strategy(self.W) for strategy in self.weight.strategies]
        q, p = (eq.probabilities(one.logits) for one in (self.reads, self.weight))
        y = eq.branches(X, W, q, p, lambda a, w: self.layer._conv_forward(a, w, None))
        return y if self.layer.bias is None else y + self.layer.bias.view(-1, 1, 1)


def step_costs(repeats: int) -> list[dict]:
    """A step (forward and backward), interleaved: plain quantised, five strategies, five times five branches."""
    with seeded(0):
        cases = {
            "EDSR, 8 x 64 channels": (lab.nets.edsr(blocks=8, width=64), torch.rand(4, 3, 32, 32)),
            "VGG-16, 32 x 32": (lab.nets.vgg16_cifar(), torch.rand(16, 3, 32, 32)),
            "ResNet-20, 32 x 32": (lab.nets.resnet_cifar(20), torch.rand(16, 3, 32, 32)),
        }
    return [{"network": name} | one_cost(net.eval(), x, repeats) for name, (net, x) in cases.items()]


def one_cost(net: nn.Module, x: torch.Tensor, repeats: int) -> dict:
    wanted = fold_batch_norms(net, x[:1])(x).detach()
    graphs = {"plain": spaced(net, x, ("mse",)), "five": spaced(net, x, FIVE), "naive": naive(spaced(net, x, FIVE))}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for round in range(repeats):
        for name, space in graphs.items():
            if name == "naive" and round > 0:  # it takes twenty times as long
                continue
            start = time.process_time()
            search.distance(space.graph(x), wanted).backward()
            times[name].append(time.process_time() - start)
    over = {name: statistics.median(a / b for a, b in zip(times[name], times["plain"], strict=False)) for name in times}
    return {"five": over["five"], "naive": over["naive"], "plain_ms": 1000 * statistics.median(times["plain"])}


def spaced(net: nn.Module, x: torch.Tensor, names: tuple[str, ...]) -> StrategySpace:
    recipe = replace(RECIPE, candidates=names)
    graph = fold_batch_norms(net, x[:1])
    return StrategySpace(graph, recipe, x)


def naive(space: StrategySpace) -> StrategySpace:
    """The same space as branches; linear layers stay mixtures."""
    for group, (name, *_) in space.readers.items():
        layer = space.graph.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            space.graph.set_submodule(name, Naive(layer, space.activations[group], space.weights[name]))
            space.graph.set_submodule(f"quantisers.{group}", nn.Identity())
    return space


if __name__ == "__main__":
    main()
