"""Captions of two bound things, never learned from, the small models that draw them, and the reader of their pictures.

The models match a flow on latents of 8 x 8, whose noise is shifted for that size as SD3's is (Card (22)), so that what
is in the picture is decided in the first steps; the edge has lost its inner stage and most of its text.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ...core import store
from ...core.data import pairs as drawing
from ...core.data.pairs import LABELS, Kind, Pair
from ...core.rooms import at_first_use
from ...core.task import evaluating
from ..blocks import unet_of
from ..components import pipeline_parts, vae_of
from ..pipeline import HybridPipeline
from ..prompts import PromptTask, Reader, parted

FOLDER = "bound"
_HELD_OUT = 288  # of the 1,440 kinds of pair, never learned from


def _parts() -> tuple[list[Kind], list[Kind]]:
    return parted(drawing.kinds(), _HELD_OUT)


def learned(count: int = 1152, seed: int = 0) -> list[Pair]:
    """Pairs of the 1,152 kinds that the models learn from."""
    return drawing.random_pairs(count, seed, _parts()[0])


def held_out(count: int = 288, seed: int = 1) -> list[Pair]:
    """Pairs of the 288 kinds whose captions were never learned: each part was, the combination was not."""
    return drawing.random_pairs(count, seed, _parts()[1])


def rendered(shown: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, 3, 32, 32) in [0, 1] and what they show (N, 6), as indices into LABELS."""
    rows = [[values.index(getattr(pair, name)) for name, values in LABELS.items()] for pair in shown]
    return drawing.draw(shown), torch.tensor(rows)


def pairs(count: int = 288, seed: int = 1, model: HybridPipeline | None = None) -> PromptTask:
    """Prompts never learned from, read back by the trained reader: `count` of them, beside true pictures of the kind.

    These are as the autoencoder gives them back: what it loses, all models lose. `model` left out is the embedded
    pipeline of `data/bound`: cloud and edge.
    """
    model, eye = embedded() if model is None else model, reader()
    shown = held_out(count, seed)
    labels = rendered(shown)[1]

    def features(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), evaluating(eye):
            return eye.features(x.cpu())

    return PromptTask(
        model=model,
        prompts=tuple(pair.caption for pair in shown),
        right=lambda x: eye.read(x.cpu()) == labels[: len(x)],
        features=features,
        real=rebuilt(rendered(held_out(count, seed + 1000))[0], model.vae),
        parts=tuple(LABELS),
        name=f"{count} held-out pairs, seed {seed}",
    )


@torch.no_grad()
def rebuilt(images: torch.Tensor, vae: Any) -> torch.Tensor:
    """Pictures (N, 3, H, W) in [0, 1] as an AutoencoderKL gives them back."""
    latents = (vae.encode(2 * x - 1).latent_dist.mode() for x in images.split(100))
    return torch.cat([(vae.decode(z).sample / 2 + 0.5).clamp(0, 1) for z in latents])


def reader() -> Reader:
    """What reads colours, shapes, relation and ground from pictures of pairs, trained on them."""
    return Reader.trained(FOLDER, LABELS)


def embedded() -> HybridPipeline:
    """The pipeline of `data/bound`, a cloud and an edge U-Net; its decoder is that of `data/hybridsd`."""
    folder, vae = (store.artefact(f"{name}/model_index.json").parent for name in (FOLDER, "hybridsd"))
    parts = pipeline_parts(folder, vae=vae_of(vae / "vae"))
    return HybridPipeline.of(parts, [unet_of(folder / "edge")])


__getattr__, __dir__ = at_first_use(globals(), "view")
