"""The equations against plain references and by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from lab.hyperfd import equations as eq


def test_a_meta_vector_is_mean_and_spread_of_length_one():
    z = torch.randn(3, 10, 4)
    v = eq.meta_vector(z)
    plain = torch.cat([z.mean(1), z.std(1, correction=0)], 1)
    assert torch.allclose(v, F.normalize(plain, dim=1), atol=1e-4) and torch.allclose(v.norm(dim=1), torch.ones(3))
    assert eq.meta_vector(z, spread=False).shape == (3, 4)
    assert torch.allclose(v, eq.meta_vector(z[:, torch.randperm(10)]), atol=1e-6)  # the order of pictures is nothing


def test_what_the_scorer_sees():
    v, c, vc = torch.randn(2, 3), torch.randn(5, 4), torch.randn(2, 4)
    seen = eq.joined(v, c, vc)
    assert seen.shape == (2, 5, 11)
    assert torch.equal(seen[1, 3], torch.cat([v[1], c[3], vc[1] * c[3]]))


def test_relevance_spans_the_scale_and_survives_equal_results():
    assert eq.relevance(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0, 5, 2.5]
    assert eq.relevance(torch.ones(3)).tolist() == [0, 0, 0]


def slow_ranking_loss(s, r):
    order = sorted(range(len(s)), key=lambda i: -s[i])
    rank = {i: place + 1 for place, i in enumerate(order)}
    ideal = sum((2**x - 1) / math.log2(2 + k) for k, x in enumerate(sorted(r, reverse=True)))
    total = 0.0
    for i, j in itertools.permutations(range(len(s)), 2):
        if r[i] > r[j]:
            change = abs(2 ** r[i] - 2 ** r[j]) * abs(1 / math.log2(1 + rank[i]) - 1 / math.log2(1 + rank[j])) / ideal
            total += change * math.log(1 + math.exp(-(s[i] - s[j])))
    return total


def test_the_ranking_loss_is_the_sum_over_pairs():
    s, r = torch.randn(7), torch.tensor([5.0, 0, 3, 3, 1, 4, 2])
    assert float(eq.ranking_loss(s, r)) == pytest.approx(slow_ranking_loss(s.tolist(), r.tolist()), rel=1e-4)
    assert float(eq.ranking_loss(s, torch.zeros(7))) == 0


def test_the_ranking_losss_gradient_is_lambdaranks():
    """With another method's lambdas (Burges, 2010), written out here."""
    s = torch.randn(6, dtype=torch.float64, requires_grad=True)
    r = torch.tensor([0.0, 5, 2, 1, 4, 3], dtype=torch.float64)
    eq.ranking_loss(s, r).backward()
    d = 1 / torch.log2(1 + s.detach().argsort(descending=True).argsort() + 1.0)
    gain = 2**r - 1
    Z = (gain.sort(descending=True).values / torch.log2(2 + torch.arange(6.0, dtype=torch.float64))).sum()
    worth = (gain[:, None] - gain).abs() * (d[:, None] - d).abs() / Z
    force = torch.sigmoid(-(s[:, None] - s).detach()) * worth * (r[:, None] > r)
    assert torch.allclose(s.grad, force.sum(0) - force.sum(1), atol=1e-8)


def test_triplets_pull_and_push_until_the_margin():
    a, p, n = torch.zeros(2), torch.tensor([0.0, 0.1]), torch.tensor([[1.0, 0.0], [0.2, 0.0]])
    assert float(eq.triplet_loss(a, p, n, 0.3)) == pytest.approx((0 + 0.2) / 2, abs=1e-6)


def test_synaptic_intelligence_on_a_quadratic():
    """On L = ½ Σ k θ², the path integral is what the loss fell by, weight by weight."""
    k, theta = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    start, omega = theta.clone(), torch.zeros(3)
    for _ in range(2000):
        change = -1e-3 * k * theta
        omega = eq.path_importance(omega, k * (theta + change / 2), change)
        theta = theta + change
    assert torch.allclose(omega, 0.5 * k * (start**2 - theta**2), atol=1e-4)
    Omega = eq.consolidated(torch.zeros(3), omega, theta - start)
    assert torch.allclose(Omega, omega / ((theta - start) ** 2 + 1e-3))
    assert float(eq.synaptic_penalty([Omega], [theta], [theta])) == 0
    moved = eq.synaptic_penalty([Omega], [theta + 0.1], [theta], 0.5)
    assert float(moved) == pytest.approx(0.5 * 0.01 * float(Omega.sum()), rel=1e-4)


