"""Real tasks that come with the lab, and the same tasks on data of one's own, by path."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from . import nets, pretrained, store
from .data.batches import AUGMENTATIONS, LabelledImages, Moved, Pairs, Patches, in_order, reduced, shuffled
from .data.face_boxes import read as read_faces
from .data.faces import FaceTask, composed
from .data.images import image_files, load_image
from .data.images import read as read_images
from .data.photographs import photograph
from .data.scenes import CONCEPTS, LABELS, Scene, draw, random_scenes
from .data.text import TextTask, Windows, documentation, next_token_loss, perplexity, text_file, tokens, windows
from .scores import accuracy, mean_iou, psnr, ssim
from .spaces import streams, tables
from .spaces.architectures import Space
from .spaces.streams import Stream
from .task import Task

__all__ = [
    "accuracy",
    "cells",
    "detectors",
    "digits",
    "faces",
    "fashion",
    "graphs",
    "images",
    "mean_iou",
    "photos",
    "photos_held_out",
    "prose",
    "psnr",
    "scenes",
    "ssim",
]

# Every name is a picture inside the wheels of scikit-image or scikit-learn; no photograph is in both lists.
PHOTOS_TRAIN = (
    "coffee", "china", "rocket", "hubble_deep_field", "immunohistochemistry", "retina", "camera", "brick", "grass",
    "gravel", "coins",
)  # fmt: skip
PHOTOS_HELD_OUT = ("astronaut", "cat", "flower", "stereo_motorcycle")


def digits(model: nn.Module | None = None, batch_size: int = 64, *, size: int = 8, channels: int = 1) -> Task:
    """Handwritten digits: scikit-learn's 1,797 scans, 1,297 to learn from and 500 held out for the score in percent.

    Inputs (N, channels, size, size) float32 in [-0.5, 0.5], ten classes, both parts with the classes in the same
    proportion. The same writers are in both. The scans are 8 x 8 and grey: another size is bilinear, more channels
    repeat them, and batches move each picture by up to a tenth of its side (not at all at 8 x 8). Without `model`, a
    trained network of `data/digits`: ResNet-20 for 8 x 8 and one channel, a thin MobileNet-v1 for 32 x 32 and three.
    """
    x, y, x_test, y_test = digits_data(size, channels)
    train = Moved(x, y, size // 10, edge=-0.5) if size >= 10 else TensorDataset(x, y)
    return Task(
        model=model if model is not None else _digits_model(size, channels),
        batches=shuffled(train, batch_size),
        score=accuracy(in_order(TensorDataset(x_test, y_test))),
        example=x[:1],
        name="digits" if (size, channels) == (8, 1) else f"digits {size} x {size}",
    )


def digits_data(size: int = 8, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (1297, channels, size, size) and y (1297,) to learn from, 500 of each held out, always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    for name, value in (("size", size), ("channels", channels)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"digits: {name}={value!r}: give an integer, 1 or more")
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images / 16 - 0.5).float().view(-1, 1, 8, 8)  # 17 grey levels, 0 to 16
    x = x if size == 8 else F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    x = x.repeat(1, channels, 1, 1)
    y = torch.from_numpy(labels.astype(np.int64))
    train, test = train_test_split(np.arange(len(y)), test_size=500, stratify=labels, random_state=0)
    return x[train], y[train], x[test], y[test]


def _digits_model(size: int, channels: int) -> nn.Module:
    if (size, channels) == (8, 1):
        return _trained("digits/resnet20", net="resnet_cifar", depth=20, channels=1)
    if (size, channels) == (32, 3):
        return _trained("digits/mobilenet_v1", net="mobilenet_v1", width=0.25, classes=10)
    raise ValueError(
        f"digits: no trained network for size={size}, channels={channels}: give a model, or take size 8 and "
        "1 channel, or size 32 and 3 channels"
    )


# Networks by the name that `fashion` knows them under, as `nets.build` makes them.
FASHION_NETS = {
    "resnet20": {"net": "resnet_cifar", "depth": 20, "channels": 1},
    "mobilenet_v1": {"net": "mobilenet_v1", "width": 0.25, "classes": 10, "channels": 1, "size": 28},
    "vgg16": {"net": "vgg16_cifar", "channels": 1, "width": 0.25},
}


def fashion(
    model: nn.Module | None = None,
    batch_size: int = 128,
    *,
    net: str = "resnet20",
    folder: str | Path | None = None,
) -> Task:
    """Fashion-MNIST: ten kinds of clothing, 10,000 images to learn from and 2,000 held out, scored in percent.

    Inputs (N, 1, 28, 28) float32, normalised; those to learn from are flipped and moved by up to four pixels at random.
    Without `model`, a trained network of `data/fashion`: `net` is "resnet20", "mobilenet_v1" (a quarter of the
    channels, the first and the last stride 1) or "vgg16" (a quarter of the channels, no shortcuts). The images are the
    first ones of each part; `folder` with the four idx files of the data set gives all 60,000 and 10,000. Raises
    ValueError for another `net` (H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747).
    """
    if net not in FASHION_NETS:
        raise ValueError(f"fashion: net={net!r}: give one of {', '.join(FASHION_NETS)}, or a model")
    path = folder if folder is not None else store.artefact("fashion/t10k-images-idx3-ubyte.xz").parent
    model = model if model is not None else _trained(f"fashion/{net}", **FASHION_NETS[net])
    task = images(path, model, batch_size=batch_size, augment=("pad-crop", "flip"), mean=(0.2860,), std=(0.3530,))
    return replace(task, name="fashion")


def fashion_net(name: str) -> nn.Module:
    """One of `FASHION_NETS` with fresh weights, drawn from torch's generator."""
    return nets.build(FASHION_NETS[name])


