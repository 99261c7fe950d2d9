"""What the lab is called where packages are installed, and who else there claims the folder `lab`."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "shrinklab"  # pyproject.toml says the same; `lab` on PyPI is another project, which owns this import name too
# Libraries that a run does without -> the extra that brings them
BROUGHT_BY = {
    **dict.fromkeys(("pandas", "skimage", "PIL"), "data"),
    **dict.fromkeys(("plotly", "anywidget", "ipywidgets", "jupyterlab"), "notebook"),
}
OTHER = re.compile(r"lab-[^-]+\.dist-info")
PACKAGE = Path(__file__).parents[1]


def install(*extras: str) -> str:
    """The command that brings extras: `pip install 'shrinklab[lens]'`."""
    return f"pip install '{NAME}[{','.join(extras)}]'"


@contextmanager
def needed(extra: str | None = None) -> Iterator[None]:
    """Around imports of what a run does without: what is missing is an ImportError of one line, with the command.

    `extra` is to be asked for where several libraries are imported, else the one that brings the first missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in BROUGHT_BY:
            raise
        raise ImportError(f"this needs {library}: {install(extra or BROUGHT_BY[library])}", name=library) from error


def version() -> str:
    """The installed distribution's version, which a tag has made; '0+unknown' for a checkout that is not installed."""
    from importlib import metadata

    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return "0+unknown"


def clash(package: Path = PACKAGE) -> str:
    """One line about a distribution named `lab` whose files lie in our folder, and the remedy; '' where there is none.

    Looks only at what lies beside the folder, by name: `import lab` asks this each time.
    """
    try:
        beside = [
            name for name in os.listdir(package.parent) if name.startswith("lab-") and name.endswith(".dist-info")
        ]
        foreign = [name for name in beside if _brings(package.parent / name / "RECORD", package.name)]
    except OSError:  # no folder that can be listed, such as a zip file
        return ""
    return told_apart(foreign[0].removesuffix(".dist-info").replace("-", " ")) if foreign else ""


def told_apart(distribution: str) -> str:
    """The line about a foreign distribution, such as 'lab 8.2'."""
    name = distribution.partition(" ")[0]
    return (
        f"{distribution} is another project that installs a package 'lab', too: "
        f"pip uninstall -y {name} && pip install --force-reinstall --no-deps {NAME}"
    )


def _brings(record: Path, folder: str) -> bool:
    """Whether a distribution's list of files has some in the folder."""
    return record.is_file() and any(line.startswith(f"{folder}/") for line in record.read_text("utf-8").splitlines())
