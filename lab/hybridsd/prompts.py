"""Prompts that can be checked: captions of scenes never learned from, and the reader of their pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from ..core import nets, store
from ..core.data import scenes as drawing
from ..core.data.scenes import LABELS, TEXTURES, Kind, Scene
from ..core.task import evaluating
from .pipeline import HybridPipeline

READ = {name: LABELS[name] for name in ("count", "colour", "shape", "place")} | {"texture": tuple(TEXTURES)}
_HELD_OUT = 144  # of the 720 kinds of scene, never learned from


def parted(every: Sequence[Any], held_out: int) -> tuple[list[Any], list[Any]]:
    """The kinds to learn from and those held out, so many, always the same."""
    order = np.random.default_rng(2408).permutation(len(every)).tolist()
    return [every[k] for k in order[held_out:]], [every[k] for k in order[:held_out]]


def _parts() -> tuple[list[Kind], list[Kind]]:
    return parted(drawing.kinds(TEXTURES), _HELD_OUT)


def learned(count: int = 576, seed: int = 0) -> list[Scene]:
    """Scenes of the 576 kinds that the models learn from."""
    return drawing.random_scenes(count, seed, _parts()[0])


def held_out(count: int = 144, seed: int = 1) -> list[Scene]:
    """Scenes of the 144 kinds whose captions were never learned: each part was, the combination was not."""
    return drawing.random_scenes(count, seed, _parts()[1])


def rendered(scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, 3, 32, 32) in [0, 1] and what they show (N, 5), as indices into READ."""
    rows = [[values.index(getattr(scene, name)) for name, values in READ.items()] for scene in scenes]
    return drawing.draw(scenes)[0], torch.tensor(rows)


class Reader(nn.Module):
    """Reads what pictures (N, 3, H, W) in [0, 1] show; left out, count, colour, shape, place and texture: (N, 19).

    `read` names the parts and what each can be; the logits of all are the output.

    Two further channels tell each pixel where it is, without which an average over the picture knows no place.
    """

    net: Any

    def __init__(self, read: Mapping[str, Sequence[Any]] = READ) -> None:
        super().__init__()
        self.sizes = {name: len(values) for name, values in read.items()}
        self.net = nets.resnet_cifar(8, classes=sum(self.sizes.values()), channels=5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net.linear(self.features(images))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the last layer reads, (N, 64): the features of the Frechet distance."""
        n, _, h, w = images.shape
        lines = (torch.linspace(-0.5, 0.5, side, device=images.device) for side in (h, w))
        y, x = torch.meshgrid(*lines, indexing="ij")
        located = torch.cat([images - 0.5, torch.stack([y, x]).expand(n, -1, -1, -1)], 1)  # (N, 5, H, W)
        net = self.net
        stem = net.relu(net.bn1(net.conv1(located)))
        return net.layer3(net.layer2(net.layer1(stem))).mean((2, 3))

    def parts(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits by what they read: count (N, 3), colour (N, 4) ..."""
        logits = self(images).split(list(self.sizes.values()), 1)
        return dict(zip(self.sizes, logits, strict=True))

    @torch.no_grad()
    def read(self, images: torch.Tensor) -> torch.Tensor:
        """What pictures show, (N, 5), as indices into READ."""
        with evaluating(self):
            return torch.stack([logits.argmax(1) for logits in self.parts(images).values()], 1)

    @classmethod
    def trained(cls, folder: str = "hybridsd", read: Mapping[str, Sequence[Any]] = READ) -> "Reader":
        """The reader that `data/<folder>` holds."""
        reader, file = cls(read), store.artefact(f"{folder}/reader.safetensors")
        state = {name: x.float() if x.is_floating_point() else x for name, x in load_file(file).items()}
        reader.load_state_dict(state)
        return reader.eval()


_trained = cache(Reader.trained)


@cache
def _captions() -> dict[str, Scene]:
    """A scene by its caption."""
    every = (Scene(*kind[:4], texture=kind[4]) for kind in drawing.kinds(TEXTURES))
    return {scene.caption: scene for scene in every}


def verdict(prompt: str, image: torch.Tensor) -> str:
    """What the reader says of a picture (3, H, W) in [0, 1]: 'as asked', or the parts that it reads otherwise.

    '' for a prompt that is not the caption of a scene, and for a picture of another size than the reader's.
    """
    scene = _captions().get(prompt)
    if scene is None or image.shape != (3, 32, 32):
        return ""
    read = _trained().read(image[None].cpu().float())[0].tolist()
    parts = {name: values[k] for (name, values), k in zip(READ.items(), read, strict=True)}
    other = [f"{name} {part}" for name, part in parts.items() if part != getattr(scene, name)]
    return f"✗ reads as {', '.join(other)}" if other else "✓ reads as asked"


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptTask:
    """A diffusion pipeline, the prompts that it draws, and what tells how well it does.

    `right(images)` gives (N, P) bool: whether each of the P parts of a prompt is to be seen (the pictures are those of
    the prompts, in order). `features(images)` gives (N, F) for the Frechet distance to `real`, pictures (M, 3, H, W) in
    [0, 1]. `parts` names the P parts.
    """

    model: HybridPipeline = field(repr=False)
    prompts: tuple[str, ...] = field(repr=False)
    right: Callable[[torch.Tensor], torch.Tensor] = field(repr=False)
    features: Callable[[torch.Tensor], torch.Tensor] = field(repr=False)
    real: torch.Tensor = field(repr=False)
    parts: tuple[str, ...] = tuple(READ)
    name: str = "own prompts"

    def __post_init__(self) -> None:
        if not self.prompts or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise ValueError("PromptTask.prompts is empty or holds other things than text: give one text or more")
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"PromptTask.model is a {type(self.model).__name__}: give a lab.hybridsd.HybridPipeline")


def scenes(count: int = 144, seed: int = 1, model: HybridPipeline | None = None) -> PromptTask:
    """Prompts never learned from, read back by the trained reader: `count` of them, beside true pictures of the same.

    `model` left out is the embedded pipeline of `data/hybridsd`: cloud, edge, tiny decoder.
    """
    reader = Reader.trained()
    shown = held_out(count, seed)
    labels = rendered(shown)[1]

    def features(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), evaluating(reader):
            return reader.features(x.cpu())

    return PromptTask(
        model=embedded() if model is None else model,
        prompts=tuple(scene.caption for scene in shown),
        right=lambda x: reader.read(x.cpu()) == labels[: len(x)],
        features=features,
        real=rendered(held_out(count, seed + 1000))[0],
        name=f"{count} held-out scenes, seed {seed}",
    )


def embedded(tiny: bool = False, solver: str = "dpm++") -> HybridPipeline:
    """The pipeline of `data/hybridsd`: a cloud and an edge U-Net for 32 x 32 scenes; `tiny` takes the small decoder."""
    folder = store.artefact("hybridsd/model_index.json").parent
    return HybridPipeline.from_pretrained(folder, folder / "edge", folder / "tiny" if tiny else None, solver=solver)
