"""The notebooks as they are stored, their explorers moving without a kernel and their figures drawn in the page."""

import base64
import gzip
import json
from html import escape
from pathlib import Path

import explorers

from lab.ui.explorer import THINNED

from . import ROOT, put

FIGURE = "application/vnd.plotly.v1+json"


def live(made: Path, notebook: str, cell: dict, still: str) -> str | None:
    """The HTML of a cell whose explorer's states are kept, and beside it their file; None where there are none."""
    states = explorers.kept(notebook, cell)
    if states is None:
        return None
    name = f"{notebook}-{cell['id']}"
    note = f'<p class="lab-note">{THINNED}</p>' if states.pop("thinned", False) else ""
    packed = base64.b64encode(gzip.compress(json.dumps(states).encode(), mtime=0)).decode()
    put(made / "static" / "states" / f"{name}.js", f'labStates("{name}", "{packed}");\n')
    shown = f'<div class="lab-live" data-states="{name}">{still}</div>{note}'
    put(made / "live" / f"{name}.html", shown)  # for the pages that show it besides its notebook
    return shown


def figure(data: dict) -> str:
    """The HTML of a figure: its numbers, which site.js hands to plotly."""
    layout = data["layout"]
    title = layout.get("title", {}).get("text") or layout.get("legend", {}).get("title", {}).get("text") or "a figure"
    numbers = json.dumps({"data": data["data"], "layout": data["layout"]})
    return f'<div class="lab-figure" role="img" aria-label="{escape(title)}" data-figure="{escape(numbers)}"></div>'


def output(made: Path, notebook: str, cell: dict, one: dict) -> dict:
    """An output as the page shows it."""
    data = one.get("data", {})
    if FIGURE in data:
        return one | {"data": {"text/html": figure(data[FIGURE])}}
    if explorers.WIDGET in data:
        still = "".join(data["text/html"])
        return one | {
            "data": {"text/html": live(made, notebook, cell, still) or f'<div class="lab-still">{still}</div>'}
        }
    return one


def page(made: Path, path: Path) -> dict:
    """A notebook as a page."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [output(made, path.stem, cell, one) for one in cell["outputs"]]
    return notebook


def write(made: Path) -> None:
    """Write every notebook into made/notebooks."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        put(made / "notebooks" / path.name, json.dumps(page(made, path), indent=1, ensure_ascii=False))
