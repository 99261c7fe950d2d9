"""Every notebook is checked by being there: here its form; its outputs are compared by nbval, which collects it itself.

A cell without a stored output passes nbval whatever it prints: the form must hold for the comparison to mean anything.
"""

import ast
import copy
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from lab.course.checking import EXERCISES

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IMPORTS = {"lab", "torch"}  # torch only for a network of the reader's own
EXEMPT = {"nbval-ignore-output", "nbval-skip", "raises-exception"}  # tags of cells whose output is not compared
KILOBYTES = 500
PATTERNS = 3

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def faults(notebook) -> list[str]:
    """What is wrong with a notebook's form, one line each."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = ["it holds widget state: store it without"] if "widgets" in notebook.metadata else []
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"it was not run from top to bottom: execution counts {counts}")
    exempt = [cell for cell in code if tags(cell) & EXEMPT]
    if len(exempt) > len(code) / 3:
        found.append(f"{len(exempt)} of {len(code)} cells are exempt from comparison: at most a third may be")
    return found + [f"cell {number}: {fault}" for number, cell in enumerate(code, 1) for fault in cell_faults(cell)]


def cell_faults(cell) -> list[str]:
    """What is wrong with one code cell."""
    try:
        body = ast.parse(cell.source).body
    except SyntaxError as error:
        return [f"not plain Python ({error.msg})"]
    found = [f"imports {name}: notebooks import only {' and '.join(IMPORTS)}" for name in imported(body) - IMPORTS]
    if any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for node in walk(body)):
        found.append("defines a function or a class: move it into the lab")
    if any(output.output_type == "error" for output in cell.outputs) and "raises-exception" not in tags(cell):
        found.append("its stored output is an error")
    if body and isinstance(body[-1], ast.Expr) and not cell.outputs and not tags(cell) & EXEMPT:
        found.append("ends in an expression, but no output is stored: nbval would compare nothing")
    if not tags(cell) & EXEMPT and any("<!--lab picture-->" in shown(output) for output in cell.outputs):
        found.append("compares a drawn picture, whose pixels differ by machine: print its facts, or tag it")
    return found


def shown(output) -> str:
    return output.get("data", {}).get("text/html", "")


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def walk(body):
    return (node for statement in body for node in ast.walk(statement))


def imported(body) -> set[str]:
    """The top packages that a cell imports."""
    names = set()
    for node in walk(body):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or ".").split(".")[0])
    return names


@each_notebook
def test_form(path):
    assert faults(nbformat.read(path, as_version=4)) == []
    size = path.stat().st_size
    assert size < KILOBYTES * 1000, f"{path.name} has {size:,} bytes: at most {KILOBYTES} KB"


@each_notebook
def test_it_is_a_lesson(path):
    """Goals, two exercises with their questions and checkers, worked answers folded away, takeaways and references."""
    notebook = nbformat.read(path, as_version=4)
    name = path.stem.split("_", 1)[1]
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "Afterwards you " in notebook.cells[0].source and "## To take away" in text and "## References" in text
    assert text.count("<details><summary>Exercise") == 2
    for number, exercise in enumerate(EXERCISES[name], 1):
        assert exercise.question in text
        assert f'lab.course.check("{name}", {number}, answer)' in code


def test_few_patterns_are_overlooked():
    text = (ROOT / "tests" / "nbval.cfg").read_text()
    assert len(re.findall(r"^\s*regex\s*:", text, re.MULTILINE)) <= PATTERNS


def good():
    """A notebook without a fault: three cells, the last one exempt."""
    v4 = nbformat.v4
    result = v4.new_output("execute_result", {"text/plain": "1"}, execution_count=2)
    cells = [
        v4.new_markdown_cell("# One"),
        v4.new_code_cell("import lab", execution_count=1),
        v4.new_code_cell("lab.one", execution_count=2, outputs=[result]),
        v4.new_code_cell("lab.two", execution_count=3, metadata={"tags": ["nbval-ignore-output"]}),
    ]
    return v4.new_notebook(cells=cells)


def outputs_cleared(notebook):
    notebook.cells[2].outputs = []


def ran_out_of_order(notebook):
    notebook.cells[1].execution_count = 7


def holds_an_error(notebook):
    notebook.cells[2].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]


def defines(notebook):
    notebook.cells[1].source = "def helper(): pass"


def imports_more(notebook):
    notebook.cells[1].source = "from numpy import linalg"


def uses_magic(notebook):
    notebook.cells[1].source = "%matplotlib inline"


def compares_a_picture(notebook):
    notebook.cells[2].outputs[0].data["text/html"] = "<!--lab picture--><img><!--end-->"


def keeps_widgets(notebook):
    notebook.metadata.widgets = {}


def exempts_most(notebook):
    notebook.cells[2].metadata.tags = ["nbval-skip"]


FAULTS = {
    outputs_cleared: "nbval would compare nothing",
    ran_out_of_order: "execution counts",
    holds_an_error: "is an error",
    defines: "defines a function",
    imports_more: "imports numpy",
    uses_magic: "not plain Python",
    compares_a_picture: "compares a drawn picture",
    keeps_widgets: "widget state",
    exempts_most: "2 of 3 cells are exempt",
}


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_the_form_test_sees(spoil):
    assert faults(good()) == []
    spoiled = copy.deepcopy(good())
    spoil(spoiled)
    (found,) = faults(spoiled)
    assert FAULTS[spoil] in found


@pytest.mark.slow
def test_a_changed_output_fails(tmp_path):
    notebook = good()
    notebook.cells = [nbformat.v4.new_code_cell("1 + 1", execution_count=1)]
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for stored, status in (("2", 0), ("3", 1)):
        result = nbformat.v4.new_output("execute_result", {"text/plain": stored}, execution_count=1)
        notebook.cells[0].outputs = [result]
        nbformat.write(notebook, tmp_path / "sum.ipynb")
        assert nbval(tmp_path / "sum.ipynb").returncode == status


def nbval(path):
    """Run one notebook in pytest with the settings of pyproject.toml."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
