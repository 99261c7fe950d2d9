"""Hybrid SD in torch, in the paper's order: the split of one trajectory, guidance, what crosses the boundary.

Latents are (B, C, h, w) with h, w an eighth of the picture's sides in Stable Diffusion. The numbers are the card's own.
"""

import torch


def model_of_step(steps: list[int]) -> list[int]:
    """Card (1): which model runs each step of a trajectory; [k, N-k] gives model 0 the first k, model 1 the rest."""
    return [model for model, count in enumerate(steps) for _ in range(count)]


def guided(unconditional: torch.Tensor, conditional: torch.Tensor, s: float) -> torch.Tensor:
    """Card (2): e = e_u + s (e_c - e_u), classifier-free guidance of scale s; all (B, C, h, w)."""
    return unconditional + s * (conditional - unconditional)


def guidance_embedding(w: torch.Tensor, dimension: int) -> torch.Tensor:
    """Card (3): (N, dimension) sines and cosines of 1000 w, which tell a consistency model its guidance w = s - 1."""
    half = dimension // 2
    # rates fall from 1 to 1/10,000, as in the embedding of time
    rates = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = (w * 1000.0)[:, None] * rates[None, :]  # (N, half)
    embedding = torch.cat([torch.sin(angles), torch.cos(angles)], 1)
    return torch.nn.functional.pad(embedding, (0, dimension % 2))  # an odd dimension ends in a zero


def int8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Card (4): q in -127..127 and the scale (B, C, 1, 1) of each channel, so that x is nearly q times scale."""
    # a channel of zeros would divide by zero
    scale = x.float().abs().amax((-2, -1), keepdim=True).clamp_min(1e-12) / 127
    return (x.float() / scale).round().to(torch.int8), scale


def relative_error(x: torch.Tensor, y: torch.Tensor) -> float:
    """Card (5): ||x - y|| / ||x|| over all entries."""
    return float((x.float() - y.float()).norm() / x.float().norm().clamp_min(1e-12))


def cloud_share(k: int, N: int, cloud: float, edge: float, decoder: float) -> tuple[float, float]:
    """Card (6): what a picture costs in the cloud and at the edge: k cloud; (N - k) edge + decoder, decoded once."""
    return k * cloud, (N - k) * edge + decoder


def frechet_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """Card (7): |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), for features (n, F) and (m, F)."""
    x, y = x.double(), y.double()  # covariances of few samples are nearly singular
    sx, sy = (torch.cov(features.T) for features in (x, y))  # (F, F)
    root = _root(sx)
    # S_x S_y is not symmetric; S_x^(1/2) S_y S_x^(1/2) is, and has the same eigenvalues
    middle = torch.linalg.eigvalsh(root @ sy @ root).clamp_min(0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + sx.trace() + sy.trace() - 2 * middle)


def noise_loss(student: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Card (8): mean of (e_S - e)^2, against the noise that was added."""
    return (student - noise).square().mean()


def output_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Card (9): mean of (e_S - e_T)^2, against what the teacher predicts."""
    return (student - teacher).square().mean()


def feature_loss(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """Card (10): the sum over pairs of features of the mean of (f_S - f_T)^2; the features of a pair have one shape."""
    return torch.stack([(s - t).square().mean() for s, t in zip(student, teacher, strict=True)]).sum()


def significance(before: torch.Tensor, after: torch.Tensor) -> float:
    """Card (11): ||m_0 - m_1|| + ||s_0 - s_1||, mean and deviation of each position over latents (n, C, h, w)."""
    means, deviations = (before.mean(0) - after.mean(0)).norm(), (before.std(0) - after.std(0)).norm()
    return float(means + deviations)


def boundary_scalings(t: torch.Tensor, data: float = 0.5, scaling: float = 10.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Card (12): c_skip = d^2 / ((10 t)^2 + d^2) and c_out = 10 t / sqrt((10 t)^2 + d^2), so that f(x, 0) = x."""
    scaled = scaling * t
    return data**2 / (scaled**2 + data**2), scaled / (scaled**2 + data**2).sqrt()


def ddim_step(x0: torch.Tensor, e: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Card (13): sqrt(a) x_0 + sqrt(1 - a) e, one step of DDIM to the noise level `a`, (B, 1, 1, 1)."""
    return a.sqrt() * x0 + (1 - a).sqrt() * e


def pseudo_huber(x: torch.Tensor, y: torch.Tensor, c: float = 0.001) -> torch.Tensor:
    """Card (14): mean of sqrt((x - y)^2 + c^2) - c."""
    return ((x - y).square() + c**2).sqrt().mean() - c


def perceptual_loss(fake: list[torch.Tensor], real: list[torch.Tensor]) -> torch.Tensor:
    """Card (15): over maps (N, F, h, w) of unit length at each position, the sum of mean squared distances."""
    unit = torch.nn.functional.normalize
    return torch.stack([(unit(f) - unit(r)).square().sum(1).mean() for f, r in zip(fake, real, strict=True)]).sum()


def adaptive_weight(perceptual: torch.Tensor, adversarial: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Card (16): w = ||grad L_perceptual|| / (||grad L_adversarial|| + 1e-4) at weights `last`, within 0..1e4."""
    # the graph is kept: both losses are differentiated again for the update
    lengths = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (perceptual, adversarial)]
    return (lengths[0] / (lengths[1] + 1e-4)).clamp(max=1e4).detach()


def hinge_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Card (17): (mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))) / 2, what the discriminator minimises."""
    return ((1 - real).relu().mean() + (1 + fake).relu().mean()) / 2


def latent_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Card (18): the sum of |z_S - z_T| over a latent, mean over the batch."""
    return (student - teacher).abs().sum() / len(student)


def velocity(x: torch.Tensor, noise: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Card (19): v = sqrt(a) e - sqrt(1 - a) x, what a U-Net of 'v_prediction' gives instead of the noise e."""
    return a.sqrt() * noise - (1 - a).sqrt() * x


def mixed(x: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Card (20): (1 - s) x + s e, a flow's latent where noise is the share s of it, (B, 1, 1, 1)."""
    return (1 - sigma) * x + sigma * noise


def flow(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Card (21): u = e - x, what a U-Net of 'flow_prediction' gives: where the noise lies, seen from the picture."""
    return noise - x


def shifted_share(u: torch.Tensor, shift: float) -> torch.Tensor:
    """Card (22): s = a u / (1 + (a - 1) u), a flow's share of noise at time u in 0..1, shifted by a for its size."""
    return shift * u / (1 + (shift - 1) * u)


def _root(s: torch.Tensor) -> torch.Tensor:
    """The symmetric square root of a positive semi-definite matrix (F, F)."""
    values, vectors = torch.linalg.eigh(s)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T
