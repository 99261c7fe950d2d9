"""What an exercise is: a question, its answer, and the hints that wrong answers deserve."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Answer = float | tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """What is asked, what is right, what people answer instead and the hint each of those deserves.

    `correct` is an int where a count is asked for, which must match exactly, a float that may be off by one percent, or
    words in order. `slips` maps a wrong answer to its hint; `start` is the hint for all others.
    """

    question: str
    correct: Answer
    slips: Mapping[Answer, str] = field(default_factory=lambda: MappingProxyType({}))
    start: str
    unit: str = "a number"
