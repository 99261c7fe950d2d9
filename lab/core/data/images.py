"""Pictures of one's own, read by path: .npz, MNIST's IDX files, CIFAR-10's binary version, folders of pictures.

Pixels come as uint8 (N, C, H, W), labels as int64 (N,). No file is executed or unpickled.
"""

import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..distribution import needed
from ..errors import cut, first_line
from . import inflating

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
MOST_PIXELS = 2**27  # of a picture: a small file may stand for far more
DEFLATED = 1032  # bytes that a byte of a PNG file can stand for at most
IN_MEMORY = 2**30  # bytes: a folder whose pictures need more is read from disk batch by batch
GREY = ("1", "L", "I;16", "I;16B")  # Pillow's modes of one channel
CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_TEST = ("test_batch.bin",)
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue plane
CIFAR_PICKLED = "the python version of CIFAR-10, which is pickled and not read: take cifar-10-binary.tar.gz"
FORMS = (
    "a .npz with x_train, y_train, x_test, y_test; a folder of MNIST IDX files; the binary version of CIFAR-10; "
    "or a folder with train/<class>/ and test/<class>/"
)


class Split(NamedTuple):
    """Training and held-out pictures with their labels; x is a uint8 tensor or a `Files`."""

    x: Any
    y: torch.Tensor
    x_test: Any
    y_test: torch.Tensor


def read(path: str | Path, size: int | None = None) -> Split:
    """The pictures at `path`, in any form of `FORMS`; `size` is the side of the square for folders of pictures.

    Raises FileNotFoundError or ValueError, in one line, for what is missing, damaged or of another form.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give {FORMS}")
    try:
        return _checked(path, _read(path, size))
    except ValueError:  # in words of our own
        raise
    except inflating.DAMAGE as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}): fetch it again") from error


def _read(path: Path, size: int | None) -> Split:
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return _npz(path)
        if path.name.lower().endswith((".tar.gz", ".tgz", ".tar")):
            return _cifar_archive(path)
    elif (path / "train").is_dir():
        return _class_folders(path, size)
    elif _idx_file(path, "train-images") is not None:
        return _idx(path)
    elif (path / CIFAR_TRAIN[0]).exists():
        return _cifar({name: (path / name).read_bytes() for name in CIFAR_TRAIN + CIFAR_TEST if (path / name).exists()})
    elif (path / "cifar-10-batches-bin").is_dir():
        return _read(path / "cifar-10-batches-bin", size)
    elif (path / "data_batch_1").exists() or (path / "cifar-10-batches-py").is_dir():
        raise ValueError(f"{path} is {CIFAR_PICKLED}")
    raise ValueError(f"{path} is of no known form: give {FORMS}")


def _checked(path: Path, split: Split) -> Split:
    for name, x, y in (("training", split.x, split.y), ("held-out", split.x_test, split.y_test)):
        if len(x) == 0 or len(x) != len(y):
            raise ValueError(f"{path} holds {len(x)} {name} pictures and {len(y)} labels: give one label per picture")
        if y.ndim != 1 or int(y.min()) < 0:
            raise ValueError(f"{path}: the {name} labels must be class numbers, 0 or more, one a picture")
    channels = [x.shape[1] if isinstance(x, torch.Tensor) else x.channels for x in (split.x, split.x_test)]
    if channels[0] != channels[1]:
        raise ValueError(
            f"{path}: training pictures have {channels[0]} channels, held-out ones {channels[1]}: give both the same"
        )
    return split


# -- archives ---------------------------------------------------------------------------------------------------------


def _npz(path: Path) -> Split:
    try:
        inflating.validate_small(path)
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            names = ("x_train", "y_train", "x_test", "y_test")
            missing = [name for name in names if name not in file]
            if missing:
                raise ValueError(f"it has no {', '.join(missing)}; it has {cut(', '.join(file), 80)}")
            x, y, x_test, y_test = (file[name] for name in names)
            return Split(_pixels("x_train", x), _labels(y), _pixels("x_test", x_test), _labels(y_test))
    except Exception as error:  # zipfile and numpy raise a dozen kinds for a damaged archive
        raise ValueError(
            f"{path} cannot be used ({first_line(error)}): give x_train, y_train, x_test, y_test"
        ) from error


def _pixels(name: str, x: np.ndarray) -> torch.Tensor:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) -> (N, C, H, W)."""
    if x.dtype != np.uint8:
        raise ValueError(f"{name} is {x.dtype}, not uint8: store pixels as 0..255")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"{name} has shape {x.shape}: give (N, H, W) or (N, H, W, C) with 1 or 3 channels")
    return torch.from_numpy(np.require(x, requirements=["C", "W"]))


def _labels(y: np.ndarray) -> torch.Tensor:
    if y.dtype.kind not in "iu":
        raise ValueError(f"labels are {y.dtype}, not integers: store class numbers")
    return torch.from_numpy(y.astype(np.int64)).squeeze(-1) if y.ndim == 2 else torch.from_numpy(y.astype(np.int64))


