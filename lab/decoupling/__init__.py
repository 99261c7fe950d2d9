"""Decoupling."""

from .outcome import DecouplingOutcome
from .recipe import Decoupling

__all__ = ["Decoupling", "DecouplingOutcome"]
