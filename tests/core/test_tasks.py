"""The embedded tasks and the same on one's own data: what is in them, what the checkpoints reach, bad input."""

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional as F

from lab.core import nets, store, tasks
from lab.core.data import images
from lab.core.data.batches import enlarged

WHOLE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts the data set
SHARED = Path(__file__).parents[3] / "shared" / "data"
ARTEFACTS = [
    "digits/resnet20.safetensors", "digits/mobilenet_v1.safetensors",
    *(f"photos/edsr_x{scale}.safetensors" for scale in (2, 3, 4)),
    *(f"fashion/{net}.safetensors" for net in tasks.FASHION_NETS),
]  # fmt: skip


class Bicubic(nn.Module):
    """The control of super-resolution: enlarges without having learned anything."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return enlarged(x, self.scale)


# -- artefacts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARTEFACTS)
def test_artefacts_are_those_that_were_made(name):
    path = store.artefact(name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"{digest}  {path.name}" in (path.parent / "SHA256SUMS").read_text().splitlines()
    assert digest in (path.parent / "README.md").read_text()
    assert (path.parent / "make.py").exists()


def test_artefacts_are_small():
    assert sum(store.artefact(name).stat().st_size for name in ARTEFACTS) < 6_000_000


def test_damaged_checkpoint_is_told_in_one_line(tmp_path, monkeypatch):
    whole = store.artefact(ARTEFACTS[0])
    weights = load_file(whole)
    weights["conv1.weight"] = weights["conv1.weight"][:8].clone()
    damaged = tmp_path / "resnet20.safetensors"
    monkeypatch.setattr(store, "artefact", lambda name: damaged)
    for content in (save(weights), whole.read_bytes()[:5000]):
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match=r"is not the lab's checkpoint .*: install the package again$") as caught:
            tasks.digits()
        assert "\n" not in str(caught.value)


# -- fashion ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fashion_is_the_first_images_of_each_part():
    task = tasks.fashion()
    assert (task.name, task.metric, task.unit) == ("fashion", "accuracy", "%")
    assert task.example.shape == (1, 1, 28, 28) and sum(len(y) for _, y in task.batches) == 10_000
    split = images.read(store.artefact("fashion/t10k-images-idx3-ubyte.xz").parent)
    assert split.x_test.shape == (2_000, 1, 28, 28) and split.y_test[:5].tolist() == [9, 2, 1, 1, 6]


@pytest.mark.slow
@pytest.mark.parametrize("net", tasks.FASHION_NETS)
def test_fashion_starts_from_trained_networks(net):
    task = tasks.fashion(net=net)
    stated = (store.artefact(f"fashion/{net}.safetensors").parent / "README.md").read_text()
    accuracy = next(line.split("|")[3].split()[0] for line in stated.splitlines() if f"`{net}.safetensors`" in line)
    assert task.measure(task.model) == pytest.approx(float(accuracy), abs=0.15)  # three pictures of rounding
    assert task.model.config == tasks.fashion_net(net).config
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.skipif(not WHOLE.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_is_the_beginning_of_the_whole():
    kept, whole = (images.read(path) for path in (store.artefact("fashion/SHA256SUMS").parent, WHOLE))
    assert len(whole.x) == 60_000 and len(whole.x_test) == 10_000
    assert torch.equal(kept.x, whole.x[:10_000]) and torch.equal(kept.y, whole.y[:10_000])
    assert torch.equal(kept.x_test, whole.x_test[:2_000]) and torch.equal(kept.y_test, whole.y_test[:2_000])
    assert tasks.fashion(nets.lenet(), folder=WHOLE).example.shape == (1, 1, 28, 28)


def test_another_network_of_fashion_is_one_line():
    with pytest.raises(ValueError, match="fashion: net='vgg19': give one of resnet20, mobilenet_v1, vgg16, or a model"):
        tasks.fashion(net="vgg19")


# -- digits -----------------------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all():
    x, y, x_test, y_test = tasks.digits_data()
    assert x.shape == (1297, 1, 8, 8) and x_test.shape == (500, 1, 8, 8) and x.dtype == torch.float32
    assert x.min() == -0.5 and x.max() == 0.5
    assert torch.equal(x_test, tasks.digits_data()[2])
    share = torch.bincount(y) / 1297 - torch.bincount(y_test) / 500
    assert share.abs().max() < 0.002  # stratified
    levels = ((x_test + 0.5) * 16).to(torch.uint8)
    assert hashlib.sha256(levels.numpy().tobytes() + y_test.numpy().astype("<i8").tobytes()).hexdigest()[:16] == SPLIT


SPLIT = "6cdbed418dec11ac"


def test_held_out_digits_are_not_learned_from():
    x, _, x_test, _ = tasks.digits_data()
    seen = {picture.numpy().tobytes() for picture in x}
    assert not any(picture.numpy().tobytes() in seen for picture in x_test)


def test_digits_start_from_a_trained_network():
    task = tasks.digits()
    assert (task.metric, task.unit, task.name) == ("accuracy", "%", "digits")
    assert task.model.config == {"net": "resnet_cifar", "depth": 20, "classes": 10, "channels": 1}
    assert 98.5 <= task.measure(task.model) <= 99.9
    assert task.measure(nets.build(task.model.config)) < 30  # the control: the same network, untrained
    task.check()


def test_digits_of_another_size_are_the_same_digits():
    x, y, x_test, _ = tasks.digits_data(32, 3)
    plain, labels, *_ = tasks.digits_data()
    assert x.shape == (1297, 3, 32, 32) and x_test.shape == (500, 3, 32, 32) and torch.equal(y, labels)
    assert torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2])
    assert x.min() >= -0.5 and x.max() <= 0.5
    assert torch.allclose(x[:, 0].mean((1, 2)), plain[:, 0].mean((1, 2)), atol=0.02)


def test_large_digits_start_from_a_trained_mobilenet():
    task = tasks.digits(size=32, channels=3)
    assert task.name == "digits 32 x 32" and task.example.shape == (1, 3, 32, 32)
    assert task.model.config == {"net": "mobilenet_v1", "width": 0.25, "classes": 10}
    assert task.measure(task.model) >= 98.5
    batch, labels = task.first_batch()
    assert batch.shape[1:] == (3, 32, 32) and batch.min() == -0.5 and len(labels) == len(batch)
    x = tasks.digits_data(32, 3)[0].flatten(1)
    assert not all((x == picture.flatten()).all(1).any() for picture in batch)  # most have moved


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 16}, "no trained network for size=16, channels=1: give a model"),
        ({"size": 0}, "digits: size=0: give an integer"),
        ({"channels": 1.5}, "digits: channels=1.5: give an integer"),
    ],
)
def test_digits_that_cannot_be_made_are_one_line(options, words):
    with pytest.raises(ValueError, match=words):
        tasks.digits(**options)


def test_digits_batches_hold_every_sample_once_a_pass():
    task = tasks.digits()
    first, second = (torch.cat([y for _, y in task.batches]) for _ in range(2))
    assert len(first) == 1297 and torch.equal(first.sort()[0], second.sort()[0])
    assert not torch.equal(first, second)
    assert {x.shape[1:] for x, _ in task.batches} == {(1, 8, 8)}


@pytest.mark.slow
@pytest.mark.parametrize("make", [tasks.digits, tasks.photos])
def test_making_and_scoring_a_task_draws_no_random_number(make):
    state = torch.get_rng_state()
    task = make()
    task.measure(task.model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_a_model_of_ones_own_needs_no_artefact(monkeypatch):
    monkeypatch.setattr(store, "artefact", lambda name: pytest.fail("the artefact was read"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert tasks.digits(net).model is net
    assert tasks.photos(2, net).model is net


# -- photos -----------------------------------------------------------------------------------------------------------


def test_photos_are_kept_apart_by_name():
    assert not set(tasks.PHOTOS_TRAIN) & set(tasks.PHOTOS_HELD_OUT)
    assert len(set(tasks.PHOTOS_TRAIN)) == len(tasks.PHOTOS_TRAIN)


@pytest.mark.slow
def test_photos_need_no_download():
    """In a process where pooch cannot be imported and no socket can be opened."""
    code = """
