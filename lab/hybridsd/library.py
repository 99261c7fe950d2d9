"""diffusers, imported where it is used, and kept quiet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def diffusers() -> Any:
    """The library, or an error that names the extra."""
    try:
        import diffusers as library
    except ImportError as error:
        raise ImportError("Hybrid SD needs diffusers and transformers: pip install 'lab[diffusion]'") from error
    return library


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice of diffusers and transformers for a block, then as it was."""
    from transformers.utils import logging as theirs

    ours = diffusers().utils.logging
    logs, before = (ours, theirs), [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in (ours, theirs)]
    try:
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        for log, (verbosity, bar) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            (log.enable_progress_bar if bar else log.disable_progress_bar)()
