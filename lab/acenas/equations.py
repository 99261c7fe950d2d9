"""AceNAS in equations, in the order of the released code; the numbers are this card's own.

Shapes: M architectures in a batch, G nodes a graph, F features a node. Data flows from u to v where A[u, v] = 1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def normalised(A: Tensor) -> Tensor:
    """Eq. (1): Â[u, v] = (A + I)[u, v] / √(outdeg(u) · indeg(v)), degrees with the self-loops; (..., G, G)."""
    A = A + torch.eye(A.shape[-1]).to(A)
    outdeg, indeg = A.sum(-1, keepdim=True), A.sum(-2, keepdim=True)
    return A / (outdeg * indeg).sqrt()


def graph_convolution(H: Tensor, Â: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Eq. (2): ReLU(Âᵀ H W + b): each node sums what flows into it. (M, G, F), (M, G, G), (F, F'), (F',)."""
    return F.relu(Â.transpose(-1, -2) @ (H @ W) + b)


def sort_pool(H: Tensor, nodes: Tensor, k: int = 10) -> Tensor:
    """Eq. (3): inside each node sort the features upwards; the k nodes of the largest last feature, downwards.

    H (M, G, F), nodes (M, G) bool: which nodes are there. Gives (M, k · F); smaller graphs are filled up with zeros.
    """
    H = H.sort(dim=-1).values
    largest = H[..., -1].masked_fill(~nodes, -torch.inf)
    order = largest.argsort(descending=True, stable=True)[..., :k]
    kept = torch.gather(H, 1, order[..., None].expand(-1, -1, H.shape[-1])) * torch.gather(nodes, 1, order)[..., None]
    return F.pad(kept, (0, 0, 0, k - kept.shape[1])).flatten(1)


def pretraining_loss(predicted: Tensor, z: Tensor) -> Tensor:
    """Eq. (4): Σ over heads of the mean squared error on z-scored weak labels; both (M, heads)."""
    return (predicted - z).square().mean(0).sum()


def relevance(y: Tensor, lo: float, hi: float, scale: float = 20.0) -> Tensor:
    """Eq. (5): r = scale · clip((y − lo) / (hi − lo), 0, 1); lo is a low quantile of known labels, hi their largest."""
    return scale * ((y - lo) / (hi - lo if hi > lo else 1.0)).clamp(0, 1)


def gain(r: Tensor) -> Tensor:
    """Eq. (6): g(r) = 2^r − 1."""
    return 2**r - 1


def discount(p: Tensor) -> Tensor:
    """Eq. (7): d(p) = 1 / log2(1 + p) at rank p = 1, 2, ..."""
    return 1 / torch.log2(1 + p)


def dcg(r: Tensor, k: int | None = None) -> Tensor:
    """Eq. (8): DCG@k = Σ_{p ≤ k} g(r_p) d(p), of relevances (n,) in the order of their ranks.

    NDCG@k, which judges, is that over the DCG@k of the ideal order: `core.ranking_metrics.ndcg`, which averages ties.
    """
    r = r[:k]
    return (gain(r) * discount(torch.arange(1, len(r) + 1).to(r))).sum()


def ranks(s: Tensor) -> Tensor:
    """Eq. (9): the rank p_i of each score, 1 for the largest; ties in the order they stand in."""
    p = torch.empty_like(s)
    p[s.argsort(descending=True, stable=True)] = torch.arange(1, len(s) + 1).to(s)
    return p


def ndcg_change(r: Tensor, p: Tensor) -> Tensor:
    """Eq. (10): |ΔNDCG_ij| = |(g_i − g_j)(d(p_i) − d(p_j))| / Z, Z the ideal DCG; (M, M), 0 where Z is."""
    g, d = gain(r), discount(p)
    Z = dcg(r.sort(descending=True).values)
    swapped = ((g[:, None] - g) * (d[:, None] - d)).abs()
    return swapped / Z if Z > 0 else swapped  # without gains there is nothing to lose


def lambda_gradient(s: Tensor, r: Tensor, p: Tensor, sigma: float = 1.0) -> Tensor:
    """Eq. (11): λ_i = Σ_j σ (½(1 − S_ij) − 1 / (1 + e^{σ(s_i − s_j)})) |ΔNDCG_ij|, S_ij = sign(r_i − r_j).

    It stands where ∂loss/∂s_i would, and sums to 0: what one of a pair loses, the other gains. All (M,).
    """
    S, apart = torch.sign(r[:, None] - r), s[:, None] - s
    return (sigma * (0.5 * (1 - S) - torch.sigmoid(-sigma * apart)) * ndcg_change(r, p)).sum(1)


def mse(s: Tensor, z: Tensor) -> Tensor:
    """Eq. (12): mean (s − z)², z the z-scored labels: the twin that does not rank."""
    return (s - z).square().mean()


def ranknet(s: Tensor, y: Tensor) -> Tensor:
    """Eq. (13): mean over pairs of binary cross-entropy between sigmoid(s_i − s_j) and y_i > y_j, i in the first half
    of the batch and j in the second."""
    half = len(s) // 2
    apart = s[:half, None] - s[half:]
    return F.binary_cross_entropy_with_logits(apart, (y[:half, None] > y[half:]).to(s.dtype))


def pair_divergence(s: Tensor, y: Tensor) -> Tensor:
    """Eq. (14): BRP-NAS: mean over ordered pairs of KL(softmax(y_i, y_j) ‖ softmax(s_i, s_j))."""
    i, j = torch.meshgrid(torch.arange(len(s)), torch.arange(len(s)), indexing="ij")
    i, j = i[i != j], j[i != j]
    known, found = torch.stack([y[i], y[j]], 1), torch.stack([s[i], s[j]], 1)
    return F.kl_div(found.log_softmax(1), known.log_softmax(1), reduction="batchmean", log_target=True)


def allowance(t: int, budget: int, rounds: int) -> int:
    """Eq. (15): after round t of T, t · B / T architectures have been trained."""
    return t * budget // rounds
