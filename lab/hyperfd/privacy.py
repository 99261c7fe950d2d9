"""What an upload tells of the pictures behind it: attacks on membership, measured, with and without noise."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .layers import Ranker


def auc(members: Tensor, others: Tensor) -> float:
    """How often a member's score is above another's, ties by half: 0.5 is chance, 1 gives all away."""
    apart = members[:, None] - others
    return float((apart > 0).float().mean() + 0.5 * (apart == 0).float().mean())


def membership(ranker: Ranker, uploaded: Tensor, members: Tensor, others: Tensor) -> float:
    """The AUC of an attacker who has the extractor and a client's upload (R, d) and asks of pictures (k, 4, S, S)
    whether they were among the client's: the nearer a picture's own vector to one that was uploaded, the likelier.
    """
    return auc(*(_nearness(ranker, uploaded, x) for x in (members, others)))


def traced(
    ranker: Ranker, uploaded: Tensor, members: Tensor, others: Tensor, known: Tensor, ridge: float = 0.01
) -> float:
    """The AUC of an attacker who also knows pictures of the same kind (k, 4, S, S), none of them the client's.

    The score of a picture's vector z is (m - mu)' S^-1 (z - mu): m is the mean of the uploads' halves that hold means,
    mu and S are mean and covariance of the known pictures' vectors, S + ridge tr(S)/e. What the client's mean has more
    than is usual, its pictures have a little more of: the likelihood ratio, were vectors Gaussian. Uploads have length
    one: m is taken to the length at which it is nearest to mu.
    """
    z, inside, outside = (_own(ranker, x).double() for x in (known, members, others))
    mu, width = z.mean(0), z.shape[1]
    S = torch.cov(z.T)
    S += ridge * S.trace() / width * torch.eye(width, dtype=S.dtype)
    m = uploaded[:, :width].double().mean(0)
    m = m * (m @ mu / (m @ m).clamp_min(1e-12)).clamp_min(0)
    direction = torch.linalg.solve(S, m - mu)
    return auc(*((part - mu) @ direction for part in (inside, outside)))


def linear_probe(vectors: Tensor, truth: Tensor) -> float:
    """The AUC of a linear attacker who was shown a half of (vectors (k, d), truth (k,) of 0 and 1) and is asked of the
    other half: ridge regression. For properties of a data set, such as which of two domains it is.
    """
    half = len(vectors) // 2
    x = torch.cat([vectors, torch.ones(len(vectors), 1)], 1).double()
    y = truth.double() * 2 - 1
    gram = x[:half].T @ x[:half] + 1e-2 * half * torch.eye(x.shape[1], dtype=torch.float64)
    found = x[half:] @ torch.linalg.solve(gram, x[:half].T @ y[:half])
    return auc(found[y[half:] > 0], found[y[half:] < 0])


def _own(ranker: Ranker, x: Tensor) -> Tensor:
    """Each picture's own vector (k, e), of length one: the half of means of a subset of one."""
    with torch.no_grad():
        alone = ranker.extractor(x[:, None])
    return F.normalize(alone[:, : _half(ranker, alone)], dim=-1)


def _half(ranker: Ranker, vectors: Tensor) -> int:
    return vectors.shape[1] // (2 if ranker.extractor.spread else 1)


def _nearness(ranker: Ranker, uploaded: Tensor, x: Tensor) -> Tensor:
    means = F.normalize(uploaded[:, : _half(ranker, uploaded)], dim=-1)
    return (_own(ranker, x) @ means.T).max(1).values
