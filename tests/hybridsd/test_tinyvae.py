"""The tiny autoencoder: whose turn it is, what each part minimises, and that it gets nearer to the large one."""

import runpy
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from lab.core import training
from lab.core.training import seeded
from lab.hybridsd import equations as eq
from lab.hybridsd import tinyvae
from lab.hybridsd.discriminator import FeatureDiscriminator, FrozenFeatures, augmented
from lab.hybridsd.tinyvae import TinyVAE, train, turn

from . import small

TAEF2 = Path(__file__).parents[3] / "shared" / "data" / "diffusion"


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU()).eval()


@pytest.fixture
def parts():
    with seeded(0):
        features = FrozenFeatures(network(), ["1", "3"])
        return small.tiny_vae(), small.vae(), FeatureDiscriminator(features, (8, 12)), features


def pictures(count=8):
    """Two coloured halves each."""
    random = torch.Generator().manual_seed(0)
    colours = torch.rand(count, 3, 2, 1, generator=random).repeat_interleave(8, 2)
    return colours.expand(-1, -1, -1, 16).contiguous()


def test_turns():
    assert [turn(i, 3) for i in range(3)] == ["discriminator"] * 3
    after = [turn(i, 0) for i in range(7000)]
    assert [after.count(part) for part in tinyvae.PARTS] == [1000, 1000, 5000]
    assert after[:3] == ["decoder", "encoder", "discriminator"]


def test_the_losses_against_other_ways_of_computing_them():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert eq.hinge_loss(real, fake) == pytest.approx((0.25 + 0.75) / 2)
    z, y = torch.randn(2, 3, 4, 2, 2)
    assert eq.latent_loss(z, y) == pytest.approx(float(nn.functional.l1_loss(z, y, reduction="sum")) / 3)
    unit = [x / x.norm(dim=1, keepdim=True) for x in (z, y)]
    assert eq.perceptual_loss([z], [y]) == pytest.approx(float((2 - 2 * (unit[0] * unit[1]).sum(1)).mean()), rel=1e-4)


def test_the_adaptive_weight_evens_out_gradients():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    assert eq.adaptive_weight(3 * w.sum(), w.sum(), w) == pytest.approx(3.0, rel=1e-3)
    assert eq.adaptive_weight(w.sum(), 0 * w.sum(), w) == pytest.approx(1e4)


@pytest.mark.slow
def test_each_step_changes_one_part_only(parts):
    tiny, large, judge, features = parts
    frozen = [p.clone() for p in (*large.parameters(), *features.parameters())]
    how = TinyVAE(steps=14, judge_first=1, lr=1e-3)
    nets = {"decoder": tiny.decoder, "encoder": tiny.encoder, "discriminator": judge}

    def state():
        return {name: [p.detach().clone() for p in net.parameters()] for name, net in nets.items()}

    with seeded(0):
        before = state()
        for step in train(tiny, large, judge, features, [pictures()], how, progress=False):
            now = state()
            moved = [name for name in nets if not all(map(torch.equal, before[name], now[name]))]
            assert moved == [turn(step.index, 1)]
            before = now
    assert all(map(torch.equal, frozen, (*large.parameters(), *features.parameters())))
    assert all(p.grad is None for p in (*large.parameters(), *features.parameters()))


@pytest.mark.slow
def test_the_tiny_one_comes_nearer_to_the_large_ones_latents_and_pictures(parts):
    tiny, large, judge, features = parts
    x = pictures()
    losses = tinyvae._Losses(tiny, large, judge, features, TinyVAE(degraded=0.0))

    def errors():
        with seeded(1), torch.no_grad():
            z = losses.latent(x)
            return float(losses.encoder(x, 0)["latent"]), float(eq.perceptual_loss(
                features(losses.decoded(z)), features(x)))  # fmt: skip

    first = errors()
    with seeded(0):
        how = TinyVAE(steps=350, judge_first=0, lr=5e-3, filter_every=0)
        average = small.tiny_vae()
        list(train(tiny, large, judge, features, [x], how, average=average, progress=False))
    last = errors()
    assert last[0] < 0.9 * first[0] and last[1] < 0.9 * first[1], (first, last)
    assert not torch.equal(average.decoder.layers[0].weight, small.tiny_vae().decoder.layers[0].weight)


@pytest.mark.slow
def test_it_resumes_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)

    def run(folder, steps):
        with seeded(0):
            features = FrozenFeatures(network(), ["3"])
            tiny, judge = small.tiny_vae(), FeatureDiscriminator(features, (12,))
            how = TinyVAE(steps=9, judge_first=1, lr=1e-3)
            found = train(tiny, small.vae(), judge, features, [pictures()], how, checkpoint=folder, progress=False)
            count = len(list(islice(found, steps)))
        return tiny, count

    whole, _ = run(tmp_path / "a", 9)
    run(tmp_path / "b", 5)  # killed before its fifth step is saved
    again, count = run(tmp_path / "b", 9)
    assert count == 5
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


def test_easy_pixels_are_painted_white(parts):
    losses = tinyvae._Losses(*parts, TinyVAE())
    x = pictures() * 0.5
    with seeded(0):
        painted = losses.hard_pixels(x)
    white = (painted == 1).all(1)
    assert (white.flatten(1).double().mean(1) - 0.5).abs().max() < 0.1
    assert torch.equal(torch.where(white[:, None], x, painted), x)


def test_augmentations_keep_shape_and_are_drawn_for_each_picture():
    x = pictures().requires_grad_()
    with seeded(0):
        made, mixed = augmented(x), tinyvae.recoloured(x.detach(), 0.5)
    assert made.shape == x.shape and not torch.allclose(made[0] - x[0], made[1] - x[1])
    made.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    same = (mixed == x.detach()).flatten(1).all(1)
    assert 0 < int(same.sum()) < len(x) and 0 <= float(mixed.min()) and float(mixed.max()) <= 1


def test_what_does_not_fit_is_told(parts):
    with pytest.raises(ValueError, match="the network has no 9"):
        FrozenFeatures(network(), ["9"])
    with pytest.raises(ValueError, match="2 feature maps for 1 widths"):
        FeatureDiscriminator(parts[3], (8,))(pictures())
    with pytest.raises(ValueError, match="degraded=2 is not allowed"):
        TinyVAE(degraded=2)


@pytest.mark.slow
@pytest.mark.skipif(not TAEF2.exists(), reason="TAEF2 is not beside the project")
def test_taef2_rebuilds_photographs_as_measured():
    from skimage import data

    run = runpy.run_path(str(TAEF2 / "taef2.py"))
    kept = [torch.load(TAEF2 / f"taef2_{name}.pth", weights_only=True) for name in ("encoder", "decoder")]
    photo = torch.from_numpy(data.astronaut()[:256, 100:356].copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        rebuilt = run["decode"](kept[1], run["encode"](kept[0], photo))
    assert 28 < float(-10 * (rebuilt - photo).square().mean().log10()) < 33
