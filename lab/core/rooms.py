"""Modules of a package that are imported at first use: pictures bring plotly along, which a run does without."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from .distribution import needed


def at_first_use(package: dict[str, Any], *names: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package (its `globals()`) whose modules `names` need no import of their own."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        with needed("notebook"):
            return import_module(f".{name}", package["__name__"])

    return find, lambda: sorted({*package, *names})
