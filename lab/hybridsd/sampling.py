"""One trajectory over several models: one scheduler, set once, whose history is carried from model to model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..core.turns import validate_wanted
from . import equations as eq
from .families import embeds_guidance, predict
from .schedules import calls_before
from .solvers import fresh, stepped

__all__ = ["Conditioning", "GuidedUNet", "doubles", "fresh", "noise_prediction", "placed", "step", "trajectory"]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What every model of a trajectory is conditioned on beside latent and time.

    `text` and `negative` are (B, L, D) embeddings, `added` and `added_negative` a family's further inputs by name (of
    SDXL `text_embeds` and `time_ids`), each (B, ...). Guidance above 1 runs two inputs a picture, except in a model
    that embeds the guidance itself (LCM, Flux).
    """

    text: torch.Tensor
    negative: torch.Tensor | None = None
    guidance: float = 7.5
    added: Mapping[str, torch.Tensor] = field(default_factory=dict)
    added_negative: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: Any, dtype: torch.dtype | None = None) -> "Conditioning":
        """This conditioning on another device or in another precision."""
        negative = None if self.negative is None else self.negative.to(device, dtype)
        extras = ({name: x.to(device, dtype) for name, x in part.items()} for part in (self.added, self.added_negative))
        return Conditioning(self.text.to(device, dtype), negative, self.guidance, *extras)


def placed(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and the precision that a model computes in."""
    weight = next(p for p in model.parameters() if p.is_floating_point())
    return weight.device, weight.dtype


def noise_prediction(unet: Any, latent: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
    """The guided prediction for an input (B, C, h, w) that the scheduler has scaled."""
    if not doubles(unet, cond):
        return predict(unet, latent, t, cond.text, cond.added, cond.guidance)
    assert cond.negative is not None  # or there would be nothing to double
    # one call of 2 B inputs: first those without the prompt, then those with it
    text = torch.cat([cond.negative, cond.text])
    added = {name: torch.cat([cond.added_negative[name], cond.added[name]]) for name in cond.added}
    pred = predict(unet, torch.cat([latent, latent]), t, text, added, cond.guidance)
    unconditional, conditional = pred.chunk(2)
    return eq.guided(unconditional, conditional, cond.guidance)


class GuidedUNet(nn.Module):
    """A U-Net with its conditioning: the guided prediction for (latent, t), as one module whose cost is counted."""

    def __init__(self, unet: nn.Module, cond: Conditioning) -> None:
        super().__init__()
        self.unet, self.cond = unet, cond

    def forward(self, latent: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return noise_prediction(self.unet, latent, t, self.cond)


def doubles(unet: Any, cond: Conditioning) -> bool:
    """Whether guidance makes this model run twice a step."""
    return cond.guidance > 1 and cond.negative is not None and not embeds_guidance(unet)


def trajectory(
    unets: Sequence[nn.Module],
    scheduler: Any,
    latent: torch.Tensor,
    cond: Conditioning,
    steps: Sequence[int],
    generator: torch.Generator | None = None,
    begin: int = 0,
    repaint: Callable | None = None,
) -> Iterator[torch.Tensor]:
    """The latent after each step: `steps[i]` steps of `unets[i]`, in that order, on one schedule of sum(steps).

    `scheduler` comes from `fresh(scheduler, sum(steps))`, or from `restored`, with the index that it stands at as
    `begin`. `latent` is (B, C, h, w). Only schedulers that draw noise (LCM) ask `generator`. What is not to be painted
    is put back after each call by `repaint(scheduler, latent, call)`.
    """
    chosen = eq.model_of_step(list(steps))
    before = calls_before(scheduler, len(chosen))
    for index in range(begin, len(chosen)):
        for call in range(*before[index : index + 2]):
            latent = step(unets[chosen[index]], scheduler, latent, cond, call, generator)
            latent = latent if repaint is None else repaint(scheduler, latent, call)
        yield latent


@torch.no_grad()
def step(
    unet: nn.Module, scheduler: Any, latent: torch.Tensor, cond: Conditioning, index: int, generator: Any = None
) -> torch.Tensor:
    """The latent after the call of timestep `index`; ValueError where it is not finite.

    Nothing is computed for a service's client that has gone: RequestRefused (`core.turns`).
    """
    validate_wanted()
    return stepped(scheduler, lambda x, t: noise_prediction(unet, x, t, cond), latent, index, generator)
