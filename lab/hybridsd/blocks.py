"""A smaller U-Net out of a large one: blocks are left out (BK-SDM), then its residual blocks are made narrower inside.

What goes in and out of each block stays as wide as it was, so that skips and the latent space stay compatible.
"""

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import nn

from .components import DENOISERS, diffusers, exact, reading


class ResnetBlock(Protocol):
    """What is cut of diffusers' ResnetBlock2D: its inner width is conv1's outputs, conv2's inputs."""

    conv1: nn.Conv2d  # (inner, in, 3, 3)
    time_emb_proj: nn.Linear  # (inner, T)
    norm2: nn.GroupNorm  # of inner channels
    conv2: nn.Conv2d  # (out, inner, 3, 3)


class AttentionBlock(Protocol):
    """What is cut of diffusers' Attention: queries, keys and values of `heads` heads, inner_dim numbers together."""

    heads: int
    inner_dim: int
    to_q: nn.Linear  # (inner_dim, D)
    to_k: nn.Linear
    to_v: nn.Linear
    to_out: Sequence[nn.Linear]  # its first is (D, inner_dim)


@torch.no_grad()
def without_blocks(unet: Any) -> Any:
    """One residual block and attention a stage going down, two going up, no middle, no innermost stage.

    A plain UNet2DConditionModel with the first block of each stage going down, first and last going up, and their
    weights; weights of another shape than the large model's are left as they were drawn.
    """
    old = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    stages = len(old["block_out_channels"]) - 1
    if stages < 1:
        raise ValueError("the U-Net has one stage: there is no innermost one to leave out")
    smaller = type(unet).from_config(
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
    given, state = unet.state_dict(), smaller.state_dict()
    for name, weight in state.items():
        source = given.get(_source(name, last))
        if source is not None and source.shape == weight.shape:
            weight.copy_(source)
    smaller.load_state_dict(state)
    return smaller.eval()


def _source(name: str, last: int) -> str:
    """The name that a weight of the small model has in the large one."""
    match = re.match(r"up_blocks\.(\d+)\.(.*)", name)
    if not match:
        return name
    rest = re.sub(r"^(resnets|attentions)\.1\.", rf"\1.{last}.", match[2])
    return f"up_blocks.{int(match[1]) + 1}.{rest}"


def residual_blocks(unet: nn.Module) -> list[ResnetBlock]:
    """The residual blocks in the order down, middle, up: each has an inner width of its own."""
    return _of_class(unet, "ResnetBlock2D")


def attentions(unet: nn.Module) -> list[AttentionBlock]:
    """Every attention in the order down, middle, up: of a picture's positions to one another, then to the text."""
    return _of_class(unet, "Attention")


def _of_class(unet: nn.Module, name: str) -> list[Any]:
    """The modules of a class of diffusers, which is known by name: the library is not imported for it."""
    return [module for module in unet.modules() if type(module).__name__ == name]


def kept_width(width: int, ratio: float, unit: int = 32, least: int = 64) -> int:
    """ceil(int(width ratio) / unit) unit, the released rule; a result of `least` or below leaves the width alone."""
    new = -(-int(width * ratio) // unit) * unit
    return width if new <= least else new


@torch.no_grad()
def narrowed(unet: Any, widths: Sequence[int], heads: Sequence[int] | None = None) -> Any:
    """A copy whose residual blocks keep `widths[i]` inner channels, and whose attentions keep their first heads.

    Channels kept are those of largest L2 norm in conv1, in their order; conv1, time_emb_proj, norm2 and conv2 are cut,
    what goes in and out of a block stays. `heads[i]` is for attention i, all of them if left out. The config says
    `block_mid_channels` and `block_heads`.
    """
    narrow = deepcopy(unet)
    blocks, attention_blocks = residual_blocks(narrow), attentions(narrow)
    heads = [attention.heads for attention in attention_blocks] if heads is None else list(heads)
    if (len(widths), len(heads)) != (len(blocks), len(attention_blocks)):
        raise ValueError(
            f"{len(widths)} widths and {len(heads)} heads for {len(blocks)} residual blocks and "
            f"{len(attention_blocks)} attentions: give one for each"
        )
    for block, width in zip(blocks, widths, strict=True):
        norms = block.conv1.weight.flatten(1).norm(dim=1)  # (inner,)
        _cut_width(block, norms.topk(width).indices.sort().values)
    for attention, keep in zip(attention_blocks, heads, strict=True):
        _cut_heads(attention, keep)
    narrow.register_to_config(block_mid_channels=list(widths), block_heads=heads)
    return narrow.eval()


def _cut_heads(attention: AttentionBlock, keep: int) -> None:
    """Keep the first heads: the first rows of queries, keys and values, the first columns of the output."""
    if not 1 <= keep <= attention.heads:
        raise ValueError(f"heads={keep} is not allowed: give 1 to {attention.heads}")
    inner = keep * (attention.to_q.out_features // attention.heads)
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        layer.weight = _part(layer.weight, layer.weight[:inner])
        if layer.bias is not None:
            layer.bias = _part(layer.bias, layer.bias[:inner])
        layer.out_features = inner
    out = attention.to_out[0]
    out.weight, out.in_features = _part(out.weight, out.weight[:, :inner]), inner
    attention.heads, attention.inner_dim = keep, inner


def _cut_width(block: ResnetBlock, kept: torch.Tensor) -> None:
    """Keep the inner channels of these indices (width,): outputs of conv1 and the time's layer, inputs of conv2."""
    groups, width = block.norm2.num_groups, len(kept)
    if width % groups:
        raise ValueError(f"a width of {width} is not a multiple of the {groups} groups of its norm: round it up")
    norm = nn.GroupNorm(groups, width, block.norm2.eps)
    norm.weight = _part(block.norm2.weight, block.norm2.weight[kept])
    norm.bias = _part(block.norm2.bias, block.norm2.bias[kept])
    block.norm2 = norm
    producers: tuple[nn.Conv2d | nn.Linear, ...] = (block.conv1, block.time_emb_proj)
    for layer in producers:
        layer.weight = _part(layer.weight, layer.weight.index_select(0, kept))
        if layer.bias is not None:
            layer.bias = _part(layer.bias, layer.bias[kept])
    block.conv2.weight = _part(block.conv2.weight, block.conv2.weight.index_select(1, kept))
    block.conv1.out_channels = block.time_emb_proj.out_features = block.conv2.in_channels = width


def _part(old: torch.Tensor, part: torch.Tensor) -> nn.Parameter:
    """Some rows or columns of a parameter as one of their own, frozen where it is."""
    return nn.Parameter(part.detach().clone(), requires_grad=old.requires_grad)


def load_narrowed(folder: str | Path, **options: Any) -> Any:
    """The U-Net that `narrowed(...).save_pretrained(folder)` stored."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    widths, heads = config.pop("block_mid_channels"), config.pop("block_heads")
    with torch.random.fork_rng(devices=[]):
        unet = narrowed(diffusers().UNet2DConditionModel.from_config(config), widths, heads)
    unet.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    # the module's own `to`: diffusers' warns of precisions that are asked for here on purpose
    return nn.Module.to(unet, options.get("dtype") or torch.float32).eval()


def unet_of(source: str | Path, **options: Any) -> Any:
    """The U-Net or transformer of a folder or id: the folder itself, or its part `edge`, `unet` or `transformer`."""
    folder = Path(source)
    if not folder.is_dir():
        return _from_hub(str(source), **options)
    part = next((name for name in ("edge", *DENOISERS) if (folder / name / "config.json").exists()), "")
    file = folder / part / "config.json"
    if not file.exists():
        raise ValueError(f"{source} holds no U-Net and no transformer: give a folder with config.json, or with a part "
                         "named unet or transformer")  # fmt: skip
    with reading(source):
        config = dict(json.loads(file.read_text(encoding="utf-8")))
    if "block_mid_channels" in config:
        return load_narrowed(folder / part, **options)
    kind = getattr(diffusers(), config.get("_class_name", "UNet2DConditionModel"), None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        raise ValueError(f"{source} holds a {config['_class_name']}, which diffusers does not have: update it")
    subfolder = {"subfolder": part} if part else {}
    with reading(source):
        return kind.from_pretrained(str(source), **subfolder, local_files_only=True, **exact(options))


def _from_hub(source: str, **options: Any) -> Any:
    with reading(source):
        kind = diffusers().AutoModel
        try:
            return kind.from_pretrained(source, subfolder="unet", **exact(options))
        except OSError:  # no such part
            return kind.from_pretrained(source, subfolder="transformer", **exact(options))
