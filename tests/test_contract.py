"""What every recipe promises, checked once for all of them."""

import copy
import dataclasses
import inspect
import math
import random
import re
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lab
from lab.core import store, training
from lab.core.data.text import perplexity
from lab.core.finetune import sgd
from lab.core.graph.channels import Channels
from lab.core.graph.tracing import trace
from lab.core.report import Report
from lab.core.task import inputs
from lab.core.training import Stage, seeded
from lab.decoupling import equations as decoupled
from lab.decoupling.layers import Controller, Gate
from lab.foldgpt.layers import Gates
from lab.gal.layers import Fista, Mask
from lab.sparsebytenn.pattern import Pattern
from lab.sparsebytenn.rearrange import survey
from tests.core.test_store import alike
from tests.core.test_store_failures import killed_at

from .foldgpt import small as foldgpt
from .pams import small as pams
from .ui import structure

# Settings under which each recipe runs in seconds and still changes its network.
QUICK = {
    "GAL": {"steps": 40, "finetune_steps": 20, "lam": 0.6, "mask_every": 1},
    "Decoupling": {"steps": 40},
    "FoldGPT": {"gate_steps": 3, "cure_steps": 3},
    "PAMS": {"steps": 6, "calibration": 3},
    "DQSS": {"steps": 6, "calibration": 8, "candidates": ("max", "mse", "p99.9")},
    "SparseByteNN": {"steps": 6, "regroup_every": 2, "sparsity": 0.5},
    "AceNAS": {"budget": 12, "rounds": 2, "top": 3, "epochs": 4, "pretrain_epochs": 1},
    "HybridSD": {"N": 4, "k": 2, "ks": (0, 2, 4), "controls": (2,), "prompts": 4},
    "HyperFD": {"K": 2, "trials": 4, "R": 2, "m": 16, "steps": 2},
}
# The task that a recipe takes if it is given none, where that is not the digits as they are.
TASKS = {
    "FoldGPT": lab.tasks.prose,
    "PAMS": lambda: lab.tasks.photos(2, patch=96, batch_size=4),
    "SparseByteNN": lambda: lab.tasks.digits(size=32, channels=3),
    "HybridSD": lambda: lab.hybridsd.scenes(4),
}
NAMES = [recipe.__name__ for recipe in lab.RECIPES]
each_recipe = pytest.mark.parametrize("recipe", lab.RECIPES, ids=NAMES)
# Each quick run; these six take longest.
LONG = {"FoldGPT", "Decoupling", "GAL", "HyperFD", "PAMS", "HybridSD"}
RUNS = [
    pytest.param(recipe, id=name, marks=[pytest.mark.slow] if name in LONG else [])
    for recipe, name in zip(lab.RECIPES, NAMES, strict=True)
]


def test_every_recipe_is_in_the_table():
    assert sorted(QUICK) == sorted(NAMES)


def own_task(outcome) -> lab.Task:
    return TASKS.get(type(outcome.recipe).__name__, lab.tasks.digits)()


@pytest.fixture(scope="module", params=RUNS)
def outcome(request):
    """The outcome of a quick run on the recipe's own task."""
    return request.param(**QUICK[request.param.__name__]).run(progress=False)


@pytest.mark.slow
def test_every_outcome_explains_itself_on_one_page_by_what_it_is_judged_on(outcome, tmp_path):
    name, task = type(outcome.recipe).__name__, own_task(outcome)
    has_network = name not in ("AceNAS", "HybridSD", "HyperFD")
    explanation = outcome.explain(**{"most": 8} if has_network else {})
    assert len(explanation.save(tmp_path / "page.html").read_bytes()) < 500_000
    assert explanation.checks and explanation.sections and explanation.report.rows
    assert not [section.text for section in explanation.sections if section.text.startswith("Not shown")]
    assert not has_network or task.eval_batches() is not task.batches


def global_state() -> list:
    """What a run must leave as it was: the random generators, and torch's own switches."""
    numpy_state = [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()]
    switches = [torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()]
    return [random.getstate(), numpy_state, torch.get_rng_state().tolist(), switches]


# -- the recipe ------------------------------------------------------------------------------------------------------