def scenes(model: nn.Module | None = None, batch_size: int = 64, *, label: str = "shape", size: int = 32) -> Task:
    """Pictures drawn by rule (`lab.scenes`): 1,920 to learn from and 480 held out, scored in percent.

    Inputs (N, 3, size, size) float32 in [-0.5, 0.5]. `label` is what the network names: "shape" or "colour" (four
    classes each), "count" (three) or "place" (five). Without `model`, the trained ResNet-8 of `data/scenes`, for
    shapes at 32 x 32.
    """
    x, y, x_test, y_test = scenes_data(label, size)
    if model is None and (label, size) != ("shape", 32):
        raise ValueError(
            f"scenes: no trained network for label={label!r}, size={size!r}: give a model, or take shape and 32"
        )
    return Task(
        model=model if model is not None else _trained("scenes/resnet8", net="resnet_cifar", depth=8, classes=4),
        batches=shuffled(TensorDataset(x, y), batch_size),
        score=accuracy(in_order(TensorDataset(x_test, y_test))),
        example=x[:1],
        name=f"scenes, {label}",
    )


def scenes_data(label: str = "shape", size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (1920, 3, size, size) and y (1920,) to learn from, 480 of each held out, drawn from other seeds."""
    if label not in LABELS:
        raise ValueError(f"scenes: label={label!r}: give one of {', '.join(map(repr, LABELS))}")
    values = list(LABELS[label])
    parts = []
    for made in (_scenes_train(), _scenes_held_out()):
        parts += [draw(made, size)[0] - 0.5, torch.tensor([values.index(getattr(scene, label)) for scene in made])]
    return parts[0], parts[1], parts[2], parts[3]


def scenes_concepts(size: int = 32) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """The held-out x (480, 3, size, size), their masks (480, 8, size, size) bool, and the masks' concepts by name."""
    images, masks = draw(_scenes_held_out(), size)
    return images - 0.5, masks, CONCEPTS


def _scenes_train() -> list[Scene]:
    return random_scenes(1920, seed=0)  # each of the 240 captions eight times


def _scenes_held_out() -> list[Scene]:
    return random_scenes(480, seed=1)  # and twice


def cells() -> Space:
    """The 871 different cells of NAS-Bench-201's space without pooling, each trained by the lab.

    Each is a network of two cells, trained twice on 1,000 digits: labels (871, 2) are accuracies in percent on 297
    further digits, truth (871,) the mean on the 500 held out. Weak labels: the accuracy with a super-net's weights,
    parameters, multiply-adds. Costs: these two, and the latency in ms on the machine that made `data/cells`.
    """
    return tables.lab_cells()


def detectors() -> Stream:
    """Face detectors on twelve composed domains that come one after another: AP at 0.5 in percent of those of the 216
    configurations that the lab has trained, see `data/faces`.
    """
    return streams.detectors()


def graphs(count: int = 300) -> Stream:
    """Graph networks on the data sets of NAS-Bench-Graph, which come one after another; needs the extra `tables`."""
    return streams.graph_networks(count)


def faces(
    domain: str = "groups", *, seed: int = 0, folder: str | Path | None = None, longest: int = 256,
    limit: int | None = None,
) -> FaceTask:  # fmt: skip
    """Pictures with face boxes: scenes of a domain, composed of real crops on real photographs, 96 to learn from and
    64 held out with other crops on other photographs; pictures uint8 (3, H, W), boxes (n, 4) in px.

    Domains: portraits, groups, crowded, small, cluttered, occluded, low light, motion blur, fish-eye,
    grey, rotated, coarse. `folder` is a data set of one's own instead: WIDER FACE, Pascal VOC, or a zip archive with
    annotations.json; `longest` px and `limit` pictures of each part are read of it. Unreadable pictures are skipped,
    with a warning; ValueError in one line for no boxes at all, and for boxes outside their picture.
    """
    return composed(domain, seed) if folder is None else read_faces(folder, longest, limit)


def photos(
    scale: int = 2,
    model: nn.Module | None = None,
    *,
    folder: str | Path | None = None,
    held_out: str | Path | None = None,
    patch: int | None = None,
    batch_size: int = 16,
) -> Task:
    """Super-resolution of photographs: small picture in, `scale` times larger picture out, scored in dB.

    Batches are random aligned patches, low resolution (N, 3, patch / scale, patch / scale) and high resolution
    (N, 3, patch, patch), float32 in [0, 1], `patch` being 32 * scale if left out; a pass sees as many pixels as the
    pictures have. Low resolution is made by bicubic reduction with antialiasing, rounded to 8 bits. The score is PSNR
    on luma, a border of `scale` pixels left out, the mean over the held-out pictures; the loss is L1. `folder` and
    `held_out` name folders of pictures of one's own (DIV2K, Set5; all are held in memory); left out, the photographs of
    scikit-image and scikit-learn, kept apart by name in `PHOTOS_TRAIN` and `PHOTOS_HELD_OUT`. Without `model`, a
    trained small EDSR of `data/photos`.
    """
    _validate_scale(scale)
    patch = 32 * scale if patch is None else patch
    if not isinstance(patch, int) or patch < 8 * scale or patch % scale:
        raise ValueError(f"photos: patch={patch!r}: give a multiple of scale={scale}, {8 * scale} or more")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"photos: batch_size={batch_size!r}: give an integer, 1 or more")
    if model is None:
        model = _trained(f"photos/edsr_x{scale}", net="edsr", scale=scale)
    train = _pairs(_photographs(folder, PHOTOS_TRAIN), scale, patch)
    test = _pairs(_photographs(held_out, PHOTOS_HELD_OUT), scale, 4 * scale)
    pixels = sum(high.shape[1] * high.shape[2] for _, high in train)
    low = test[0][0][None, :, : patch // scale, : patch // scale]
    return Task(
        model=model,
        batches=Patches(train, patch, batch_size, count=max(1, pixels // (batch_size * patch**2))),
        score=psnr(Pairs(test), border=scale),
        example=low.float() / 255,
        metric="psnr",
        unit="dB",
        loss=F.l1_loss,
        name=f"photos x{scale}",
    )


def photos_held_out(scale: int = 2, folder: str | Path | None = None) -> Pairs:
    """The pictures that `photos` scores on, or those of a folder: (1, 3, H, W) and (1, 3, scale H, scale W) each."""
    _validate_scale(scale)
    return Pairs(_pairs(_photographs(folder, PHOTOS_HELD_OUT), scale, 4 * scale))


def _validate_scale(scale: int) -> None:
    if scale not in (2, 3, 4):
        raise ValueError(f"photos: scale={scale!r}: give 2, 3 or 4")


def _photographs(folder: str | Path | None, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Each picture by name, uint8 (3, H, W)."""
    if folder is not None:
        return {path.name: load_image(path, "RGB") for path in image_files(folder)}
    return {name: photograph(name) for name in names}


def _pairs(images: dict[str, torch.Tensor], scale: int, least: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Low and high resolution of each picture, cropped to a multiple of scale."""
    pairs = []
    for name, high in images.items():
        h, w = (side - side % scale for side in high.shape[1:])
        if min(h, w) < least:
            raise ValueError(f"photos: {name} is {h} x {w}, below {least} pixels: leave it out or lower patch")
        high = high[:, :h, :w].contiguous()
        pairs.append((reduced(high, scale), high))
    return pairs


def images(
    path: str | Path,
    model: nn.Module,
    *,
    batch_size: int = 128,
    augment: Sequence[str] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
) -> Task:
    """Classification of labelled pictures of one's own, scored in percent on the held-out part.

    `path` is a .npz with x_train, y_train, x_test, y_test; a folder of MNIST IDX files; CIFAR-10's binary version
    (folder or tar.gz); or a folder with train/<class>/ and test/<class>/ (or val/), whose pictures are brought to
    `size` x `size` if that is given. Inputs are (N, C, H, W) float32, (pixel / 255 - mean) / std for each channel; left
    out, mean and std are those of up to 2,000 training pictures. `augment` holds "pad-crop" (4 pixels), "flip"
    (left-right), "shift" (1 pixel). Raises ValueError or FileNotFoundError in one line.
    """
    strange = [name for name in ((augment,) if isinstance(augment, str) else augment) if name not in AUGMENTATIONS]
    if strange or isinstance(augment, str):
        raise ValueError(f"images: augment={augment!r}: give a tuple of {', '.join(AUGMENTATIONS)}")
    split = read_images(path, size)
    mean, std = _statistics(split.x, mean, std)
    test = LabelledImages(split.x_test, split.y_test, mean, std)
    train = LabelledImages(split.x, split.y, mean, std, augment)
    return Task(
        model=model,
        batches=shuffled(train, batch_size),
        score=accuracy(in_order(test)),
        example=LabelledImages(split.x, split.y, mean, std)[torch.tensor([0])][0],
        name=Path(path).name,
    )


def _statistics(x: Any, mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, given or measured on evenly spaced pictures."""
    sample = x[torch.linspace(0, len(x) - 1, min(len(x), 2000)).long()].double() / 255  # (n, C, H, W)
    if (mean is None) != (std is None):
        raise ValueError("images: mean and std go together: give both or neither")
    if mean is None or std is None:
        spread = sample.std((0, 2, 3))
        return sample.mean((0, 2, 3)).tolist(), torch.where(spread > 0, spread, 1.0).tolist()
    if len(mean) != sample.shape[1] or len(std) != sample.shape[1] or min(std) <= 0:
        raise ValueError(
            f"images: mean={mean!r}, std={std!r}: give {sample.shape[1]} numbers each, one a channel, std above 0"
        )
    return list(mean), list(std)


def _trained(artefact: str, **config: Any) -> nn.Module:
    """A network of the lab with the weights of `data/`, in eval mode; torch's generator is left as it was."""
    path = store.artefact(f"{artefact}.safetensors")
    with torch.random.fork_rng(devices=[]):
        model = nets.build(config)
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not the lab's checkpoint ({reason}): install the package again") from error
    return model.eval()


def prose(
    model: nn.Module | str | Path | None = None,
    *,
    tokenizer: Any = None,
    text: str | Path | None = None,
    context: int = 128,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    questions: bool = True,
) -> TextTask:
    """Language modelling of English: windows of `context` tokens to learn from, perplexity of held-out text.

    `model` is a `transformers` causal language model, its folder or its id; left out, the small Llama of `data/prose`.
    `tokenizer` goes with it: left out, the one of the same folder, or the lab's. `text` is a text file, whose last
    tenth is held out; left out, the English of Python's own documentation, 28 topics held out. `questions` of it, next
    words to choose, are asked before and after, which takes seconds. Batches are (N, T) int64. Needs the extra
    `language`; raises ValueError in one line for a folder without weights, a tokenizer without a padding token, a
    context that the model does not have.
    """
    paragraphs = None if text is None else text_file(text)
    if not isinstance(model, nn.Module):
        source = model if model is not None else store.artefact("prose/config.json").parent
        model, tokenizer = pretrained.language_model(source, dtype), tokenizer or pretrained.tokenizer(source)
    is_given = tokenizer is not None
    tokenizer = tokenizer or pretrained.tokenizer(store.artefact("prose/config.json").parent)
    pretrained.check(model, tokenizer, context)
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    if not is_given and vocabulary not in (None, len(tokenizer)):
        raise ValueError(f"the model has {vocabulary} tokens and came without a tokenizer: give tokenizer=, its own")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"prose: batch_size={batch_size!r}: give an integer, 1 or more")
    learn, held_out = paragraphs or documentation()
    row = tokens(tokenizer, learn)
    test = windows(tokens(tokenizer, held_out), context, batch_size)
    return TextTask(
        model=model, batches=shuffled(Windows(row, context), batch_size), score=perplexity(test),
        example=row[None, :context], tokenizer=tokenizer, held_out=test,
        text=tuple(held_out) if questions else (), loss=next_token_loss,
        name="prose" if text is None else Path(text).name,
    )  # fmt: skip
