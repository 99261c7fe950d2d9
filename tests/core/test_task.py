"""A task: its example, its check of model and data, and its score; bad input is told in one line."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lab.core.scores import accuracy
from lab.core.task import Task, evaluating, inputs

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 0, 1])


def task(**changed) -> Task:
    """A task that is in order, but for what is changed."""
    return Task(**{"model": nn.Linear(3, 2), "batches": [(X, Y)], "score": lambda model: 50.0} | changed)


class Raising(nn.Module):
    """A model that refuses every input with a given error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


def test_example_is_the_first_item_and_keeps_its_batch_axis():
    for batches in ([(X, Y)], [[X, Y]], [X], DataLoader(TensorDataset(X, Y), batch_size=4)):
        assert torch.equal(task(batches=batches).example, X[:1])
    assert torch.equal(task(example=X[2:3]).example, X[2:3])


def test_example_is_a_copy():
    x = X.clone().requires_grad_()
    made = task(batches=[(x, Y)])
    with torch.no_grad():
        x.zero_()
    assert torch.equal(made.example, X[:1]) and not made.example.requires_grad


def test_a_loader_can_be_read_again_and_again():
    made = task(batches=DataLoader(TensorDataset(X, Y), batch_size=4))
    for _ in range(3):
        made.check()
        assert [len(x) for x, _ in made.batches] == [4, 2]


def test_a_task_says_what_it_is_judged_on():
    held_out, learned = [(X[:2], Y[:2])], [(X, Y)]
    own = task(batches=learned)
    assert own.eval_batches() is learned
    assert dataclasses.replace(own, held_out=held_out).eval_batches() is held_out
    scored = task(score=accuracy(held_out))
    assert scored.eval_batches() is held_out and scored.measure(scored.model) in (0.0, 50.0, 100.0)
    assert dataclasses.replace(scored, score=accuracy(learned)).eval_batches() is learned
    with pytest.raises(TypeError, match=r"Task\.held_out is a generator, which ends after one pass"):
        task(held_out=(batch for batch in held_out))


def test_frozen_and_equal_to_itself_only():
    made = task()
    same = dataclasses.replace(made, example=made.example.clone())
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.unit = "dB"
    assert made == made and made != same
    assert len({made, same}) == 2


def test_repr_is_short_and_has_no_address():
    text = repr(task(metric="psnr", unit="dB"))
    assert text == "Task(metric='psnr', unit='dB', higher_is_better=True, name='own task')"


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"model": "resnet"}, r"Task\.model is a str: give a torch\.nn\.Module"),
        (
            {"batches": iter([(X, Y)])},
            r"Task\.batches is a list_iterator, which ends after one pass: give a DataLoader",
        ),
        ({"batches": (b for b in [(X, Y)])}, r"Task\.batches is a generator, which ends after one pass"),
        ({"batches": 5}, r"Task\.batches is a int: give a DataLoader or a list"),
        ({"batches": [{"x": "a cat"}]}, r"a batch of Task\.batches holds a str: give tensors"),
        ({"batches": [(X.numpy(), Y)]}, r"a batch of Task\.batches holds a ndarray: give tensors"),
        ({"score": 97.0}, r"Task\.score is a float: give a function of the model"),
    ],
)
def test_wrong_kind(changed, cause):
    with pytest.raises(TypeError, match=cause) as caught:
        task(**changed)
    assert "\n" not in str(caught.value)


def test_empty_loader():
    empty = DataLoader(TensorDataset(X[:0], Y[:0]))
    with pytest.raises(ValueError, match=r"Task\.batches is empty: give at least one batch"):
        task(batches=empty)
    made = task(batches=empty, example=X[:1])  # an example of one's own hides it until the check
    with pytest.raises(ValueError, match=r"Task\.batches is empty"):
        made.check()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_data(bad):
    x = X.clone()
    x[3, 1] = bad
    with pytest.raises(ValueError, match="holds NaN or infinite values in its first batch: clean the data first"):
        task(batches=[(x, Y)]).check()


def test_broken_weights():
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, math.nan)
    with pytest.raises(ValueError, match="answers NaN on finite data: its weights are broken"):
        task(model=model).check()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Linear(4, 2), "mat1 and mat2 shapes cannot be multiplied"),
        (nn.Conv2d(3, 8, 3), "Expected 3D"),
        (Raising(RuntimeError("first line\nsecond line")), "(first line)"),
        (Raising(RuntimeError()), "(RuntimeError)"),
        (Raising(AssertionError("needs pictures")), "(needs pictures)"),
        (Raising(IndexError("index out of range in self")), "(index out of range in self)"),
    ],
    ids=["width", "axes", "two lines", "no words", "assertion", "index"],
)
def test_shape_the_model_does_not_take(model, reason):
    with pytest.raises(ValueError, match=r"gives inputs of shape \(6, 3\), which the model does not take \(") as caught:
        task(model=model.train()).check()
    assert reason in str(caught.value) and "match the loader" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model.training


def test_check_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task(model=model).check()
    assert [m.training for m in model.modules()] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_looking_at_a_loader_leaves_the_random_state():
    loader, model = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True), nn.Linear(3, 2)
    before = torch.get_rng_state()
    next(iter(loader))
    assert not torch.equal(torch.get_rng_state(), before)  # a loader by itself does not
    before = torch.get_rng_state()
    Task(model=model, batches=loader, score=len).check()
    assert torch.equal(torch.get_rng_state(), before)


def test_check_takes_models_without_parameters_and_whole_numbers():
    task(model=nn.Flatten()).check()
    task(model=nn.Embedding(3, 4), batches=[torch.tensor([[0, 2]])]).check()


def test_score_is_taken_in_eval_mode_without_gradients():
    seen = []

    def score(model):
        seen.append((model.training, model[0].training, torch.is_grad_enabled()))
        return torch.tensor(93.5)

    model = nn.Sequential(nn.Dropout()).train()
    assert task(score=score).measure(model) == 93.5
    assert seen == [(False, False, False)]
    assert model.training and model[0].training and torch.is_grad_enabled()


def test_score_without_an_answer():
    with pytest.raises(ValueError, match=r"Task\.score gave NaN for psnr: check the score function"):
        task(metric="psnr", score=lambda model: math.nan).measure(nn.Flatten())
    assert task(score=lambda model: math.inf).measure(nn.Flatten()) == math.inf  # the psnr of equal pictures


def test_evaluating_gives_every_module_its_mode_back_even_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.ReLU()))
    model[1].eval()
    model[1][1].train()
    modes = [m.training for m in model.modules()]
    with pytest.raises(KeyError), evaluating(model) as same:
        assert same is model and not any(m.training for m in model.modules())
        raise KeyError
    assert [m.training for m in model.modules()] == modes == [True, True, False, False, True]


def test_inputs_of_a_batch():
    for batch in ((X, Y), [X, Y], (X,), X):
        assert inputs(batch) is X
