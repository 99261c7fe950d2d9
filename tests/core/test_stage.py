"""A stage that was interrupted ends as if it had not been, bit for bit; a folder that does not fit is refused."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler
from torch.utils.data import DataLoader, Dataset

from lab.core import store, training
from lab.core.training import Stage, descend, seeded
from tests.core.test_training import draws, one_weight

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()
STEPS = 10  # the loaders below hold 4 batches: passes end after steps 4 and 8


class Interrupt(Exception):
    """A run that ends without a word."""


class Noisy(Dataset):
    """Samples with augmentations from all three global generators."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        scale = torch.rand(()) + float(np.random.rand()) + random.random()
        return X[index] * scale, Y[index]


class Drawn:
    """Four batches a pass, drawn one by one from the global generator."""

    def __iter__(self):
        for _ in range(4):
            index = torch.randint(len(X), (6,))
            yield X[index], Y[index]


LOADERS = {
    "list": lambda: list(zip(X.split(6), Y.split(6), strict=True)),
    "shuffled": lambda: DataLoader(Noisy(), batch_size=6, shuffle=True),
    "own generator": lambda: DataLoader(
        Noisy(), batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(7)
    ),
    "worker": lambda: DataLoader(Noisy(), batch_size=6, shuffle=True, num_workers=1, multiprocessing_context="fork"),
    "drawn": Drawn,
}
RULES = {
    "SGD, StepLR": lambda p: (o := SGD(p, 0.1, momentum=0.9, nesterov=True), lr_scheduler.StepLR(o, 3, 0.1)),
    "Adam, OneCycleLR": lambda p: (o := Adam(p, 0.01), lr_scheduler.OneCycleLR(o, 0.05, total_steps=STEPS + 1)),
    "AdamW, MultiStepLR": lambda p: (o := AdamW(p, 0.01, amsgrad=True), lr_scheduler.MultiStepLR(o, [2, 5])),
    "SGD, cosine": lambda p: (o := SGD(p, 0.1), lr_scheduler.CosineAnnealingLR(o, STEPS)),
}


def train(folder, loader="shuffled", rule="SGD, StepLR", *, stop=None, every=1, run_id="me"):
    """Train a small network as a recipe does; end without a word when `stop` steps are done. All that it has become."""
    with seeded(3):
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        optimiser, schedule = RULES[rule](model.parameters())
        stage = Stage(folder, "fit", run_id, every, model=model, optimiser=optimiser, schedule=schedule)

        def terms(batch):
            if len(stage.trace) == stop:
                raise Interrupt
            return {"task": nn.functional.cross_entropy(model(batch[0]), batch[1])}

        batches = LOADERS[loader]()
        for _ in descend(terms, batches, optimiser, stage, steps=STEPS, schedule=schedule, progress=False):
            pass
        keeps = {name: kept.state_dict() for name, kept in stage.state.items()}
        return {
            "keeps": keeps,
            "trace": stage.trace,
            "position": [stage.epoch, stage.batches_consumed],
            "draws": draws(),
        }


