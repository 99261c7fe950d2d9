"""Ctrl-C: a run that is stopped ends in two lines, which say what is kept of it and how it goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import store


class Stopped(KeyboardInterrupt):
    """A run was stopped by Ctrl-C; a notebook shows its message in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints of it."""
        return str(self).splitlines()


@contextmanager
def held(checkpoint: str | Path | None) -> Iterator[None]:
    """`store.held` for the length of a run, which Ctrl-C leaves as Stopped."""
    try:
        with store.held(checkpoint):
            yield
    except KeyboardInterrupt:
        raise Stopped(_lines(checkpoint)) from None


def _lines(checkpoint: str | Path | None) -> str:
    if checkpoint is None:
        return (
            "Stopped. Nothing is kept of this run, which has no checkpoint.\n"
            "With one, such as run(..., checkpoint='runs/mine'), the same call would go on from its last save."
        )
    kept = any(Path(checkpoint).rglob("*.json"))
    first = f"The run is kept in {str(checkpoint)!r} as it was last saved." if kept else "Nothing had been saved yet."
    return f"Stopped. {first}\nTo go on, run the same again: the same recipe, task, seed and checkpoint."
