"""The models of a trajectory, in this process or elsewhere: each takes it on, in its own place and precision."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ..core import cost
from ..core.service import ServiceError
from . import wire
from .handoff import Handoff, advance, validate_continued
from .sampling import Conditioning, GuidedUNet, placed


class Passage(NamedTuple):
    """A trajectory after some steps, the bytes to the cloud and from it, and what the reader must know of the way."""

    state: Handoff
    sent: int = 0
    received: int = 0
    note: str = ""


class LocalDenoiser:
    """A model of this process.

    `is_sender` if it stands for a machine of its own, which sends what it has made; `is_cloud` if that is the cloud.
    """

    is_here, max_images = True, None

    def __init__(self, unet: nn.Module, scheduler: Any, is_sender: bool, is_cloud: bool = False) -> None:
        self.unet, self.scheduler, self.is_sender, self.is_cloud = unet, scheduler, is_sender, is_cloud

    def advance(
        self, state: Handoff, until: int, cond: Conditioning, *, zeros: bool = True, int8: bool = False
    ) -> Passage:
        """The trajectory before step `until`; with `int8` as another machine would read it from the bytes.

        It is cast to where this model computes. No step, no cast.
        """
        if until == state.index:
            return Passage(state)
        where, came = placed(self.unet), state.latent.dtype
        state = replace(state, error=0.0).to(*where)
        note = _cast_note(came, state)
        state = advance(state, self.unet, self.scheduler, cond.to(*where), until)
        if not (int8 and self.is_sender and 0 < until < state.steps):
            return Passage(state, note=note)
        sent = replace(state, error=0.0).to_bytes(int8=True)
        state = Handoff.from_bytes(sent)
        notes = [note, f"hand-off in int8: relative error of the latent {state.error:.2e}"]
        sizes = (0, len(sent)) if self.is_cloud else (len(sent), 0)
        return Passage(state, *sizes, "; ".join(filter(None, notes)))

    @property
    def dtype(self) -> torch.dtype:
        """The precision that it computes in."""
        return placed(self.unet)[1]

    @torch.no_grad()
    def size(self, latent: torch.Tensor, cond: Conditioning) -> tuple[int, int]:
        """Its parameters, and the MACs of one step of the latent (1, C, h, w).

        Convolutions, linear layers and the products of attention count, and both inputs of guidance.
        """
        where = placed(self.unet)
        inputs = latent.to(*where), torch.tensor(1, device=where[0])
        return cost.parameters(self.unet), cost.macs(GuidedUNet(self.unet, cond.to(*where)), inputs)


class RemoteDenoiser:
    """A U-Net that a service elsewhere holds, asked by a client (`lab.hybridsd.cloud`)."""

    is_here = False

    def __init__(self, client: Any, scheduler: Any) -> None:
        self.client, self.scheduler = client, scheduler

    @property
    def max_images(self) -> int:
        """How many pictures the service takes at a time."""
        return self.client.about()["pictures"]

    @property
    def dtype(self) -> torch.dtype | None:
        """The precision that the service computes in, None where it does not say."""
        return wire.DTYPES.get(str(self.client.about().get("dtype")))

    def advance(
        self, state: Handoff, until: int, cond: Conditioning, *, zeros: bool = True, int8: bool = False
    ) -> Passage:
        """The hand-off that comes back, and the bytes of both ways.

        ServiceError where none comes, or one that goes on from another. No step, no request. The service makes the
        conditioning again from the hand-off's token ids.
        """
        if until == state.index:
            return Passage(state)
        after, sent, received = self.client.half(state, until, int8=int8, zeros=zeros)
        try:
            validate_continued(after, state, until, self.scheduler)
        except ValueError as error:
            raise ServiceError(f"it answered another question: {error}") from error
        return Passage(after, sent, received, _cast_note(state.latent.dtype, after))

    def size(self, latent: torch.Tensor, cond: Conditioning) -> tuple[int, int]:
        """Its parameters, and the MACs of one picture's step, as the service counts them."""
        facts = self.client.about()
        return facts["parameters"], facts["macs"][cond.guidance > 1]


def _cast_note(came: torch.dtype, state: Handoff) -> str:
    """What the reader must know of a latent that came in another precision than this hand-off's."""
    kinds = [str(dtype).removeprefix("torch.") for dtype in (came, state.latent.dtype)]
    if kinds[0] == kinds[1] or not state.error:
        return ""
    return f"latent cast from {kinds[0]} to {kinds[1]}: relative error {state.error:.2e}"
