"""Make the states that move on the site's pages: `python docs/explorers.py 01_gal`, which runs that notebook.

A cell that shows an explorer leaves `docs/explorers/<notebook>/<cell>.json.gz`, what `Explorer.save` puts into a page,
beside the cell's code. One with too many states for a page keeps some of its values, spread evenly.
"""

import gzip
import json
import math
import os
import sys
import tempfile
from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell

from lab.ui import Explorer
from lab.ui.explorer import STATES

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).parent / "explorers"
WIDGET = "application/vnd.jupyter.widget-view+json"
LARGEST = 300_000  # bytes of one file


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


def fewer(explorer: Explorer, most: int) -> dict[str, list]:
    """Values of the controls, spread evenly, with which at most so many states are left; the longest lose first."""
    values = {one["name"]: list(one["values"]) for one in explorer.spec["controls"]}
    while math.prod(map(len, values.values())) > most:
        longest = max(values, key=lambda name: len(values[name]))
        values[longest] = values[longest][::2]
    return values


def states(explorer: Explorer) -> tuple[dict, bool]:
    """The states of an explorer, and whether some were left out so that a page can hold them."""
    full = {one["name"]: list(one["values"]) for one in explorer.spec["controls"]}
    for most in (math.prod(map(len, full.values())), 400, 100, 40, 16):
        if most <= STATES:
            values = fewer(explorer, most)
            packed = explorer.states(**values)
            if len(packed) <= LARGEST:
                break
    return json.loads(gzip.decompress(packed)), values != full


def keep(notebook: str, cell: dict, explorer: Explorer) -> None:
    """Write the states of a cell's explorer, with its code."""
    found, thinned = states(explorer)
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