import socket, sys
sys.modules["pooch"] = None
def refuse(*_): raise OSError("no network here")
socket.socket.connect = refuse
from lab.core import tasks
from lab.core.data import photographs
pictures = [photographs.photograph(name) for name in tasks.PHOTOS_TRAIN + tasks.PHOTOS_HELD_OUT]
print(len(pictures), {p.shape[0] for p in pictures}, {str(p.dtype) for p in pictures})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "15 {3} {'torch.uint8'}"


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_trained_photos_network_beats_bicubic(scale):
    task = tasks.photos(scale)
    assert (task.metric, task.unit, task.loss) == ("psnr", "dB", F.l1_loss)
    trained, bicubic = task.measure(task.model), task.measure(Bicubic(scale))
    untrained = task.measure(nets.build(task.model.config))
    assert trained > bicubic + GAINS[scale] and untrained < bicubic - 5
    task.check()


GAINS = {2: 1.6, 3: 0.7, 4: 0.7}  # dB over bicubic; measured 1.80, 0.86, 0.83


@pytest.mark.slow
def test_photos_batches_are_aligned_patches():
    task = tasks.photos(4, nn.Identity(), patch=48, batch_size=3)
    x, y = next(iter(task.batches))
    assert x.shape == (3, 3, 12, 12) and y.shape == (3, 3, 48, 48) and task.example.shape == (1, 3, 12, 12)
    assert tasks.photos(3, nn.Identity()).example.shape == (1, 3, 32, 32)
    assert F.mse_loss(enlarged(x, 4), y) < 0.5 * F.mse_loss(enlarged(x.flip(0), 4), y)
    seen = len(task.batches) * 3 * 48 * 48
    total = sum(high.shape[1] * high.shape[2] for _, high in task.batches.pairs)
    assert 0.9 * total < seen <= total


