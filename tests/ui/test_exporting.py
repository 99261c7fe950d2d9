"""A notebook as one page: what an explorer leaves for it, and what cannot be exported is told in one line."""

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lab import ui
from lab.ui import explorer, exporting


def draw(k):
    if k == 4:
        raise ValueError("4 cannot be drawn")
    return ui.Frame(f"<svg>{k}</svg>", {"k": k})


def html(shown):
    data, _ = shown._repr_mimebundle_()
    return data.get("text/html"), set(data)


def test_an_explorer_leaves_all_of_its_states_for_a_page_and_no_widget(monkeypatch):
    shown = ui.Explorer(draw, {"k": [1, 2, 3]})
    assert 'class="states"' not in html(shown)[0] and "application/vnd.jupyter.widget-view+json" in html(shown)[1]
    monkeypatch.setenv(explorer.EXPORTING, "1")
    text, kinds = html(shown)
    assert kinds == {"text/plain", "text/html"} and 'class="states"' in text and explorer.THINNED not in text
    many = ui.Explorer(lambda a, b: ui.Frame("<svg></svg>", {"sum": a + b}), {"a": range(100), "b": range(60)})
    assert explorer.THINNED in html(many)[0]
    assert "Stands still on this page: 4 cannot be drawn." in html(ui.Explorer(draw, {"k": [3, 4]}))[0]


def test_states_keep_to_their_share_of_a_page():
    shown = ui.Explorer(lambda a: ui.Frame(f"<svg>{hash(str(a)) * 7**200}</svg>"), {"a": range(300)})
    packed, is_thinned = shown.bounded()
    assert not is_thinned and shown.bounded(len(packed) // 4)[1]
    assert len(shown.bounded(len(packed) // 4)[0]) <= len(packed) // 4


@pytest.fixture
def notebook(tmp_path):
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(made, tmp_path / "own.ipynb")
    return tmp_path / "own.ipynb"


def test_a_cell_that_fails_and_a_file_that_is_none_are_one_line(notebook, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise CellExecutionError("", "ZeroDivisionError", "division by zero")

    monkeypatch.setattr(NotebookClient, "execute", fail)
    with pytest.raises(ValueError, match=r"own\.ipynb: a cell fails \(ZeroDivisionError: division by zero\): mend it"):
        ui.export(notebook)
    notebook.write_text("{}")
    with pytest.raises(ValueError, match=r"own\.ipynb is not a notebook: give a file that Jupyter saved"):
        ui.export(notebook)
    with pytest.raises(FileNotFoundError):
        ui.export(tmp_path / "none.ipynb")
    assert not list(tmp_path.glob("*.html"))


def test_the_page_asks_for_mathjax_only_where_there_are_equations(notebook, monkeypatch):
    for source, is_asked in (("no equation", False), ("$x^2$", True)):
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source)])
        monkeypatch.setattr(exporting, "_executed", lambda path, made=made: made)
        page = ui.export(notebook).read_text()
        assert ("mathjax" in page.lower().replace("mathjax-", "")) == is_asked
        assert "require.min.js" not in page and "mermaid.esm" not in page and page.count('type="module"') == 1
