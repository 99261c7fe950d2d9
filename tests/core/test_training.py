"""The training loop: seeds given back, steps as they come, NaN stopped before it does harm."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lab.core import store
from lab.core.training import Stage, Step, descend, seeded


def draws() -> list[float]:
    """One draw from each global generator."""
    return [float(torch.rand(())), float(np.random.rand()), random.random()]


# -- seeds -----------------------------------------------------------------------------------------------------------


def test_seeded_gives_the_global_generators_back():
    with seeded(1):
        expected = draws()
    with seeded(0):
        draws()
        with seeded(1):
            assert draws() == expected
        inner = draws()
    with seeded(0):
        draws()
        assert draws() == inner
    with seeded(np.int64(1)):
        assert draws() == expected


def test_seeded_gives_them_back_after_an_error():
    with seeded(5):
        expected = draws()
    with seeded(5):
        with pytest.raises(KeyError), seeded(0):
            draws()
            raise KeyError
        assert draws() == expected


@pytest.mark.parametrize("seed", ["a", None, 1.5, -1, 2**32, True, torch.tensor(1)])
def test_a_seed_that_is_none_is_told_and_nothing_is_changed(seed):
    with seeded(5):
        expected = draws()
    with seeded(5):
        with (
            pytest.raises(ValueError, match=r"^seed=.*: give an integer in 0\.\.4294967295$") as caught,
            seeded(seed),
        ):
            pass
        assert "\n" not in str(caught.value)
        assert draws() == expected


# -- steps -----------------------------------------------------------------------------------------------------------


def one_weight(lr: float = 0.1) -> tuple[nn.Parameter, SGD]:
    weight = nn.Parameter(torch.tensor(1.0))
    return weight, SGD([weight], lr=lr)


def test_every_update_gives_a_step_and_minimises_the_sum_of_the_terms():
    weight, optimiser = one_weight(lr=0.125)
    stage = Stage(None, "fit", "me")
    seen = []
    for step in descend(
        lambda x: {"a": 2 * weight * x, "b": (3 * weight).reshape(1)}, [1.0], optimiser, stage, steps=2, progress=False
    ):
        assert step is stage.trace[-1]
        seen.append(float(weight.detach()))
    assert seen == [0.375, -0.25]  # each step takes 0.125 * (2 + 3) away
    assert stage.trace == [Step("fit", 0, {"a": 2.0, "b": 3.0}), Step("fit", 1, {"a": 0.75, "b": 1.125})]


def test_passes_follow_one_another_without_end():
    weight, optimiser = one_weight()
    stage, seen = Stage(None, "fit", "me"), []

    def note(batch):
        seen.append(batch)
        return {"a": weight * 0}

    assert len(list(descend(note, ["p", "q", "r"], optimiser, stage, steps=8, progress=False))) == 8
    assert "".join(seen) == "pqrpqrpq"
    assert (stage.epoch, stage.batches_consumed) == (3, 2)


def test_gradients_do_not_add_up_and_the_schedule_moves():
    weight, optimiser = one_weight()
    schedule = lr_scheduler.StepLR(optimiser, 1, 0.5)
    steps = descend(
        lambda _: {"a": weight}, [0], optimiser, Stage(None, "fit", "me"), steps=3, schedule=schedule, progress=False
    )
    assert len(list(steps)) == 3
    assert float(weight.detach()) == pytest.approx(1 - 0.1 - 0.05 - 0.025)


@pytest.mark.parametrize("empty", [[], DataLoader(TensorDataset(torch.zeros(0, 6)))], ids=["list", "loader"])
def test_empty_loader(empty):
    weight, optimiser = one_weight()
    with pytest.raises(ValueError, match=r"^Task\.batches is empty: give at least one batch$"):
        next(descend(lambda _: {"a": weight}, empty, optimiser, Stage(None, "fit", "me"), steps=1, progress=False))


def test_progress_is_shown_only_when_asked_for(capsys):
    for progress in (False, True):
        weight, optimiser = one_weight()
        stage = Stage(None, "fit", "me")
        list(descend(lambda _, w=weight: {"a": w}, [0], optimiser, stage, steps=3, progress=progress))
        assert ("fit" in "".join(capsys.readouterr())) == progress


# -- numbers that are not finite -------------------------------------------------------------------------------------


def diverge(batches, folder=None, lr: float = 0.1, every: int = 1):
    """A small regression run until its error: the message, the weights before the last step and after the error."""
    layer = nn.Linear(3, 1)
    optimiser = SGD(layer.parameters(), lr=lr, momentum=0.9)
    stage = Stage(folder, "fit", "me", every, layer=layer, optimiser=optimiser)
    before = []

    def terms(batch):
        before.append([p.detach().clone() for p in layer.parameters()])
        return {"fine": torch.ones(()), "error": (layer(batch[0]) - batch[1]).square().mean()}

    with pytest.raises(FloatingPointError) as caught:
        list(descend(terms, batches, optimiser, stage, steps=200, progress=False))
    assert "\n" not in str(caught.value)
    unchanged = all(torch.equal(a, b) for a, b in zip(before[-1], layer.parameters(), strict=True))
    return str(caught.value), unchanged, len(before) - 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("part", [0, 1], ids=["x", "y"])
def test_a_broken_batch_stops_the_run_before_the_update(bad, part):
    batches = [(torch.ones(4, 3), torch.ones(4, 1)) for _ in range(3)]
    batches[2][part][1, 0] = bad
    message, unchanged, step = diverge(batches)
    assert unchanged and step == 2
    assert message == "fit step 2: error is not finite; the batch holds NaN or infinite values: clean the data"


def test_a_rate_too_high_is_named_and_stops_before_the_update():
    message, unchanged, step = diverge([(torch.ones(4, 3), torch.ones(4, 1))], lr=1e9, every=1000)
    assert unchanged and step > 0
    assert message == f"fit step {step}: error is not finite; lower the learning rates"


def test_the_last_checkpoint_is_named_only_if_there_is_one(tmp_path):
    batches = [(torch.ones(4, 3), torch.ones(4, 1)), (torch.full((4, 3), math.nan), torch.ones(4, 1))]
    message, *_ = diverge(batches, tmp_path / "none", every=1000)
    assert message.endswith("clean the data") and not (tmp_path / "none").exists()
    message, *_ = diverge(batches, tmp_path / "one")
    assert message.endswith(f"clean the data; the last checkpoint is in {tmp_path / 'one'}")
    assert len(store.load(tmp_path / "one", "fit")["trace"]) == 1


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    weight, optimiser = one_weight()
    stage = Stage(tmp_path, "fit", "me", 1, optimiser=optimiser)
    finite_loss = [lambda w: w, lambda w: (0 * w).sqrt()]  # the second is 0, its gradient NaN

    with pytest.raises(FloatingPointError) as caught:
        list(descend(lambda loss: {"a": loss(weight)}, finite_loss, optimiser, stage, steps=5, progress=False))
    expected = f"fit step 1: weights are not finite; lower the learning rates; the last checkpoint is in {tmp_path}"
    assert str(caught.value) == expected
    assert len(store.load(tmp_path, "fit")["trace"]) == 1
