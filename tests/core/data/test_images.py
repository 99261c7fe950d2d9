"""Pictures by path: each archive written here in its own format and read back; damage is told in one line."""

import gzip
import io
import lzma
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lab.core.data import images, inflating

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.integers(0, 256, (12, 6, 5), np.uint8), RANDOM.integers(0, 10, 12).astype(np.uint8)
X_TEST, Y_TEST = RANDOM.integers(0, 256, (4, 6, 5), np.uint8), RANDOM.integers(0, 10, 4).astype(np.uint8)
CIFAR = {
    name: (RANDOM.integers(0, 10, 3).astype(np.uint8), RANDOM.integers(0, 256, (3, 3, 32, 32), np.uint8))
    for name in images.CIFAR_TRAIN + images.CIFAR_TEST
}


def is_grey_set(split):
    assert split.x.dtype == split.x_test.dtype == torch.uint8
    assert torch.equal(split.x, torch.from_numpy(X)[:, None])
    assert torch.equal(split.x_test, torch.from_numpy(X_TEST)[:, None])
    assert split.y.tolist() == Y.tolist() and split.y_test.tolist() == Y_TEST.tolist()


def idx(array) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, pack=lambda data: data, suffix=""):
    for stem, array in (("train", X), ("t10k", X_TEST)):
        (folder / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(array)))
    for stem, array in (("train", Y), ("t10k", Y_TEST)):
        (folder / f"{stem}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(array)))
    return folder


def cifar_bytes(name) -> bytes:
    return b"".join(bytes([label]) + picture.tobytes() for label, picture in zip(*CIFAR[name], strict=True))


def write_cifar(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in CIFAR:
        (folder / name).write_bytes(cifar_bytes(name))
    return folder


def is_cifar_set(split):
    pictures = np.concatenate([CIFAR[name][1] for name in images.CIFAR_TRAIN])
    assert np.array_equal(split.x.numpy(), pictures)
    assert split.y.tolist() == np.concatenate([CIFAR[name][0] for name in images.CIFAR_TRAIN]).tolist()
    assert np.array_equal(split.x_test.numpy(), CIFAR["test_batch.bin"][1])


def write_classes(folder, parts=("train", "test"), size=(5, 6)):
    """Two classes, a picture's grey level is 100 x class + its number."""
    for part in parts:
        for label, name in enumerate(("ant", "bee")):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(3):
                Image.new("RGB", size, (100 * label + number,) * 3).save(folder / part / name / f"{number}.png")
    return folder


# -- archives ---------------------------------------------------------------------------------------------------------


def test_npz(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X_TEST, y_test=Y_TEST)
    is_grey_set(images.read(tmp_path / "a.npz"))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_npz_of_colour(tmp_path, layout):
    colour = RANDOM.integers(0, 256, (4, 3, 8, 7), np.uint8)
    stored = colour if layout == "NCHW" else colour.transpose(0, 2, 3, 1)
    np.savez(tmp_path / "a.npz", x_train=stored, y_train=Y_TEST[:, None], x_test=stored, y_test=Y_TEST)
    split = images.read(tmp_path / "a.npz")
    assert np.array_equal(split.x.numpy(), colour) and split.y.tolist() == Y_TEST.tolist()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": X.astype(np.float32)}, "x_train is float32, not uint8"),
        ({"y_test": Y_TEST.astype(float)}, "labels are float64, not integers"),
        ({"x_test": X_TEST[:, 0]}, r"x_test has shape \(4, 5\)"),
        ({"y_train": Y[:5]}, "12 training pictures and 5 labels"),
        ({"x_test": X_TEST[:0], "y_test": Y_TEST[:0]}, "0 held-out pictures and 0 labels"),
        ({"y_train": Y.astype(int) - 20}, "labels must be class numbers, 0 or more"),
        ({"x_train": np.array([{}], dtype=object)}, "cannot be used .*allow_pickle"),
    ],
)
def test_npz_of_another_kind_is_told_in_one_line(tmp_path, changed, message):
    arrays = {"x_train": X, "y_train": Y, "x_test": X_TEST, "y_test": Y_TEST} | changed
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        images.read(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


def test_npz_that_lacks_an_array_or_is_torn(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y)
    with pytest.raises(ValueError, match="it has no x_test, y_test; it has x_train, y_train"):
        images.read(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.npz cannot be used"):
        images.read(tmp_path / "a.npz")


@pytest.mark.parametrize(("pack", "suffix"), [(lambda data: data, ""), (gzip.compress, ".gz"), (lzma.compress, ".xz")])
def test_idx(tmp_path, pack, suffix):
    is_grey_set(images.read(write_idx(tmp_path, pack, suffix)))


def test_damaged_idx_is_told_in_one_line(tmp_path):
    path = write_idx(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is not a complete IDX file"):
        images.read(tmp_path)
    path.write_bytes(gzip.compress(idx(X))[:-20])
    with pytest.raises(ValueError, match="cannot be read"):
        images.read(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    path.write_bytes(idx(X))
    with pytest.raises(ValueError, match="has no t10k-labels-idx"):
        images.read(tmp_path)


def test_cifar_folders_and_archive(tmp_path):
    folder = write_cifar(tmp_path / "cifar-10-batches-bin")
    is_cifar_set(images.read(folder))
    is_cifar_set(images.read(tmp_path))
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-bin")
    is_cifar_set(images.read(tmp_path / "cifar-10-binary.tar.gz"))


def test_pickled_cifar_is_refused_and_the_binary_version_named(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    for path in (tmp_path, tmp_path / "cifar-10-batches-py", tmp_path / "cifar-10-python.tar.gz"):
        with pytest.raises(ValueError, match=r"pickled and not read: take cifar-10-binary\.tar\.gz"):
            images.read(path)


def test_damaged_cifar_is_told_in_one_line(tmp_path):
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(b"12345")
    with pytest.raises(ValueError, match=r"data_batch_3\.bin has 5 bytes, no multiple of 3073"):
        images.read(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(ValueError, match=r"not whole, test_batch\.bin missing"):
        images.read(tmp_path)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        archive.add(tmp_path, "x")
    (tmp_path / "torn.tar.gz").write_bytes(whole.getvalue()[:-400])
    with pytest.raises(ValueError, match=r"torn\.tar\.gz cannot be read"):
        images.read(tmp_path / "torn.tar.gz")


def test_unknown_forms_are_told_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: give a \.npz"):
        images.read(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match=r"is of no known form: give a \.npz"):
            images.read(path)


# -- folders of pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_class_folders(tmp_path, held_out):
    split = images.read(write_classes(tmp_path, ("train", held_out)))
    assert split.x.shape == (6, 3, 6, 5) and split.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert split.x[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert torch.equal(split.x_test, split.x) and torch.equal(split.y_test, split.y)


def test_folders_that_do_not_fit_into_memory_are_read_batch_by_batch(tmp_path, monkeypatch):
    whole = images.read(write_classes(tmp_path))
    monkeypatch.setattr(images, "IN_MEMORY", 10)
    split = images.read(tmp_path)
    assert isinstance(split.x, images.Files)
    assert torch.equal(split.x[torch.tensor([4, 0])], whole.x[[4, 0]])


def test_grey_pictures_have_one_channel(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part / "one").mkdir(parents=True)
        Image.new("L", (4, 4), 9).save(tmp_path / part / "one" / "a.png")
    split = images.read(tmp_path)
    assert split.x.shape == split.x_test.shape == (1, 1, 4, 4)


def test_size_brings_pictures_to_a_square(tmp_path):
    write_classes(tmp_path, size=(64, 32))
    assert images.read(tmp_path, size=28).x.shape == (6, 3, 28, 28)
    middle = Image.new("L", (64, 32), 0)
    middle.paste(255, (18, 2, 46, 30))  # shorter side 32 = 28 / 0.875: nothing is scaled, the middle is taken
    middle.save(tmp_path / "a.png")
    assert (images.load_image(tmp_path / "a.png", "L", 28) == 255).all()
    Image.new("L", (28, 28), 7).save(tmp_path / "b.png")
    assert torch.equal(images.load_image(tmp_path / "b.png", "L", 28), torch.full((1, 28, 28), 7, dtype=torch.uint8))


def test_pictures_of_unlike_sizes_ask_for_size(tmp_path):
    write_classes(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "bee" / "2.png")
    with pytest.raises(ValueError, match=r"bee.2\.png is 9 x 9, the first picture \(6, 5\): give size="):
        images.read(tmp_path)
    assert images.read(tmp_path, size=8).x.shape == (6, 3, 8, 8)


def test_broken_class_folders_are_told_in_one_line(tmp_path):
    write_classes(tmp_path, ("train",))
    with pytest.raises(ValueError, match="has train/ but no test/ or val/"):
        images.read(tmp_path)
    (tmp_path / "test" / "cow").mkdir(parents=True)
    with pytest.raises(ValueError, match="has classes that train/ lacks: cow"):
        images.read(tmp_path)
    (tmp_path / "test" / "cow").rmdir()
    with pytest.raises(ValueError, match="holds no pictures in class folders"):
        images.read(tmp_path)
    write_classes(tmp_path)
    (tmp_path / "train" / "ant" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1\.png is not a readable picture"):
        images.read(tmp_path)


def test_sixteen_bits_are_rounded_to_eight_and_not_cut_off(tmp_path):
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.fromarray(deep.astype(">u2")).save(tmp_path / "b.tif")
    for name in ("a.png", "b.tif"):
        assert images.load_image(tmp_path / name).tolist() == [[[0, 1, 128, 255]]]
        assert images.load_image(tmp_path / name, "RGB")[2].tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_whose_white_is_unknown_are_refused(tmp_path, kind):
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"whose white is not known: save it with 8 bits"):
        images.load_image(tmp_path / "a.tif")


def test_a_grey_picture_that_comes_first_does_not_make_the_others_grey(tmp_path):
    write_classes(tmp_path)
    Image.new("RGB", (5, 6), (9, 0, 0)).save(tmp_path / "train" / "ant" / "1.png")
    split = images.read(tmp_path)
    Image.new("L", (5, 6), 0).save(tmp_path / "train" / "ant" / "0.png")
    assert torch.equal(images.read(tmp_path).x[1:], split.x[1:])


def test_colours_are_not_lost_where_all_that_is_learned_is_grey(tmp_path):
    for part, mode in (("train", "L"), ("test", "RGB")):
        (tmp_path / part / "one").mkdir(parents=True)
        Image.new(mode, (4, 4), 9 if mode == "L" else (9, 0, 0)).save(tmp_path / part / "one" / "a.png")
    told(tmp_path, "test.one.a.png is not a readable picture .it has colours and those before it are grey")


def test_what_systems_leave_in_folders_is_no_picture_and_no_class(tmp_path):
    whole = images.read(write_classes(tmp_path))
    for name in (".ipynb_checkpoints/0.png", "ant/.ipynb_checkpoints/0.png", "ant/._0.png", "__MACOSX/0.png"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (5, 6)).save(tmp_path / "train" / name)
    split = images.read(tmp_path)
    assert torch.equal(split.x, whole.x) and torch.equal(split.y, whole.y)
    assert not any(path.name.startswith(".") for path in images.image_files(tmp_path / "train" / "ant"))


def test_no_picture_is_left_out_in_silence(tmp_path):
    write_classes(tmp_path)
    Image.new("RGB", (5, 6)).save(tmp_path / "train" / "ant" / "9.GIF")
    (tmp_path / "train" / "ant" / "photo.heic").write_bytes(b"x")
    Image.new("RGB", (5, 6)).save(tmp_path / "train" / "loose.png")
    with pytest.warns(UserWarning, match=r"train: 2 files left out, no pictures in a class's folder: ant.photo"):
        assert images.read(tmp_path).y.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_class_without_pictures_would_move_the_others_and_is_told(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "train" / "aaa").mkdir()
    told(tmp_path, "has no picture of aaa: remove such folders or fill them")


def test_npz_whose_parts_have_unlike_channels(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=np.stack([X_TEST] * 3, 1), y_test=Y_TEST)
    (tmp_path / "a.npz").rename(tmp_path / "a.NPZ")
    told(tmp_path / "a.NPZ", "training pictures have 1 channels, held-out ones 3")


def test_picture_files_are_sorted_and_must_exist(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in images.image_files(tmp_path)] == ["a.JPG", "b.png"]
    for folder in (tmp_path / "none", Path(tmp_path / "notes.txt")):
        with pytest.raises(FileNotFoundError, match="holds no pictures: give a folder"):
            images.image_files(folder)


# -- what would fill the memory ----------------------------------------------------------------------------------------


def told(path, words):
    with pytest.raises(ValueError, match=words) as caught:
        images.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_nothing_is_inflated_beyond_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(inflating, "LEAST", 2**16)
    path = write_idx(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, 1000, 100, 100) + bytes(10**7)))
    told(tmp_path, r"train-images-idx3-ubyte inflates to more than [\d,]+ bytes: .*made to fill the memory")
    path.write_bytes(gzip.compress(idx(X) + bytes(10**7)))  # it goes on after what its header says
    told(tmp_path, "is not a complete IDX file")
    path.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3))
    told(tmp_path, "is not a complete IDX file")
    np.savez_compressed(tmp_path / "a.npz", x_train=np.zeros((1000, 100, 100), np.uint8), y_train=Y, x_test=X, y_test=Y)
    told(tmp_path / "a.npz", r"a\.npz inflates to [\d,]+ bytes")
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "other.bin").write_bytes(bytes(10**7))
    for kind in ("gz", "bz2", "xz"):
        with tarfile.open(tmp_path / f"a.tar.{kind}", f"w:{kind}") as archive:
            archive.add(tmp_path / "cifar", "x")
        (tmp_path / f"a.tar.{kind}").rename(tmp_path / f"{kind}.tar")
        told(tmp_path / f"{kind}.tar", r"inflates to more than [\d,]+ bytes")


def test_honest_files_of_one_value_are_read(tmp_path):
    np.savez_compressed(
        tmp_path / "a.npz", x_train=np.zeros((5000, 28, 28), np.uint8), y_train=np.zeros(5000, int), x_test=X, y_test=Y
    )
    assert images.read(tmp_path / "a.npz").x.shape == (5000, 1, 28, 28)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"rubbish" * 200,
        gzip.compress(b"rubbish" * 200, mtime=0),
        b"\x1f\x8b\x08rubbish",
        b"\xfd7zXZ\x00rubbish",
        b"BZhrubbish",
    ],
)
def test_a_broken_archive_is_one_line(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    told(tmp_path / "a.tar", r"a\.tar cannot be read|is not whole")


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    write_cifar(tmp_path / "c")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in CIFAR:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "c" / name)
            archive.addfile(member)
    told(tmp_path / "a.tar", "is not whole, data_batch_1.bin")


