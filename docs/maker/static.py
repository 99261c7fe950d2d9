"""The scripts and styles that the lab's explorers and figures need, from where the lab itself has them."""

import shutil
from pathlib import Path

import plotly

from lab.ui import explorer

from . import put


def write(made: Path) -> None:
    """Write them into made/static."""
    script = (Path(explorer.__file__).parent / "static" / "explorer.js").read_text(encoding="utf-8")
    body, found, exported = script.partition("export default ")
    assert found, "explorer.js exports nothing"
    put(made / "static" / "lab-explorer.js", f"(() => {{\n{body}window.labExplorer = {exported}\n}})();\n")
    put(made / "static" / "lab.css", explorer.styles())
    target = made / "static" / "plotly.min.js"
    if not target.exists():
        shutil.copyfile(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", target)
