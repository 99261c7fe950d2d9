"""Before and after: a sound pair raises no alarm, each planted fault raises its own, and one page shows it all."""

import copy
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lab
from lab import lens
from lab.core.outcome import Outcome
from lab.core.report import Report
from lab.core.training import seeded
from lab.lens.corruptions import KINDS, corrupted
from lab.lens.examples import compared, examples
from lab.lens.sanity import checks
from tests.chain import small as chain
from tests.foldgpt import small as foldgpt
from tests.lens.models import photograph, unchanged

ROOT = Path(__file__).parents[2]
NAMES = ("dark", "<script>alert(1)</script>", "left & right")


def data(count=96):
    """Pictures (count, 1, 8, 8) in [0, 1] of three classes: where a bright bar stands."""
    with seeded(1):
        y = torch.arange(count) % 3
        x = 0.3 * torch.rand(count, 1, 8, 8)
    for k in range(3):
        x[y == k, :, 2 * k : 2 * k + 2, :5] += 0.6
    return x, y


def net():
    x, y = data()
    with seeded(0):
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12),
            nn.ReLU(), nn.Flatten(), nn.Linear(192, 3),
        )  # fmt: skip
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(40):
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def before():
    return net()


def edited(model, at=None, change=None):
    """A copy with weights rounded as to 6 bits, and one layer changed."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            scale = parameter.abs().max() / 31
            parameter.copy_((parameter / scale).round() * scale)
        if change is not None:
            change(copied[at])
    return copied


def raised(explanation):
    return {check.name for check in explanation.checks if check.alarm}


@pytest.fixture(scope="module")
def sound(before):
    return lens.compare(before, edited(before), [data()], classes=NAMES)


@pytest.mark.slow
def test_a_sound_pair_raises_no_alarm(before, sound):
    assert sound.alarms == () and len(sound.checks) == 12
    assert sound.report["accuracy"].after > 90 > sound.report["accuracy, labels shuffled"].after
    assert sound.report["agreement"].after > sound.report["agreement, shuffled"].after
    assert sound.to_dict()["Calibration"]["bins"] == 15
    assert "No alarm in 12 checks" in repr(sound) and "accuracy, fresh weights" in repr(sound)


def test_the_networks_are_left_as_they_were(before):
    after = edited(before)
    old = photograph(before), photograph(after)
    lens.compare(before, after, [data(24)])
    assert unchanged(old[0], before) and unchanged(old[1], after)


def zeroed(layer):
    layer.weight.zero_()
    layer.bias.zero_()


def shuffled(layer):
    layer.weight.copy_(layer.weight.roll(3, 0))


class Prepared(nn.Module):
    def __init__(self, model, step):
        super().__init__()
        self.model, self.step = model, step

    def forward(self, x):
        return self.model(self.step(x))


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (lambda m, x, y: (m, lens.with_fresh_weights(m), x, y), "after, labels"),
        (lambda m, x, y: (m, edited(m, 7, lambda last: last.reset_parameters()), x, y), "loss"),
        (lambda m, x, y: (m, edited(m, 3, shuffled), x, y), "filters by number"),
        (lambda m, x, y: (m, edited(m, 3, zeroed), x, y), "layers at work"),
        (lambda m, x, y: (m, edited(m, 7, lambda last: last.weight.neg_()), x, y), "loss"),
        (lambda m, x, y: (m, Prepared(edited(m), lambda z: z / 255), x, y), "preparation of the pictures"),
        (lambda m, x, y: (m, edited(m), x, (y + 1) % 3), "numbers of the classes"),
        (lambda m, x, y: (m, edited(m), x, y[torch.randperm(len(y))]), "before, labels"),
        (lambda m, x, y: (m, copy.deepcopy(m), x, y), "two networks"),
        (lambda m, x, y: (edited(m), m, x, y), "order"),
    ],
    ids=["fresh", "last", "shuffled", "zeroed", "negated", "pixels", "shifted", "labels", "same", "swapped"],
)
def test_a_planted_fault_is_named(before, fault, check, monkeypatch):
    monkeypatch.setattr("lab.lens.explanation._SECTIONS", ())
    with seeded(5):
        first, second, x, y = fault(before, *data())
    explanation = lens.compare(first, second, [(x, y)])
    assert check in raised(explanation)
    assert "alarm" in repr(explanation) and 'role="alert"' in explanation._repr_html_()


class Attending(nn.Module):
    """Patches that attend to one another by torch's attention, whose last layer is read and not called."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(1, 8, 4, stride=4), nn.Linear(32, 3)
        self.position = nn.Parameter(torch.randn(1, 4, 8))
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        y = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head((y + self.attend(y, y, y)[0]).flatten(1))


@pytest.mark.parametrize(
    ("weight", "change", "lines"),
    [
        ("attend.out_proj.weight", torch.zeros_like, ("attend.out_proj.weight",)),
        ("attend.out_proj.weight", lambda w: w.roll(3, 0), ("attend[0]", "attend.out_proj.weight")),
        ("attend.in_proj_weight", lambda w: w.roll(5, 0), ("attend.in_proj_weight",)),
        ("position", torch.zeros_like, ("position",)),
        ("head.weight", lambda w: w * 1.01, ()),
    ],
)
def test_weights_that_no_layer_answers_for_are_held_against_those_before(weight, change, lines):
    with seeded(0):
        model = Attending().eval()
    after = copy.deepcopy(model)
    with torch.no_grad():
        parameter = after.get_parameter(weight)
        parameter.copy_(change(parameter))
    x = data()[0]
    alarms = [check.text for check in checks(compared(model, after, [x], (), {}, 64, 0)) if check.alarm]
    assert bool(alarms) == bool(lines)
    assert all(any(line in text for text in alarms) for line in lines)


