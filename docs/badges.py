"""Let every notebook begin with a way in from elsewhere: `python docs/badges.py`, which says what it changed.

Its first cell ends in two links, which open it on Colab and on Binder, and the first cell of code installs the lab
where it is missing. Where the project is at home says pyproject.toml alone, under [project.urls].
"""

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lab.core import distribution  # noqa: E402

HOME = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
OWNER, NAME = HOME.rsplit("/", 2)[1:]
COLAB = f"https://colab.research.google.com/github/{OWNER}/{NAME}/blob/main/notebooks"
BINDER = f"https://mybinder.org/v2/gh/{OWNER}/{NAME}/main?urlpath=lab/tree/notebooks"
LINKS = re.compile(r"\n\n\[Open in Colab\]\([^)]*\) · \[open in Binder\]\([^)]*\)$")
INSTALLS = "install"  # the id of the cell that does
# What a notebook needs besides the extra `notebook`
EXTRAS = {
    "02_decoupling": ("lens",),
    "03_pams": ("export",),
    "04_dqss": ("export",),
    "06_foldgpt": ("language",),
    "07_hybridsd": ("diffusion",),
    "08_acenas": ("search",),
    "10_chains": ("export",),
    "12_your_network": ("export",),
    "11_lens": ("lens",),
}
FROM_CHECKOUT = ("07_hybridsd",)  # those whose models are too large for the wheel


def links(notebook: str) -> str:
    """The line that opens a notebook elsewhere."""
    return f"[Open in Colab]({COLAB}/{notebook}.ipynb) · [open in Binder]({BINDER}/{notebook}.ipynb)"


def installs(notebook: str) -> str:
    """The code that installs the lab, where it is missing, with what the notebook needs."""
    magic, arguments = (
        distribution.install("notebook", *EXTRAS.get(notebook, ())).replace(" install ", " install -q ").split(" ", 1)
    )
    lines = [
        "try:",
        "    import lab",
        f"except ImportError:  # such as on Colab; the package is called {distribution.NAME}",
        f'    get_ipython().run_line_magic("{magic}", "{arguments}")',
    ]
    if notebook in FROM_CHECKOUT:
        lines += [
            f'    get_ipython().system("git clone -q --depth 1 {HOME}")',
            f'    get_ipython().run_line_magic("env", "LAB_DATA={NAME}/data")',
        ]
    return "\n".join(lines)


def begun(notebook: str, cells: list[dict]) -> list[dict]:
    """The cells of a notebook with its links and the cell that installs; what is there already is made anew."""
    first, *rest = [cell for cell in cells if cell["id"] != INSTALLS]
    text = LINKS.sub("", "".join(first["source"])) + f"\n\n{links(notebook)}"
    first = first | {"source": text.splitlines(keepends=True)}
    added = {
        "cell_type": "code",
        "execution_count": None,
        "id": INSTALLS,
        "metadata": {},
        "outputs": [],
        "source": installs(notebook).splitlines(keepends=True),
    }
    code = iter(range(1, len(cells) + 2))
    return [counted(cell, next(code)) if cell["cell_type"] == "code" else cell for cell in (first, added, *rest)]


def counted(cell: dict, number: int) -> dict:
    """A cell of code with another number of its run; one that was not run stays so, which test_form notices."""
    if cell["execution_count"] is None and cell["id"] != INSTALLS:
        return cell
    outputs = [
        one | {"execution_count": number} if one["output_type"] == "execute_result" else one for one in cell["outputs"]
    ]
    return cell | {"execution_count": number, "outputs": outputs}


def main() -> None:
    """Write every notebook that does not begin as it should."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        stored = path.read_text(encoding="utf-8")
        notebook = json.loads(stored)
        notebook["cells"] = begun(path.stem, notebook["cells"])
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if text != stored:
            path.write_text(text, encoding="utf-8")
            print(f"{path.name}: links and first cell")


if __name__ == "__main__":
    main()
