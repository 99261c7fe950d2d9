"""DQSS's equations beside autograd, the long form, and what the specification found about arg-max."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab.core.quantisation.qparams import FixedQuantiser, QParams
from lab.core.quantisation.quantisers import LSQ, PACT, RangeQuantiser
from lab.dqss import equations as eq
from lab.dqss import layers
from lab.dqss.layers import Mixture, RoundedWeight

G = torch.Generator().manual_seed(0)
X, W = torch.randn(2, 4, 7, 7, generator=G), torch.randn(4, 4, 3, 3, generator=G)


def grids(count=5, signed=True):
    return {str(k): FixedQuantiser(QParams.from_max(3 - 0.4 * k, 7, signed)) for k in range(count)}


@pytest.mark.parametrize(
    ("x", "w", "op"),
    [
        (X, W, lambda a, b: F.conv2d(a, b, padding=1)),
        (X, W[:, :1], lambda a, b: F.conv2d(a, b, groups=4)),
        (X, W, F.conv_transpose2d),
        (X.flatten(1), W.view(4, 36).repeat(1, 6)[:, :196], F.linear),
    ],
    ids=["conv", "depthwise", "transposed", "linear"],
)
def test_one_convolution_is_all_branches(x, w, op):
    q, p = (eq.probabilities(torch.randn(5, generator=G)) for _ in range(2))
    parts = (
        [strategy(x) for strategy in grids().values()],
        [RoundedWeight(torch.tensor(s / 7), 7)(w) for s in (1, 1.5, 2, 2.5, 3)],
    )
    long, short = eq.branches(*parts, q, p, op), eq.efficient(*parts, q, p, op)
    torch.testing.assert_close(long, short, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(F.relu(long), eq.mixture([F.relu(op(a, parts[1][0])) for a in parts[0]], q))


def test_probabilities_are_the_flatter_the_warmer():
    assert eq.probabilities(torch.tensor([2 * math.log(3), 0.0]), T=2.0).tolist() == pytest.approx([3 / 4, 1 / 4])


def test_every_strategy_needs_its_probability():
    two, three = torch.ones(2) / 2, torch.ones(3) / 3
    for q, p in ((two, three), (three, two)):
        with pytest.raises(ValueError, match="zip"):
            eq.branches([X, X], [W, W], q, p, F.conv2d)
    with pytest.raises(ValueError, match="zip"):
        eq.mixture([X, X], three)


def test_the_gradient_of_logits_is_autograds():
    logits = torch.randn(5, generator=G, requires_grad=True)
    Q, above = [one(X) for one in grids().values()], torch.randn(X.shape, generator=G)
    p = eq.probabilities(logits)
    (eq.mixture(Q, p) * above).sum().backward()
    torch.testing.assert_close(eq.gradient_logits(above, Q, p.detach()), logits.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 150, 150)])
def test_the_lean_mixture_is_the_plain_one(signed, shape):
    mixture, x = Mixture(grids(signed=signed)), torch.randn(shape, generator=G).requires_grad_()
    nn.init.normal_(mixture.logits, generator=G)
    above = torch.randn(shape, generator=G)
    y = mixture(x)
    (y * above).sum().backward()
    lean = y.detach(), x.grad.clone(), mixture.logits.grad.clone()
    x.grad, mixture.logits.grad = None, None
    y = eq.mixture([strategy(x) for strategy in mixture.strategies], eq.probabilities(mixture.logits))
    (y * above).sum().backward()
    for mine, plain in zip(lean, (y.detach(), x.grad, mixture.logits.grad), strict=True):
        torch.testing.assert_close(mine, plain, atol=2e-3, rtol=1e-4)


def weights(axis, count=5):
    shape = [4 if k == axis else 1 for k in range(4)]
    return {str(k): RoundedWeight((torch.rand(4, generator=G) + 0.1).view(shape) / 3, 7) for k in range(count)}


@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_with_a_step_a_channel_is_mixed_part_by_part(axis, monkeypatch):
    monkeypatch.setattr(layers, "CHUNK", 3 * W[0].numel())
    mixture, above = Mixture(weights(axis)), torch.randn(W.shape, generator=G)
    nn.init.normal_(mixture.logits, generator=G)
    (mine,) = torch.autograd.grad((mixture(W) * above).sum(), [mixture.logits])
    plain = eq.mixture([strategy(W) for strategy in mixture.strategies], eq.probabilities(mixture.logits))
    assert torch.equal(mixture(W), plain)
    (other,) = torch.autograd.grad((plain * above).sum(), [mixture.logits])
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_a_kept_weight_is_rounded_again_when_it_or_the_choice_changes():
    mixture, V = Mixture(weights(0)), W.clone()
    for k, change in ((1, 0), (1, 1), (3, 0)):
        V.add_(change)
        mixture.chosen = k
        assert torch.equal(mixture(V), mixture.strategies[k](V)) and mixture(V) is mixture(V)


def test_strategies_that_learn_get_their_gradients():
    mixture, x = Mixture({"pact": PACT(4), "lsq": LSQ(4), "pams": RangeQuantiser(4)}), X.clone().requires_grad_()
    nn.init.normal_(mixture.logits, generator=G)
    wanted = list(mixture.parameters())
    lean = torch.autograd.grad(mixture(x).square().sum(), [x, *wanted])
    plain = (
        eq.mixture([strategy(x) for strategy in mixture.strategies], eq.probabilities(mixture.logits)).square().sum()
    )
    for mine, other in zip(lean, torch.autograd.grad(plain, [x, *wanted]), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "make", [grids, lambda: {"a": PACT(4), "b": LSQ(4), "c": RangeQuantiser(4)}], ids=["fixed", "learned"]
)
def test_only_one_tensor_of_its_size_is_kept(make):
    def kept(forward):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            forward()
        return sum(size >= X.numel() for size in sizes)

    mixture, x = Mixture(make()), X.clone().requires_grad_()
    assert kept(lambda: mixture(x)) == 1
    assert (
        kept(lambda: eq.mixture([strategy(x) for strategy in mixture.strategies], eq.probabilities(mixture.logits))) > 5
    )


def test_one_strategy_is_the_plain_quantiser_and_equal_logits_are_the_mean():
    one = grids(1)
    assert torch.equal(Mixture(one)(X), one["0"](X))
    many = Mixture(grids())
    torch.testing.assert_close(many(X), torch.stack([q(X) for q in many.strategies]).mean(0))


def test_errors_cancel_in_the_mean_and_arg_max_picks_the_odd_one():
    """Of five strategies three are near-duplicates that share the vote; the mixture is better than any one."""
    x = torch.randn(4000, generator=G)
    Q = [x + 0.10 * torch.randn(4000, generator=G) for _ in range(2)]
    best = x + 0.09 * torch.randn(4000, generator=G)
    Q += [best + 0.002 * torch.randn(4000, generator=G) for _ in range(3)]
    C = eq.error_products(Q, x)
    logits = torch.zeros(5, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.05)
    for _ in range(400):
        adam.zero_grad()
        eq.loss_of_mean(eq.probabilities(logits), C).backward()
        adam.step()
    p = eq.probabilities(logits.detach())
    assert eq.loss_of_mean(p, C) < 0.5 * C.diagonal().min()
    assert eq.hard(logits) < 2 and C.diagonal().argmin() >= 2
    assert eq.gap(float(eq.loss_of_mean(p, C)), float(C[eq.hard(logits), eq.hard(logits)])) > 3
    assert eq.expected_loss(p, C) > C.diagonal().min()


def test_a_pair_of_draws_estimates_the_gradient_of_the_expected_loss():
    losses, logits = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
    p = eq.probabilities(logits)
    (exact,) = torch.autograd.grad((p * losses).sum(), logits)
    logs, total = torch.log_softmax(logits, 0), torch.zeros(())
    for i in range(3):
        for j in range(3):
            weight = (p[i] * p[j]).detach()
            total = total + weight * eq.policy((losses[i], losses[j]), (logs[i], logs[j]))
    torch.testing.assert_close(torch.autograd.grad(total, logits)[0], exact)


def test_the_gap_is_ten_decibels_a_power_of_ten_and_finite_without_a_loss():
    assert eq.gap(0.01, 0.1) == pytest.approx(10) and eq.gap(2.0, 1.0) == pytest.approx(-10 * math.log10(2))
    assert eq.gap(0.0, 0.0) == 0 and eq.gap(0.0, 1.0) == pytest.approx(300)


def test_sizes_and_entropies():
    assert eq.space_size([25] * 32) == pytest.approx(5.4e44, rel=0.01)
    assert eq.entropy(torch.full((8,), 1 / 8)) == pytest.approx(3) and eq.entropy(torch.tensor([1.0, 0.0])) == 0
