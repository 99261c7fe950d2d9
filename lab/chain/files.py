"""A chain as it is written down: the recipes and their fields, in order, in a TOML file."""

import tomllib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..core.errors import meant, shown
from .stages import Chain

KEYS = ("stages", "task")


def read(path: str | Path, recipes: Iterable[type]) -> tuple[Chain, str | None]:
    """The chain in a TOML file, and the name of its task in `lab.tasks`, None where the file names none.

    A table `[[stages]]` for each stage, in order: its `recipe`, one of `recipes`, and the fields that differ from their
    defaults. ValueError in one line for what is none of these.
    """
    path = Path(path)
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "")
        raise ValueError(f"{path} cannot be read as TOML ({reason}): name a file with tables [[stages]]") from error
    if surplus := sorted(written.keys() - {*KEYS}):
        raise ValueError(
            f"{path}: {shown(surplus[0])} means nothing here{meant(surplus[0], KEYS)}: give [[stages]] and task"
        )
    tables, task = written.get("stages", []), written.get("task")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path}: stages is no list of tables: write [[stages]] in front of each")
    if task is not None and not isinstance(task, str):
        raise ValueError(f"{path}: task={shown(task)}: give the name of a task, such as 'fashion'")
    by_name = {recipe.__name__.lower(): recipe for recipe in recipes}
    try:
        return Chain(*(_stage(table, by_name) for table in tables)), task
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _stage(table: dict[str, Any], by_name: dict[str, type]) -> Any:
    """The recipe of one table."""
    name = table.get("recipe")
    kind = by_name.get(str(name).lower())
    names = [recipe.__name__ for recipe in by_name.values()]
    if kind is None:
        raise ValueError(f"recipe={shown(name)} is none{meant(str(name), names)}: give one of {', '.join(names)}")
    values = {key: value for key, value in table.items() if key != "recipe"}
    has = [field.name for field in fields(kind)]
    for key in values:
        if key not in has:
            raise ValueError(f"{kind.__name__} has no field {shown(key)}{meant(key, has)}; it has {', '.join(has)}")
    return kind(**values)
