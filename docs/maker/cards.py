"""The cards of the methods as pages: what each takes from its paper, equation by equation, with the code beside it."""

import re
from importlib import import_module
from pathlib import Path

import lab

from . import put
from .markup import inline, items

PARTS = {
    "idea": "The idea", "symbols": "Symbols", "equations": "Equations", "procedure": "The procedure",
    "where": "Where things are", "picture": "The picture", "departures": "Departures from the paper",
}  # fmt: skip


def parts(card: str) -> dict[str, str]:
    """A card's parts by their names; the head, which has none, under ''."""
    found, name = {"": []}, ""
    for line in card.splitlines():
        head = re.match(r"    (\w[\w ]{1,10}?)\s{2,}(?=\S)", line)
        if head:
            name = head[1]
            found[name] = [" " * head.end() + line[head.end() :]]
        else:
            found[name].append(line)
    return {part: "\n".join(line for line in lines if line.strip()) for part, lines in found.items()}


def head(text: str) -> str:
    return f"{text}\n{'-' * len(text)}\n"


def symbols(text: str) -> str:
    """A list of symbols: they stand with three spaces between them."""
    listed = re.split(r"\s{3,}", text.strip())
    return "\n".join(f"* {inline(' '.join(symbol.split()))}" for symbol in listed)


def equations(room: str, text: str) -> str:
    """Each equation of the card: its number, what it says, and its code."""
    found = re.findall(r"\((\w+)\) (\w+)", text)
    body = [inline(item) for item in items(text) if not item.startswith("(")]
    for number, name in found:
        title = f"({number}) {name}"
        function = f".. autofunction:: lab.{room}.equations.{name}"
        body.append(f".. _card-{room}-{number}:\n\n{title}\n{'~' * len(title)}\n\n{function}")
    return "\n\n".join(body)


def page(recipe: str, room: str) -> str:
    """A method's card as reStructuredText."""
    listed = parts(import_module(f"lab.{room}").__doc__)
    paper = " ".join(listed.pop("").split())
    body = [f"{recipe}\n{'=' * len(recipe)}\n", inline(paper), links(room)]
    for part, text in listed.items():
        body.append(head(PARTS.get(part, part[0].upper() + part[1:])))
        if part == "equations":
            body.append(equations(room, text))
        elif part == "symbols":
            body.append(symbols(text))
        else:
            several = items(text)
            body.append("\n".join(f"* {inline(item)}" for item in several) if len(several) > 1 else inline(several[0]))
    return "\n\n".join(body) + "\n"


def links(room: str) -> str:
    (notebook,) = (Path(__file__).parents[2] / "notebooks").glob(f"*_{room}.ipynb")
    places = {
        "The notebook": f"/made/notebooks/{notebook.stem}", "the interface": f"/made/api/{room}",
    }  # fmt: skip
    return " · ".join(f":doc:`{text} <{place}>`" for text, place in places.items())


def write(made: Path) -> None:
    """Write every card into made/cards."""
    for recipe, (room, _) in lab._RECIPES.items():
        put(made / "cards" / f"{room}.rst", page(recipe, room))
