"""Notebooks graded from their stored outputs: by the answers in them, not by the verdicts, and without running them."""

import json

import nbformat
import pytest

import lab
from lab import __main__ as cli

v4 = nbformat.v4


def notebook(path, *answers, shown=repr):
    """A notebook with a cell for each answer to exercises 1, 2 of gal, as JupyterLab stores it."""
    cells = []
    for number, answer in enumerate(answers, 1):
        text = shown(lab.course.check("gal", number, answer))
        output = v4.new_output("execute_result", {"text/plain": text}, execution_count=number)
        source = f"import lab\nanswer = {answer!r}\nlab.course.check('gal', {number}, answer)"
        cells.append(v4.new_code_cell(source, execution_count=number, outputs=[output]))
    book = v4.new_notebook(cells=[v4.new_markdown_cell("# GAL"), *cells])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


@pytest.mark.parametrize(
    ("answers", "rights"),
    [((0.003, 78_299_776), [True, True]), ((0.01, "78,299,776"), [False, True]), ((None, 1), [False, False])],
)
def test_the_answers_count(tmp_path, answers, rights):
    verdicts = lab.course.grade(notebook(tmp_path / "mine.ipynb", *answers))
    assert [verdict.right for verdict in verdicts] == rights
    assert [verdict.number for verdict in verdicts] == [1, 2]


def test_a_verdict_that_was_written_in_counts_nothing(tmp_path):
    path = notebook(tmp_path / "mine.ipynb", 0.5, None, shown=lambda verdict: f"gal {verdict.number}: 0.5 is right")
    assert not any(lab.course.grade(path))


def test_the_last_answer_counts_and_a_print_is_read(tmp_path):
    path = notebook(tmp_path / "mine.ipynb", 0.5)
    book = nbformat.read(path, as_version=4)
    printed = v4.new_output("stream", name="stdout", text="done\ngal 1: 0.003 is right\n")
    book.cells.append(
        v4.new_code_cell("print(lab.course.check('gal', 1, 0.003))", execution_count=2, outputs=[printed])
    )
    nbformat.write(book, path)
    assert [bool(verdict) for verdict in lab.course.grade(path)] == [True]


def test_a_class(tmp_path, capsys):
    notebook(tmp_path / "ann.ipynb", 0.003, 78_299_776)
    notebook(tmp_path / "ben.ipynb", 0.01, None)
    assert cli.main(["course", "check", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'ann.ipynb'}: 2 of 2 right",
        f"{tmp_path / 'ben.ipynb'}: 0 of 2 right; gal 1: not right yet; gal 2: no answer",
        "2 of 4 right in 2 notebooks",
    ]


def test_what_cannot_be_graded_stops_nobody_elses_grades(tmp_path):
    notebook(tmp_path / "ann.ipynb", 0.003, 78_299_776)
    notebook(tmp_path / "notes.ipynb")
    (tmp_path / "torn.ipynb").write_text('{"cells": [')
    lines = list(lab.course.graded([tmp_path]))
    assert lines[0].endswith("ann.ipynb: 2 of 2 right") and lines[-1] == "2 of 2 right in 3 notebooks"
    assert "notes.ipynb: no cell calls lab.course.check" in lines[1] and "torn.ipynb is no notebook" in lines[2]


def cell(**other):
    return json.dumps({"cells": [{"cell_type": "code", "source": "lab.course.check('gal', 1, 2)", **other}]})


@pytest.mark.parametrize(
    "text",
    [
        "rubbish", "[]", '{"cells": 3}', '{"cells": []}', "[" * 3000, cell(outputs=7), cell(outputs=["x"]),
        cell(source=5), cell(source=f"lab.course.check('gal', {'1' * 5000}, 2)"), cell(outputs=[{"data": []}]),
    ],
)  # fmt: skip
def test_what_cannot_be_graded_is_one_line(tmp_path, capsys, text):
    (tmp_path / "bad.ipynb").write_text(text)
    assert cli.main(["course", "check", str(tmp_path / "bad.ipynb")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"lab: {tmp_path / 'bad.ipynb'}") and error.count("\n") == 1


def test_a_notebook_that_is_not_there(tmp_path, capsys):
    assert cli.main(["course", "check", str(tmp_path / "none.ipynb")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_code_runs_only_if_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("lab.course.grading._executed", lambda path: pytest.fail("it ran"))
    assert not any(lab.course.grade(notebook(tmp_path / "mine.ipynb", 0.5, None)))


@pytest.mark.slow
def test_code_runs_if_asked(tmp_path):
    path = notebook(tmp_path / "mine.ipynb", 0.003, shown=lambda verdict: "nothing yet")
    stored = path.read_bytes()
    assert not any(lab.course.grade(path))
    assert all(lab.course.grade(path, run=True))
    assert path.read_bytes() == stored
