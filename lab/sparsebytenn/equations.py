"""Block sparsity in torch: what a block is worth, which blocks stay, in which order rows stand, and how training goes.

W (OC, IC, ...) is a layer's weight, S (OC, IC) its saliency, G the rows of a block, H its inputs, s the share of blocks
removed. A block is G rows x H inputs (all taps of them), H is 1 where nothing is said; the last rows of an OC that G
does not divide form smaller blocks, and so do the last inputs of an IC that H does not divide. A class of channels may
be written by several layers, whose rows must stand in one order: a list of S, one s for each. A search for H > 1 takes
in the place of S its sums over H neighbouring inputs, which Card (2) gives for G = 1, and for the layers that read the
class their sums over G rows, transposed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CAP = 0.95  # the most that a layer may lose under a global budget


def saliency(w: Tensor) -> Tensor:
    """Card (1): S_oi, the sum of |w| over the taps of a kernel, relative to its mean over the layer.

    w (OC, IC, ...) -> (OC, IC). Relative, because a batch norm behind a layer undoes the layer's own scale.
    """
    S = w.detach().abs().flatten(2).sum(2) if w.dim() > 2 else w.detach().abs()
    return S / S.mean().clamp(min=torch.finfo(S.dtype).tiny)


def block_scores(S: Tensor, G: int, H: int = 1) -> Tensor:
    """Card (2): B_gh, the sum of S over the G rows x H inputs of a block: (OC, IC) -> (ceil(OC / G), ceil(IC / H))."""
    padded = F.pad(S, (0, -S.shape[1] % H, 0, -len(S) % G))  # zeros: a smaller block costs as much and holds less
    return padded.view(-1, G, padded.shape[1]).sum(1).unflatten(1, (-1, H)).sum(2)


def mask_layer(B: Tensor, s: float) -> Tensor:
    """Card (3): M = [B among the layer's largest], round(s n) of its n blocks removed, at least one kept."""
    return _largest(B.flatten(), _kept(B.numel(), s)).view_as(B)


def mask_global(scores: Sequence[Tensor], s: float) -> list[Tensor]:
    """Card (4): M = [B above one threshold of all layers], the share s of all blocks removed, at most CAP of one."""
    ranked = [B.flatten().masked_fill(_largest(B.flatten(), _kept(B.numel(), CAP)), torch.inf) for B in scores]
    stays = _largest(torch.cat(ranked), _kept(sum(map(len, ranked)), s))
    parts = stays.split([len(part) for part in ranked])
    return [part.view_as(B) for part, B in zip(parts, scores, strict=True)]


def spread(M: Tensor, G: int, order: Tensor, H: int = 1, inputs: Tensor | None = None) -> Tensor:
    """Card (5): the mask of each kernel where it stands: M (groups, groups of inputs), order (OC,) -> (OC, IC).

    `inputs` (IC,) is the order of the inputs; without one they stand as they came.
    """
    inputs = torch.arange(M.shape[1] * H) if inputs is None else inputs
    cells = torch.empty(len(order), len(inputs), dtype=torch.bool)
    wide = M.repeat_interleave(G, 0).repeat_interleave(H, 1)
    cells[order[:, None], inputs] = wide[: len(order), : len(inputs)]
    return cells


def retained(S: Tensor, G: int, s: float, H: int = 1) -> float:
    """Card (6): the share of the layer's magnitude that its largest blocks hold, sum(M B) / sum(B)."""
    B = block_scores(S, G, H)
    return _top(B, s) / max(float(B.sum(dtype=torch.float64)), 1e-300)


def objective(saliencies: Sequence[Tensor], order: Tensor, G: int, s: Sequence[float]) -> float:
    """Card (7): what a class keeps with its rows in this order, the sum over its producers of their largest blocks."""
    return sum(_top(block_scores(S[order], G), share) for S, share in zip(saliencies, s, strict=True))


def sort(saliencies: Sequence[Tensor], G: int, s: Sequence[float]) -> Tensor:
    """Card (8): rows by their whole magnitude, strongest first; as they came where that keeps more."""
    rows = torch.stack([S.sum(1) for S in saliencies]).sum(0)
    order = rows.argsort(descending=True, stable=True)
    return _better(saliencies, [torch.arange(len(rows)), order], G, s)


def greedy(saliencies: Sequence[Tensor], G: int, s: Sequence[float]) -> Tensor:
    """Card (9): the strongest free row opens a group, the rows that lift most above the threshold t join it.

    A row r joins the j - 1 rows of a group, whose sum is a, with the gain sum_i max(a_i + S_ri - t_i j / G, 0). The
    order of Card (8) stands where it keeps more.
    """
    start = sort(saliencies, G, s)
    S, t = torch.cat(list(saliencies), 1), _thresholds(saliencies, start, G, s)  # (OC, C), (C,)
    rest, names, buffer = S.clone(), torch.arange(len(S)), torch.empty_like(S)
    order: list[int] = []
    for left in range(len(S), 0, -1):  # rest[:left] and names[:left] are the free rows
        j = len(order) % G + 1
        if j == 1:
            group, pick = torch.zeros_like(t), int(rest[:left].sum(1).argmax())
        else:
            gain = torch.add(rest[:left], group - t * (j / G), out=buffer[:left]).clamp_(min=0).sum(1)
            pick = int(gain.argmax())
        order.append(int(names[pick]))
        group = group + rest[pick]
        rest[pick], names[pick] = rest[left - 1].clone(), names[left - 1].clone()
    return _better(saliencies, [start, torch.tensor(order)], G, s)


def swaps(saliencies: Sequence[Tensor], G: int, s: Sequence[float], rounds: int = 200, seed: int = 0) -> Tensor:
    """Card (10): from the order of Card (9), rows of two groups change places where sum max(B - t, 0) rises.

    A round pairs all groups at random and offers one row of the one to every row of the other: pairs share no group, so
    all that rise are taken at once. The threshold t follows every tenth round, and the best order seen is returned.
    """
    best = greedy(saliencies, G, s)
    S, groups = torch.cat(list(saliencies), 1), len(best) // G
    if groups < 2:
        return best
    draw = torch.Generator().manual_seed(seed)
    order = best.clone()
    for turn in range(rounds):
        if turn % 10 == 0:
            best = _better(saliencies, [best, order], G, s)
            t = _thresholds(saliencies, order, G, s)
        _swap_once(S, order, t, G, torch.randperm(groups, generator=draw), int(torch.randint(G, (), generator=draw)))
    return _better(saliencies, [best, order], G, s)


def cubic(s: float, t: int, n: int) -> float:
    """Card (11): s_t = s - s (1 - t / n)^3, from 0 at t = 0 to s at t = n and after."""
    return s - s * (1 - min(t / n, 1.0)) ** 3


def distillation(z: Tensor, z_dense: Tensor, T: float) -> Tensor:
    """Card (12): T^2 KL(softmax(z_dense / T) || softmax(z / T)) over the classes (axis 1), the mean over the rest."""
    log_p, log_q = F.log_softmax(z / T, 1), F.log_softmax(z_dense / T, 1)
    return T**2 * (log_q.exp() * (log_q - log_p)).sum(1).mean()


def _kept(n: int, s: float) -> int:
    return max(1, n - round(s * n))


def _largest(values: Tensor, k: int) -> Tensor:
    """(n,) -> which of them are the k largest; of equal ones the first."""
    least = values.kthvalue(len(values) - k + 1).values
    stays = values > least
    stays[(values == least).nonzero()[: k - int(stays.sum()), 0]] = True
    return stays.cpu()


def _top(B: Tensor, s: float) -> float:
    return float(B.flatten().topk(_kept(B.numel(), s)).values.sum(dtype=torch.float64))


def _better(saliencies: Sequence[Tensor], orders: Sequence[Tensor], G: int, s: Sequence[float]) -> Tensor:
    """The order that keeps most; of equal ones the first."""
    return max(orders, key=lambda order: objective(saliencies, order, G, s))


def _thresholds(saliencies: Sequence[Tensor], order: Tensor, G: int, s: Sequence[float]) -> Tensor:
    """The score of each producer's smallest kept block, for each of its columns: (C,)."""
    parts = []
    for S, share in zip(saliencies, s, strict=True):
        B = block_scores(S[order], G).flatten()
        parts.append(B.kthvalue(len(B) - _kept(len(B), share) + 1).values.expand(S.shape[1]))
    return torch.cat(parts)


def _swap_once(S: Tensor, order: Tensor, t: Tensor, G: int, groups: Tensor, position: int) -> None:
    """One round of swaps, in place: row `position` of each first group against the best row of its second group."""
    pairs = len(groups) // 2
    first, second = groups[:pairs], groups[pairs : 2 * pairs]
    rows = order[: len(order) // G * G].view(-1, G)  # (groups, G)
    offered, wanted = S[rows[first, position]], S[rows[second]]  # (P, C), (P, G, C)
    a, b = S[rows[first]].sum(1) - t, wanted.sum(1) - t  # (P, C)
    change = wanted - offered[:, None]  # (P, G, C): what the first group gains and the second loses
    after = (a[:, None] + change).clamp_(min=0).sum(2) + (b[:, None] - change).clamp_(min=0).sum(2)  # (P, G)
    before = a.clamp(min=0).sum(1) + b.clamp(min=0).sum(1)
    value, which = after.max(1)
    rises = value > before * (1 + 1e-6)
    first, second, which = first[rises], second[rises], which[rises]
    moved = rows[first, position]  # an index gives a copy
    rows[first, position] = rows[second, which]
    rows[second, which] = moved
