"""PAMS's run: what it trains, what it calibrates, that it can be killed, and bad input."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import lab
from lab.core import store
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.pams import equations as eq
from lab.pams import view
from lab.pams.layers import QuantisedConv2d, Quantiser
from tests.pams.small import QUICK, edsr, pictures, task


def run(on=None, **fields):
    return lab.PAMS(**{**QUICK, **fields}).run(on or task(), progress=False)


def test_the_model_answers_on_its_grids():
    outcome = run(weight_bits=3, activation_bits=4)
    for module in outcome.model.modules():
        if isinstance(module, QuantisedConv2d):
            codes, step = module.int_repr()
            assert codes.abs().max() <= 3 and torch.equal(module.weight, codes * step)
        if isinstance(module, Quantiser):
            assert len(module(torch.linspace(-3, 3, 999)).unique()) <= (15 if module.signed else 16)


@pytest.mark.slow
def test_training_helps_and_calibration_alone_is_the_control():
    wanted = pictures(8, side=16)
    start = run(task(batches=wanted), weight_bits=4, activation_bits=4, steps=1, calibration=1)
    trained = run(task(batches=wanted), weight_bits=4, activation_bits=4, steps=60, lr=1e-3)
    assert trained.report["psnr"].after > start.report["psnr"].after


@pytest.mark.slow
def test_alphas_follow_the_data_and_then_learn():
    outcome = run(steps=24, calibration=12)
    alphas, steps = outcome.history["alphas"], outcome.history["steps"].tolist()
    assert steps == list(range(1, 25))
    quantisers = [module for module in outcome.model.modules() if isinstance(module, Quantiser)]
    assert (alphas < 9).all() and len(alphas[0]) == len(quantisers)  # none kept the value it was made with
    later = alphas[12:].diff(dim=0).abs().max(1).values
    assert (later > 0).all() and later.max() <= 1.1 * outcome.recipe.alpha_lr


def test_the_range_of_a_histogram_holds_the_float_values():
    """The control: behind rounded tensors of a wild first alpha there would be nothing but zeros."""
    net, seen = edsr(), []
    net.blocks[1].relu.register_forward_hook(lambda _, __, y: seen.append(float(y.detach().max())))
    net(pictures()[0][0])
    outcome = run(task(net), weight_bits=2, activation_bits=2)
    at = list(outcome.placement.groups()).index("blocks_1_relu")
    assert float(outcome.history["reach"][at]) == pytest.approx(4 / 3 * seen[0], rel=0.5)


def test_a_picture_keeps_its_whole_range():
    outcome = run(placement="full", alpha_lr=1e-9)
    largest = max(float((x - outcome.model.mean).abs().max()) for x, _ in pictures()[:3])
    assert outcome.alphas()["sub"] == pytest.approx(largest, rel=1e-5)
    assert outcome.alphas()["head"] < float(outcome.history["reach"][1])  # a feature does not


def test_the_last_batch_alone_calibrates_in_the_release():
    one, other = pictures(2, side=8)
    other = tuple(0.25 * x for x in other)
    fields = {"steps": 2, "calibration": 2}
    kept = run(task(batches=[one, other]), released=("last_batch",), **fields).history["alphas"][-1]
    mean = run(task(batches=[one, other]), **fields).history["alphas"][-1]
    assert not torch.allclose(kept, mean)


def test_the_largest_value_of_all_batches_calibrates_where_nothing_is_to_be_clipped():
    one, other = pictures(2, side=8)
    other = tuple(0.25 * x for x in other)
    fields = {"steps": 2, "calibration": 2, "lr": 1e-12}
    largest = run(task(batches=[one, other]), statistic="largest", **fields).alphas()
    mean = run(task(batches=[one, other]), **fields).alphas()
    top = {}
    model = fold_batch_norms(edsr(), one[0])
    with torch.no_grad():
        for x, _ in (one, other):
            top["head"] = max(top.get("head", 0.0), float(model.head(x - model.mean).abs().max()))
    assert largest["head"] == pytest.approx(top["head"], rel=1e-5)
    assert all(largest[name] > mean[name] for name in mean)


@pytest.mark.slow
def test_a_random_student_forgets_its_teacher():
    far, near = run(released=("random_student",)), run()
    assert far.trace[0].terms["skt"] > 10 * near.trace[0].terms["skt"]


@pytest.mark.parametrize(("released", "rates"), [((), [0.75, 0.25, 0.0]), (("halved_rates",), [0.5, 0.25, 0.125])])
def test_rates_fall_to_zero_or_are_halved_thrice(released, rates):
    optimiser = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = lab.PAMS(steps=30, released=released)._schedule(optimiser)
    seen = []
    for _ in range(30):
        optimiser.step()
        schedule.step()
        seen.append(schedule.get_last_lr()[0])
    assert seen[9::10] == pytest.approx(rates, abs=1e-6)


@pytest.mark.slow
def test_without_knowledge_transfer_there_is_no_such_term():
    assert set(run(skt=0.0).trace[0].terms) == {"l1"} and set(run().trace[0].terms) == {"l1", "skt"}


@pytest.mark.slow
def test_knowledge_transfer_teaches_the_weights():
    """Its gradient reaches them: with the pixels' loss alone, weights end elsewhere."""
    with_it, without = (dict(run(skt=skt).model.named_parameters()) for skt in (1e5, 0.0))
    assert not torch.equal(with_it["blocks.0.conv1.weight"], without["blocks.0.conv1.weight"])
    student, teacher = (torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    eq.knowledge_transfer(student.requires_grad_(), teacher).backward()
    assert student.grad.abs().sum() > 0


class Wide(nn.Module):
    """An EDSR for pixels in 0..255."""

    def __init__(self):
        super().__init__()
        self.inner = edsr()

    def forward(self, x):
        return 255 * self.inner(x / 255)


def test_pixels_to_255_are_trained_as_those_to_1():
    """The same network on the same pictures in other units: the loss is as large, the alphas are 255 times theirs."""
    wide = [tuple(255 * part for part in batch) for batch in pictures()]
    fields = {"placement": "full", "steps": 4, "calibration": 1}
    units = run(task(), **fields)
    other = run(lab.Task(model=Wide(), batches=wide, score=lambda _: 0.0, metric="psnr", unit="dB"), **fields)
    assert other.trace[0].terms["l1"] == pytest.approx(units.trace[0].terms["l1"], rel=0.02)
    assert any("pixels go to 255" in note for note in other.report.notes)
    assert not any("pixels go to 255" in note for note in units.report.notes)
    moved = [outcome.history["alphas"].diff(dim=0)[0].abs().max() for outcome in (other, units)]
    assert float(moved[0] / moved[1]) == pytest.approx(255, rel=0.01)


def test_a_range_that_training_drove_to_0_can_grow_again():
    q = Quantiser(8)
    q.alpha.data.fill_(-0.5)
    y = q(torch.tensor([2.0, -3.0]))
    assert y.abs().max() <= 2e-6
    (y - torch.tensor([2.0, -3.0])).square().sum().backward()
    assert float(q.alpha.grad) < 0  # a step against it makes alpha larger


def test_without_large_pictures_the_teacher_is_the_target():
    small = [x for x, _ in pictures()]
    users_task = task()
    outcome = run(lab.Task(model=users_task.model, batches=small, score=users_task.score, metric="psnr", unit="dB"))
    assert any("trained on the teacher's alone" in note for note in outcome.report.notes)


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 7], ids=["while calibrating", "while training"])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, monkeypatch, after):
    uninterrupted = lab.PAMS(**QUICK).run(task(), progress=False, checkpoint=tmp_path / "whole")

    class Kill(Exception):
        pass

    monkeypatch.setattr("lab.core.training.SAVE_SECONDS", 0.0)
    original, calls = store.save, []

    def save(*args):
        original(*args)
        calls.append(args)
        if len(calls) == after:
            raise Kill

    monkeypatch.setattr(store, "save", save)
    with pytest.raises(Kill):
        lab.PAMS(**QUICK).run(task(), progress=False, checkpoint=tmp_path / "killed")
    monkeypatch.setattr(store, "save", original)
    resumed = lab.PAMS(**QUICK).run(task(), progress=False, checkpoint=tmp_path / "killed")
    assert resumed.trace == uninterrupted.trace and resumed.report == uninterrupted.report
    assert all(torch.equal(resumed.history[k], uninterrupted.history[k]) for k in uninterrupted.history)
    for a, b in zip(resumed.model.parameters(), uninterrupted.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_released_setting_runs_as_published():
    for name in ("edsr-8", "edsr-4", "rdn-8", "rdn-4"):
        recipe = lab.PAMS.paper(name)
        assert (recipe.steps, recipe.lr, recipe.placement, recipe.grid) == (30_000, 1e-4, "repo", "signed")
        assert recipe.weight_bits == recipe.activation_bits == int(name[-1])
    with pytest.raises(ValueError, match=r"name='vdsr': the released settings are kept for edsr-8"):
        lab.PAMS.paper("vdsr")


def test_the_report_says_what_stays_in_float():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.up = nn.ConvTranspose2d(8, 3, 2, 2)

        def forward(self, x):
            return self.up(self.body(self.head(x).relu()).relu())

    outcome = run(task(Own()), placement="full")
    assert "left in float, ConvTranspose2d is not quantised here: up" in outcome.report.notes
    assert outcome.report["macs"].change == 0 and outcome.report["bitops"].ratio > 1


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{"weight_bits": 1}, {"activation_bits": 9}, {"weight_bits": 4.5}, {"released": "x"}]
)
def test_values_out_of_range_are_told_in_one_line(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=rf"PAMS: {name}=.* is not allowed: give "):
        lab.PAMS(**fields)