@each_recipe
def test_a_recipe_is_a_small_frozen_record_with_defaults(recipe):
    fields = dataclasses.fields(recipe)
    assert len(fields) <= 13
    assert all(field.kw_only for field in fields)
    assert recipe() == recipe() and hash(recipe()) == hash(recipe())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(recipe(), fields[0].name, None)
    with pytest.raises(TypeError):
        recipe(getattr(recipe(), fields[0].name))


@each_recipe
def test_every_field_is_explained(recipe):
    missing = [
        field.name for field in dataclasses.fields(recipe) if not re.search(rf"\b{field.name}\b", recipe.__doc__)
    ]
    assert missing == []


@each_recipe
@pytest.mark.parametrize("value", ["no such value", math.nan, object], ids=["word", "nan", "class"])
def test_a_wrong_value_is_told_in_one_line(recipe, value):
    for field in dataclasses.fields(recipe):
        with pytest.raises(ValueError) as caught:
            recipe(**{field.name: value})
        message = str(caught.value)
        assert re.search(rf"\b{field.name}\b", message) and re.search("no such value|nan|object", message), message
        assert "\n" not in message and len(message) < 400


@each_recipe
def test_run_has_the_signature_of_all_runs(recipe):
    parameters = inspect.signature(recipe.run).parameters
    assert list(parameters) == ["self", "task", "seed", "device", "progress", "checkpoint"]
    defaults = {name: p.default for name, p in parameters.items() if name != "self"}
    assert defaults == {"task": None, "seed": 0, "device": None, "progress": True, "checkpoint": None}
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(parameters)[2:])


@each_recipe
@pytest.mark.parametrize("thing", [nn.Sequential(), nn.Linear(2, 2), "digits", 5, {}], ids=lambda v: type(v).__name__)
def test_what_it_does_not_run_on_is_told_in_one_line(recipe, thing):
    with pytest.raises(TypeError) as caught:
        recipe().run(thing, progress=False)
    kind = {"AceNAS": "Space", "HybridSD": "PromptTask", "HyperFD": "Stream"}.get(recipe.__name__, "Task")
    message = str(caught.value)
    assert message.startswith(f"{recipe.__name__} runs on a {kind}, not on a {type(thing).__name__}: give lab.")
    assert "\n" not in message


@each_recipe
@pytest.mark.parametrize("device", ["potato", "cuda:9", "meta", 3.5])
def test_a_device_that_is_not_there_is_told_in_one_line(recipe, device):
    with pytest.raises(ValueError) as caught:
        recipe().run(small_task(recipe), device=device, progress=False)
    assert str(caught.value).startswith(f"device={str(device)!r} is not on this machine: give one of cpu")
    assert "\n" not in str(caught.value)


@each_recipe
def test_a_checkpoint_that_is_no_folder_is_told_in_one_line(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for checkpoint in ("", "file", 5):
        with pytest.raises(ValueError) as caught:
            recipe().run(small_task(recipe), checkpoint=checkpoint, progress=False)
        assert str(caught.value).startswith(f"checkpoint={checkpoint!r}") and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- the run ---------------------------------------------------------------------------------------------------------


def settings_of(model: nn.Module) -> tuple[list, list]:
    """What a run could change of a model beside its weights: classes, modes, hooks and gradients."""
    modules = [(type(m), m.training, len(m._forward_hooks)) for m in model.modules()]
    return modules, [(p.requires_grad, p.grad) for p in model.parameters()]


@pytest.mark.slow
def test_running_again_gives_the_same_whatever_the_global_seed_and_the_models_mode(outcome):
    """Global state and the model that is passed in, where there is one, stay as they were."""
    task = own_task(outcome) if hasattr(outcome, "model") else None
    model = task.model.train().requires_grad_(False) if task else nn.Sequential(nn.Identity())  # as for inference
    next(iter(model.children())).eval()
    weights, settings = copy.deepcopy(model.state_dict()), settings_of(model)
    with seeded(9):
        before = global_state()
        again = outcome.recipe.run(task, progress=False)
        assert global_state() == before
    assert again.report == outcome.report and again.trace == outcome.trace
    after = model.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[name], weights[name]) for name in weights)
    assert settings_of(model) == settings
    flags = [[(n, p.requires_grad) for n, p in one.model.named_parameters()] for one in (again, outcome) if task]
    assert flags[:1] == flags[1:]


