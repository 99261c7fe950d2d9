"""What PAMS's pictures show, as numbers, and what a click does."""

import json
import re
from html import unescape

import pytest
import torch

import lab
from lab.pams import view
from tests.pams.small import QUICK, task


@pytest.fixture(scope="module")
def small_task():
    return task()


@pytest.fixture(scope="module")
def outcomes(small_task):
    return [lab.PAMS(**QUICK, weight_bits=b, activation_bits=b).run(small_task, progress=False) for b in (2, 8, 4)]


def test_a_tensor_at_a_snapshot(outcomes):
    outcome = outcomes[2]
    shown = view.numbers(outcome, "blocks_0_relu", 11)
    assert shown["alpha"] == outcome.alphas()["blocks_0_relu"] and shown["signed"] is False
    assert shown["step"] == shown["alpha"] / 15
    assert sum(share for _, share in shown["values"]) == pytest.approx(1)
    assert all(share == 0 for x, share in shown["values"] if x < -shown["reach"] / 24)  # behind a ReLU
    outside = sum(share for x, share in shown["values"] if abs(x) > shown["alpha"])
    assert shown["clipped"] == pytest.approx(outside)


def test_a_few_clipped_values_are_not_called_none():
    assert [view.percent(share) for share in (0.0, 1e-6, 0.0004, 0.0005, 0.1234)] == [
        "0.0 %",
        "under 0.05 %",
        "under 0.05 %",
        "0.1 %",
        "12.3 %",
    ]


def test_ranges_over_the_run(outcomes):
    over = view.ranges(outcomes[0])
    assert list(over) == list(outcomes[0].alphas())
    for name, points in over.items():
        assert [step for step, _ in points] == list(range(1, 13)) and points[-1][1] == outcomes[0].alphas()[name]


def test_the_explorer_replays_the_run(outcomes, tmp_path):
    explorer = lab.view(outcomes[2])
    last = dict(explorer.frame.facts)
    first = dict(explorer.set(step=1).frame.facts)
    assert last["alpha"] != first["alpha"]
    assert dict(explorer.set(tensor="blocks_0_relu").frame.facts)["grid"] == "from 0"
    assert len(explorer.frame.svg) < 30_000
    assert explorer.save(tmp_path / "page.html").stat().st_size < 600_000


def test_a_slider_of_bits_shows_each_network(outcomes, small_task):
    explorer = view.bits(outcomes, small_task, torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)))
    assert explorer.state == {"bits": 8, "part": "whole"}
    seen = {bits: dict(explorer.set(bits=bits).frame.facts) for bits in (8, 4, 2)}
    assert [seen[b]["bytes"] for b in (8, 4, 2)] == sorted((seen[b]["bytes"] for b in seen), reverse=True)
    pictures = [explorer.set(bits=bits).frame.svg for bits in (8, 2)]
    assert pictures[0] != pictures[1]


def test_a_click_on_a_quarter_enlarges_it_and_another_goes_back(outcomes, small_task):
    explorer = view.bits(outcomes, small_task, torch.rand(1, 3, 12, 12))
    presses = [json.loads(unescape(text)) for text in re.findall(r'data-set="([^"]*)"', explorer.frame.svg)]
    assert presses == [{"part": part} for part in view.PARTS if part != "whole"]
    explorer.set(**presses[0])
    assert [json.loads(unescape(t)) for t in re.findall(r'data-set="([^"]*)"', explorer.frame.svg)] == [
        {"part": "whole"}
    ]


def test_a_part_is_cut_where_it_lies():
    x = torch.arange(16.0).view(1, 4, 4)
    assert view._cut(x, "upper right").tolist() == [[[2.0, 3.0], [6.0, 7.0]]]
    assert torch.equal(view._cut(x, "whole"), x)


def test_pictures_are_exact(outcomes, small_task):
    """The pixels are what is compared: no palette and no JPEG."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    low = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    explorer = view.bits(outcomes, small_task, low)
    data = re.search(r'href="data:image/png;base64,([^"]*)"', explorer.frame.svg)[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    with torch.no_grad():
        wanted = (small_task.model(low)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).to(torch.uint8).numpy()
    assert np.array_equal(shown, wanted)


def test_two_networks_of_the_same_bits_are_refused(outcomes, small_task):
    with pytest.raises(ValueError, match=r"outcomes have \[2, 2\] bits: give one or more, each of other bits"):
        view.bits([outcomes[0], outcomes[0]], small_task, torch.rand(1, 3, 8, 8))


def test_the_face_is_of_a_held_out_photograph():
    assert view.face().shape == (1, 3, 48, 48) and view.face().std() > 0.1


def test_measured_times_stand_among_the_facts(outcomes, small_task):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    explorer = view.bits(outcomes[1:2], small_task, torch.rand(1, 3, 8, 8), measure=True)
    assert float(dict(explorer.frame.facts)["ms"]) > 0


def test_speeds_are_the_benchmark_that_was_kept():
    full = view.speeds().query("form == 'full, unsigned'")
    assert set(full.fused_share) == {1.0}