def test_a_calibration_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match=r"calibration=5 is not allowed: give an integer in 1\.\.4"):
        lab.PAMS(steps=4, calibration=5)


def test_constant_pictures_cannot_calibrate(tmp_path):
    grey = [(torch.full((2, 3, 8, 8), 0.5), torch.full((2, 3, 16, 16), 0.5))]
    with pytest.raises(
        ValueError, match=r"calibration: every picture holds one constant value: give Task.batches of real"
    ):
        lab.PAMS(**QUICK).run(task(batches=grey), progress=False, checkpoint=tmp_path)


def test_a_dead_layer_is_named():
    net = edsr()
    nn.init.zeros_(net.blocks[0].conv1.weight)
    nn.init.constant_(net.blocks[0].conv1.bias, -1.0)
    with pytest.raises(ValueError, match="the tensor blocks_0_relu is 0 on all pictures: its layer is dead"):
        run(task(net))


def test_no_pictures_at_all():
    users_task = task()
    with pytest.raises(ValueError, match=r"Task.batches is empty"):
        lab.Task(model=users_task.model, batches=[], score=users_task.score)


def test_a_wrong_scale_is_told_in_one_line():
    with pytest.raises(ValueError, match=r"the model gives shape \(2, 3, 24, 24\), the batches want \(2, 3, 36, 36\)"):
        batches = pictures(scale=3)
        run(lab.Task(model=edsr(), batches=batches, score=lambda _: 0.0, metric="psnr", unit="dB"))


