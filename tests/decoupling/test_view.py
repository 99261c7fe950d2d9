"""What decoupling's pictures show, as numbers and lengths."""

import html
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import lab
from lab.core.task import Task
from lab.decoupling import view
from lab.decoupling.view import PAGE, TALL, Fork, explore, filter_grid, flow, numbers, similarity
from tests.decoupling.test_paths import made, planted
from tests.decoupling.test_recipe import QUICK, data, run, small


@pytest.fixture(scope="module")
def outcome():
    return run(**QUICK, r=0.5)


Box = tuple[float, float, float, float]  # x, y, width, height


def boxes(svg: str, kind: str) -> list[Box]:
    """The rectangles of a class."""
    found = re.findall(rf'<path class="{kind}" d="M(\S+) (\S+?)h(\S+?)v(\S+?)h', svg)
    return [tuple(map(float, part)) for part in found]


def targets(svg: str) -> list[tuple[dict, bool, Box]]:
    """What each target sets, whether it is pressed, and its box."""
    groups = re.findall(r'<g data-set="([^"]*)" aria-pressed="(\w+)">(.*?)</g>', svg)
    return [
        (json.loads(html.unescape(values)), pressed == "true", boxes(inside, "lab-target")[0])
        for values, pressed, inside in groups
    ]


def size(svg: str) -> tuple[float, float]:
    _, _, width, height = map(float, re.search(r'viewBox="([^"]*)"', svg)[1].split())
    return width, height


def fork(*state: int, layer: str = "a") -> Fork:
    return Fork(layer, np.array(state))


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_two_pictures_share_own_and_leave_filters():
    seen = made(np.array([[1, 1, 0, 0, 1], [1, 0, 1, 0, 0]]), [0, 1], sizes=(4, 1))
    first, second = numbers(seen, 0, 1)
    assert first.state.tolist() == [0, 1, 2, 3] and first.counts() == [1, 1, 1, 1]
    assert (second.layer, second.state.tolist(), second.counts()) == ("b", [1], [0, 1, 0, 0])
    assert [f.state.tolist() for f in numbers(seen, 1, 0)] == [[0, 2, 1, 3], [2]]


def test_one_picture_has_filters_that_are_on_or_off():
    seen = made(np.array([[1, 1, 0, 0, 1]]), [0], sizes=(4, 1))
    assert [f.state.tolist() for f in numbers(seen, 0, None)] == [[0, 0, 3, 3], [0]]


@pytest.mark.slow
def test_facts_count_what_the_paths_hold(outcome):
    explorer = explore(outcome, images=[0, 1])
    a, b = (outcome.seen.bits[int(outcome.sampled[k])] for k in (0, 1))
    span = outcome.seen.span("7")
    facts = dict(explorer.frame.facts)
    assert facts["filters on"] == f"{a[span].sum()} of {span.stop - span.start} in 7"
    assert facts["shared here"] == f"{(a & b)[span].sum()} of {(a | b)[span].sum()}"
    assert facts["shared by the whole paths"] == f"{(a & b).sum()} of {(a | b).sum()}"
    alone = dict(explorer.set(b="none", filter=1).frame.facts)
    assert list(alone) == ["filters on", "filter"]
    assert alone["filter"] == f"1 is {'on' if a[span][1] else 'off'}"


# -- the flow --------------------------------------------------------------------------------------------------------


def test_bands_fill_a_column_in_the_shares_of_their_states():
    bands = view._bands(fork(0, 0, 1, 3, 3, 3, 3, 2))
    assert [end - start for start, end in bands] == pytest.approx([TALL * k / 8 for k in (2, 1, 1, 4)])
    assert bands[0][0] == 0 and bands[-1][1] == pytest.approx(TALL)
    assert all(a[1] == b[0] for a, b in pairwise(bands))


