"""A chain as a recipe: what may stand in it, what it runs, what a stage that fails and a kill leave behind."""

import dataclasses
import functools
import inspect
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import lab
from lab.chain import Chain, ChainError, Function
from lab.core import training
from lab.core.training import Stage, seeded

from .small import QUICK, halved, net, pictures, widened

SHORT = Chain(QUICK["GAL"], halved, QUICK["DQSS"])


def refused(*stages, kind=ValueError) -> str:
    with pytest.raises(kind) as caught:
        Chain(*stages)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_chain_is_a_small_frozen_record():
    chain = Chain(lab.GAL(lam=0.3), halved, lab.DQSS())
    assert repr(chain) == "Chain(GAL(lam=0.3), halved, DQSS())" and chain.names() == ["GAL", "halved", "DQSS"]
    assert chain == Chain(lab.GAL(lam=0.3), halved, lab.DQSS()) and hash(chain) == hash(Chain(*chain.stages))
    assert chain != Chain(lab.GAL(), halved, lab.DQSS())
    assert Chain(Chain(lab.GAL(lam=0.3), halved), lab.DQSS()) == chain
    assert (
        list(inspect.signature(Chain.run).parameters.items())[1:]
        == (list(inspect.signature(lab.GAL.run).parameters.items())[1:])
    )
    with pytest.raises(AttributeError):
        chain.stages = ()


def test_functions_are_named_by_what_they_are():
    class Pruner:
        def __call__(self, model):
            return model

    stages = Chain(halved, functools.partial(halved), Pruner(), lambda model: model).stages
    assert [stage.name for stage in stages] == ["halved", "halved", "Pruner", "<lambda>"]


def test_what_is_no_stage_is_refused_in_one_line():
    assert refused() == "a chain needs a stage: give recipes in order, such as lab.Chain(lab.GAL(), lab.DQSS())"
    assert "stage 1 is the class GAL: give GAL()" in refused(lab.GAL, kind=TypeError)
    assert "stage 2 is a int: give a recipe" in refused(lab.GAL(), 3, kind=TypeError)
    assert "stage 1 is a Linear: give a recipe" in refused(nn.Linear(2, 2), kind=TypeError)


@pytest.mark.parametrize("thing", [nn.Sequential(), "digits", 5, {}], ids=lambda v: type(v).__name__)
def test_what_it_does_not_run_on_is_named_in_one_line(thing):
    with pytest.raises(TypeError, match=f"^Chain runs on a Task, not on a {type(thing).__name__}: give lab.Task"):
        SHORT.run(thing, progress=False)
    for options, words in (({"seed": -1}, "seed=-1"), ({"device": "potato"}, "device='potato'")):
        with pytest.raises(ValueError, match=words):
            SHORT.run(pictures(), progress=False, **options)


@pytest.mark.slow
def test_each_stage_runs_on_what_the_one_before_left():
    """And sees of a loader with a generator of its own what it would see alone."""
    task = pictures(torch.Generator().manual_seed(3))
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    with seeded(9):
        state = torch.get_rng_state()
        outcome = SHORT.run(task, seed=1, progress=False)
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    first = QUICK["GAL"].run(pictures(torch.Generator().manual_seed(3)), seed=1, progress=False)
    second = halved(first.model)
    alone = dataclasses.replace(pictures(torch.Generator().manual_seed(3)), model=second)
    third = QUICK["DQSS"].run(alone, seed=1, progress=False)
    x = task.example
    with torch.no_grad():
        assert torch.equal(outcome.outcomes[1].model(x), second(x)) and torch.equal(outcome.model(x), third.model(x))
    assert [type(made.recipe).__name__ for made in outcome.outcomes] == ["GAL", "Function", "DQSS"]
    assert outcome.report.columns == ("start", "1 GAL", "2 halved", "3 DQSS")
    names = dict.fromkeys(step.stage for step in outcome.trace)
    searched = ["1-GAL prune", "1-GAL finetune", "3-DQSS search"]
    assert list(names) in (searched, [*searched, "3-DQSS draws"])  # draws where the merged choices leave any
    again = SHORT.run(pictures(torch.Generator().manual_seed(3)), seed=1, progress=False)
    assert again.report == outcome.report and again.trace == outcome.trace


