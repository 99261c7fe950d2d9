"""One trajectory over several U-Nets: one scheduler, set once, whose history is carried from model to model."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from . import equations as eq

_REMEMBERS = (
    "model_outputs",
    "lower_order_nums",
    "_step_index",
    "is_scale_input_called",
)  # by one scheduler or another
_FIXED = ("sigmas",)  # given by config and N; they travel because two machines may round them differently


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What every U-Net of a trajectory hears beside latent and time.

    `text` and `negative` are (B, L, D) embeddings, `added` and `added_negative` the SDXL extras (`text_embeds`,
    `time_ids`), each (B, ...). Guidance above 1 runs two inputs a picture, except in a U-Net that embeds the guidance
    itself (`time_cond_proj_dim`).
    """

    text: torch.Tensor
    negative: torch.Tensor | None = None
    guidance: float = 7.5
    added: Mapping[str, torch.Tensor] = field(default_factory=dict)
    added_negative: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: Any, dtype: torch.dtype | None = None) -> "Conditioning":
        """The same on another device or in another precision."""

        def moved(x):
            return None if x is None else x.to(device, dtype)

        extras = ({name: moved(x) for name, x in part.items()} for part in (self.added, self.added_negative))
        return Conditioning(moved(self.text), moved(self.negative), self.guidance, *extras)


def fresh(scheduler: Any, steps: int, device: Any = None) -> Any:
    """A new scheduler of the same config with `steps` timesteps; the one given is not touched."""
    made = type(scheduler).from_config(scheduler.config)
    with warnings.catch_warnings():  # schedulers of diffusers meet numpy 2
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        made.set_timesteps(steps, device=device)
    if len(made.timesteps) != steps:
        raise ValueError(
            f"{type(made).__name__} takes {len(made.timesteps)} model calls for {steps} steps: give one of one call a "
            "step, e.g. DPMSolverMultistepScheduler, DDIMScheduler, EulerDiscreteScheduler, LCMScheduler"
        )
    return made


def noise_prediction(unet: nn.Module, latent: torch.Tensor, t: torch.Tensor, said: Conditioning) -> torch.Tensor:
    """The guided prediction for an input (B, C, h, w) that the scheduler has scaled."""
    embeds = _guidance_size(unet)
    if embeds is not None:
        w = torch.tensor(said.guidance - 1).repeat(len(latent))
        told = eq.guidance_embedding(w, embeds).to(latent.device, latent.dtype)
        return _called(unet, latent, t, said.text, said.added, told)
    if not doubles(unet, said):
        return _called(unet, latent, t, said.text, said.added)
    assert said.negative is not None  # or there would be nothing to double
    text = torch.cat([said.negative, said.text])
    added = {name: torch.cat([said.added_negative[name], said.added[name]]) for name in said.added}
    unconditional, conditional = _called(unet, torch.cat([latent, latent]), t, text, added).chunk(2)
    return eq.guided(unconditional, conditional, said.guidance)


def doubles(unet: nn.Module, said: Conditioning) -> bool:
    """Whether guidance makes this U-Net run twice a step."""
    return said.guidance > 1 and said.negative is not None and _guidance_size(unet) is None


def trajectory(
    unets: Sequence[nn.Module],
    scheduler: Any,
    latent: torch.Tensor,
    said: Conditioning,
    steps: Sequence[int],
    generator: torch.Generator | None = None,
    begin: int = 0,
) -> Iterator[torch.Tensor]:
    """The latent after each step: `steps[i]` steps of `unets[i]`, in that order, on one schedule of sum(steps).

    `scheduler` comes from `fresh(scheduler, sum(steps))`, or from `restored`, with the index that it stands at as
    `begin`. `latent` is (B, C, h, w). Only schedulers that draw noise (LCM) ask `generator`.
    """
    chosen = eq.model_of_step(list(steps))
    for index in range(begin, len(chosen)):
        latent = step(unets[chosen[index]], scheduler, latent, said, index, generator)
        yield latent


@torch.no_grad()
def step(
    unet: nn.Module, scheduler: Any, latent: torch.Tensor, said: Conditioning, index: int, generator: Any = None
) -> torch.Tensor:
    """The latent after step `index` of the scheduler's timesteps."""
    t = scheduler.timesteps[index]
    predicted = noise_prediction(unet, scheduler.scale_model_input(latent, t), t, said)
    draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    return scheduler.step(predicted, t, latent, **draws, return_dict=False)[0]


def solver_state(scheduler: Any) -> dict[str, Any]:
    """What a scheduler remembers of the steps taken: numbers, tensors and lists of tensors (None where not filled)."""
    return {name: getattr(scheduler, name) for name in (*_REMEMBERS, *_FIXED) if hasattr(scheduler, name)}


def restored(scheduler: Any, steps: int, state: Mapping[str, Any], device: Any = None) -> Any:
    """A fresh scheduler that remembers `state`; ValueError if this kind does not keep such a memory."""
    made = fresh(scheduler, steps, device)
    if set(state) != set(solver_state(made)):
        raise ValueError(
            f"the hand-off remembers {', '.join(sorted(state)) or 'nothing'}, a {type(made).__name__} keeps "
            f"{', '.join(sorted(solver_state(made))) or 'nothing'}: take the same scheduler on both sides"
        )
    for name, value in state.items():
        setattr(made, name, [_on(x, device) for x in value] if isinstance(value, list) else _on(value, device, name))
    return made


def draws_noise(scheduler: Any) -> bool:
    """Whether the scheduler asks its generator for noise between the steps."""
    name, config = type(scheduler).__name__, scheduler.config
    return "LCM" in name or "Ancestral" in name or str(config.get("algorithm_type", "")).startswith("sde")


def _on(value: Any, device: Any, name: str = "") -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) and name not in _FIXED else value


def _guidance_size(unet: nn.Module) -> int | None:
    return getattr(unet.config, "time_cond_proj_dim", None)


def _called(unet, latent, t, text, added, told=None) -> torch.Tensor:
    extras = {"timestep_cond": told} if told is not None else {}
    return unet(
        latent, t, encoder_hidden_states=text, added_cond_kwargs=dict(added) or None, return_dict=False, **extras
    )[0]