def columns(svg: str) -> list[float]:
    """The sum of the heights of the bands of each column."""
    parts = [box for kind in ("lab-fill c0", "lab-fill c1", "lab-fill c2", "lab-track") for box in boxes(svg, kind)]
    heights: dict[tuple[float, int], float] = {}
    for x, y, width, height in parts:
        if width == 12:
            place = (x, int((y - 44) // (TALL + 25)))
            heights[place] = heights.get(place, 0) + height
    return list(heights.values())


@pytest.mark.parametrize("layers", [1, 5, 24, 25, 54])
def test_every_layer_is_a_column_of_full_height(layers):
    rng = np.random.default_rng(0)
    forks = [Fork(f"layer{k}", rng.integers(0, 4, size=16 + k)) for k in range(layers)]
    heights = columns(flow(forks, "layer0", {f.layer for f in forks}, two=True))
    assert len(heights) == layers
    assert heights == pytest.approx([TALL] * layers, abs=0.5)


@pytest.mark.parametrize("layers", [1, 24, 54])
def test_a_click_on_a_column_chooses_its_layer(layers):
    forks = [Fork(f"layer{k}", np.array([0, 1, 2, 3])) for k in range(layers)]
    svg = flow(forks, "layer0", {f.layer for f in forks}, two=True)
    found = targets(svg)
    assert [values for values, _, _ in found] == [{"layer": f"layer{k}"} for k in range(layers)]
    assert [pressed for _, pressed, _ in found] == [True] + [False] * (layers - 1)
    width, height = size(svg)
    for _, _, (x, y, w, h) in found:
        assert x + w <= width and 0 <= y and y + h <= height and x >= 0
    assert all(a[0] + a[2] <= b[0] or a[1] + a[3] <= b[1] for (*_, a), (*_, b) in pairwise(found))


def test_no_target_begins_outside_the_picture():
    assert all(box[0] >= 0 for _, _, box in targets(flow([fork(0, 1)], "a", {"a"}, two=True)))


def test_layers_that_were_not_chosen_cannot_be_pressed():
    forks = [fork(0, 1, layer="a"), fork(0, 1, layer="b")]
    assert [values for values, _, _ in targets(flow(forks, "a", {"a"}, two=True))] == [{"layer": "a"}]


def legend(svg: str) -> list[str]:
    return [word for word in re.findall(r">([^<>]+)</text>", svg) if word in (*view.STATES, "on", "off")]


@pytest.mark.parametrize(("two", "words"), [(True, list(view.STATES)), (False, ["on", "off"])])
def test_the_legend_names_the_colours_of_two_pictures_or_of_one(two, words):
    assert legend(flow([fork(0, 3)], "a", {"a"}, two)) == words


def test_names_of_layers_are_escaped():
    assert "<b>" not in flow([fork(0, layer="<b>")], "<b>", {"<b>"}, two=True)


# -- the filters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [0, 127, 128, 700, 999])
def test_a_thousand_filters_are_pages(chosen):
    state = np.arange(1000) % 4
    svg = filter_grid(Fork("a", state), chosen, True, range(1000))
    found = targets(svg)
    first = chosen // PAGE * PAGE
    own, pages = found[: min(PAGE, 1000 - first)], found[min(PAGE, 1000 - first) :]
    assert [values["filter"] for values, _, _ in own] == list(range(first, min(first + PAGE, 1000)))
    assert [values["filter"] for values, pressed, _ in own if pressed] == [chosen]
    assert [values["filter"] for values, _, _ in pages] == list(range(0, 1000, PAGE))
    assert [values["filter"] for values, pressed, _ in pages if pressed] == [first]
    width, height = size(svg)
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for _, _, (x, y, w, h) in found)


def test_few_filters_have_no_pages():
    assert len(targets(filter_grid(fork(0, 1, 2, 3), 2, True, range(4)))) == 4


@pytest.mark.parametrize("two", [True, False])
def test_hints_say_who_uses_a_filter(two):
    hints = re.findall(
        r"<title>(filter[^<]*)</title>", filter_grid(fork(0, 3) if not two else fork(0, 1, 2, 3), 0, two, range(4))
    )
    words = ["on for both", "on for A only", "on for B only", "off for both"] if two else ["on", "off"]
    assert hints == [f"filter {k}: {word}" for k, word in enumerate(words)]


# -- the explorer ----------------------------------------------------------------------------------------------------


def test_every_click_sets_a_value_that_its_control_has(outcome):
    explorer = explore(outcome)
    values = {spec["name"]: spec["values"] for spec in explorer.spec["controls"]}
    for layer in values["layer"]:
        found = targets(explorer.set(layer=layer, filter=0).frame.svg)
        assert {name for set_, _, _ in found for name in set_} == {"layer", "filter"}
        assert all(value in values[name] for set_, _, _ in found for name, value in set_.items())
        assert sum(pressed for set_, pressed, _ in found if "layer" in set_) == 1


def test_every_click_is_possible_where_filters_were_chosen(outcome):
    explorer = explore(outcome, filters=[0, 2])
    assert {set_["filter"] for set_, _, _ in targets(explorer.frame.svg) if "filter" in set_} <= {0, 2}


def test_a_click_shows_another_layer_and_filter(outcome):
    explorer = explore(outcome)
    before = explorer.frame
    assert "in 7" in before.facts["filters on"]
    after = explorer.set(layer="4", filter=3).frame
    assert "in 4" in after.facts["filters on"] and after.facts["filter"].startswith("3 is ")
    assert after.svg != before.svg and "filter 3 on A" in after.svg and "filter 3 on B" in after.svg


def test_a_filter_past_the_end_of_a_layer_is_its_last(outcome):
    sizes = dict(zip(outcome.seen.layers, outcome.seen.sizes, strict=True))
    small_one, large_one = sorted(sizes, key=sizes.get)
    explorer = explore(outcome).set(layer=small_one, filter=sizes[large_one] - 1)
    last = sizes[small_one] - 1
    assert explorer.frame.facts["filter"].startswith(f"{min(last, sizes[large_one] - 1)} is ")


def test_pictures_are_named_with_their_class_and_two_classes_start(outcome):
    explorer = explore(outcome)
    assert explorer.state["a"] == "0: class 0" and explorer.state["b"] == "1: class 1"
    one_class = [k for k in range(40) if outcome.seen.labels[outcome.sampled[k]] == 2][:3]
    assert explore(outcome, images=one_class).state["b"] == "none"


def test_the_choice_is_narrowed(outcome):
    explorer = explore(outcome, images=[3, 5], layers=["4"], filters=[0, 1])
    values = {spec["name"]: list(spec["values"]) for spec in explorer.spec["controls"]}
    assert values == {
        "a": ["3: class 3", "5: class 1"], "b": ["none", "3: class 3", "5: class 1"], "layer": ["4"], "filter": [0, 1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("narrow", "words"),
    [
        ({"images": [40]}, r"there is no picture 40: give numbers in 0\.\.39"),
        ({"images": [-1]}, "there is no picture -1"),
        ({"images": []}, "no values: give at least one"),
        ({"layers": ["8"]}, "no gated layer '8': the nearest are"),
        ({"filters": [-1]}, "there is no filter -1"),
    ],
)  # fmt: skip
def test_an_unknown_choice_is_one_line(outcome, narrow, words):
    with pytest.raises(ValueError, match=words) as caught:
        explore(outcome, **narrow)
    assert "\n" not in str(caught.value)


def test_a_page_holds_the_states_that_were_chosen(outcome, tmp_path):
    page = explore(outcome, images=[0, 1], layers=["7"], filters=[0, 1]).save(tmp_path / "page.html")
    assert 10_000 < page.stat().st_size < 400_000
    with pytest.raises(ValueError, match=r"the controls span .* states, a page holds"):
        explore(outcome).save(tmp_path / "whole.html")


def test_the_maps_shown_are_those_before_the_gate(outcome):
    responses = view._Responses(outcome)
    site = outcome.decoupled.sites[0]
    kept = []
    hook = outcome.model.get_submodule(site.gate).register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    with torch.no_grad():
        outcome.model(outcome.sample[2:3])
    hook.remove()
    assert np.allclose(responses._map(2, site.layer), kept[0][0].numpy())
    assert np.allclose(responses.means[0][2], kept[0][0].mean((1, 2)), atol=1e-5)


def test_shares_of_classes_are_counts_of_pictures(outcome):
    shown = view._Responses(outcome).classes("7", 2)
    bits, labels = outcome.seen.layer("7")[:, 2], outcome.seen.labels
    assert re.findall(r">(\d+) / (\d+)<", shown) == [
        (str(bits[labels == k].sum()), str((labels == k).sum())) for k in range(4)
    ]


@pytest.mark.slow
def test_an_outcome_without_labels_is_seen():
    x, _ = data()
    found = run(small(batches=list(x.split(16))))
    assert explore(found).state["a"] == "0: no label"


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Conv1d, (2, 16)), (nn.Conv3d, (1, 5, 5, 5))], ids=["sounds", "volumes"]
)  # fmt: skip
def test_a_network_that_reads_no_pictures_is_seen(layer, shape):
    pool = nn.AdaptiveAvgPool1d if layer is nn.Conv1d else nn.AdaptiveAvgPool3d
    net = nn.Sequential(
        layer(shape[0], 6, 3), nn.ReLU(), layer(6, 5, 3), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(5, 3)
    )
    batches = [(torch.randn(12, *shape), torch.arange(12) % 3)]
    found = run(Task(model=net, batches=batches, score=lab.tasks.accuracy(batches)), steps=2)
    assert lab.view(found).frame.svg


