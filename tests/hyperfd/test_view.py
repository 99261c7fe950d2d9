"""What the pictures are drawn from, and that controls move them."""

import json
from dataclasses import replace

import pandas
import pytest
import torch

import lab
from lab.core import ranking_metrics, store
from lab.core.training import seeded
from lab.hyperfd import view
from lab.hyperfd.detector import FaceDetector
from lab.hyperfd.space import Configuration

from . import small

FAST = dict(K=2, trials=6, R=4, m=16, steps=3)


@pytest.fixture(scope="module")
def outcome():
    return lab.HyperFD(**FAST).run(small.stream(), progress=False)


def test_the_timeline_is_what_was_noted(outcome):
    found = view.numbers(outcome)
    assert set(found) == {"recommended", "random", "default", "best average"}
    assert found["recommended"] == [(float(k), one.regret) for k, one in enumerate(outcome.served)]


def test_what_left_beside_what_stayed(outcome):
    found = view.crossed(outcome, 0)
    assert found["bytes that stayed"] == 40 * 3 * 4 and found["pictures sent"] == 0
    assert found["meta-vectors sent"] == 4 and found["results sent"] == 6
    assert found["bytes sent"] == outcome.served[0].sent > 0


def test_the_map_holds_every_vector_and_near_tasks_lie_near(outcome):
    found = view.principal_components(outcome)
    assert set(found) == set(small.stream().names) and all(len(points) == 4 for points in found.values())
    rival = lab.HyperFD(**FAST, by="random").run(small.stream(), progress=False)
    assert view.principal_components(rival) == {} and view.crossed(rival, 0)["bytes sent"] == 0


def test_the_explorer_follows_its_slider(outcome):
    explorer = lab.view(outcome)
    first = explorer.frame
    explorer.task = 6
    assert explorer.frame != first and explorer.frame.facts["data set"] == outcome.served[5].name
    for words in (
        "as tasks came",
        "either side of the privacy boundary",
        "meta-vectors of all tasks",
        "recommended to",
    ):
        assert words in explorer.frame.svg, words


def test_bands_of_the_benchmark_stand_behind_the_line_where_it_was_run(outcome, tmp_path, monkeypatch):
    runs = [
        {"stream": stream, "by": by, "order": order, "regrets": [value + order] * 6}
        for stream, value in (("pictures", 90), ("numbers", 5))
        for by in ("hyperfd", "best average", "tpe")
        for order in (0, 2)
    ]
    (tmp_path / "claim.json").write_text(json.dumps({"runs": runs}))
    monkeypatch.setattr(store, "artefact", lambda name: tmp_path / name.removeprefix("faces/"))
    assert view.bands(outcome) == {} and "lab-ribbon" not in lab.view(outcome).frame.svg  # of another stream
    own = replace(outcome, context={**outcome.context, "stream": "detectors"})
    found = view.bands(own)
    assert set(found) == {"recommended", "best average"} and [place for place, *_ in found["recommended"]] == [
        *range(6)
    ]
    middle = ranking_metrics.interval([5, 7])
    assert found["recommended"][0][1:] == (0.0, middle.high) and middle.low < 0  # no regret is below 0
    explorer = lab.view(own)
    assert explorer.frame.svg.count("lab-ribbon") == 2 and "shaded: 95 % of the benchmark" in explorer.frame.svg
    (tmp_path / "claim.json").unlink()
    assert "lab-ribbon" not in lab.view(own).frame.svg


def test_a_stream_without_a_table_is_seen_too():
    table = small.stream()
    live = lab.Stream(names=table.names, choices=table.choices, data=table.data, train=mean)
    assert "regret" not in lab.view(lab.HyperFD(**FAST).run(live, progress=False)).frame.svg


def mean(item):
    return float(item[1][0])


