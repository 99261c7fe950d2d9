"""Which operators run as one, and in bands of how many rows: what one writes stays in the cache for the next.

A map may stay unwritten, or be kept in part, only where a single operator reads it, and reads it as its input.
"""

import math
from dataclasses import replace

from .packed import Map, Network, Op
from .proof import CHAIN

BAND = 48 << 10  # floats, about, that a separable pair or a convolution lays out at a time: they stay in the cache
LARGE = 512 << 10  # floats of a map that takes the whole second-level cache
CACHED = 192 << 10  # floats that a chain of operators keeps and lays out in it
VECTOR = 16  # floats of the longest vector


def joined(network: Network) -> Network:
    """Depthwise convolutions joined to the pointwise one that alone reads them: their map is never written out."""
    readers: dict[int, list[Op]] = {}
    for op in network.ops:
        for read in (op.x, op.add):
            if read is not None:
                readers.setdefault(read, []).append(op)
    gone: list[Op] = []
    ops = []
    for op in network.ops:
        behind = readers.get(op.y, [])
        is_half = len(behind) == 1 and behind[0].kind == "pointwise" and behind[0].x == op.y  # and not as what is added
        if op.kind == "depthwise" and is_half and op.y != network.output:
            gone.append(op)
        else:
            ops.append(op)
    halves = {op.y: op for op in gone}
    return replace(network, ops=[_pair(halves[op.x], op) if op.x in halves else op for op in ops])


def _pair(first: Op, second: Op) -> Op:
    window = {name: getattr(first, name) for name in ("x", "k", "stride", "pad", "band", "taps", "taps_bias")}
    return replace(second, kind="separable", inner=first.clamp, **window)


def chained(network: Network) -> Network:
    """Large maps kept in part: whoever reads one alone, right after it is written, has its rows made as it needs them.

    The map is never whole and stays in the cache. The last operator of a chain of such maps has the highest bands for
    which all that the chain keeps and lays out is CACHED.
    """
    network = replace(network, maps=[replace(m) for m in network.maps], ops=[replace(op) for op in network.ops])
    reads = [m for op in network.ops for m in (op.x, op.add)]
    first = 0
    for i, op in enumerate(network.ops):
        m = network.maps[op.y]
        links = i + 1 < len(network.ops) and network.ops[i + 1].x == op.y and reads.count(op.y) == 1
        spatial = {"conv", "pointwise", "depthwise", "separable"}
        fits = links and op.kind in spatial and network.ops[i + 1].kind in spatial - {"pointwise"}
        if not fits or op.y == network.output or m.c * m.pixels < LARGE or i + 1 - first == CHAIN:
            if first < i:
                _keep_in_part(network.maps, network.ops[first : i + 1])
            first = i + 1
    return network


def _keep_in_part(maps: list[Map], chain: list[Op]) -> None:
    out = maps[chain[-1].y]
    step = _whole_vectors(out.w)
    for band in [*range(out.h // step * step, 0, -step), 1]:
        for op, before in zip(reversed(chain), [*reversed(chain[:-1]), None], strict=True):
            op.band = band
            if before is not None:
                m = maps[op.x]
                m.part = min(m.h, (band - 1) * op.stride + max(op.k, op.stride))
                band = min(m.h, (band - 1) * op.stride + max(op.k - op.pad, op.stride))
        kept = sum(maps[op.x].floats for op in chain[1:]) + max(op.room(maps[op.x], maps[op.y]) for op in chain)
        if kept <= CACHED:
            return


def band(h: int, w: int, rows: int) -> int:
    """Rows of a band of about BAND floats, at least 384 pixels, bands as equal as can be.

    Where they can, bands are whole vectors: they begin on a cache line's border, and no vector is half full.
    """
    bands = max(1, round(h * w / max(384, BAND // rows)))
    whole = _whole_vectors(w)
    return min(h, -(-h // bands // whole) * whole) if h > whole else -(-h // bands)


def _whole_vectors(w: int) -> int:
    """The least number of rows that is whole vectors."""
    return VECTOR // math.gcd(VECTOR, w)
