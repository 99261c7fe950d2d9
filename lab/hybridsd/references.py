"""The published U-Nets and decoders by their configs, on the meta device: shapes without weights, quick to count."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..core import cost
from .blocks import narrowed
from .components import diffusers

_ACROSS = "CrossAttn{}Block2D"
_SD = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "down_block_types": (*[_ACROSS.format("Down")] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *[_ACROSS.format("Up")] * 3),
}
_TINY = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": (_ACROSS.format("Down"),) * 3,
    "up_block_types": (_ACROSS.format("Up"),) * 3,
    "layers_per_block": 1,
    "mid_block_type": None,
}
_XL = {
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", *[_ACROSS.format("Down")] * 2),
    "up_block_types": (*[_ACROSS.format("Up")] * 2, "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_LCM = {"time_cond_proj_dim": 256}

UNETS: dict[str, dict[str, Any]] = {
    "sd-1.4": _SD,
    "sd-1.4-lcm": _SD | _LCM,
    "bk-base": _SD | {"layers_per_block": 1},
    "bk-small": _SD | {"layers_per_block": 1, "mid_block_type": None},
    "bk-tiny": _SD | _TINY,
    "instance-a": _SD | _TINY,
    "instance-a-lcm": _SD | _TINY | _LCM,
    "sdxl": _XL,
    "koala-700m": _XL | {"layers_per_block": 1, "transformer_layers_per_block": (1, 2, 5), "mid_block_type": None},
    "koala-1b": _XL | {"layers_per_block": 1, "transformer_layers_per_block": (1, 2, 6)},
}
# one assignment that meets the published 224.49 M; the authors' own is not known
A_WIDTHS = (256, 480, 320, 320, 640, 160, 160, 96, 256)
A_HEADS = tuple(heads for first in (6, 4, 8, 6, 8, 8, 8, 8, 6) for heads in (first, 8))


def unet(name: str) -> Any:
    """A published U-Net without weights; ValueError that lists the names."""
    if name not in UNETS:
        raise ValueError(f"name={name!r} is not a reference: give one of {', '.join(UNETS)}")
    with torch.device("meta"):
        model = diffusers().UNet2DConditionModel(**UNETS[name])
        return narrowed(model, A_WIDTHS, A_HEADS) if name.startswith("instance-a") else model


def kl_vae() -> Any:
    """The autoencoder of Stable Diffusion 1.x without weights."""
    with torch.device("meta"):
        return diffusers().AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            layers_per_block=2,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            sample_size=512,
        )


def tiny_vae() -> Any:
    """TAESD's autoencoder without weights."""
    with torch.device("meta"):
        return diffusers().AutoencoderTiny()


def example(net: Any, batch: int = 2) -> dict[str, Any]:
    """Inputs by name for a U-Net, on its device: latents, one time, 77 tokens, and what SDXL and LCM take besides."""
    config, device = net.config, next(net.parameters()).device
    inputs: dict[str, Any] = {
        "sample": torch.zeros(batch, config["in_channels"], *[config["sample_size"]] * 2, device=device),
        "timestep": torch.ones(batch, device=device),
        "encoder_hidden_states": torch.zeros(batch, 77, config["cross_attention_dim"], device=device),
    }
    if config["time_cond_proj_dim"]:
        inputs["timestep_cond"] = torch.zeros(batch, config["time_cond_proj_dim"], device=device)
    if config["addition_embed_type"] == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        added = {"text_embeds": torch.zeros(batch, pooled), "time_ids": torch.zeros(batch, 6)}
        inputs["added_cond_kwargs"] = {key: x.to(device) for key, x in added.items()}
    return inputs


def unet_macs(net: Any, batch: int = 2, attention_products: bool = False) -> int:
    """Multiply-adds of one call; the published figures are at batch 2 without the products inside attention."""
    return _macs(net, example(net, batch), attention_products)


def decoder_macs(vae: Any, side: int = 64, batch: int = 1, attention_products: bool = False) -> int:
    """Multiply-adds of decoding latents of `side` x `side` positions."""
    device = next(vae.parameters()).device
    latent = torch.zeros(batch, vae.config["latent_channels"], side, side, device=device)
    inside = vae.post_quant_conv if getattr(vae, "post_quant_conv", None) is not None else nn.Identity()
    return _macs(nn.Sequential(inside, vae.decoder), latent, attention_products)


def _macs(net: Any, given: Any, attention_products: bool) -> int:
    """Counted by the core; where attention's products are left out, nothing of attention is computed."""
    if attention_products:
        return cost.macs(net, given)
    with _WithoutProducts():
        return cost.macs(net, given)


class _WithoutProducts(TorchFunctionMode):
    """Scaled dot-product attention as an empty output of the right shape: nothing of it is computed or counted."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is F.scaled_dot_product_attention:
            return torch.empty_like(args[0] if args else (kwargs or {})["query"])
        return function(*args, **(kwargs or {}))