def test_photos_of_ones_own_folders(tmp_path):
    for part, grey in (("train", 40), ("held_out", 200)):
        (tmp_path / part).mkdir()
        Image.new("RGB", (50, 41), (grey,) * 3).save(tmp_path / part / "a.png")
    task = tasks.photos(2, Bicubic(2), folder=tmp_path / "train", held_out=tmp_path / "held_out", patch=16)
    assert next(iter(task.batches))[1].unique().tolist() == pytest.approx([40 / 255])
    assert task.example.unique().tolist() == pytest.approx([200 / 255])
    assert task.measure(task.model) == 100.0
    with pytest.raises(ValueError, match=r"a\.png is 40 x 50, below 64 pixels: leave it out or lower patch"):
        tasks.photos(2, Bicubic(2), folder=tmp_path / "train")
    with pytest.raises(FileNotFoundError, match="none holds no pictures"):
        tasks.photos(2, Bicubic(2), held_out=tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 5}, "scale=5: give 2, 3 or 4"),
        ({"scale": 3, "patch": 64}, "patch=64: give a multiple of scale=3, 24 or more"),
        ({"patch": 8}, "patch=8: give a multiple of scale=2, 16 or more"),
        ({"batch_size": 0}, "batch_size=0: give an integer, 1 or more"),
    ],
)
def test_bad_photos_arguments_are_told_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.photos(**arguments)


@pytest.mark.skipif(not SHARED.exists(), reason="Set5 is not at hand")
@pytest.mark.parametrize(("scale", "expected"), [(2, 33.68), (3, 30.41), (4, 28.43)])
def test_bicubic_on_set5_is_that_of_the_papers(scale, expected):
    task = tasks.photos(scale, Bicubic(scale), held_out=SHARED / "sr" / "set5")
    assert task.measure(task.model) == pytest.approx(expected, abs=0.006)


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def npz(tmp_path) -> Path:
    """Two classes of noise, dark and bright, in colour."""
    random = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = (random.integers(0, 100, (60, 9, 8, 3)) + 150 * y[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "own.npz", x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:])
    return tmp_path / "own.npz"