def _idx(folder: Path) -> Split:
    x, y, x_test, y_test = (
        _idx_array(folder, name) for name in ("train-images", "train-labels", "t10k-images", "t10k-labels")
    )
    return Split(_pixels("train-images", x), _labels(y), _pixels("t10k-images", x_test), _labels(y_test))


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next(iter(sorted(folder.glob(f"{stem}*ubyte*"))), None)


def _idx_array(folder: Path, stem: str) -> np.ndarray:
    path = _idx_file(folder, stem)
    if path is None:
        raise ValueError(f"{folder} has no {stem}-idx*-ubyte(.gz, .xz): all four files of MNIST are needed")
    with inflating.InflatedFile(path) as stream:
        head = stream.read(4)  # magic number: 0, 0, 8 for unsigned bytes, the number of axes
        rank = head[3] if head[:3] == b"\x00\x00\x08" and len(head) == 4 else 0
        axes = stream.read(4 * rank)
        shape = tuple(int(n) for n in np.frombuffer(axes, ">u4")) if len(axes) == 4 * rank else ()
        data = stream.read(math.prod(shape) + 1) if shape else b""
    if not shape or len(data) != math.prod(shape):
        raise ValueError(f"{path} is not a complete IDX file of unsigned bytes: fetch it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _cifar_archive(path: Path) -> Split:
    members: dict[str, bytes] = {}
    for name, file in inflating.files(path):
        if Path(name).name == "data_batch_1":
            raise ValueError(f"{path} is {CIFAR_PICKLED}")
        if Path(name).name in CIFAR_TRAIN + CIFAR_TEST:
            members[Path(name).name] = file.read()
    return _cifar(members)


def _cifar(files: dict[str, bytes]) -> Split:
    missing = [name for name in CIFAR_TRAIN + CIFAR_TEST if name not in files]
    if missing:
        raise ValueError(f"the binary version of CIFAR-10 is not whole, {', '.join(missing)} missing: fetch it again")
    return Split(*_cifar_records(files, CIFAR_TRAIN), *_cifar_records(files, CIFAR_TEST))


def _cifar_records(files: dict[str, bytes], names: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    for name in names:
        if not files[name] or len(files[name]) % CIFAR_RECORD:
            raise ValueError(f"{name} has {len(files[name]):,} bytes, no multiple of {CIFAR_RECORD}: fetch it again")
    records = np.frombuffer(b"".join(files[name] for name in names), np.uint8).reshape(-1, CIFAR_RECORD)
    return _pixels("pixels", records[:, 1:].reshape(-1, 3, 32, 32)), _labels(records[:, 0])


# -- folders of pictures -----------------------------------------------------------------------------------------------


class Files:
    """Pictures on disk: `files[index]` reads a batch, a tensor of indices -> uint8 (N, C, H, W).

    With `size`, a picture of another size is scaled so that its shorter side is size / 0.875 (256 for 224, as usual
    for ImageNet), and its middle is taken.
    """

    def __init__(self, paths: list[Path], size: int | None, mode: str | None = None) -> None:
        self.paths, self.mode = paths, mode or ("L" if all(map(_is_grey, paths)) else "RGB")
        self.channels = 1 if self.mode == "L" else 3
        first = load_image(paths[0], self.mode)
        self.size, self.square = (size, size) if size else tuple(first.shape[1:]), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._load(self.paths[i]) for i in index.tolist()])

    def _load(self, path: Path) -> torch.Tensor:
        x = load_image(path, self.mode, self.square)
        if tuple(x.shape[1:]) != self.size:
            raise ValueError(f"{path} is {x.shape[1]} x {x.shape[2]}, the first picture {self.size}: give size=")
        return x

    def loaded(self) -> Any:
        """All pictures as one tensor where they fit into `IN_MEMORY` bytes, else the files themselves."""
        fits = len(self) * self.size[0] * self.size[1] * self.channels <= IN_MEMORY
        return self[torch.arange(len(self))] if fits else self


