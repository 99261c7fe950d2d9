"""`lab.works_with()` shows what was measured; twelve small networks are measured again here and must be as kept."""

import json
import sys
from pathlib import Path

import pytest

import lab
from lab import registry

ROOT = Path(__file__).parents[1]
SMALL = {
    "made": {"sources": {"0": 4}, "versions": {"torch": "2.13.0", "timm": None}, "processor": "a processor"},
    "figures": [
        {"figure": "classifiers that are pruned", "asked": 95, "reached": 19, "of": 20},
        {"figure": "tracebacks", "asked": 0, "reached": 1, "of": 9},
        {"figure": "... that a baseline prunes", "asked": None, "reached": 5, "of": 20},
    ],
    "reasons": ["Net branches on <its> values"],
    "networks": {
        "resnet18": {
            "source": "torchvision", "kind": "cnn", "side": 64, "parameters": 11_181_642,
            "methods": {
                "surgery": ["works", "3904 channels", 1.0, 2.4e-7, 3e-7, 12.3, 410.0],
                "DQSS": ["refused", None, None, None, None, 1.0, 2.0, 0],
            },
        },
        "vit": {
            "source": "by hand", "kind": "transformer", "side": None, "parameters": None,
            "methods": {"surgery": ["hangs", "8 heads", None, None, None, None, None, 0]},
        },
    },
}  # fmt: skip


@pytest.fixture
def small(tmp_path, monkeypatch):
    path = tmp_path / "registry.json"
    path.write_text(json.dumps(SMALL))
    monkeypatch.setattr(registry, "PATH", path)


def test_one_network_is_a_row_for_each_method(small):
    entry = lab.works_with("resnet18")
    assert entry["surgery"].works and not entry["DQSS"].works
    assert entry["DQSS"].why == "Net branches on <its> values"
    assert repr(entry).splitlines() == [
        "resnet18 (torchvision, cnn, 11.2 M parameters, 64 x 64 pixels)",
        "         outcome  structures     reachable  error  onnx   s   MB",
        "surgery  works    3904 channels  100 %      2e-07  3e-07  12  410",
        "DQSS     refused                                          1   2",
        "DQSS: Net branches on <its> values",
    ]
    page = entry._repr_html_()
    assert "<td" in page and "&lt;its&gt;" in page and "<its>" not in page


def test_all_networks_begin_with_the_figures(small):
    table = lab.works_with()
    assert len(table) == 2 and [entry.name for entry in table] == ["resnet18", "vit"]
    assert table.methods == ["surgery", "DQSS"]
    assert repr(table).splitlines() == [
        "2 networks, random weights (torch 2.13.0)",
        "                             asked  reached    of",
        "classifiers that are pruned  95 %   19 (95 %)  20",
        "tracebacks                   0      1          9",
        "... that a baseline prunes          5 (25 %)   20",
        "",
        "          from         kind         surgery  DQSS",
        "resnet18  torchvision  cnn          yes      no",
        "vit       by hand      transformer  hangs",
    ]
    assert table._repr_html_().count("<table>") == 2
    frame = table.to_frame()
    assert frame.loc[("resnet18", "surgery"), "error"] == 2.4e-7 and len(frame) == 3


def test_a_name_or_a_method_that_was_not_tried_is_one_line(small):
    with pytest.raises(ValueError, match="'resnet19' is none of the 2 networks that were tried: see resnet18"):
        lab.works_with("resnet19")
    with pytest.raises(KeyError, match="vit was not tried with 'DQSS': it was with surgery"):
        lab.works_with("vit")["DQSS"]


def test_what_is_kept_is_small_and_whole():
    assert registry.PATH.stat().st_size < 150_000
    table = lab.works_with()
    outcomes = {"works", "refused", "different", "failed", "hangs", "memory", "skipped"}
    assert {trial.outcome for entry in table for trial in entry.trials.values()} <= outcomes
    assert all(trial.why for entry in table for trial in entry.trials.values() if not trial.works)
    assert all(0 <= figure["reached"] <= figure["of"] for figure in table.figures)


@pytest.fixture
def zoo(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from zoo import networks, trial

    yield networks, trial
    for name in [name for name in sys.modules if name.partition(".")[0] == "zoo"]:
        del sys.modules[name]


NETWORKS = (
    "plain CNN", "ResNet", "MobileNet-v3-like", "EfficientNet-like", "ShuffleNet-like", "DenseNet-like",
    "ConvNeXt-like", "ViT", "Swin-like", "U-Net", "two-headed detector", "EDSR",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_twelve_small_networks_are_treated_as_kept(zoo, name):
    """The same outcome, structures and reach by every method; nothing fails, hangs or differs without a word."""
    networks, trial = zoo
    network, kept = networks.by_name(name), lab.works_with(name)
    model, x = trial.built(network)
    for method, expected in kept.trials.items():
        figures: dict = {}
        outcome = trial.judged(network, model, x, method, figures.update)
        assert outcome["outcome"] in ("works", "refused"), (method, outcome)
        assert (outcome["outcome"], figures.get("structures")) == (expected.outcome, expected.structures), method
        assert figures.get("reachable") == pytest.approx(expected.reachable, abs=0.006), method


def test_the_twelve_are_those_of_the_benchmark(zoo):
    assert tuple(network.name for network in zoo[0].small_networks()) == NETWORKS


def test_a_silent_difference_a_traceback_and_a_refusal_are_told_apart(zoo, monkeypatch):
    networks, trial = zoo
    network = networks.by_name("plain CNN")
    model, x = trial.built(network)

    def outcome(attempt):
        monkeypatch.setitem(trial.attempts.METHODS, "surgery", attempt)
        return trial.judged(network, model, x, "surgery", lambda **figures: None)

    assert outcome(lambda model, x, classifies, note: note(error=1e-6)) == {"outcome": "works"}
    assert outcome(lambda model, x, classifies, note: note(error=1e-4))["outcome"] == "different"
    assert outcome(lambda model, x, classifies, note: note(error=float("nan")))["outcome"] == "different"
    assert outcome(lambda model, x, classifies, note: note(onnx=0.02))["outcome"] == "different"
    assert outcome(lambda model, x, classifies, note: model(x[:, :1]))["outcome"] == "failed"
    assert outcome(lambda model, x, classifies, note: int("x"))["outcome"] == "failed"  # a ValueError, not the lab's
    assert outcome(lambda model, x, classifies, note: lab.GAL(lam=-1))["outcome"] == "refused"
