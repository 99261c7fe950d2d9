"""Hybrid SD: edge-cloud collaborative inference for Stable Diffusion models (Yan et al., arXiv 2408.06646).

    idea        card follows
    equations   (1) model_of_step
"""

from .outcome import HybridSDOutcome
from .pipeline import Drawn, Split
from .prompts import PromptTask, embedded, scenes
from .recipe import HybridSD

__all__ = ["Drawn", "HybridSD", "HybridSDOutcome", "PromptTask", "Split", "embedded", "scenes"]
