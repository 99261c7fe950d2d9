"""Pictures that are drawn over: from a picture and some noise (img2img), or only where a mask says (inpainting)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch

from .components import scaled


@dataclass(frozen=True, eq=False)
class Edit:
    """What is drawn over: pictures `image` (B or 1, 3, H, W) in [0, 1], how strongly, and where.

    `strength` in (0, 1]: which part of the noise schedule is gone through again; the steps that are asked for are all
    taken. `mask` (B or 1, 1, H, W): 1 where the picture is painted anew, the rest is kept; None for all of it.
    """

    image: torch.Tensor
    strength: float = 0.8
    mask: torch.Tensor | None = None

    def __post_init__(self) -> None:
        image, mask, strength = self.image, self.mask, self.strength
        if not _is_picture(image, 3):
            raise ValueError(f"image={_kind(image)} is not allowed: give pictures (B, 3, H, W) in [0, 1]")
        if not (isinstance(strength, Real) and 0 < strength <= 1):
            raise ValueError(f"strength={strength!r} is not allowed: give a number above 0, at most 1")
        if mask is not None and not (_is_picture(mask, 1) and mask.shape[2:] == image.shape[2:]):
            raise ValueError(f"mask={_kind(mask)} is not allowed: give (B, 1, H, W) in [0, 1], as large as the image")

    def __repr__(self) -> str:
        return f"Edit(image={_kind(self.image)}, strength={self.strength}, mask={_kind(self.mask)})"

    @property
    def size(self) -> tuple[int, int]:
        """The picture's (H, W)."""
        return self.image.shape[2], self.image.shape[3]

    @property
    def is_from_noise(self) -> bool:
        """Whether what is painted begins as nothing but noise."""
        return self.mask is not None and self.strength == 1

    def blanked(self) -> torch.Tensor:
        """The pictures (B or 1, 3, H, W), grey where they are painted anew."""
        return self.image if self.mask is None else torch.where(self.mask >= 0.5, 0.5, self.image)

    def schedule(self, taken: int) -> tuple[int, int]:
        """The first step and the number of all steps (N) of the schedule whose last `taken` steps are gone through."""
        N = math.ceil(taken / self.strength)
        return N - taken, N


class Noise(NamedTuple):
    """The numbers of a seed in their order, each (B, C, h, w): what an encoder's sample takes, and the noise.

    `generator` goes on from there: one, or a list of one a picture.
    """

    sample: torch.Tensor
    noise: torch.Tensor
    generator: Any


def generators(seed: int | Sequence[int]) -> Any:
    """A generator of the seed, or a list of them for a list of seeds."""
    if isinstance(seed, Sequence):
        return [torch.Generator().manual_seed(n) for n in seed]
    return torch.Generator().manual_seed(seed)


def normal(shape: Sequence[int], generator: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers of the shape (B, ...) drawn on the CPU, of a list of generators each picture by its own."""
    if not isinstance(generator, list):
        return torch.randn(shape, generator=generator, dtype=dtype)
    return torch.cat([torch.randn((1, *shape[1:]), generator=g, dtype=dtype) for g in generator])


def edit_noise(seed: int | Sequence[int], shape: Sequence[int]) -> Noise:
    """The noise of an edit, which both sides draw from its seed, so that it never crosses over."""
    generator = generators(seed)
    return Noise(normal(shape, generator), normal(shape, generator), generator)


@torch.no_grad()
def encoded(vae: Any, image: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """The latent (B, C, h, w) of pictures in [0, 1]; `sample` are the normal numbers that a KL autoencoder takes."""
    weight = next(vae.parameters())
    output = vae.encode(2 * image.to(weight) - 1)
    if not hasattr(output, "latent_dist"):  # AutoencoderTiny knows no spread
        return output.latents.expand(len(sample), -1, -1, -1)
    mean, std = (x.expand(len(sample), -1, -1, -1) for x in (output.latent_dist.mean, output.latent_dist.std))
    return scaled(mean + std * sample.to(weight), vae.config)


def latent_mask(mask: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The mask at the latent's size, (B, 1, h, w) bool."""
    small = torch.nn.functional.interpolate((mask >= 0.5).float(), size=tuple(shape[2:]))
    return small.expand(shape[0], -1, -1, -1) > 0


def noised(solver: Any, latent: torch.Tensor, noise: torch.Tensor, call: int) -> torch.Tensor:
    """A picture's latent (B, C, h, w) as noisy as it is before a call of the solver."""
    times = solver.timesteps[call : call + 1]
    noise = noise.to(latent)
    if hasattr(solver, "scale_noise"):
        return solver.scale_noise(latent, times, noise)
    if not hasattr(solver, "add_noise"):
        raise ValueError(f"{type(solver).__name__} cannot draw over a picture: it adds no noise to one; take another")
    return solver.add_noise(latent, noise, times)


class Repaint:
    """Puts back what a mask keeps: after each call, as noisy as the latent then is.

    `image` is the picture's latent (B, C, h, w), `mask` (B, 1, h, w) where it is painted anew.
    """

    def __init__(self, image: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor) -> None:
        self.image, self.mask, self.noise = image, mask, noise

    def __call__(self, solver: Any, latent: torch.Tensor, call: int) -> torch.Tensor:
        is_last = call + 1 == len(solver.timesteps)
        kept = self.image if is_last else noised(solver, self.image, self.noise, call + 1)
        mask = self.mask.to(latent)
        return (1 - mask) * kept.to(latent) + mask * latent


def _is_picture(x: Any, channels: int) -> bool:
    is_image = isinstance(x, torch.Tensor) and x.ndim == 4 and x.shape[1] == channels and x.is_floating_point()
    return is_image and x.numel() > 0 and bool((x >= 0).all() and (x <= 1).all())


def _kind(x: Any) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)[:80]
