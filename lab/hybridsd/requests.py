"""What a pipeline is asked to draw: held against what can be drawn before anything is computed."""

import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from ..core.service import ServiceError
from .editing import Edit


def validated_turns(steps: Any, order: Any, models: int) -> tuple[list[int], list[int]]:
    """The steps of each turn and its model, of so many models; ValueError unless there is a count for each."""
    order = range(models) if order is None else order
    if not isinstance(order, Sequence) or not order or not all(is_count(i) and i < models for i in order):
        raise ValueError(f"order={order!r} is not allowed: give models of 0..{models - 1}, one for each turn")
    counts = list(steps) if isinstance(steps, Sequence) else []
    if len(counts) != len(order) or not all(map(is_count, counts)) or sum(counts) < 1:
        raise ValueError(f"steps={steps!r} is not allowed: give {len(order)} integers >= 0, not all 0")
    return counts, list(order)


def chosen(pipeline: Any, policy: Any, guidance: float, steps: Any, order: Any) -> tuple[Any, Any, str]:
    """The steps and the order that a policy chooses for a pipeline, and a note of them.

    Those of the edge alone where the cloud does not even answer how fast it is.
    """
    if steps is not None or order is not None or not callable(getattr(policy, "choice", None)):
        raise ValueError(
            f"policy={policy!r} with steps={steps!r}, order={order!r} is not allowed: give steps, or a "
            "lab.hybridsd.policies.Policy alone, such as Policy('latency', outcome.points)"[:300]
        )
    try:
        choice = policy.choice(pipeline, guidance)
    except ServiceError as error:
        note = f"policy {policy.name!r}: the cloud could not be timed ({error}), so the edge draws alone"
        warnings.warn(note, stacklevel=4)
        return (0, max(point.k for point in policy.points)), (0, 1), note
    way = "first" if choice.order == (0, 1) else "last"
    note = f"policy {policy.name!r}: the cloud takes the {way} {choice.point.k} of {choice.N} steps"
    return choice.steps, choice.order, note


def validate_drawable(prompts: Sequence[str], guidance: float, seed: Any, negative: Any, edit: Any) -> None:
    """ValueError in one line unless these can be drawn."""

    def for_each(value: Any, holds: Callable[[Any], bool]) -> bool:
        is_list = isinstance(value, list | tuple)
        return (len(value) == len(prompts) and all(map(holds, value))) if is_list else holds(value)

    images = 1 if not isinstance(edit, Edit) else max(len(x) for x in (edit.image, edit.mask) if x is not None)
    allowed = {
        "prompts": (prompts, prompts and all(isinstance(p, str) for p in prompts), "a text, or a list of one or more"),
        "guidance": (guidance, isinstance(guidance, Real) and math.isfinite(guidance), "a finite number"),
        "seed": (seed, for_each(seed, _is_seed), "an integer of 64 bits, or a list of one for each prompt"),
        "negative": (
            negative,
            negative is None or for_each(negative, lambda text: isinstance(text, str)),
            "one text for all prompts, a list of one for each, or None",
        ),
        "edit": (
            edit,
            edit is None or (isinstance(edit, Edit) and images in (1, len(prompts))),
            "a lab.hybridsd.Edit of one picture, or of one for each prompt",
        ),
    }
    for name, (value, holds, words) in allowed.items():
        if not holds:
            raise ValueError(f"{name}={value!r} is not allowed: give {words}"[:300])


def _is_seed(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and -(2**63) <= int(value) < 2**63


def is_count(value: Any) -> bool:
    """Whether this is an integer of 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
