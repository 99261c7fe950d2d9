"""Laws of plans: what is stored comes back, masks may come in any order, and what is cut once is cut."""

import json
from random import Random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lab.core.graph.surgery import Plan, remove

NAMES = st.text(st.sampled_from("abc.0"), min_size=1, max_size=6)
KEPT = st.dictionaries(NAMES, st.lists(st.integers(0, 63), min_size=1, unique=True).map(lambda k: tuple(sorted(k))))
DROPPED = st.lists(NAMES, unique=True).map(tuple)


@settings(max_examples=40, deadline=None)
@given(st.builds(Plan, channels=KEPT, inputs=KEPT, outputs=KEPT, blocks=DROPPED, branches=DROPPED, embedding=KEPT))
def test_a_plan_comes_back_from_json(plan):
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, st.lists(st.booleans(), min_size=1, max_size=9).filter(any)), st.integers())
def test_masks_may_come_in_any_order(masks, number):
    given_ = [("channel", (name,), torch.tensor(mask)) for name, mask in masks.items()]
    plan = Plan.of(given_)
    Random(number).shuffle(given_)
    assert Plan.of(given_) == plan
    assert set(plan.channels) == {name for name, mask in masks.items() if not all(mask)}


@settings(max_examples=6, deadline=None)
@given(st.sets(st.integers(0, 5), min_size=1), st.sets(st.integers(0, 7), min_size=1))
def test_cutting_in_two_steps_is_cutting_at_once_and_all_that_is_left_cuts_nothing(first, second):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()
    x = torch.randn(1, 2, 7, 7)
    one, two = Plan({"0": tuple(sorted(first))}), Plan({"2": tuple(sorted(second))})
    once = remove(net, Plan(one.channels | two.channels), x)
    twice = remove(remove(net, one, x), two, x)
    again = remove(once, Plan({"0": tuple(range(len(first))), "2": tuple(range(len(second)))}), x)
    for other in (twice, again):
        assert {k: v.tolist() for k, v in other.state_dict().items()} == {
            k: v.tolist() for k, v in once.state_dict().items()
        }
