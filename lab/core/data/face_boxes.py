"""Pictures with face boxes of one's own, by path: WIDER FACE, Pascal VOC, or an archive of street scenes.

A picture that cannot be read is skipped, counted and named. Pictures are made smaller as they are read.
"""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np
import torch

from ..distribution import needed
from ..errors import first_line, shown
from . import inflating
from .faces import Faces, FaceTask
from .images import SUFFIXES, converted, is_image, pixels, validate_pixels

FORMS = (
    "a WIDER FACE folder (wider_face_split/ beside WIDER_train/), a Pascal VOC folder (Annotations/, JPEGImages/), "
    "or a zip archive with annotations.json and images/"
)
VOC_NAMES = ("face", "head", "with_mask", "without_mask", "mask_weared_incorrect")
HOLD_OUT = 4  # every so many pictures are held out where the data set itself does not say which


@dataclass(frozen=True)
class ImageSource:
    """How a picture's bytes are read, and the (width, height) on which its boxes were drawn, where that is known."""

    read: Callable[[], bytes]
    size: tuple[int, int] | None = None

    def __call__(self) -> bytes:
        return self.read()


Record = tuple[str, ImageSource, np.ndarray]  # name, picture, boxes (n, 4)


def read(path: str | Path, longest: int = 256, limit: int | None = None) -> FaceTask:
    """The faces at `path`, in any of `FORMS`; the longer side of a picture becomes `longest` px at most.

    `limit` reads only so many pictures of each part. WIDER FACE holds its part val out, Pascal VOC what
    ImageSets/Main/ names test or val; elsewhere every fourth picture is held out.
    """
    path = Path(path).expanduser()
    if not isinstance(longest, int) or longest < 16:
        raise ValueError(f"faces: longest={longest!r}: give an integer number of pixels, 16 or more")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"faces: limit={limit!r}: give an integer number of pictures, 1 or more, or None for all")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give {FORMS}")
    if (path / "wider_face_split").is_dir():
        parts = [list(wider_face(path, part)) for part in ("train", "val")]
    elif (path / "Annotations").is_dir():
        parts = _parted(path, list(pascal_voc(path)))
    elif path.is_file() and zipfile.is_zipfile(path):
        parts = _alternating(list(street_scenes(path)))
    else:
        raise ValueError(f"{path} is of no known form: give {FORMS}")
    learn, held_out = (
        _faces(f"{path.name}, {role}", part[:limit], longest)
        for role, part in zip(("learn", "held out"), parts, strict=True)
    )
    return FaceTask(learn=learn, held_out=held_out, name=path.name)


def wider_face(folder: str | Path, part: str = "train") -> Iterator[Record]:
    """The records of WIDER FACE (Yang et al., 2016): x y w h and six marks a line; invalid boxes are left out."""
    folder = Path(folder)
    listing = folder / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt"
    if not listing.exists():
        raise FileNotFoundError(f"{listing} is missing: fetch WIDER FACE's annotations again")
    lines, at = [line.strip() for line in _text(listing).splitlines()], 0
    while at < len(lines):
        name, at = lines[at], at + 1
        if not name:
            continue
        try:
            count = int(lines[at])
            rows = [[float(value) for value in lines[at + 1 + k].split()] for k in range(count)]
            if count < 0 or min(map(len, rows), default=4) < 4:
                raise ValueError("no boxes")
            marks = np.array(rows, float).reshape(count, len(rows[0]) if rows else 10)
            boxes = np.concatenate([marks[:, :2], marks[:, :2] + marks[:, 2:4]], 1)
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{listing} line {at + 1}: {shown(name)} is not followed by its boxes: fetch it again"
            ) from error
        at += 1 + count
        if not count and at < len(lines) and _are_numbers(lines[at]):
            at += 1  # a picture without faces: as a rule a line of zeros follows
        valid = (marks[:, 2:4] >= 1).all(1)
        if marks.shape[1] > 7:
            valid &= marks[:, 7] == 0
        path = _inside_of(folder / f"WIDER_{part}" / "images", name, listing)
        yield name, ImageSource(partial(_bytes, path)), boxes[valid]


