"""The usual corruptions of pictures, in five strengths: a few of those of Hendrycks and Dietterich.

ICLR 2019, arXiv 1903.12261. The strengths are those of CIFAR-10-C; blur and pixels grow with the picture's side.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("noise", "blur", "brightness", "contrast", "pixelate")
STRENGTHS = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, pixels in [0, 1]
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation in pixels, of a picture of 32 or less
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # share of the distance from the mean that is left
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # share of the side that is left
}


def corrupted(x: Tensor, kind: str, strength: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    """Pictures (N, C, H, W) whose black is `low` and white `high`, corrupted; strength 1 to 5, 0 leaves them.

    ValueError for another kind or strength.
    """
    if kind not in KINDS or strength not in range(6):
        raise ValueError(f"{kind!r} at strength {strength!r}: give one of {', '.join(KINDS)}, at strength 0 to 5")
    if not strength:
        return x
    c, share = STRENGTHS[kind][strength - 1], (x - low) / (high - low)
    if kind == "noise":
        generator = torch.Generator().manual_seed(seed)
        share = share + c * torch.randn(share.shape, generator=generator).to(share)
    elif kind == "blur":
        share = _blurred(share, c * max(1.0, max(share.shape[2:]) / 32))
    elif kind == "brightness":
        share = share + c
    elif kind == "contrast":
        mean = share.mean((2, 3), keepdim=True)
        share = (share - mean) * c + mean
    else:
        h, w = share.shape[2:]
        small = F.interpolate(share, (max(1, round(h * c)), max(1, round(w * c))), mode="area")
        share = F.interpolate(small, (h, w), mode="nearest")
    return share.clamp(0, 1) * (high - low) + low


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian of this standard deviation in px over both axes, edges repeated."""
    reach = max(1, round(3 * sigma))
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    bell = torch.exp(-at.square() / (2 * sigma**2))
    bell = (bell / bell.sum()).view(1, 1, -1)
    n, c, h, w = x.shape
    padded = F.pad(x, (reach,) * 4, mode="replicate").view(n * c, 1, h + 2 * reach, w + 2 * reach)
    return F.conv2d(F.conv2d(padded, bell[:, :, None]), bell[:, :, :, None]).view(n, c, h, w)
