"""Scores over held-out data: by hand, against scikit-image, on the model's device and mode, on empty data."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import jaccard_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lab.core.scores import accuracy, luma, mean_iou, psnr, ssim

GENERATOR = torch.Generator().manual_seed(0)
PICTURES = torch.rand(3, 3, 12, 10, generator=GENERATOR)


class Adding(nn.Module):
    """Adds a constant; a stand-in for a network whose error is known."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x):
        return x + self.value


def test_accuracy_counts_the_largest_output():
    x = torch.tensor([[3.0, 1.0], [0.0, 2.0], [5.0, 4.0], [1.0, 0.0]])
    y = torch.tensor([0, 1, 1, 0])
    assert accuracy([(x, y)])(nn.Identity()) == 75.0
    assert accuracy([(x[:3], y[:3]), (x[3:], y[3:])])(nn.Identity()) == 75.0  # uneven batches weigh by their samples
    assert accuracy(DataLoader(TensorDataset(x, y), batch_size=3))(nn.Identity()) == 75.0


def test_accuracy_of_dense_labels():
    x = torch.zeros(1, 2, 2, 2)
    x[0, 1, 0, 0] = 1
    assert accuracy([(x, torch.tensor([[[1, 1], [0, 0]]]))])(nn.Identity()) == 75.0


def test_mean_iou_by_hand():
    """Labels 0 0 1 1 2 and one that does not count, named 0 1 1 1 1 2: 1/2, 2/4 and 0/1, the fourth class nowhere."""
    named, y = torch.tensor([[[0, 1, 1, 1, 1, 2]]]), torch.tensor([[[0, 0, 1, 1, 2, -100]]])
    x = torch.nn.functional.one_hot(named, 4).permute(0, 3, 1, 2).float()
    assert mean_iou([(x, y)])(nn.Identity()) == pytest.approx(100 / 3)
    halves = [(x[..., :3], y[..., :3]), (x[..., 3:], y[..., 3:])]
    assert mean_iou(halves)(nn.Identity()) == pytest.approx(100 / 3)  # pixels are counted together


def test_mean_iou_agrees_with_scikit_learn():
    y = torch.randint(0, 5, (3, 8, 8), generator=GENERATOR)
    x = torch.randn(3, 5, 8, 8, generator=GENERATOR)
    expected = jaccard_score(y.flatten(), x.argmax(1).flatten(), average="macro")
    assert mean_iou([(x, y)])(nn.Identity()) == pytest.approx(100 * expected)


def test_mean_iou_of_labels_that_do_not_fit():
    x = torch.zeros(1, 2, 4, 4)
    for y, cause in ((torch.full((1, 4, 4), -100), "are -100"), (torch.zeros(1, 2, 2).long(), "the labels have")):
        with pytest.raises(ValueError, match=f"mean_iou: .*{cause}"):
            mean_iou([(x, y)])(nn.Identity())


def test_scores_leave_modes_and_gradients_as_they_were():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.9)).train()
    before = model[0].running_mean.clone()
    score = accuracy([(torch.randn(64, 2, generator=GENERATOR) + 3, torch.zeros(64, dtype=torch.long))])
    assert score(model) == score(model)  # dropout is off
    assert model.training and model[1].training
    assert torch.equal(model[0].running_mean, before)
    with pytest.raises(ValueError):
        psnr([(PICTURES, PICTURES[:2])])(nn.Identity())
    assert torch.is_grad_enabled()


def test_psnr_of_a_known_error():
    # 51 of 255 grey levels apart, on one channel: 20 log10(255 / 51)
    grey = torch.full((2, 1, 8, 8), 0.2)
    assert psnr([(grey, grey)])(Adding(0.2)) == pytest.approx(20 * np.log10(5), abs=1e-6)


def test_psnr_agrees_with_scikit_image_on_luma():
    noise = 0.05 * torch.randn(PICTURES.shape, generator=GENERATOR)
    target = (PICTURES * 255).round() / 255
    answer = ((PICTURES + noise).clamp(0, 1) * 255).round() / 255
    wanted, given = (luma(x.double())[:, 2:-2, 2:-2].numpy() for x in (target, answer))
    expected = [peak_signal_noise_ratio(w, g, data_range=255) for w, g in zip(wanted, given, strict=True)]
    assert psnr([(PICTURES + noise, target)], border=2)(nn.Identity()) == pytest.approx(np.mean(expected), abs=1e-6)


def test_ssim_agrees_with_scikit_image_on_luma():
    x = torch.rand(2, 3, 40, 33, generator=GENERATOR).mul(255).round().div(255)
    answer = (x + 0.1 * torch.randn(x.shape, generator=GENERATOR)).clamp(0, 1).mul(255).round().div(255)
    wanted, given = (luma(v.double())[:, 2:-2, 2:-2].numpy() for v in (x, answer))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = [structural_similarity(w, g, **settings) for w, g in zip(wanted, given, strict=True)]
    found = ssim([(answer, x)], border=2)(nn.Identity())
    assert found == pytest.approx(np.mean(expected), abs=1e-9) and 0.5 < found < 0.99
    assert ssim([(x, x)])(nn.Identity()) == pytest.approx(1)


def test_ssim_wants_pictures_of_its_window():
    with pytest.raises(ValueError, match="ssim: pictures of 10 x 10 are smaller than its window of 11 x 11"):
        ssim([(torch.zeros(1, 3, 10, 10), torch.zeros(1, 3, 10, 10))])(nn.Identity())


def test_luma_is_studio_range():
    black, white = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    assert luma(black).item() == pytest.approx(16) and luma(white).item() == pytest.approx(235, abs=1e-3)


def test_psnr_clips_and_rounds_the_answer_and_caps_a_perfect_one():
    white = torch.ones(1, 3, 8, 8)
    assert psnr([(white, white)])(Adding(0.7)) == psnr([(white, white)])(nn.Identity()) == 100.0
    assert psnr([(white, white)])(Adding(-0.001)) == 100.0  # less than half a grey level


def test_psnr_leaves_the_border_out():
    x = torch.rand(1, 1, 10, 10, generator=GENERATOR).mul(255).round().div(255)
    wrong = x.clone()
    wrong[..., 0, :], wrong[..., :, -1] = 1 - x[..., 0, :], 1 - x[..., :, -1]
    assert psnr([(wrong, x)])(nn.Identity()) < 30
    assert psnr([(wrong, x)], border=1)(nn.Identity()) == 100.0


@pytest.mark.parametrize("score", [accuracy, psnr, ssim])
def test_no_data_is_told_in_one_line(score):
    message = rf"{score.__name__}: the held-out data are empty: give at least one batch"
    with pytest.raises(ValueError, match=message):
        score([])
    empty = [(torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8))]
    with pytest.raises(ValueError, match=message):
        score(empty)(nn.Identity())
    with pytest.raises(TypeError, match="generator, which ends after one pass"):
        score(batch for batch in empty)


def test_shapes_that_do_not_go_together_are_told_in_one_line():
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"shape \(4,\), the labels have \(4, 3\): give one class number"):
        accuracy([(x, x)])(nn.Identity())
    with pytest.raises(ValueError, match=r"the model gives shape \(3, 3, 12, 10\), the data have \(2, 3, 12, 10\)"):
        psnr([(PICTURES, PICTURES[:2])])(nn.Identity())
    with pytest.raises(ValueError, match="border=5 leaves nothing of pictures of 12 x 10"):
        psnr([(PICTURES, PICTURES)], border=5)(nn.Identity())
    with pytest.raises(ValueError, match="border=-1: give an integer"):
        psnr([(PICTURES, PICTURES)], border=-1)