def failing(model):
    raise RuntimeError("no such layer\nin this network")


@pytest.mark.slow
def test_a_stage_that_fails_keeps_what_was_done_and_is_named(tmp_path):
    chain = Chain(QUICK["GAL"], Function("halved", failing), QUICK["DQSS"])
    with pytest.raises(ChainError) as caught:
        chain.run(pictures(), progress=False, checkpoint=tmp_path)
    message = str(caught.value)
    assert message.startswith("stage 2 of 3, halved: no such layer; ") and "\n" not in message
    done = caught.value.outcome
    assert done.recipe == Chain(QUICK["GAL"]) and done.report.columns == ("start", "1 GAL")
    again = SHORT.run(pictures(), progress=False, checkpoint=tmp_path)  # mended: goes on behind GAL
    assert again.report == SHORT.run(pictures(), progress=False).report
    with pytest.raises(ChainError, match=r"^stage 1 of 1, failing: no such layer$") as caught:
        Chain(failing).run(pictures(), progress=False)
    assert caught.value.outcome is None


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda model: 5, "gave a int: let it return the network"),
        (lambda model: nn.Linear(3, 3), "which the model does not take"),
        (lambda model: nn.Sequential(model, nn.Threshold(9.0, float("nan"))), "the model answers NaN"),
    ],
)
def test_what_a_function_gives_is_checked(function, words):
    with pytest.raises(ChainError, match=words):
        Chain(function).run(pictures(), progress=False)


def test_what_a_later_stage_refuses_is_known_before_anything_is_trained(monkeypatch):
    """By the recipe itself, on the task's own network; behind a function it may be another."""
    begun, real = [], Stage.__init__

    def noted(stage, folder, name, *args, **state):
        begun.append(name)
        real(stage, folder, name, *args, **state)

    monkeypatch.setattr(Stage, "__init__", noted)
    with pytest.raises(
        ChainError, match=r"^stage 3 of 3, PAMS: placement='cadyq' finds no .*; nothing was trained$"
    ) as e:
        Chain(QUICK["GAL"], QUICK["SparseByteNN"], lab.PAMS()).run(pictures(), progress=False)
    assert "finetune" not in begun and e.value.outcome is None
    with pytest.raises(ChainError, match=r"^stage 2 of 2, PAMS: placement='cadyq' .* kept in `error.outcome`$"):
        Chain(halved, lab.PAMS()).run(pictures(), progress=False)


@pytest.mark.slow
def test_a_rehearsal_changes_nothing():
    task = pictures(torch.Generator().manual_seed(3))
    outcome = Chain(QUICK["GAL"], QUICK["Decoupling"]).run(task, progress=False)
    alone = QUICK["GAL"].run(pictures(torch.Generator().manual_seed(3)), progress=False)
    assert outcome.outcomes[0].report == alone.report and outcome.outcomes[0].trace == alone.trace


def test_a_function_gets_a_copy():
    made = []

    def kept(model):
        made.append(model)
        return halved(model)

    task = pictures()
    Chain(kept).run(task, progress=False)
    assert made[0] is not task.model and torch.equal(task.model[-1].weight, net()[-1].weight)


@pytest.mark.slow
def test_a_stage_that_is_done_is_not_run_again(tmp_path, monkeypatch):
    chain = Chain(QUICK["GAL"], widened, QUICK["SparseByteNN"])
    first = chain.run(pictures(), progress=False, checkpoint=tmp_path)
    monkeypatch.setattr(Stage, "__init__", lambda *_, **__: pytest.fail("a stage was begun"))
    again = chain.run(pictures(), progress=False, checkpoint=tmp_path)
    assert again.report == first.report and again.trace == first.trace
    x = pictures().example
    with torch.no_grad():
        assert torch.equal(again.model(x), first.model(x))