def pascal_voc(folder: str | Path, names: Sequence[str] = VOC_NAMES) -> Iterator[Record]:
    """The records of a folder in Pascal VOC's form, objects of these names only, however they are spelled; its pixels
    are counted from 1.

    A picture is sought in JPEGImages by its file name, ignoring case, then without its ending.
    """
    folder, wanted = Path(folder), set(map(_spelled, names))
    files = [path for path in (folder / "Annotations").glob("*") if path.suffix.lower() == ".xml"]
    files = sorted(path for path in files if not path.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{folder / 'Annotations'} holds no .xml file: give a Pascal VOC folder")
    images, seen = _ImageFolder(folder / "JPEGImages"), dict[Path, Path]()
    for file in files:
        try:
            root = ElementTree.fromstring(_bytes(file), ElementTree.XMLParser(target=_WithoutEntities()))
            if root.tag != "annotation":
                raise ValueError(f"its root is {root.tag[:60]!r}")
            faces = (face for face in root.iter("object") if _spelled(face.findtext("name") or "") in wanted)
            boxes = [_voc_box(face) for face in faces]
            width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
        except (ElementTree.ParseError, TypeError, ValueError, LookupError, OverflowError) as error:
            raise ValueError(f"{file} is no annotation ({first_line(error)}): correct it or remove it") from error
        path = images.path((root.findtext("filename") or "").strip() or f"{file.stem}.jpg", file)
        if (first := seen.setdefault(path, file)) != file:
            raise ValueError(f"{first} and {file.name} both name {path.name} as their picture: correct one's filename")
        size = (width, height) if min(width, height) > 0 else None
        yield file.stem, ImageSource(partial(_bytes, path), size), np.array(boxes, float).reshape(-1, 4)


def street_scenes(path: str | Path) -> Iterator[Record]:
    """The records of a zip archive: annotations.json has {file: {boxes: [[left, top, right, bottom, class], ...]}}."""
    try:
        content = inflating.member(path, "annotations.json")
        inflating.validate_values(path, content)
        tree = json.loads(content)
        boxes = {name: np.array([box[:4] for box in tree[name]["boxes"]], float).reshape(-1, 4) for name in tree}
    except (LookupError, TypeError, *inflating.DAMAGE) as error:
        raise ValueError(f"{path} has no annotations.json with boxes ({first_line(error)}): give {FORMS}") from error
    for name in sorted(boxes):
        yield name, ImageSource(partial(inflating.member, path, f"images/{name}")), boxes[name]


# -- parts -------------------------------------------------------------------------------------------------------------


class _WithoutEntities(ElementTree.TreeBuilder):
    """An annotation declares no entities, which may stand for a hundred times the file."""

    def doctype(self, *_: object) -> None:
        raise ValueError("it declares a document type")


def _voc_box(element: ElementTree.Element) -> list[float]:
    sides = ("xmin", "ymin", "xmax", "ymax")
    left, top, right, bottom = (float(element.findtext(f"bndbox/{side}", "none")) for side in sides)
    return [left - 1, top - 1, right, bottom]


def _spelled(name: str) -> str:
    """A name without what people spell differently: ' Face' is 'face', 'With Mask' is 'with_mask'."""
    return "_".join(name.lower().replace("-", " ").replace("_", " ").split())


def _are_numbers(line: str) -> bool:
    try:
        return len([float(value) for value in line.split()]) >= 4
    except ValueError:
        return False


def _text(path: Path) -> str:
    """A listing; a byte order mark is no part of it."""
    try:
        return inflating.text(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason}, byte {error.start}): save it as UTF-8") from error


def _bytes(path: Path) -> bytes:
    """A file's bytes; a pipe or a device is none."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file")
    return path.read_bytes()


def _inside_of(folder: Path, name: str, source: Path) -> Path:
    """A picture in the folder, by a name that somebody else wrote: nothing outside is read, nor through a link."""
    path = folder / name.replace("\\", "/")
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{source}: {shown(name)} lies outside {folder}: put the picture there, not a way or a link to it"
        )
    try:
        path.is_file()
    except OSError as error:  # a name longer than the file system's
        reason = f"{source}: {shown(name)} cannot be a file ({error.strerror})"
        raise ValueError(f"{reason}: give the name of a picture in {folder}") from error
    return path


class _ImageFolder:
    """The pictures of a folder, found by names as people write them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = sorted(filter(is_image, folder.glob("*")))
        self.names = _unique((path.name.lower(), path) for path in files)
        self.stems = _unique((path.stem.lower(), path) for path in files)

    def path(self, name: str, source: Path) -> Path:
        """The picture of this name; where there is none, the path at which it is missing."""
        last = PurePosixPath(name.replace("\\", "/")).name  # where on the writer's machine it lay says nothing
        path = _inside_of(self.folder, last if _is_rooted(name) else name, source)
        if path.is_file():
            return path
        alike = self.names.get(last.lower()) or self.stems.get(_stem(last.lower()))
        return _inside_of(self.folder, alike.name, source) if alike else path


