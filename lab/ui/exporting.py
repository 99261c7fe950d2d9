"""A notebook as one page that needs no kernel: it is run, its explorers move and its figures are drawn."""

import os
from pathlib import Path
from typing import Any

from ..core import store
from ..core.distribution import needed
from ..core.errors import cut
from .explorer import EXPORTING, player, styles

FIGURE = "application/vnd.plotly.v1+json"
_TEMPLATE = """{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
"""
_NO_EQUATIONS = "{%- block html_head_js_mathjax -%}{%- endblock -%}"


def export(notebook: str | Path, out: str | Path | None = None) -> Path:
    """Run a notebook and write it as one HTML page in which explorers move and figures are drawn; returns its path.

    `out` left out is the notebook's name with .html. The notebook itself is not changed; its code does here what it
    likes, in its own folder. An explorer of too many states has some of them, one that cannot be drawn ahead stands
    still and says why. Equations, where there are any, ask MathJax of its network. ValueError in one line for a file
    that is no notebook, and for a cell that fails.
    """
    path = Path(notebook)
    out = path.with_suffix(".html") if out is None else Path(out)
    with needed("notebook"):
        from nbconvert import HTMLExporter
    ran = _executed(path)
    has_equations = any("$" in cell.source for cell in ran.cells if cell.cell_type == "markdown")
    exporter = HTMLExporter(raw_template=_TEMPLATE + _NO_EQUATIONS * (not has_equations))
    body, _ = exporter.from_notebook_node(ran, {"metadata": {"name": path.stem}})
    before, end, after = body.rpartition("</body>")
    store.write(out, f"{before}<style>{styles()}</style>\n{player()}\n{end}{after}".encode())
    return out


def _executed(path: Path) -> Any:
    """The notebook with the outputs of a run, each as a page shows it."""
    with needed("notebook"):
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is not a notebook: give a file that Jupyter saved") from error
    where = {"metadata": {"path": str(path.parent.resolve())}}
    client = NotebookClient(notebook, timeout=None, resources=where, store_widget_state=False)
    try:
        client.execute(env={**os.environ, EXPORTING: "1"})
    except CellExecutionError as error:
        raise ValueError(f"{path}: a cell fails ({error.ename}: {cut(error.evalue, 120)}): mend it first") from error
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    figures = [output for output in outputs if FIGURE in output.get("data", {})]
    for number, output in enumerate(figures):
        output["data"] = {"text/html": _figure(output["data"][FIGURE], is_first=not number)}
    return notebook


def _figure(numbers: dict[str, Any], is_first: bool) -> str:
    """A figure as HTML; the first of a page brings plotly itself."""
    from plotly.io import to_html

    figure = {"data": numbers["data"], "layout": numbers["layout"]}
    config = {"displaylogo": False, "responsive": True}
    return to_html(figure, config=config, include_plotlyjs=is_first, full_html=False, validate=False)
