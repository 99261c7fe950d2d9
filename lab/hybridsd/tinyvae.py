"""A tiny autoencoder learns a large one's latents: decoder, encoder and discriminator take turns.

Both sides work on pictures in [0, 1]; latents are the large one's times its scaling factor. There is no pixel loss and
no KL term.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.fields import integer, real, validate
from ..core.training import Stage, Step, descend
from . import equations as eq
from .components import scaled, unscaled
from .distillation import follow

PARTS = ("decoder", "encoder", "discriminator")


@dataclass(frozen=True, kw_only=True)
class TinyVAE:
    """The paper's settings of the tiny autoencoder.

    judge_first: steps in which only the discriminator learns; then every seventh step is the decoder's, the one after
    it the encoder's. adversarial: weight beside the adaptive one. degraded: the most that a latent shrinks before it is
    decoded. recoloured: share of pictures that a colour matrix changes. filter_every: decoder steps from one whose easy
    pixels are painted white to the next; 0 is never.
    """

    steps: int = 100_000
    lr: float = 1e-5
    judge_lr: float = 5e-4
    judge_first: int = 5000
    adversarial: float = 0.5
    degraded: float = 0.25
    recoloured: float = 0.1
    filter_every: int = 3
    decay: float = 0.99

    def __post_init__(self) -> None:
        share = real(0, 1)
        validate(
            self,
            steps=integer(1),
            lr=real(above=0),
            judge_lr=real(above=0),
            judge_first=integer(0),
            adversarial=real(0),
            degraded=share,
            recoloured=share,
            filter_every=integer(0),
            decay=share,
        )


def turn(step: int, judge_first: int = 5000) -> str:
    """Whose step this is: the discriminator's at first, then decoder, encoder and five of the discriminator's."""
    return "discriminator" if step < judge_first else {0: "decoder", 1: "encoder"}.get(step % 7, "discriminator")


def train(
    tiny: Any,
    large: Any,
    judge: Any,
    features: Callable[[torch.Tensor], list[torch.Tensor]],
    batches: Iterable,
    how: TinyVAE = TinyVAE(),
    *,
    average: Any | None = None,
    checkpoint: str | Path | None = None,
    run_id: str = "tiny vae",
    progress: bool = True,
) -> Iterator[Step]:
    """Train `tiny` (an AutoencoderTiny) and `judge` in place; each Step's terms are those of whose turn it was.

    Batches are pictures (B, 3, H, W) in [0, 1], or tuples that begin with them. `large` is the AutoencoderKL, never
    changed. `features` gives the maps that the perceptual loss compares: VGG's, if you have it. `average` follows
    `tiny`.
    """
    optimiser: Any = AlternatingAdamW(tiny, judge, how)  # all that `descend` asks of an optimiser
    state = {"tiny": tiny, "judge": judge, "turns": optimiser} | ({} if average is None else {"average": average})
    stage = Stage(checkpoint, "tiny vae", run_id, **state)
    losses = _Losses(tiny, large, judge, features, how)
    device = next(tiny.parameters()).device

    def terms(batch: Any) -> dict[str, torch.Tensor]:
        images = (batch[0] if isinstance(batch, (tuple, list)) else batch).to(device)
        loss = getattr(losses, optimiser.whose)
        return loss(recoloured(images, how.recoloured), optimiser.rounds)

    for step in descend(terms, batches, optimiser, stage, steps=how.steps, progress=progress):
        if average is not None and turn(step.index, how.judge_first) != "discriminator":
            follow(average, tiny, how.decay)
        yield step


class AlternatingAdamW:
    """Three AdamW as one optimiser: each step is one part's, on a cosine from its rate to 0 over all steps."""

    def __init__(self, tiny: Any, judge: Any, how: TinyVAE) -> None:
        self.how, self.index, self.rounds = how, 0, 0  # rounds: decoder steps taken
        nets = {
            "decoder": (tiny.decoder, how.lr),
            "encoder": (tiny.encoder, how.lr),
            "discriminator": (judge, how.judge_lr),
        }
        self.each = {
            name: torch.optim.AdamW(net.parameters(), lr, weight_decay=0.01) for name, (net, lr) in nets.items()
        }
        self.rates = {name: lr for name, (_, lr) in nets.items()}

    @property
    def whose(self) -> str:
        """The part that learns in the present step."""
        return turn(self.index, self.how.judge_first)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all three."""
        return [group for part in self.each.values() for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all three: a part's loss reaches the others' weights too."""
        for part in self.each.values():
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """Update the part whose turn it is."""
        part = self.each[self.whose]
        part.param_groups[0]["lr"] = self.rates[self.whose] * (1 + math.cos(math.pi * self.index / self.how.steps)) / 2
        part.step()
        self.rounds += self.whose == "decoder"
        self.index += 1

    def state_dict(self) -> dict[str, Any]:
        """Of the three optimisers, and where the turns stand."""
        return {name: part.state_dict() for name, part in self.each.items()} | {"at": [self.index, self.rounds]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for name, part in self.each.items():
            part.load_state_dict(state[name])
        self.index, self.rounds = state["at"]


class _Losses:
    """The loss of each part, by its name."""

    def __init__(self, tiny: Any, large: Any, judge: Any, features: Any, how: TinyVAE) -> None:
        self.tiny, self.large, self.judge, self.features, self.how = tiny, large, judge, features, how

    def decoder(self, x: torch.Tensor, rounds: int) -> dict[str, torch.Tensor]:
        if self.how.filter_every and rounds % self.how.filter_every == self.how.filter_every - 1:
            x = self.hard_pixels(x)
        fake = self.decoded(self.latent(x))
        perceptual = eq.perceptual_loss(self.features(fake), self.features(x))
        adversarial = -self.judge(fake).mean()
        last = [m for m in self.tiny.decoder.modules() if isinstance(m, nn.Conv2d)][-1].weight
        weight = self.how.adversarial * eq.adaptive_weight(perceptual, adversarial, last)
        return {"perceptual": perceptual, "adversarial": weight * adversarial}

    def encoder(self, x: torch.Tensor, rounds: int) -> dict[str, torch.Tensor]:
        return {"latent": eq.latent_loss(self.tiny.encoder(2 * x - 1), self.latent(x))}

    def discriminator(self, x: torch.Tensor, rounds: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            fake = self.decoded(self.latent(x))
        return {"hinge": eq.hinge_loss(self.judge(x), self.judge(fake))}

    @torch.no_grad()
    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """A sample of the large encoder's, scaled, (N, C, h, w)."""
        return scaled(self.large.encode(2 * x - 1).latent_dist.sample(), self.large.config)

    def decoded(self, z: torch.Tensor) -> torch.Tensor:
        """The tiny decoder's picture of a latent that is made smaller at random."""
        kept = 1 - self.how.degraded * torch.rand(len(z), 1, 1, 1, device=z.device)
        return (self.tiny.decoder(z * kept) + 1) / 2

    @torch.no_grad()
    def hard_pixels(self, x: torch.Tensor) -> torch.Tensor:
        """The pictures with every pixel white at which the two decoders differ less than at their median pixel."""
        z = self.latent(x)
        theirs = (self.large.decode(unscaled(z, self.large.config)).sample + 1) / 2
        error = ((self.tiny.decoder(z) + 1) / 2 - theirs).abs().mean(1, keepdim=True)
        middle = error.flatten(1).median(1).values.view(-1, 1, 1, 1)
        return torch.where(error < middle, torch.ones_like(x), x)


def recoloured(x: torch.Tensor, share: float) -> torch.Tensor:
    """A share of the pictures with colours mixed by a random matrix near the identity, within [0, 1]."""
    mix = torch.eye(3, device=x.device) + 0.2 * torch.randn(len(x), 3, 3, device=x.device)
    mixed = torch.einsum("nij,njhw->nihw", mix, x).clamp(0, 1)
    return torch.where((torch.rand(len(x), device=x.device) < share).view(-1, 1, 1, 1), mixed, x)
