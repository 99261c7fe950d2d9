"""Batches that can be passed over again and again: shuffled for learning, in order for scores; pictures and patches.

Everything random is drawn from torch's global generator, which recipes seed and give back. Pictures are stored as
8-bit integers and become float32 a batch at a time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

AUGMENTATIONS = ("pad-crop", "flip", "shift")


class LabelledImages(Dataset):
    """Labelled pictures; `images[index]` gives a whole batch, (N, C, H, W) float32 normalised and (N,) labels.

    `x` is a uint8 tensor (or anything that gives one for a tensor of indices), `y` int64. Pixels become
    (x / 255 - mean) / std, one mean and one std a channel, after the augmentations, so that a border of zeros is black.
    """

    def __init__(
        self, x: Any, y: torch.Tensor, mean: Sequence[float], std: Sequence[float], augment: Sequence[str] = ()
    ) -> None:
        self.x, self.y, self.augment = x, y, tuple(augment)
        self.mean, self.std = (torch.tensor(list(values)).view(1, -1, 1, 1) for values in (mean, std))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = augmented(self.x[index], self.augment)
        return (x.float() / 255 - self.mean) / self.std, self.y[index]


class Moved(Dataset):
    """Labelled pictures, each moved by up to `reach` pixels whenever it is taken; `edge` is the value that comes in."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, reach: int, edge: float = 0.0) -> None:
        self.x, self.y, self.reach, self.edge = x, y, reach, edge

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return shifted(self.x[index] - self.edge, self.reach) + self.edge, self.y[index]


class Shuffled:
    """The indices of one pass, in an order drawn anew each pass: near-equal batches of at most `size`, none of one.

    A last batch of a single picture would break batch norm; so no sample is dropped and none is left alone.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.batches = max(1, min(-(-count // size), count // 2))  # at least two samples a batch where there are two

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.randperm(self.count).tensor_split(self.batches))


def shuffled(dataset: Dataset, size: int) -> DataLoader:
    """A loader for learning over a dataset that takes a tensor of indices."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 2:
        raise ValueError(f"batch_size={size!r}: give an integer, 2 or more (batch norm needs two pictures)")
    return DataLoader(dataset, sampler=Shuffled(len(dataset), size), batch_size=None)  # type: ignore[arg-type]


def in_order(dataset: Dataset, size: int = 250) -> DataLoader:
    """A loader for scores: every sample once, in order, without touching torch's global generator."""
    parts = torch.arange(len(dataset)).split(size)  # type: ignore[arg-type]
    return DataLoader(dataset, sampler=parts, batch_size=None, generator=torch.Generator())


# -- augmentation, each picture of the batch by its own draw --------------------------------------------------------


def augmented(x: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """The batch (N, C, H, W) after the named augmentations; labels stay as they are."""
    if "pad-crop" in names:
        x = shifted(x, 4)
    if "shift" in names:
        x = shifted(x, 1)
    if "flip" in names:
        x = torch.where((torch.rand(len(x)) < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
    return x


def shifted(x: torch.Tensor, reach: int) -> torch.Tensor:
    """Each picture moved by up to `reach` pixels in both axes: padded with zeros on all sides and cropped at random."""
    n, c, h, w = x.shape
    padded = torch.nn.functional.pad(x, (reach,) * 4)  # (N, C, H + 2 reach, W + 2 reach)
    top, left = torch.randint(2 * reach + 1, (2, n))
    rows = (top[:, None] + torch.arange(h)).view(n, 1, h, 1)
    columns = (left[:, None] + torch.arange(w)).view(n, 1, 1, w)
    return padded[torch.arange(n).view(n, 1, 1, 1), torch.arange(c).view(1, c, 1, 1), rows, columns]


# -- super-resolution -----------------------------------------------------------------------------------------------


class Patches:
    """`count` batches of random patches a pass: low resolution (N, C, P/s, P/s), high (N, C, P, P), in [0, 1].

    Both come from the same part of a picture; a picture is drawn in proportion to its area, then the part, then one
    of the eight flips and turns.
    """

    def __init__(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], patch: int, size: int, count: int) -> None:
        self.pairs, self.size, self.count = pairs, size, count
        self.scale = pairs[0][1].shape[-1] // pairs[0][0].shape[-1]
        self.low = patch // self.scale  # the side of a low-resolution patch
        self.areas = torch.tensor([float(low.shape[-2] * low.shape[-1]) for low, _ in pairs])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(self.count):
            picks = torch.multinomial(self.areas, self.size, replacement=True).tolist()
            low, high = zip(*(self.draw(*self.pairs[pick]) for pick in picks), strict=True)
            yield torch.stack(low).float() / 255, torch.stack(high).float() / 255

    def draw(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One aligned pair of patches, (C, p, p) and (C, s p, s p), turned together."""
        p, s = self.low, self.scale
        top = int(torch.randint(low.shape[-2] - p + 1, ()))
        left = int(torch.randint(low.shape[-1] - p + 1, ()))
        turn = int(torch.randint(8, ()))
        small = low[:, top : top + p, left : left + p]
        large = high[:, s * top : s * (top + p), s * left : s * (left + p)]
        return turned(small, turn), turned(large, turn)


class Pairs:
    """Whole pictures for scores, one a batch: (1, C, H, W) and (1, C, s H, s W), float32 in [0, 1]."""

    def __init__(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for low, high in self.pairs:
            yield low[None].float() / 255, high[None].float() / 255


def turned(x: torch.Tensor, turn: int) -> torch.Tensor:
    """One of the eight symmetries of the square: (C, P, P) -> (C, P, P)."""
    x = torch.rot90(x, turn % 4, (1, 2))
    return x.flip(2) if turn >= 4 else x


def reduced(high: torch.Tensor, scale: int) -> torch.Tensor:
    """Bicubic reduction with antialiasing, rounded to 8 bits: uint8 (C, s H, s W) -> uint8 (C, H, W)."""
    size = (high.shape[-2] // scale, high.shape[-1] // scale)
    channels = (_resized(channel[None, None].float(), size) for channel in high)  # of a large picture one at a time
    return torch.cat([x[0].round().clamp(0, 255).to(torch.uint8) for x in channels])


def enlarged(low: torch.Tensor, scale: int) -> torch.Tensor:
    """Bicubic enlargement, the control of super-resolution: float (N, C, H, W) -> (N, C, s H, s W)."""
    return _resized(low, (low.shape[-2] * scale, low.shape[-1] * scale))


def _resized(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    # antialias=True also selects the cubic with a = -0.5 of MATLAB's imresize and Pillow, which the papers use
    return torch.nn.functional.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)
