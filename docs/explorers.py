"""Make the states that move on the site's pages: `python docs/explorers.py 01_gal`, which runs that notebook.

A cell that shows an explorer leaves `docs/explorers/<notebook>/<cell>.json.gz`, what `Explorer.save` puts into a page,
beside the cell's code. One with too many states for a page keeps some of its values, spread evenly.
"""

import gzip
import json
import os
import sys
import tempfile
from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell

from lab.ui import Explorer

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).parent / "explorers"
WIDGET = "application/vnd.jupyter.widget-view+json"


def shows_a_widget(cell: dict) -> bool:
    """Whether the stored cell ended in an explorer."""
    return any(WIDGET in output.get("data", {}) for output in cell.get("outputs", ()))


def kept(notebook: str, cell: dict) -> dict | None:
    """The states of a cell as they were kept, or None where there are none for this code."""
    path = KEPT / notebook / f"{cell['id']}.json.gz"
    if not path.exists():
        return None
    states = json.loads(gzip.decompress(path.read_bytes()))
    return states if states.pop("cell") == "".join(cell["source"]) else None


def keep(notebook: str, cell: dict, explorer: Explorer) -> None:
    """Write the states of a cell's explorer, with its code."""
    packed, thinned = explorer.bounded()
    found = json.loads(gzip.decompress(packed))
    about = {"cell": "".join(cell["source"]), "thinned": thinned}
    packed = gzip.compress(json.dumps(about | found).encode(), mtime=0)
    path = KEPT / notebook / f"{cell['id']}.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed)
    print(f"{notebook} {cell['id']}: {len(found['frames'])} states, {len(packed):,} bytes, thinned: {thinned}")


def main(notebook: str) -> None:
    """Run a notebook's cells up to its last explorer, and keep the states of each."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    last = max(k for k, cell in enumerate(cells) if shows_a_widget(cell))
    shell = InteractiveShell.instance()
    os.chdir(tempfile.mkdtemp())
    for cell in cells[: last + 1]:
        if cell["cell_type"] != "code":
            continue
        result = shell.run_cell("".join(cell["source"]))
        result.raise_error()
        if isinstance(result.result, Explorer):
            keep(notebook, cell, result.result)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(name)