@pytest.mark.parametrize("mark", range(1, 9))
def test_pictures_are_upright(tmp_path, mark):
    from tests.core.data.test_faces import turned

    (tmp_path / "p.jpg").write_bytes(turned(mark))
    x = images.load_image(tmp_path / "p.jpg")
    assert x.shape == (3, 30, 40) and x[:, 5:15, 4:12].float().mean() > 240 > 50 > x[:, 20:, 20:].float().mean()


def test_a_file_of_more_pixels_than_its_bytes_can_hold_is_refused_unread(tmp_path):
    Image.new("1", (4096, 4096)).save(tmp_path / "blank.png")  # as small as such a picture can be
    assert images.load_image(tmp_path / "blank.png").shape == (1, 4096, 4096)
    whole = (tmp_path / "blank.png").read_bytes()
    header = b"IHDR" + struct.pack(">2I", 9000, 9000) + whole[24:29]
    (tmp_path / "blank.png").write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    with pytest.raises(ValueError, match=rf"9000 x 9000 pixels are more than {len(whole):,} bytes can hold"):
        images.load_image(tmp_path / "blank.png")


def test_a_small_file_of_very_many_pixels_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 100)
    Image.new("L", (101, 1)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png is not a readable picture \(101 x 1 pixels are more than 100\)"):
        images.load_image(tmp_path / "wide.png")
    write_classes(tmp_path / "set", size=(11, 10))
    with pytest.raises(ValueError, match="11 x 10 pixels are more than 100"):
        images.read(tmp_path / "set")
