"""The discriminator's shape and FISTA's convergence to known answers."""

import pytest
import torch
from torch import nn

from lab.gal.layers import Discriminator, Fista, Mask, MaskHistory


def test_the_discriminator_has_the_published_widths_and_one_logit():
    linear = [layer for layer in Discriminator(10).layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (10, 128),
        (128, 256),
        (256, 128),
        (128, 1),
    ]


def test_the_released_discriminator_is_an_affine_map_before_its_sigmoid():
    D = Discriminator(4, affine=True)
    a, b = torch.randn(1, 4), torch.randn(1, 4)
    logit = lambda x: torch.logit(D(x))  # noqa: E731
    assert logit((a + b) / 2).item() == pytest.approx(((logit(a) + logit(b)) / 2).item(), abs=1e-4)
    assert torch.sigmoid(D(a)).item() == pytest.approx(0.62, abs=0.13)  # the double sigmoid: never outside 0.5-0.73
    assert Discriminator(4)(a).item() != pytest.approx(((Discriminator(4)(a) + Discriminator(4)(b)) / 2).item())


def solve(fista: Fista, gradient, lr: float, lam: float, updates: int) -> torch.Tensor:
    for _ in range(updates):
        fista.look_ahead()
        fista.masks[0].grad = gradient(fista.masks[0].detach())
        fista.step([lr], [lam])
    return fista.now[0]


def test_a_mask_that_nothing_reads_is_one_line():
    masks = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    masks[0].grad = torch.zeros(2)
    with pytest.raises(ValueError, match=r"^2 of 3 masks have no gradient: nothing in the network reads them; prune"):
        Fista(masks).step([0.1] * 3, [0.1] * 3)
    assert all(torch.equal(mask, torch.ones(2)) for mask in masks)


def test_identity_design_gives_soft_thresholding():
    """min ||m - a||^2 / 2 + lam ||m||_1 over m >= 0 is max(a - lam, 0), exact zeros included."""
    a = torch.tensor([1.5, 0.4, 0.2, -0.3])
    found = solve(Fista([nn.Parameter(torch.ones(4))]), lambda m: m - a, 0.5, 0.25, 60)
    assert found.tolist() == pytest.approx([1.25, 0.15, 0, 0], abs=1e-5)
    assert (found == 0).tolist() == [False, False, True, True]


def correlated() -> tuple[torch.Tensor, torch.Tensor, float]:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(30, 8, generator=generator) + torch.randn(30, 1, generator=generator)
    b = A @ torch.tensor([1.0, 0, 0.5, 0, 0, 0.8, 0, 0]) + 0.1 * torch.randn(30, generator=generator)
    return A, b, 1 / torch.linalg.matrix_norm(A, 2).item() ** 2


def objective(A, b, m, lam):
    return float((A @ m - b).square().sum() / 2 + lam * m.abs().sum())


def falling(is_bounded: bool) -> list[float]:
    """The state of a mask under lam alone, with nothing to hold it, after each of twelve updates."""
    fista = Fista([nn.Parameter(torch.ones(1))], is_bounded=is_bounded)
    return [float(solve(fista, torch.zeros_like, 0.1, 0.01, 1)) for _ in range(12)]


def test_momentum_gathers_speed_and_bounded_masks_have_none():
    free, bounded = falling(False), falling(True)
    assert bounded == pytest.approx([1 - 0.001 * (k + 1) for k in range(12)])
    assert free[11] < 1 - 2 * 0.012  # more than twice as far


def test_bounded_masks_are_at_most_1():
    opening = [solve(Fista([nn.Parameter(torch.ones(1))], is_bounded=b), lambda m: m - 3, 0.5, 0.0, 9) for b in (0, 1)]
    assert float(opening[0]) > 2.5 and float(opening[1]) == 1


def test_closed_entries_stay_closed():
    fista = Fista([nn.Parameter(torch.ones(2))])
    for _ in range(3):
        fista.look_ahead()
        fista.masks[0].grad = torch.tensor([-1.0, -1.0])  # both are pulled open
        fista.step([0.1], [0.01], [torch.tensor([True, False])])
    assert fista.now[0][0] == 0 and fista.now[0][1] > 1


def test_fista_reaches_the_lasso_that_scikit_learn_finds():
    from sklearn.linear_model import Lasso

    A, b, lr = correlated()
    lam = 3.0
    lasso = Lasso(alpha=lam / len(b), positive=True, fit_intercept=False, tol=1e-8, max_iter=100_000)
    known = lasso.fit(A.double().numpy(), b.double().numpy())
    found = solve(Fista([nn.Parameter(torch.ones(8))]), lambda m: A.T @ (A @ m - b), lr, lam, 2000)
    assert found.tolist() == pytest.approx(known.coef_.tolist(), abs=1e-3)


def test_momentum_and_the_gradient_ahead_are_worth_it():
    """After as many steps FISTA is nearer to the optimum than plain proximal steps and than the released variant."""
    A, b, lr = correlated()
    lam, steps = 3.0, 25
    gradient = lambda m: A.T @ (A @ m - b)  # noqa: E731
    best = objective(A, b, solve(Fista([nn.Parameter(torch.ones(8))]), gradient, lr, lam, 3000), lam)
    gap = lambda m: objective(A, b, m, lam) - best  # noqa: E731
    fista = gap(solve(Fista([nn.Parameter(torch.ones(8))]), gradient, lr, lam, steps))
    released = gap(solve(Fista([nn.Parameter(torch.ones(8))], look_ahead=False), gradient, lr, lam, steps))
    plain = torch.ones(8)
    for _ in range(steps):
        plain = (plain - lr * gradient(plain) - lr * lam).clamp(min=0)
    assert 0 <= fista < released / 2 and fista < gap(plain) / 2


def test_mask_starts_as_the_identity():
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(Mask(5)(x), x)


def test_history_keeps_the_first_and_the_last_state():
    mask = nn.Parameter(torch.ones(2))
    history = MaskHistory([mask], every=2)
    for index in range(5):
        history.note(index, [torch.full((2,), float(index))])
    assert history.states()[:, 0].tolist() == [1, 1, 3, 4]
