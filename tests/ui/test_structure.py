"""The pictures of every explorer that the site shows, as they are kept: no text collides, none is cut off."""

import gzip
import json
from pathlib import Path

import pytest

from lab.ui import svg

from .structure import faults

KEPT = sorted((Path(__file__).parents[2] / "docs" / "explorers").glob("*/*.json.gz"))
STATES = 6  # of each explorer, spread over all that are kept


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name.split('.')[0]}")
def test_no_text_of_a_kept_explorer_collides(path):
    frames = list(json.loads(gzip.decompress(path.read_bytes()))["frames"].values())
    seen = frames[:: max(1, len(frames) // STATES)]
    assert [fault for frame in seen for fault in faults(frame["svg"])] == []
    assert all(frame["facts"] and "<svg" in frame["svg"] for frame in seen)


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ([svg.text(0, 20, "accuracy"), svg.text(30, 22, "latency")], "'accuracy' and 'latency' collide"),
        ([svg.text(80, 20, "accuracy")], "'accuracy' is cut off"),
        ([svg.text(5, 20, "accuracy", "end num")], "'accuracy' is cut off"),
        ([svg.text(5, 45, "g")], "'g' is cut off"),
        ([f'<g transform="translate(90 0)">{svg.text(0, 20, "rate", hint="pruning rate")}</g>'], "'rate' is cut off"),
    ],
)
def test_a_planted_fault_is_seen(parts, fault):
    assert faults(svg.document(100, 40, "", "a plot", parts)) == [f"a plot: {fault}"]


def test_texts_beside_and_below_each_other_are_none():
    apart = [svg.text(0, 20, "rate"), svg.text(60, 20, "keeps"), svg.text(0, 37, "rate")]
    assert faults(svg.document(120, 40, "", "a plot", apart)) == []
    assert faults("<svg viewBox='0 0 9 9'></svg>") == ["a picture says nothing aloud"]
