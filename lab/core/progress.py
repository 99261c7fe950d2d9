"""The progress bar of every wait: tqdm's, in notebooks and terminals."""

import os
from typing import Any

from tqdm import auto

OFF = "TQDM_DISABLE"  # tqdm reads it itself only where its caller does not say `disable`


def tqdm(*args: Any, disable: bool = False, **options: Any) -> Any:
    """A progress bar, which TQDM_DISABLE=1 hides: notebooks are stored and compared without bars."""
    return auto.tqdm(*args, disable=disable or os.environ.get(OFF, "0") not in ("", "0"), **options)
