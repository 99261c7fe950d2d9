"""The table of before and after: ratios, looks, equality, and the way to JSON and pandas and back."""

import dataclasses
import json
import math

import pytest

from lab.core.report import Attempts, Report, Row, attempt, grouped_by_reason, reported

MACS = Row("macs", 2_000_000, 500_000)
ACCURACY = Row("accuracy", 97.04, 96.55, "%", "learned")
LATENCY = Row("latency", 3.2, 1.71, "ms", "timed", digits=2)
REPORT = Report("GAL(lam=0.05) on digits", (MACS, ACCURACY, LATENCY), ("one thread",))


def test_ratio_and_change():
    assert MACS.ratio == 4
    assert MACS.change == -1_500_000
    assert ACCURACY.change == pytest.approx(-0.49)
    for row in (Row("new", None, 3), Row("gone", 3, None)):
        assert math.isnan(row.ratio) and math.isnan(row.change)
    assert math.isnan(Row("none left", 3, 0).ratio)
    assert Row("from nothing", 0, 3).ratio == 0


@pytest.mark.parametrize(
    ("row", "before", "after"),
    [
        (MACS, "2,000,000", "500,000"),
        (ACCURACY, "97.0", "96.5"),
        (LATENCY, "3.20", "1.71"),
        (Row("perplexity", math.nan, None, "", "learned"), "-", "-"),
        (Row("psnr", math.inf, 31.0, "dB", "learned", digits=0), "inf", "31"),
    ],
)
def test_values_as_shown(row, before, after):
    assert (row.shown(row.before), row.shown(row.after)) == (before, after)


def test_rows_by_name():
    assert REPORT["accuracy"] is ACCURACY
    assert list(REPORT) == [MACS, ACCURACY, LATENCY]
    assert "macs" in REPORT
    assert "psnr" not in REPORT
    with pytest.raises(KeyError, match="no row 'mac'; this report has macs, accuracy, latency"):
        REPORT["mac"]


def test_plain_table_is_aligned():
    assert repr(REPORT).splitlines() == [
        "GAL(lam=0.05) on digits",
        "             before    after  unit",
        "macs      2,000,000  500,000",
        "accuracy       97.0     96.5  %",
        "latency        3.20     1.71  ms",
        "one thread",
    ]
    assert repr(Report("empty", ())).splitlines() == ["empty", "  before  after  unit"]


def test_html_escapes_what_a_user_can_name():
    html = Report("<b>t</b>", (Row("<i>", 1, 2, "<u>"),), ("a < b",))._repr_html_()
    assert "&lt;b&gt;t" in html and "&lt;i&gt;" in html and "&lt;u&gt;" in html and "a &lt; b" in html
    assert not any(tag in html for tag in ("<b>", "<i>", "<u>"))
    assert html.count("<tr>") == 2


def test_timed_rows_take_no_part_in_equality():
    slower = dataclasses.replace(REPORT, rows=(MACS, ACCURACY, dataclasses.replace(LATENCY, after=9.0)))
    worse = dataclasses.replace(REPORT, rows=(MACS, dataclasses.replace(ACCURACY, after=90.0), LATENCY))
    assert slower == REPORT and hash(slower) == hash(REPORT)
    assert worse != REPORT
    assert dataclasses.replace(REPORT, title="other") != REPORT
    assert dataclasses.replace(REPORT, notes=()) != REPORT
    assert REPORT != "GAL(lam=0.05) on digits"


def test_json_and_back():
    again = Report.from_dict(json.loads(json.dumps(REPORT.to_dict())))
    assert again == REPORT
    assert again["latency"] == LATENCY  # what takes no part in equality is kept as well
    assert repr(again) == repr(REPORT)


def test_frame_keeps_full_precision():
    frame = REPORT.to_frame()
    assert list(frame.index) == ["macs", "accuracy", "latency"]
    assert list(frame.columns) == ["before", "after", "unit", "kind"]
    assert frame.loc["accuracy", "after"] == 96.55


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        REPORT.title = "better"
    with pytest.raises(dataclasses.FrozenInstanceError):
        MACS.after = 1


# -- what comes after training ---------------------------------------------------------------------------------------


def test_an_attempt_gives_the_value_or_a_note_of_one_line():
    def broken(error):
        raise error

    assert attempt("score", max, 1, 3) == (3, None)
    assert attempt("score", broken, ValueError("no\npictures")) == (None, "score: no pictures")
    assert attempt("engine", broken, KeyError("x")) == (None, "engine: KeyError: 'x'")
    assert attempt("engine", broken, RuntimeError()) == (None, "engine: RuntimeError: no reason given")
    value, note = attempt("engine", broken, ValueError("long " * 99))
    assert value is None and len(note) == len("engine: ") + 200 and note.endswith("...")
    with pytest.raises(KeyboardInterrupt):
        attempt("score", broken, KeyboardInterrupt())


def test_a_report_that_cannot_be_made_says_why():
    def broken(name):
        raise ValueError(f"no {name}")

    assert reported("GAL()", broken, "rows") == Report("GAL()", (), ("no report: no rows",))
    assert reported("GAL()", lambda: Report("mine", ())).title == "mine"


def test_attempts_collect_their_notes():
    attempts = Attempts()
    assert attempts.pair("half", lambda n, d: n // d, 4, 6, 2) == (2, 3) and attempts.notes == []
    assert attempts.pair("share", lambda n, d: n // d, 4, 6, 0) == (None, None)
    assert attempts.times(1, 2, 3) == (None, None)
    assert [note.split(":")[0] for note in attempts.notes] == ["share", "share", "latency"]


def test_names_of_one_reason_share_a_note():
    reasons = {"stem": "depthwise", "head": "reads the input", "body": "depthwise"}
    assert grouped_by_reason("left dense,", reasons) == [
        "left dense, depthwise: stem, body",
        "left dense, reads the input: head",
    ]
    assert grouped_by_reason("left dense,", {}) == []
