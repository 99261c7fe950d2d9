"""The paper in torch. N pictures, C channels, H x W pixels; C_in what a convolution reads, C_out its filters."""

import torch
from torch import Tensor
from torch.nn import functional as F

# -- the controlling module ------------------------------------------------------------------------------------------


def squeeze(a: Tensor) -> Tensor:
    """Card (1): s_l = GAP(a_l), the mean of each channel over the picture: (N, C, ...) -> (N, C)."""
    return a.flatten(2).mean(2) if a.dim() > 2 else a


def control(s: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> Tensor:
    """Card (2): y_l = W2 ReLU(W1 s_l + b1) + b2, one logit a filter: (N, C_in) -> (N, C_out)."""
    return F.linear(torch.relu(F.linear(s, W1, b1)), W2, b2)


# -- improved SemHash ------------------------------------------------------------------------------------------------


def saturating_sigmoid(g: Tensor) -> Tensor:
    """Card (3): v1 = clip(1.2 sigma(g) - 0.1, 0, 1), exactly 0 and 1 at the ends."""
    return (1.2 * torch.sigmoid(g) - 0.1).clamp(0, 1)


def binarised(g: Tensor) -> Tensor:
    """Card (4): v2 = 1[g > 0]."""
    return (g > 0).to(g.dtype)


def semhash(y: Tensor, eps: Tensor, hard: Tensor) -> Tensor:
    """Card (5): z_l in training, from g = y + eps with eps ~ N(0, 1): v2 where `hard`, else v1.

    The whole gradient goes to v1, also where v2 is given. y, eps (N, C_out); hard is boolean and broadcast to them.
    """
    g = y + eps
    v1 = saturating_sigmoid(g)
    return torch.where(hard, binarised(g) + (v1 - v1.detach()), v1)


def encoding(y: Tensor) -> Tensor:
    """Card (6): z_l = 1[y_l > 0] in use: the architecture encoding, without noise."""
    return binarised(y)


def gated(out: Tensor, z: Tensor) -> Tensor:
    """Card (7): z_l * out_l, each filter's map on or exactly zero: (N, C, ...) times (N, C)."""
    return out * z.reshape(*z.shape, *[1] * (out.dim() - 2))


# -- the losses ------------------------------------------------------------------------------------------------------


def mutual_information_loss(z: Tensor, W: Tensor, t: Tensor) -> Tensor:
    """Card (8): L_mi = CE(W_l z_l, t), t (N,) class numbers: H(t) - L_mi is a lower bound of I(z_l; t)."""
    return F.cross_entropy(F.linear(z, W), t)


def kl_out_z(out: Tensor, z: Tensor) -> Tensor:
    """Card (9): KL(softmax GAP(out_l) || softmax z_l), the mean over N C entries; out_l is not gated."""
    return _kl(squeeze(out), z)


def kl_z_out(out: Tensor, z: Tensor) -> Tensor:
    """Card (10): KL(softmax z_l || softmax GAP(out_l)), the mean over N C entries; out_l is not gated."""
    return _kl(z, squeeze(out))


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax p || softmax q) over channels, summed and divided by N C, as the released code's mean does."""
    log_p, log_q = F.log_softmax(p, 1), F.log_softmax(q, 1)
    return (log_p.exp() * (log_p - log_q)).mean()


def sparsity(z: Tensor) -> Tensor:
    """Card (11): L_s = mean_n ||z_n||_1, the number of filters that are on."""
    return z.abs().sum(1).mean()


def sparsity_at(z: Tensor, r: float) -> Tensor:
    """Card (12): L_s = |mean_n ||z_n||_1 - r C_l|, the distance from the wanted keep ratio r."""
    return (sparsity(z) - r * z.shape[1]).abs()


# -- what a path costs -----------------------------------------------------------------------------------------------


def path_macs(macs: Tensor, on_in: Tensor, on_out: Tensor) -> Tensor:
    """Card (13): sum_l MAC_l on_in_l on_out_l: (N, L) shares of channels read and written that are on -> (N,).

    What is read of a residual stream counts as 1.
    """
    return (macs * on_in * on_out).sum(-1)
