"""Tasks of lm-eval on a folded model, for those who have installed it."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def harness(model: nn.Module, tokenizer: Any, tasks: Sequence[str], limit: int | None = None) -> dict[str, Any]:
    """Results by task, as lm-eval gives them; `limit` examples a task. Downloads the tasks; needs lm-eval."""
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError("lm-eval is not installed: pip install lm-eval") from error
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer)
    return lm_eval.simple_evaluate(model=wrapped, tasks=list(tasks), limit=limit)["results"]
