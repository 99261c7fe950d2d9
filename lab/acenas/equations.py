"""AceNAS in equations, in the order of the released code; the numbers are this card's own.

Shapes: M architectures in a batch, G nodes a graph, F features a node. Data flows from u to v where A[u, v] = 1.
"""

from bisect import bisect_right

import torch
from torch import Tensor
from torch.nn import functional as F


def normalised(A: Tensor) -> Tensor:
    """Card (1): Â[u, v] = (A + I)[u, v] / √(outdeg(u) · indeg(v)), degrees with the self-loops; (..., G, G)."""
    A = A + torch.eye(A.shape[-1]).to(A)
    outdeg, indeg = A.sum(-1, keepdim=True), A.sum(-2, keepdim=True)  # (..., G, 1), (..., 1, G), 1 at least
    return A / (outdeg * indeg).sqrt()


def graph_convolution(H: Tensor, Â: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Card (2): ReLU(Âᵀ H W + b): each node sums what flows into it. (M, G, F), (M, G, G), (F, F'), (F',)."""
    return F.relu(Â.transpose(-1, -2) @ (H @ W) + b)


def sort_pool(H: Tensor, nodes: Tensor, k: int = 10) -> Tensor:
    """Card (3): inside each node sort the features upwards; the k nodes of the largest last feature, downwards.

    H (M, G, F), nodes (M, G) bool: which nodes are there. Gives (M, k · F); smaller graphs are filled up with zeros.
    """
    H = H.sort(dim=-1).values
    largest = H[..., -1].masked_fill(~nodes, -torch.inf)  # (M, G); padding comes last
    order = largest.argsort(descending=True, stable=True)[..., :k]  # (M, k), or (M, G) of smaller graphs
    kept = torch.gather(H, 1, order[..., None].expand(-1, -1, H.shape[-1])) * torch.gather(nodes, 1, order)[..., None]
    return F.pad(kept, (0, 0, 0, k - kept.shape[1])).flatten(1)


def pretraining_loss(predicted: Tensor, z: Tensor) -> Tensor:
    """Card (4): Σ over heads of the mean squared error on z-scored weak labels; both (M, heads)."""
    return (predicted - z).square().mean(0).sum()


def relevance(y: Tensor, lo: float, hi: float, scale: float = 20.0) -> Tensor:
    """Card (5): r = scale · clip((y − lo) / (hi − lo), 0, 1); lo is a low quantile of the labels, hi their largest."""
    return scale * ((y - lo) / (hi - lo if hi > lo else 1.0)).clamp(0, 1)


def gain(r: Tensor) -> Tensor:
    """Card (6): g(r) = 2^r − 1."""
    return 2**r - 1


def discount(p: Tensor) -> Tensor:
    """Card (7): d(p) = 1 / log2(1 + p) at rank p = 1, 2, ..."""
    return 1 / torch.log2(1 + p)


def dcg(r: Tensor, k: int | None = None) -> Tensor:
    """Card (8): DCG@k = Σ_{p ≤ k} g(r_p) d(p), of relevances (n,) in the order of their ranks.

    NDCG@k, which judges, is that over the DCG@k of the ideal order: `core.ranking_metrics.ndcg`, which averages ties.
    """
    r = r[:k]
    return (gain(r) * discount(torch.arange(1, len(r) + 1).to(r))).sum()


def ranks(s: Tensor) -> Tensor:
    """Card (9): the rank p_i of each score, 1 for the largest; ties in the order they stand in."""
    p = torch.empty_like(s)  # the inverse of the order by score
    p[s.argsort(descending=True, stable=True)] = torch.arange(1, len(s) + 1).to(s)
    return p


def ndcg_change(r: Tensor, p: Tensor) -> Tensor:
    """Card (10): |ΔNDCG_ij| = |(g_i − g_j)(d(p_i) − d(p_j))| / Z, Z the ideal DCG; (M, M), 0 where Z is."""
    g, d = gain(r), discount(p)  # (M,) each
    Z = dcg(r.sort(descending=True).values)
    swapped = ((g[:, None] - g) * (d[:, None] - d)).abs()
    return swapped / Z if Z > 0 else swapped  # without gains there is nothing to lose


def lambda_gradient(s: Tensor, r: Tensor, p: Tensor, sigma: float = 1.0) -> Tensor:
    """Card (11): λ_i = Σ_j σ (½(1 − S_ij) − 1 / (1 + e^{σ(s_i − s_j)})) |ΔNDCG_ij|, S_ij = sign(r_i − r_j).

    It stands where ∂loss/∂s_i would, and sums to 0: what one of a pair loses, the other gains. All (M,).
    """
    S, apart = torch.sign(r[:, None] - r), s[:, None] - s  # (M, M): row i, column j
    return (sigma * (0.5 * (1 - S) - torch.sigmoid(-sigma * apart)) * ndcg_change(r, p)).sum(1)


def mse(s: Tensor, z: Tensor) -> Tensor:
    """Card (12): mean (s − z)², z the z-scored labels: the control that does not rank."""
    return (s - z).square().mean()


def ranknet(s: Tensor, y: Tensor) -> Tensor:
    """Card (13): mean over pairs of binary cross-entropy between sigmoid(s_i − s_j) and y_i > y_j, i in the first half
    of the batch and j in the second."""
    half = len(s) // 2  # pairs across the halves only, as in the release: no architecture meets itself
    apart = s[:half, None] - s[half:]
    return F.binary_cross_entropy_with_logits(apart, (y[:half, None] > y[half:]).to(s.dtype))


def pair_divergence(s: Tensor, y: Tensor) -> Tensor:
    """Card (14): BRP-NAS: mean over ordered pairs of KL(softmax(y_i, y_j) ‖ softmax(s_i, s_j))."""
    i, j = torch.meshgrid(torch.arange(len(s)), torch.arange(len(s)), indexing="ij")
    i, j = i[i != j], j[i != j]  # (M (M - 1),)
    label_pairs, score_pairs = torch.stack([y[i], y[j]], 1), torch.stack([s[i], s[j]], 1)  # (M (M - 1), 2)
    return F.kl_div(score_pairs.log_softmax(1), label_pairs.log_softmax(1), reduction="batchmean", log_target=True)


def allowance(t: int, budget: int, rounds: int) -> int:
    """Card (15): after round t of T, t · B / T architectures have been trained."""
    return t * budget // rounds


def layers(y: Tensor, c: Tensor) -> Tensor:
    """Card (16): non-dominated sorting by label y and cost c, both (n,): 0 for what none beats in both, 1 for what then
    none beats, and so on. Of equal ones the first is in the front, the next one layer behind.
    """
    order = sorted(range(len(y)), key=lambda i: (float(c[i]), -float(y[i])))  # the cheapest first
    highest: list[float] = []  # of each layer so far the negative of its largest label: ascending, for bisect
    layer = torch.empty(len(y), dtype=torch.long)
    for i in order:
        at = bisect_right(highest, -float(y[i]))  # layers before it hold one that is no dearer and no worse
        highest[at : at + 1] = [-float(y[i])]
        layer[i] = at
    return layer


def crowding(y: Tensor, c: Tensor) -> Tensor:
    """Card (17): crowding distance (Deb et al., 2002) in a front of labels y and costs c, both (n,): the sides of the
    box between a point's neighbours, each over its range; infinite for the two ends.
    """
    order = c.argsort(stable=True)
    y, c = y[order].double(), c[order].double()
    apart = torch.full_like(c, torch.inf)
    width, height = (c[-1] - c[0]).clamp_min(1e-12), (y.max() - y.min()).clamp_min(1e-12)
    apart[1:-1] = (c[2:] - c[:-2]) / width + (y[2:] - y[:-2]).abs() / height
    distance = torch.empty_like(apart)
    distance[order] = apart
    return distance


def hypervolume(y: Tensor, c: Tensor, worst_label: float, worst_cost: float) -> float:
    """Card (18): the area that labels y at costs c, both (n,), dominate, as seen from the corner (worst_label,
    worst_cost): Σ over costs upwards of (next cost − cost) · (best label so far − worst_label).
    """
    order = c.argsort(stable=True)
    c = torch.cat([c[order].double(), torch.tensor([worst_cost], dtype=torch.float64)]).clamp_max(worst_cost)
    height = (y[order].double().cummax(0).values - worst_label).clamp_min(0)
    return float((c.diff() * height).sum())