def test_a_transformation_undoes_a_linear_change_and_no_change_is_the_identity():
    old = F.normalize(torch.randn(200, 8), dim=1)
    turn = torch.linalg.qr(torch.randn(8, 8))[0]
    new = old @ turn
    D = eq.transformation(old[:150], new[:150], ridge=1e-6)
    assert float(eq.transformation_error(old[150:], new[150:], D)) < 1e-4
    assert float(eq.transformation_error(old[150:], new[150:], torch.zeros(8, 8))) > 0.3  # the control: nothing done
    assert float(eq.transformation(old, old).abs().max()) < 1e-6
    few = eq.transformation(old[:3], new[:3])  # fewer subsets than numbers: what they do not say stays
    other = torch.linalg.svd(old[:3])[2][-1]
    assert torch.allclose(other @ few, torch.zeros(8), atol=1e-5)


def test_scores_of_subsets():
    mean, spread = eq.subset_scores(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    assert mean.tolist() == [2, 2] and spread.tolist() == [1, 0]


def test_what_is_uploaded_is_clipped_and_blurred():
    v, draw = torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.ones(2, 2)
    assert torch.allclose(eq.private(v, 1.0, 0.0, draw), torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    assert torch.allclose(eq.private(v, 1.0, 0.5, draw)[1], torch.tensor([0.8, 0.9]))


def test_regret_is_to_the_best_that_was_chosen():
    assert float(eq.regret(torch.tensor([1.0, 5.0, 3.0]), [0, 2])) == 2


# -- by hand, term by term ---------------------------------------------------------------------------------------------


def test_a_meta_vector_of_one_picture_has_no_spread_and_the_means_are_of_length_one():
    z = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])
    assert torch.allclose(eq.meta_vector(z)[0], torch.tensor([0.6, 0.8, 0, 0]), atol=1e-4)
    assert torch.allclose(eq.meta_vector(z, spread=False), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert eq.meta_vector(torch.randn(2, 3, 10, 4)).norm(dim=-1).flatten().tolist() == pytest.approx([1] * 6)
    batched = torch.randn(2, 3, 4, 5)
    assert torch.equal(eq.meta_vector(batched)[1, 2], eq.meta_vector(batched[1, 2]))
    assert torch.equal(eq.meta_vector(batched, spread=False)[1, 2], eq.meta_vector(batched[1, 2], spread=False))


def test_what_is_counted_of_pictures_is_what_numpy_counts():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(3, 4, 16, 16)).astype(np.float32)
    x[:, 3] = -1
    x[0, 3, 2:6, 3:9] = 1  # a box of 4 x 6: side 4 * 24 / 20 = 4.8
    x[0, 3, 10:14, 1:4] = 0.5  # a second, half sure
    x[2, 3, :4, :4] = -0.8  # a faint one in a corner: its rim of 0.8 counts as 1
    rows = []
    for picture in x.astype(np.float64):
        box, grey = (picture[3] + 1) / 2, picture[:3].mean(0)
        rim = np.abs(np.diff(box, axis=0)).sum() + np.abs(np.diff(box, axis=1)).sum()
        side = max(4 * box.sum() / max(rim, 1), 1)
        bend = -ndimage.laplace(grey)[1:-1, 1:-1]
        colour = np.abs(picture[:3] - grey).mean()
        rows.append([np.log2(side / 16), np.log2(box.sum() / side**2 + 0.5), grey.mean(), grey.std(ddof=1),
                     np.log2(np.abs(bend).mean() + 0.01), colour])  # fmt: skip
    expected = (np.array(rows) - eq.USUAL) / eq.SPREAD
    assert np.allclose(eq.counted(torch.from_numpy(x)).numpy(), expected, atol=1e-4)
    assert np.allclose(eq.counted(torch.from_numpy(x[:1])).numpy(), expected[:1], atol=1e-4)  # one alone too
    assert expected[1, 0] == pytest.approx((-4 + 2.5) / 0.7)  # no face: a side of one pixel