def test_detections_before_and_after():
    faces = lab.tasks.faces("portraits").held_out[range(3)]
    configuration = Configuration(width=0.25, side=96)
    with seeded(0):
        nets = {
            "before": (FaceDetector(0.25).eval(), configuration),
            "after": (FaceDetector(0.25).eval(), configuration),
        }
    torch.nn.init.constant_(nets["after"][0].logits.bias, 5.0)  # finds faces everywhere
    explorer = view.detections(nets, faces)
    assert explorer.detector == "after" and explorer.frame.facts["faces"] == sum(map(len, faces.boxes))
    assert explorer.frame.svg.count("<image") == explorer.frame.svg.count(">false alarm<") == 3  # each with its legend
    facts = explorer.set(least=0.05).frame.facts
    assert facts["found"] + facts["missed"] == facts["faces"] and facts["false alarms"] > 10
    facts = explorer.set(detector="before", least=0.5).frame.facts
    assert facts["found"] == facts["false alarms"] == 0 and facts["missed"] == facts["faces"]


def test_detections_start_where_there_are_as_many_as_faces():
    scores = torch.tensor([0.97, 0.91, 0.62, 0.6, 0.58, 0.2, 0.1])
    assert (view._least(scores, 2), view._least(scores, 5), view._least(scores, 6)) == (0.9, 0.55, 0.2)


def test_curves_have_a_band_a_recommender():
    rows = [
        {"by": by, "place": p, "seed": s, "regret": p + s} for by in ("hyperfd", "tpe") for p in (0, 1) for s in (0, 1)
    ]
    drawn = view.curves(pandas.DataFrame(rows))
    assert [t.name for t in drawn.data if t.name] == ["hyperfd", "tpe"] and list(drawn.data[1].y) == [0.5, 1.5]
    with pytest.raises(ValueError, match="results have no column 'by'"):
        view.curves(pandas.DataFrame({"place": [0]}))


def test_regret_is_drawn_over_epsilon_as_the_benchmark_measured_it():
    runs = view.privacy_contest()
    drawn = view.privacy_curve(runs)
    (line,) = [trace for trace in drawn.data if trace.name == "with noise"]
    assert list(line.x) == sorted(line.x) and len(line.x) > 3
    at = runs[runs["by"] == f"epsilon {line.x[0]:g}"]
    assert line.y[0] == pytest.approx(at["regret"].mean())
    assert {note.text for note in drawn.layout.annotations} == {*runs["by"]} - {*at["by"]} - {
        f"epsilon {x:g}" for x in line.x
    } | {"chance"}


def test_a_stream_explains_what_it_recommended(outcome, tmp_path):
    explanation = outcome.explain()
    assert len(explanation.save(tmp_path / "page.html").read_bytes()) < 500_000
    numbers = explanation.to_dict()
    means = numbers["The recommended and their rivals"]
    assert means["recommended"] == pytest.approx(outcome.report["regret"].after)
    assert set(numbers["Predicted and measured"]["kendall tau"]) == set(small.stream().names)
    assert [check.text for check in explanation.checks] == ["6 tasks are too few to tell"]
    assert "The clients keep their detectors" in repr(explanation)
    for arguments, line in (
        ({"task": 3}, "takes a FaceTask, not a int"),
        ({"batches": []}, "takes no 'batches'"),
        ({"detectors": {"a": ()}}, "give a FaceTask and detectors"),
    ):
        with pytest.raises((TypeError, ValueError), match=line):
            outcome.explain(**arguments)


def test_recommendations_that_are_no_better_than_chance_raise_an_alarm(outcome):
    one, scores = outcome.served[0], torch.zeros(18)
    scores[list(one.tried)] = torch.tensor(one.tried_results).float()
    good = [replace(one, regret=0.0, random=5.0, scores=scores) for _ in range(12)]
    bad = [replace(one, regret=5.0, random=4.0, scores=-scores) for _ in range(12)]
    assert [check.alarm for check in view._checks(replace(outcome, served=good))] == [False, False]
    assert [check.alarm for check in view._checks(replace(outcome, served=bad))] == [True, True]


def test_detectors_are_asked_about_the_faces_held_out(outcome, tmp_path):
    task = lab.tasks.faces("portraits")
    task = replace(task, held_out=task.held_out[range(3)])
    with seeded(0):
        net = (FaceDetector(0.25).eval(), Configuration(width=0.25, side=96))
    explanation = outcome.explain(task, detectors={"before": net, "after": net})
    found = explanation.to_dict()["Detectors"]
    assert found["before"] == found["after"] and set(found["after"]) == {"ap50", "ap"}
    assert len(explanation.sections[-1].parts) == 4  # two pictures, two detectors
    assert len(explanation.save(tmp_path / "page.html").read_bytes()) < 500_000
