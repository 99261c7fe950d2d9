"""What goes with what: every ordered pair and triple works, or is refused in one line before anything is trained."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lab
from lab.chain import rules
from lab.core.batch import tensors

from .small import QUICK, halved, pictures, task_for

PAIRS = list(itertools.product(QUICK, repeat=2))
TRIPLES = list(itertools.product(QUICK, repeat=3))


def chain(names: tuple[str, ...]) -> lab.Chain:
    return lab.Chain(*(QUICK[name] for name in names))


def is_refused(names: tuple[str, ...]) -> bool:
    return any(lab.chains()[pair] for pair in itertools.combinations(names, 2))


def validate_works(names: tuple[str, ...]) -> None:
    """What every order that is allowed must give, each stage respecting what the one before left."""
    task = task_for(names)
    outcome = chain(names).run(task, progress=False)
    report = outcome.report
    assert len(report.columns) == len(names) + 1 and not [note for note in report.notes if "rror" in note]
    for name in ("parameters", "macs", "bytes", task.metric):
        assert None not in report[name].values, name
    parameters = report["parameters"].values
    assert parameters[-1] == parameters[-2] or names[-1] not in ("PAMS", "DQSS")  # zeros stay zeros
    with torch.no_grad():
        assert all(torch.isfinite(part).all() for part in tensors(outcome.model(task.example)))


def validate_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        chain(names)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    first = next(pair for pair in itertools.combinations(names, 2) if lab.chains()[pair])
    assert lab.chains()[first] in message
    works = [order for order in itertools.permutations(names) if not is_refused(order)]
    remedy = f"this order works: {', '.join(works[0])}" if works else "no order of these works"
    assert remedy in message


@pytest.mark.slow
@pytest.mark.parametrize("names", PAIRS, ids=" then ".join)
def test_every_pair_works_or_is_refused(names):
    (validate_refused if is_refused(names) else validate_works)(names)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.sampled_from([*QUICK.values(), halved]), min_size=1, max_size=6))
def test_any_order_is_a_chain_or_one_line_with_one_that_is(stages):
    try:
        made = lab.Chain(*stages)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message and " cannot follow " in message
        if "this order works: " in message:
            left, names = list(stages), message.rpartition("this order works: ")[2].split(", ")
            by_name = [next(s for s in left if getattr(s, "__name__", type(s).__name__) == name) for name in names]
            assert len(names) == len(left) and lab.Chain(*by_name).names() == names
        else:
            assert message.endswith("no order of these works: leave one of the two out")
    else:
        recipes = {recipe.__name__: recipe for recipe in lab.RECIPES}
        assert eval(repr(made), {"Chain": lab.Chain, "halved": halved, **recipes}) == made


@pytest.mark.slow
def test_every_triple_works_or_is_refused():
    for names in TRIPLES:
        (validate_refused if is_refused(names) else validate_works)(names)


@pytest.mark.slow
@pytest.mark.parametrize("names", [pair for pair in PAIRS if is_refused(pair)], ids=" then ".join)
def test_what_is_refused_has_its_reason(names, monkeypatch):
    """Without the table, the later stage fails, or breaks what the earlier one left: see each."""
    monkeypatch.setattr(rules, "REASONS", {})
    try:
        outcome = chain(names).run(task_for(names), progress=False)
    except lab.chain.ChainError:
        return
    if names[0] in ("PAMS", "DQSS"):  # quantised twice, or trained in float behind the codes
        assert names[1] in ("PAMS", "DQSS") or off_grid(outcome.model)
    elif names[0] == "Decoupling":
        assert outcome.report["latency"].values[1] is None  # no engine has gates
    else:
        assert names[0] == "SparseByteNN"  # blocks of rows: a cut of single channels, another order of rows


def off_grid(model: nn.Module) -> bool:
    """Whether a layer's weights are no multiples of its step any more, or it has none."""
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    steps = [getattr(layer, "step", torch.ones(())) for layer in layers]
    weights = [layer.weight for layer in layers]
    return any(not torch.equal((w / s).round() * s, w) for s, w in zip(steps, weights, strict=True))


def test_the_table_is_of_all_methods():
    assert sorted(rules.METHODS) == sorted(QUICK)
    assert sorted([*rules.METHODS, *rules.ALONE]) == sorted(recipe.__name__ for recipe in lab.RECIPES)
    assert {name for pair in rules.REASONS for name in pair} <= {*rules.METHODS}


def test_the_table_is_shown():
    table = lab.chains()
    frame = table.to_frame()
    assert list(frame.index) == list(frame.columns) == list(rules.METHODS)
    assert all(bool(frame.loc[first, later]) == (table[first, later] is None) for first, later in table)
    lines = repr(table).splitlines()
    assert lines[0].split() == ["first,", "then", *rules.METHODS] and len(lines) == 1 + 6 + len(
        {*rules.REASONS.values()}
    )
    assert lines[1].split() == ["GAL", "yes", "yes", "no", "(1)", "yes", "yes", "yes"]
    page = table._repr_html_()
    assert page.count("<tr>") == 7 and page.count("<p>") == len({*rules.REASONS.values()})
    with pytest.raises(ValueError, match=r"'Gal' .* GAL, Decoupling"):
        table["Gal", "DQSS"]
    assert table.to_markdown() in (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(rules.ALONE))
def test_what_takes_no_network_stands_alone(name):
    recipe = getattr(lab, name)()
    for stages in ((recipe,), (lab.GAL(), recipe, lab.DQSS())):
        with pytest.raises(ValueError, match=rf"^stage {len(stages) // 2 + 1} is {name}: {name} .*; run it alone") as e:
            lab.Chain(*stages)
        assert "\n" not in str(e.value)


def test_functions_stand_anywhere_but_lift_no_reason_that_stays():
    assert lab.Chain(lab.FoldGPT(), halved, lab.DQSS()).names() == ["FoldGPT", "halved", "DQSS"]  # it may unfold
    for stages in ((lab.DQSS(), halved, lab.GAL()), (lab.FoldGPT(), halved, lab.FoldGPT())):
        with pytest.raises(ValueError, match=r"\(stage 3\) cannot follow .* \(stage 1\)"):
            lab.Chain(*stages)
    with pytest.raises(ValueError, match="this order works: halved, GAL, DQSS"):
        lab.Chain(lab.DQSS(), halved, lab.GAL())


def test_a_chain_without_a_task_takes_that_of_its_most_particular_recipe(monkeypatch):
    assert rules.default_task((lab.GAL(), lab.DQSS())).example.shape == (1, 1, 8, 8)
    assert rules.default_task((lab.GAL(), lab.SparseByteNN())).example.shape == (1, 3, 32, 32)
    monkeypatch.setattr(rules.tasks, "photos", lambda *_, **__: "photos")
    assert rules.default_task((lab.GAL(), lab.PAMS())) == "photos"
    assert pictures().example.shape == (1, 1, 8, 8)
