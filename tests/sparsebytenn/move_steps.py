"""Steps of random networks that put a value's numbers in another order, shape or size, in every spelling."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .graphs import Draft


def flat(d: Draft) -> int:
    """Fewer dimensions: of a map a vector or tokens, of tokens a vector."""
    i = d.value(3, 4)
    forms = {
        "flatten(1)": lambda net, x: torch.flatten(x, 1),
        "x.flatten(1)": lambda net, x: x.flatten(1),
        "reshape(N, -1)": lambda net, x: x.reshape(x.size(0), -1),
        "contiguous, view": lambda net, x: x.contiguous().view(x.shape[0], -1),
        "tokens": lambda net, x: x.flatten(2).transpose(1, 2),
        "flatten(2)": lambda net, x: x.flatten(2),
        "flatten(1, 2)": lambda net, x: x.flatten(1, 2),
        "permute, reshape": lambda net, x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]),
    }
    if d.pick(True, False, False):
        return d.module(nn.Flatten(), i)
    name = d.pick(*(list(forms) if len(d.shape(i)) == 4 else list(forms)[:4]))
    return d.step(name, forms[name], i)


def turned(d: Draft) -> int:
    """Another order of the dimensions."""
    i = d.value(3, 4)
    axes = list(range(1, len(d.shape(i))))
    order = (0, *d.pick(axes[::-1], axes[1:] + axes[:1], axes[-1:] + axes[:-1]))
    forms = {
        f"x.permute{order}": lambda net, x: x.permute(order),
        f"torch.permute{order}": lambda net, x: torch.permute(x, order),
        "x.transpose(1, -1)": lambda net, x: x.transpose(1, -1),
        "x.transpose(-1, -2)": lambda net, x: torch.transpose(x, -1, -2),
        "x.mT": lambda net, x: x.mT,
        "x.movedim": lambda net, x: x.movedim(1, -1),
    }
    name = d.pick(*forms)
    return d.step(name, forms[name], i)


def reshaped(d: Draft) -> int:
    """The same numbers in other dimensions."""
    i = d.value(2, 3, 4)
    size, shape = math.prod(d.shape(i)[1:]), []
    for _ in range(d.int(1, 2)):
        shape.append(d.pick(*(n for n in range(1, 13) if size % n == 0)))
        size //= shape[-1]
    shape = [*shape, -1]
    forms = {
        f"reshape{shape}": lambda net, x: x.reshape(x.shape[0], *shape),
        f"torch.reshape{shape}": lambda net, x: torch.reshape(x, (x.size(0), *shape)),
        f"contiguous().view{shape}": lambda net, x: x.contiguous().view(x.size(0), *shape),
        f"unflatten{shape}": lambda net, x: x.flatten(1).unflatten(1, shape),
        "unsqueeze(1)": lambda net, x: x.unsqueeze(1),
        "unsqueeze(-1)": lambda net, x: torch.unsqueeze(x, -1),
        "squeeze": lambda net, x: x.squeeze(-1),
        "x[:, None]": lambda net, x: x[:, None],
        "x[..., None]": lambda net, x: x[..., None],
    }
    name = d.pick(*forms)
    return d.step(name, forms[name], i)


def shuffled(d: Draft) -> int:
    """Channels interleaved, as ShuffleNet has them."""
    i = d.value(4, where=lambda shape: shape[1] % 2 == 0)
    c, h, w = d.shape(i)[1:]
    if d.flag():
        return d.module(nn.ChannelShuffle(2), i)
    return d.step(
        "channel shuffle",
        lambda net, x: x.reshape(x.size(0), 2, c // 2, h, w).transpose(1, 2).contiguous().view(x.size(0), c, h, w),
        i,
    )


def pixel_shuffled(d: Draft) -> int:
    r, spelling = d.pick(2, 3), d.pick("module", "F", "back", "copies")
    if spelling == "copies":
        i = d.value(4)
        return d.step(f"pixel_shuffle({r}) of copies", lambda net, x: F.pixel_shuffle(x.repeat(1, r**2, 1, 1), r), i)
    if spelling == "back":
        i = d.value(4, where=lambda shape: shape[2] % r == shape[3] % r == 0)
        return d.module(nn.PixelUnshuffle(r), i)
    i = d.value(4, where=lambda shape: shape[1] % r**2 == 0)
    if spelling == "module":
        return d.module(nn.PixelShuffle(r), i)
    return d.step(f"F.pixel_shuffle({r})", lambda net, x: F.pixel_shuffle(x, r), i)


def enlarged_channels(d: Draft) -> int:
    """A convolution and its pixel shuffle, as super-resolution has them."""
    i = d.value(4)
    r = d.pick(2, 3)
    name = d.net.held(nn.Sequential(nn.Conv2d(d.shape(i)[1], r**2 * d.int(1, 2), 3, 1, 1), nn.PixelShuffle(r)))
    return d.step(f"{name} convolution, pixel shuffle {r}", lambda net, x: getattr(net, name)(x), i)


def rolled(d: Draft) -> int:
    i = d.value(3, 4)
    by, dims = d.pick((1, (1,)), ((-1, 2), (1, 2)), ((2, 1), (-2, -1)))
    return d.step(f"roll({by}, {dims})", lambda net, x: torch.roll(x, by, dims), i)


def resized(d: Draft) -> int:
    i = d.value(4)
    mode = d.pick("nearest", "bilinear")
    to = {"size": d.pick((d.int(1, 14), d.int(1, 14)), d.int(1, 12))}
    by = {"scale_factor": d.pick(2, 2, 2.0, 1.5, 0.5, (2, 1.5))}
    given = {"mode": mode, **d.pick(to, by)}
    if mode == "bilinear":
        given["align_corners"] = d.pick(True, False, None)
    if d.flag():
        return d.module(nn.Upsample(**given), i)
    return d.step(f"F.interpolate({given})", lambda net, x: F.interpolate(x, **given), i)


KINDS = (flat, turned, reshaped, shuffled, pixel_shuffled, enlarged_channels, rolled, resized)
