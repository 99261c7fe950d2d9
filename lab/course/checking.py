"""An answer held to an exercise: right, or a hint that fits the mistake, and never the right answer itself."""

import math
import re
from dataclasses import dataclass
from typing import Any

from ..core.errors import cut, meant
from . import networks, systems
from .exercise import Answer, Exercise

EXERCISES: dict[str, tuple[Exercise, ...]] = {
    "tour": networks.TOUR, "gal": networks.GAL, "decoupling": networks.DECOUPLING, "pams": networks.PAMS,
    "dqss": networks.DQSS, "sparsebytenn": networks.SPARSEBYTENN, "foldgpt": systems.FOLDGPT,
    "hybridsd": systems.HYBRIDSD, "acenas": systems.ACENAS, "hyperfd": systems.HYPERFD, "chains": systems.CHAINS,
    "your_network": systems.YOUR_NETWORK, "lens": networks.LENS,
}  # fmt: skip
NUMBER = re.compile(r"\s*([-+]?[\d.,_ \u00a0\u202f]*\d\.?(?:[eE][-+]?\d+)?)(?:\s*/\s*(\d+\.?\d*))?\s*[^\d]*")
OFF = 0.01  # how far a real number may be off, as a share
NEAR = 0.05


@dataclass(frozen=True)
class Verdict:
    """What became of an answer: `right`, or a `hint`. It prints as one line, from which `grade` reads the answer."""

    notebook: str
    number: int
    answer: str
    right: bool = False
    hint: str = ""

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        start = f"{self.notebook} {self.number}: "
        if not self.answer:
            return start + self.hint
        return start + (f"{self.answer} is right" if self.right else f"{self.answer} is not it yet: {self.hint}")


def check(notebook: str, number: int, given: Any) -> Verdict:
    """Whether an answer to exercise `number` of a notebook, such as 'gal' or '01_gal', is right; else a hint.

    `given` is a number (of Python, numpy or torch, or a text such as '1,024', '3/7' or '60 %') or, where the exercise
    asks for names in order, a list of them or a text with commas. Nothing is kept. ValueError for an exercise that
    is not there.
    """
    name = re.sub(r"^\d+_", "", str(notebook))
    exercise = _exercise(name, number)
    if given is None or (isinstance(given, str) and not given.strip()):
        return Verdict(name, number, "", hint="no answer yet: put yours where None stands")
    value = _words(given) if isinstance(exercise.correct, tuple) else _number(given)
    if value is None:
        return Verdict(name, number, cut(str(given), 60), hint=f"give {exercise.unit}")
    if _fits(value, exercise.correct):
        return Verdict(name, number, _shown(value), right=True)
    return Verdict(name, number, _shown(value), hint=_hint(value, exercise))


def _exercise(name: str, number: int) -> Exercise:
    if name not in EXERCISES:
        raise ValueError(
            f"no exercises for {name!r}{meant(name, EXERCISES)}; there are some for {', '.join(EXERCISES)}"
        )
    exercises = EXERCISES[name]
    if isinstance(number, bool) or number not in range(1, len(exercises) + 1):
        raise ValueError(f"{name} has no exercise {number!r}: give a number from 1 to {len(exercises)}")
    return exercises[number - 1]


def _number(given: Any) -> float | None:
    """An answer as a number, None where it is none."""
    if isinstance(given, str):
        return _parsed(given)
    try:
        value = given.item() if hasattr(given, "item") else given
        number = None if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) else None


def _parsed(text: str) -> float | None:
    """A text as a number: commas and spaces between thousands, a comma before decimals, a fraction, a unit after it."""
    match = NUMBER.fullmatch(text)
    if match is None:
        return None
    digits = re.sub(r"[_ \u00a0\u202f]", "", match[1])
    thousands = re.fullmatch(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?", digits)
    digits = digits.replace(",", "" if thousands else ".")
    try:
        return float(digits) / float(match[2] or 1)
    except (ValueError, ZeroDivisionError):
        return None


def _words(given: Any) -> tuple[str, ...] | None:
    """An answer as words in order, in small letters; None where it is none."""
    parts = re.split(r"\s*(?:,|->|→|>|;|\s)\s*", given.strip()) if isinstance(given, str) else given
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        return None
    return tuple(word.strip(" '\"[]().").lower() for word in parts if word.strip(" '\"[]()."))


def _shown(value: Answer) -> str:
    return cut(", ".join(value), 60) if isinstance(value, tuple) else f"{value:.12g}"


def _fits(value: Answer, wanted: Answer) -> bool:
    """Whether an answer is that one: words and counts exactly, other numbers within one percent."""
    if isinstance(value, tuple) or isinstance(wanted, (tuple, int)):
        return value == wanted
    return math.isclose(value, wanted, rel_tol=OFF, abs_tol=1e-9)


def _hint(value: Answer, exercise: Exercise) -> str:
    """The hint for a wrong answer: of the nearest mistake that is known, of a usual one, or how to begin."""
    if isinstance(value, tuple) or isinstance(exercise.correct, tuple):
        return exercise.slips.get(value, exercise.start)
    slips = [slip for slip in exercise.slips if not isinstance(slip, tuple) and _fits(value, slip)]
    if slips:
        return exercise.slips[min(slips, key=lambda slip: abs(slip - value))]
    return _usual(value, float(exercise.correct), isinstance(exercise.correct, int), exercise.unit) or exercise.start


def _usual(value: float, correct: float, exact: bool, unit: str) -> str:
    """The hint for a mistake that people make with any number, '' where it is none of these."""
    if abs(value - correct) <= max(NEAR * abs(correct), 1.0 if exact else 0.0):
        return "very near, but a count is exact" if exact else "near: carry more digits, and round at the end"
    for factor, hint in (
        (-1, "the sign is wrong"),
        (2, "twice as much as it should be: is something counted twice?"),
        (1 / 2, "half of what it should be: is something forgotten?"),
        (1e2, f"a hundred times too much: the question asks for {unit}"),
        (1e-2, f"a hundredth of what it should be: the question asks for {unit}"),
    ):
        if _fits(value, factor * correct):
            return hint
    if any(_fits(value, correct * 10.0**power) for power in (-9, -6, -3, -1, 1, 3, 6, 9)):
        return f"off by a power of ten: the question asks for {unit}"
    if value and _fits(1 / value, correct):
        return "upside down: divide the other way round"
    if any(_fits(value, total - correct) for total in (1, 100) if 0 < correct < total):
        return "what is left and what is gone have changed places"
    return ""
