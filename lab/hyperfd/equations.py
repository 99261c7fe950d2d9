"""HyperFD in equations. The paper's own could not be read: the numbers and the forms are this card's.

Shapes: m pictures a subset, R subsets a data set, d numbers a meta-vector, n configurations, scores s, results y.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

MEAN = (-2.5, 1.5, -0.2, 0.3, -2.7, 0.07)  # of the six features of Card (1a), about that of the embedded domains
STD = (0.7, 0.7, 0.4, 0.15, 1.0, 0.06)


def meta_vector(z: Tensor, spread: bool = True) -> Tensor:
    """Card (1): v = [mean_m z, std_m z] / ‖·‖, of pictures' vectors z (..., m, e); (..., 2e), or (..., e) of means."""
    mean = z.mean(-2)
    if not spread:
        return F.normalize(mean, dim=-1)
    deviation = ((z - mean.unsqueeze(-2)).square().mean(-2) + 1e-8).sqrt()
    return F.normalize(torch.cat([mean, deviation], -1), dim=-1)


def handcrafted_features(x: Tensor) -> Tensor:
    """Card (1a): six fixed features (n, 6) of pictures x (n, 4, S, S), colours and filled boxes in [-1, 1].

    log2 of a face's side over S (4 area / perimeter of the boxes), log2 of 1/2 + the number of faces of that side,
    brightness, contrast, log2 of the mean Laplacian, colourfulness; each standardised by MEAN and STD.
    """
    mask, grey = (x[:, 3] + 1) / 2, x[:, :3].mean(1)  # both (n, S, S); the mask is 1 in boxes, 0 elsewhere
    perimeter = mask.diff(dim=1).abs().sum((1, 2)) + mask.diff(dim=2).abs().sum((1, 2))  # (n,) px
    side = (4 * mask.sum((1, 2)) / perimeter.clamp_min(1)).clamp_min(1)  # of a square: 4 side² / (4 side); (n,) px
    inner = grey[:, 1:-1, 1:-1]  # without the border, which lacks a neighbour
    laplacian = 4 * inner - grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1] - grey[:, 1:-1, :-2] - grey[:, 1:-1, 2:]
    brightness = grey.mean((1, 2))
    contrast = ((grey - brightness[:, None, None]).square().sum((1, 2)) / (grey[0].numel() - 1)).sqrt()
    features = [
        (side / x.shape[-1]).log2(),
        (mask.sum((1, 2)) / side**2 + 0.5).log2(),  # area in faces of that side; 1/2 keeps none of them finite
        brightness,
        contrast,
        (laplacian.abs().mean((1, 2)) + 0.01).log2(),
        (x[:, :3] - grey[:, None]).abs().mean((1, 2, 3)),
    ]
    return (torch.stack(features, 1) - torch.tensor(MEAN)) / torch.tensor(STD)


def joined(v: Tensor, c: Tensor, vc: Tensor) -> Tensor:
    """Card (2): the scorer's input [v, c, vc ⊙ c] (R, n, d + 2e) for a data set v (R, d) and configurations c, the same
    (n, e) for each subset or (R, n, e); vc (R, e) is v projected to the configurations' width. The score is linear in
    the configuration alone, plus the scorer's of this."""
    R, n = len(v), c.shape[-2]
    return torch.cat([v[:, None].expand(R, n, -1), c.expand(R, n, -1), vc[:, None] * c], -1)


def relevance(y: Tensor, scale: float = 5.0) -> Tensor:
    """Card (3): r = scale · (y − min y) / (max y − min y), within one data set's results."""
    low, high = y.min(), y.max()
    return scale * (y - low) / (high - low if high > low else 1.0)


def ranking_loss(s: Tensor, r: Tensor) -> Tensor:
    """Card (4): Σ_{r_i > r_j} |ΔNDCG_ij| · log(1 + e^{−(s_i − s_j)}), of lists s, r (..., n): LambdaRank as a loss, its
    swaps' worth |ΔNDCG_ij| = |2^{r_i} − 2^{r_j}| |1/log2(1+p_i) − 1/log2(1+p_j)| / Z held fixed at the present ranks p.
    """
    with torch.no_grad():
        p = 1 + s.argsort(descending=True, stable=True).argsort().to(s.dtype)  # ranks from 1, (..., n)
        d = 1 / torch.log2(1 + p)
        gain = 2**r - 1
        Z = (gain.sort(descending=True).values * d.sort(descending=True).values).sum(-1).clamp_min(1e-9)
        change = ((gain[..., :, None] - gain[..., None, :]) * (d[..., :, None] - d[..., None, :])).abs()
        weight = change / Z[..., None, None] * (r[..., :, None] > r[..., None, :])  # (..., n, n), each pair once
    return (weight * F.softplus(s[..., None, :] - s[..., :, None])).sum((-1, -2))


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.3) -> Tensor:
    """Card (5): mean over negatives of max(0, ‖a − p‖ − ‖a − n‖ + margin): two subsets of a data set (d,) are nearer to
    each other than to another data set's vectors (k, d)."""
    near, far = (anchor - positive).norm(), (anchor - negative).norm(dim=1)  # a number, (k,)
    return F.relu(near - far + margin).mean()


