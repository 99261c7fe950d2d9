"""What every recipe promises, checked once for all of them."""

import copy
import dataclasses
import inspect
import math
import random
import re
from importlib import import_module
from itertools import islice

import numpy as np
import pytest
import torch

import lab
from lab.core.descent import seeded
from lab.core.report import Report
from lab.core.task import inputs

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


def test_every_recipe_is_in_the_table():
    assert sorted(QUICK) == sorted(NAMES)


def own_task(outcome) -> lab.Task:
    return TASKS.get(type(outcome.recipe).__name__, lab.tasks.digits)()


@pytest.fixture(scope="module", params=lab.RECIPES, ids=NAMES)
def outcome(request):
    """The outcome of a quick run on the recipe's own task."""
    return request.param(**QUICK[request.param.__name__]).run(progress=False)


def global_state() -> list:
    """What a run must leave as it was: the random generators, and torch's own switches."""
    numpy_state = [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()]
    switches = [torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()]
    return [random.getstate(), numpy_state, torch.get_rng_state().tolist(), switches]


# -- the recipe ------------------------------------------------------------------------------------------------------


@each_recipe
def test_a_recipe_is_a_small_frozen_record_with_defaults(recipe):
    fields = dataclasses.fields(recipe)
    assert len(fields) <= 12
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


# -- the run ---------------------------------------------------------------------------------------------------------


def test_running_again_gives_the_same_whatever_the_global_seed(outcome):
    with seeded(9):
        before = global_state()
        again = outcome.recipe.run(progress=False)
        assert global_state() == before
    assert again.report == outcome.report and again.trace == outcome.trace


def test_the_seed_matters(outcome):
    assert outcome.recipe.run(seed=1, progress=False).trace != outcome.trace


def test_a_model_passed_in_is_never_changed(outcome):
    if not hasattr(outcome, "model"):
        pytest.skip("this recipe finds no model")
    task = own_task(outcome)
    model = task.model.train()
    next(iter(model.children())).eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    grads = [(p.requires_grad, p.grad) for p in model.parameters()]
    classes, hooks = [type(m) for m in model.modules()], [len(m._forward_hooks) for m in model.modules()]
    again = outcome.recipe.run(task, progress=False)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert [module.training for module in model.modules()] == modes
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == grads
    assert [type(m) for m in model.modules()] == classes and [len(m._forward_hooks) for m in model.modules()] == hooks
    assert again.report == outcome.report  # and the mode it came in does not matter


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


# -- what is seen ----------------------------------------------------------------------------------------------------

ADDRESS = re.compile(r"0x[0-9a-f]{6,}|object at")


def test_it_can_be_seen_and_shows_no_address(outcome):
    for shown in (repr(lab.view(outcome)), repr(outcome), outcome._repr_html_()):
        assert shown and not ADDRESS.search(shown)


def test_two_views_of_it_are_the_same(outcome):
    assert repr(lab.view(outcome)) == repr(lab.view(outcome))


# -- storage ---------------------------------------------------------------------------------------------------------


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_save_and_load(outcome, tmp_path):
    outcome.save(tmp_path)
    loaded = lab.load(tmp_path)
    assert type(loaded) is type(outcome) and loaded.recipe == outcome.recipe
    assert loaded.report.to_dict() == outcome.report.to_dict()  # the timed rows too
    assert loaded.trace == outcome.trace
    assert not ADDRESS.search(repr(lab.view(loaded)))


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


def test_the_same_is_saved_in_the_same_bytes(outcome, tmp_path):
    outcome.save(tmp_path / "a")
    outcome.save(tmp_path / "b")
    lab.load(tmp_path / "a").save(tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


# -- the card --------------------------------------------------------------------------------------------------------


def on_card(text: str) -> set[tuple[str, str]]:
    """(number, function) pairs in a card's part 'equations'."""
    part = re.search(r"^    equations\b(.*?)(?=^    \S|\Z)", text, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"\((\w+)\)\s+([a-z]\w*)", part[1])) if part else set()


def in_code(module) -> set[tuple[str, str]]:
    """(number, function) pairs by the 'Eq. (n):' that a function's docstring begins with."""
    found = set()
    for name, function in inspect.getmembers(module, inspect.isfunction):
        head = re.match(r"Eqs?\. (\([^:]*\)):", inspect.getdoc(function) or "")
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
        """Eqs. (2), (3a): two at once."""

    def other():
        """As in Eq. (9): not its own."""

    module = type(inspect)("paper")
    for function in (first, both, other):
        function.__module__ = "paper"
        setattr(module, function.__name__, function)
    assert in_code(module) == {("1", "first"), ("2", "both"), ("3a", "both")}
