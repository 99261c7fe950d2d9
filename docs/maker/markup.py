"""Between the lab's docstrings, which are plain text, and the pages: reStructuredText, and formulas as MathML."""

import re
import textwrap
from dataclasses import fields, is_dataclass

from docutils.utils.math.latex2mathml import tex2mathml

WIDTH = 120  # the docstrings' lines


def inline(text: str) -> str:
    """Plain text in which `code` stands between single backticks, as reStructuredText."""
    parts = re.split(r"`+([^`]+)`+", text)
    plain = [re.sub(r"([\\*_|<>])", r"\\\1", part) for part in parts[::2]]
    code = [f"``{part.strip()}``\\ " for part in parts[1::2]]
    return "".join(a + b for a, b in zip(plain, [*code, ""], strict=True))


def literal(text: str) -> str:
    """Text that keeps its columns."""
    return "::\n\n" + textwrap.indent(textwrap.dedent(text), "    ")


def paragraph(text: str) -> str:
    """A paragraph of a docstring; one with indented or aligned lines keeps them."""
    lines = text.splitlines()
    if text.lstrip().startswith(">>>"):
        return ".. code-block:: pycon\n\n" + textwrap.indent(textwrap.dedent(text), "    ")
    if any(line.startswith(" ") or re.search(r"\S {2,}\S", line) for line in lines):
        return literal(text)
    escaped = inline(" ".join(lines))
    return "\\" + escaped if re.match(r"[-+•*:(]|\w+[.)] ", escaped) else escaped


def rst(text: str) -> str:
    """A whole docstring."""
    return "\n\n".join(paragraph(part) for part in re.split(r"\n\s*\n", text.strip("\n")) if part.strip())


def items(text: str) -> list[str]:
    """The items of a card's part: one ends where a line ends although the next word would have fitted behind it."""
    lines, found = text.splitlines(), [[]]
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        found[-1].append(line.strip())
        if len(line) + 1 + len(next(iter(after.split()), "")) <= WIDTH:
            found.append([])
    return [" ".join(item) for item in found if item]


def settings(text: str, names: list[str]) -> str:
    """A docstring in which 'name: ...' or 'name, name: ...' explains settings, one paragraph a sentence of these."""
    some = "|".join(map(re.escape, names))
    start = re.compile(rf"(?<=[.;] )(?=(?:{some})(?:, (?:{some}))*: )|(?<=\n)(?=(?:{some})(?:, (?:{some}))*: )")
    return start.sub("\n\n", text)


def docstring(app, what, name, obj, options, lines) -> None:
    """Hand autodoc a docstring as reStructuredText (its event `autodoc-process-docstring`)."""
    text = "\n".join(lines)
    if what == "class" and is_dataclass(obj):
        text = settings(text, [field.name for field in fields(obj)])
    lines[:] = rst(text).splitlines()


def signature(app, what, name, obj, options, arguments, returned):
    """Short names of types; no arguments for what users are handed and do not make (autodoc-process-signature)."""
    if what == "class" and name.endswith("Outcome"):
        return "", returned
    if arguments is None:
        return None
    return re.sub(r"~(?:\w+\.)*", "", arguments).replace("<factory>", "{}"), returned


def _inline_math(self, node) -> None:
    self.body.append(tex2mathml(node.astext()))


def _block_math(self, node) -> None:
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')


def _skip(self, node) -> None:
    from docutils.nodes import SkipNode

    raise SkipNode


def _visit(write):
    def visit(self, node) -> None:
        write(self, node)
        _skip(self, node)

    return visit


INLINE_MATH, BLOCK_MATH = (_visit(_inline_math), None), (_visit(_block_math), None)
