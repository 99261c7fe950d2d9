"""Which operators run as one, and in tiles of how many rows: what one writes stays in the cache for the next.

A map may stay unwritten, or be a rolling row buffer, only where a single operator reads it, and reads it as its input.
"""

import math
from dataclasses import replace

from ..core.kernels import MAX_CHAIN
from .packed import Map, Network, Op

TILE = 48 << 10  # floats, about, that a separable pair or a convolution lays out at a time: they stay in the cache
LARGE = 512 << 10  # floats of a map that takes the whole second-level cache
CACHED = 192 << 10  # floats that a chain of operators keeps and lays out in it
VECTOR = 16  # floats of the longest vector


def joined(network: Network) -> Network:
    """Depthwise convolutions joined to the pointwise one that alone reads them: their map is never written out."""
    readers: dict[int, list[Op]] = {}
    for op in network.ops:
        for read in op.reads:
            readers.setdefault(read, []).append(op)
    halves: dict[int, Op] = {}  # the map that is never written -> the depthwise convolution that would
    ops = []
    for op in network.ops:
        behind = readers.get(op.y, [])
        is_half = len(behind) == 1 and behind[0].kind == "pointwise" and behind[0].x == op.y  # and not as what is added
        if op.kind == "depthwise" and op.act != "prelu" and is_half and op.y not in network.outputs:
            halves[op.y] = op
        else:
            ops.append(op)
    return replace(network, ops=[_pair(halves[op.x], op) if op.x in halves else op for op in ops])


def _pair(depthwise: Op, pointwise: Op) -> Op:
    names = ("x", "k", "stride", "pad", "tile_rows", "taps", "taps_bias")
    window = {name: getattr(depthwise, name) for name in names}
    return replace(pointwise, kind="separable", inner=depthwise.clamp, inner_act=depthwise.act, **window)


def chained(network: Network) -> Network:
    """Large maps as rolling row buffers: their only reader, right behind, has their rows made as it needs them.

    Such a map is never whole and stays in the cache. The last operator of a chain of them has the highest row tiles for
    which all that the chain holds and lays out fits CACHED.
    """
    network = replace(network, maps=[replace(m) for m in network.maps], ops=[replace(op) for op in network.ops])
    reads = [m for op in network.ops for m in op.reads]
    first = 0
    for i, op in enumerate(network.ops):
        m = network.maps[op.y]
        links = i + 1 < len(network.ops) and network.ops[i + 1].x == op.y and reads.count(op.y) == 1
        spatial = {"conv", "pointwise", "depthwise", "separable"}
        fits = links and op.kind in spatial and network.ops[i + 1].kind in spatial - {"pointwise"}
        fits = fits and op.add is None  # what is added lies at a whole map's pitch, and so must the sum
        if not fits or op.y in network.outputs or m.c * m.pixels < LARGE or i + 1 - first == MAX_CHAIN:
            if first < i:
                _buffer(network.maps, network.ops[first : i + 1])
            first = i + 1
    return network


def _buffer(maps: list[Map], chain: list[Op]) -> None:
    """Give the chain's operators their row tiles and the maps between them their buffers, in place."""
    out = maps[chain[-1].y]
    step = _whole_vectors(out.w)
    for rows in [*range(out.h // step * step, 0, -step), 1]:
        _tile(maps, chain, rows)
        held = sum(maps[op.x].floats for op in chain[1:]) + max(op.workspace(maps[op.x], maps[op.y]) for op in chain)
        if held <= CACHED:
            return


def _tile(maps: list[Map], chain: list[Op], rows: int) -> None:
    """From the last operator, which makes `rows` rows at a time, back: how many each reads, its map must hold."""
    for op in reversed(chain):
        op.tile_rows = rows
        if op is not chain[0]:
            m = maps[op.x]
            span, stride = (op.k[0] - 1) * op.dilation[0] + 1, op.stride[0]
            m.buffer_rows = min(m.h, (rows - 1) * stride + max(span, stride))
            rows = min(m.h, (rows - 1) * stride + max(span - op.pad[0], stride))


def tile_rows(h: int, w: int, columns: int) -> int:
    """Output rows (of h x w pixels) in a row tile of about TILE floats, `columns` a pixel, and at least 384 pixels.

    Tiles are as equal as can be. Where they can, they are whole vectors: they begin on a cache line's border, and no
    vector is half full.
    """
    tiles = max(1, round(h * w / max(384, TILE // columns)))
    step = _whole_vectors(w)
    return min(h, -(-h // tiles // step) * step) if h > step else -(-h // tiles)


def _whole_vectors(w: int) -> int:
    """The least number of rows that is whole vectors."""
    return VECTOR // math.gcd(VECTOR, w)
