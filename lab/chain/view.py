"""A chain seen: a slider over its stages, what each has left of the network, and behind it the stage's own view."""

from functools import lru_cache
from typing import Any

from ..core.report import attempt
from ..ui import Control, Explorer, Frame, svg, view
from .functions import FunctionOutcome
from .outcome import ChainOutcome
from .table import ChainReport, ChainRow


def numbers(outcome: ChainOutcome, stage: int) -> dict[str, tuple[float, float]]:
    """What is left behind a stage (0 is the start) and the most there ever was, of all rows but the score."""
    sizes = {row.name: row.values for row in _rows(outcome) if row.kind != "learned"}
    counted = {name: values for name, values in sizes.items() if values[stage] is not None}
    return {name: (values[stage] or 0.0, max(v for v in values if v is not None)) for name, values in counted.items()}


def scores(outcome: ChainOutcome) -> list[tuple[float, float]]:
    """(stage, score) of all stages that know their score."""
    return [(float(i), v) for i, v in enumerate(_score(outcome).values) if v is not None]


@view.register
def explore(outcome: ChainOutcome, stage: int | None = None) -> Any:
    """A slider over the stages; with `stage`, from 1 on, the view that this stage has of itself."""
    if stage is not None:
        if stage not in range(1, len(outcome.outcomes) + 1):
            raise ValueError(f"stage={stage!r}: this chain has the stages 1 to {len(outcome.outcomes)}")
        return view(outcome.outcomes[stage - 1])
    units = {row.name: row.unit for row in _rows(outcome)}
    names, curve = _report(outcome).columns, svg.Series("score", scores(outcome))
    score = _score(outcome)
    label = f"{score.name} ({score.unit})" if score.unit else score.name

    @lru_cache
    def behind(stage: int) -> str:
        """The picture of a stage's own view, as it opens; '' for the start and for a function."""
        if not stage or isinstance(outcome.outcomes[stage - 1], FunctionOutcome):
            return ""
        shown, _ = attempt("no picture", view, outcome.outcomes[stage - 1])
        return shown.frame.svg if isinstance(shown, Explorer) else ""

    def draw(stage: int) -> Frame:
        left = [
            (f"{name} ({units[name]})" if units[name] else name, _short(value), _short(most))
            for name, (value, most) in numbers(outcome, stage).items()
        ]
        parts = [svg.bars(left, title=f"left after {names[stage]}" if stage else "at the start", share=True)]
        parts.append(svg.lines([curve], "stage", label, at=float(stage)))
        facts = {row.name: f"{row.shown(row.values[stage])} {row.unit}".rstrip() for row in _rows(outcome)}
        return Frame("".join(parts) + behind(stage), {"stage": names[stage], **facts})

    control = Control(tuple(range(len(names))), label="stage", start=len(names) - 1)
    return Explorer(draw, {"stage": control}, title=" → ".join(name.split(" ", 1)[-1] for name in names))


def _short(value: float) -> float:
    """Counts in full, times to three digits."""
    return value if float(value).is_integer() else float(f"{value:.3g}")


def _report(outcome: ChainOutcome) -> ChainReport:
    if not isinstance(outcome.report, ChainReport):  # one that failed, and says why
        raise ValueError(f"this chain has no report over its stages: {'; '.join(outcome.report.notes)}")
    return outcome.report


def _score(outcome: ChainOutcome) -> ChainRow:
    """The row of the score, which stands last."""
    return _rows(outcome)[-1]


def _rows(outcome: ChainOutcome) -> list[ChainRow]:
    return [row for row in _report(outcome) if isinstance(row, ChainRow)]
