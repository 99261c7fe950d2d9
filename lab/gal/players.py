"""D as a player: against the output vectors of B and G it learns to tell them apart, and G has to deceive it."""

from dataclasses import dataclass

from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from . import equations as eq
from .layers import Discriminator

ADVERSARIES = ("AR", "L1", "L2", "none", "off")
WEIGHT = 1e-4  # of the penalties L1 and L2


@dataclass(frozen=True)
class Adversary:
    """D with its optimiser, and the regulariser R(W_D) that holds it back: one of ADVERSARIES."""

    D: Discriminator
    optimiser: SGD
    schedule: StepLR
    regulariser: str

    def learn(self, f_b: Tensor, f_g: Tensor) -> None:
        """One update of D on output vectors (N, classes) that no gradient leaves."""
        self.optimiser.zero_grad(set_to_none=True)
        self.loss(f_b, f_g).backward()
        self.optimiser.step()

    def loss(self, f_b: Tensor, f_g: Tensor) -> Tensor:
        """What D minimises: -L_adv + R(W_D)."""
        d_b, d_g = self.D(f_b), self.D(f_g)  # raw logits, (N, 1)
        weights = [p for p in self.D.parameters() if p.dim() > 1]
        loss = -eq.adversarial_value(d_b, d_g)
        if self.regulariser == "AR":
            return loss + eq.regulariser_adversarial(d_g)
        if self.regulariser == "L1":
            return loss + WEIGHT * eq.regulariser_l1(weights)
        return loss + WEIGHT * eq.regulariser_l2(weights) if self.regulariser == "L2" else loss

    def generator_loss(self, f_g: Tensor) -> Tensor:
        """What G minimises against D as it is now."""
        return eq.generator_loss(self.D(f_g))
