"""Captioned pictures drawn by rule: how many things, of which colour, which shape and where, known to the pixel.

A scene is a row of equal things along one side of the picture, or through its middle. What its caption says can be
checked exactly, and every picture comes with the masks of its shape and of its colour.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import numpy as np
import torch

Shown = TypeVar("Shown")
COUNTS = (1, 2, 3)
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.75, 0.25),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.10),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom",
          "middle": "in the middle"}  # fmt: skip
TEXTURES = {"plain": "", "striped": ", on stripes", "dotted": ", on dots"}  # of the ground
LABELS = {"shape": SHAPES, "colour": tuple(COLOURS), "count": COUNTS, "place": tuple(PLACES)}
CONCEPTS = (*SHAPES, *COLOURS)  # what a pixel can belong to: the channels of the masks
_NUMBERS = ("one", "two", "three")
_RADIUS = (0.080, 0.103)  # of a circle, as a share of the side; the other shapes have its area
_EDGE = 0.21  # how far from its side a row stands
_PERIOD = 0.25  # of stripes and dots, as a share of the side
_RELIEF = 0.08  # how much lighter and darker than the grey they are

Kind = tuple[int, str, str, str, str]  # count, colour, shape, place, texture: what a caption tells


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `seed` fixes what the caption leaves open: sizes, places within reach, grey and noise."""

    count: int
    colour: str
    shape: str
    place: str
    seed: int = 0
    texture: str = "plain"

    def __post_init__(self) -> None:
        validate_shown(self, {**LABELS, "texture": tuple(TEXTURES)})

    @property
    def caption(self) -> str:
        """In plain English: 'two red circles on the left, on stripes'; a plain ground is not mentioned."""
        plural = {"cross": "crosses"}.get(self.shape, f"{self.shape}s")
        thing = self.shape if self.count == 1 else plural
        return f"{_NUMBERS[self.count - 1]} {self.colour} {thing} {PLACES[self.place]}{TEXTURES[self.texture]}"


def kinds(textures: Iterable[str] = ("plain",)) -> list[Kind]:
    """Everything that a caption can tell on these grounds, always in the same order."""
    textures = tuple(textures)
    if strange := [texture for texture in textures if texture not in TEXTURES]:
        raise ValueError(f"textures={strange[0]!r} is not allowed: give some of {', '.join(map(repr, TEXTURES))}")
    return list(product(COUNTS, COLOURS, SHAPES, PLACES, textures))


def random_scenes(count: int, seed: int = 0, among: Iterable[Kind] | None = None) -> list[Scene]:
    """`count` scenes, every kind as often as any other, in random order; other seeds draw other pictures.

    `among` are the kinds to draw from; left out, all that stand on plain ground.
    """
    return [
        Scene(number, colour, shape, position, scene_seed, texture)
        for (number, colour, shape, position, texture), scene_seed in balanced(
            count, seed, kinds() if among is None else among, "scene"
        )
    ]


def validate_shown(shown: Any, allowed: Mapping[str, Sequence[Any]]) -> None:
    """ValueError in one line where a picture is to show what is not allowed, or has no seed >= 0."""
    what = type(shown).__name__
    for name, values in allowed.items():
        if getattr(shown, name) not in values:
            choices = ", ".join(map(repr, values))
            raise ValueError(f"{what}: {name}={getattr(shown, name)!r} is not allowed: give one of {choices}")
    if not isinstance(shown.seed, int) or isinstance(shown.seed, bool) or shown.seed < 0:
        raise ValueError(f"{what}: seed={shown.seed!r} is not allowed: give an integer >= 0")