def is_image(path: Path) -> bool:
    """Whether a file is a picture by its name; names that begin with a dot are systems' own."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def load_image(path: Path, mode: str | None = None, size: int | None = None) -> torch.Tensor:
    """A picture file as uint8 (C, H, W): "L" has one channel, "RGB" three; without `mode`, as the file has it.

    Turned as its EXIF mark says, so that it is upright. ValueError for colours where grey is asked for.
    """
    with needed():
        from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            validate_pixels(file)
            if mode == "L" and file.mode not in GREY:
                raise ValueError("it has colours and those before it are grey")
            file.load()
            ImageOps.exif_transpose(file, in_place=True)
            image = converted(file, mode or ("L" if file.mode in GREY else "RGB"))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError ... for damaged files
        raise ValueError(
            f"{path} is not a readable picture ({first_line(error)}): remove it or fetch it again"
        ) from error
    if size and image.size != (size, size):
        ratio = size / 0.875 / min(image.size)
        width, height = (max(size, round(side * ratio)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        scaled = image.resize((width, height), Image.Resampling.BILINEAR)
        image = scaled.crop((left, top, left + size, top + size))
    return pixels(image)


def pixels(image: Any) -> torch.Tensor:
    """A Pillow image as uint8 (C, H, W), channel by channel: a large picture is held as seldom as can be."""
    x = torch.empty(len(image.getbands()), image.height, image.width, dtype=torch.uint8)
    for k, channel in enumerate(x):
        channel.copy_(torch.from_numpy(np.array(image.getchannel(k))))
    return x


def validate_pixels(file: Any) -> None:
    """ValueError for an opened Pillow image of more pixels than are read; none of them has been."""
    if file.width * file.height > MOST_PIXELS:
        raise ValueError(f"{file.width} x {file.height} pixels are more than {MOST_PIXELS:,}")
    if file.format == "PNG" and file.width * file.height > 8 * DEFLATED * _length(file.fp):  # of a bit at least
        raise ValueError(f"{file.width} x {file.height} pixels are more than {_length(file.fp):,} bytes can hold")


def _length(file: Any) -> int:
    """How many bytes an open file has."""
    at = file.tell()
    length = file.seek(0, io.SEEK_END)
    file.seek(at)
    return length


def converted(image: Any, mode: str) -> Any:
    """A Pillow image in "L" or "RGB"; 16 bits are rounded to 8, where Pillow itself would cut off all above 255."""
    with needed():
        from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}, whose white is not known: save it with 8 bits")
    return image if image.mode == mode else image.convert(mode)


def jpeg_size(image: torch.Tensor, quality: int = 85) -> int:
    """How many bytes a picture, uint8 (3, H, W), is as a JPEG file, its header and all."""
    with needed():
        from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=quality)
    return file.tell()


def _is_grey(path: Path) -> bool:
    """Whether the file says so; one that cannot be read is reported when its pixels are read."""
    with needed():
        from PIL import Image

    try:
        with Image.open(path) as file:
            return file.mode in GREY
    except Exception:  # as many kinds as `load_image` meets
        return True


def image_files(folder: str | Path) -> list[Path]:
    """The picture files of a folder, sorted by name; a one-line error where there are none."""
    folder = Path(folder).expanduser()
    paths = sorted(filter(is_image, folder.glob("*"))) if folder.is_dir() else []
    if not paths:
        raise FileNotFoundError(f"{folder} holds no pictures: give a folder with {', '.join(SUFFIXES)} files")
    return paths


def _class_folders(path: Path, size: int | None) -> Split:
    held_out = next((path / name for name in ("test", "val", "valid") if (path / name).is_dir()), None)
    if held_out is None:
        raise ValueError(f"{path} has train/ but no test/ or val/: keep some pictures apart, class by class")
    classes = _classes(path / "train")
    strange = sorted(set(_classes(held_out)) - set(classes))
    if strange:
        raise ValueError(f"{held_out} has classes that train/ lacks: {cut(', '.join(strange))}")
    x, y = _labelled(path / "train", classes)
    if empty := [name for label, name in enumerate(classes) if not (y == label).any()]:
        raise ValueError(f"{path / 'train'} has no picture of {', '.join(empty)}: remove such folders or fill them")
    x_test, y_test = _labelled(held_out, classes)
    train = Files(x, size)
    return Split(train.loaded(), y, Files(x_test, size or None, train.mode).loaded(), y_test)


def _classes(folder: Path) -> list[str]:
    """The names of the class folders; those that begin with a dot or two underscores are systems' own."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _labelled(folder: Path, classes: list[str]) -> tuple[list[Path], torch.Tensor]:
    labelled = list(_walk(folder, classes))
    if not labelled:
        raise ValueError(f"{folder} holds no pictures in class folders: give {FORMS}")
    taken = {path for path, _ in labelled}
    if left := [path for path in _files(folder) if path not in taken]:
        shown = ", ".join(str(p.relative_to(folder)) for p in sorted(left)[:3])
        count = f"{len(left)} file{'s' * (len(left) > 1)}"
        more = " ..." if len(left) > 3 else ""
        warnings.warn(f"{folder}: {count} left out, no pictures in a class's folder: {shown}{more}", stacklevel=6)
    return [path for path, _ in labelled], torch.tensor([label for _, label in labelled])


def _walk(folder: Path, classes: list[str]) -> Iterator[tuple[Path, int]]:
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            for path in sorted(filter(is_image, _files(folder / name))):
                yield path, label


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder and the folders in it, without systems' own."""
    for path in folder.rglob("*"):
        if not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts) and path.is_file():
            yield path
