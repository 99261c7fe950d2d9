"""What is on its way out says so in one line, with what to write instead and the version that takes it away."""

import warnings


def deprecated(old: str, new: str, gone: str) -> None:
    """Warn that `old` is to be written `new` and works until version `gone`: called by what still serves `old`."""
    warnings.warn(f"{old} goes in version {gone}: write {new}", FutureWarning, stacklevel=3)
