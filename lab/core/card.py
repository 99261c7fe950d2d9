"""A folder's model card: README.md with the hub's head, figures made anew by every save, and the user's own words."""

import math
from pathlib import Path
from typing import Any

from . import store
from .report import Report

NAME = "README.md"
BEGIN, END = "<!-- the lab's part: made anew by every save -->", "<!-- end of the lab's part -->"


def write(folder: Path, old: Path, outcome: Any) -> None:
    """Write the card of an outcome into its new folder; what a user has added to the old folder's card stays.

    A README.md without the lab's part is another's file, and is left alone. The head needs the extra `hub`; without it
    the head stays as it was.
    """
    path = old / NAME
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not before or (BEGIN in before and END in before):
        store.write(folder / NAME, content(outcome, before).encode())


def content(outcome: Any, before: str = "") -> str:
    """The text of a card, with what a user has added to the one `before`."""
    head, text = _parted(before)
    above, _, rest = text.partition(BEGIN)
    below = rest.partition(END)[2]
    given = "license" in head
    middle = f"{BEGIN}\n{_figures(outcome, given)}\n{END}"
    return f"{_head(outcome, head)}{above}{middle}{below or chr(10)}"


def _parted(text: str) -> tuple[str, str]:
    """The head of a card with its fences, and the rest."""
    if not text.startswith("---\n") or "\n---\n" not in text[3:]:
        return "", text
    end = text.index("\n---\n", 3) + len("\n---\n")
    return text[:end], text[end:]


def _head(outcome: Any, before: str) -> str:
    """The head as the hub reads it: what the lab knows, and what a user has written there himself."""
    try:
        from huggingface_hub import ModelCard, ModelCardData
    except ImportError:
        return before
    facts = _facts(outcome)
    try:
        given = ModelCard(before, ignore_metadata_errors=True).data.to_dict() if before else {}
    except Exception:  # a head that is no YAML: the user's words are not the lab's to mend
        return before
    added = {name: value for name, value in given.items() if name not in facts and name != "model-index"}
    tags = [*facts["tags"], *(tag for tag in given.get("tags") or [] if tag not in facts["tags"])]
    return f"---\n{ModelCardData(**{**added, **facts, 'tags': tags}).to_yaml()}\n---\n"


def _facts(outcome: Any) -> dict[str, Any]:
    """What the head says of an outcome; the licence is the user's to state."""
    from huggingface_hub import EvalResult

    method, made = type(outcome.recipe).__name__, outcome.made
    facts = {
        "library_name": "lab", "tags": ["lab", "model-compression", method.lower()],
        "base_model": made.get("base_model"), "model_name": f"{method} of {made.get('network', 'a network')}",
    }  # fmt: skip
    score = _score(outcome.report, made.get("metric"))
    if score is None:
        return {name: value for name, value in facts.items() if value and name != "model_name"}
    metric, unit = made["metric"], made.get("unit") or ""
    result = EvalResult(
        task_type="other", dataset_type=_slug(made["task"]), dataset_name=made["task"], metric_type=_slug(metric),
        metric_name=f"{metric} in {unit}" if unit else metric, metric_value=score, metric_args={"seed": made["seed"]},
    )  # fmt: skip
    return {name: value for name, value in facts.items() if value} | {"eval_results": [result]}


def _score(report: Report, metric: str | None) -> float | None:
    """The score after, as precise as the report prints it; None where there is none."""
    if metric is None or metric not in report:
        return None
    row = report[metric]
    return None if row.after is None or not math.isfinite(row.after) else round(float(row.after), max(row.digits, 2))


def _slug(text: str) -> str:
    return "-".join("".join(char if char.isalnum() else " " for char in text.lower()).split()) or "other"


def _figures(outcome: Any, has_licence: bool) -> str:
    """What was done, to what, and what came of it, in Markdown."""
    made, recipe = outcome.made, outcome.recipe
    lines = [f"# {type(recipe).__name__} of {made.get('network', 'a network')}", "", f"`{recipe!r}`", ""]
    lines += _table(outcome.report)
    if made:
        machine = ", ".join(f"{name} {value}" for name, value in made["machine"].items())
        lines += [f"Task: {made['task']}; seed {made['seed']}. Measured on: {machine}.", ""]
    lines += [
        f"*{outcome.report.lines()[0][1]}* is the control: the network as it came, measured alike. Times are of one",
        "machine and mean nothing on another; a second seed gives another score.", "",
        "```python", "import lab", "", 'outcome = lab.load("this folder")  # or lab.load("hf://owner/name")', "```",
    ]  # fmt: skip
    return "\n".join(
        lines if has_licence else [*lines, "", "No licence is stated: add `license:` to this file's head."]
    )


def _table(report: Report) -> list[str]:
    """A report as a table of Markdown, with its notes."""
    head, *rows = report.lines()
    lines = [f"| {' | '.join(cells)} |" for cells in [head, ("---",) * len(head), *rows]]
    return [*lines, "", *(f"* {note}" for note in report.notes), ""]
