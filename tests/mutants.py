"""Breaks each line of the equations (or recipes) in turn and names what no test has noticed.

    make mutants                    all equations, against tests/<method>/test_equations.py
    make mutants M=gal              those of one method
    make mutants M=gal FILE=recipe  its recipe, against tests/gal/test_recipe.py; takes long

mutmut does the breaking and keeps what it found in mutants/: a run that was stopped goes on if code and tests are as
they were. A mutant may survive only if tests/mutants.txt names it, with the reason; any other ends the command with 1.
"""

import ast
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from difflib import ndiff
from itertools import chain
from pathlib import Path

SURVIVED = ("survived", "no tests", "suspicious", "not checked")
ROOT = Path(__file__).parents[1]


def begun(methods: list[str], file: str) -> None:
    """Forget what an earlier run found of other code, other tests or other methods: mutmut would let it stand."""
    digest = hashlib.sha256(repr((methods, file)).encode())
    for path in sorted([*Path("lab").rglob("*.py"), *Path("tests").rglob("*.py")]):
        digest.update(path.read_bytes())
    mark = Path("mutants", "of.txt")
    if not mark.exists() or mark.read_text() != digest.hexdigest():
        shutil.rmtree(mark.parent, ignore_errors=True)
        mark.parent.mkdir()
        mark.write_text(digest.hexdigest())


def configured(methods: list[str], file: str) -> None:
    """Tell mutmut what to break and which tests must notice."""
    from mutmut.configuration import config

    now = config()
    now.only_mutate = [f"lab/{method}/{file}.py" for method in methods]
    now.pytest_add_cli_args_test_selection = [f"tests/{method}/test_{file}.py" for method in methods]
    now.pytest_add_cli_args = ["-p", "no:cacheprovider"]


def survivors(methods: list[str], file: str) -> Iterator[tuple[str, str]]:
    """Function and altered lines of each mutant that lived."""
    from mutmut.stats import status_by_exit_code

    for method in methods:
        path = Path("lab", method, f"{file}.py")
        codes = json.loads(Path("mutants", f"{path}.meta").read_text())["exit_code_by_key"]
        text = Path("mutants", path).read_text()
        sources = {
            node.name: ast.get_source_segment(text, node)
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef)
        }
        for key, code in codes.items():
            if status_by_exit_code[code] in SURVIVED:
                name = key.rpartition(".")[2]
                plain = re.sub(r"__mutmut_\d+$", "", name)
                before = sources[f"{plain}__mutmut_orig"].replace("__mutmut_orig", "")
                after = sources[name].replace(name, plain)
                yield f"{method}.{file}.{re.sub('^x_?', '', plain)}", changed(before, after)


def changed(before: str, after: str) -> str:
    """The lines of `after` that `before` has not, or those that it lost, as one."""
    lines = list(ndiff(before.splitlines(), after.splitlines()))
    new = [line[2:].strip() for line in lines if line.startswith("+ ")]
    return " ".join(new or [f"without: {line[2:].strip()}" for line in lines if line.startswith("- ")])


def accepted() -> set[tuple[str, str]]:
    """What may survive: pairs of lines 'method.file.function' and '    altered line', reasons behind #."""
    name, pairs = "", set()
    for line in (ROOT / "tests" / "mutants.txt").read_text().splitlines():
        if line.startswith("    "):
            pairs.add((name, line.strip()))
        elif line and not line.startswith("#"):
            name = line.strip()
    return pairs


def main(methods: list[str], file: str) -> int:
    try:
        from mutmut.__main__ import cli
    except ImportError:
        print("mutmut is missing: run `make mutants`, which installs it", file=sys.stderr)
        return 2
    begun(methods, file)
    configured(methods, file)
    cli(["run", "--max-children", "2"], standalone_mode=False)
    known, lived = accepted(), sorted(set(survivors(methods, file)))
    left = [pair for pair in lived if pair not in known]
    for name, line in left:
        print(f"\n{name}\n    {line}")
    print(f"\n{len(lived)} mutants lived, {len(lived) - len(left)} of them named in tests/mutants.txt, {len(left)} not")
    return 1 if left else 0


if __name__ == "__main__":
    everyone = sorted(path.parent.name for path in ROOT.glob("lab/*/equations.py"))
    asked = list(chain(*(arg.split(",") for arg in sys.argv[1:2] if arg))) or everyone
    sys.exit(main(asked, sys.argv[2] if len(sys.argv) > 2 else "equations"))