def same(a, b) -> bool:
    """Whether two trees are equal to the last bit, tuples and lists taken alike."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def unbroken():
    """The result of an unbroken run, made once for each loader and rule."""
    made = {}

    def result(*case):
        if case not in made:
            made[case] = train(None, *case)
        return made[case]

    return result


def interrupted(folder, *case, stop, every=1):
    """A run that was interrupted after `stop` steps and begun anew."""
    if stop < STEPS:
        with pytest.raises(Interrupt):
            train(folder, *case, stop=stop, every=every)
    else:
        train(folder, *case, every=every)
    return train(folder, *case, every=every)


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 8, 9, STEPS])
@pytest.mark.parametrize("loader", ["list", "shuffled", "own generator", "drawn"])
def test_an_interrupted_run_ends_as_an_unbroken_one(tmp_path, unbroken, loader, stop):
    case = (loader, "SGD, StepLR")
    assert same(interrupted(tmp_path, *case, stop=stop), unbroken(*case))


@pytest.mark.parametrize("stop", [3, 6])
@pytest.mark.parametrize("rule", RULES)
def test_the_state_of_optimiser_and_schedule_comes_back(tmp_path, unbroken, rule, stop):
    case = ("shuffled", rule)
    assert same(interrupted(tmp_path, *case, stop=stop), unbroken(*case))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 6])
def test_a_loader_with_a_worker_process(tmp_path, unbroken, stop):
    case = ("worker", "SGD, StepLR")
    assert same(interrupted(tmp_path, *case, stop=stop), unbroken(*case))


@pytest.mark.parametrize("stop", [2, 3, 5, 7, 9])
def test_steps_since_the_last_save_are_taken_again(tmp_path, unbroken, stop):
    assert same(
        interrupted(tmp_path, "shuffled", "SGD, StepLR", stop=stop, every=3), unbroken("shuffled", "SGD, StepLR")
    )


@pytest.mark.parametrize("loader", ["shuffled", "own generator"])
def test_a_run_interrupted_after_every_step(tmp_path, unbroken, loader):
    for stop in range(STEPS):
        with pytest.raises(Interrupt):
            train(tmp_path, loader, "SGD, StepLR", stop=stop)
    assert same(train(tmp_path, loader, "SGD, StepLR"), unbroken(loader, "SGD, StepLR"))


def test_resumption_matters(tmp_path, unbroken):
    """The comparison above can fail: without one of its keeps a run does not continue as it was."""
    case = ("shuffled", "SGD, StepLR")
    with pytest.raises(Interrupt):
        train(tmp_path, *case, stop=5)
    tree = store.load(tmp_path, "fit")
    tree["keeps"]["optimiser"]["state"] = {}
    store.save(tmp_path, "fit", tree)
    assert not same(train(tmp_path, *case), unbroken(*case))


class Counter:
    """Counts the steps that a recipe's own loop has seen."""

    def __init__(self):
        self.count = 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_what_the_recipe_does_in_the_loop_is_in_the_save(tmp_path):
    weight, optimiser = one_weight()
    counter = Counter()
    stage = Stage(tmp_path, "fit", "me", 4, counter=counter)
    for _ in descend(lambda _: {"a": weight}, [0], optimiser, stage, steps=6, progress=False):
        counter.count += 1
        if counter.count == 6:
            break
    again = Counter()
    assert len(Stage(tmp_path, "fit", "me", counter=again).trace) == again.count == 4


def test_a_stage_is_saved_by_steps_by_time_and_at_its_end(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    saves: list[int] = []
    real = Stage.save
    monkeypatch.setattr(Stage, "save", lambda stage: (saves.append(len(stage.trace)), real(stage)))
    for seconds, expected in ((1, [4, 8, 10]), (13, [3, 4, 7, 8, 10])):
        weight, optimiser = one_weight()
        stage = Stage(tmp_path / str(seconds), "fit", "me", 4, optimiser=optimiser)
        for _ in descend(lambda _, w=weight: {"a": w}, [0], optimiser, stage, steps=10, progress=False):
            clock[0] += seconds
        assert saves == expected
        saves.clear()


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(None)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_another_run_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(ValueError) as caught:
        train(tmp_path, run_id="you")
    assert str(caught.value) == (
        f"checkpoint={str(tmp_path)!r} belongs to me, this run is you: give another folder, or delete that one"
    )


def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path):
    Stage(tmp_path, "fit", "me", model=nn.Linear(3, 2)).save()
    with pytest.raises(ValueError, match="does not fit this run's model") as caught:
        Stage(tmp_path, "fit", "me", model=nn.Linear(4, 2))
    assert "\n" not in str(caught.value) and "give another folder, or delete that one" in str(caught.value)


def test_data_that_have_become_fewer_are_told(tmp_path, monkeypatch):
    with pytest.raises(Interrupt):
        train(tmp_path, "list", stop=3)
    monkeypatch.setitem(LOADERS, "list", lambda: [(X[:6], Y[:6])])
    with pytest.raises(ValueError) as caught:
        train(tmp_path, "list")
    assert str(caught.value) == (
        f"checkpoint={str(tmp_path)!r} was made with 3 or more batches a pass, Task.batches holds 1: "
        "give another folder, or delete that one"
    )


def test_a_damaged_checkpoint_is_told_in_one_line(tmp_path):
    train(tmp_path)
    (tmp_path / "fit.json").write_text('{"format"')
    with pytest.raises(ValueError, match=r"is damaged .*: delete the folder and save it again") as caught:
        train(tmp_path)
    assert "\n" not in str(caught.value)
