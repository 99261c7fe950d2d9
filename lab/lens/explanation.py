"""Before and after on one page: what a compressed network has kept, what it has lost, and whether the pair is sound."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..core import store, tasks
from ..core.errors import meant
from ..core.models import checked
from ..core.outcome import Outcome
from ..core.program import Program
from ..core.report import Report, Row, attempt
from ..core.task import Task
from ..ui import Explorer, page
from .changes import Section, calibration, classes, flips, images, robustness
from .examples import CLASSES, SCORES, Compared, as_shown, compared
from .inside import blocks, feature_maps, filters_lost, heads
from .sanity import ALARMS, LEVEL, Check, checks
from .words import words

SIZE = 500_000  # bytes of a page
_STEPS = 6  # of a diffusion model's that are shown
_SECTIONS = (classes, flips, calibration, robustness, images, feature_maps, filters_lost, heads, blocks)
_STYLE = """<style>
.lab-explanation{max-width:1100px;margin:auto;font:15px/1.5 system-ui,sans-serif}
.lab-explanation table{border-collapse:collapse}.lab-explanation .scroll{overflow-x:auto}
.lab-explanation th,.lab-explanation td{padding:2px 10px 2px 0}
.lab-explanation caption code{white-space:normal;overflow-wrap:anywhere}
.lab-explanation section{margin-top:2rem}.lab-explanation h2{font-size:1.15em;margin:0}
.lab-explanation .checked td:not(:nth-child(3)){white-space:nowrap}
@media(max-width:700px){.lab-explanation .picture{overflow-x:auto}.lab-explanation .picture svg{max-width:none}
.lab-explanation svg.lab-alone{margin-right:0}.lab-explanation .checked td:nth-child(3){min-width:14em}}
.lab-explanation p{margin:.4em 0}.lab-explanation .alarm{border-left:4px solid #D55E00;padding-left:10px}
</style>"""


_PAIRS = (
    f"What knows nothing passes a check against chance at most once in {1 / LEVEL:,.0f}. The checks of the loss, of "
    "other numbers of the classes and of other preparations raise an alarm on a sound pair in at most "
    f"{ALARMS:.0%} of pages, all together (exact tests, Bonferroni)."
)


@dataclass(frozen=True, repr=False, eq=False)
class Explanation:
    """Two networks on the same examples: a report, checks of whether they are what they are taken for, and pictures.

    `report` has the numbers, `checks` what was checked, `alarms` what is wrong, `sections` the rest; `save(path)`
    writes all of it as one page that needs no kernel. `worth` says what an alarm is worth.
    """

    report: Report
    checks: tuple[Check, ...]
    sections: tuple[Section, ...]
    worth: str = _PAIRS

    @property
    def alarms(self) -> tuple[str, ...]:
        """What is wrong with the pair, a line each; empty where nothing is."""
        return tuple(check.text for check in self.checks if check.alarm)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain values."""
        numbers = {section.title: section.numbers for section in self.sections}
        return {"report": self.report.to_dict(), "checks": [asdict(check) for check in self.checks], **numbers}

    def save(self, path: str | Path) -> Path:
        """Write one HTML page below 500 kB that shows everything without a kernel or a network; returns its path."""
        content = page(self.report.title, [_STYLE, '<div class="lab-explanation">', *self._parts(), "</div>"])
        if len(content) > SIZE:
            raise ValueError(
                f"the page would have {len(content):,} bytes, over {SIZE:,}: give fewer or smaller pictures"
            )
        store.write(Path(path), content)
        return Path(path)

    def _parts(self) -> Iterable[str | tuple[Explorer, bytes]]:
        yield f"<h1>{escape(self.report.title)}</h1>{self._verdict()}"
        yield f'<section><h2>Numbers</h2><div class="scroll">{self._table()}</div></section>'
        for section in self.sections:
            yield f"<section><h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>"
            shapes = "".join(part for part in section.parts if isinstance(part, str))
            yield f'<div class="lab-explorer"><div class="picture">{shapes}</div></div>' if shapes else ""
            for part in section.parts:
                if isinstance(part, Explorer):
                    yield part, part.states()
            yield "</section>"
        yield f"<section><h2>What was checked</h2>{self._checked()}</section>"

    def _table(self) -> str:
        return re.sub(r"<caption.*?</caption>", "", self.report._repr_html_())

    def _verdict(self) -> str:
        if not self.alarms:
            return f"<p><b>No alarm</b> in {len(self.checks)} checks.</p>"
        lines = "".join(f"<p>{escape(text)}.</p>" for text in self.alarms)
        return f'<div class="alarm" role="alert"><p><b>{_alarms(len(self.alarms))}</b></p>{lines}</div>'

    def _checked(self) -> str:
        rows = "".join(
            f"<tr><td>{'<b>alarm</b>' if check.alarm else 'passed'}</td><td>{escape(check.name)}</td>"
            f"<td>{escape(check.text)}</td><td>{'' if check.p is None else f'p = {check.p:.2g}'}</td></tr>"
            for check in self.checks
        )
        return f'<div class="scroll checked"><table>{rows}</table></div><p>{escape(self.worth)}</p>'

    def __repr__(self) -> str:
        verdict = [f"{_alarms(len(self.alarms))}:", *(f"  {text}" for text in self.alarms)]
        lines = verdict if self.alarms else [f"No alarm in {len(self.checks)} checks"]
        return "\n".join([repr(self.report), *lines, *(f"{s.title}: {s.text}" for s in self.sections)])

    def _repr_html_(self) -> str:
        from ..ui import still

        body = f"<h3>{escape(self.report.title)}</h3>{self._verdict()}{self._table()}"
        for section in self.sections:
            shapes = [part.frame.svg if isinstance(part, Explorer) else part for part in section.parts]
            body += f"<h4>{escape(section.title)}</h4><p>{escape(section.text)}</p>{still.images(''.join(shapes))}"
        return f"<!--lab picture-->{body}<!--end-->"


def _alarms(count: int) -> str:
    return "1 alarm" if count == 1 else f"{count} alarms"


def compare(
    before: nn.Module,
    after: nn.Module,
    batches: Iterable,
    *,
    classes: Sequence[str] = (),
    kept: Mapping[str, Sequence[int]] | None = None,
    places: Mapping[str, Sequence[int]] | None = None,
    most: int = 256,
    seed: int = 0,
) -> Explanation:
    """What became of a network: an explanation of the change from `before` to `after` on the same examples.

    `batches` are held out, (x, y) or x, as the networks take them: pictures (N, C, H, W) or tokens (N, T). Networks
    give (N, classes), (N, classes, H, W), (N, T, tokens) or pictures. `classes` names the classes; `kept` names, by
    layer, the filters before that stayed, else they are matched; `places` are the tokens of each word of the text that
    a diffusion model reads, whose inputs are a dictionary, a batch a step. At most `most` examples are looked at, 32
    where outputs are large. ValueError in one line for what cannot be compared.
    """
    batches = _listed(batches)
    pair = compared(before, after, batches, classes, _validate_kept(before, kept or {}), most, seed)
    return _explained(pair, f"{type(before).__name__}: before and after", _word_sections(pair, batches, places))


def explained(outcome: Outcome, task: Any = None, batches: Iterable | None = None, **options: Any) -> Explanation:
    """What an outcome has made of its task's network: `Outcome.explain`."""
    if not isinstance(outcome, Outcome):
        raise TypeError(f"explained() takes the outcome of a run, not a {type(outcome).__name__}: give GAL's")
    model, name = getattr(outcome, "model", None), type(outcome.recipe).__name__
    if not isinstance(model, nn.Module) or isinstance(model, Program):
        raise ValueError(f"{name} leaves no network that could be explained: give two networks to lab.lens.compare")
    task = _task_of(outcome) if task is None else task
    if not isinstance(task, Task):
        raise TypeError(f"explain() takes the task of the run, not a {type(task).__name__}: give lab.Task(...)")
    some = task.eval_batches() if batches is None else _listed(batches)
    batches = [(task.inputs_of(batch), task.labels_of(batch)) for batch in some]
    _validate_kept(task.model, options.get("kept", {}))
    plan = getattr(outcome, "plan", None)
    kept = {"kept": dict(plan.channels) if plan is not None else {}} | options
    is_numbered = not any(hasattr(outcome, name) for name in ("orders", "fold"))  # filters or blocks have other numbers
    places = kept.pop("places", None)
    settings: dict[str, Any] = {"classes": (), "most": 256, "seed": 0} | kept
    if unknown := sorted(settings.keys() - {"classes", "kept", "most", "seed"}):
        raise TypeError(f"explain() takes no {unknown[0]!r}: give classes, kept, places, most or seed")
    pair = compared(task.model, model, batches, **settings, is_numbered=is_numbered, is_ordered=True)
    return _explained(pair, f"{name}: before and after", _word_sections(pair, batches, places))


def _validate_kept(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    """What stayed, by layers that the network has; ValueError in one line for another."""
    names = [name for name, _ in checked(model).named_modules(remove_duplicate=False) if name]
    for name in kept:
        if name not in names:
            raise ValueError(f"kept={name!r} is no layer of {type(model).__name__}{meant(str(name), names)}")
    return kept


def _listed(batches: Iterable) -> Iterable:
    if isinstance(batches, (str, bytes)) or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise TypeError(f"batches is a {type(batches).__name__}: give a DataLoader or a list of batches (x, y)")
    return batches


def _task_of(outcome: Outcome) -> Task:
    """The lab's own task that a recipe ran on by itself, made again; ValueError where it was another one."""
    makers: dict[str, Callable[[], Task]] = {
        "digits": tasks.digits, "digits 32 x 32": lambda: tasks.digits(size=32, channels=3), "photos x2": tasks.photos,
        "prose": tasks.prose,
    }  # fmt: skip
    made = outcome.made
    metric = str(made.get("metric"))
    needed = ValueError("explain() needs the network as it was: give the task of the run, outcome.explain(task)")
    if made.get("task") not in makers or metric not in outcome.report:
        raise needed
    task = makers[made["task"]]()
    before = outcome.report[metric].before
    if before is None or not np.isclose(task.measure(task.model), before, rtol=1e-3):
        raise needed  # the task of that name, with a network of the user's own
    return task


def _explained(pair: Compared, title: str, more: Sequence[Section]) -> Explanation:
    sections = list(more)
    for make in _SECTIONS:
        section, note = attempt(make.__name__.replace("_", " "), make, pair)
        if note is not None:
            sections.append(Section(make.__name__.replace("_", " ").capitalize(), f"Not shown: {note}.", {}))
        elif section is not None:
            sections.append(section)
    return Explanation(_report(pair, title), checks(pair), tuple(sections))


def _report(pair: Compared, title: str) -> Report:
    """The numbers of both networks beside their controls."""
    metric, unit, _ = SCORES[pair.examples.kind]
    kind, shuffled = pair.examples.kind, float(np.mean(pair.agreements))
    rows = [Row("examples", len(pair.examples), len(pair.examples))]
    if pair.scores:
        values = {name: as_shown(kind, scores) for name, scores in pair.scores.items()}
        rows.append(Row(metric, values["before"], values["after"], unit, "learned", 2))
        chance = [as_shown(kind, pair.by_label(name)) for name in ("before", "after")]
        rows.append(Row(f"{metric}, labels shuffled", chance[0], chance[1], unit, "learned", 2))
        rows.append(Row(f"{metric}, fresh weights", None, values["fresh"], unit, "learned", 2))
    share = unit if kind != "tokens" else "%"
    scale = 100 if share == "%" else 1
    rows.append(Row("agreement", None, scale * float(pair.agreement.mean()), share, "learned", 2))
    rows.append(Row("agreement, shuffled", None, scale * shuffled, share, "learned", 2))
    section = calibration(pair) if kind in (CLASSES, "tokens") else None
    if section is not None:
        numbers = section.numbers
        name = f"ECE, {numbers['bins']} bins"
        rows.append(Row(name, numbers["ECE before"], numbers["ECE after"], "points", "learned", 2))
        name = "ECE of as many calibrated ones"
        rows.append(Row(name, numbers["by chance before"], numbers["by chance after"], "points", "learned", 2))
    before, after = ([p.detach() for p in net.parameters()] for net in (pair.before, pair.after))
    rows.append(Row("parameters", sum(p.numel() for p in before), sum(p.numel() for p in after)))
    rows.append(
        Row("parameters not 0", sum(int((p != 0).sum()) for p in before), sum(int((p != 0).sum()) for p in after))
    )
    return Report(title, tuple(rows))


def _word_sections(pair: Compared, batches: Iterable, places: Mapping[str, Sequence[int]] | None) -> list[Section]:
    """Where both networks put the words of a text, a batch a step."""
    if places is None:
        return []
    every = list(batches)
    steps = [every[k] for k in np.unique(np.linspace(0, len(every) - 1, _STEPS).round().astype(int))]

    def ask(model: nn.Module) -> None:
        for batch in steps:
            x = batch[0] if isinstance(batch, tuple) else batch
            model(**x) if isinstance(x, Mapping) else model(*x)

    explorer = words({"before": pair.before, "after": pair.after}, ask, places, seed=pair.seed)
    text = f"Where cross-attention puts {len(places)} words over {len(steps)} steps, each network beside fresh weights."
    return [Section("Words and steps", text, {"words": list(places), "steps": len(steps)}, [explorer])]
