"""Weights of b bits packed into bytes: what is stored, and what a packed network's file holds."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, fx

from . import equations as eq
from .layers import RoundedLayer

UNSIGNED = "0" * 64  # stands where the digest will, while it is taken


def pack(codes: Tensor, b: int) -> Tensor:
    """Integers in -n..n, any shape, as uint8 bytes: b bits each, lowest bit first, shifted to 0..2n."""
    shifted = codes.flatten().to(torch.int16).numpy() + eq.levels(b)
    bits = (shifted[:, None] >> np.arange(b)) & 1  # (values, b)
    return torch.from_numpy(np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little"))


def unpack(data: Tensor, b: int, shape: torch.Size) -> Tensor:
    """The numbers that `pack` stored, int8 of this shape."""
    bits = np.unpackbits(data.numpy(), count=b * shape.numel(), bitorder="little").reshape(-1, b)
    values = (bits.astype(np.int16) << np.arange(b)).sum(1) - eq.levels(b)
    return torch.from_numpy(values.astype(np.int8)).view(shape)


def state(model: fx.GraphModule) -> dict[str, Tensor]:
    """A quantised network as four tensors: packed codes, the steps of their grids, and all other numbers."""
    codes, steps = [], []
    for _, conv in _rounded(model):
        code, step = conv.int_repr()
        codes.append(pack(code.cpu(), conv.bits))
        steps.append(step.flatten().cpu())
    rest = [value.detach().cpu().float().flatten() for value in _others(model).values()]
    return {"codes": torch.cat(codes), "steps": torch.cat(steps), "rest": torch.cat(rest)}


@torch.no_grad()
def set_state(model: fx.GraphModule, saved: dict[str, Tensor]) -> None:
    """Give a network of the same form the weights that `state` took; ValueError where they do not fit."""
    codes, steps, rest = (_Reader(saved[name]) for name in ("codes", "steps", "rest"))
    for _, conv in _rounded(model):
        size = -(-conv.weight.numel() * conv.bits // 8)
        code = unpack(codes.take(size), conv.bits, conv.weight.shape)
        step = steps.take(len(conv.weight) if conv.per_channel else 1).view(-1, *[1] * (conv.weight.dim() - 1))
        conv.set_int_repr(code, step)
    for value in _others(model).values():
        value.copy_(rest.take(value.numel()).view_as(value))
    for reader in (codes, steps, rest):
        reader.validate_end()


def to_bytes(model: fx.GraphModule, recipe: dict[str, Any] | None = None) -> bytes:
    """The packed network as one safetensors file; with a recipe, that and a digest of the whole file in its header."""
    if recipe is None:
        return save(state(model))
    content = save(state(model), {"lab": json.dumps(recipe), "sha256": UNSIGNED})
    return content.replace(UNSIGNED.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the recipe of a packed file; a damaged or altered one is a one-line ValueError."""
    data = Path(path).read_bytes()
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        digest = header["sha256"].encode()
        if hashlib.sha256(data.replace(digest, UNSIGNED.encode(), 1)).hexdigest().encode() != digest:
            raise ValueError("its SHA-256 does not match")
        tensors, recipe = load(data), json.loads(header["lab"])
        if missing := [name for name in ("codes", "steps", "rest") if name not in tensors]:
            raise ValueError(f"it has no {missing[0]}")
        return tensors, recipe
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:80]
        raise ValueError(f"{path} is not a packed network ({reason}): write it again with pack") from error


def bake(model: fx.GraphModule) -> None:
    """Leave each rounded weight as the numbers that are stored, so that a loaded network gives the same outputs."""
    for _, conv in _rounded(model):
        conv.set_int_repr(*conv.int_repr())


def _rounded(model: fx.GraphModule) -> Iterator[tuple[str, RoundedLayer]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, RoundedLayer))


def _others(model: fx.GraphModule) -> dict[str, Tensor]:
    """All stored numbers but the packed weights."""
    weights = {f"{name}.weight" for name, _ in _rounded(model)}
    return {k: v for k, v in model.state_dict(keep_vars=True).items() if k not in weights and not k.endswith("seen")}


class _Reader:
    """A flat tensor taken from its front, piece by piece."""

    def __init__(self, data: Tensor) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> Tensor:
        self.at += count
        if self.at > len(self.data):
            raise ValueError(f"it holds {len(self.data):,} numbers, this network needs more")
        return self.data[self.at - count : self.at]

    def validate_end(self) -> None:
        if self.at != len(self.data):
            raise ValueError(f"it holds {len(self.data):,} numbers, this network takes {self.at:,}")
