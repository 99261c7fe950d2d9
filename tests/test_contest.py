"""The harness of the contests: cells are resumed, copies refused, and differences are paired."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from lab.core.machine import machine
from lab.core.task import Task

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import contest
finally:
    sys.path.remove(str(ROOT / "benchmarks"))


def rival(offset, calls=None):
    def make(budget, seed, folder):
        if calls is not None:
            calls.append((budget, seed))
        net = nn.Linear(2, 1)
        with torch.no_grad():
            net.bias.fill_(offset)
        return net, {"drop": offset + seed / 10 + float(torch.rand(())) * 0}

    return make


@pytest.fixture
def small():
    return contest.Contest(
        name="small",
        rivals={"ours": rival(0.0), "theirs": rival(2.0)},
        settings={"steps": 3},
        figure="drop",
        budgets=(2, 3),
        seeds=(10, 11, 12),
    )


def test_every_cell_is_made_once_and_says_where_it_comes_from(small, tmp_path):
    calls = []
    small = replace(small, rivals={"ours": rival(0.0, calls)})
    found = contest.run(small, tmp_path, ["ours"], small.seeds)
    assert sorted(calls) == [(b, s) for b in (2, 3) for s in (10, 11, 12)]
    assert contest.run(small, tmp_path, ["ours"], small.seeds) == found and len(calls) == 6
    for record in found:
        assert record["nanoseconds"] > 0 and len(record["network"]) == 12
        assert record["command"].startswith("python benchmarks/") and len(record["commit"].rstrip("+")) == 12
        assert record["figures"] == {"drop": record["seed"] / 10}


def test_a_cell_is_drawn_from_its_own_seed(small, tmp_path):
    first, again = (contest.made(small, 2, 10, "ours", tmp_path) for _ in range(2))
    other = contest.made(small, 2, 11, "ours", tmp_path)
    assert first["network"] == again["network"] != other["network"]


def test_other_settings_are_made_anew(small, tmp_path):
    contest.run(small, tmp_path, ["ours"], [10])
    other = replace(small, settings={"steps": 4})
    assert other.digest != small.digest
    assert contest.records(other, tmp_path / "records.jsonl") == []
    contest.run(other, tmp_path, ["ours"], [10])
    assert len(contest.records(other, tmp_path / "records.jsonl")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 11}, "was copied from ours, seed 10: both have nanoseconds"),
        ({"rival": "theirs"}, "theirs, budget 2, seed 10 was copied from ours"),
        ({"nanoseconds": 1}, "ours, budget 2, seed 10 is there twice"),
        ({"commit": "", "seed": 11, "nanoseconds": 1}, "has no commit"),
        ({"figures": {"drop": math.nan}, "seed": 11, "nanoseconds": 1}, "drop is not finite"),
        ({"figures": {"latency_ratio": 1.5}, "seed": 11, "nanoseconds": 1}, "both have latency_ratio 1.5"),
    ],
)
def test_what_was_not_computed_is_refused_in_one_line(small, tmp_path, change, message):
    record = contest.made(small, 2, 10, "ours", tmp_path)
    record["figures"]["latency_ratio"] = 1.5
    assert contest.checked([record]) == [record]
    with pytest.raises(ValueError, match=message) as caught:
        contest.checked([record, {**record, **change}])
    assert "\n" not in str(caught.value)


def test_a_rival_that_no_seed_changes_is_made_once(small, tmp_path):
    small = replace(small, once=frozenset({"theirs"}))
    found = contest.run(small, tmp_path, small.rivals, small.seeds)
    assert sorted((r["rival"], r["seed"]) for r in found if r["budget"] == 2) == [
        ("ours", 10), ("ours", 11), ("ours", 12), ("theirs", 10),
    ]  # fmt: skip
    row = contest.summary(small, found).set_index(["budget", "rival"]).loc[2, "theirs"]
    assert row["seeds"] == 1 and row["behind"] == pytest.approx(3.0 - 1.1)  # beside each seed of ours


def test_a_rival_of_one_budget_has_no_other(small, tmp_path):
    small = replace(small, only={"theirs": (3,)})
    found = contest.run(small, tmp_path, small.rivals, small.seeds)
    assert {r["budget"] for r in found if r["rival"] == "theirs"} == {3}
    table = contest.summary(small, found).set_index(["budget", "rival"])
    assert [*table.index] == [(2, "ours"), (3, "ours"), (3, "theirs")]


def test_differences_are_paired_by_seed(small, tmp_path):
    found = contest.run(small, tmp_path, small.rivals, small.seeds)
    table = contest.summary(small, found).set_index(["budget", "rival"])
    ours, theirs = table.loc[2, "ours"], table.loc[2, "theirs"]
    assert ours["drop"] == pytest.approx(1.1) and ours["drop sd"] == pytest.approx(0.1)
    assert [theirs["behind"], theirs["behind low"], theirs["behind high"]] == pytest.approx([2, 2, 2])
    more = contest.summary(replace(small, less=False), found).set_index(["budget", "rival"])
    assert more.loc[3, "theirs"]["behind"] == pytest.approx(-2)
    assert "+2.00 (+2.00 to +2.00)" in contest.shown(small, found)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=9))
def test_interval_is_students(values):
    mean, low, high = contest.interval(values)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    assert [mean, low, high] == pytest.approx([np.mean(values), mean - half, mean + half], abs=1e-9)


def test_interval_is_that_of_the_paired_test():
    ours, theirs = [1.0, 2.5, 0.5, 1.5, 3.0], [1.5, 2.0, 1.75, 2.5, 3.25]
    low, high = stats.ttest_rel(theirs, ours).confidence_interval(0.95)
    apart = [b - a for a, b in zip(ours, theirs, strict=True)]
    assert contest.interval(apart) == pytest.approx((np.mean(apart), low, high))


def test_interval_of_one_seed_has_no_bounds():
    mean, *bounds = contest.interval([3.0])
    assert mean == 3 and all(map(math.isnan, bounds))


def test_kept_file_is_taken_up_again(small, tmp_path, capsys):
    def quick(is_quick, device):
        return replace(small, device=device)

    kept = tmp_path / "kept.json"
    asked = ["small", "--json", str(kept), "--seeds", "10,11"]
    contest.main({"small": quick}, "", [*asked, "--runs", str(tmp_path / "one")])
    before = json.loads(kept.read_text())
    assert before["subject"] == "ours" and len(before["records"]) == 8 and len(before["summary"]) == 4
    contest.main({"small": quick}, "", [*asked, "--runs", str(tmp_path / "two")])
    assert json.loads(kept.read_text())["records"] == before["records"]
    assert "small; one thread of" in capsys.readouterr().out


def test_batches_come_on_the_device_that_is_asked_for(small):
    """torch's `meta` stands for a device of another kind."""
    pictures = [(torch.ones(2, 3), torch.zeros(2, dtype=torch.long)) for _ in range(2)]
    task = Task(model=nn.Linear(3, 2), batches=pictures, score=lambda model: 0.0)
    assert contest.placed(task, "cpu") is task
    there = [*contest.Placed(pictures, "meta")]
    assert len(there) == 2 and all(x.is_meta and y.is_meta for x, y in there)
    assert contest.processor("cpu") == machine()["processor"]


def test_a_command_names_no_folder_of_one_machine():
    words = ["/home/me/benchmarks/gal.py", "fashion", "--runs", "/tmp/runs", "--seeds", "10,11", "--json", "/a/b.json"]
    assert contest.command(words) == "python benchmarks/gal.py fashion --seeds 10,11"
    assert (
        contest.command(["gal.py", "--rivals", "GAL; uniform L1"])
        == "python benchmarks/gal.py --rivals 'GAL; uniform L1'"
    )


def test_where_there_is_no_repository_the_commit_is_given(monkeypatch):
    monkeypatch.setenv("COMMIT", "0123456789ab")
    assert contest.commit() == "0123456789ab"


def test_an_unheard_rival_is_named(small, tmp_path, capsys):
    with pytest.raises(SystemExit):
        contest.main({"small": lambda quick, device: small}, "", ["--rivals", "nobody", "--runs", str(tmp_path)])
    assert "nobody: give some of ours, theirs" in capsys.readouterr().err
