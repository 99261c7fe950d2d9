"""Prompts that can be checked: captions of scenes, those never learned from, and the reader of pictures."""

import numpy as np
import torch
from torch import nn

from ..core import nets
from ..core import scenes as drawing
from ..core.scenes import LABELS, TEXTURES, Kind, Scene

READ = {"count": LABELS["count"], "colour": LABELS["colour"], "shape": LABELS["shape"], "place": LABELS["place"],
        "texture": tuple(TEXTURES)}  # fmt: skip
_HELD_OUT = 144  # of the 720 kinds of scene, never learned from


def _parts() -> tuple[list[Kind], list[Kind]]:
    """The kinds to learn from and the kinds held out, always the same."""
    every = drawing.kinds(TEXTURES)
    order = np.random.default_rng(2408).permutation(len(every)).tolist()
    return [every[k] for k in order[_HELD_OUT:]], [every[k] for k in order[:_HELD_OUT]]


def learned(count: int = 576, seed: int = 0) -> list[Scene]:
    """Scenes of the 576 kinds that the models learn from."""
    return drawing.random_scenes(count, seed, _parts()[0])


def held_out(count: int = 144, seed: int = 1) -> list[Scene]:
    """Scenes of the 144 kinds whose captions were never learned: each part was, the combination was not."""
    return drawing.random_scenes(count, seed, _parts()[1])


def drawn(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, 3, 32, 32) in [0, 1] and what they show (N, 5), as indices into READ."""
    rows = [[values.index(getattr(scene, name)) for name, values in READ.items()] for scene in scenes]
    return drawing.draw(scenes)[0], torch.tensor(rows)


def checker_net() -> nn.Module:
    """The network that reads count, colour, shape, place and texture from a picture (N, 3, 32, 32) in [-0.5, 0.5]."""
    return nets.resnet_cifar(8, classes=sum(map(len, READ.values())))


def split(answers: torch.Tensor) -> dict[str, torch.Tensor]:
    """The checker's answers (N, 19) by what they read."""
    parts = answers.split([len(values) for values in READ.values()], 1)
    return dict(zip(READ, parts, strict=True))


def token_ids(captions: list[str], tokenizer) -> torch.Tensor:
    """Token ids (N, L), padded to the tokenizer's length."""
    length = tokenizer.model_max_length
    return tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
