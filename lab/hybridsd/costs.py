"""What a split picture costs in the cloud, at the edge and in between, with every assumption an argument."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..core import cost
from ..core.fields import integer, one_of, real, validate
from . import equations as eq
from . import references
from .pipeline import HybridPipeline
from .sampler import HybridSampler


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """How costs are counted.

    inputs: U-Net inputs a step runs, 2 with guidance; a consistency model needs 1. attention_products: whether the
    products inside attention count. decodings: how often the decoder counts; a picture needs 1. decoder_at: 'edge',
    'cloud' or 'nowhere', where a split picture is decoded; the cloud alone decodes in the cloud.
    """

    inputs: int = 2
    attention_products: bool = True
    decodings: int = 1
    decoder_at: str = "edge"

    def __post_init__(self) -> None:
        validate(
            self,
            inputs=integer(1, 2),
            attention_products=one_of(True, False),
            decodings=integer(0),
            decoder_at=one_of("edge", "cloud", "nowhere"),
        )

    @classmethod
    def paper(cls, decoder_at: str = "edge") -> "CostModel":
        """As the published figures: two inputs a step for LCM too, no attention products, the decoder twice."""
        return cls(inputs=2, attention_products=False, decodings=2, decoder_at=decoder_at)


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a step costs in the cloud and at the edge, a decoding there and one by the cloud's decoder, in one unit.

    `step_cost` counts FLOPs of any modules, `measured` the MACs of a pipeline that runs.
    """

    cloud: float
    edge: float
    decoder: float = 0.0
    cloud_decoder: float = 0.0

    def __post_init__(self) -> None:
        validate(self, **dict.fromkeys(("cloud", "edge", "decoder", "cloud_decoder"), real(0)))


@dataclass(frozen=True)
class SplitCost:
    """One picture's cost in the cloud and at the edge, in its step's unit, bytes in between, and the cloud alone's."""

    cloud: float
    edge: float
    transfer: int
    alone: float

    @property
    def total(self) -> float:
        """Cloud and edge together."""
        return self.cloud + self.edge

    @property
    def saving(self) -> float:
        """Percent of the cloud's compute that the split leaves out."""
        return 100 * (1 - self.cloud / self.alone)


def step_cost(
    cloud: Any, edge: Any, vae: Any, model: CostModel = CostModel(), cloud_vae: Any | None = None
) -> StepCost:
    """FLOPs counted on the modules; those on the meta device cost nothing to count. `cloud_vae` left out is `vae`."""
    products, side = model.attention_products, cloud.config["sample_size"]
    # a multiplication and an addition are two operations
    unets = [2.0 * references.unet_macs(net, model.inputs, products) for net in (cloud, edge)]
    decoders = [
        2.0 * references.decoder_macs(net, side, attention_products=products) for net in (vae, cloud_vae or vae)
    ]
    return StepCost(cloud=unets[0], edge=unets[1], decoder=decoders[0], cloud_decoder=decoders[1])


class _Decoder(nn.Module):
    """A decoder as a module of one input, for counting."""

    vae: Any

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latent, return_dict=False)[0]


@torch.no_grad()
def measured(pipeline: HybridPipeline, guidance: float) -> tuple[StepCost, tuple[int, int]]:
    """MACs of one picture's step in the cloud and at the edge (guidance counted) and of one decoding; parameters.

    Convolutions, linear layers and the products of attention. A cloud elsewhere counts its own. The parameters are
    those of the cloud's U-Net and of the edge's.
    """
    sampler = HybridSampler(pipeline, ["a"], guidance)
    latent, _ = sampler.noise(25)
    (large, cloud), (small, edge) = (sampler.denoisers[i].size(latent, sampler.cond) for i in (0, -1))
    decoder = cost.macs(_Decoder(pipeline.vae), (latent,))
    return StepCost(cloud=cloud, edge=edge, decoder=decoder), (large, small)


def split_cost(step: StepCost, k: int, N: int, model: CostModel = CostModel(), transfer: int = 0) -> SplitCost:
    """Card (6) with the decoder where `model` says; ValueError for k out of 0..N."""
    if not 0 <= k <= N or N < 1:
        raise ValueError(f"k={k} is not allowed: give a step in 0..{N}, and N >= 1")
    decodings = {side: model.decodings * (model.decoder_at == side) for side in ("edge", "cloud")}
    cloud, edge = eq.cloud_share(k, N, step.cloud, step.edge, decodings["edge"] * step.decoder)
    alone_decodings = 0 if model.decoder_at == "nowhere" else model.decodings
    alone = N * step.cloud + alone_decodings * step.cloud_decoder
    return SplitCost(cloud + decodings["cloud"] * step.cloud_decoder, edge, transfer, alone)


def published_savings() -> dict[str, tuple[float, str]]:
    """The published '-66 %' of cloud compute and its neighbours: percent saved, and what each assumes."""
    unet, large, vae = references.unet, references.unet("sd-1.4"), references.kl_vae()
    figure = CostModel.paper()
    sd = step_cost(large, unet("instance-a"), vae, figure)
    bare, once = replace(figure, decoder_at="nowhere"), replace(figure, decodings=1)
    as_run = replace(once, inputs=1)
    pair = unet("sd-1.4-lcm"), unet("instance-a-lcm"), references.tiny_vae()
    lcm, lcm_as_run = (step_cost(*pair, model, vae) for model in (figure, as_run))
    cases = [
        ("sd, k=10, u-net", sd, 10, 25, bare, "25 steps, U-Nets only"),
        ("sd, k=10", sd, 10, 25, figure, "decoder at the edge, counted twice as in the figure"),
        ("sd, k=10, once", sd, 10, 25, once, "decoder at the edge, counted once"),
        ("sd, k=5, u-net", sd, 5, 25, bare, "25 steps, U-Nets only"),
        ("lcm, k=4", lcm, 4, 8, figure, "8 steps, two inputs a step, decoder at the edge, twice"),
        ("lcm, k=4, as run", lcm_as_run, 4, 8, as_run, "8 steps, one input a step, decoder once"),
    ]
    return {name: (split_cost(step, k, N, model).saving, words) for name, step, k, N, model, words in cases}


def transfer_bytes(
    side: int = 64, channels: int = 4, tokens: int = 77, width: int = 768, pooled: int = 0, scale: int = 8
) -> dict[str, int]:
    """Bytes of what can cross the boundary for one picture; the defaults are those of SD 1.x at 512 x 512."""
    numbers = channels * side * side
    return {
        "latent fp16": 2 * numbers,
        "latent fp32": 4 * numbers,
        "latent int8": numbers,
        "history fp16": 2 * numbers,
        "embedding fp16": 2 * tokens * width,
        "embedding pair fp16": 4 * tokens * width,
        "token ids": 2 * tokens,
        "pooled fp16": 2 * pooled,
        "picture rgb": 3 * (scale * side) ** 2,
    }
