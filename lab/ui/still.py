"""Pictures that stand still: SVG as `<img>`, which a notebook shows even before its reader trusts it.

An untrusted notebook keeps images and drops inline `<svg>`. An image cannot see the page's theme, so it brings its
own background.
"""

import re
from pathlib import Path
from urllib.parse import quote

from .svg import PALETTE

_CARD = (
    "svg{background:#fff;color:#222;--lab-ground:#fff}"
    "@media(prefers-color-scheme:dark){svg{background:#1c1c1c;color:#eee;--lab-ground:#1c1c1c}}"
)
_EDGE = 8  # px of background around the picture


def ink() -> str:
    """The CSS of the pictures' shapes, without its comments."""
    text = (Path(__file__).parent / "static" / "picture.css").read_text()
    return re.sub(r"/\*.*?\*/|\n", "", text)


def palette() -> str:
    """The palette as CSS variables."""
    return "".join(f"--lab-{i}:{colour};" for i, colour in enumerate(PALETTE))


def images(svgs: str) -> str:
    """Each `<svg>` of the text as an `<img>` that needs nothing else."""
    return " ".join(_image(svg) for svg in re.findall(r"<svg\b.*?</svg>", svgs, re.DOTALL))


def _image(svg: str) -> str:
    label = re.search(r'aria-label="([^"]*)"', svg)
    style = f"<style>svg{{{palette()}}}{_CARD}{ink()}</style>"
    text = re.sub(r'<svg viewBox="0 0 ([\d.]+) ([\d.]+)" width="[\d.]+"', _framed, svg, count=1)
    text = text.replace(">", f">{style}", 1).replace('"', "'")  # escaped text has no quotes left
    source = quote(text, safe=" ='/:;,.()!*+-_~[]@?|{}")
    name = label.group(1) if label else "picture"
    return f'<img alt="{name}" src="data:image/svg+xml,{source}" style="vertical-align:top">'


def _framed(match: re.Match) -> str:
    width, height = (float(size) + 2 * _EDGE for size in match.groups())
    size = f'width="{width:g}" height="{height:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-{_EDGE} -{_EDGE} {width:g} {height:g}" {size}'
