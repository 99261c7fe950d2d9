"""Hybrid SD in torch, in the paper's order: the split of one trajectory, guidance, what crosses the boundary."""

import torch


def model_of_step(steps: list[int]) -> list[int]:
    """Eq. (1): which model runs each step of a trajectory; [k, N-k] gives model 0 the first k, model 1 the rest."""
    return [model for model, count in enumerate(steps) for _ in range(count)]


def guided(unconditional: torch.Tensor, conditional: torch.Tensor, s: float) -> torch.Tensor:
    """Eq. (2): e = e_u + s (e_c - e_u), classifier-free guidance of scale s."""
    return unconditional + s * (conditional - unconditional)


def guidance_embedding(w: torch.Tensor, dimension: int) -> torch.Tensor:
    """Eq. (3): (N, dimension) sines and cosines of 1000 w, which tell a consistency model its guidance w = s - 1."""
    half = dimension // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = (w * 1000.0)[:, None] * rates[None, :]
    found = torch.cat([torch.sin(angles), torch.cos(angles)], 1)
    return torch.nn.functional.pad(found, (0, dimension % 2))


def int8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. (4): q in -127..127 and the scale (N, C, 1, 1) of each channel, so that x is nearly q times scale."""
    scale = x.float().abs().amax((-2, -1), keepdim=True).clamp_min(1e-12) / 127
    return (x.float() / scale).round().to(torch.int8), scale


def relative_error(x: torch.Tensor, y: torch.Tensor) -> float:
    """Eq. (5): ||x - y|| / ||x||."""
    return float((x.float() - y.float()).norm() / x.float().norm().clamp_min(1e-12))


def cloud_share(k: int, N: int, cloud: float, edge: float, decoder: float) -> tuple[float, float]:
    """Eq. (6): what a picture costs in the cloud and at the edge: k cloud; (N - k) edge + decoder, decoded once."""
    return k * cloud, (N - k) * edge + decoder


def frechet_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """Eq. (7): |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), for features (n, F)."""
    x, y = x.double(), y.double()
    sx, sy = (torch.cov(part.T) for part in (x, y))
    root = _root(sx)
    middle = torch.linalg.eigvalsh(root @ sy @ root).clamp_min(0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + sx.trace() + sy.trace() - 2 * middle)


def noise_loss(student: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Eq. (8): mean of (e_S - e)^2, what the noise was."""
    return (student - noise).square().mean()


def output_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Eq. (9): mean of (e_S - e_T)^2, what the teacher says."""
    return (student - teacher).square().mean()


def feature_loss(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """Eq. (10): the sum over pairs of features of the mean of (f_S - f_T)^2."""
    return torch.stack([(s - t).square().mean() for s, t in zip(student, teacher, strict=True)]).sum()


def _root(s: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(s)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T