@pytest.mark.slow
def test_a_unit_of_tokens_shows_the_patches_that_it_answers_to():
    x = torch.zeros(8, 1, 8, 8)
    for k in range(8):  # each picture has one bright patch, in a place of its own
        x[k, 0, 2 * (k // 4) : 2 * (k // 4) + 2, 2 * (k % 4) : 2 * (k % 4) + 2] = 1 + k / 8
    batches = [(x, torch.arange(8) % 2)]
    net = lab.nets.vit(size=8, patch=2, width=8, depth=1, heads=2, ratio=2, classes=2)
    found = run(Task(model=net, batches=batches, score=lab.tasks.accuracy(batches)), steps=1)
    responses = view._Responses(found)
    layer = found.seen.layers[0]
    assert responses._map(0, layer).shape == (found.seen.sizes[0], 4, 4)
    kept = []
    gate = found.model.get_submodule(found.decoupled.sites[0].gate)
    hook = gate.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    with torch.no_grad():
        found.model(found.sample)
    hook.remove()
    unit = kept[0][..., 3]  # (n, 1 + 16)
    assert np.allclose(responses._map(5, layer)[3].ravel(), unit[5, 1:].numpy(), atol=1e-6)
    drawn = responses.strongest(layer, 3)
    picture = int(unit[:, 1:].amax(1).argmax())
    row, column = divmod(int(unit[picture, 1:].argmax()), 4)
    frame = boxes(drawn, "lab-frame")[0]
    assert frame == (column * 12, view.svg.HEAD + row * 12, 12, 12)
    assert "strongest patches of 8 pictures" in drawn
    assert explore(found).set(layer=layer, filter=3).frame.svg


# -- likeness --------------------------------------------------------------------------------------------------------


def test_likeness_shows_the_cosines_of_a_layer(outcome):
    explorer = similarity(outcome, planted())
    assert explorer.state == {"layer": "c"} and dict(explorer.frame.facts) == {"conditional filters": "0 of 17"}
    facts = explorer.set(layer="b").frame.facts
    assert facts["conditional filters"] == "6 of 6" and re.fullmatch(r"\d and \d, cosine -0\.\d\d", facts["most alike"])
    assert float(facts["mean of unlike classes"]) == pytest.approx(-1 / 3, abs=0.05)  # four classes, as far as can be


def test_likeness_of_one_class_is_seen(outcome):
    one = planted(classes=1)
    assert "nan" not in str(similarity(outcome, one).set(layer="a").frame.facts)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_table_holds_all_classes_and_its_names_fit(classes):
    svg = view.table(np.eye(classes), [str(k) for k in range(classes)], "cosine")
    width, height = size(svg)
    assert max(float(x) for x in re.findall(r'<text[^>]* x="([^"]*)"', svg)) <= width
    assert max(float(y) for y in re.findall(r'<text[^>]* y="([^"]*)"', svg)) <= height