def path_importance(omega: Tensor, gradient: Tensor, change: Tensor) -> Tensor:
    """Card (6): ω ← ω − g · Δθ: what a weight's way so far has taken off the loss."""
    return omega - gradient * change


def consolidated(Omega: Tensor, omega: Tensor, change: Tensor, damping: float = 1e-3) -> Tensor:
    """Card (7): Ω ← Ω + max(0, ω) / ((θ − θ*)² + ξ), at a task's end; θ* is where the task began."""
    return Omega + omega.clamp_min(0) / (change.square() + damping)


def synaptic_penalty(
    Omega: Sequence[Tensor], now: Sequence[Tensor], then: Sequence[Tensor], strength: float = 0.1
) -> Tensor:
    """Card (8): c · Σ_k Ω_k (θ_k − θ*_k)²: weights that mattered to earlier tasks stay near where these left them."""
    penalties = [(o * (a - b).square()).sum() for o, a, b in zip(Omega, now, then, strict=True)]  # one a tensor
    return strength * torch.stack(penalties).sum()


def transformation(old: Tensor, new: Tensor, ridge: float = 1e-2) -> Tensor:
    """Card (9): τ(v) = v + v D with D = argmin ‖old + old D − new‖² + λ ‖D‖²; old, new (k, d) are the same subsets seen
    by two versions of the extractor. D (d, d) is zero where nothing has changed: the nearest map to the identity."""
    # normal equations; the ridge grows with k, so that λ means the same for few subsets and for many
    gram = old.T @ old + ridge * len(old) * torch.eye(old.shape[1], dtype=old.dtype)  # (d, d)
    return torch.linalg.solve(gram, old.T @ (new - old))


def transformed(v: Tensor, D: Tensor) -> Tensor:
    """Card (10): τ(v) = (v + v D) / ‖·‖, of stored meta-vectors (..., d)."""
    return F.normalize(v + v @ D, dim=-1)


def transformation_error(old: Tensor, new: Tensor, D: Tensor) -> Tensor:
    """Card (11): mean of 1 − cos(τ(old), new) over subsets that took no part in Card (9)."""
    return (1 - F.cosine_similarity(transformed(old, D), new, dim=-1)).mean().clamp_min(0)


def subset_scores(s: Tensor) -> tuple[Tensor, Tensor]:
    """Card (12): the mean over R subsets of their scores (R, n), and their standard deviation; both (n,)."""
    return s.mean(0), s.std(0, correction=0)  # correction=0: one subset has a spread of 0, not NaN


def private(v: Tensor, clip: float, noise: float, draw: Tensor) -> Tensor:
    """Card (13): v · min(1, clip / ‖v‖) + noise · clip · N(0, 1), what leaves the client; `draw` is the sample of N."""
    shrink = (clip / v.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1)  # (R, 1), 1 for what is short enough
    return v * shrink + noise * clip * draw


def clipped_moments(z: Tensor, clip: float, spread: bool = True) -> Tensor:
    """Card (15): q = mean_n [u, u² / C] with u = z · min(1, C / ‖z‖), of all of an owner's pictures z (n, e): (2e,), or
    (e,) without spread. No picture's part is longer than √2 C, or C: another picture in its place moves q by at most
    2√2 C / n, or 2 C / n."""
    u = z * (clip / z.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
    return (torch.cat([u, u.square() / clip], -1) if spread else u).mean(-2)


def released(q: Tensor, clip: float, n: int, noise: float, draw: Tensor, spread: bool = True) -> Tensor:
    """Card (16): v = [μ, √max(0, C s − μ²)] / ‖·‖, with [μ, s] = q + noise · Δ · N(0, 1) and Δ what one picture moves q
    by, Card (15); without spread v = μ / ‖μ‖. `draw` is the sample of N, noise the accountant's multiplier."""
    noisy = q + noise * 2 * (2 if spread else 1) ** 0.5 * clip / n * draw
    if not spread:
        return F.normalize(noisy, dim=-1)
    mean, second = noisy.chunk(2, -1)
    return F.normalize(torch.cat([mean, ((clip * second - mean.square()).clamp_min(0) + 1e-8).sqrt()], -1), dim=-1)


def regret(y: Tensor, chosen: list[int]) -> Tensor:
    """Card (14): max y − max over the chosen configurations of y, in the results' unit."""
    return y.max() - y[chosen].max()
