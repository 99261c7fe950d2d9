"""Captioned pictures of two bound things, drawn by rule: 'a red circle left of a blue square, on stripes'.

Which colour belongs to which shape, and which thing to which side, has to be planned for the whole picture; what a
ground of stripes or dots looks like is detail. The things are larger than those of `scenes`, and never touch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from .scenes import COLOURS, SHAPES, TEXTURES, balanced, distance, inked, relief, validate_shown

RELATIONS = {"left": "left of", "above": "above"}
LABELS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "relation": tuple(RELATIONS),
    "other_colour": tuple(COLOURS),
    "other_shape": SHAPES,
    "texture": tuple(TEXTURES),
}
_RADIUS = (0.120, 0.145)  # of a circle, as a share of the side; the other shapes have its area
_EDGE = 0.26  # how far from its side a thing stands, and from the middle line at most:
_JITTER, _REACH = 0.03, 0.10

Kind = tuple[str, str, str, str, str, str]  # colour, shape, relation, other colour, other shape, texture


@dataclass(frozen=True)
class Pair:
    """What a picture shows; `seed` fixes what the caption leaves open: sizes, places within reach, grey and noise."""

    colour: str
    shape: str
    relation: str
    other_colour: str
    other_shape: str
    texture: str = "plain"
    seed: int = 0

    def __post_init__(self) -> None:
        validate_shown(self, LABELS)

    @property
    def caption(self) -> str:
        """In plain English; a plain ground is not mentioned."""
        first, second = (f"a {colour} {shape}" for colour, shape in self.things)
        return f"{first} {RELATIONS[self.relation]} {second}{TEXTURES[self.texture]}"

    @property
    def things(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Colour and shape of the left or upper thing, then of the other."""
        return (self.colour, self.shape), (self.other_colour, self.other_shape)


def kinds() -> list[Kind]:
    """Everything that a caption can tell of two different things, always in the same order: 1,440."""
    things = list(product(COLOURS, SHAPES))
    return [
        (*first, relation, *second, texture)
        for first, relation, second, texture in product(things, RELATIONS, things, TEXTURES)
        if first != second
    ]


def random_pairs(count: int, seed: int, among: Iterable[Kind]) -> list[Pair]:
    """`count` pairs of these kinds, every kind as often as any other, in random order."""
    return [Pair(*kind, seed=pair_seed) for kind, pair_seed in balanced(count, seed, among, "pair")]


def draw(pairs: Iterable[Pair], size: int = 32) -> torch.Tensor:
    """The pictures (N, 3, size, size) float32 in [0, 1]; the same pair gives the same picture, whatever is with it.

    ValueError below 16 pixels, where shapes can't be told apart.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 16:
        raise ValueError(f"size={size!r}: give an integer number of pixels, 16 or more")
    images = [_image(pair, size) for pair in pairs]
    return torch.from_numpy(np.stack(images)) if images else torch.empty(0, 3, size, size)


def _image(pair: Pair, size: int) -> np.ndarray:
    random = np.random.default_rng(pair.seed)
    grey, light = random.uniform(0.1, 0.5), random.uniform(0.75, 1.0)
    image: np.ndarray = np.zeros((3, size, size)) + grey + relief(pair.texture, random, size)
    for (colour, shape), (x, y, radius) in zip(pair.things, _placed(pair, random), strict=True):
        middles = (np.arange(size) + 0.5) / size
        inside = distance(shape, middles[None, :] - x, middles[:, None] - y, radius)
        cover = np.clip(0.5 - inside * size, 0, 1)  # (size, size)
        image = image + cover * (inked(colour, light) - image)
    return np.clip(image + random.normal(0, 0.03, image.shape), 0, 1).astype(np.float32)


def _placed(pair: Pair, random: np.random.Generator) -> list[tuple[float, float, float]]:
    """(x, y, radius) of both things in shares of the side, y downwards."""
    along = np.array([_EDGE, 1 - _EDGE]) + random.uniform(-_JITTER, _JITTER, 2)
    across = 0.5 + random.uniform(-_REACH, _REACH, 2)
    x, y = (along, across) if pair.relation == "left" else (across, along)
    return list(zip(x.tolist(), y.tolist(), random.uniform(*_RADIUS, 2).tolist(), strict=True))
