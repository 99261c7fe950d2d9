"""Pictures with the boxes of their faces, and scenes composed of real crops on real photographs, in named domains.

A scene is a cut of a photograph with square crops laid on it, faces and things that are no faces alike: same borders,
same tint. Where a face lies is therefore known to the pixel, also after a lens has bent the scene. The crops
are scikit-image's `lfw_subset` (100 faces and 100 cuts of backgrounds, 25 x 25), the photographs its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import scipy
import torch
from torch import Tensor

from ..distribution import needed

SIDE = 160  # px, of a composed scene
LEARN, HELD_OUT = 96, 64  # scenes of a domain
_CROPS = {"learn": range(70), "held out": range(70, 100)}  # of faces and of others: no crop is in both
_GROUNDS = {  # photographs without people, kept apart by name
    "learn": ("coffee", "china", "rocket", "hubble_deep_field", "immunohistochemistry", "brick", "gravel", "grass"),
    "held out": ("cat", "flower", "stereo_motorcycle"),
}
_TRIES = 60  # corners drawn for a crop before it is left out


@dataclass(frozen=True, kw_only=True, eq=False)
class Faces:
    """Annotated pictures: uint8 (3, H, W) each, with float32 (n, 4) boxes (left, top, right, bottom) in px.

    `skipped` are (file, reason) of what could not be read. ValueError in one line where there is no picture or no box
    at all, or where a box lies outside its picture or has no area.
    """

    images: Sequence[Tensor] = field(repr=False)
    boxes: Sequence[Tensor] = field(repr=False)
    names: Sequence[str] = field(default=(), repr=False)
    skipped: Sequence[tuple[str, str]] = ()
    name: str = "own faces"

    def __post_init__(self) -> None:
        images = tuple(map(torch.as_tensor, self.images))
        boxes = tuple(torch.as_tensor(each, dtype=torch.float32).reshape(-1, 4) for each in self.boxes)
        names = tuple(self.names) or tuple(f"picture {index}" for index in range(len(images)))
        for key, value in {"images": images, "boxes": boxes, "names": names, "skipped": tuple(self.skipped)}.items():
            object.__setattr__(self, key, value)
        if not len(images) == len(boxes) == len(names):
            raise ValueError(
                f"{self.name}: {len(images)} pictures, {len(boxes)} lists of boxes, {len(names)} names: give one of "
                "each a picture"
            )
        if not any(map(len, boxes)):
            raise ValueError(
                f"{self.name}: no box in {len(images)} pictures: a detector cannot learn from them, give annotated ones"
            )
        for name, image, each in zip(names, images, boxes, strict=True):
            _check(f"{self.name}, {name}", image, each)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        missing = f", {len(self.skipped)} skipped ({', '.join(file for file, _ in self.skipped[:3])})"
        count = sum(map(len, self.boxes))
        return f"Faces({self.name}: {len(self)} pictures, {count} boxes{missing if self.skipped else ''})"

    def __getitem__(self, rows: Sequence[int]) -> "Faces":
        """Some of the pictures, by number."""
        images, boxes = [self.images[row] for row in rows], [self.boxes[row] for row in rows]
        return replace(self, images=images, boxes=boxes, names=[self.names[row] for row in rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceTask:
    """Faces to learn from and faces to score on; a method chooses the detector. `note` must stand in reports."""

    learn: Faces
    held_out: Faces
    name: str = "own faces"
    note: str = ""


def _check(name: str, image: Tensor, boxes: Tensor) -> None:
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"{name} is {image.dtype} {tuple(image.shape)}: give uint8 (3, H, W)")
    height, width = image.shape[1:]
    if not torch.isfinite(boxes).all():
        raise ValueError(f"{name} has a box that is not finite: correct the annotation")
    outside = (boxes[:, :2] < 0).any(1) | (boxes[:, 2] > width) | (boxes[:, 3] > height)
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    for bad, words in ((outside, f"is outside the picture of {width} x {height}"), (empty, "has no area")):
        if bad.any():
            box = [round(value, 1) for value in boxes[bad][0].tolist()]
            raise ValueError(f"{name}: box {box} {words}: correct the annotation or leave it out")


# -- domains -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """What the scenes of a domain have in common: how many faces of which size (px), how many other crops, what is
    done to the finished scene, and what covers faces."""

    faces: tuple[int, int]
    size: tuple[int, int]
    others: tuple[int, int] = (1, 3)
    change: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
    bend: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]] | None = None
    covered: bool = False


def _low_light(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return x * random.uniform(0.10, 0.22) + random.normal(0, 3.0, x.shape)


def _motion_blur(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    length, angle = random.integers(7, 12), random.uniform(0, np.pi)
    kernel = np.zeros((13, 13))
    for t in np.linspace(-length / 2, length / 2, 40):
        kernel[round(6 + t * np.sin(angle)), round(6 + t * np.cos(angle))] = 1
    return np.stack([scipy.ndimage.convolve(plane, kernel / kernel.sum(), mode="nearest") for plane in x])


def _grey_noise(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return x.mean(0, keepdims=True).repeat(3, 0) + random.normal(0, 24.0, (1, *x.shape[1:]))


def _coarse(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    step = 3  # the scene as a camera of a third of the resolution sees it
    wide = np.pad(x, ((0, 0), (0, -SIDE % step), (0, -SIDE % step)), mode="edge")
    small = np.stack(
        [scipy.ndimage.uniform_filter(plane, step)[step // 2 :: step, step // 2 :: step] for plane in wide]
    )
    return small.repeat(step, 1).repeat(step, 2)[:, :SIDE, :SIDE]


def _fish_eye(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel comes from: barrel distortion, the middle enlarged and the rim pressed together."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) * 2 / SIDE - 1
    strength = random.uniform(0.5, 0.8)
    factor = (1 + strength * (x**2 + y**2)) / (1 + strength)
    return (y * factor + 1) * SIDE / 2 - 0.5, (x * factor + 1) * SIDE / 2 - 0.5


def _quarter_turn(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A quarter or a half turn, as a camera overhead or lying on its side sees it."""
    y, x = np.mgrid[:SIDE, :SIDE]
    quarters = int(random.integers(1, 4))
    return np.rot90(y, quarters), np.rot90(x, quarters)