def test_images_are_normalised_by_their_training_part(npz):
    task = tasks.images(npz, nn.Identity(), batch_size=16)
    x = torch.cat([x for x, _ in task.batches])
    assert x.shape == (50, 3, 9, 8) and task.name == "own.npz" and task.example.shape == (1, 3, 9, 8)
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-5)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([1] * 3, abs=1e-3)
    given = tasks.images(npz, nn.Identity(), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert given.example.min() >= -1 and given.example.max() <= 1
    assert torch.equal(given.example, tasks.images(npz, nn.Identity(), mean=[0.5] * 3, std=[0.5] * 3).example)


def test_images_score_is_that_of_the_held_out_part(npz):
    class Bright(nn.Module):
        def forward(self, x):
            bright = x.mean((1, 2, 3))
            return torch.stack([-bright, bright], 1)

    task = tasks.images(npz, Bright())
    assert task.measure(task.model) == 100.0
    assert task.measure(nn.Sequential(Bright(), Swap())) == 0.0


class Swap(nn.Module):
    def forward(self, x):
        return x.flip(1)


def test_augmentation_is_for_learning_only(npz):
    plain = tasks.images(npz, nn.Identity())
    moved = tasks.images(npz, nn.Identity(), augment=("pad-crop", "flip"))
    assert torch.equal(plain.example, moved.example)
    known = {picture.numpy().tobytes() for x, _ in plain.batches for picture in x}
    changed = [picture.numpy().tobytes() not in known for x, _ in moved.batches for picture in x]
    assert sum(changed) > 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"augment": ("rotate",)}, r"augment=\('rotate',\): give a tuple of pad-crop, flip, shift"),
        ({"augment": "flip"}, "augment='flip': give a tuple of"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std go together"),
        ({"mean": (0.5,), "std": (0.5,)}, "give 3 numbers each"),
        ({"mean": (0.5,) * 3, "std": (0.0,) * 3}, "std above 0"),
        ({"batch_size": 1}, "batch_size=1: give an integer, 2 or more"),
    ],
)
def test_bad_images_arguments_are_told_in_one_line(npz, arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.images(npz, nn.Identity(), **arguments)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="CIFAR-10 and its ResNet-20 are not at hand")
def test_published_resnet20_reaches_its_accuracy_on_cifar_by_path(tmp_path):
    records = b"".join(bytes([label]) + tile.tobytes() for label, tile in cifar_test_pictures())
    for name in images.CIFAR_TRAIN + images.CIFAR_TEST:
        (tmp_path / name).write_bytes(records)
    net = nets.resnet_cifar(20)
    net.load_state_dict(load_file(SHARED / "cifar10" / "weights" / "resnet20.safetensors"))
    task = tasks.images(tmp_path, net, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert task.measure(net) == pytest.approx(91.5, abs=0.11)


def cifar_test_pictures():
    """The label and the planes (3, 32, 32) of 1,000 test pictures, stored as a mosaic of 40 rows and 25 columns."""
    with zipfile.ZipFile(SHARED / "cifar10" / "cifar10_test1k.zip") as archive:
        mosaic, labels = (next(n for n in archive.namelist() if end in n) for end in (".webp", "labels"))
        pixels = np.asarray(Image.open(io.BytesIO(archive.read(mosaic))).convert("RGB"))
        tiles = pixels.reshape(40, 32, 25, 32, 3).transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)
        yield from zip(map(int, archive.read(labels).split()), tiles, strict=True)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="MNIST is not at hand")
def test_mnist_by_path():
    task = tasks.images(SHARED / "mnist" / "mnist.npz", nets.lenet(), mean=(0.1307,), std=(0.3081,))
    task.check()
    assert len(task.batches) == 469 and task.example.shape == (1, 1, 28, 28)
    assert len(task.batches.dataset) == 60_000 and task.measure(nn.Flatten()) < 30
