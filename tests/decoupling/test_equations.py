"""Each of decoupling's equations against a formulation that is not its own."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr, softmax
from torch import distributions

from lab.decoupling import equations as eq


def draws(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("spatial", [(7,), (4, 4), (3, 9), (2, 3, 4)])
def test_squeeze_is_the_mean_over_all_that_is_not_a_channel(spatial):
    a = draws(2, 3, *spatial)
    by_hand = [[a[n, c].sum().item() / math.prod(spatial) for c in range(3)] for n in range(2)]
    assert torch.allclose(eq.squeeze(a), torch.tensor(by_hand), atol=1e-6)


def test_vectors_have_nothing_to_squeeze():
    a = draws(2, 3)
    assert torch.equal(eq.squeeze(a), a)


def test_control_by_hand():
    W1, b1 = torch.tensor([[1.0, 1.0], [-1.0, 0.0]]), torch.tensor([-1.0, 0.0])
    W2, b2 = torch.tensor([[3.0, 9.0], [-1.0, 9.0]]), torch.tensor([0.5, 1.0])
    assert eq.control(torch.tensor([[1.0, 2.0]]), W1, b1, W2, b2).tolist() == [[6.5, -1.0]]  # ReLU(2, -1) = (2, 0)


def test_the_saturating_sigmoid_is_exact_at_both_ends():
    g = draws(1000) * 4
    assert np.allclose(eq.saturating_sigmoid(g), np.clip(1.2 * expit(g.numpy()) - 0.1, 0, 1), atol=1e-6)
    end = math.log(11)  # 1.2 sigma(g) - 0.1 = 1
    assert eq.saturating_sigmoid(torch.tensor([-end - 1e-3, 0.0, end + 1e-3])).tolist() == [0, 0.5, 1]
    inside = eq.saturating_sigmoid(torch.tensor([-end + 1e-2, end - 1e-2]))
    assert 0 < inside[0] and inside[1] < 1


def test_bits_are_strictly_above_zero():
    assert eq.binarised(torch.tensor([-1.0, 0.0, 1e-30, 2.0])).tolist() == [0, 0, 1, 1]
    assert eq.encoding(torch.tensor([[-0.5, 0.5]], dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_semhash_gives_bits_where_hard_and_soft_values_elsewhere(share):
    y, eps = draws(64, 33), draws(64, 33, seed=1)
    hard = torch.rand(64, 33, generator=torch.Generator().manual_seed(2)) < share
    z = eq.semhash(y, eps, hard)
    assert torch.equal(z[hard], ((y + eps)[hard] > 0).float())  # exactly 0 or 1
    assert torch.equal(z[~hard], eq.saturating_sigmoid(y + eps)[~hard])


@pytest.mark.parametrize("hard", [True, False])
def test_the_whole_gradient_goes_through_the_soft_value(hard):
    y, eps, weight = draws(50, 8, dtype=torch.float64), draws(50, 8, seed=1), draws(50, 8, seed=2)
    y.requires_grad_()
    (weight * eq.semhash(y, eps, torch.tensor(hard))).sum().backward()
    sigma = torch.sigmoid(y + eps).detach()
    inside = (y + eps).detach().abs() < math.log(11)
    assert torch.allclose(y.grad, weight * 1.2 * sigma * (1 - sigma) * inside, atol=1e-12)
    assert inside.any() and not inside.all()


def test_a_gate_scales_whole_maps_and_off_is_zero():
    out, z = draws(2, 3, 4, 5), torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 1.0]])
    expected = torch.einsum("nchw,nc->nchw", out, z)
    assert torch.equal(eq.gated(out, z), expected)
    assert torch.equal(eq.gated(out[..., 0, 0], z), expected[..., 0, 0])
    assert eq.gated(out, z)[0, 1].abs().max() == 0


def test_mutual_information_loss_is_the_mean_log_likelihood():
    z, W, t = draws(5, 4), draws(3, 4, seed=1), torch.tensor([0, 2, 1, 1, 0])
    p = softmax(z.numpy() @ W.numpy().T, axis=1)
    by_hand = -np.mean([math.log(p[n, t[n]]) for n in range(5)])
    assert eq.mutual_information_loss(z, W, t).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_entropy_minus_the_loss_never_exceeds_the_mutual_information(seed):
    """For any head: H(t) - L_mi <= I(z; t), here of two bits and three classes, counted out."""
    from sklearn.metrics import mutual_info_score

    rng = np.random.default_rng(seed)
    code = rng.integers(4, size=3000)
    t = (code + (rng.random(3000) < 0.4) * rng.integers(3, size=3000)) % 3
    z = torch.tensor(np.stack([code // 2, code % 2], 1), dtype=torch.float32)
    share = np.bincount(t) / len(t)
    entropy = -float((share * np.log(share)).sum())
    W = torch.zeros(3, 2, requires_grad=True)
    optimiser = torch.optim.LBFGS([W], max_iter=100)

    def closure():
        optimiser.zero_grad()
        loss = eq.mutual_information_loss(z, W, torch.from_numpy(t))
        loss.backward()
        return loss

    optimiser.step(closure)
    best = entropy - eq.mutual_information_loss(z, W, torch.from_numpy(t)).item()
    known = mutual_info_score(code, t)
    assert best <= known + 1e-6
    for _ in range(20):
        head = torch.from_numpy(rng.normal(size=(3, 2)).astype(np.float32))
        assert entropy - eq.mutual_information_loss(z, head, torch.from_numpy(t)).item() <= best + 1e-4


@pytest.mark.parametrize(("loss", "first"), [(eq.kl_out_z, "out"), (eq.kl_z_out, "z")])
def test_divergences_have_their_direction_and_the_mean_over_entries(loss, first):
    out, z = draws(6, 5, 3, 3, dtype=torch.float64), draws(6, 5, seed=1, dtype=torch.float64)
    p, q = (out.mean((2, 3)), z) if first == "out" else (z, out.mean((2, 3)))
    known = distributions.kl_divergence(distributions.Categorical(logits=p), distributions.Categorical(logits=q))
    assert loss(out, z).item() == pytest.approx(known.sum().item() / 30, rel=1e-9)
    by_scipy = rel_entr(softmax(p.numpy(), axis=1), softmax(q.numpy(), axis=1)).sum() / 30
    assert loss(out, z).item() == pytest.approx(by_scipy, rel=1e-9)


def test_the_two_divergences_differ_and_vanish_together():
    out, z = draws(6, 5, 3, 3), draws(6, 5, seed=1)
    assert eq.kl_out_z(out, z).item() != pytest.approx(eq.kl_z_out(out, z).item(), rel=1e-2)
    alike = out.mean((2, 3)) + 3  # a softmax does not see what is added to all
    assert eq.kl_out_z(out, alike).item() == pytest.approx(0, abs=1e-7)
    assert eq.kl_z_out(out, alike).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("loss", [eq.kl_out_z, eq.kl_z_out])
def test_agreement_moves_both_sides(loss):
    out, z = draws(6, 5, 3, 3).requires_grad_(), draws(6, 5, seed=1).requires_grad_()
    loss(out, z).backward()
    assert out.grad.abs().max() > 0 and z.grad.abs().max() > 0


def test_sparsity_counts_filters_that_are_on():
    z = torch.tensor([[1.0, 0.0, 1.0, 0.5], [0.0, 0.0, 1.0, 0.0]])
    assert eq.sparsity(z).item() == pytest.approx((2.5 + 1) / 2)
    assert eq.sparsity_at(z, 0.0).item() == eq.sparsity(z).item()
    assert eq.sparsity_at(z, 0.25).item() == pytest.approx(0.75)
    assert eq.sparsity_at(z, 0.5).item() == pytest.approx(0.25)  # below the wanted ratio it costs too
    assert eq.sparsity_at(z, 1.75 / 4).item() == 0


def test_path_macs_by_hand():
    macs, on_in, on_out = torch.tensor([100.0, 10.0]), torch.tensor([[1.0, 0.5]]), torch.tensor([[0.2, 0.4]])
    assert eq.path_macs(macs, on_in, on_out).tolist() == pytest.approx([100 * 0.2 + 10 * 0.5 * 0.4])


def test_path_macs_are_summed_over_layers_for_each_picture():
    macs, on = torch.tensor([100.0, 10.0]), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    assert eq.path_macs(macs, on, torch.ones(2, 2)).tolist() == [105, 60]
    assert eq.path_macs(macs, on[None], torch.ones(1, 2, 2)).tolist() == [[105, 60]]