DOMAINS: dict[str, Domain] = {
    "portraits": Domain((1, 2), (40, 64)),
    "groups": Domain((3, 5), (20, 32)),
    "crowded": Domain((8, 14), (12, 20)),
    "small": Domain((1, 4), (10, 15)),
    "cluttered": Domain((1, 3), (18, 36), others=(8, 12)),
    "occluded": Domain((1, 4), (22, 40), covered=True),
    "low light": Domain((1, 4), (18, 40), change=_low_light),
    "motion blur": Domain((1, 4), (22, 44), change=_motion_blur),
    "fish-eye": Domain((2, 5), (18, 40), bend=_fish_eye),
    "grey": Domain((1, 4), (18, 40), change=_grey_noise),
    "rotated": Domain((1, 4), (18, 40), bend=_quarter_turn),
    "coarse": Domain((1, 4), (18, 40), change=_coarse),
}
NOTE = "scenes composed of real crops on real photographs; changes of light, lens and sharpness are synthetic"


@lru_cache(maxsize=64)
def composed(domain: str, seed: int = 0) -> FaceTask:
    """The scenes of a domain, LEARN of them to learn from and HELD_OUT of other crops on other photographs.

    Who is on a crop is not known: one person may be in both parts.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain={domain!r}: there are {', '.join(DOMAINS)}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"faces: seed={seed!r}: give an integer >= 0")
    parts = []
    for part, (role, count) in enumerate((("learn", LEARN), ("held out", HELD_OUT))):
        entropy = [seed, list(DOMAINS).index(domain), part]  # each scene has a generator of its own
        scenes = [_scene(DOMAINS[domain], role, np.random.default_rng([*entropy, index])) for index in range(count)]
        images, boxes = zip(*scenes, strict=True)
        parts.append(Faces(images=images, boxes=boxes, name=f"{domain}, {role}"))
    return FaceTask(learn=parts[0], held_out=parts[1], name=domain, note=NOTE)


def _scene(domain: Domain, role: str, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One scene, uint8 (3, SIDE, SIDE), and its boxes (n, 4)."""
    x = _ground(role, random)
    face_at: np.ndarray = np.zeros((SIDE, SIDE), np.int16)  # the number of the face at each pixel, 0 for none
    faces, others = (int(random.integers(low, high + 1)) for low, high in (domain.faces, domain.others))
    taken: list[tuple[int, int, int]] = []
    crops = _crops()
    for number in range(faces + others):
        is_face = number < faces
        size = round(float(np.exp(random.uniform(*np.log(domain.size)))))
        corner = _free(taken, size, random)
        crop = crops[int(random.choice(_CROPS[role])) + (0 if is_face else 100)]
        if corner is None:
            continue
        top, left = corner
        taken.append((top, left, size))
        _lay(x, crop, top, left, size, random)
        if is_face:
            face_at[top : top + size, left : left + size] = len(taken)
            if domain.covered:
                _cover(x, top, left, size, random)
    if domain.bend is not None:
        where = domain.bend(random)
        x = np.stack([scipy.ndimage.map_coordinates(plane, where, order=1, mode="nearest") for plane in x])
        face_at = scipy.ndimage.map_coordinates(face_at, where, order=0, mode="constant")
    if domain.change is not None:
        x = domain.change(x, random)
    slices = [each for each in scipy.ndimage.find_objects(face_at) if each is not None]
    boxes = [[columns.start, rows.start, columns.stop, rows.stop] for rows, columns in slices]
    return torch.from_numpy(x.round().clip(0, 255).astype(np.uint8)), torch.tensor(boxes).float().view(-1, 4)


