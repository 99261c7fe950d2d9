"""PAMS in torch: quantisers with a trainable largest value, its gradient, knowledge transfer, and what is saved.

b bits give n levels a side; a tensor's grid is low, ..., -1, 0, 1, ..., n times alpha / n, where low is -n, or 0 where
the tensor is known to hold nothing negative. `alpha` is a tensor of one entry.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def levels(b: int, signed: bool = True) -> int:
    """Eq. (1): n = 2^(b-1) - 1 levels a side; 2^b - 1 on the unsigned grid behind a ReLU (ours)."""
    return 2 ** (b - 1) - 1 if signed else 2**b - 1


def weight_scale(W: Tensor, n: int, per_channel: bool = False) -> Tensor:
    """Eq. (2): the step of a weight's grid, (max|W| + 1e-8) / n, no gradient through it: (1, ...) or (OC, 1, ...)."""
    largest = W.detach().abs().flatten(1).amax(1) if per_channel else W.detach().abs().max()
    return (largest.view(-1, *[1] * (W.dim() - 1)) + 1e-8) / n


def quantise_weight(W: Tensor, n: int, per_channel: bool = False) -> Tensor:
    """Eq. (3): Q_w(W) = round(W / step) * step; the gradient passes as if nothing had been rounded."""
    step = weight_scale(W, n, per_channel)
    return W + ((W / step).round() * step - W).detach()


def quantise(x: Tensor, alpha: Tensor, n: int, signed: bool = True) -> Tensor:
    """Eq. (4): Q_a(x) = round(c * n / alpha) * alpha / n with c = clamp(x, -alpha, alpha), from 0 if not signed."""
    low = -n if signed else 0
    return (x * (n / alpha)).round().clamp(low, n) * (alpha / n)


def quantise_unclamped(x: Tensor, alpha: Tensor, n: int) -> Tensor:
    """Eq. (5): the same while alpha is still being calibrated: nothing is clamped, codes may exceed n."""
    return (x * (n / alpha)).round() * (alpha / n)


def gradient_x(x: Tensor, alpha: Tensor, signed: bool = True) -> Tensor:
    """Eq. (6): dQ_a / dx: 1 inside the range, 0 outside, and one half where x is exactly at its end."""
    above = ((x < alpha).to(x.dtype) + (x <= alpha)) / 2
    floor = -alpha if signed else torch.zeros_like(alpha)
    return above * ((x > floor).to(x.dtype) + (x >= floor)) / 2


def gradient_alpha(x: Tensor, alpha: Tensor, n: int, signed: bool = True) -> Tensor:
    """Eq. (7): dQ_a / dalpha: sign(x) where x is clamped, (Q_a(x) - x) / alpha inside, for alpha is the scale too."""
    inside = (quantise(x, alpha, n, signed) - x) / alpha
    clamped = torch.where(x > 0, 1.0, -1.0 if signed else 0.0).to(x.dtype)
    outside = (x.abs() >= alpha) if signed else (x >= alpha) | (x < 0)
    return torch.where(outside, clamped, inside)


def statistic(x: Tensor) -> Tensor:
    """Eq. (8): what alpha is calibrated to, the mean over the batch of each picture's max|x|: (N, ...) -> ()."""
    return x.detach().abs().flatten(1).amax(1).mean()


def moving_average(alpha: Tensor, M: Tensor, seen: int, decay: float = 0.9997) -> Tensor:
    """Eq. (9): alpha <- decay * alpha + (1 - decay) * M, each M weighing decay as much as the one after it.

    `seen` of them are in alpha; divided by the sum of all weights (ours), the first value of alpha has none.
    """
    kept = decay * (1 - decay**seen) / (1 - decay ** (seen + 1))
    return kept * alpha + (1 - kept) * M


def spatial_map(F: Tensor) -> Tensor:
    """Eq. (10): S(F), each place's squared features, mean over channels, at unit length: (N, C, H, W) -> (N, HW)."""
    return torch.nn.functional.normalize(F.square().mean(1).flatten(1))


def knowledge_transfer(F_student: Tensor, F_teacher: Tensor) -> Tensor:
    """Eq. (11): L_SKT, the mean over batch and places of (S(F_student) - S(F_teacher))^2; 2 / HW at most."""
    return (spatial_map(F_student) - spatial_map(F_teacher)).square().mean()


def pixel_loss(sr: Tensor, hr: Tensor, peak: float = 1.0) -> Tensor:
    """Eq. (12): L_1, the mean absolute difference on the scale 0..255, of pixels in [0, peak]."""
    return 255 / peak * (sr - hr).abs().mean()


def equivalent_parameters(total: int, quantised: int, b: int) -> float:
    """Eq. (13): P_eq = P - P_q + P_q * b / 32: the count of 32-bit parameters that takes as much room."""
    return total - quantised + quantised * b / 32


def bit_operations(layers: Iterable[tuple[int, int, int]]) -> int:
    """Eq. (14): BitOPs, the sum over layers (multiply-adds, weight bits, activation bits) of their product."""
    return sum(macs * bw * ba for macs, bw, ba in layers)
