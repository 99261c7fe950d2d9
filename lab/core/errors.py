"""What an error says, in one line, and what libraries say besides, not at all."""

import difflib
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 300  # characters of an error's own words: a library may quote the whole of a damaged file


def first_line(error: BaseException) -> str:
    """The first line of an error's own words, cut where it is long; the name of its kind where it has none."""
    return cut(next(iter(str(error).splitlines()), "")) or type(error).__name__


def kind_and_line(error: BaseException) -> str:
    """The kind of an error and the first line of its words, as Python shows them."""
    return cut(f"{type(error).__name__}: {error}".splitlines()[0])


def shown(value: object) -> str:
    """A value that somebody else wrote, as it may stand in a line."""
    return cut(repr(value), 60)


def cut(text: str, most: int = LONGEST) -> str:
    """The text on one line, without its end where it is longer."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def meant(name: str, names: Iterable[str]) -> str:
    """ " (did you mean ...?)" with the one of `names` that is nearest to a name that is none; "" where none is near."""
    by_lower = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), by_lower, 1)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without the warnings of a block, and without what these loggers tell below an error."""
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in loggers]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
