"""Which configurations are recommended: diverse ones, the best average of one task, spread ones before that."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab.core.spaces.streams import coded, detector_choices
from lab.hyperfd import portfolio
from lab.hyperfd.learning import Record

from . import small

CHOICES = detector_choices()
APART = portfolio.decisions_apart(coded(CHOICES))


def differ(a: int, b: int) -> int:
    return sum(x != y for x, y in zip(CHOICES[a], CHOICES[b], strict=True))


@given(st.integers(0, 215), st.integers(0, 215))
def test_the_distance_is_the_number_of_decisions_that_differ(a, b):
    assert float(APART[a, b]) == differ(a, b)


@given(st.permutations(range(216)), st.integers(1, 8))
def test_the_two_best_stay_and_the_others_differ(order, k):
    rows = portfolio.diverse(order, APART, k)
    assert len(set(rows)) == k and rows[:2] == order[: min(2, k)]
    for place, row in enumerate(rows[2:5], 2):  # in 216 configurations five are always found
        assert all(differ(row, other) >= 3 for other in rows[:place])
        taken = rows[:place]
        better = order[: order.index(row)]  # none of a higher score would have done
        assert not any(all(differ(one, other) >= 3 for other in taken) for one in better if one not in taken)


def test_where_too_few_differ_the_best_of_the_others_come():
    apart = torch.zeros(6, 6)
    assert portfolio.diverse([3, 1, 4, 0, 5, 2], apart, 4) == [3, 1, 4, 0]
    assert portfolio.diverse([3, 1], apart, 4) == [3, 1]


@given(st.permutations(range(216)))
def test_spread_ones_lie_as_far_apart_as_can_be_one_after_another(order):
    rows = portfolio.farthest(order, APART, 5)
    assert rows[0] == order[0] and len(set(rows)) == 5
    for place in range(1, 5):
        best = max(min(differ(row, other) for other in rows[:place]) for row in range(216))
        assert min(differ(rows[place], other) for other in rows[:place]) == best


def record(rows, results) -> Record:
    return Record("a", torch.zeros(2, 3), tuple(rows), tuple(results))


def test_averages_by_hand():
    found = portfolio.averages([record((0, 1), (3.0, 1.0)), record((1, 2), (8.0, 4.0))], 4)
    assert found.tolist() == pytest.approx([1 / 2, (-1 + 1) / 3, -1 / 2, 0])


def test_what_is_recommended_hangs_on_how_much_is_known():
    codes, order = coded(small.CHOICES), list(range(18))
    apart = portfolio.decisions_apart(codes)
    first = record((4, 9, 2), (1.0, 3.0, 2.0))
    assert portfolio.recommended(order, [], codes, 3) == portfolio.farthest(order, apart, 3)
    assert portfolio.recommended(order, [first], codes, 2) == [9, 0]  # then untried ones, by their scores
    assert portfolio.recommended(order, [first] * 2, codes, 4) == portfolio.diverse(order, apart, 4)


def test_a_client_recommends_what_its_pool_holds_and_scores_stay():
    platform, client = small.platform(), small.client()
    client.pool = [0, 2, 3, 7, 11, 16]
    torch.manual_seed(0)
    found = client.recommend(platform.offer(), 4)
    assert set(found.rows) <= set(client.pool) and len(set(found.rows)) == 4
    torch.manual_seed(0)
    plain = small.client(how=replace(small.HOW, portfolio=False))
    plain.pool = client.pool
    highest = plain.recommend(platform.offer(), 4)
    assert torch.equal(found.scores, highest.scores)
    assert (
        list(highest.rows) == sorted(client.pool, key=lambda row: -float(highest.scores[row]))[:4] != list(found.rows)
    )
