"""Methods one after another: `lab.Chain` runs recipes in order, and reports on all of them in one table.

`rules` says which recipe may follow which, `stages` runs them, `functions` lets a function of the user's own stand
among them, `table` counts and times every stage in one way, `loading` reads a chain from its folder, `files` from TOML.
"""

from ..core.rooms import at_first_use
from .functions import Function, FunctionOutcome
from .outcome import ChainError, ChainOutcome
from .rules import Orders, chains
from .stages import Chain
from .table import ChainReport, ChainRow

__all__ = [
    "Chain",
    "ChainError",
    "ChainOutcome",
    "ChainReport",
    "ChainRow",
    "Function",
    "FunctionOutcome",
    "Orders",
    "chains",
]

__getattr__, __dir__ = at_first_use(globals(), "files", "loading", "view")
