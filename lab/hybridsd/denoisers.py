"""Who takes the steps of a trajectory: a U-Net of this process, or one that a service elsewhere holds."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from ..core import cost
from ..core.service import ServiceError
from .handoff import Handoff, advance, validate_continued
from .sampling import Conditioning, noise_prediction


class Passage(NamedTuple):
    """A trajectory after some steps, the bytes that it came in, and what the reader must know of the way."""

    state: Handoff
    received: int = 0
    note: str = ""


class Denoiser(Protocol):
    """A model of a trajectory, wherever it is: `is_here` if in this process; `max_images` at a time, None for any."""

    is_here: bool

    @property
    def max_images(self) -> int | None: ...

    def advance(
        self, state: Handoff, until: int, cond: Conditioning, *, zeros: bool = True, int8: bool = False
    ) -> Passage:
        """The trajectory before step `until`.

        `zeros`: whether no negative prompt was given, from which another machine makes the conditioning again. `int8`:
        whether what is sent is in integers.
        """
        ...

    def parameters(self) -> int: ...

    def step_macs(self, latent: torch.Tensor, cond: Conditioning) -> int:
        """MACs of one picture's step, guidance counted."""
        ...


class LocalDenoiser:
    """A U-Net of this process; `is_sender` if it stands for a machine of its own, which sends what it has made."""

    is_here, max_images = True, None

    def __init__(self, unet: nn.Module, scheduler: Any, is_sender: bool) -> None:
        self.unet, self.scheduler, self.is_sender = unet, scheduler, is_sender

    def advance(
        self, state: Handoff, until: int, cond: Conditioning, *, zeros: bool = True, int8: bool = False
    ) -> Passage:
        """The trajectory before step `until`; with `int8` as another machine would read it from the bytes."""
        state = advance(state, self.unet, self.scheduler, cond, until)
        if not (int8 and self.is_sender and 0 < until < state.steps):
            return Passage(state)
        sent = state.to_bytes(int8=True)
        state = Handoff.from_bytes(sent)
        return Passage(state, len(sent), f"hand-off in int8: relative error of the latent {state.error:.2e}")

    def parameters(self) -> int:
        """How many numbers it has learned."""
        return cost.parameters(self.unet)

    @torch.no_grad()
    def step_macs(self, latent: torch.Tensor, cond: Conditioning) -> int:
        """Convolutions, linear layers and the products of attention of a step of the latent (1, C, h, w)."""
        t = torch.tensor(1, device=latent.device)
        return cost.macs(_Guided(self.unet, cond), (latent, t))


class RemoteDenoiser:
    """A U-Net that a service elsewhere holds, asked by a client (`lab.hybridsd.cloud`)."""

    is_here = False

    def __init__(self, client: Any, scheduler: Any) -> None:
        self.client, self.scheduler = client, scheduler

    @property
    def max_images(self) -> int:
        """How many pictures the service takes at a time."""
        return self.client.about()["pictures"]

    def advance(
        self, state: Handoff, until: int, cond: Conditioning, *, zeros: bool = True, int8: bool = False
    ) -> Passage:
        """The hand-off that comes back, and its bytes; ServiceError where none does, or one that goes on from another.

        No step, no request. The service makes the conditioning again from the hand-off's token ids.
        """
        if until == state.index:
            return Passage(state)
        after, received = self.client.half(state, until, int8=int8, zeros=zeros)
        try:
            validate_continued(after, state, until, self.scheduler)
        except ValueError as error:
            raise ServiceError(f"it answered another question: {error}") from error
        return Passage(after, received)

    def parameters(self) -> int:
        """How many numbers it has learned, by the service's own word."""
        return self.client.about()["parameters"]

    def step_macs(self, latent: torch.Tensor, cond: Conditioning) -> int:
        """MACs of one picture's step, by the service's own word."""
        return self.client.about()["macs"][cond.guidance > 1]


class _Guided(nn.Module):
    """A U-Net's step as a module, for counting."""

    def __init__(self, unet: nn.Module, cond: Conditioning) -> None:
        super().__init__()
        self.unet, self.cond = unet, cond

    def forward(self, latent: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return noise_prediction(self.unet, latent, t, self.cond)
