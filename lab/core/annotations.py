"""Pictures with face boxes of one's own, by path: WIDER FACE, Pascal VOC, or an archive of street scenes.

A picture that cannot be read is skipped, counted and named. Pictures are made smaller as they are read.
"""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch

from .faces import Faces, FaceTask

FORMS = (
    "a WIDER FACE folder (wider_face_split/ beside WIDER_train/), a Pascal VOC folder (Annotations/, JPEGImages/), "
    "or a zip archive with annotations.json and images/"
)
VOC_NAMES = ("face", "head", "with_mask", "without_mask", "mask_weared_incorrect")
HOLD_OUT = 4  # every so many pictures are held out where the data set itself does not say which

Record = tuple[str, Callable[[], bytes], np.ndarray]  # name, how its bytes are read, boxes (n, 4)


def read(path: str | Path, longest: int = 256, limit: int | None = None) -> FaceTask:
    """The faces at `path`, in any of `FORMS`; the longer side of a picture becomes `longest` px at most.

    `limit` reads only so many pictures of each part. WIDER FACE holds its part val out, Pascal VOC what
    ImageSets/Main/ names test or val; elsewhere every fourth picture is held out.
    """
    path = Path(path).expanduser()
    if not isinstance(longest, int) or longest < 16:
        raise ValueError(f"faces: longest={longest!r}: give a whole number of pixels, 16 or more")
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
    lines = iter(enumerate(listing.read_text().splitlines(), 1))
    for number, name in lines:
        try:
            number, count = next(lines)
            rows = [next(lines)[1].split() for _ in range(max(1, int(count)))][: int(count)]
            marks = np.array([[float(value) for value in row] for row in rows]).reshape(len(rows), -1 if rows else 10)
            boxes = np.concatenate([marks[:, :2], marks[:, :2] + marks[:, 2:4]], 1).reshape(-1, 4)
        except (StopIteration, ValueError, IndexError) as error:
            raise ValueError(
                f"{listing} line {number}: {name!r} is not followed by its boxes: fetch it again"
            ) from error
        valid = (marks[:, 2:4] >= 1).all(1)
        if marks.shape[1] > 7:
            valid &= marks[:, 7] == 0
        yield name, (folder / f"WIDER_{part}" / "images" / name).read_bytes, boxes[valid]


def pascal_voc(folder: str | Path, names: Sequence[str] = VOC_NAMES) -> Iterator[Record]:
    """The records of a folder in Pascal VOC's form, objects of these names only; its pixels are counted from 1."""
    folder = Path(folder)
    files = sorted((folder / "Annotations").glob("*.xml"))
    if not files:
        raise FileNotFoundError(f"{folder / 'Annotations'} holds no .xml file: give a Pascal VOC folder")
    for file in files:
        try:
            root = ElementTree.fromstring(file.read_bytes())
            boxes = [_voc_box(found) for found in root.iter("object") if found.findtext("name") in names]
        except (ElementTree.ParseError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is no annotation ({error}): correct it or remove it") from error
        picture = folder / "JPEGImages" / (root.findtext("filename") or f"{file.stem}.jpg")
        yield file.stem, picture.read_bytes, np.array(boxes, float).reshape(-1, 4)


def street_scenes(path: str | Path) -> Iterator[Record]:
    """The records of a zip archive: annotations.json has {file: {boxes: [[left, top, right, bottom, class], ...]}}."""
    with zipfile.ZipFile(path) as archive:
        try:
            known = json.loads(archive.read("annotations.json"))
            boxes = {name: np.array([box[:4] for box in known[name]["boxes"]], float) for name in sorted(known)}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has no annotations.json with boxes ({error}): give {FORMS}") from error

    def content(name: str) -> Callable[[], bytes]:
        return lambda: _member(path, f"images/{name}")

    for name, found in boxes.items():
        yield name, content(name), found.reshape(-1, 4)


# -- parts -------------------------------------------------------------------------------------------------------------


def _voc_box(found: ElementTree.Element) -> list[float]:
    left, top, right, bottom = (float(found.findtext(f"bndbox/{k}", "none")) for k in ("xmin", "ymin", "xmax", "ymax"))
    return [left - 1, top - 1, right, bottom]


def _member(path: str | Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def _parted(folder: Path, records: list[Record]) -> list[list[Record]]:
    """Pascal VOC's own parts where it names them."""
    for name in ("test", "val"):
        listing = folder / "ImageSets" / "Main" / f"{name}.txt"
        if listing.exists():
            held_out = {line.split()[0] for line in listing.read_text().splitlines() if line.strip()}
            return [[r for r in records if r[0] not in held_out], [r for r in records if r[0] in held_out]]
    return _alternating(records)


def _alternating(records: list[Record]) -> list[list[Record]]:
    held_out = range(HOLD_OUT - 1, len(records), HOLD_OUT)
    return [[r for i, r in enumerate(records) if i not in held_out], [records[i] for i in held_out]]


def _faces(name: str, records: Sequence[Record], longest: int) -> Faces:
    pictures, boxes, names, skipped = [], [], [], []
    for file, content, found in records:
        try:
            picture, scale = _reduced(content(), longest)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError ... for damaged files
            skipped.append((file, next(iter(str(error).splitlines()), type(error).__name__)))
            continue
        pictures.append(picture)
        boxes.append(_inside(torch.from_numpy(found * scale).float(), picture))
        names.append(file)
    if skipped:
        shown = ", ".join(file for file, _ in skipped[:3])
        warnings.warn(f"{name}: {len(skipped)} of {len(records)} pictures cannot be read and are skipped: {shown}"
                      f"{' ...' if len(skipped) > 3 else ''}", stacklevel=3)  # fmt: skip
    return Faces(pictures=pictures, boxes=boxes, names=names, skipped=skipped, name=name)


def _reduced(content: bytes, longest: int) -> tuple[torch.Tensor, float]:
    """The picture, uint8 (3, H, W), and by how much it was made smaller."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as file:
        image = file.convert("RGB")
    scale = min(1.0, longest / max(image.size))
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.BILINEAR)  # type: ignore[arg-type]
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), scale


def _inside(boxes: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """Boxes that stick out are cut at the border; one that lies outside altogether is left for `Faces` to refuse."""
    height, width = picture.shape[1:]
    most = torch.tensor([width, height, width, height], dtype=torch.float32)
    cut = torch.minimum(boxes.clamp_min(0), most)
    there = (cut[:, 2:] > cut[:, :2]).all(1, keepdim=True)
    return torch.where(there, cut, boxes)
