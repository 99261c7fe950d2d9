"""FoldGPT in torch: gates, their budget, the sizes of a folded model, and the cure. Numbers and formulas are ours."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def gate(a: Tensor, eps: float) -> Tensor:
    """Card (1): g = a^2 / (a^2 + eps); 0 at a = 0, below 1, the steeper between the smaller eps."""
    return a.square() / (a.square() + eps)


def hard_concrete(b: Tensor, u: Tensor, beta: float = 2 / 3) -> Tensor:
    """Card (1a): g = clamp(1.2 sigmoid((ln u - ln(1 - u) + b) / beta) - 0.1, 0, 1), u uniform in (0, 1): (N,).

    Often 0 or 1 exactly, and b has a gradient all the same (hard-concrete gates, Louizos et al., 2018).
    """
    s = torch.sigmoid((u.log() - (1 - u).log() + b) / beta)
    return (1.2 * s - 0.1).clamp(0, 1)


def open_share(b: Tensor, beta: float = 2 / 3) -> Tensor:
    """Card (3b): the mean probability that a gate of Card (1a) is not 0, sigmoid(b - beta ln(0.1 / 1.1))."""
    return torch.sigmoid(b - beta * math.log(0.1 / 1.1)).mean()


def gated(h: Tensor, out: Tensor, g: Tensor) -> Tensor:
    """Card (2): h + g (Block(h) - h), (N, T, d); h itself at g = 0 and Block(h) at g = 1, bit for bit."""
    return torch.lerp(h, out, g.to(h.dtype))


def budget(g: Tensor, removal: float) -> Tensor:
    """Card (3): mean g - (1 - removal), by how much the open blocks' share of operations is over what may stay."""
    return g.mean() - (1 - removal)


def within_budget(b: Tensor, eps: float, removal: float) -> Tensor:
    """Card (3a): the gates g(u - c), c such that Card (3) is 0; u is b about its median, over its spread: (N,)."""
    away = b - b.median()
    u = away / away.abs().median().clamp(min=1e-30)
    low, high = u.min() - 1e4, u.max()
    for _ in range(60):  # bisection: the mean of g falls as c grows
        c = (low + high) / 2
        over = budget(gate((u - c).clamp(min=0), eps), removal) > 0
        low, high = torch.where(over, c, low), torch.where(over, high, c)
    return gate((u - low).clamp(min=0), eps)


def annealed(t: float, start: float = 1e3, end: float = 1e-4, hold: float = 0.8) -> float:
    """Card (4): eps, `start` until the part `hold` of the run is done, then to `end` at equal ratios; t in [0, 1]."""
    return start * (end / start) ** (max(0.0, t - hold) / (1 - hold))


def parameters(P0: int, p: int, n: int, R: int, groups: tuple[int, ...] = (), extras: int = 0) -> int:
    """Card (5): P0 - R p - sum (|G| - 1)(p - n) + extras; `groups` are the sizes |G|, n a block's norm parameters."""
    return P0 - R * p - sum(size - 1 for size in groups) * (p - n) + extras


def adapters(r: int, shapes: tuple[tuple[int, int], ...]) -> int:
    """Card (6): r (out + in) summed over a block's matrices: the parameters of its adapters."""
    return r * sum(rows + columns for rows, columns in shapes)


def cache_bytes(layers: int, heads: int, head_size: int, bytes_each: int = 2) -> int:
    """Card (7): 2 L H D bytes of keys and values a token, H the key-value heads."""
    return 2 * layers * heads * head_size * bytes_each


def similarity(states: Tensor) -> Tensor:
    """Card (8): cosine of the hidden states behind every two blocks, (N + 1, tokens, d) -> (N + 1, N + 1).

    The mean over tokens. Row 0 is what the first block reads.
    """
    unit = F.normalize(states.float(), dim=-1)
    return torch.einsum("itd,jtd->ij", unit, unit) / states.shape[1]


def influence(states: Tensor) -> Tensor:
    """Card (9): ShortGPT's block influence, 1 - cosine of what goes in and comes out: (N + 1, tokens, d) -> (N,)."""
    return 1 - F.cosine_similarity(states[:-1].float(), states[1:].float(), dim=-1).mean(1)


def taylor(weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """Card (10): |w . dL/dw| summed over a block's tensors: the first-order change of the loss without it."""
    return torch.stack([(w * g).sum().abs() for w, g in zip(weights, gradients, strict=True)]).sum()


def low_rank(W: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Card (11): the best B A of rank r for W (out, in), by its singular values: B (out, r), A (r, in)."""
    U, S, V = torch.linalg.svd(W.float(), full_matrices=False)
    root = S[:r].sqrt()
    return U[:, :r] * root, root[:, None] * V[:r]


def tail(student: Tensor, teacher: Tensor) -> Tensor:
    """Card (12): squared distance of the last hidden states (N, T, d), as a share of the teacher's square."""
    return (student - teacher).float().square().mean() / teacher.float().square().mean()


def logit_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Card (13): KL(teacher || student) of the next token, mean over (N, T); logits (N, T, V)."""
    log_p, log_q = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def _damped(C: Tensor, share: float = 1e-2) -> Tensor:
    """C (in, in) with a share of its mean variance added to every input's, so that it can be inverted."""
    return C + share * C.diagonal().mean().clamp(min=1e-12) * torch.eye(len(C)).to(C)


def regression_mean(W: Tensor, C: Tensor) -> Tensor:
    """Card (14): W = (sum W_i C_i)(sum C_i)^-1, (G, out, in) and (G, in, in) -> (out, in).

    It makes sum |(W - W_i) X_i|^2 least, C_i = X_i X_i^T what member i reads (RegMean, Jin et al., 2023).
    """
    read = torch.stack([_damped(part.float()) for part in C])
    return torch.linalg.solve(read.sum(0), (W.float() @ read).sum(0), left=False)


def low_rank_of_inputs(W: Tensor, C: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Card (15): the B A of rank r whose outputs are nearest to those of W (out, in): B (out, r), A (r, in).

    Of the inputs X with C = X X^T = L L^T: the best rank of W L, times L^-1 (SVD-LLM, Wang et al., 2024).
    """
    L = torch.linalg.cholesky(_damped(C.float()))
    B, A = low_rank(W.float() @ L, r)
    return B, torch.linalg.solve_triangular(L, A, upper=False, left=False)
