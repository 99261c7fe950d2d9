"""What an upload gives away of the pictures behind it: attacks on members, on what they show, on what they share.

Measured with and without noise. An attacker has the extractor, for it is offered to all, and public pictures.
"""

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
    ranker: Ranker, uploaded: Tensor, members: Tensor, others: Tensor, public: Tensor, ridge: float = 0.01
) -> float:
    """The AUC of an attacker who also has public pictures of the same kind (k, 4, S, S), none of them the client's.

    The score of a picture's vector z is (m - mu)' S^-1 (z - mu): m is the mean of the uploads' halves that hold means,
    mu and S are mean and covariance of the public pictures' vectors, S + ridge tr(S)/e. What the client's mean has more
    than is usual, its pictures have a little more of: the likelihood ratio, were vectors Gaussian. Uploads have length
    one: m is taken to the length at which it is nearest to mu.
    """
    z, inside, outside = (_single_vectors(ranker, x).double() for x in (public, members, others))  # (k, e) each
    mu, width = z.mean(0), z.shape[1]
    S = torch.cov(z.T)
    S += ridge * S.trace() / width * torch.eye(width, dtype=S.dtype)
    m = uploaded[:, :width].double().mean(0)
    # uploads are of length one: the length that makes m nearest to mu
    m = m * (m @ mu / (m @ m).clamp_min(1e-12)).clamp_min(0)
    direction = torch.linalg.solve(S, m - mu)
    return auc(*((part - mu) @ direction for part in (inside, outside)))


def reconstruction(ranker: Ranker, uploaded: Tensor, mine: Tensor, public: Tensor, ridge: float = 1e-3) -> float:
    """How much nearer to a client's pictures the picture is that an attacker makes of its upload (R, d) than the mean
    of public ones is: 1 - error / error of that mean, of the client's picture (k, 4, S, S) that fares best; 0 is none.

    The decoder is linear, by ridge regression from the public pictures' own vectors to their pixels: a picture that is
    alone behind an upload is decoded as well as its vector tells it.
    """
    v = _single_vectors(ranker, public)  # (k, e)
    mean, start = v.mean(0), public.flatten(1).mean(0)
    centred = v - mean
    gram = centred.T @ centred + ridge * len(v) * torch.eye(v.shape[1])
    decoder = torch.linalg.solve(gram, centred.T @ (public.flatten(1) - start))  # (e, pixels)
    halves = F.normalize(uploaded[:, : v.shape[1]], dim=-1)
    decoded = start + (halves - mean) @ decoder  # (R, pixels)
    errors = (decoded[:, None] - mine.flatten(1)).square().mean(-1)  # (R, k)
    return float((1 - errors / (start - mine.flatten(1)).square().mean(-1)).max())


def told_apart(first: Tensor, second: Tensor, unknown: tuple[Tensor, Tensor]) -> float:
    """The AUC of an attacker who asks which of two properties a client's pictures share, such as little light.

    first, second (k, d) are uploads that the attacker made of public pictures with the one and the other, unknown the
    clients' uploads (j, d) of each; the score lies along the difference of the means.
    """
    direction = first.mean(0) - second.mean(0)
    return auc(*(uploads @ direction for uploads in unknown))


def _single_vectors(ranker: Ranker, x: Tensor) -> Tensor:
    """The vector of each picture alone (k, e), of length one: the half of means of a subset of one."""
    with torch.no_grad():
        alone = ranker.extractor(x[:, None])
    return F.normalize(alone[:, : _half(ranker, alone)], dim=-1)


def _half(ranker: Ranker, vectors: Tensor) -> int:
    return vectors.shape[1] // (2 if ranker.extractor.spread else 1)


def _nearness(ranker: Ranker, uploaded: Tensor, x: Tensor) -> Tensor:
    means = F.normalize(uploaded[:, : _half(ranker, uploaded)], dim=-1)
    return (_single_vectors(ranker, x) @ means.T).max(1).values
