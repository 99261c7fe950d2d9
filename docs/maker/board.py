"""The board: what was measured, beside rivals and controls, out of the files that the benchmarks left in `data`."""

import json
import re
from pathlib import Path

import lab

from . import ROOT, put

MOST = 40  # figures of one file that the board shows
INTRODUCTION = """# The board of honest results

Every figure here is read, while this page is built, from the files that benchmarks left in `data/`: none is typed.
A contest gives a method and its rivals the same start, the same budget and the same seeds; *behind* is how far a rival
lies behind the method on the same seeds, with its interval of 95 %. Where it is negative the rival is ahead.

What each method is worth in a line is in [which method for what](/howto/which); the pages below say how things were
measured, what was not run, and what speaks against the method.
"""


def table(contest) -> str:
    """A contest's tables as Markdown, one a budget."""
    budgets = list(dict.fromkeys(str(row["budget"]) for row in contest.kept["summary"]))
    return "\n\n".join(f"At a budget of {budget}:\n\n{markdown(contest.table(budget))}" for budget in budgets)


def markdown(frame) -> str:
    rows = [[frame.index.name or "", *frame.columns], ["---"] * (len(frame.columns) + 1)]
    rows += [
        [str(index), *map(str, row)] for index, row in zip(frame.index, frame.itertuples(index=False), strict=True)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine(facts: dict) -> str:
    return ", ".join(
        f"{name} {', '.join(value) if isinstance(value, list) else value}" for name, value in facts.items()
    )


def contest(path: Path) -> str:
    """A contest: its tables, its command and the machine."""
    found = lab.ui.contest(path)
    commands = dict.fromkeys(record["command"] for record in found.kept["records"])
    about = f"`data/{path.parent.name}/{path.name}`, the {found.kept['figure'].replace('_', ' ')}"
    lines = [f"## {found.kept['contest']}", f"{about}; measured on: {machine(found.kept['machine'])}.", table(found)]
    return "\n\n".join([*lines, "```text\n" + "\n".join(commands) + "\n```"])


def numbers(facts: dict, way: str = "") -> list[tuple[str, str]]:
    """A file's figures, each under its whole name: numbers, and means that are printed with their interval."""
    found = []
    for name, value in facts.items():
        if isinstance(value, dict):
            found += numbers(value, f"{way}{name} ")
        elif isinstance(value, int | float):
            found.append((way + name, f"{value:.4g}"))
        elif isinstance(value, str):
            found.append((way + name, value))
    return found


def figures(path: Path, facts: dict) -> str:
    """Plain figures of one file, the first of them where they are many."""
    plain = numbers(facts["figures"])
    rows = "\n".join(f"| `{name}` | {value} |" for name, value in plain[:MOST])
    more = f" The first {MOST} of {len(plain)}." if len(plain) > MOST else ""
    about = f"`data/{path.parent.name}/{path.name}`; measured on: {machine(facts['machine'])}.{more}"
    return f"## {path.parent.name}: {path.stem}\n\n{about}\n\n| figure | value |\n|---|---|\n{rows}"


def readme(folder: Path) -> str:
    """The README of a folder of data as a page; the names of its files need no links."""
    return re.sub(r"\]\((?!https?:)[^)]*\)", "]", (folder / "README.md").read_text(encoding="utf-8"))


def registry() -> str:
    """What each method makes of about 170 architectures, as `lab.works_with` has it."""
    about = "What each method makes of networks of torchvision, timm and diffusers, with random weights."
    more = '`lab.works_with()` lists them all; `lab.works_with("resnet18")` tells more of one.'
    made_by = "Made by `python benchmarks/registry.py`."
    return f"# Which networks\n\n{about}\n\n{lab.works_with().to_markdown()}\n\n{more} {made_by}\n"


def write(made: Path) -> None:
    """Write the board, and the account of every folder that has figures."""
    body, accounts = [INTRODUCTION], []
    put(made / "board" / "registry.md", registry())
    for path in sorted((ROOT / "data").glob("*/*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        text = contest(path) if "contest" in facts else figures(path, facts) if "figures" in facts else ""
        if text:
            body.append(text)
            accounts.append(path.parent)
    for folder in dict.fromkeys(accounts):
        put(made / "board" / f"{folder.name}.md", readme(folder))
    listed = "\n".join(f"board/{name}" for name in ("registry", *dict.fromkeys(folder.name for folder in accounts)))
    body.insert(1, f"```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```")
    put(made / "board.md", "\n\n".join(body) + "\n")
