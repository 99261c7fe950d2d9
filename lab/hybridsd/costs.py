"""What a split picture costs in the cloud, at the edge and in between, with every assumption an argument."""

from dataclasses import dataclass, replace
from typing import Any

from ..core.fields import integer, one_of, real, validate
from . import equations as eq
from . import references


@dataclass(frozen=True, kw_only=True)
class Counted:
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
            self, inputs=integer(1, 2), attention_products=one_of(True, False), decodings=integer(0),
            decoder_at=one_of("edge", "cloud", "nowhere"),
        )  # fmt: skip

    @classmethod
    def paper(cls, decoder_at: str = "edge") -> "Counted":
        """As the published figures: two inputs a step for LCM too, no attention products, the decoder twice."""
        return cls(inputs=2, attention_products=False, decodings=2, decoder_at=decoder_at)


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a step costs in the cloud and at the edge, a decoding there and one by the cloud's decoder, in one unit.

    `price` counts FLOPs, `sweep.price` the MACs of models that run.
    """

    cloud: float
    edge: float
    decoder: float = 0.0
    cloud_decoder: float = 0.0

    def __post_init__(self) -> None:
        validate(self, **dict.fromkeys(("cloud", "edge", "decoder", "cloud_decoder"), real(0)))


@dataclass(frozen=True)
class SplitCost:
    """One picture's cost in the cloud and at the edge, in its price's unit, bytes in between, and the cloud alone's."""

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


def price(
    cloud: Any, edge: Any, vae: Any, counted: Counted = Counted(), cloud_vae: Any | None = None
) -> Price:  # fmt: skip
    """Counted on the modules; those on the meta device cost nothing to count. `cloud_vae` left out is `vae`."""
    products, side = counted.attention_products, cloud.config["sample_size"]
    steps = [2.0 * references.unet_macs(net, counted.inputs, products) for net in (cloud, edge)]
    ends = [2.0 * references.decoder_macs(net, side, attention_products=products) for net in (vae, cloud_vae or vae)]
    return Price(cloud=steps[0], edge=steps[1], decoder=ends[0], cloud_decoder=ends[1])


def split_cost(p: Price, k: int, N: int, counted: Counted = Counted(), transfer: int = 0) -> SplitCost:
    """Eq. (6) with the decoder where `counted` says; ValueError for k out of 0..N."""
    if not 0 <= k <= N or N < 1:
        raise ValueError(f"k={k} is not allowed: give a step in 0..{N}, and N >= 1")
    here = {place: counted.decodings * (counted.decoder_at == place) for place in ("edge", "cloud")}
    cloud, edge = eq.cloud_share(k, N, p.cloud, p.edge, here["edge"] * p.decoder)
    whole_decodings = 0 if counted.decoder_at == "nowhere" else counted.decodings
    alone = N * p.cloud + whole_decodings * p.cloud_decoder
    return SplitCost(cloud + here["cloud"] * p.cloud_decoder, edge, transfer, alone)


def readings() -> dict[str, tuple[float, str]]:
    """The published '-66 %' of cloud compute and its neighbours: percent saved, and what each assumes."""
    of, large, vae = references.unet, references.unet("sd-1.4"), references.kl_vae()
    figure = Counted.paper()
    sd = price(large, of("instance-a"), vae, figure)
    bare, once = replace(figure, decoder_at="nowhere"), replace(figure, decodings=1)
    true = replace(once, inputs=1)
    pair = of("sd-1.4-lcm"), of("instance-a-lcm"), references.tiny_vae()
    lcm, lcm_true = (price(*pair, how, vae) for how in (figure, true))
    return {
        "sd, k=10, u-net": (split_cost(sd, 10, 25, bare).saving, "25 steps, U-Nets only"),
        "sd, k=10": (split_cost(sd, 10, 25, figure).saving, "decoder at the edge, counted twice as in the figure"),
        "sd, k=10, once": (split_cost(sd, 10, 25, once).saving, "decoder at the edge, counted once"),
        "sd, k=5, u-net": (split_cost(sd, 5, 25, bare).saving, "25 steps, U-Nets only"),
        "lcm, k=4": (split_cost(lcm, 4, 8, figure).saving, "8 steps, two inputs a step, decoder at the edge, twice"),
        "lcm, k=4, as run": (split_cost(lcm_true, 4, 8, true).saving, "8 steps, one input a step, decoder once"),
    }  # fmt: skip


def payloads(
    side: int = 64, channels: int = 4, tokens: int = 77, width: int = 768, pooled: int = 0, scale: int = 8
) -> dict[str, int]:  # fmt: skip
    """Bytes of what can cross the boundary for one picture; the defaults are those of SD 1.x at 512 x 512."""
    numbers = channels * side * side
    return {
        "latent fp16": 2 * numbers, "latent fp32": 4 * numbers, "latent int8": numbers, "history fp16": 2 * numbers,
        "embedding fp16": 2 * tokens * width, "embedding pair fp16": 4 * tokens * width, "token ids": 2 * tokens,
        "pooled fp16": 2 * pooled, "picture rgb": 3 * (scale * side) ** 2,
    }  # fmt: skip


def table(p: Price, N: int, ks: tuple[int, ...], counted: Counted = Counted(), **sizes: Any) -> dict[int, SplitCost]:
    """The cost at each k, with an fp16 latent, its history and token ids in between wherever both sides take part."""
    size = payloads(**sizes)
    crossing = size["latent fp16"] + size["history fp16"] + size["token ids"]
    return {k: split_cost(p, k, N, counted, crossing if 0 < k < N else 0) for k in ks}
