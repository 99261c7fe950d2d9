"""lm-eval on a folded folder: the same answers as the lab's own; where it is not installed, one line says so."""

import json
import sys
from importlib.util import find_spec

import pytest

import lab
from lab.foldgpt import measures
from lab.foldgpt.evaluation import NEXT_WORD, harness, write_task
from lab.foldgpt.measures import Question

from .small import Letters, model


def test_lm_eval_says_which_extra_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"lm-eval is not installed: pip install 'shrinklab\[eval\]'"):
        harness(model("llama"), Letters(), ["arc_easy"])


def test_questions_are_written_as_a_task(tmp_path):
    name = write_task([Question("one two", ("three", "four", "five", "six"))], tmp_path / "task")
    task = json.loads((tmp_path / "task" / f"{name}.yaml").read_text())
    (line,) = (tmp_path / "task" / "questions.jsonl").read_text().splitlines()
    assert json.loads(line) == {"context": "one two", "choices": ["three", "four", "five", "six"]}
    assert task["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / "task" / "questions.jsonl")


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="the extra eval is not installed: pip install 'shrinklab[eval]'"
)
@pytest.mark.filterwarnings("ignore")  # those of the libraries that lm-eval brings
def test_a_folded_folder_answers_lm_eval_as_it_answers_the_lab(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    task = lab.tasks.prose()
    recipe = lab.FoldGPT(removal=1 / 12, sharing=1 / 12, ranking="influence", cure_steps=0)
    outcome = recipe.run(task, progress=False)
    outcome.save(tmp_path / "folded")
    asked = measures.questions(task.text, 40)
    name = write_task(asked, tmp_path / "task")
    results = harness(tmp_path / "folded", None, [name], include=tmp_path / "task")
    assert 100 * results[NEXT_WORD]["acc,none"] == pytest.approx(
        measures.accuracy(outcome.model, task.tokenizer, asked)
    )
