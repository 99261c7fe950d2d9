"""lm-eval on a folded model, with tasks of its own or with the lab's questions; needs the extra `eval`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.distribution import install
from .measures import Question

NEXT_WORD = "lab_next_word"  # the name of the lab's questions as a task of lm-eval
_TASK = {
    "task": NEXT_WORD, "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
    "doc_to_text": "{{context}}", "doc_to_choice": "{{choices}}", "doc_to_target": 0, "target_delimiter": " ",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}], "metadata": {"version": 1},
}  # fmt: skip


def harness(
    model: nn.Module | str | Path,
    tokenizer: Any,
    tasks: Sequence[str],
    limit: int | None = None,
    include: str | Path | None = None,
) -> dict[str, Any]:
    """Results by task, as lm-eval's `hf` model gives them; `limit` examples a task.

    model: a model with its tokenizer, or the folder of a saved outcome, whose tokenizer it is then and whose code is
    run. include: a folder of tasks, such as `write_task` makes; others are downloaded. Needs lm-eval.
    """
    lm_eval = _library()
    from lm_eval.models.huggingface import HFLM

    source = str(model) if isinstance(model, str | Path) else model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wrapped = HFLM(pretrained=source, tokenizer=tokenizer, device=device, trust_remote_code=True)
    manager = lm_eval.tasks.TaskManager(include_path=None if include is None else str(include))
    results = lm_eval.simple_evaluate(
        model=wrapped, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=0
    )
    return results["results"]


def write_task(questions: Sequence[Question], folder: str | Path) -> str:
    """Write questions as a task of lm-eval into a folder, for `include`; gives the task's name."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"context": question.context, "choices": list(question.choices)}) + "\n" for question in questions
    ]
    (folder / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
    files: Mapping[str, Any] = {"data_files": {"test": str(folder / "questions.jsonl")}}
    # YAML reads JSON
    (folder / f"{NEXT_WORD}.yaml").write_text(json.dumps(_TASK | {"dataset_kwargs": files}), encoding="utf-8")
    return NEXT_WORD


def _library() -> Any:
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as error:
        raise ImportError(f"lm-eval is not installed: {install('eval')}") from error
    return lm_eval