def test_grey_pictures_and_pictures_with_an_alpha_channel_become_colour(tmp_path):
    from PIL import Image

    for mode, name in (("L", "grey"), ("RGBA", "alpha"), ("P", "palette")):
        Image.new(mode, (64, 48)).save(tmp_path / f"{name}.png")
    users_task = lab.tasks.photos(2, edsr(), folder=tmp_path, held_out=tmp_path, patch=32, batch_size=2)
    x, y = users_task.first_batch()
    assert x.shape == (2, 3, 16, 16) and y.shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="is 48 x 64, below 96 pixels: leave it out or lower patch"):
        lab.tasks.photos(2, edsr(), folder=tmp_path, held_out=tmp_path, patch=96)


@pytest.mark.slow
def test_the_real_folder_layouts_are_read():
    from pathlib import Path

    set5 = Path("../shared/data/sr/set5")
    if not set5.exists():
        pytest.skip("no Set5 here")
    users_task = lab.tasks.photos(2, edsr(), folder=set5, held_out=set5, patch=32, batch_size=2)
    assert 20 < users_task.measure(_Bicubic()) == pytest.approx(33.68, abs=0.05)
    assert lab.tasks.ssim(lab.tasks.photos_held_out(2, set5), border=2)(_Bicubic()) == pytest.approx(0.930, abs=0.002)


class _Bicubic(nn.Module):
    def forward(self, x):
        from lab.core.data.batches import enlarged

        return enlarged(x, 2)


# -- a loss of one's own -----------------------------------------------------------------------------------------------


def own_loss(output, large) -> torch.Tensor:
    return 255 * (output - large).abs().mean()


@pytest.mark.slow
@pytest.mark.parametrize("skt", [1000.0, 0.0])
def test_a_loss_of_ones_own_takes_the_place_of_l1(skt):
    """Written out as L1 is, it leaves the same network; what it is called with is the student's plain output."""
    recipe, plain = lab.PAMS(**QUICK, skt=skt), task()
    by_output = replace(plain, loss=own_loss)
    by_batch = replace(plain, batch_loss=lambda model, batch: own_loss(model(batch[0]), batch[1]))
    records = [(x, {"large": y}) for x, y in pictures()]
    by_record = replace(plain, batches=records, loss=lambda output, y: own_loss(output, y["large"]), labels=1)
    first, *others = (recipe.run(made, progress=False) for made in (plain, by_output, by_batch, by_record))
    for other in others:
        assert [{"l1": s.terms["task"], **s.terms} for s in other.trace] == [
            {**s.terms, "task": s.terms["l1"]} for s in first.trace
        ]
        assert all(map(torch.equal, other.model.parameters(), first.model.parameters()))
        assert "trained on the task's own loss in place of L1" in other.report.notes
        assert any("own loss" in drawn for drawn in view._losses(other, 0))
    assert not any("own loss" in note for note in first.report.notes)


@pytest.mark.slow
def test_the_teacher_is_asked_about_what_the_loss_shows_the_student():
    """A loss may alter its batch: knowledge transfer compares both networks on the same pictures."""
    seen = []
    batches = [(x, None) for x, _ in pictures()]

    def loss(model, batch):
        seen.append(model(batch[0][..., ::2, ::2]))
        return seen[-1].square().mean()

    made = replace(task(), batches=batches, batch_loss=loss, labels=lambda batch: None)
    outcome = lab.PAMS(steps=3, calibration=3).run(made, progress=False)
    assert seen[-1].shape[-1] == 12 and outcome.trace[0].terms["skt"] < 0.01  # rounding alone


def test_a_loss_that_does_not_fit_is_told_in_one_line():
    made = replace(task(), loss=lambda output, large: output["out"])
    with pytest.raises(ValueError, match=r"Task\.loss does not take the labels") as caught:
        lab.PAMS(**QUICK).run(made, progress=False)
    assert "\n" not in str(caught.value)
