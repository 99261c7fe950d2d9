"""An upload that lost a race: what it learned from an older version is added to the newest one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from . import equations as eq
from .messages import Upload


@dataclass(frozen=True)
class Base:
    """What merging needs of a version: its weights and synapses, and the map D (d, d) that led to it."""

    weights: Mapping[str, Tensor]
    Omega: Sequence[Tensor]
    D: Tensor


def merged(upload: Upload, between: Sequence[Base], version: int) -> Upload:
    """An upload as if it had learned from the newest version: between are its base and all versions since.

    Asynchronous federated averaging (Xie et al., 2019, arXiv 1903.03934, with its polynomial staleness of 1/2): the
    step that it took from its base, taken from the newest version by a share that falls with the versions since. Its
    vectors follow the extractor through the maps of those versions. Ours: the map shrinks as its step does.
    """
    base, newest, missed = between[0], between[-1], len(between) - 1
    share = (1 + missed) ** -0.5
    vectors = upload.vectors  # (R, d)
    for later in between[1:]:
        vectors = eq.transformed(vectors, later.D)
    return replace(
        upload,
        base=version,
        vectors=vectors,
        weights={name: newest.weights[name] + share * (w - base.weights[name]) for name, w in upload.weights.items()},
        Omega=[o + share * (a - b) for o, a, b in zip(newest.Omega, upload.Omega, base.Omega, strict=True)],
        D=share * upload.D,
    )