def _ground(role: str, random: np.random.Generator) -> np.ndarray:
    """A cut of a photograph, float (3, SIDE, SIDE), mirrored or not."""
    photographs = _photographs()[role]
    x = photographs[int(random.integers(len(photographs)))]
    top, left = (int(random.integers(side - SIDE + 1)) for side in x.shape[1:])
    x = x[:, top : top + SIDE, left : left + SIDE].astype(float)
    return x[..., ::-1].copy() if random.random() < 0.5 else x


def _free(taken: list[tuple[int, int, int]], size: int, random: np.random.Generator) -> tuple[int, int] | None:
    """The corner (top, left) from which a crop covers no other, None where none was found."""
    for _ in range(_TRIES):
        top, left = (int(random.integers(SIDE - size + 1)) for _ in "yx")
        if all(top >= t + s or t >= top + size or left >= c + s or c >= left + size for t, c, s in taken):
            return top, left
    return None


def _lay(x: np.ndarray, crop: np.ndarray, top: int, left: int, size: int, random: np.random.Generator) -> None:
    """Lay a grey crop on the scene in the tint of what lies there, with a soft border that lies inside its box."""
    grey = scipy.ndimage.zoom(crop, size / len(crop), order=1, mode="nearest", grid_mode=True)[:size, :size]
    grey = grey if random.random() < 0.5 else grey[:, ::-1]
    under = x[:, top : top + size, left : left + size]
    tint = under.mean((1, 2)) + 32
    colour = grey * 255 * (tint / tint.mean())[:, None, None] * random.uniform(0.8, 1.1)
    ramp = np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5) / max(1.0, 0.1 * size)
    alpha = np.minimum(1, np.minimum(ramp[:, None], ramp[None, :]))
    under[...] = alpha * colour + (1 - alpha) * under


def _cover(x: np.ndarray, top: int, left: int, size: int, random: np.random.Generator) -> None:
    """Lay a plain bar over the lower part, the eyes or one side of a face; its box stays the whole face."""
    part, colour = int(random.integers(3)), random.uniform(20, 235, (3, 1, 1))
    deep = round(size * random.uniform(0.3, 0.45))
    eyes, across, down = top + size // 4, slice(left, left + size), slice(top, top + size)
    bars = (
        (slice(top + size - deep, top + size), across),  # the lower part
        (slice(eyes, eyes + deep), across),
        (down, slice(left, left + deep)),  # one side
    )
    rows, columns = bars[part]
    x[:, rows, columns] = colour


@lru_cache(maxsize=1)
def _crops() -> np.ndarray:
    """(200, 25, 25) float in [0, 1]: 100 faces, then 100 that are none."""
    with needed():
        import skimage.data

    try:
        return np.asarray(skimage.data.lfw_subset(), float)
    except Exception as error:  # packagers may leave sample data out; scikit-image then wants to download
        raise FileNotFoundError(
            "the crops 'lfw_subset' are not in the installed scikit-image: install its wheel, or give faces(folder=...)"
        ) from error


@lru_cache(maxsize=1)
def _photographs() -> dict[str, list[np.ndarray]]:
    """The photographs of each part, uint8 (3, H, W), at least SIDE on both sides."""
    from .photographs import photograph

    return {part: [photograph(name).numpy() for name in names] for part, names in _GROUNDS.items()}