def test_the_trace_is_finite_and_not_empty(outcome):
    assert len(outcome.trace) > 0
    for step in outcome.trace:
        assert step.terms and all(math.isfinite(value) for value in step.terms.values())
    for stage in {step.stage for step in outcome.trace}:
        indices = [step.index for step in outcome.trace if step.stage == stage]
        assert indices == list(range(len(indices)))


def test_the_report_says_what_changed(outcome):
    assert isinstance(outcome.report, Report) and outcome.report.title == repr(outcome.recipe)
    names = [row.name for row in outcome.report]
    assert len(set(names)) == len(names)
    assert any(row.before is not None and row.change != 0 for row in outcome.report if row.kind == "exact")


# -- what is kept ----------------------------------------------------------------------------------------------------


def net(scale: float = 1.0) -> nn.Module:
    with seeded(0):
        made = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
        )
    for p in made.parameters():
        p.data *= scale
    return made


def pictures(scale: float = 1.0, shift: float = 0.0) -> lab.Task:
    with seeded(1):
        x, y = torch.randn(16, 1, 8, 8) + shift, torch.arange(16) % 3
    batches = DataLoader(TensorDataset(x, y), 4, shuffle=True)
    return lab.Task(model=net(scale), batches=batches, score=lab.tasks.accuracy([(x, y)]))


def large_pictures(scale: float = 1.0, shift: float = 0.0) -> lab.Task:
    made = pams.edsr()
    for p in made.parameters():
        p.data *= scale
    return pams.task(made, [(x + shift, y) for x, y in pams.pictures()])


def text(scale: float = 1.0, shift: float = 0.0) -> lab.Task:
    x = [(foldgpt.tokens(2, 12) + int(10 * shift)) % 80 for _ in range(2)]
    model = foldgpt.model("llama")
    for p in model.parameters():
        p.data *= scale
    return lab.Task(model=model, batches=x, score=perplexity(x), metric="perplexity")


SMALL = {  # recipe, task: of networks and data of one's own, that run in a second
    "GAL": (lab.GAL(units="channel", steps=4, finetune_steps=3), pictures),
    "Decoupling": (lab.Decoupling(steps=4), pictures),
    "SparseByteNN": (lab.SparseByteNN(steps=4), pictures),
    "DQSS": (lab.DQSS(steps=4, calibration=8, mode="aware", candidates=("dorefa", "lsq")), pictures),
    "PAMS": (lab.PAMS(steps=4, calibration=2), large_pictures),
    "FoldGPT": (lab.FoldGPT(removal=1 / 6, sharing=1 / 6, rank=2, gate_steps=3, cure_steps=3), text),
}


def small_task(recipe) -> lab.Task | None:
    """A small task for the recipe; None, the recipe's own, where it takes another kind that is soon made."""
    return SMALL[recipe.__name__][1]() if recipe.__name__ in SMALL else None


KEPT = (
    Path(__file__).parent / "data" / "formats" / "format-2"
)  # quick outcomes of all nine, saved before core had folders


@each_recipe
def test_what_was_saved_before_core_had_folders_loads(recipe, tmp_path):
    """It answers as it did, and nothing of it is lost when it is saved again."""
    folder, outputs = KEPT / recipe.__name__.lower(), load_file(KEPT / "outputs.safetensors")
    base = {"FoldGPT": None, "PAMS": pams.edsr()}.get(recipe.__name__, net())
    outcome = lab.load(folder, base=base if recipe.__name__ in SMALL else None)
    if hasattr(outcome, "model"):
        with torch.no_grad():
            y = outcome.model.eval()(outputs[f"{recipe.__name__}.x"])
        torch.testing.assert_close(getattr(y, "logits", y), outputs[f"{recipe.__name__}.y"], atol=1e-5, rtol=1e-5)
    outcome.save(tmp_path / "again")
    again, kept = [store.load(where, "outcome") for where in (tmp_path / "again", folder)]
    new = {name: again["fields"].pop(name) for name in {*again["fields"]} - {*kept["fields"]}}
    assert alike(by_key(again), by_key(kept))
    stored, default = recipe(**new), recipe()  # a tuple is stored as a list
    assert all(
        getattr(stored, name) == getattr(default, name) for name in new
    )  # fields that came later do nothing by default


