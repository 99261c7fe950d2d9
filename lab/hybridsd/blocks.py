"""A smaller U-Net out of a large one: blocks are left out (BK-SDM), then its residual blocks are made narrower inside.

What goes in and out of each block stays as wide as it was, so that skips and the latent space stay compatible.
"""

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from .components import diffusers, exact, quiet


@torch.no_grad()
def without_blocks(unet: Any) -> nn.Module:
    """One residual block and attention a stage going down, two going up, no middle, no innermost stage.

    A plain UNet2DConditionModel with the first block of each stage going down, first and last going up, and their
    weights; weights of another shape than the large model's are left as they were drawn.
    """
    old = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    stages = len(old["block_out_channels"]) - 1
    if stages < 1:
        raise ValueError("the U-Net has one stage: there is no innermost one to leave out")
    made = type(unet).from_config(
        {
            **old,
            "block_out_channels": old["block_out_channels"][:stages],
            "down_block_types": old["down_block_types"][:stages],
            "up_block_types": old["up_block_types"][1:],
            "mid_block_type": None,
            "layers_per_block": 1,
        }
    )
    last = old["layers_per_block"]
    given, state = unet.state_dict(), made.state_dict()
    for name, weight in state.items():
        source = given.get(_source(name, last))
        if source is not None and source.shape == weight.shape:
            weight.copy_(source)
    made.load_state_dict(state)
    return made.eval()


def _source(name: str, last: int) -> str:
    """The name that a weight of the small model has in the large one."""
    found = re.match(r"up_blocks\.(\d+)\.(.*)", name)
    if not found:
        return name
    rest = re.sub(r"^(resnets|attentions)\.1\.", rf"\1.{last}.", found[2])
    return f"up_blocks.{int(found[1]) + 1}.{rest}"


def residual_blocks(unet: nn.Module) -> list[nn.Module]:
    """The residual blocks in the order down, middle, up: each has an inner width of its own."""
    return [module for module in unet.modules() if type(module).__name__ == "ResnetBlock2D"]


def kept_width(width: int, ratio: float, unit: int = 32, least: int = 64) -> int:
    """ceil(int(width ratio) / unit) unit, the released rule; a result of `least` or below leaves the width alone."""
    new = -(-int(width * ratio) // unit) * unit
    return width if new <= least else new


def attentions(unet: nn.Module) -> list[nn.Module]:
    """Every attention in the order down, middle, up: of a picture's places to one another, then to the text."""
    return [module for module in unet.modules() if type(module).__name__ == "Attention"]


@torch.no_grad()
def narrowed(unet: nn.Module, widths: Sequence[int], heads: Sequence[int] | None = None) -> nn.Module:
    """A copy whose residual blocks keep `widths[i]` inner channels, and whose attentions keep their first heads.

    Channels kept are those of largest L2 norm in conv1, in their order; conv1, time_emb_proj, norm2 and conv2 are cut,
    what goes in and out of a block stays. `heads[i]` is for attention i, all of them if left out. The config says
    `block_mid_channels` and `block_heads`.
    """
    made = deepcopy(unet)
    blocks, looks = residual_blocks(made), attentions(made)
    heads = [look.heads for look in looks] if heads is None else list(heads)
    if (len(widths), len(heads)) != (len(blocks), len(looks)):
        raise ValueError(
            f"{len(widths)} widths and {len(heads)} heads for {len(blocks)} residual blocks and {len(looks)} "
            "attentions: give one for each"
        )
    for block, width in zip(blocks, widths, strict=True):
        norms = block.conv1.weight.flatten(1).norm(dim=1)
        _cut(block, norms.topk(width).indices.sort().values)
    for look, keep in zip(looks, heads, strict=True):
        _cut_heads(look, keep)
    made.register_to_config(block_mid_channels=list(widths), block_heads=heads)
    return made.eval()


def _cut_heads(look: Any, keep: int) -> None:
    if not 1 <= keep <= look.heads:
        raise ValueError(f"heads={keep} is not allowed: give 1 to {look.heads}")
    wide = keep * (look.to_q.out_features // look.heads)
    for layer in (look.to_q, look.to_k, look.to_v):
        layer.weight = nn.Parameter(layer.weight[:wide].clone())
        layer.bias = None if layer.bias is None else nn.Parameter(layer.bias[:wide].clone())
        layer.out_features = wide
    out = look.to_out[0]
    out.weight, out.in_features = nn.Parameter(out.weight[:, :wide].clone()), wide
    look.heads, look.inner_dim = keep, wide


def _cut(block: nn.Module, kept: torch.Tensor) -> None:
    groups, width = block.norm2.num_groups, len(kept)
    if width % groups:
        raise ValueError(f"a width of {width} is no multiple of the {groups} groups of its norm: round it up")
    norm = nn.GroupNorm(groups, width, block.norm2.eps)
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(getattr(block.norm2, name)[kept].clone()))
    block.norm2 = norm
    for layer, axis in ((block.conv1, 0), (block.time_emb_proj, 0), (block.conv2, 1)):
        layer.weight = nn.Parameter(layer.weight.index_select(axis, kept).clone())
        if axis == 0 and layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias[kept].clone())
    block.conv1.out_channels = block.time_emb_proj.out_features = block.conv2.in_channels = width


def load_narrowed(folder: str | Path, **options: Any) -> nn.Module:
    """The U-Net that `narrowed(...).save_pretrained(folder)` stored."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    widths, heads = config.pop("block_mid_channels"), config.pop("block_heads")
    with torch.random.fork_rng(devices=[]):
        made = narrowed(diffusers().UNet2DConditionModel.from_config(config), widths, heads)
    made.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return nn.Module.to(made, options.get("dtype") or torch.float32).eval()


def unet_of(source: str | Path, **options: Any) -> nn.Module:
    """The U-Net of a folder or id: the folder itself, or its `unet` or `edge` part."""
    folder = Path(source)
    inner = next((name for name in ("edge", "unet") if (folder / name / "config.json").exists()), None)
    if folder.is_dir() and inner is None and not (folder / "config.json").exists():
        raise ValueError(f"{source} holds no U-Net: give a folder with config.json, or with a part named unet")
    where_it_is = folder / inner if inner else folder
    if folder.is_dir() and "block_mid_channels" in (where_it_is / "config.json").read_text(encoding="utf-8"):
        return load_narrowed(where_it_is, **options)
    local = {"local_files_only": True} if folder.is_dir() else {}
    where = {"subfolder": inner or ("unet" if not folder.is_dir() else None)}
    named = {name: value for name, value in where.items() if value}
    with quiet():
        return diffusers().UNet2DConditionModel.from_pretrained(str(source), **named, **local, **exact(options))