def test_a_step_that_changes_few_answers_is_found_by_the_outputs():
    with seeded(0):
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    after = Prepared(edited(model), lambda z: z / 255)
    found = {check.name: check for check in checks(compared(model, after, [data()[0]], (), {}, 64, 0))}
    assert found["preparation of after"].alarm and "255 x" in found["preparation of after"].text


@pytest.mark.slow
def test_one_page_needs_nothing_else_and_runs_no_name(sound, tmp_path):
    page = sound.save(tmp_path / "page.html").read_text()
    assert len(page) < 500_000
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "@import" not in page
    titles = ["Class by class", "Answers that flipped", "Calibration", "Corruptions", "Feature maps", "Filters lost"]
    assert [section.title for section in sound.sections] == titles
    assert not [section.text for section in sound.sections if section.text.startswith("Not shown")]


@pytest.mark.slow
def test_filters_that_fell_silent_are_told_by_what_they_spoke_of(before):
    def silence(layer):
        layer.weight[2].zero_()
        layer.bias[2] = 0

    explanation = lens.compare(before, edited(before, 3, silence), [data()])
    section = next(section for section in explanation.sections if section.title == "Filters lost")
    assert section.numbers == {"lost": 1, "layers": 1} and "3, filter 2" in section.parts[0]


@pytest.mark.slow
def test_language_models_show_their_blocks():
    model = foldgpt.model("llama")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.01)
    explanation = lens.compare(model, other, [foldgpt.tokens(8, 12)])
    assert {section.title for section in explanation.sections} == {"Calibration", "Blocks"}
    blocks = next(section.numbers for section in explanation.sections if section.title == "Blocks")
    assert len(blocks["before"]) == len(blocks["after"]) == 6 and "log-likelihood a token" in explanation.report


@pytest.mark.slow
def test_networks_that_make_pictures_are_judged_in_decibels():
    model, x = lab.nets.edsr(1, 4).eval(), torch.rand(2, 3, 70, 50)
    y = F.interpolate(x, scale_factor=2, mode="bicubic").clamp(0, 1)
    some = examples(model, [(x, y)], 64)
    assert some.kind == "images" and some.x.shape[1:] == (3, 48, 48) and some.y.shape[1:] == (3, 96, 96)
    explanation = lens.compare(model, copy.deepcopy(model), [(x[:, :, :20, :20], y[:, :, :40, :40])])
    assert "psnr" in explanation.report and "Outputs that changed most" in repr(explanation)


def test_corruptions_grow_and_stay_in_range():
    x = F.interpolate(data(6)[0].repeat(1, 3, 1, 1), size=32) * 2 - 1
    for kind in KINDS:
        changes = [float((corrupted(x, kind, k, -1, 1) - x).abs().mean()) for k in range(6)]
        assert changes[0] == 0 < changes[1] <= changes[5], kind
        assert corrupted(x, kind, 5, -1, 1).abs().max() <= 1
    with pytest.raises(ValueError, match="'fog' at strength 2: give one of noise"):
        corrupted(x, "fog", 2)


@pytest.mark.slow
def test_an_outcome_explains_itself():
    task = chain.pictures()
    outcome = chain.QUICK["GAL"].run(task, progress=False)
    assert task.eval_batches() is task.score.batches
    explanation = outcome.explain(task, most=24)
    assert explanation.report["accuracy"].before == pytest.approx(task.measure(task.model))
    assert any(section.title == "Filters lost" and section.numbers["lost"] for section in explanation.sections)
    with pytest.raises(ValueError, match="give the task of the run"):
        outcome.explain()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"batches": []}, "the batches are empty: give at least one batch"),
        ({"batches": 3}, "batches is a int: give a DataLoader or a list"),
        ({"most": 1}, "most=1: give how many examples are looked at"),
        ({"kept": {"conv.weihgt": [0]}}, "kept='conv.weihgt' is no layer of Sequential"),
        ({"kept": {"33": [0]}}, r"kept='33' is no layer of Sequential \(did you mean '3'\?\)"),
        ({"batches": [(data()[0], data()[1] + 5)]}, "a label is 7: the network has the classes 0 to 2"),
        ({"after": nn.Sequential(nn.Flatten(), nn.Linear(64, 4))}, r"gives \(3,\) before and \(4,\) after"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(before, arguments, line):
    given = {"before": before, "after": edited(before), "batches": [data()]} | arguments
    with pytest.raises((ValueError, TypeError), match=line):
        lens.compare(**given)


def test_an_outcome_without_a_network_says_so():
    outcome = Outcome(recipe=lab.GAL(), report=Report("", ()), trace=())
    with pytest.raises(ValueError, match="GAL leaves no network that could be explained"):
        outcome.explain()


def test_the_kept_count_of_planted_faults_is_that_of_the_benchmark():
    kept = json.loads((ROOT / "data" / "lens" / "explain.json").read_text())
    figures, records = kept["figures"], kept["records"]
    spec = importlib.util.spec_from_file_location("explain", ROOT / "benchmarks" / "explain.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    assert kept["sabotage"] == list(benchmark.SABOTAGE) and kept["compressed"] == list(benchmark.COMPRESSED)
    cells = {(name, seed) for name in benchmark.NETS for seed in range(kept["settings"]["seeds"])}
    assert {(record["network"], record["seed"]) for record in records} == cells
    assert figures["sound_pairs"] == sum(record["sound"] for record in records)
    assert figures["sabotaged_pairs"] == sum(record["sabotage"] for record in records)
    assert figures["missed"] == sum(len(record["missed"]) for record in records) == 0
    assert figures["false_alarms"] == sum(len(record["false"]) for record in records) <= 0.05 * figures["sound_pairs"]
