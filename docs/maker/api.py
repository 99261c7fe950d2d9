"""The public surface as pages: what `lab` names, what the modules name that it names, and nothing else."""

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import lab

from . import put
from .markup import rst

ROOMS = {room: recipe for recipe, (room, _) in lab._RECIPES.items()}
LEFT_OUT = "object, Module, tuple, dict, AnyWidget, Widget, HasTraits, RuntimeError, ValueError, Exception"

WIDGETS = "tabbable, tooltip, layout, keys, comm, log"  # what ipywidgets gives to every widget


def names(module: ModuleType) -> list[str]:
    """The public names of a module: its `__all__`, or the functions and classes that it defines."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if name != "RECIPES"]
    own = (n for n, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    return [name for name in own if not name.startswith("_") and callable(getattr(module, name))]


def entry(path: str, value: Any) -> str:
    """A class with its documented methods, or a function."""
    if inspect.isclass(value):
        options = f"   :members:\n   :inherited-members: {LEFT_OUT}\n   :exclude-members: {WIDGETS}"
        return f".. autoclass:: {path}\n{options}"
    return f".. autofunction:: {path}"


def head(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}"


class Surface:
    """The pages so far; each object is described once, at the first place that names it."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.pages: dict[str, str] = {}

    def module(self, path: str, module: ModuleType, line: str = "=") -> list[str]:
        """The text of a module: its docstring (a method's is its card), its classes and functions, its own modules."""
        room = path.removeprefix("lab.")
        about = (
            f"What it does, equation by equation: :doc:`/made/cards/{room}`." if room in ROOMS else rst(module.__doc__)
        )
        body, within = [head(path, line), f".. currentmodule:: lab\n\n{about}"], []
        for name in names(module) + (["view"] if room in ROOMS else []):
            value = getattr(module, name)
            if id(value) in self.seen:
                continue
            if not inspect.ismodule(value):
                self.seen.add(id(value))
                body.append(entry(f"{path}.{name}", value))
            elif path != "lab" and name != "equations":
                within += self.module(f"{path}.{name}", value, "-")
        return body + within

    def page(self, path: str, module: ModuleType) -> None:
        self.pages[path.removeprefix("lab.")] = "\n\n".join(self.module(path, module)) + "\n"


def elsewhere(rooms: list[str]) -> tuple[set[int], str]:
    """What a module names besides `lab` itself: the objects, and the line that says where each is described."""
    places: dict[int, str] = {}
    for room in rooms:
        for name in names(getattr(lab, room)):
            places.setdefault(id(getattr(getattr(lab, room), name)), room)
    shared = {name: places[id(getattr(lab, name))] for name in names(lab) if id(getattr(lab, name)) in places}
    listed = ", ".join(f"``lab.{name}`` (:doc:`{room}`)" for name, room in shared.items())
    return set(places), f"Described with their modules: {listed}."


def write(made: Path) -> None:
    """Write the pages into made/api."""
    rooms = [*ROOMS, *(name for name in lab.__all__ if name not in ROOMS and inspect.ismodule(getattr(lab, name)))]
    surface = Surface()
    surface.seen, line = elsewhere(rooms)
    surface.page("lab", lab)
    surface.pages["lab"] += f"\n{line}\n"
    surface.seen.clear()
    for name in rooms:
        surface.page(f"lab.{name}", getattr(lab, name))
    for name, text in surface.pages.items():
        put(made / "api" / f"{name}.rst", text)
    listed = "\n".join(f"   made/api/{name}" for name in surface.pages)
    put(made / "api.rst.txt", f".. toctree::\n   :maxdepth: 1\n\n{listed}\n")