def test_equal_results_but_for_their_unit():
    assert eq.relevance(torch.tensor([3.0, 3.0]), scale=2.0).tolist() == [0, 0]


def test_lists_are_ranked_each_for_itself():
    s, r = torch.randn(3, 5), torch.tensor([[5.0, 0, 3, 3, 1], [0.0, 0, 0.1, 0, 0], [1, 2, 3, 4, 5]])
    losses = eq.ranking_loss(s, r)
    slow = [slow_ranking_loss(one.tolist(), other.tolist()) for one, other in zip(s, r, strict=True)]
    assert losses.tolist() == pytest.approx(slow, rel=1e-4)
    s, r = s.double(), r.double()
    slow = [slow_ranking_loss(one.tolist(), other.tolist()) for one, other in zip(s, r, strict=True)]
    assert eq.ranking_loss(s[None], r[None])[0].tolist() == pytest.approx(slow, rel=1e-12)  # as precise as the scores


def test_equal_scores_are_ranked_in_the_order_they_stand_in():
    s, r = torch.arange(40.0) % 2, torch.arange(40.0) % 7 % 6
    assert float(eq.ranking_loss(s, r)) == pytest.approx(slow_ranking_loss(s.tolist(), r.tolist()), rel=1e-4)


def test_a_triplet_has_a_margin_of_three_tenths():
    a, p, n = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.1]), torch.tensor([[1.0, 1.2], [1.0, 9.0], [1.2, 1.0]])
    assert float(eq.triplet_loss(a, p, n)) == pytest.approx((0.2 + 0 + 0.2) / 3, abs=1e-6)
    lone = eq.triplet_loss(a, p, n[:1])
    assert float(lone) == pytest.approx(0.2, abs=1e-6)


def test_the_penalty_has_a_strength_of_a_tenth_and_wants_all_weights():
    one = [torch.tensor([2.0])]
    assert float(eq.synaptic_penalty(one, [torch.tensor([4.0])], [torch.tensor([1.0])])) == pytest.approx(0.1 * 2 * 9)
    with pytest.raises(ValueError, match="zip"):
        eq.synaptic_penalty(one, one * 2, one * 2)


def test_a_ridge_of_a_hundredth_a_subset_holds_the_map_back():
    """One number a vector: D = Σ old (new - old) / (Σ old² + ridge k)."""
    old, new = torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.tensor([[2.0], [4.0]], dtype=torch.float64)
    assert float(eq.transformation(old, new)) == pytest.approx(5 / 5.02, rel=1e-12)
    assert float(eq.transformation(old, new, ridge=1.0)) == pytest.approx(5 / 7)


def test_stored_vectors_of_several_tasks_are_moved_each_for_itself():
    v, D = torch.randn(3, 2, 4), 0.1 * torch.randn(4, 4)
    moved = eq.transformed(v, D)
    by_hand = v[2, 1] + v[2, 1] @ D
    assert torch.allclose(moved[2, 1], by_hand / by_hand.norm(), atol=1e-6)
    errors = [eq.transformation_error(old, one, D) for old, one in zip(v, 2 * v, strict=True)]
    assert float(eq.transformation_error(v, 2 * v, D)) == pytest.approx(float(sum(errors)) / 3, rel=1e-4)
    new = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    turned = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    assert float(eq.transformation_error(turned, new, torch.zeros(2, 2))) == pytest.approx(0.4 / 2)


def test_noise_is_in_units_of_the_clip_and_vectors_are_clipped_each_for_itself():
    v, draw = torch.tensor([[[3.0, 4.0], [0.3, 0.4]], [[0.0, 0.0], [6.0, 8.0]]]), torch.full((2, 2, 2), 2.0)
    kept = torch.tensor([[[0.3, 0.4], [0.3, 0.4]], [[0.0, 0.0], [0.3, 0.4]]])
    assert torch.allclose(eq.private(v, 0.5, 0.1, draw), kept + 0.1)
