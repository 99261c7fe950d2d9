"""What the methods work with: networks by name, each method's outcome on each, and the figures that follow."""

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .core.distribution import needed

PATH = Path(__file__).with_name("registry.json")
COLUMNS = ("outcome", "structures", "reachable", "error", "onnx", "seconds", "megabytes", "why")
MARKS = {"works": "yes", "refused": "no", "skipped": "-"}  # of an outcome in a table; all others stand as they are


@dataclass(frozen=True)
class Trial:
    """One method on one network.

    outcome: 'works', 'refused' (by the lab, in one line), 'different', 'failed', 'hangs', 'memory' or 'skipped'.
    structures: what the method treats, counted. reachable: the share of the parameters in weights that it changes.
    error: the largest difference of what must be equal, relative to the largest output, taken in double precision where
    single precision gives more than 1e-5. onnx: the same between torch and onnxruntime; of quantised networks the share
    of codes that differ, by one step each. seconds, megabytes: what the attempt took of a processor and of memory.
    why: the line of what does not work.
    """

    outcome: str
    structures: str | None = None
    reachable: float | None = None
    error: float | None = None
    onnx: float | None = None
    seconds: float | None = None
    megabytes: float | None = None
    why: str | None = None

    @property
    def works(self) -> bool:
        """Whether what is asked of the method held."""
        return self.outcome == "works"

    def cells(self) -> tuple[str, ...]:
        """The columns of a table of trials."""
        shares = "" if self.reachable is None else f"{100 * self.reachable:.0f} %"
        errors = ["" if value is None else f"{value:.0e}" for value in (self.error, self.onnx)]
        costs = ["" if value is None else f"{value:,.0f}" for value in (self.seconds, self.megabytes)]
        return self.outcome, self.structures or "", shares, *errors, *costs


@dataclass(frozen=True, repr=False)
class Entry:
    """One network of the registry: where it comes from, its kind, its size, and the trial of each method."""

    name: str
    source: str
    kind: str
    side: int | None
    parameters: int | None
    trials: dict[str, Trial]

    def __getitem__(self, method: str) -> Trial:
        if method not in self.trials:
            raise KeyError(f"{self.name} was not tried with {method!r}: it was with {', '.join(self.trials)}")
        return self.trials[method]

    @property
    def title(self) -> str:
        size = "" if self.parameters is None else f", {self.parameters / 1e6:,.1f} M parameters"
        side = "" if self.side is None else f", {self.side} x {self.side} pixels"
        return f"{self.name} ({self.source}, {self.kind}{size}{side})"

    def _table(self) -> tuple[list[tuple[str, ...]], list[str]]:
        """A row for each method, and the reasons below."""
        head = ("", "outcome", "structures", "reachable", "error", "onnx", "s", "MB")
        rows = [(method, *trial.cells()) for method, trial in self.trials.items()]
        return [head, *rows], [f"{method}: {trial.why}" for method, trial in self.trials.items() if trial.why]

    def __repr__(self) -> str:
        rows, notes = self._table()
        return "\n".join([self.title, *_lines(rows), *notes])

    def _repr_html_(self) -> str:
        rows, notes = self._table()
        return _table(self.title, rows) + "".join(f"<p>{html.escape(note)}</p>" for note in notes)


@dataclass(frozen=True, repr=False, eq=False)
class Registry:
    """Networks by name and what each method did with them; `registry["resnet18"]` is one, `to_frame()` all trials.

    `content` is what `benchmarks/registry.py` writes; `figures` are its counts of counts, beside what was asked for.
    """

    content: dict[str, Any]

    @property
    def figures(self) -> list[dict[str, Any]]:
        """What was asked and reached: figure, asked (a share in per cent, or a count), reached, of."""
        return list(self.content["figures"])

    @property
    def methods(self) -> list[str]:
        """All methods that were tried, in order."""
        return list(dict.fromkeys(method for entry in self for method in entry.trials))

    def __len__(self) -> int:
        return len(self.content["networks"])

    def __iter__(self) -> Iterator[Entry]:
        return (self[name] for name in self.content["networks"])

    def __getitem__(self, name: str) -> Entry:
        networks = self.content["networks"]
        if name not in networks:
            near = get_close_matches(str(name), list(networks), 3, 0.5) or list(networks)[:3]
            raise ValueError(f"{name!r} is none of the {len(networks)} networks that were tried: see {', '.join(near)}")
        row = dict(networks[name])
        trials = {method: self._trial(values) for method, values in row.pop("methods").items()}
        return Entry(name=name, trials=trials, **row)

    def _trial(self, values: list[Any]) -> Trial:
        trial = dict(zip(COLUMNS, values, strict=False))
        if trial.get("why") is not None:
            trial["why"] = self.content["reasons"][trial["why"]]
        return Trial(**trial)

    def to_frame(self) -> Any:
        """A row for each trial, indexed by network and method, as a pandas DataFrame."""
        with needed():
            import pandas

        rows = [
            {"network": entry.name, "method": method, "source": entry.source, "kind": entry.kind, **vars(trial)}
            for entry in self
            for method, trial in entry.trials.items()
        ]
        return pandas.DataFrame(rows).set_index(["network", "method"])

    def _figures(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("", "asked", "reached", "of")]
        for figure in self.figures:
            n, of, asked = figure["reached"], figure["of"], figure["asked"]
            share = f" ({100 * n / of:.0f} %)" if asked != 0 else ""
            wanted = "" if asked is None else f"{asked} %" if asked else "0"
            rows.append((figure["figure"], wanted, f"{n}{share}", f"{of:,}"))
        return rows

    def to_markdown(self) -> str:
        """The figures as a table of Markdown, the README's."""
        head, *rows = (f"| {' | '.join(row)} |" for row in self._figures())
        return "\n".join([head, "|---|---|---|---|", *rows])

    def _outcomes(self) -> list[tuple[str, ...]]:
        methods = self.methods
        rows: list[tuple[str, ...]] = [("", "from", "kind", *methods)]
        for entry in self:
            cells = [entry.trials[m].outcome if m in entry.trials else "" for m in methods]
            rows.append((entry.name, entry.source, entry.kind, *(MARKS.get(cell, cell) for cell in cells)))
        return rows

    def _title(self) -> str:
        versions = self.content["made"]["versions"]
        shown = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
        return f"{len(self)} networks, random weights ({shown})"

    def __repr__(self) -> str:
        return "\n".join([self._title(), *_lines(self._figures()), "", *_lines(self._outcomes())])

    def _repr_html_(self) -> str:
        return _table(self._title(), self._figures()) + _table("Each network", self._outcomes())


def works_with(name: str | None = None) -> Registry | Entry:
    """What the methods were tried on and how it went: all networks, or the one of this name.

    Read from the package; `benchmarks/registry.py` measures it. ValueError in one line for a name that is not there.
    """
    registry = Registry(json.loads(PATH.read_text()))
    return registry if name is None else registry[name]


def _lines(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _table(title: str, rows: list[tuple[str, ...]]) -> str:
    left = 'style="text-align:left"'
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    caption = f"<caption {left}>{html.escape(title)}</caption>"
    top = "".join(f"<th {left}>{cell}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td {left}>{cell}</td>' for cell in row)}</tr>" for row in body)
    return f"<table>{caption}<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"
