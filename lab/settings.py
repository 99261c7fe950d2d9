"""A recipe's fields as text: read from it, described, listed."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from .core.errors import meant

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def listed(recipe: type) -> Iterator[str]:
    """A line a field: how `--set` takes it at its default, and what else it may be."""
    hints = typing.get_type_hints(recipe)
    fields = [(f"{field.name}={_text(field.default)}", hints[field.name]) for field in dataclasses.fields(recipe)]
    width = max(len(default) for default, _ in fields)
    yield from (f"  {default:<{width}}  {describe(kind)}" for default, kind in fields)


def explained(recipe: type) -> str:
    """A recipe's fields with their defaults, and its own words about them."""
    head = f"fields of {recipe.__name__}, each given as --set FIELD=VALUE, here with what they are if left out:"
    return "\n".join([head, *listed(recipe), "", inspect.getdoc(recipe) or ""]).rstrip()


def parse_field(recipe: type, text: str) -> tuple[str, object]:
    """The name and the value of `FIELD=VALUE`, read by the type of the recipe's field."""
    name, equals, value = text.partition("=")
    hints = typing.get_type_hints(recipe)
    names = [field.name for field in dataclasses.fields(recipe)]
    if not equals:
        raise ValueError(f"--set {text}: write FIELD=VALUE")
    if name not in names:
        raise ValueError(f"{recipe.__name__} has no field {name!r}{meant(name, names)}; it has {', '.join(names)}")
    try:
        return name, parse_value(hints[name], value)
    except ValueError:
        raise ValueError(f"{recipe.__name__}: {name}={value!r} is not allowed: give {describe(hints[name])}") from None


def parse_value(kind: typing.Any, text: str) -> typing.Any:
    """The text as a value of a field's type; ValueError where it isn't one."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(parts, text)
    if origin is typing.Literal:
        return {str(part): part for part in parts}[text] if text in map(str, parts) else _no(text)
    if origin in (tuple, list) or kind in (tuple, list):
        pieces = [piece.strip(" '\"") for piece in text.strip("()[] ").split(",")]
        return (origin or kind)(parse_value(parts[0] if parts else str, piece) for piece in pieces if piece)
    if kind is bool:
        return TRUTH[text.lower()] if text.lower() in TRUTH else _no(text)
    if kind is type(None):
        return None if text.lower() == "none" else _no(text)
    return kind(text) if kind in (int, float, str, Path) else text


def describe(kind: typing.Any) -> str:
    """A field's type in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(part) for part in parts)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (tuple, list):
        return f"values separated by commas, each {describe(parts[0])}"
    words = {bool: "true or false", int: "an integer", float: "a number", str: "a text", type(None): "none"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _text(value: object) -> str:
    """A field's default as `parse_value` reads it back."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _first_that_fits(kinds: tuple, text: str) -> typing.Any:
    for kind in sorted(kinds, key=lambda kind: kind is str):  # a text fits everything: last
        try:
            return parse_value(kind, text)
        except ValueError:
            continue
    return _no(text)


def _no(text: str) -> typing.Any:
    raise ValueError(text)