def by_key(tree: Any) -> Any:
    """The tree with every dict in the order of its keys."""
    if isinstance(tree, dict):
        return {key: by_key(tree[key]) for key in sorted(tree, key=repr)}
    return [by_key(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


each_small = pytest.mark.parametrize("name", SMALL)


@pytest.mark.slow
@each_recipe
def test_the_seed_matters(recipe):
    is_shuffled = recipe.__name__ in SMALL and recipe.__name__ != "PAMS"  # whose small pictures come in one order
    quick, task = SMALL[recipe.__name__] if is_shuffled else (recipe(**QUICK[recipe.__name__]), lambda: None)
    first, second = (quick.run(task(), seed=seed, progress=False).trace for seed in (0, 1))
    assert first != second


@pytest.mark.slow
@each_small
def test_a_checkpoint_is_for_the_same_network_and_data(name, tmp_path):
    recipe, task = SMALL[name]
    whole = recipe.run(task(), progress=False)
    for _ in range(2):  # the second run finds the first one's stages
        again = recipe.run(task(), progress=False, checkpoint=tmp_path)
        assert again.report == whole.report and again.trace == whole.trace
    for other in (task(scale=1.25), task(shift=0.5)):
        with pytest.raises(ValueError, match=r"belongs to .*: give another folder, or delete that one") as caught:
            recipe.run(other, progress=False, checkpoint=tmp_path)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_of_a_fine_tuning_is_for_the_same_network_and_data(tmp_path, monkeypatch):
    def tuned(task: lab.Task, folder) -> dict[str, torch.Tensor]:
        with seeded(0):
            lab.finetune(task, task.model, steps=6, lr=0.1, progress=False, checkpoint=folder)
        return task.model.state_dict()

    wanted, task, monkey = tuned(pictures(), None), pictures(), []

    def broken_off(answer, y):
        monkey.append(0)
        if len(monkey) == 5:  # the first call is the check of the labels
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(answer, y)

    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        tuned(dataclasses.replace(task, loss=broken_off), tmp_path)
    assert store.load(tmp_path, "finetune")["trace"][-1]["index"] == 2
    assert all(torch.equal(a, b) for a, b in zip(task.model.parameters(), net().parameters(), strict=True))
    found = tuned(task, tmp_path)  # the same network, in the same process
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    for other in (pictures(scale=1.25), pictures(shift=0.5)):
        with pytest.raises(ValueError, match="belongs to finetune"):
            tuned(other, tmp_path)


@pytest.mark.slow
@each_small
def test_a_run_that_ends_after_training_does_not_train_again(name, tmp_path, monkeypatch):
    recipe, task = SMALL[name]

    def ended(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(recipe), "_report", ended)
    with pytest.raises(KeyboardInterrupt):
        recipe.run(task(), progress=False, checkpoint=tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Stage, "save", lambda stage: pytest.fail("trained again"))
    found = recipe.run(task(), progress=False, checkpoint=tmp_path)
    assert len(found.trace) > 0 and found.report["parameters"].before > 0


class Failing:
    """A score that fails from its second call on."""

    def __init__(self, score):
        self.score, self.calls = score, 0

    def __call__(self, model):
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("the held-out pictures\nare gone")
        return self.score(model)


after_training = pytest.mark.parametrize("name", sorted(SMALL))


@pytest.mark.slow
@after_training
def test_a_score_that_fails_after_training_loses_nothing(name):
    recipe, task = SMALL[name]
    whole, made = recipe.run(task(), progress=False), task()
    found = recipe.run(dataclasses.replace(made, score=Failing(made.score)), progress=False)
    note = f"{made.metric}: RuntimeError: the held-out pictures are gone"
    assert note in found.report.notes and all("\n" not in one for one in found.report.notes)
    row = found.report[made.metric]
    assert row.after is None and row.before == whole.report[made.metric].before
    assert found.trace == whole.trace
    weights, wanted = found.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(weights[key], wanted[key]) for key in wanted)


@pytest.mark.slow
@after_training
def test_a_measurement_that_fails_after_training_loses_nothing(name, tmp_path, monkeypatch):
    recipe, task = SMALL[name]

    def broken(*_, **__):
        raise NotImplementedError("no such counter")

    for function in ("macs", "latencies", *(["layer_macs"] if name != "Decoupling" else [])):  # it places by them
        monkeypatch.setattr(lab.cost, function, broken)
    found = recipe.run(task(), progress=False)
    assert any("NotImplementedError: no such counter" in note for note in found.report.notes)
    assert len(found.trace) > 0
    found.save(tmp_path)
    loaded = lab.load(tmp_path, base=task().model)
    assert loaded.report.notes == found.report.notes and loaded.trace == found.trace


# -- labels ----------------------------------------------------------------------------------------------------------

WRONG = {
    "float": (lambda y: y.float(), "Task.loss does not take the labels, float32 of shape"),
    "one-hot": (lambda y: nn.functional.one_hot(y, 3), "Task.loss does not take the labels, int64 of shape"),
    "beyond": (lambda y: y + 1, "the labels of Task.batches reach from 1 to 3, the model has 3 classes"),
    "negative": (lambda y: y - 1, "the labels of Task.batches reach from -1 to 1, the model has 3 classes"),
    "32 bits": (lambda y: y.int(), "Task.loss does not take the labels, int32 of shape"),
    "numpy": (lambda y: y.numpy(), "the labels of Task.batches are a ndarray: give a tensor"),
    "a list": (lambda y: y.tolist(), "the labels of Task.batches are a list: give a tensor"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["GAL", "Decoupling", "SparseByteNN", "DQSS"])
def test_labels_are_checked_before_the_first_step(name, wrong, monkeypatch):
    change, words = WRONG[wrong]
    monkeypatch.setattr(Stage, "__init__", lambda *_, **__: pytest.fail("a stage was begun"))
    x = torch.zeros(6, 1, 8, 8)
    task = lab.Task(model=net(), batches=[(x, change(torch.arange(6) % 3))], score=lambda model: 1.0)
    with pytest.raises((ValueError, TypeError)) as caught:
        SMALL[name][0].run(task, progress=False)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["GAL", "Decoupling", "SparseByteNN", "DQSS"])
def test_a_wrong_label_in_a_later_batch_is_told_when_it_comes(name):
    x, y = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    task = lab.Task(model=net(), batches=[(x, y), (x, y), (x, y + 7)], score=lambda model: 1.0)
    with pytest.raises(ValueError) as caught:
        SMALL[name][0].run(task, progress=False)
    message = str(caught.value)
    assert "\n" not in message and ("not one of the model's classes" in message or "the model has 3 classes" in message)
    assert name != "GAL" or "finetune" not in message  # while pruning, not after it


class Endless(IterableDataset):
    """Seven pictures, whose number no loader knows."""

    def __iter__(self):
        return iter([(torch.ones(1, 8, 8) * k, k % 3) for k in range(7)])


@pytest.mark.parametrize("loader", ["known", "list", "stream"])
@pytest.mark.parametrize("name", ["GAL", "Decoupling", "SparseByteNN", "finetune"])  # the others fold batch norm away
def test_a_last_batch_of_one_is_told_with_its_remedy(name, loader):
    with seeded(0):
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 8),
            nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3),
        )  # fmt: skip
        x, y = torch.randn(7, 1, 8, 8), torch.arange(7) % 3
    batches = {
        "known": DataLoader(TensorDataset(x, y), 3), "list": [(x[:6], y[:6]), (x[6:], y[6:])],
        "stream": DataLoader(Endless(), 3),
    }[loader]  # fmt: skip
    task = lab.Task(model=model, batches=batches, score=lambda model: 1.0)
    with pytest.raises(ValueError) as caught:
        if name == "finetune":
            lab.finetune(task, model, steps=6, lr=0.01, progress=False)
        else:
            SMALL[name][0].run(task, progress=False)
    assert "one picture alone" in str(caught.value) and "drop_last=True" in str(caught.value)
    assert "\n" not in str(caught.value)
    left = dataclasses.replace(task, batches=DataLoader(TensorDataset(x, y), 3, drop_last=True))
    if loader == "known" and name != "finetune":
        assert SMALL[name][0].run(left, progress=False).trace


