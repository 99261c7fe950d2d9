"""The looks without a browser: what an explorer says, sends, saves and refuses; the pictures; view and compare."""

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest
from comm.base_comm import BaseComm

from lab.core.report import Report, Row
from lab.ui import Comparison, Control, Explorer, Frame, compare, figure, raster, svg, view
from lab.ui.comparison import front
from lab.ui.explorer import styles

LAYERS = [(f"conv{i}", 16 * 2 ** (i // 5)) for i in range(15)]
RATES = [i / 20 for i in range(20)]


def draw(rate, layer):
    kept = [(name, round(total * (1 - rate)), total) for name, total in LAYERS]
    curve = svg.lines([svg.Series("accuracy", [(0, 97), (0.5, 95)], [(r, 97 - r) for r in RATES])], at=rate, x="rate")
    return Frame(svg.bars(kept) + curve, {"parameters": int(12_345 * (1 - rate)), "layer": layer})


def make(**more):
    return Explorer(draw, {"rate": RATES, "layer": ["conv1", "conv2"]}, title="Prune <it>", **more)


@pytest.fixture
def sent(monkeypatch):
    """Every message an explorer sends to its browser."""
    messages = []

    class Recorder(BaseComm):
        def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
            messages.append(data)

    monkeypatch.setattr("comm.create_comm", Recorder)
    return messages


def moved_in_browser(explorer, **values):
    message = {"content": {"data": {"method": "update", "state": values}}, "buffers": []}
    explorer._handle_msg(message)


def test_repr_is_the_state():
    explorer = make()
    assert repr(explorer) == "Explorer(rate=0.0, layer='conv1' | parameters 12,345, layer conv1)"
    explorer.rate = 0.5
    assert repr(explorer) == "Explorer(rate=0.5, layer='conv1' | parameters 6,172, layer conv1)"
    assert explorer.set(rate=0.3, layer="conv2") is explorer
    assert explorer.state == {"rate": 0.3, "layer": "conv2"}
    assert explorer.frame == draw(0.3, "conv2")


def test_setting_two_controls_draws_once():
    drawn = []
    explorer = Explorer(lambda a, b: drawn.append((a, b)) or Frame(""), {"a": [1, 2], "b": [1, 2]})
    explorer.set(a=2, b=2)
    explorer.set(a=1, b=1)
    assert drawn == [(1, 1), (2, 2)]  # the second (1, 1) was at hand


def test_a_float_that_is_nearly_a_step_is_that_step():
    assert make().set(rate=0.1 + 0.05 + 0.15).rate == 0.3


def test_traits_can_be_observed():
    explorer, seen = make(), []
    explorer.observe(lambda change: seen.append(change["new"]), "rate")
    explorer.rate = 0.5
    assert seen == [0.5]


def test_control_record_gives_label_unit_and_start():
    bits = Control(range(2, 9), label="word", unit="bit", start=4)
    explorer = Explorer(lambda bits: Frame("", {"levels": 2**bits}), {"bits": bits})
    assert repr(explorer) == "Explorer(bits=4 | levels 16)"
    (control,) = explorer.spec["controls"]
    assert (control["label"], control["texts"][0], control["slider"]) == ("word", "2 bit", True)


def test_a_free_control_takes_any_text_and_a_page_lists_what_was_typed(tmp_path):
    explorer = Explorer(lambda text: Frame("<svg/>", {"text": text}), {"text": Control(["a", "b"], free=True)})
    assert explorer.set(text=" c ").text == "c" and explorer.spec["controls"][0]["free"]
    with pytest.raises(ValueError, match="text='' is not on this control: choose one of 'a', 'b'"):
        explorer.text = ""
    page = explorer.save(tmp_path / "page.html").read_text()
    states = json.loads(gzip.decompress(base64.b64decode(re.search('id="states">([^<]*)<', page).group(1))))
    assert states["state"]["spec"]["controls"][0]["values"] == ["a", "b", "c"] and set(states["frames"]) == set("012")
    assert not states["state"]["spec"]["controls"][0]["free"]
    with pytest.raises(ValueError, match=r"a free control has the values \(1, 2\): give texts only"):
        Control([1, 2], free=True)


def test_a_step_in_the_browser_is_one_small_and_quick_picture(sent):
    explorer = make()
    opening = len(json.dumps(sent[0]))
    sent.clear()
    start = time.perf_counter()
    moved_in_browser(explorer, rate=0.5)
    seconds = time.perf_counter() - start
    assert explorer.rate == 0.5
    states = [message["state"] for message in sent if message["method"] == "update"]
    assert [list(state) for state in states] == [["frame"]]
    assert states[0]["frame"]["facts"][0] == ("parameters", "6,172")
    assert 500 < len(json.dumps(sent)) <= 10_000
    assert opening < 40_000
    assert seconds < 0.15


def test_text_and_html_beside_the_widget():
    explorer = make().set(rate=0.5)
    data, _ = explorer._repr_mimebundle_()
    assert data["text/plain"] == repr(explorer)
    assert "application/vnd.jupyter.widget-view+json" in data
    page = data["text/html"]
    assert "\n" not in page and "<script" not in page
    assert "Prune &lt;it&gt;" in page and "rate <b>0.5</b>" in page and page.count("<img ") == 2
    assert len(page) < 20_000
    image = unquote(re.search('src="data:image/svg.xml,([^"]*)"', page).group(1))
    assert texts(image)[:2] == ["conv0", "8 / 16"] and "--lab-0:#0072B2" in image
    assert re.sub("<!--lab picture-->.*<!--end-->", "", page) == ""  # one pattern blanks it where numbers are learned


def test_actions():
    said = []
    actions = {
        "Say": lambda explorer: f"done at {explorer.rate}",
        "Show": lambda explorer: Frame("<svg/>", {"measured": 7}),
        "Note": lambda explorer: said.append(explorer.busy),
    }
    explorer = make(actions=actions)
    assert repr(explorer.press("Say")).endswith("| done at 0.0)")
    assert repr(explorer.press("Show")).endswith("| measured 7)")
    explorer._handle_custom_msg({"press": "Note"}, [])
    assert said == ["Note"] and explorer.busy == ""
    assert explorer.frame == draw(0.0, "conv1")


def test_an_action_makes_the_pictures_new():
    known = {"accuracy": 1}
    actions = {"go": lambda _: known.update(accuracy=2)}
    explorer = Explorer(lambda a: Frame("", dict(known)), {"a": [1, 2]}, actions=actions)
    assert explorer.set(a=2).press("go").frame.facts == {"accuracy": 2}
    assert explorer.set(a=1).frame.facts == {"accuracy": 2}


def test_an_error_is_raised_and_shown_in_place_of_the_picture():
    explorer = Explorer(lambda a: Frame("<svg/>", {"half": 6 // (a - 2)}), {"a": [1, 2, 3]})
    with pytest.raises(ZeroDivisionError):
        explorer.a = 2
    assert explorer.frame.svg == "" and explorer.message.startswith("ZeroDivisionError: ")
    assert repr(explorer).startswith("Explorer(a=2 | ZeroDivisionError: ")
    explorer.a = 3
    assert repr(explorer) == "Explorer(a=3 | half 6)"


def test_an_error_in_an_action_keeps_the_picture():
    explorer = make(actions={"fail": lambda _: [].pop()})
    with pytest.raises(IndexError):
        explorer.press("fail")
    assert explorer.message == "IndexError: pop from empty list" and explorer.busy == ""
    assert explorer.frame == draw(0.0, "conv1")


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda e: e.set(rate=0.57), "rate=0.57 is not on this control: the nearest steps are 0.55 and 0.6"),
        (lambda e: setattr(e, "layer", "fc"), "layer='fc' is not on this control: choose one of 'conv1', 'conv2'"),
        (lambda e: e.set(speed=1), "no control 'speed': this explorer has rate, layer"),
        (lambda e: e.press("go"), "no button 'go': this explorer has none"),
        (lambda e: Explorer(draw, {"frame": [1]}), "a control cannot be named 'frame'"),
        (lambda e: Explorer(draw, {"rate": []}), "a control has no values"),
        (lambda e: Explorer(draw, {"rate": [1, 1.0]}), "the same value twice"),
        (lambda e: Explorer(draw, {"rate": [float("nan")]}), "has the value nan"),
        (lambda e: Explorer(draw, {"rate": [None]}), "has the value None"),
        (lambda e: Control([1, 2], start=3), "start=3 is not on this control"),
    ],
)
def test_bad_input_is_one_line(act, words):
    with pytest.raises(ValueError) as error:
        act(make())
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_long_control_is_as_quick_at_its_end():
    control = Control(range(2048))
    start = time.process_time()
    assert control.pick("filter", 2047) == 2047
    assert time.process_time() - start < 0.05


def test_states_may_have_some_values_of_a_control_only():
    explorer = Explorer(lambda a, b: Frame(svg.heat([]), {"a": a}), {"a": range(10), "b": ["x", "y"]}).set(a=3)
    states = json.loads(gzip.decompress(explorer.states(a=[0, 9])))
    assert [control["values"] for control in states["state"]["spec"]["controls"]] == [[0, 3, 9], ["x", "y"]]
    assert len(states["frames"]) == 6 and states["state"]["a"] == 3


def test_bad_input_moves_nothing():
    explorer = make()
    with pytest.raises(ValueError):
        explorer.set(layer="conv2", rate=0.57)
    assert explorer.state == {"rate": 0.0, "layer": "conv1"}


def test_draw_must_return_a_frame():
    with pytest.raises(TypeError, match=r"draw gave a str: return Frame\(svg, facts\)"):
        Explorer(lambda a: "text", {"a": [1]})


def test_saved_page_holds_every_state(tmp_path):
    explorer = make(actions={"go": lambda _: None}).set(rate=0.5)
    page = explorer.save(tmp_path / "page.html")
    text = page.read_text()
    assert page.stat().st_size < 100_000
    assert set(re.findall(r"https?://[^' ]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    packed = re.search('id="states">(.*?)</script>', text).group(1)
    saved = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert len(saved["frames"]) == 40 and saved["state"]["rate"] == 0.5
    assert saved["frames"]["10,1"]["svg"] == draw(0.5, "conv2").svg
    assert saved["state"]["spec"]["actions"] == []
    assert explorer.save(tmp_path / "again.html").read_bytes() == page.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.html", "page.html"]


def test_a_page_that_would_be_too_large_is_refused(tmp_path, monkeypatch):
    many = Explorer(lambda a, b: Frame(""), {"a": range(100), "b": range(41)})
    with pytest.raises(ValueError, match="the controls span 4,100 states, a page holds 4,000: give them fewer values"):
        many.save(tmp_path / "page.html")
    monkeypatch.setattr("lab.ui.explorer.BYTES", 2_000)
    with pytest.raises(ValueError, match=r"the page would have [\d,]+ bytes, over 2,000"):
        make().save(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


DOM = """
import explorer from "./explorer.mjs";
import { readFileSync } from "node:fs";

class Node {
  constructor(tag) {
    Object.assign(this, { tag, children: [], attributes: {}, dataset: {}, heard: {}, textContent: "" });
  }
  append(...nodes) { this.children.push(...nodes); }
  replaceChildren(...nodes) { this.children = nodes; }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(name, hear) { this.heard[name] = hear; }
  get classList() { return { add: () => {} }; }
  closest() { return this.dataset.set ? this : null; }
  focus() { document.activeElement = this; }
  getAttribute(name) { return this.attributes[name]; }
  querySelectorAll() {
    if (!this.targets || this.read !== this.innerHTML) {
      this.read = this.innerHTML;
      const found = (this.read ?? "").matchAll(/data-set="([^"]*)" aria-pressed="([a-z]*)"/g);
      this.targets = [...found].map(([_, set, pressed]) => {
        const node = new Node("g");
        const plain = { quot: '"', amp: "&", lt: "<", gt: ">" };
        node.dataset.set = set.replace(/&(\\w+);/g, (_, name) => plain[name]);
        node.attributes["aria-pressed"] = pressed;
        return node;
      });
    }
    return this.targets;
  }
  all(test) { return [...(test(this) ? [this] : []), ...this.children.flatMap((c) => c.all?.(test) ?? [])]; }
}
globalThis.document = { createElement: (tag) => new Node(tag), activeElement: null };
const model = explorer.replay(await explorer.unpack(readFileSync("states.txt", "utf8")));
const el = new Node("main");
const stop = explorer.render({ model, el });
"""
DRIVER = """
const [range] = el.all((n) => n.tag === "input");
const [select] = el.all((n) => n.tag === "select");
const [picture] = el.all((n) => n.className === "picture");
const facts = () => el.all((n) => n.tag === "b").map((n) => n.textContent);
const seen = [[...facts(), range.attributes["aria-valuetext"], el.all((n) => n.tag === "option").length]];
range.value = "12"; range.heard.input();
select.value = "1"; select.heard.change();
seen.push([...facts(), range.attributes["aria-valuetext"], picture.innerHTML.length]);
stop();
range.value = "0"; range.heard.input();
seen.push(facts());
const later = new Node("main");
const ends = {};
explorer.render({ model: { ...model, on: (name, update) => (ends[name] = update) }, el: later });
ends.comm_live_update();
const [knob] = later.all((n) => n.tag === "input");
knob.value = "5"; knob.heard.input();
seen.push([model.get("rate"), later.all((n) => n.className === "message")[0].textContent]);
console.log(JSON.stringify(seen));
"""


CLICKS = """
const [picture] = el.all((n) => n.className === "picture");
const seen = [];
const told = ({ attributes: a }) => `${a.role} ${a.tabindex} ${a["aria-pressed"]}`;
const focused = () => document.activeElement?.dataset.set ?? "";
const look = () =>
  seen.push([model.get("layer"), model.get("filter"), focused(), picture.querySelectorAll().map(told)]);
const key = (name, target) => {
  let stopped = false;
  picture.heard.keydown({ key: name, target, preventDefault: () => (stopped = true) });
  return stopped;
};
look();
picture.querySelectorAll()[2].focus();
picture.heard.click({ target: picture.querySelectorAll()[2] });
look();
seen.push(key(" ", picture.querySelectorAll()[0]), key("d", picture.querySelectorAll()[0]));
look();
picture.heard.click({ target: picture });
picture.heard.click({ target: picture.querySelectorAll()[3] });
look();
seen.push(el.all((n) => n.tag === "output").map((n) => n.textContent));
const grid = [0, 1, 2, 3, 4, 5].map((i) => ({ x: 20 * (i % 3), y: 20 * Math.floor(i / 3) }));
seen.push([[1, 0], [-1, 0], [0, 1], [0, -1]].map((arrow) => explorer.nearest(grid, 1, arrow)));
console.log(JSON.stringify(seen));
"""


def run_in_node(explorer, folder, script):
    """What a script printed that drives a saved explorer in node, on a document of a few lines."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    text = explorer.save(folder / "page.html").read_text()
    (folder / "states.txt").write_text(re.search('id="states">(.*?)</script>', text).group(1))
    (folder / "explorer.mjs").write_text(Explorer._esm)
    (folder / "driver.mjs").write_text(DOM + script)
    ran = subprocess.run(["node", "driver.mjs"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_the_module_draws_a_saved_page_in_node(tmp_path):
    start, moved, stopped, kept = run_in_node(make(), tmp_path, DRIVER)
    assert start == ["12,345", "conv1", "0", 2]
    assert moved == ["4,938", "conv2", "0.6", len(draw(0.6, "conv2").svg)]
    assert stopped == moved[:2]  # a closed view follows no more
    assert kept == [0, "The kernel that drew this has ended: run the cell again."]  # and such a one sets nothing


LOOKS = """
const picture = () => el.all((n) => n.className === "picture")[0].innerHTML;
const [range] = el.all((n) => n.tag === "input");
const seen = [picture()];
range.value = "2"; range.heard.input();
seen.push(picture());
console.log(JSON.stringify(seen));
"""


def test_a_picture_of_many_states_is_kept_once(tmp_path):
    twice, alone = (raster.uri(np.full((70, 70, 3), shade, np.uint8)) for shade in (90, 200))
    shown = {k: f'<svg><image href="{alone if k == 1 else twice}"/><text>{k}</text></svg>' for k in range(3)}
    explorer = Explorer(lambda k: Frame(shown[k], {"k": k}), {"k": range(3)})
    kept = gzip.decompress(explorer.states()).decode()
    assert kept.count(twice) == kept.count(alone) == 1 and json.loads(kept)["pictures"] == [twice]
    assert run_in_node(explorer, tmp_path, LOOKS) == [shown[0], shown[2]]


def filters(layer, filter):
    """Three filters to click, and a target whose second value is on no control."""
    cells = [svg.target((20 * k, 0, 18, 18), f"filter {k}", k == filter, filter=k) for k in range(3)]
    cells.append(svg.target((60, 0, 18, 18), 'to "b" & <c>', layer='b "&" <c>', filter=9))
    return Frame(svg.document(80, 20, "", "filters", cells))


def clickable():
    return Explorer(filters, {"layer": ["a", 'b "&" <c>'], "filter": [0, 1, 2]})


def test_parts_of_a_picture_can_be_clicked(tmp_path):
    start, clicked, space, other, keyed, both, shown, arrows = run_in_node(clickable(), tmp_path, CLICKS)
    off, reached = "button -1 false", "button 0 true"
    assert start == ["a", 0, "", [reached, off, off, off]]
    assert clicked == ["a", 2, '{"filter": 2}', [off, off, reached, off]]  # the focus outlives the picture
    assert (space, other) == (True, False)  # other keys stay the page's
    assert keyed[1] == 0
    assert both[:2] == ['b "&" <c>', 0]  # 9 is not on the control
    assert shown == ["0"]  # the slider follows
    assert arrows == [2, 0, 4, 1]


def test_a_clickable_picture_says_what_it_is():
    picture = clickable().frame.svg
    root = ElementTree.fromstring(picture)
    assert root.get("role") == "group"  # an img would hide its buttons from screen readers
    groups = root.findall("g")
    assert [json.loads(group.get("data-set")) for group in groups[2:]] == [
        {"filter": 2},
        {"layer": 'b "&" <c>', "filter": 9},
    ]
    assert [group.get("aria-pressed") for group in groups] == ["true", "false", "false", "false"]
    assert groups[3].find("title").text == 'to "b" & <c>'
    image = unquote(re.search('src="data:image/svg.xml,([^"]*)"', clickable().static()).group(1))
    assert [json.loads(g.get("data-set"))["filter"] for g in ElementTree.fromstring(image)[1:]] == [0, 1, 2, 9]


# pictures


def elements(picture, tag):
    return ElementTree.fromstring(picture).findall(f".//{tag}")


def texts(picture):
    return ["".join(node.itertext()) for node in ElementTree.fromstring(picture).iter() if node.tag.endswith("text")]


PICTURES = {
    "bars": svg.bars([("conv1", 3, 16), ("a < b & c", 0, 8)], title="kept"),
    "bars of a deep network": svg.bars([(f"layer{i}.conv1", i, 64) for i in range(54)]),
    "no bars": svg.bars([]),
    "lines": svg.lines([svg.Series(n, [(0, 1), (1, 2)]) for n in "ab"], x="rate", y="accuracy (%)", at=0.5),
    "band": svg.lines([svg.Series("a", [(0, 1), (1, 2)], band=[(0, 0.5, 1.5), (1, 1.0, 3.0)])], at=1),
    "one point": svg.lines([svg.Series("a", [(3, 7)])]),
    "no points": svg.lines([svg.Series("a", [(0, float("nan"))])]),
    "blocks": svg.blocks([("stem", 16, 16), ("b1", 0, 16), ("head", 4, 10)], skips=[(0, 1)]),
    "many blocks": svg.blocks([(f"b{i}", i, 60) for i in range(60)], skips=[(0, 59), (3, 4)]),
    "no blocks": svg.blocks([]),
    "heat": svg.heat([[0, 0.5, 1], [1, 1, float("nan")]], ["conv1", "<i>"], at=1),
    "long heat": svg.heat([[i / 500] * 500 for i in range(100)], [f"block {i}" for i in range(100)]),
    "no heat": svg.heat([]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_small_whole_and_have_no_colour_of_their_own(name):
    picture = PICTURES[name]
    root = ElementTree.fromstring(picture)
    width, height = map(float, root.get("viewBox").split()[2:])
    assert root.get("aria-label") and len(picture) < 10_000
    assert "#" not in picture and "rgb" not in picture and "nan" not in picture
    for text in root.iter("text"):
        x, y, room = float(text.get("x")), float(text.get("y")), svg.text_width(text.text or text[0].tail)
        start = {"mid": x - room / 2, "end": x - room}.get((text.get("class") or "").split(" ")[0], x)
        assert 11 <= y <= height
        assert start >= -2 and start + room <= width + 14, text.text  # the estimate of room is generous


def test_bars_are_as_long_as_what_is_kept():
    picture = svg.bars([("conv1", 3, 16), ("conv2", 4, 8)])
    fill, track = (re.findall(r"h([\d.]+)v", path.get("d")) for path in elements(picture, "path"))
    assert float(fill[0]) / float(track[0]) == pytest.approx(3 / 16, abs=0.01)
    assert float(track[1]) / float(track[0]) == pytest.approx(8 / 16, abs=0.01)
    assert texts(picture) == ["conv1", "3 / 16", "conv2", "4 / 8"]


def test_lines_have_a_legend_and_named_axes():
    picture = PICTURES["lines"]
    kinds = [circle.get("class") for circle in elements(picture, "circle")]
    assert kinds.count("lab-dot c0") == kinds.count("lab-dot c1") == 3  # the points and one in the legend
    assert {"a", "b", "rate", "accuracy (%)"} < set(texts(picture))
    assert picture.count("lab-now") == 1


def test_a_band_is_within_the_axes_and_behind_its_line():
    (band,) = [p for p in elements(PICTURES["band"], "path") if "lab-ribbon" in p.get("class")]
    corners = [tuple(map(float, pair.split(" "))) for pair in re.findall(r"[\d.]+ [\d.]+", band.get("d"))]
    (x0, low0), (x1, low1), (x2, high1), (x3, high0) = corners
    assert x0 == x3 < x1 == x2 and low0 > low1 and low1 - high1 > low0 - high0 > 0  # y points down
    assert PICTURES["band"].index("lab-ribbon") < PICTURES["band"].index("lab-line")
    assert "lab-ribbon" not in svg.lines([svg.Series("a", [(0, 1), (1, 2)], band=[(0, 0, float("nan"))])])


def test_a_long_curve_keeps_its_peaks():
    points = [(i, 1.0 if i == 4_321 else 0.0) for i in range(10_000)]
    picture = svg.lines([svg.Series("a", points)])
    (curve,) = [p for p in elements(picture, "path") if "lab-line" in p.get("class")]
    heights = [float(pair.split(" ")[-1]) for pair in re.findall(r"[\d.]+ [\d.]+", curve.get("d"))]
    assert len(heights) < 400 and max(heights) - min(heights) > 150


def test_a_block_of_which_nothing_is_left_is_hollow():
    drawn = [[path.get("class") for path in group.findall("path")] for group in elements(PICTURES["blocks"], "g")]
    assert drawn == [["lab-track", "lab-fill c0"], ["lab-gone"], ["lab-track", "lab-fill c0"]]


def test_a_heat_counts_in_the_units_of_its_columns():
    assert texts(PICTURES["long heat"])[-3:] == ["0", "499", "step"]
    picture = svg.heat([[0.0, *([1.0] * 300), 0.0]], x="epoch", span=(0, 600))
    assert texts(picture)[-3:] == ["0", "600", "epoch"]
    assert "M1 0.5h118" in picture  # 120 of 302 columns, of which the first and the last, which are 0, are two


def test_a_heat_says_what_its_strongest_colour_stands_for():
    picture = svg.heat([[0.0, 0.1, 0.2]], most=0.2)
    assert texts(picture)[:2] == ["0", "0.2"] and "lab-run s7" in picture


def test_heat_has_a_stroke_per_run_of_equal_cells():
    shades = {p.get("class"): p.get("d") for p in elements(PICTURES["heat"], "path") if "lab-run" in p.get("class")}
    assert shades == {"lab-run s4": "M1 0.5h1", "lab-run s7": "M2 0.5h1M0 1.5h2"}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0.5, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (60, 97.2, [60, 70, 80, 90]),
        (-3, 3, [-2, 0, 2]),
        (0, 2e8, [0, 5e7, 1e8, 1.5e8, 2e8]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert svg.ticks(low, high) == expected


def test_numbers():
    shown = [svg.number(v) for v in (12_345_678, 0.1 + 0.2, 1e9, 97.25, "conv1", True)]
    assert shown == ["12,345,678", "0.3", "1,000,000,000", "97.25", "conv1", "True"]
    ticks = [svg.short(v) for v in (0.25, 800, 9_999, 12_000, 1_500_000, 3e9)]
    assert ticks == ["0.25", "800", "9999", "12k", "1.5M", "3G"]


def test_every_class_of_the_pictures_has_a_style():
    used = set(" ".join(re.findall('class="([^"]*)"', "".join(PICTURES.values()))).split())
    assert {name for name in used if f".{name}" not in styles()} <= {"s7"}  # the full shade needs none
    assert all(colour in styles() for colour in svg.PALETTE)


# figures, view and compare


def test_figure_is_plain_plotly_in_the_labs_look():
    drawn = figure({"type": "bar", "y": [1, 2]}, x="rate", y="accuracy (%)", title="cost")
    assert isinstance(drawn, go.Figure)
    assert drawn.layout.template.layout.colorway == svg.PALETTE
    assert drawn.layout.xaxis.title.text == "rate" and len(drawn.to_json()) < 3_000


@dataclass(frozen=True)
class Recipe:
    lam: float = 0.05
    steps: int = 100


@dataclass(frozen=True)
class Outcome:
    recipe: Recipe
    report: Report


def outcome(lam, macs, accuracy):
    rows = (Row("macs", 1_000, macs), Row("accuracy", 97.0, accuracy, "%", "learned"))
    return Outcome(Recipe(lam), Report("Recipe", rows))


def test_compare_shows_what_differs_and_the_front():
    table = compare([outcome(0.02, 800, 96.5), outcome(0.05, 900, 96.0), outcome(0.1, 400, 95.25)])
    assert isinstance(table, Comparison) and (table.x, table.y) == ("macs", "accuracy")
    assert table.best() == [2, 0]
    assert repr(table).splitlines() == [
        "    lam  macs  accuracy (%)",
        "*  0.02   800          96.5",
        "   0.05   900          96.0",
        "*   0.1   400          95.2",
    ]
    frame = table.to_frame()
    assert list(frame.columns) == ["lam", "macs", "accuracy"] and frame["accuracy"].tolist() == [96.5, 96.0, 95.25]
    assert [list(trace.x) for trace in table.figure().data] == [[400, 800], [800, 900, 400], [1_000]]
    page = table._repr_html_()
    assert "<td" in page and "Pareto front" in page and "96.5" in page


def test_low_is_good_where_the_name_says_so():
    rows = [Report("r", (Row("macs", 9, m), Row("perplexity", 5, p, "", "learned"))) for m, p in ((5, 7), (6, 8))]
    assert compare([Outcome(Recipe(i), row) for i, row in enumerate(rows)]).best() == [0]
    assert front([(1, 2), (2, 1), (3, 3), (float("nan"), 9)], higher_is_better=True) == [0, 2]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [({"x": "latency"}, "do not share a row 'latency': they share macs, accuracy"), ({"y": "psnr"}, "'psnr'")],
)
def test_compare_names_the_rows_it_has(chosen, words):
    with pytest.raises(ValueError, match=words):
        compare([outcome(0.1, 4, 90.0)], **chosen)


def test_compare_needs_outcomes():
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([])
    for things in ([1], 5, [outcome(0.1, 4, 90.0), "GAL"], outcome(0.1, 4, 90.0).report):
        with pytest.raises(TypeError, match=r"compare\(\) takes outcomes of runs, not a (int|str|Row): give "):
            compare(things)


def test_view_finds_the_view_module_beside_the_class(tmp_path, monkeypatch):
    package = tmp_path / "toy_method"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "recipe.py").write_text("class ToyOutcome:\n    pass\n")
    (package / "view.py").write_text(
        "from lab.ui import view\nfrom .recipe import ToyOutcome\n\n"
        "@view.register\ndef _(outcome: ToyOutcome, word='seen'):\n    return word\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from toy_method.recipe import ToyOutcome

    assert "toy_method.view" not in sys.modules
    assert view(ToyOutcome()) == "seen"
    assert view(type("Mine", (ToyOutcome,), {})(), word="own") == "own"


@pytest.mark.parametrize("thing", [3, None, types.SimpleNamespace(), Recipe()])
def test_view_says_what_it_takes(thing):
    with pytest.raises(TypeError, match=f"nothing to see for {type(thing).__name__}: view takes an outcome"):
        view(thing)
