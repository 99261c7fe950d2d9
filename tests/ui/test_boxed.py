"""Boxes on a picture: each kind in its colour, and named below."""

import numpy as np

from lab.ui import boxed


def test_each_kind_has_its_colour_and_its_name():
    boxes = {"found": [[10, 10, 30, 30]], "missed": [[50, 50, 70, 70], [5, 5, 9, 9]], "false alarm": []}
    drawn = boxed.boxed(np.full((100, 50, 3), 9, np.uint8), boxes, "a picture", width=100)
    for (name, some), kind in zip(boxes.items(), boxed.KINDS, strict=True):
        assert drawn.count(f'class="{kind}"') == len(some) + 1 and f">{name}<" in drawn  # one more in the key
    assert "h40v40h-40z" in drawn  # 20 px at twice the size