# -- what is seen ----------------------------------------------------------------------------------------------------

ADDRESS = re.compile(r"0x[0-9a-f]{6,}|object at")


def test_it_can_be_seen_and_shows_no_address(outcome):
    for shown in (repr(lab.view(outcome)), repr(outcome), outcome._repr_html_()):
        assert shown and not ADDRESS.search(shown)


@pytest.mark.slow
def test_no_text_of_its_picture_collides(outcome):
    assert structure.faults(lab.view(outcome).frame.svg) == []


def test_two_views_of_it_are_the_same(outcome):
    assert repr(lab.view(outcome)) == repr(lab.view(outcome))


# -- storage ---------------------------------------------------------------------------------------------------------


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_save_and_load(outcome, tmp_path):
    outcome.save(tmp_path)
    loaded = lab.load(tmp_path)
    assert type(loaded) is type(outcome) and loaded.recipe == outcome.recipe
    assert loaded.report.to_dict() == outcome.report.to_dict()  # the timed rows too
    assert loaded.trace == outcome.trace
    assert not ADDRESS.search(repr(lab.view(loaded)))


@pytest.mark.slow
def test_a_loaded_model_answers_alike(outcome, tmp_path):
    if not hasattr(outcome, "model"):
        pytest.skip("this recipe finds no model")
    outcome.save(tmp_path)
    loaded = lab.load(tmp_path)
    x = torch.cat([inputs(batch) for batch in islice(own_task(outcome).batches, 20)])
    assert not outcome.model.training and not loaded.model.training
    with torch.no_grad():
        assert torch.equal(answer(loaded.model, x), answer(outcome.model, x))


