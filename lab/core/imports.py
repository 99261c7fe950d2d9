"""What torch imports when it is first needed, imported before a run begins.

An import that Ctrl-C breaks off leaves half of a library behind, with which no later run of the process gets far.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

LATE = ("torch._dynamo", "torch.fx.experimental.symbolic_shapes")  # by an optimiser, by a traced graph


def complete() -> None:
    """Import them all; Ctrl-C takes effect once that is done."""
    missing = [name for name in LATE if name not in sys.modules]
    if missing:
        with _postponed():
            for name in missing:
                import_module(name)


@contextmanager
def _postponed() -> Iterator[None]:
    """A block that Ctrl-C ends behind its last line; other threads than the first it never meets."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *given: noted.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if noted:
        raise KeyboardInterrupt
