"""A run that is killed again and again, at every kind of moment, ends with the result of an unbroken one."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import lab
from lab.core import store, training

STEPS, FINETUNE_STEPS = 30, 20
RECIPE = lab.GAL(  # masks drawn from N(0, 1): some of them close in this short time
    steps=STEPS, finetune_steps=FINETUNE_STEPS, lam=0.3, mask_every=2, released=("normal_masks",)
)


def task() -> lab.Task:
    """A small untrained residual network and 64 random pictures, in a new order each pass."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 8, 8, generator=draw)
    y = torch.randint(10, (64,), generator=draw)
    with training.seeded(0):
        model = lab.nets.resnet_cifar(8, channels=1)
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True)  # 7 batches a pass, the last one smaller
    return lab.Task(model=model, batches=loader, score=lambda m: 100 * float((m(x).argmax(1) == y).float().mean()))


def attempt(folder: Path, checkpoint: Path | None, stage: str = "", call: int = 0) -> None:
    """Run GAL, saving after every step, and store the outcome; be killed at the n-th rename of a file of a stage."""
    torch.set_num_threads(1)
    training.SAVE_SECONDS = 0
    rename, seen = os.replace, []

    def counted(source, target):
        if stage and Path(target).name.startswith(stage):
            seen.append(target)
            if len(seen) == call:
                os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = counted
    RECIPE.run(task(), checkpoint=checkpoint, progress=False).save(folder)


@pytest.fixture(scope="module")
def start():
    """Start an attempt in a process of its own; all are forked from one that has imported the lab and nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lab.gal.recipe", "torch._dynamo"])  # torch loads the second at first use
        started = []

        def process(*args):
            started.append(context.Process(target=attempt, args=args))
            started[-1].start()
            return started[-1]

        yield process
        for child in started:
            child.kill()
            child.join()


def steps_saved(checkpoint: Path, stage: str) -> int | None:
    """How many steps of a stage the checkpoint holds, None if it holds none of it."""
    path = checkpoint / f"{stage}.json"
    if not path.exists():
        return None
    tree = dict(json.loads(path.read_text())["tree"]["dict"])
    return len(tree["trace"]["list"])


@pytest.mark.slow
def test_killed_again_and_again(tmp_path, start):
    whole, folder, checkpoint = tmp_path / "whole", tmp_path / "outcome", tmp_path / "checkpoint"
    unbroken = start(whole, None)

    moments = [
        ("prune", 1, (None, None)),  # before anything was saved
        ("prune", 12, (5, None)),  # in the middle of the sixth save: tensors new, JSON old
        ("prune", 9, (9, None)),  # before the tensors of a save
        ("finetune", 1, (STEPS, None)),  # between the stages
        ("finetune", 20, (STEPS, 9)),  # in its second pass
        ("outcome", 2, (STEPS, FINETUNE_STEPS)),  # all done, the outcome half saved
    ]
    for stage, call, expected in moments:
        killed = start(folder, checkpoint, stage, call)
        killed.join(120)
        assert killed.exitcode == -signal.SIGKILL
        assert (steps_saved(checkpoint, "prune"), steps_saved(checkpoint, "finetune")) == expected
        assert not store.exists(folder, "outcome")
        if stage == "prune" and call == 9:
            kill_from_outside(start, folder, checkpoint)
    last = start(folder, checkpoint)
    for process in (last, unbroken):
        process.join(120)
        assert process.exitcode == 0
    validate_equal(folder, whole)


def kill_from_outside(start, folder, checkpoint):
    """Kill a run somewhere in its first stage, wherever it happens to be."""
    running = start(folder, checkpoint)
    deadline = time.monotonic() + 120
    while (steps_saved(checkpoint, "prune") or 0) < 15:
        assert running.is_alive() and time.monotonic() < deadline, "the run does not go on"
        time.sleep(0.005)
    running.kill()
    running.join()
    assert running.exitcode == -signal.SIGKILL and steps_saved(checkpoint, "prune") >= 15


def validate_equal(folder: Path, whole: Path) -> None:
    """Two stored outcomes with the same report, trace, history and weights, to the last bit."""
    found, expected = lab.load(folder), lab.load(whole)
    assert found.report == expected.report
    assert found.trace == expected.trace and len(found.trace) == STEPS + FINETUNE_STEPS
    assert torch.equal(found.history, expected.history)
    weights, wanted = found.model.state_dict(), expected.model.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert found.report["parameters"].ratio > 1  # something was removed, so that the second stage began from the first


@pytest.mark.slow
def test_a_finished_checkpoint_gives_the_outcome_again(tmp_path, start):
    folders = tmp_path / "first", tmp_path / "again"
    for folder in folders:
        run = start(folder, tmp_path / "checkpoint")
        run.join(120)
        assert run.exitcode == 0
    validate_equal(*folders)