def test_a_checkpoint_is_of_one_chain_seed_and_task(tmp_path):
    Chain(halved).run(pictures(), progress=False, checkpoint=tmp_path)
    others = [
        (Chain(halved, halved), pictures(), 0),
        (Chain(halved), pictures(), 1),
        (Chain(halved), widened_task(), 0),
    ]
    for chain, task, seed in others:
        with pytest.raises(
            ValueError, match=r"belongs to Chain\(halved\) with seed 0 .*: give another folder"
        ) as caught:
            chain.run(task, seed=seed, progress=False, checkpoint=tmp_path)
        assert "\n" not in str(caught.value)


def widened_task() -> lab.Task:
    task = pictures()
    return lab.Task(model=widened(task.model), batches=task.batches, score=task.score, name=task.name)


@pytest.mark.slow
def test_broken_off_and_begun_again_in_one_process(tmp_path, monkeypatch):
    """The loader's own generator has moved on meanwhile; the second stage has saved two steps."""
    wanted = SHORT.run(pictures(torch.Generator().manual_seed(3)), progress=False)
    task, saved = pictures(torch.Generator().manual_seed(3)), Stage.save

    def broken_off(stage):
        saved(stage)
        if stage.name == "finetune" and len(stage.trace) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    monkeypatch.setattr(Stage, "save", broken_off)
    with pytest.raises(KeyboardInterrupt):
        SHORT.run(task, progress=False, checkpoint=tmp_path)
    monkeypatch.undo()
    same(SHORT.run(task, progress=False, checkpoint=tmp_path), wanted)


def same(outcome, wanted) -> None:
    """Two outcomes of a chain with the same report, trace and weights, to the last bit."""
    assert outcome.report == wanted.report and outcome.trace == wanted.trace
    weights, expected = outcome.model.state_dict(), wanted.model.state_dict()
    assert weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in expected)


def attempt(folder: Path, checkpoint: Path | None) -> None:
    """Run three stages, saving after every step, and store the outcome; in a process that may be killed."""
    torch.set_num_threads(1)
    training.SAVE_SECONDS = 0
    THREE.run(pictures(torch.Generator().manual_seed(3)), checkpoint=checkpoint, progress=False).save(folder)


THREE = Chain(QUICK["GAL"], QUICK["SparseByteNN"], QUICK["DQSS"])


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, monkeypatch):
    """By SIGKILL, then begun again until it ends: the report and the weights are those of the unbroken run."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chain.small", "lab.chain", "torch._dynamo"])

    def started(name: str, checkpoint: Path | None) -> multiprocessing.Process:
        process = context.Process(target=attempt, args=(tmp_path / name, checkpoint))
        process.start()
        return process

    unbroken, begun = started("whole", None), time.monotonic()
    unbroken.join(120)
    length, draw, kills = time.monotonic() - begun, random.Random(5), 0
    assert unbroken.exitcode == 0
    while kills < KILLS:
        process = started("outcome", tmp_path / "checkpoint")
        process.join(draw.uniform(0.1, 0.6) * length)
        if process.exitcode is not None:  # it ended before: its outcome is compared, and all begins anew
            assert process.exitcode == 0
            same(lab.load(tmp_path / "outcome", base=net()), lab.load(tmp_path / "whole", base=net()))
            os.rename(tmp_path / "checkpoint", tmp_path / f"done {kills}")
            continue
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    last = started("outcome", tmp_path / "checkpoint")
    last.join(120)
    assert last.exitcode == 0
    same(lab.load(tmp_path / "outcome", base=net()), lab.load(tmp_path / "whole", base=net()))


KILLS = int(os.environ.get("KILLS", "4"))
