"""Activations: by name, copied, the model as it was, one line for what does not fit."""

import pytest
import torch
from torch import nn

from lab import lens
from tests.lens.models import (
    Failing,
    Functional,
    Recurrent,
    Reused,
    Tokens,
    hooks,
    photograph,
    pictures,
    plain,
    unchanged,
)


def test_every_layer_answers_as_it_does_in_eval_mode():
    model, x = plain(), pictures()
    before = photograph(model)
    found = lens.activations(model, x)
    assert unchanged(before, model) and model.training
    assert list(found) == [str(k) for k in range(11)]
    model.eval()
    conv = model[0](x)
    assert torch.equal(found["0"], conv)  # not what the rectifier in place made of it
    assert torch.equal(found["2"], model[1](conv).relu())
    assert torch.equal(found["10"], model(x)) and not found["10"].requires_grad


@pytest.mark.parametrize("make", [plain, Functional, Reused])
def test_odd_models_are_left_as_they_were(make):
    model = make()
    before = photograph(model)
    found = lens.activations(model, pictures())
    assert unchanged(before, model)
    assert all(len(answer) == 4 for answer in found.values())


def test_a_layer_that_runs_again_has_an_entry_a_call():
    model, x = Reused().eval(), pictures()
    found = lens.activations(model, x, ["again", "relu"])
    assert list(found) == ["relu", "again", "relu#2", "again#2", "relu#3"]
    assert torch.equal(found["again"], model.again(found["relu"]))
    assert torch.equal(found["again#2"], model.again(found["relu#2"]))


def test_a_shared_module_goes_by_either_name():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    found = lens.activations(model, pictures(), ["2"])
    assert list(found) == ["2", "2#2"]


def test_tuples_of_tuples_have_places():
    found = lens.activations(Recurrent(), pictures(), ["lstm"])
    assert {name: tuple(answer.shape) for name, answer in found.items()} == {
        "lstm[0]": (4, 10, 8), "lstm[1][0]": (1, 4, 8), "lstm[1][1]": (1, 4, 8)
    }  # fmt: skip


def test_attention_answers_through_its_fast_path():
    model, x = Tokens().eval(), pictures()
    found = lens.activations(model, x)
    assert {"embed", "block.linear1", "head"} <= set(found)
    assert torch.allclose(found["head"], model(x), atol=1e-6)


def test_other_dtypes_channels_and_inputs_by_name():
    assert lens.activations(plain().double(), pictures())["0"].dtype == torch.float64
    assert lens.activations(nn.Sequential(nn.Conv2d(1, 2, 3)), pictures(channels=1))["0"].shape == (4, 2, 8, 6)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, left, right):
            return {"sum": self.a(left) + right}

    x = torch.ones(1, 2)
    assert lens.activations(Two(), (x, x))["a"].shape == (1, 2)
    assert list(lens.activations(Two(), {"left": x, "right": x}, ["a"])) == ["a"]


def test_hooks_are_taken_away_after_an_error():
    model = Failing().train()
    before = photograph(model)
    with pytest.raises(ValueError) as error:
        lens.activations(model, pictures())
    assert "the reader's own error" in str(error.value) and "\n" not in str(error.value)
    assert hooks(model) == 0 and unchanged(before, model)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: lens.activations(Functional(), pictures(), ["conv3"]), "in Functional: the nearest are 'conv"),
        (lambda: lens.activations(nn.ReLU(), pictures(), ["a"]), "none, for it has no layers inside"),
        (lambda: lens.activations(plain(), pictures(channels=1)), "shape (4, 1, 10, 8) (Given groups=1"),
        (lambda: lens.activations(Recurrent(), pictures(), ["head", "lstm", "hed"]), "the nearest are 'head'"),
        (lambda: lens.atlas(Tokens(), pictures()), "no layer of Tokens gives feature maps (N, C, H, W)"),
        (lambda: lens.atlas(Recurrent(), pictures(), ["head"]), "(4, 3), no feature maps (N, C, H, W): no layer of"),
        (lambda: lens.atlas(Functional(), pictures(), ["head"]), "choose among 'conv1', 'conv2'"),
        (lambda: lens.atlas(Functional(), pictures()[0]), "x is (3, 10, 8): give a batch of pictures"),
        (lambda: lens.atlas(Functional(), pictures() * float("nan")), "NaN"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(act, words):
    with pytest.raises(ValueError) as error:
        act()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_layer_that_does_not_run_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x):
            return self.used(x)

    assert list(lens.activations(Idle(), torch.ones(1, 8))) == ["used"]
    with pytest.raises(ValueError, match="'idle' did not run on this input: Idle's forward does not call it"):
        lens.activations(Idle(), torch.ones(1, 8), ["idle"])