def _is_rooted(name: str) -> bool:
    """Whether a path names a place on the writer's machine: /data/x.jpg, C:\\x.jpg."""
    return name.startswith(("/", "\\")) or name[1:2] == ":"


def _unique(pairs: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """What each name stands for, without names that stand for several."""
    by_name: dict[str, list[Path]] = {}
    for name, path in pairs:
        by_name.setdefault(name, []).append(path)
    return {name: paths[0] for name, paths in by_name.items() if len(paths) == 1}


def _parted(folder: Path, records: list[Record]) -> list[list[Record]]:
    """Pascal VOC's own parts where it names them."""
    for name in ("test", "val"):
        listing = folder / "ImageSets" / "Main" / f"{name}.txt"
        if listing.exists():
            held_out = {_stem(line.split()[0]) for line in _text(listing).splitlines() if line.strip()}
            if missing := sorted(held_out - {record[0] for record in records}):
                raise ValueError(
                    f"{listing} names {shown(missing[0])}, one of {len(missing)} that Annotations/ lacks: correct the "
                    "names, or what should be held out would be learned from"
                )
            return [[r for r in records if r[0] not in held_out], [r for r in records if r[0] in held_out]]
    return _alternating(records)


def _stem(name: str) -> str:
    """A picture's name without its ending, where it has one."""
    return name.rpartition(".")[0] if name.lower().endswith(SUFFIXES) else name


def _alternating(records: list[Record]) -> list[list[Record]]:
    held_out = range(HOLD_OUT - 1, len(records), HOLD_OUT)
    return [[r for i, r in enumerate(records) if i not in held_out], [records[i] for i in held_out]]


def _faces(name: str, records: Sequence[Record], longest: int) -> Faces:
    images, boxes, names, skipped = [], [], [], []
    for file, content, annotated in records:
        try:
            image, scale = _reduced(content, longest)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError ... for damaged files
            skipped.append((file, first_line(error)))
            continue
        images.append(image)
        boxes.append(_inside(torch.from_numpy(annotated * scale).float(), image))
        names.append(file)
    if skipped:
        shown = ", ".join(file for file, _ in skipped[:3])
        warnings.warn(
            f"{name}: {len(skipped)} of {len(records)} pictures cannot be read and are skipped: {shown}"
            f"{' ...' if len(skipped) > 3 else ''} ({skipped[0][1]})",
            stacklevel=3,
        )
    return Faces(images=images, boxes=boxes, names=names, skipped=skipped, name=name)


def _reduced(content: ImageSource, longest: int) -> tuple[torch.Tensor, float]:
    """The picture as its boxes were drawn on it, uint8 (3, H, W), and by how much it was made smaller.

    That is upright, as its EXIF mark says, unless its annotation has the size of the picture as it lies in the file.
    """
    with needed():
        from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content())) as file:
        validate_pixels(file)
        file.load()
        upright = ImageOps.exif_transpose(file)
        size = content.size or upright.size
        if size not in (upright.size, file.size):
            raise ValueError(f"its annotation is of {size[0]} x {size[1]}, it is {file.width} x {file.height}")
        image = converted(upright if size == upright.size else file, "RGB")
    scale = min(1.0, longest / max(image.size))
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.BILINEAR)
    return pixels(image), scale


def _inside(boxes: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Boxes that stick out are cut at the border; one that lies outside or is no number is left for `Faces`."""
    height, width = image.shape[1:]
    most = torch.tensor([width, height, width, height], dtype=torch.float32)
    cut = torch.minimum(boxes.clamp_min(0), most)
    there = (cut[:, 2:] > cut[:, :2]).all(1, keepdim=True) & boxes.isfinite().all(1, keepdim=True)
    return torch.where(there, cut, boxes)
