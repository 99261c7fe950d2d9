"""DQSS in torch: the mixture of strategies, why it needs one convolution only, its gradient, and how it becomes hard.

A layer has N_w strategies for its weight W with logits a, N_a for what it reads, x, with logits b. Q_j(W) and Q_i(x)
are what the strategies make of them, in the shape of W and x. The paper's text could not be had: the form of (1) to (5)
is what its abstract and a review say, the rest is ours, and all numbers are the card's.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def probabilities(logits: Tensor, T: float = 1.0) -> Tensor:
    """Card (1): p = softmax(a / T), how much each strategy counts: (N,) -> (N,)."""
    return torch.softmax(logits / T, 0)


def branches(X: Sequence[Tensor], W: Sequence[Tensor], q: Tensor, p: Tensor, op: Callable) -> Tensor:
    """Card (2): y = sum_i q_i sum_j p_j op(X_i, W_j), the layer as N_a * N_w branches."""
    return sum(q_i * p_j * op(X_i, W_j) for q_i, X_i in zip(q, X, strict=True) for p_j, W_j in zip(p, W, strict=True))


def mixture(Q: Sequence[Tensor], p: Tensor) -> Tensor:
    """Card (3): sum_j p_j Q_j, one tensor of the shape of each."""
    return sum(p_j * Q_j for p_j, Q_j in zip(p, Q, strict=True))


def efficient(X: Sequence[Tensor], W: Sequence[Tensor], q: Tensor, p: Tensor, op: Callable) -> Tensor:
    """Card (4): y = op(sum_i q_i X_i, sum_j p_j W_j): that of (2) by one op, for it is linear in both.

    It holds for convolutions and linear layers, and not through what comes behind them, such as a ReLU.
    """
    return op(mixture(X, q), mixture(W, p))


def gradient_logits(G: Tensor, Q: Sequence[Tensor], p: Tensor) -> Tensor:
    """Card (5): dL/da_j = p_j (<G, Q_j> - sum_k p_k <G, Q_k>) with G = dL/d mixture, at T = 1: (N,)."""
    products = torch.stack([(G * Q_j).sum() for Q_j in Q])  # <G, Q_j>: (N,)
    return p * (products - (p * products).sum())


def error_products(Q: Sequence[Tensor], x: Tensor) -> Tensor:
    """Card (6): C_ij = <Q_i - x, Q_j - x>, the errors of strategies against each other: (N, N)."""
    errors = torch.stack([(Q_i - x).flatten() for Q_i in Q])  # (N, values of x)
    return errors @ errors.T


def loss_of_mean(p: Tensor, C: Tensor) -> Tensor:
    """Card (7): p^T C p, the squared error of the mixture: unlike errors cancel, and no strategy has one so small."""
    return p @ C @ p


def expected_loss(p: Tensor, C: Tensor) -> Tensor:
    """Card (8): sum_i p_i C_ii, what one strategy drawn from p would have lost; least where p is hard."""
    return (p * C.diagonal()).sum()  # linear in p: least at a corner, where one strategy has all of it


def policy(losses: tuple[Tensor, Tensor], logs: tuple[Tensor, Tensor]) -> Tensor:
    """Card (9): half of (L_1 - L_2)(log p_1 - log p_2) of two draws; its mean gradient is that of the expected loss."""
    return 0.5 * (losses[0] - losses[1]).detach() * (logs[0] - logs[1])


def hard(logits: Tensor) -> int:
    """Card (10): the strategy that is kept, arg max a."""
    return int(logits.argmax())


def gap(soft: float, kept: float) -> float:
    """Card (11): the soft-to-hard gap in dB, 10 log10(L_hard / L_soft): above 0 where arg-max loses."""
    return 10 * math.log10(max(kept, 1e-30) / max(soft, 1e-30))


def entropy(p: Tensor) -> float:
    """Card (12): -sum_i p_i log2 p_i in bits: log2 N where nothing is decided, 0 where all is."""
    return float(-(p * p.clamp(min=1e-12).log2()).sum())


def space_size(counts: Sequence[int]) -> float:
    """Card (13): how many assignments there are, the product of the strategies left a role."""
    return float(math.prod(counts))
