"""What changed, as numbers: one table shared by every method."""

import html
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from . import cost
from .distribution import needed

Kind = Literal["exact", "learned", "timed"]
Value = TypeVar("Value")
SECONDS = 5.0  # after which a report times no further rounds


def attempt(label: str, function: Callable[..., Value], *args: object) -> tuple[Value | None, str | None]:
    """What `function(*args)` gives, and no note; or None and the note `label: cause`, in one line, if it fails.

    For what comes after training: a measurement or an export that fails must not take the trained network with it.
    """
    try:
        return function(*args), None
    except Exception as error:
        cause = " ".join(str(error).split()) or "no reason given"
        kind = "" if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: "
        return None, f"{label}: {kind}{cause if len(cause) <= 200 else f'{cause[:197]}...'}"


def reported(title: str, function: Callable[..., "Report"], *args: object) -> "Report":
    """The report that `function(*args)` gives; an empty one that says why where it fails."""
    report, note = attempt("no report", function, *args)
    return Report(title, (), (str(note),)) if report is None else report


def grouped_by_reason(heading: str, reasons: Mapping[str, str]) -> list[str]:
    """Notes `heading reason: names`, one for each reason; `reasons` gives the reason of each name."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [f"{heading} {reason}: {', '.join(alike)}" for reason, alike in names.items()]


class Attempts:
    """Measurements of one report: `attempts(label, function, *args)` gives a value, or None and one more of `notes`."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __call__(self, label: str, function: Callable[..., Value], *args: object) -> Value | None:
        value, note = attempt(label, function, *args)
        self.notes += [note] if note else []
        return value

    def pair(
        self, label: str, function: Callable[..., Value], before: object, after: object, *args: object
    ) -> tuple[Value | None, Value | None]:
        """`function(net, *args)` of the network before and of the one after, None for one that fails."""
        return self(label, function, before, *args), self(label, function, after, *args)

    def times(self, before: Any, after: Any, example: Any) -> tuple[float | None, float | None]:
        """The median latencies of both networks in ms, measured in turns."""
        timed = self("latency", partial(cost.latencies, seconds=SECONDS), {"before": before, "after": after}, example)
        return (None, None) if timed is None else (timed["before"].median, timed["after"].median)


@dataclass(frozen=True)
class Row:
    """One quantity before and after.

    `exact` ones (counts, bytes) print in full, `learned` ones to `digits` decimals, those that repeat from machine
    to machine; `timed` ones differ from run to run and take no part in the equality of reports.
    """

    name: str
    before: float | None
    after: float | None
    unit: str = ""
    kind: Kind = "exact"
    digits: int = 1

    def shown(self, value: float | None) -> str:
        """The value as the table prints it."""
        if value is None or math.isnan(value):
            return "-"
        return f"{value:,.0f}" if self.kind == "exact" else f"{value:,.{self.digits}f}"

    @property
    def ratio(self) -> float:
        """How many times smaller the value became: before / after."""
        return self.before / self.after if self.before is not None and self.after else math.nan

    @property
    def change(self) -> float:
        """after - before, in the row's unit."""
        return math.nan if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True, eq=False)
class Report:
    """A titled table of rows; `report["macs"].ratio`, `to_frame()`, `notes` for what the reader must know."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row {name!r}; this report has {', '.join(row.name for row in self.rows)}")

    def __contains__(self, name: object) -> bool:
        return any(row.name == name for row in self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Report) and self._repeatable() == other._repeatable()

    def __hash__(self) -> int:
        return hash(self._repeatable())

    def _repeatable(self) -> tuple:
        return self.title, tuple(row for row in self.rows if row.kind != "timed"), self.notes

    def lines(self) -> list[tuple[str, ...]]:
        """The cells as they are shown, the head first: a name, numbers, a unit."""
        rows = [(row.name, row.shown(row.before), row.shown(row.after), row.unit) for row in self.rows]
        return [("", "before", "after", "unit"), *rows]

    def __repr__(self) -> str:
        table = self.lines()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for name, *numbers, unit in table:
            middle = [f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:-1], strict=True)]
            lines.append("  ".join([f"{name:<{widths[0]}}", *middle, unit]).rstrip())
        return "\n".join([self.title, *lines, *self.notes])

    def _repr_html_(self) -> str:
        (_, *names, unit), *body = self.lines()
        left, right = 'style="text-align:left"', 'style="text-align:right"'
        head = "".join(f"<th {right}>{html.escape(name)}</th>" for name in names)
        rows = "".join(
            f"<tr><td {left}>{html.escape(name)}</td>{''.join(f'<td {right}>{cell}</td>' for cell in cells)}"
            f"<td {left}>{html.escape(last)}</td></tr>"
            for name, *cells, last in body
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        caption = f"<caption {left}><code>{html.escape(self.title)}</code></caption>"
        top = f"<tr><th></th>{head}<th {left}>{unit}</th></tr>"
        return f"<table>{caption}<thead>{top}</thead><tbody>{rows}</tbody></table>{notes}"

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame, indexed by name, in full precision."""
        with needed():
            import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows]).set_index("name").drop(columns="digits")

    def to_dict(self) -> dict:
        """The report as plain JSON values."""
        return {"title": self.title, "rows": [asdict(row) for row in self.rows], "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: dict) -> "Report":
        """The report that `to_dict` wrote."""
        return cls(values["title"], tuple(Row(**row) for row in values["rows"]), tuple(values["notes"]))