def balanced(count: int, seed: int, among: Iterable[Shown], what: str) -> Iterator[tuple[Shown, int]]:
    """`count` of these kinds, every one as often as any other, in random order, each with a seed of its own."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"count={count!r}: give an integer number of {what}s, 1 or more")
    choices = list(among)
    if not choices:
        raise ValueError(f"random_{what}s: among is empty: give at least one kind of {what}")
    random = np.random.default_rng(seed)
    rounds = -(-count // len(choices))
    order = np.concatenate([random.permutation(len(choices)) for _ in range(rounds)])[:count].tolist()
    seeds = random.integers(2**62, size=count).tolist()
    return zip((choices[k] for k in order), seeds, strict=True)


def draw(scenes: Iterable[Scene], size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """The pictures (N, 3, size, size) float32 in [0, 1] and their masks (N, len(CONCEPTS), size, size) bool.

    A mask's pixel is true where at least half of it is covered by a thing of that shape or colour. The same scene
    gives the same picture, whatever it is drawn with. ValueError below 16 pixels, where shapes can't be told apart.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 16:
        raise ValueError(f"size={size!r}: give an integer number of pixels, 16 or more")
    scenes = list(scenes)
    images = np.empty((len(scenes), 3, size, size), np.float32)
    masks = np.zeros((len(scenes), len(CONCEPTS), size, size), bool)
    for i, scene in enumerate(scenes):
        random = np.random.default_rng(scene.seed)
        grey, light = random.uniform(0.1, 0.5), random.uniform(0.75, 1.0)
        cover = _cover(scene, random, size)  # (size, size)
        noise = random.normal(0, 0.03, (3, size, size))
        ground = grey + relief(scene.texture, random, size)
        images[i] = np.clip(ground + cover * (inked(scene.colour, light) - ground) + noise, 0, 1)
        masks[i, [CONCEPTS.index(scene.shape), CONCEPTS.index(scene.colour)]] = cover >= 0.5
    return torch.from_numpy(images), torch.from_numpy(masks)


def inked(colour: str, light: float) -> np.ndarray:
    """A colour in this light, (3, 1, 1)."""
    return light * np.array(COLOURS[colour])[:, None, None]


def relief(texture: str, random: np.random.Generator, size: int) -> np.ndarray | float:
    """What a ground adds to its grey, (size, size): level stripes, or dots where two waves meet; 0 for a plain one."""
    if texture == "plain":
        return 0.0
    rows, columns = (np.sin(2 * np.pi * ((np.arange(size) + 0.5) / size / _PERIOD + random.uniform())) for _ in "yx")
    return _RELIEF * (rows[:, None] * np.ones(size) if texture == "striped" else 1.5 * rows[:, None] * columns)


def _cover(scene: Scene, random: np.random.Generator, size: int) -> np.ndarray:
    """How much of each pixel the things cover, (size, size) in [0, 1]."""
    middles = (np.arange(size) + 0.5) / size
    cover = np.zeros((size, size))
    for x, y, radius in _things(scene, random):
        inside = distance(scene.shape, middles[None, :] - x, middles[:, None] - y, radius)
        cover = np.maximum(cover, np.clip(0.5 - inside * size, 0, 1))
    return cover


def _things(scene: Scene, random: np.random.Generator) -> list[tuple[float, float, float]]:
    """(x, y, radius) of each thing in shares of the side, y downwards: a row with some jitter; none touches another."""
    along = 0.5 + (np.arange(scene.count) - (scene.count - 1) / 2) / 3 + random.uniform(-0.02, 0.02, scene.count)
    line = {"left": _EDGE, "top": _EDGE, "middle": 0.5, "right": 1 - _EDGE, "bottom": 1 - _EDGE}[scene.place]
    across = line + random.uniform(-0.05, 0.05, scene.count)
    x, y = (across, along) if scene.place in ("left", "right") else (along, across)
    return list(zip(x.tolist(), y.tolist(), random.uniform(*_RADIUS, scene.count).tolist(), strict=True))


def distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """The distance to the outline of a shape about 0, negative inside; all have the area of the circle."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - radius * np.sqrt(np.pi) / 2
    if shape == "triangle":  # equilateral, a corner up; its inner circle is about 0
        slanted = np.sqrt(3) / 2 * abs(x) - y / 2
        return np.maximum(slanted, y) - radius * np.sqrt(np.pi / (3 * np.sqrt(3)))
    arm = radius * np.sqrt(9 * np.pi / 20)  # a cross whose arms are a third as wide as it is long
    bars = [np.maximum(abs(x) - a, abs(y) - b) for a, b in ((arm, arm / 3), (arm / 3, arm))]
    return np.minimum(*bars)