def answer(model, x: torch.Tensor) -> torch.Tensor:
    """What a model gives: a tensor, or the logits of a language model."""
    given = model(x)
    return getattr(given, "logits", given)


@pytest.mark.slow
def test_the_same_is_saved_in_the_same_bytes(outcome, tmp_path):
    outcome.save(tmp_path / "a")
    outcome.save(tmp_path / "b")
    lab.load(tmp_path / "a").save(tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


@pytest.mark.slow
def test_a_save_killed_at_any_rename_leaves_the_old_or_the_new_outcome(outcome, tmp_path):
    old, new = (dataclasses.replace(outcome, trace=outcome.trace[:n]) for n in (1, 2))
    old.save(tmp_path / "out")
    at = 1
    while killed_at("replace", at, lambda: new.save(tmp_path / "out")):
        assert len(store.load(tmp_path / "out", "outcome")["trace"]) in (1, 2)  # all digests fit
        old.save(tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        at += 1
    assert at > 4 and len(lab.load(tmp_path / "out").trace) == 2


# -- the card --------------------------------------------------------------------------------------------------------


def on_card(text: str) -> set[tuple[str, str]]:
    """(number, function) pairs in a card's part 'equations'."""
    part = re.search(r"^    equations\b(.*?)(?=^    \S|\Z)", text, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"\((\w+)\)\s+([a-z]\w*)", part[1])) if part else set()


def in_code(module) -> set[tuple[str, str]]:
    """(number, function) pairs by the 'Eq. (n):' or 'Card (n):' that a docstring begins with."""
    found = set()
    for name, function in inspect.getmembers(module, inspect.isfunction):
        head = re.match(r"(?:Eqs?\.|Card) (\([^:]*\)):", inspect.getdoc(function) or "")
        if function.__module__ == module.__name__ and head:
            found |= {(number, name) for number in re.findall(r"\((\w+)\)", head[1])}
    return found


@each_recipe
def test_card_and_equations_agree(recipe):
    package = recipe.__module__.rpartition(".")[0]
    card, equations = import_module(package).__doc__, import_module(f"{package}.equations")
    assert on_card(card) == in_code(equations) != set()
    for part in ("idea", "symbols", "equations", "departures"):
        assert re.search(rf"^    {part}\b", card, re.MULTILINE), part


@each_recipe
def test_every_public_function_of_the_equations_names_its_equation(recipe):
    module = import_module(f"{recipe.__module__.rpartition('.')[0]}.equations")
    named = {name for _, name in in_code(module)}
    own = {n for n, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__}
    assert {name for name in own if not name.startswith("_")} == named


CARD = """A method.

    idea        Something (1) simple.
    equations   (1) first   (2) second
                (3a) third
    picture     (4) not_an_equation
"""


def test_a_card_that_disagrees_is_found():
    assert on_card(CARD) == {("1", "first"), ("2", "second"), ("3a", "third")}

    def first():
        """Eq. (1): one, which Eq. (7) uses."""

    def both():
        """Card (2), (3a): two at once, by the card's own numbers."""

    def other():
        """As in Eq. (9): not its own."""

    def ours():
        """Card (4): a number of the card's own."""

    module = type(inspect)("paper")
    for function in (first, both, other, ours):
        function.__module__ = "paper"
        setattr(module, function.__name__, function)
    assert in_code(module) == {("1", "first"), ("2", "both"), ("3a", "both"), ("4", "ours")}


# -- published schedules -----------------------------------------------------------------------------------------------
# What a method closes must close under the published settings when nothing holds it open: no gradient but its own.


def closed_by_gal(recipe) -> torch.Tensor:
    """Which masks are 0 in the end, with the masks' own start and rates and no gradient."""
    mask = Mask(1000).m
    recipe._start([mask])
    _, schedule = sgd([torch.nn.Parameter(torch.zeros(1))], recipe.lr, recipe.steps)
    fista, mask.grad = Fista([mask]), torch.zeros(1000)
    for index in range(recipe.steps):
        if recipe._mask_due(index):
            fista.step([recipe._mask_rate(schedule)], [recipe.lam])
        schedule.optimizer.step()
        schedule.step()
    return fista.now[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet56", "vgg16", "googlenet", "densenet40"])
def test_published_rates_of_gal_close_masks(name):
    """More than were closed at the start: the published lam and rates take 0.44 and more off a mask."""
    recipe = lab.GAL.paper(name)
    with seeded(0):
        mask = Mask(1000).m
        recipe._start([mask])
        at_first = (mask == 0).float().mean()
    with seeded(0):
        assert closed_by_gal(recipe).float().mean() > at_first + 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet56", "resnet56 v1", "vgg19", "googlenet", "resnet18", "vgg16"])
def test_published_rates_of_decoupling_close_filters(name):
    """Gates under L_s alone: updates are as many times fewer as they are larger, which leaves the flow as it is."""
    recipe, updates = lab.Decoupling.paper(name), 300
    with seeded(0):
        gate, a = Gate(Controller(16, 16, recipe.bias)), torch.rand(32, 16)
        optimiser = torch.optim.SGD(
            gate.parameters(), lr=recipe.lr * recipe.steps / updates, momentum=0.9, weight_decay=1e-4
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.MultiStepLR(
            optimiser, [round(share * updates) for share in recipe.milestones], 0.1
        )  # fmt: skip
        before = gate.eval()(torch.ones(32, 16), a).mean().item()
        gate.train()
        for _ in range(updates):
            optimiser.zero_grad()
            z = gate.architecture(gate.controller(a))
            (recipe.lam_s * (decoupled.sparsity_at(z, recipe.r) if recipe.r else decoupled.sparsity(z))).backward()
            optimiser.step()
            schedule.step()
        after = gate.eval()(torch.ones(32, 16), a).mean().item()
    assert after < before
    assert recipe.r == 0 or after == pytest.approx(recipe.r, abs=0.1)


@pytest.mark.parametrize("name", ["llama-2-7b", "gemma-2b", "tinyllama"])
def test_published_settings_of_foldgpt_close_as_many_gates_as_blocks_go(name):
    recipe, blocks = lab.FoldGPT.paper(name), 36
    removals = round(recipe.removal * blocks)
    gates = Gates(blocks, removals, recipe.gate_steps, recipe.hold)
    gates.b.data = torch.linspace(-1e-3, 1e-3, blocks)  # hardly any difference between blocks
    assert int((gates(1.0) < 0.5).sum()) == removals


def test_published_settings_of_sparsebytenn_close_the_share_that_they_name():
    recipe = lab.SparseByteNN.paper("mobilenet_v1")
    network = torch.nn.Sequential(*(torch.nn.Conv2d(c, 40, 1) for c in (3, 40, 40)), torch.nn.Flatten())
    graph = trace(network, torch.zeros(1, 3, 1, 1))
    ground = survey(graph, recipe.block)
    pattern = Pattern(Channels(graph), ground, recipe.block, recipe.budget, recipe.search)
    for updates in range(recipe.steps + 1):
        recipe._advance(pattern, updates)
    kept, blocks = pattern.blocks()
    assert 1 - kept / blocks == pytest.approx(recipe.sparsity, abs=0.5 / blocks)
