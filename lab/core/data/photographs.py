"""Photographs out of the wheels of scikit-image and scikit-learn, by name."""

import numpy as np
import torch

from ..distribution import needed


def photograph(name: str) -> torch.Tensor:
    """A photograph, uint8 (3, H, W); FileNotFoundError in one line where the installed wheels have left it out."""
    with needed():
        import skimage.data
    from sklearn.datasets import load_sample_image

    try:
        x = load_sample_image(f"{name}.jpg") if name in ("china", "flower") else getattr(skimage.data, name)()
    except Exception as error:  # packagers may leave sample data out; scikit-image then wants to download
        raise FileNotFoundError(
            f"the photograph {name!r} is not in the installed scikit-image or scikit-learn: install their wheels, "
            "or give photos(folder=..., held_out=...)"
        ) from error
    x = x[0] if isinstance(x, tuple) else x  # the left eye of a stereo pair
    x = np.repeat(x[..., None], 3, axis=2) if x.ndim == 2 else x
    return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))
