"""Small networks and quick runs that PAMS's tests share."""

import torch
from torch import nn

import lab
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.training import seeded
from lab.pams import packed
from lab.pams.placement import place_quantisers

QUICK = {"steps": 12, "calibration": 4}


def edsr(**sizes) -> nn.Module:
    """An EDSR with weights of its own seed."""
    with seeded(1):
        return lab.nets.edsr(**{"blocks": 2, "width": 8, **sizes}).eval()


def pictures(
    count: int = 4, side: int = 12, scale: int = 2, channels: int = 3
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of two smooth pictures, small and large, in [0, 1]."""
    with seeded(2):
        low = torch.rand(count, 2, channels, side, side)
    return [(x, nn.functional.interpolate(x, scale_factor=scale, mode="bilinear")) for x in low]


def task(net: nn.Module | None = None, batches: list | None = None) -> lab.Task:
    net, batches = net or edsr(), batches or pictures()
    return lab.Task(
        model=net, batches=batches, score=lab.tasks.psnr(batches[:1], border=2), metric="psnr", unit="dB", name="small"
    )


def quantised(net: nn.Module, x: torch.Tensor, **fields):
    """A network quantised and calibrated on one batch, not trained; and where."""
    recipe = lab.PAMS(**fields)
    graph = fold_batch_norms(net, x)
    placement = place_quantisers(graph, recipe.placement, recipe.grid == "unsigned")
    made = recipe.quantise(graph, placement)
    graph.train()
    for quantiser in made:
        quantiser.calibrating = True
    with torch.no_grad():
        graph(x)
    for quantiser in made:
        quantiser.calibrating = False
    packed.bake(graph)
    return graph.eval(), placement
