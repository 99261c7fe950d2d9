"""Prompts that a pipeline samples step by step, in the cloud and at the edge."""

from collections.abc import Sequence
from typing import Any

import torch

from . import families
from .denoisers import Passage
from .editing import Edit, edit_noise, encoded, latent_mask, noised, normal
from .handoff import Handoff, begin
from .solvers import first_sigma, fresh


class HybridSampler:
    """Prompts that a pipeline samples in the cloud and at the edge: encoded once, each trajectory from the same noise.

    `pipeline` is a HybridPipeline. `tokens` are the prompts' ids by name, (B, L) each, `cond` is what every model is
    conditioned on, `scheduler` the pipeline's with the schedule of the pictures' `size`, (height, width). A service
    elsewhere that fails is a ServiceError. With an `edit` a picture is drawn over.
    """

    def __init__(
        self,
        pipeline: Any,
        prompts: Sequence[str],
        guidance: float,
        seed: int | list[int] = 0,
        negative: str | Sequence[str] | None = None,
        int8: bool = False,
        *,
        size: tuple[int, int] | None = None,
        edit: Edit | None = None,
    ) -> None:
        self.pipeline, self.count, self.seed, self.edit = pipeline, len(prompts), seed, edit
        self.options = {"zeros": negative is None, "int8": int8}
        self.sides = pipeline.latent_sides(size if edit is None else edit.size)
        self.scheduler = pipeline.scheduler_at(self.sides)
        self.denoisers = pipeline.denoisers_of(self.scheduler)
        self.tokens = pipeline.text.tokens(prompts, negative or "")
        self.cond = pipeline.conditioning(self.tokens, guidance, negative is None, self.sides)

    def noise(self, N: int) -> tuple[torch.Tensor, torch.Generator]:
        """The latent (B, C, h, w) before the first of N steps, and the generator that goes on from it."""
        return self.pipeline.noise(self.count, self.seed, N, self.sides)

    def start(self, N: int) -> Handoff:
        """The hand-off before the first of N steps."""
        if self.edit is not None:
            return self._edited(self.edit, N)
        latent, generator = self.noise(N)
        context: dict[str, Any] = {"prompt": self.tokens, "seed": self.seed, "generator": generator}
        return begin(self.scheduler, latent, N, self.cond.guidance, **context)

    def _edited(self, edit: Edit, taken: int) -> Handoff:
        """The hand-off before the first of so many steps over a picture, which are the last of its schedule."""
        first, N = edit.schedule(taken)
        noise, (device, dtype) = edit_noise(self.seed, self._shape()), self.pipeline.precision
        is_painted = families.paints(self.pipeline.unets[0])
        if is_painted and edit.mask is None:
            raise ValueError("this U-Net paints where a mask says: give the edit a mask, (B, 1, H, W) of ones for all")
        # of a picture that is shown to the model, a start from noise asks no number for the picture
        begun = noise.sample if is_painted and edit.is_from_noise else noise.noise

        def latent_of(image: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
            # as it would lie after a passage in bytes: kernels of another layout round otherwise
            return encoded(self.pipeline.vae, image, sample).to(device, dtype).contiguous()

        image = latent_of(edit.image, noise.sample)
        self.scheduler = self.pipeline.scheduler_at(self.sides, first)
        self.denoisers = self.pipeline.denoisers_of(self.scheduler)
        solver = fresh(self.scheduler, N, device)
        if edit.is_from_noise:
            latent = begun.to(image) * first_sigma(solver)
        else:
            latent = noised(solver, image, begun, first * getattr(solver, "order", 1))
        if is_painted:
            sample = noise.noise if edit.is_from_noise else normal(self._shape(), noise.generator)
            image = latent_of(edit.blanked(), sample)
        painting = {}
        if edit.mask is not None:
            painting = {"image": image, "mask": latent_mask(edit.mask, image.shape).to(device)}
        context: dict[str, Any] = {"prompt": self.tokens, "seed": self.seed, "generator": noise.generator}
        return begin(self.scheduler, latent.to(image), N, self.cond.guidance, painting=painting, **context)

    def _shape(self) -> tuple[int, ...]:
        return self.count, families.channels(self.pipeline.unets[0]), *self.sides

    def advance(self, state: Handoff, until: int, model: int) -> Passage:
        """The trajectory before step `until`, its steps taken by one of the models, and how it came."""
        return self.denoisers[model].advance(state, until, self.cond, **self.options)

    def cloud(self, state: Handoff, until: int) -> Handoff:
        """The trajectory before step `until`, its steps taken by the first model."""
        return self.advance(state, until, 0).state

    def edge(self, state: Handoff, until: int) -> Handoff:
        """The trajectory before step `until`, its steps taken by the last model."""
        return self.advance(state, until, -1).state
