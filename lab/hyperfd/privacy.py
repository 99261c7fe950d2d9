"""What an upload tells of the pictures behind it: an attack on membership, measured, with and without noise."""

import torch
from torch import Tensor

from . import equations as eq
from .layers import Ranker


def auc(members: Tensor, others: Tensor) -> float:
    """How often a member's score is above another's, ties by half: 0.5 is chance, 1 gives all away."""
    apart = members[:, None] - others
    return float((apart > 0).float().mean() + 0.5 * (apart == 0).float().mean())


def membership(ranker: Ranker, uploaded: Tensor, members: Tensor, others: Tensor) -> float:
    """The AUC of an attacker who has the extractor and a client's upload (R, d) and asks of pictures (k, 4, S, S)
    whether they were among the client's: the nearer a picture's own vector to one that was uploaded, the likelier.
    """
    with torch.no_grad():
        scores = [_nearness(ranker, uploaded, x) for x in (members, others)]
    return auc(*scores)


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


def _nearness(ranker: Ranker, uploaded: Tensor, x: Tensor) -> Tensor:
    width = uploaded.shape[1] // (2 if ranker.extractor.spread else 1)  # a single picture has a mean, but no spread
    own = eq.meta_vector(ranker.extractor.each(x)[:, None], spread=False)  # type: ignore[operator]
    means = torch.nn.functional.normalize(uploaded[:, :width], dim=-1)
    return (own @ means.T).max(1).values
