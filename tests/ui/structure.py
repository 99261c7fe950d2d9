"""What is wrong with a picture as it stands on the page: texts that collide, or that its frame cuts off."""

import re
from itertools import combinations
from xml.etree import ElementTree

from lab.ui import svg

Box = tuple[float, float, float, float]  # left, top, right, bottom in px
SLACK = 3  # px that boxes of text may share: letters do not fill them


def faults(pictures: str) -> list[str]:
    """One line a fault of the `<svg>`s in a text."""
    found = []
    for picture in re.findall(r"<svg\b.*?</svg>", pictures, re.DOTALL):
        root = ElementTree.fromstring(picture)
        name = root.get("aria-label") or ""
        width, height = map(float, root.get("viewBox", "0 0 0 0").split()[2:])
        texts = list(boxes(root))
        found += [] if name else ["a picture says nothing aloud"]
        found += [f"{name}: {text!r} is cut off" for text, box in texts if not _within(box, width, height)]
        pairs = combinations(texts, 2)
        found += [f"{name}: {a!r} and {b!r} collide" for (a, one), (b, other) in pairs if _overlap(one, other)]
    return found


def boxes(node: ElementTree.Element, x: float = 0.0, y: float = 0.0) -> list[tuple[str, Box]]:
    """Every text below a node with the room that it takes; groups may be moved, those that are scaled hold no text."""
    moved = re.match(r"translate\(([\d.-]+)[ ,]+([\d.-]+)\)", node.get("transform", ""))
    if moved:
        x, y = x + float(moved[1]), y + float(moved[2])
    if node.tag == "text":
        return [_box(node, x, y)]
    return [one for child in node for one in boxes(child, x, y)]


def _box(node: ElementTree.Element, x: float, y: float) -> tuple[str, Box]:
    hint = node.find("title")
    text = (node.text or "") if hint is None else (hint.tail or "")
    kinds = (node.get("class") or "").split()
    size = 11 / 12 if "num" in kinds else 1.0
    room = 0.87 * size * (svg.title_width(text) if "strong" in kinds else svg.text_width(text))  # its estimate is ample
    left = x + float(node.get("x", 0)) - (room / 2 if "mid" in kinds else room if "end" in kinds else 0)
    base = y + float(node.get("y", 0))
    return text, (left, base - 11 * size, left + room, base + 3 * size)


def _within(box: Box, width: float, height: float) -> bool:
    return box[0] >= -SLACK and box[1] >= -SLACK and box[2] <= width + SLACK and box[3] <= height + SLACK


def _overlap(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > SLACK and min(a[3], b[3]) - max(a[1], b[1]) > SLACK
