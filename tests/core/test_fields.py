"""What a recipe's fields may hold: the limits themselves, and the one line that tells what was wrong."""

import inspect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lab
from lab.core.fields import Allowed, integer, one_of, real, some_of, validate

NOT_NUMBERS = ("1", None, True, False, math.nan, math.inf, -math.inf, 1j, [1], (), {}, np.ones(1), torch.ones(()))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe of one field."""

    field: Any = None


def refusal(allowed: Allowed, value: Any) -> str:
    """The message for a value that is not allowed, '' if it is."""
    try:
        validate(Recipe(field=value), field=allowed)
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("allowed", "good", "bad"),
    [
        (real(), (0, -1.5, 1e300, 10**30, np.float32(2), np.int8(1)), (10**400,)),
        (real(0), (0, 0.0, -0.0, 1e-320, 7), (-1, -1e-320)),
        (real(0, 1), (0, 1, 0.5, np.float16(0.5)), (-0.1, 1.0000001, np.float32(1.1))),
        (real(high=2), (-5, 2), (2.1,)),
        (real(above=0), (1e-320, 5), (0, 0.0, -1)),
        (real(high=1, above=0), (0.5, 1), (0, 1.5)),
        (integer(1), (1, 2, 10**40, np.int64(3), np.uint8(3)), (0, -1, 1.0, 1.5, np.float64(1))),
        (integer(0, 3), (0, 3), (-1, 4, 2.0)),
    ],
    ids=["any", "low", "both", "high", "above", "above and high", "whole", "whole both"],
)
def test_numbers(allowed, good, bad):
    assert [value for value in good if refusal(allowed, value)] == []
    assert [value for value in (*bad, *NOT_NUMBERS) if not refusal(allowed, value)] == []


@pytest.mark.parametrize(
    ("allowed", "good", "bad"),
    [
        (one_of("AR", "L1"), ("AR", "L1"), ("", "A", "ar", None, 1, ["AR"], np.array(["AR", "L1"]), ("AR", "L1"))),
        (one_of(2, 4.0), (2, 2.0, 4, np.int64(2)), (3, True, "2", None)),
        (one_of(True, False), (True, False, np.bool_(True)), (0, 1, None, "True")),
        (one_of(None, 1), (None, 1), (True, False, 0)),
    ],
    ids=["names", "numbers", "switch", "none"],
)
def test_choices(allowed, good, bad):
    assert [value for value in good if refusal(allowed, value)] == []
    assert [value for value in bad if not refusal(allowed, value)] == []


@pytest.mark.parametrize("value", [("a", "a"), ("c",), ("a", "c"), "a", "ab", None, 3, math.nan, {"a": 1}, ([],)])
def test_some_of_refuses(value):
    assert refusal(some_of("a", "b"), value) and refusal(some_of("a", "b", least=1), value)


def test_some_of_takes_what_is_listed_each_once():
    for value in (("a",), ("b", "a"), ["a", "b"]):
        assert not refusal(some_of("a", "b"), value) and not refusal(some_of("a", "b", least=1), value)
    assert not refusal(some_of("a", "b"), ())
    assert refusal(some_of("a", "b", least=1), ()) and refusal(some_of("a", "b", least=2), ("a",))


@pytest.mark.parametrize(
    ("allowed", "value", "message"),
    [
        (real(0), -1, "Recipe: field=-1 is not allowed: give a number >= 0"),
        (real(), "x", "Recipe: field='x' is not allowed: give a number"),
        (real(0, 0.5), 1, "Recipe: field=1 is not allowed: give a number >= 0 and <= 0.5"),
        (real(above=0), 0.0, "Recipe: field=0.0 is not allowed: give a number > 0"),
        (real(high=1, above=0), math.inf, "Recipe: field=inf is not allowed: give a number > 0 and <= 1"),
        (integer(1), 2.5, "Recipe: field=2.5 is not allowed: give an integer >= 1"),
        (integer(1, 8), 9, "Recipe: field=9 is not allowed: give an integer in 1..8"),
        (one_of("a", 2), "b", "Recipe: field='b' is not allowed: give one of 'a', 2"),
        (some_of("a", "b"), ("c",), "Recipe: field=('c',) is not allowed: give any of 'a', 'b', each once"),
        (some_of("a", "b", least=1), (), "Recipe: field=() is not allowed: give at least 1 of 'a', 'b', each once"),
    ],
)
def test_the_message_names_field_value_and_what_is_allowed(allowed, value, message):
    assert refusal(allowed, value) == message


def test_a_long_value_is_cut_to_one_line():
    message = refusal(real(), np.arange(10_000.0).reshape(100, 100))
    assert message.startswith("Recipe: field=array([[") and "..." in message and len(message) < 150


def test_fields_are_asked_in_order_and_only_those_named():
    @dataclass(frozen=True)
    class Pair:
        a: Any = -1
        b: Any = -1
        c: Any = -1

    with pytest.raises(ValueError, match="Pair: b=-1"):
        validate(Pair(), b=real(0), a=real(0))
    validate(Pair(a=1, b=1), a=real(0), b=real(0))


def test_numpy_numbers_become_plain_ones():
    recipe = Recipe(field=np.float64(0.25))
    validate(recipe, field=real(0))
    assert type(recipe.field) is float and repr(recipe) == "Recipe(field=0.25)"
    recipe = Recipe(field=np.int16(4))
    validate(recipe, field=integer(0))
    assert type(recipe.field) is int and recipe == Recipe(field=4)


@given(st.integers() | st.floats(), st.integers(-5, 5), st.integers(-5, 5))
def test_number_agrees_with_comparison(value, low, high):
    within = math.isfinite(value) and low <= value <= high
    assert bool(refusal(real(low, high), value)) != within
    assert bool(refusal(integer(low, high), value)) != (within and isinstance(value, int))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lab.GAL(lamda=0.1), r"GAL has no field 'lamda' \(did you mean 'lam'\?\); it has lam, mu, units, "),
        (lambda: lab.GAL(**{"x" * 3000: 1}), r"GAL has no field 'x{60,80}\.\.\.; it has lam, "),
        (lambda: lab.PAMS(q=1), "PAMS has no field 'q'; it has weight_bits, "),
        (lambda: lab.HyperFD(0.1), r"HyperFD takes its fields by name: give HyperFD\(\w+=0.1\)"),
    ],
)
def test_a_field_that_there_is_not_is_refused_with_the_nearest(make, message):
    with pytest.raises(TypeError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_every_recipe_takes_its_fields_by_name():
    for recipe in lab.RECIPES:
        with pytest.raises(TypeError, match=f"{recipe.__name__} has no field 'nothing'"):
            recipe(nothing=1)
        assert str(inspect.signature(recipe)).startswith("(*, ")
