"""Attribution: exact on linear models, complete, harmless, and one line where it does not fit."""

import sys

import pytest
import torch
from torch import nn

from lab import lens
from lab.core import tasks
from lab.lens.attribution import METHODS
from tests.lens.models import Functional, Recurrent, Reused, Tokens, photograph, pictures, plain, unchanged

pytest.importorskip("captum", reason="captum is not installed: pip install 'shrinklab[lens]'")


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 10 * 8, 3))


def test_of_a_linear_model_it_is_weight_times_pixel():
    model, x = linear(), pictures()
    weight = model[1].weight[2].view(1, 3, 10, 8)
    assert torch.allclose(lens.attribution(model, x, 2), weight * x, atol=1e-5)
    assert torch.allclose(lens.attribution(model, x, 2, "saliency"), weight.abs().expand(4, -1, -1, -1), atol=1e-6)
    occluded = lens.attribution(model, x, 2, "occlusion", window=1)
    assert torch.allclose(occluded, (weight * x).sum(1, keepdim=True).expand_as(x), atol=1e-4)


def test_integrated_gradients_add_up_to_the_answer():
    model, x = plain().eval(), pictures()
    target = torch.tensor([0, 1, 2, 1])
    found = lens.attribution(model, x, target, steps=200).sum((1, 2, 3))
    whole = (model(x) - model(torch.zeros_like(x)))[torch.arange(4), target]
    assert torch.allclose(found, whole, atol=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [plain, Functional, lambda: plain().double()])
def test_every_method_leaves_the_model_as_it_was_and_repeats(make, method):
    model, x = make(), pictures(2)
    before = photograph(model)
    one, two = (lens.attribution(model, x, None, method) for _ in range(2))
    assert unchanged(before, model) and torch.equal(one, two)
    assert one.shape == ((2, 1, 10, 8) if method == "gradcam" else (2, 3, 10, 8)) and torch.isfinite(one).all()


def test_rectifiers_that_are_shared_and_in_place_do_no_harm():
    model, x = Reused().eval(), pictures(2)
    assert model.relu.inplace
    apart = Reused().eval()
    apart.load_state_dict(model.state_dict())
    apart.relu.inplace = False
    for method in METHODS:
        assert torch.allclose(lens.attribution(model, x, 1, method), lens.attribution(apart, x, 1, method), atol=1e-6)
    assert lens.attribution(nn.Sequential(nn.ReLU(inplace=True), linear()), x, 0).shape == x.shape


class InPlace(nn.Module):
    """A branch whose first rectifier overwrites what the shortcut adds, a module or `x.relu_()`."""

    def __init__(self, act):
        super().__init__()
        torch.manual_seed(0)
        self.act, self.stem, self.conv = act, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv(x.relu_() if self.act is None else self.act(x))
        return self.head((y + x).mean((2, 3)))


class OutOfPlace(InPlace):
    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((self.conv(x) + x).mean((2, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_a_shortcut_that_is_overwritten_is_attributed_as_the_model_answers(method):
    x = pictures(2)
    expected = lens.attribution(OutOfPlace(None), x, 1, method)
    for act in (None, nn.ReLU(True)):
        assert torch.allclose(lens.attribution(InPlace(act), x, 1, method), expected, atol=1e-6)


def test_gradcam_sees_a_layer_as_it_answers_not_as_it_is_overwritten():
    model, x = InPlace(None).eval(), pictures(2)
    given = OutOfPlace(None).eval().stem(x).detach().requires_grad_()
    y = given.relu()
    answer = model.head((model.conv(y) + y).mean((2, 3)))[:, 1].sum()
    weight = torch.autograd.grad(answer, given)[0].mean((2, 3), keepdim=True)
    expected = (weight * given).sum(1, keepdim=True).relu()
    assert torch.allclose(lens.attribution(model, x, 1, "gradcam", layer="stem"), expected, atol=1e-6)


def test_attention_and_recurrence_have_gradients_but_no_gradcam():
    for model in (Tokens(), Recurrent()):
        assert lens.attribution(model, pictures(2), 0, "saliency").any()
        with pytest.raises(ValueError, match="gives feature maps"):
            lens.attribution(model, pictures(2), 0, "gradcam")


@pytest.mark.slow
def test_a_trained_network_looks_at_the_things_and_one_with_fresh_weights_does_not():
    model = tasks.scenes().model
    x, masks, _ = tasks.scenes_concepts()
    thing = masks[:6, :4].any(1)
    near = nn.functional.max_pool2d(thing.float()[:, None], 5, 1, 2)[:, 0] > 0  # within two pixels
    shares = []
    for net in (model, lens.with_fresh_weights(model)):
        marks = lens.attribution(net, x[:6], None).abs().sum(1)
        shares.append(float(marks[near].sum() / marks.sum()))
    area = float(near.float().mean())
    assert shares[0] > 4 * area and shares[1] < 1.5 * area


@pytest.mark.slow
def test_explain_shows_the_control_beside_it():
    explorer = lens.explain(tasks.scenes().model, tasks.scenes_concepts()[0][:2], classes=("circle", "square"))
    assert explorer.state == {"method": "integrated_gradients", "image": 0}
    picture = explorer.set(method="gradcam", image=1).frame.svg
    assert "control: fresh weights" in picture and picture.count("<svg") == 3
    assert "for " in repr(explorer) and "correlation with control" in repr(explorer)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda x: lens.attribution(plain(), x, 3), "target=3: give a class from 0 to 2"),
        (lambda x: lens.attribution(plain(), x, [0, 1]), "or one for each of 4"),
        (lambda x: lens.attribution(plain(), x, 0, "lime"), "method='lime': give one of 'integrated_gradients'"),
        (lambda x: lens.attribution(plain(), x, 0, "occlusion", window=9), "window=9: give an integer"),
        (lambda x: lens.attribution(plain(), x, 0, steps=0), "steps=0"),
        (lambda x: lens.explain(plain(), x, methods=("lime",)), "methods holds 'lime'"),
        (lambda x: lens.attribution(plain(), x[:, :1], 0), "(4, 1, 10, 8)"),
        (lambda x: lens.attribution(plain(), x, 0, "gradcam", layer="44"), "no layer '44' in Sequential"),
        (lambda x: lens.attribution(Reused(), x, 0, "gradcam", layer="relu"), "'relu' runs more than once"),
        (lambda x: lens.attribution(nn.Conv2d(3, 2, 3), x, 0), "gives (4, 2, 8, 6): attribution needs one number"),
    ],
)
def test_bad_input_is_one_line(act, words):
    with pytest.raises(ValueError) as error:
        act(pictures())
    assert words in str(error.value) and "\n" not in str(error.value)


def test_without_captum_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"^attribution needs Captum: pip install 'shrinklab\[lens\]'$"):
        lens.attribution(plain(), pictures(), 0)
