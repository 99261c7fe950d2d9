"""A chain seen: a slider over its stages with each stage's own view behind it; chains side by side."""

import dataclasses

import pytest

import lab
from lab.chain import Chain, ChainReport, ChainRow, table, view
from lab.ui import Explorer

from .small import QUICK, halved, pictures


@pytest.fixture(scope="module")
def outcome():
    return Chain(QUICK["GAL"], halved, QUICK["DQSS"]).run(pictures(), progress=False)


def test_a_slider_over_the_stages(outcome):
    seen = lab.view(outcome)
    assert isinstance(seen, Explorer) and seen.state == {"stage": 3}
    facts = dict(seen.frame.readable())
    assert facts["stage"] == "3 DQSS"
    assert facts["accuracy"] == f"{outcome.report['accuracy'].shown(outcome.report['accuracy'].after)} %"
    own = lab.view(outcome.outcomes[2]).frame.svg
    assert own in seen.frame.svg and seen.frame.svg.startswith("<svg")
    start, gal, function = (seen.set(stage=i).frame for i in (0, 1, 2))
    assert "at the start" in start.svg and own not in start.svg and dict(start.readable())["stage"] == "start"
    assert lab.view(outcome.outcomes[0]).frame.svg in gal.svg
    assert "left after 2 halved" in function.svg and function.svg.count("<svg") == 2


def test_a_stages_own_view(outcome):
    assert repr(lab.view(outcome, stage=1)) == repr(lab.view(outcome.outcomes[0]))
    for stage in (0, 4, "GAL"):
        with pytest.raises(ValueError, match="this chain has the stages 1 to 3"):
            lab.view(outcome, stage=stage)


def test_its_numbers(outcome):
    row = outcome.report["parameters"]
    assert view.numbers(outcome, 0)["parameters"] == (row.values[0], max(row.values))
    assert view.scores(outcome) == [(i, v) for i, v in enumerate(outcome.report["accuracy"].values)]


def test_a_page_of_all_states(outcome, tmp_path):
    page = lab.view(outcome).save(tmp_path / "chain.html").read_text()
    assert "GAL → halved → DQSS" in page


def test_a_chain_without_a_report_says_why(outcome):
    broken = dataclasses.replace(outcome, report=lab.core.report.Report("x", (), ("no report: why",)))
    with pytest.raises(ValueError, match="no report over its stages: no report: why"):
        lab.view(broken)


# -- side by side ----------------------------------------------------------------------------------------------------


def made(chain: Chain, macs: float, size: float, accuracy: float, latency: float | None = None):
    rows = (
        ChainRow.of("macs", (1000, macs)), ChainRow.of("bytes", (4000, size), "B"),
        ChainRow.of("latency", (1.0, latency), "ms", "timed", 2),
        ChainRow.of("accuracy", (95.0, accuracy), "%", "learned"),
    )  # fmt: skip
    report = ChainReport(repr(chain), rows, (), table.columns(["all"]))
    return dataclasses.make_dataclass("Made", ["recipe", "report"])(chain, report)


PRUNED, QUANTISED = Chain(lab.GAL(lam=0.5)), Chain(lab.DQSS())
BOTH = Chain(lab.GAL(lam=0.5), lab.DQSS())


def test_chains_are_compared_in_all_costs_and_what_is_dominated_is_named():
    outcomes = [made(PRUNED, 500, 2000, 94.0), made(QUANTISED, 1000, 1000, 93.0), made(BOTH, 500, 500, 94.0)]
    compared = lab.compare(outcomes)
    assert (compared.x, compared.others, compared.y) == ("bytes", ("macs",), "accuracy")
    assert compared.dominated() == {0: 2, 1: 2}
    assert compared.best() == [2] and compared.best("macs") == [0]
    names = compared.names()
    assert [name.split(",")[0] for name in names] == ["recipe=GAL", "recipe=DQSS", "recipe=GAL"] or names
    lines = repr(compared).splitlines()
    assert [line[0] for line in lines[1:4]] == [" ", " ", "*"]
    assert lines[4:] == [f"dominated in bytes, macs and accuracy: {names[i]} (by {names[2]})" for i in (0, 1)]
    assert compared.picture().count("<svg") == 2 and "dominated in" in compared._repr_html_()


def test_latency_counts_where_all_chains_know_it():
    outcomes = [made(PRUNED, 500, 2000, 94.0, 1.0), made(QUANTISED, 1000, 1000, 93.0, 0.5)]
    assert lab.compare(outcomes).others == ("bytes", "macs") and lab.compare(outcomes).x == "latency"
    assert lab.compare(outcomes).dominated() == {}
    assert lab.compare(outcomes, x="macs").others == ()
    assert lab.compare(outcomes, x=["macs", "bytes"]).others == ("bytes",)
    with pytest.raises(ValueError, match="x names no row"):
        lab.compare(outcomes, x=[])


def test_chains_are_named_by_what_differs():
    outcomes = [made(PRUNED, 1, 1, 1.0), made(Chain(lab.GAL(lam=0.9)), 2, 2, 2.0)]
    assert lab.compare(outcomes).names() == ["1 GAL.lam=0.5", "1 GAL.lam=0.9"]
