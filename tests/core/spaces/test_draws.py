"""Draws hang on what a thing is, not on where it stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.core.spaces.draws import draw, mixed


@pytest.mark.slow
@given(st.lists(st.text(max_size=3), unique=True, max_size=8), st.integers(0, 9), st.randoms())
def test_the_same_things_come_alike_however_they_stood(things, seed, random):
    moved = random.sample(things, len(things))
    assert [things[place] for place in mixed(things, seed)] == [moved[place] for place in mixed(moved, seed)]


def test_draws_are_even_and_the_seeds_own():
    drawn = [draw(k, 0) for k in range(4000)]
    assert 0 <= min(drawn) and max(drawn) < 1
    assert all(abs(sum(tenth <= x < tenth + 0.1 for x in drawn) - 400) < 100 for tenth in (k / 10 for k in range(10)))
    assert mixed(range(9), 0) != mixed(range(9), 1)
