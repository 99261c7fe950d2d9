"""FoldGPT: layer removal and sharing for language models."""
from .outcome import FoldGPTOutcome
from .recipe import FoldGPT

__all__ = ["FoldGPT", "FoldGPTOutcome"]
