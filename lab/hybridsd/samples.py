"""What a pipeline gives: pictures, and how they came about."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import torch


class Crossing(NamedTuple):
    """What crossed the boundary before step `step`: bytes to the cloud, and bytes that came from it."""

    step: int
    sent: int
    received: int


@dataclass(frozen=True, eq=False)
class Samples:
    """Pictures (B, 3, H, W) in [0, 1], their final latents (B, C, h, w), and how they came about.

    `steps` are the steps that each model really took, `trail` the latents after each step (where they were kept),
    `crossings` the bytes that were sent and received at each hand-off, `notes` what the reader must know.
    """

    pictures: torch.Tensor
    latent: torch.Tensor
    steps: tuple[int, ...]
    trail: tuple[torch.Tensor, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sent(self) -> int:
        """The bytes that went to the cloud."""
        return sum(crossing.sent for crossing in self.crossings)

    @property
    def received(self) -> int:
        """The bytes that came from the cloud."""
        return sum(crossing.received for crossing in self.crossings)

    def __repr__(self) -> str:
        b, _, h, w = self.pictures.shape
        return "\n".join([f"{b} picture{'s' * (b > 1)} of {w} x {h}, steps {list(self.steps)}", *self.notes])

    def images(self) -> list[Any]:
        """The pictures as PIL images."""
        from PIL import Image

        pixels = (self.pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3)
        return [Image.fromarray(image) for image in pixels]

    def _repr_png_(self) -> bytes:
        from PIL import Image

        images = self.images()
        row = Image.new("RGB", (sum(image.width for image in images), images[0].height))
        for i, image in enumerate(images):
            row.paste(image, (i * image.width, 0))
        zoom = max(1, 192 // row.height)
        file = BytesIO()
        row.resize((row.width * zoom, row.height * zoom), Image.Resampling.NEAREST).save(file, "png")
        return file.getvalue()
