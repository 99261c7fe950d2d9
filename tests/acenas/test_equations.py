"""The equations against values by hand and independent implementations."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from sklearn.metrics import ndcg_score

from lab.acenas import equations as eq
from lab.acenas import metrics
from lab.core import ranking_metrics


def test_normalisation_of_three_nodes_by_hand():
    A = torch.tensor([[0.0, 1, 1], [0, 0, 1], [0, 0, 0]])  # 0 -> 1, 0 -> 2, 1 -> 2; with loops: out 3 2 1, in 1 2 3
    by_hand = torch.tensor([[1 / 3, 1 / 6, 1 / 9], [0, 1 / 4, 1 / 6], [0, 0, 1 / 3]]).sqrt()
    assert torch.allclose(eq.normalised(A), by_hand)


def test_messages_flow_along_the_edges():
    A = torch.zeros(1, 3, 3)
    A[0, 0, 1] = 1.0
    H = eq.graph_convolution(torch.tensor([[[1.0], [0.0], [0.0]]]), eq.normalised(A), torch.eye(1), torch.zeros(1))
    assert H[0, 1, 0] > 0 and H[0, 2, 0] == 0  # node 1 hears of node 0, node 2 does not


def test_sort_pooling_by_hand():
    H = torch.tensor([[[3.0, 1.0], [2.0, 9.0], [5.0, 4.0]]])
    pooled = eq.sort_pool(H, torch.ones(1, 3, dtype=torch.bool), k=4)
    assert pooled.tolist() == [[2.0, 9.0, 4.0, 5.0, 1.0, 3.0, 0.0, 0.0]]


def test_sort_pooling_leaves_out_nodes_that_are_not_there():
    H = torch.tensor([[[3.0, 1.0], [2.0, 9.0], [5.0, 4.0]]])
    pooled = eq.sort_pool(H, torch.tensor([[True, False, True]]), k=3)
    assert pooled.tolist() == [[4.0, 5.0, 1.0, 3.0, 0.0, 0.0]]


def test_sort_pooling_does_not_see_the_order_of_nodes():
    torch.manual_seed(0)
    H, there = torch.randn(5, 7, 4), torch.ones(5, 7, dtype=torch.bool)
    assert torch.equal(eq.sort_pool(H, there), eq.sort_pool(H[:, torch.randperm(7)], there))


def test_relevance_clips_the_worst_fifth():
    y = torch.linspace(0, 1, 11)
    r = eq.relevance(y, float(y.quantile(0.2)), 1.0)
    assert r[:3].tolist() == [0, 0, 0] and r[-1] == 20 and (r.diff() >= 0).all()


def test_relevance_of_equal_labels_is_zero():
    assert eq.relevance(torch.full((4,), 0.7), 0.7, 0.7).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("rank_by", ["score", "label_ascending"])
def test_the_lambda_gradient_is_that_of_the_pairwise_cost_with_the_change_frozen(rank_by):
    torch.manual_seed(1)
    s, r = torch.randn(9, dtype=torch.float64, requires_grad=True), torch.randint(0, 6, (9,)).double()
    p = eq.ranks(s.detach()) if rank_by == "score" else eq.ranks(-r)
    S, apart = torch.sign(r[:, None] - r), s[:, None] - s
    cost = 0.5 * (1 - S) * apart + torch.log1p(torch.exp(-apart))  # of each ordered pair, Burges (2010)
    (0.5 * (cost * eq.ndcg_change(r, p)).sum()).backward()  # each pair once
    found = eq.lambda_gradient(s.detach(), r, p)
    assert torch.allclose(found, s.grad, atol=1e-12)
    assert abs(float(found.sum())) < 1e-12 and found.isfinite().all() and found.abs().max() > 0


def test_the_gradient_lifts_what_is_relevant():
    s, r = torch.zeros(3), torch.tensor([0.0, 3.0, 1.0])
    gradient = eq.lambda_gradient(s, r, eq.ranks(s))
    assert gradient[1] < 0 < gradient[0]  # descent raises the score of the best, lowers that of the worst


def test_nothing_to_rank_gives_no_gradient():
    s = torch.randn(4)
    assert eq.lambda_gradient(s, torch.zeros(4), eq.ranks(s)).tolist() == [0, 0, 0, 0]


def test_ranks_are_from_the_largest():
    assert eq.ranks(torch.tensor([0.1, 0.9, 0.5])).tolist() == [3, 1, 2]


def test_ties_stand_in_the_order_they_came_in():
    s = torch.arange(40.0) % 2
    assert eq.ranks(s).tolist() == [rank for pair in zip(range(21, 41), range(1, 21), strict=True) for rank in pair]
    H = torch.stack([torch.arange(40.0) / 40, torch.ones(40)], 1)[None]
    assert torch.equal(eq.sort_pool(H, torch.ones(1, 40, dtype=torch.bool), k=40), H.flatten(1))


def test_losses_of_the_controls_by_hand():
    s, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert float(eq.mse(s, y)) == 1.0
    assert float(eq.ranknet(s, y)) == pytest.approx(math.log1p(math.e))  # 1 is ranked above 0, wrongly
    e = math.e
    known, found = (1 / (1 + e), e / (1 + e)), (e / (1 + e), 1 / (1 + e))
    by_hand = sum(k * math.log(k / f) for k, f in zip(known, found, strict=True))
    assert float(eq.pair_divergence(s, y)) == pytest.approx(by_hand)
    assert float(eq.pretraining_loss(torch.zeros(2, 3), torch.ones(2, 3))) == 3.0


def test_allowances_reach_the_budget():
    assert [eq.allowance(t, 100, 5) for t in range(1, 6)] == [20, 40, 60, 80, 100]
    assert eq.allowance(3, 20, 3) == 20


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_the_expected_best_is_that_of_many_draws():
    torch.manual_seed(0)
    truth = torch.rand(50, dtype=torch.float64)
    drawn = sum(float(truth[torch.randperm(50)[:7]].max()) for _ in range(20_000)) / 20_000
    assert ranking_metrics.expected_best(truth, 7) == pytest.approx(drawn, abs=0.003)
    assert ranking_metrics.expected_best(truth, 50) == pytest.approx(float(truth.max()))


def test_a_collapsed_scorer_has_tau_minus_one():
    assert ranking_metrics.kendall_tau(torch.zeros(5), torch.arange(5.0)) == -1.0


@pytest.mark.slow
def test_an_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [i.low < 0 < i.high for i in (ranking_metrics.interval(rng.normal(size=5)) for _ in range(2000))]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), min_size=2, max_size=12), st.integers(1, 13))
def test_ndcg_is_scikit_learns_which_averages_ties(pairs, k):
    r, s = torch.tensor(pairs, dtype=torch.float64).T
    expected = ndcg_score([eq.gain(r).numpy()], [s.numpy()], k=k) if r.max() > 0 else 1.0
    assert ranking_metrics.ndcg(s, r, k) == pytest.approx(expected, abs=1e-12)
    assert ranking_metrics.ndcg(s.float(), r.float(), k) == pytest.approx(expected, abs=1e-5)
    best = float(eq.dcg(r.sort(descending=True).values, k))
    if best and len(s.unique()) == len(s):  # no ties: Eq. (8) in the order of the scores
        assert ranking_metrics.ndcg(s, r, k) == pytest.approx(float(eq.dcg(r[s.argsort(descending=True)], k)) / best)


def test_a_constant_score_has_what_all_orders_give_on_average():
    truth = torch.tensor([60.0, 90.0, 70.0, 80.0], dtype=torch.float64)
    flat = torch.zeros(4, dtype=torch.float64)
    orders = [metrics.ndcg(torch.tensor(order, dtype=torch.float64), truth, 2) for order in permutations(range(4))]
    for turned in permutations(range(4)):
        assert metrics.ndcg(flat, truth[list(turned)], 2) == pytest.approx(np.mean(orders))
    assert 0 < np.mean(orders) < 1


def test_ndcg_at_its_ends():
    truth = torch.tensor([-3.0, -1.0, -2.0])
    assert metrics.ndcg(truth, truth) == 1 and metrics.ndcg(torch.rand(3), torch.full((3,), 3.0)) == 1
    unknown = torch.tensor([0.0, torch.nan, 0.5])  # what has no score comes last
    assert metrics.ndcg(unknown, truth) == metrics.ndcg(torch.tensor([0.0, -1.0, 0.5]), truth) < 1
    assert metrics.ndcg(torch.tensor([-torch.inf, 1.0, torch.inf]), truth) < 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=5), st.data())
def test_best_of_top_is_the_mean_over_all_ways_to_break_ties(rows, data):
    k = data.draw(st.integers(1, len(rows)))
    scores, valid, truth = torch.tensor(rows, dtype=torch.float64).T
    ways = [sorted(order, key=lambda row: -row[0])[:k] for order in permutations(rows)]
    picked = [min((-row[1], row[2]) for row in way)[1] for way in ways]
    assert metrics.best_of_top(scores, valid, truth, k) == pytest.approx(np.mean(picked))


def test_best_of_top_asks_validation_first():
    scores, valid, truth = torch.tensor([3.0, 2, 1]), torch.tensor([0.1, 0.9, 1.0]), torch.tensor([0.7, 0.5, 0.9])
    assert metrics.best_of_top(scores, valid, truth, 2) == pytest.approx(0.5)
    assert ranking_metrics.rank(1, truth) == 3


# -- by hand, term by term ---------------------------------------------------------------------------------------------


def test_each_graph_of_a_batch_is_normalised_alone():
    A = torch.triu(torch.ones(2, 3, 3, dtype=torch.float64), 1)
    A[1, 0, 2] = 0
    once = [eq.normalised(graph) for graph in A]
    assert eq.normalised(A).dtype == torch.float64 and eq.normalised(A.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(eq.normalised(A), torch.stack(once)) and not torch.equal(once[0], once[1])
    assert torch.equal(eq.normalised(A[:, None])[:, 0], eq.normalised(A))  # and with a second batch axis


def test_a_bias_is_added_before_the_relu():
    H, b = torch.tensor([[[1.0, -2.0]]]), torch.tensor([0.5, 0.5])
    assert eq.graph_convolution(H, torch.eye(1)[None], torch.eye(2), b).tolist() == [[[1.5, 0.0]]]


def test_sort_pooling_looks_at_the_last_of_the_sorted_features_and_keeps_ten():
    H = torch.tensor([[[0.0, 9.0, 1.0], [5.0, 2.0, 6.0]]])
    pooled = eq.sort_pool(H, torch.ones(1, 2, dtype=torch.bool))
    assert pooled.shape == (1, 30) and pooled[0, :6].tolist() == [0, 1, 9, 2, 5, 6]


def test_relevance_is_the_share_of_the_span_and_never_over_its_scale():
    assert eq.relevance(torch.tensor([0.4, 0.6, 0.9]), 0.2, 0.6).tolist() == pytest.approx([10, 20, 20])
    assert eq.relevance(torch.tensor([0.75]), 0.5, 0.5, scale=8).tolist() == [2]  # no span: one unit of it


def test_gain_discount_and_their_sum_by_hand():
    assert eq.gain(torch.tensor([0.0, 1.0, 3.0])).tolist() == [0, 1, 7]
    assert eq.discount(torch.tensor([1.0, 3.0])).tolist() == [1, 0.5]
    assert float(eq.dcg(torch.tensor([3.0, 0.0, 1.0]))) == 7.5 and float(eq.dcg(torch.tensor([3.0, 0, 1]), 2)) == 7


def test_a_sum_of_discounted_gains_is_as_precise_as_its_relevances():
    r = torch.tensor([3.0, 2.0, 1.5, 1.0], dtype=torch.float64)
    by_hand = sum((2**x - 1) / math.log2(1 + p) for p, x in enumerate(r.tolist(), 1))
    assert float(eq.dcg(r)) == pytest.approx(by_hand, rel=1e-12)


def test_the_change_of_a_swap_by_hand():
    """Gains 1, 7, 0 at ranks 3, 1, 2; the ideal DCG is 7 + 1 / log2(3)."""
    low = 1 / math.log2(3)
    changes = eq.ndcg_change(torch.tensor([1.0, 3.0, 0.0]), torch.tensor([3.0, 1.0, 2.0]))
    by_hand = torch.tensor([[0, 6 * 0.5, low - 0.5], [6 * 0.5, 0, 7 * (1 - low)], [low - 0.5, 7 * (1 - low), 0]])
    torch.testing.assert_close(changes, by_hand / (7 + low))
    tiny = eq.ndcg_change(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 2.0]))  # an ideal DCG below 1
    assert float(tiny[0, 1]) == pytest.approx(1 - low)
    assert eq.ndcg_change(torch.zeros(2), torch.tensor([1.0, 2.0])).tolist() == [[0, 0], [0, 0]]


def test_losses_of_other_values_than_nought_and_one():
    assert float(eq.mse(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0]))) == 6.5
    assert float(eq.pretraining_loss(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 3.0]]))) == 5
    s, y = torch.tensor([2.0, 3.0, 1.0, -1.0]), torch.tensor([5.0, 4.0, 3.0, 4.0])
    pairs = [math.log1p(math.exp(-(2 - 1))), math.log1p(math.exp(-(2 + 1)))]  # y: 5 > 3, 5 > 4
    pairs += [math.log1p(math.exp(-(3 - 1))), math.log1p(math.exp(3 + 1))]  # y: 4 > 3, 4 > 4 is not
    assert float(eq.ranknet(s, y)) == pytest.approx(sum(pairs) / 4)


def test_pairs_diverge_as_scipy_says():
    s, y = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    known = [softmax([y[i], y[j]]) for i in range(4) for j in range(4) if i != j]
    found = [softmax([s[i], s[j]]) for i in range(4) for j in range(4) if i != j]
    assert float(eq.pair_divergence(s, y)) == pytest.approx(np.sum(rel_entr(known, found)) / 12)


def test_an_allowance_is_a_count():
    assert [eq.allowance(t, 20, 3) for t in (1, 2)] == [6, 13] and isinstance(eq.allowance(1, 20, 3), int)


def test_ranks_and_gains_are_made_where_the_scores_are():
    s = torch.rand(4, device="meta")
    assert {eq.ranks(s).device.type, eq.dcg(s).device.type, eq.normalised(s.expand(4, 4)).device.type} == {"meta"}


def test_an_interval_is_shown_with_its_digits_and_without_a_negative_zero():
    found = ranking_metrics.Interval(mean=-0.04, low=-1.25, high=2.0)
    assert found.shown(1) == "0.0 (-1.2 to 2.0)" and found.shown(2, "+") == "-0.04 (-1.25 to +2.00)"
