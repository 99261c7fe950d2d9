"""Kept contests as tables and pictures."""

import json

import pytest

from lab.ui import contest

KEPT = {
    "contest": "small", "figure": "points_lost", "less": True, "subject": "ours",
    "summary": [
        {"budget": budget, "rival": rival, "seeds": 2, "points_lost": lost, "points_lost sd": 0.1,
         "behind": behind, "behind low": behind - 0.25, "behind high": behind + 0.5}
        for budget in (3, 2)
        for rival, lost, behind in (("ours", 1.0, 0.0), ("theirs", 1.5, 0.5 * budget), ("nobody's", 0.5, -0.5))
    ],
    "records": [
        {"rival": rival, "budget": 3, "seed": seed, "figures": {"points_lost": 1.0 + seed}}
        for rival in ("ours", "theirs")
        for seed in (10, 11)
    ],
}  # fmt: skip


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "kept.json"
    path.write_text(json.dumps(KEPT))
    return contest(path)


def test_every_cell_is_a_row(small):
    rows = small.to_frame()
    assert rows.columns.tolist() == ["rival", "budget", "seed", "points_lost"] and len(rows) == 4


def test_the_table_tells_the_interval(small):
    table = small.summary()
    assert table.loc["theirs", "behind"] == 1.5 and small.summary(2).loc["theirs", "behind"] == 1.0
    assert "+1.50 (+1.25 to +2.00)" in repr(small) and "at 2" in repr(small)
    shown = small._repr_html_()
    assert "1.00 ± 0.10" in shown and "<p>at 3</p>" in shown and "<p>at 2</p>" in shown and shown.count("<table") == 2
    with pytest.raises(ValueError, match="budget=5: this contest was held at 3, 2"):
        small.summary(5)


def test_the_picture_has_the_worst_at_the_bottom_and_its_interval(small):
    (marks,) = small.figure(unit="points").data
    assert (list(marks.y), list(marks.x)) == (["theirs", "nobody's"], [1.5, -0.5])
    assert list(marks.error_x.array) == [0.5, 0.5] and list(marks.error_x.arrayminus) == [0.25, 0.25]


def test_one_seed_has_no_interval(tmp_path):
    rows = [{**row, "points_lost sd": None, "behind low": None, "behind high": None} for row in KEPT["summary"]]
    path = tmp_path / "one.json"
    path.write_text(json.dumps({**KEPT, "summary": rows}))
    shown = repr(contest(path))
    assert "nan" not in shown and "±" not in shown and "+1.50" in shown
