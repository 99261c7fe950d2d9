"""The model card: what the hub reads, figures made anew by every save, and what a user has written himself."""

import dataclasses
import math
import sys

import pytest
import yaml

import lab
from lab.core import card
from lab.core.report import Row
from tests.core.test_outcome import RECIPES, classifying, contents, own


@pytest.fixture(scope="module")
def outcome():
    return RECIPES["GAL"].run(classifying(own()), seed=5, progress=False)


def head(folder) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_what_the_hub_reads(outcome, tmp_path):
    outcome.save(tmp_path)
    facts = head(tmp_path)
    assert facts["library_name"] == "lab" and facts["tags"] == ["lab", "model-compression", "gal"]
    assert "license" not in facts and "base_model" not in facts
    (model,) = facts["model-index"]
    (result,) = model["results"]
    assert model["name"] == "GAL of Own" and result["dataset"] == {"name": "small", "type": "small"}
    (metric,) = result["metrics"]
    assert metric["value"] == pytest.approx(outcome.report["accuracy"].after, abs=0.01)
    assert metric["args"] == {"seed": 5} and metric["name"] == "accuracy in %" and metric["type"] == "accuracy"


def test_what_a_reader_sees(outcome, tmp_path):
    outcome.save(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert repr(outcome.recipe) in text and "seed 5" in text and outcome.made["machine"]["processor"] in text
    row = outcome.report["parameters"]
    assert f"| parameters | {row.before:,} | {row.after:,} |" in text and "is the control" in text
    assert all(note in text for note in outcome.report.notes) and "No licence is stated" in text


def test_a_network_of_the_hub_is_the_base_model(outcome, tmp_path):
    named = dataclasses.replace(outcome, made={**outcome.made, "base_model": "owner/name"})
    named.save(tmp_path)
    assert head(tmp_path)["base_model"] == "owner/name"


def test_what_a_user_writes_into_the_card_stays(outcome, tmp_path):
    outcome.save(tmp_path)
    path = tmp_path / "README.md"
    text = path.read_text().replace("library_name: lab", "library_name: mine\nlicense: mit\nlanguage: de")
    text = text.replace("- gal\n", "- gal\n- vision\n").replace("| parameters |", "| altered |")
    path.write_text(text.replace(card.BEGIN, f"Above.\n\n{card.BEGIN}") + "\nBelow.\n")
    lab.load(tmp_path, base=own())  # the card is no part of what is digested
    outcome.save(tmp_path)
    facts, after = head(tmp_path), path.read_text()
    assert facts["license"] == "mit" and facts["language"] == "de" and facts["library_name"] == "lab"
    assert facts["tags"] == ["lab", "model-compression", "gal", "vision"] and len(facts["model-index"]) == 1
    assert "Above." in after and after.endswith("\nBelow.\n") and "altered" not in after and "No licence" not in after
    outcome.save(tmp_path)
    assert path.read_text() == after


@pytest.mark.parametrize("text", ["# Mine\n", "---\nlicense: mit\n---\nMine.\n", card.BEGIN])
def test_a_readme_of_another_is_left_alone(outcome, tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    for _ in range(2):
        outcome.save(tmp_path)
        assert (tmp_path / "README.md").read_text() == text


def test_a_head_that_is_no_yaml_stays_and_the_save_is_whole(outcome, tmp_path):
    outcome.save(tmp_path)
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace("library_name: lab", "library_name: [lab"))
    outcome.save(tmp_path)
    assert "library_name: [lab" in path.read_text() and lab.load(tmp_path, base=own()).report == outcome.report


def test_without_the_extra_there_is_no_head_and_all_else(outcome, tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "huggingface_hub", None)
        outcome.save(tmp_path)
        assert (tmp_path / "README.md").read_text().startswith(card.BEGIN)
    outcome.save(tmp_path)
    assert head(tmp_path)["library_name"] == "lab"
    before = contents(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    outcome.save(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_score_that_is_no_number_is_no_metric(outcome, tmp_path, value):
    rows = tuple(row for row in outcome.report if row.name != "accuracy")
    report = dataclasses.replace(outcome.report, rows=(*rows, Row("accuracy", 1.0, value, "%", "learned")))
    dataclasses.replace(outcome, report=report).save(tmp_path)
    assert "model-index" not in head(tmp_path)


def test_an_outcome_of_an_older_version_has_a_card_without_what_it_does_not_know(outcome, tmp_path):
    dataclasses.replace(outcome, made={}).save(tmp_path)
    assert "model-index" not in head(tmp_path) and "# GAL of a network" in (tmp_path / "README.md").read_text()
