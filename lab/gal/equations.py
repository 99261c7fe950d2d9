"""GAL in torch: the soft mask, the two players' losses, and FISTA on the mask.

B is the baseline, G the generator (a masked copy of B), D the discriminator; `d_b` and `d_g` are D's raw logits for the
output vectors f_b and f_g, so that log D(f) = logsigmoid(d).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def masked(x: Tensor, m: Tensor) -> Tensor:
    """Card (1): each structure's output times its soft mask.

    x (N, C, ...); m (C,) scales the channels, m (1,) the whole of a block's or a branch's output.
    """
    return x * m.view(-1, *[1] * (x.dim() - 2))


def adversarial_value(d_b: Tensor, d_g: Tensor) -> Tensor:
    """Card (2): L_adv = E[log D(f_b)] + E[log(1 - D(f_g))], which D raises and G lowers."""
    return F.logsigmoid(d_b).mean() + F.logsigmoid(-d_g).mean()


def data_loss(f_b: Tensor, f_g: Tensor) -> Tensor:
    """Card (3): L_data, the mean squared distance of the two output vectors over batch and classes."""
    return F.mse_loss(f_g, f_b)


def sparsity(m: Tensor, lam: float) -> Tensor:
    """Card (4): the mask's share of L_reg, lam * ||m||_1."""
    return lam * m.abs().sum()


def regulariser_l1(weights: Sequence[Tensor]) -> Tensor:
    """Card (5): R(W_D) = ||W_D||_1."""
    return torch.stack([w.abs().sum() for w in weights]).sum()


def regulariser_l2(weights: Sequence[Tensor]) -> Tensor:
    """Card (6): R(W_D) = ||W_D||_2^2."""
    return torch.stack([w.square().sum() for w in weights]).sum()


def regulariser_adversarial(d_g: Tensor) -> Tensor:
    """Card (7): AR, R(W_D) = -E[log D(f_g)]: with Card (2) it caps D at 'undecided' on G's outputs."""
    return -F.logsigmoid(d_g).mean()


def generator_loss(d_g: Tensor) -> Tensor:
    """Card (8): what G minimises against D, -E[log D(f_g)] (non-saturating, unit weight)."""
    return -F.logsigmoid(d_g).mean()


def momentum(alpha: float) -> float:
    """Card (9): alpha_{k+1} = (1 + sqrt(1 + 4 alpha_k^2)) / 2."""
    return (1 + (1 + 4 * alpha**2) ** 0.5) / 2


def extrapolate(m: Tensor, m_previous: Tensor, alpha: float) -> Tensor:
    """Card (10): y_{k+1} = m_k + (alpha_k - 1) / alpha_{k+1} * (m_k - m_{k-1})."""
    return m + (alpha - 1) / momentum(alpha) * (m - m_previous)


def shrink(u: Tensor, threshold: Tensor | float) -> Tensor:
    """Card (11): the proximal step, max(0, sign(u) max(|u| - threshold, 0)): small and negative entries become 0."""
    return (u - threshold).clamp(min=0)


def curvature(f_g: Tensor, masks: Sequence[Tensor], mu: float, probes: int = 8) -> list[Tensor]:
    """Card (13): c, by which mu * L_data curves along each mask entry: 2 mu E[(df_g / dm)^2], where f_g is f_b (ours).

    f_g (N, classes) with its graph, which is kept. Hutchinson's estimate: `probes` random signs in the place of f_b's
    error, squared and averaged.
    """
    signs = [torch.randint(0, 2, f_g.shape, device=f_g.device).to(f_g) * 2 - 1 for _ in range(probes)]
    pulls = [torch.autograd.grad(f_g, masks, sign, retain_graph=True) for sign in signs]
    return [2 * mu / f_g.numel() * torch.stack(each).square().mean(0) for each in zip(*pulls, strict=True)]


def output_scale(f_b: Tensor) -> Tensor:
    """Card (12): sigma, the standard deviation of f_b over batch and outputs (ours); 1 where all of them are equal.

    Both players see f_b / sigma and f_g / sigma, so that L_data is the share of f_b's variance that G misses.
    """
    sigma = f_b.std(correction=0)
    return torch.where(sigma > 0, sigma, torch.ones_like(sigma))
