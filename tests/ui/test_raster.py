"""Arrays as pictures: the PNG holds what it was given, at the places where the targets are."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from lab.ui import raster
from lab.ui.raster import Scale


def pixels(uri):
    """The colours of a data URI, (H, W, 4)."""
    data = base64.b64decode(uri.split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_a_scale_starts_at_zero_or_stands_around_it():
    assert Scale.of(np.array([0.5, 3])) == Scale(0, 3)
    assert Scale.of(np.array([-1.0, 3, np.nan])) == Scale(-3, 3)
    assert Scale.of(np.zeros(3)) == Scale(0, 1) == Scale.of(np.array([]))
    around = Scale(-2, 2)
    middle = around.table()[around.shades(np.zeros(1))[0]]
    assert min(middle) > 240  # zero is white
    assert Scale(0, 2).table()[Scale(0, 2).shades(np.zeros(1))[0]] == (68, 1, 84)


def test_every_map_lies_where_its_target_is():
    maps = np.arange(5, dtype=float).reshape(5, 1, 1) * np.ones((5, 4, 6))
    width, height = raster.cell_size(4, 6, 12)
    assert (width, height) == (12, 8)
    sheet = pixels(raster.mosaic(maps, 3, width, height, Scale(0, 4)))
    assert sheet.shape == (2 * 8 + 2, 3 * 12 + 4, 4)
    table = Scale(0, 4).table()
    for k, (x, y, w, h) in enumerate(raster.cells(5, 3, width, height)):
        cell = sheet[int(y) : int(y + h), int(x) : int(x + w)]
        assert (cell == (*table[Scale(0, 4).shades(np.array([float(k)]))[0]], 255)).all()
    assert sheet[0, 12, 3] == 0 and sheet[-1, -1, 3] == 0  # gaps, and the place of a sixth map, are clear


def test_without_a_scale_each_map_has_its_own():
    maps = np.stack([np.full((2, 2), 1.0), np.full((2, 2), 100.0), np.zeros((2, 2))])
    sheet = pixels(raster.mosaic(maps, 3, 4, 4, None))
    assert (sheet[0, 0] == sheet[0, 6]).all() and not (sheet[0, 0] == sheet[0, 12]).all()


def test_a_map_too_large_for_its_cell_keeps_its_peak():
    big = np.zeros((1, 100, 90))
    big[0, 57, 33] = -5
    small = raster.fitted(big, 20, 18)
    assert small.shape == (1, 20, 18) and small.min() == -5 and (small != 0).sum() == 1
    odd = raster.fitted(np.arange(12.0).reshape(1, 3, 4), 7, 5)
    assert odd.shape == (1, 7, 5) and odd[0, 0, 0] == 0 and odd[0, -1, -1] == 11


def test_what_is_not_finite_is_clear():
    maps = np.array([[[1.0, np.nan]]])
    sheet = pixels(raster.mosaic(maps, 1, 2, 1, Scale(0, 1)))
    assert sheet[0, 0, 3] == 255 and sheet[0, 1, 3] == 0
    assert raster.grid(np.full((2, 3, 3), np.nan), "gone", "a", scale=Scale(-1, 1)).startswith("<svg")


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_pictures_of_any_number_of_channels(channels):
    x = np.linspace(-1, 1, channels * 20).reshape(channels, 4, 5)
    shown = raster.as_picture(x, -1, 1)
    assert shown.shape == (4, 5, 3) and shown.dtype == np.uint8
    if channels == 3:
        assert shown.min() == 0 and shown.max() == 255
    assert pixels(raster.uri(np.zeros((300, 200, 3), np.uint8))).shape == (300, 200, 4)
    assert raster.shrunk(np.zeros((300, 200, 3), np.uint8), 100).shape == (100, 66, 3)


def test_a_grid_has_its_title_scale_and_targets():
    maps = np.arange(40.0).reshape(10, 2, 2)
    picture = raster.grid(
        maps, "layer", "unit", columns=4, scale=Scale.of(maps), press=lambda k: {"filter": k}, pressed=3
    )
    assert picture.count("<image ") == 2 and picture.count("data-set=") == 10
    assert re.findall(">([^<>]+)</text>", picture) == ["layer", "0", "39", "unit"]
    assert 'role="group"' in picture and picture.count('aria-pressed="true"') == 1


def test_a_mask_as_a_path_has_its_area_and_its_edges():
    mask = np.array([[0, 1, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]], bool)
    assert raster.area(mask) == "M1 0h2v1h-2zM4 0h1v1h-1zM1 1h1v1h-1zM4 2h1v1h-1z"
    lengths = re.findall("[hv]1", raster.outline(mask))
    assert len(lengths) == 8 + 4 + 4  # an L of three pixels and two single ones
    assert raster.outline(np.ones((2, 3), bool)).count("h1") == 6 and raster.area(np.zeros((2, 2), bool)) == ""
