"""A chain's table: what is counted of each stage, how it is printed, and what it does not know."""

import dataclasses

import pytest
import torch
from torch import nn

import lab
from lab.chain import ChainReport, ChainRow, table
from lab.core.report import Row

from .small import QUICK, halved, net, pictures, text

REPORT = ChainReport(
    "Chain(GAL(), cut, DQSS())",
    (
        ChainRow.of("macs", (2000, 1000, 500, 500)),
        ChainRow.of("latency", (2.0, 1.0, None, None), "ms", "timed", 2),
        ChainRow.of("accuracy", (90.0, 91.26, 91.0, 89.5), "%", "learned"),
    ),
    ("1 GAL: <left dense>",),
    table.columns(["GAL", "cut", "DQSS"]),
)


def test_it_prints_a_column_a_stage():
    assert repr(REPORT).splitlines() == [
        "Chain(GAL(), cut, DQSS())",
        "          start  1 GAL  2 cut  3 DQSS  unit",
        "macs      2,000  1,000    500     500",
        "latency    2.00   1.00      -       -  ms",
        "accuracy   90.0   91.3   91.0    89.5  %",
        "1 GAL: <left dense>",
    ]
    page = REPORT._repr_html_()
    assert page.count("<tr>") == 4 and page.count("<td") == 18 and page.count("<th") == 1 + 6
    assert "&lt;left dense&gt;" in page and "<left" not in page


def test_its_ends_are_before_and_after():
    row = REPORT["macs"]
    assert (row.before, row.after, row.ratio, row.values) == (2000, 500, 4.0, (2000, 1000, 500, 500))
    assert REPORT["latency"].after is None
    frame = REPORT.to_frame()
    assert list(frame.columns) == ["start", "1 GAL", "2 cut", "3 DQSS", "unit", "kind"]
    assert frame.loc["accuracy", "1 GAL"] == 91.26


def test_it_is_stored_and_equal_but_for_times():
    again = ChainReport.from_dict(REPORT.to_dict())
    assert again == REPORT and hash(again) == hash(REPORT) and repr(again) == repr(REPORT)
    slower = ChainRow.of("latency", (9.0, 9.0, 9.0, 9.0), "ms", "timed", 2)
    assert dataclasses.replace(REPORT, rows=(REPORT.rows[0], slower, REPORT.rows[2])) == REPORT
    other = ChainRow.of("macs", (2000, 999, 500, 500))
    assert dataclasses.replace(REPORT, rows=(other, *REPORT.rows[1:])) != REPORT
    assert dataclasses.replace(REPORT, columns=("start", "1 GAL", "2 x", "3 DQSS")) != REPORT
    assert isinstance(REPORT.rows[0], Row)


def test_pruned_weights_are_not_counted():
    model, x = net(), torch.zeros(1, 1, 8, 8)
    dense, macs = lab.cost.parameters(model), lab.cost.macs(model, x)
    assert (table.parameters(model), table.macs(model, x)) == (dense, macs)
    with torch.no_grad():
        model[3].weight[:4] = 0  # 4 x 8 kernels of 3 x 3, each read at 64 places
        model[3].bias.zero_()  # a vector: it may have begun at 0
        model[0].weight.zero_()  # of zeros alone: it has not been pruned, it has yet to learn
    assert table.parameters(model) == dense - 4 * 8 * 9
    assert table.macs(model, x) == macs - 4 * 8 * 9 * 64


@pytest.mark.slow
def test_a_quantised_stage_has_as_many_weights_as_were_rounded():
    """Rounding to 2 bits makes zeros that nobody pruned; what was pruned before is still not counted."""
    dqss = dataclasses.replace(QUICK["DQSS"], weight_bits=2, ends=2)
    outcome = lab.Chain(QUICK["SparseByteNN"], dqss).run(pictures(), progress=False)
    for name in ("parameters", "macs"):
        start, sparse, quantised = outcome.report[name].values
        assert sparse < start and quantised == sparse
    assert sum(table.zeros(outcome.model).values()) > sum(table.zeros(outcome.outcomes[0].model).values())


@pytest.mark.slow
def test_all_is_measured_in_one_way():
    outcome = lab.Chain(QUICK["GAL"], halved, QUICK["SparseByteNN"]).run(pictures(), progress=False)
    report, x = outcome.report, pictures().example
    models = [pictures().model, *(made.model for made in outcome.outcomes)]
    assert report["parameters"].values[:3] == tuple(map(lab.cost.parameters, models[:3]))
    assert report["macs"].values[:3] == tuple(lab.cost.macs(model, x) for model in models[:3])
    assert report["accuracy"].values == tuple(map(pictures().measure, models))
    assert all(value > 0 for value in report["latency"].values)
    assert any(note.startswith("1 GAL: ") for note in report.notes)
    assert "of the sparse engine" in report.notes[0]


def test_what_a_stage_cannot_know_is_empty(monkeypatch):
    def broken(*_, **__):
        raise ValueError("no such kernel")

    monkeypatch.setattr(table.engine, "compile", broken)
    report = lab.Chain(halved, QUICK["DQSS"]).run(pictures(), progress=False).report
    start, changed, quantised = report["latency"].values
    assert start > 0 and changed > 0 and quantised is None  # torch only simulates integers
    assert "latency: no such kernel" in report.notes and "of torch" in report.notes[0]


@pytest.mark.slow
def test_of_a_language_model():
    outcome = lab.Chain(QUICK["FoldGPT"]).run(text(), progress=False)
    assert outcome.report["perplexity"].values == (
        outcome.outcomes[0].report["perplexity"].before, outcome.outcomes[0].report["perplexity"].after,
    )  # fmt: skip
    assert outcome.report["macs"].ratio > 1


def test_a_report_that_fails_loses_nothing(monkeypatch):
    monkeypatch.setattr(table, "_score", lambda *_: 1 / 0)
    outcome = lab.Chain(halved).run(pictures(), progress=False)
    assert outcome.report.notes == ("no report: ZeroDivisionError: division by zero",)
    assert isinstance(outcome.model, nn.Module)
