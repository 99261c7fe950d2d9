"""The path of each input: recorded in one pass, packed, and read: states, class paths, likeness, what they tell."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.batch import inputs, labels, logits_of, tensors
from ..core.distribution import needed
from ..core.task import evaluating
from .layers import recording
from .placement import Decoupled

CHUNK, VALUES = 32, 2**19  # pictures a forward pass at most, and the values in them
STATES = ("both", "only A", "only B", "neither")  # who of two pictures uses a filter
UNKNOWN = -1  # the label of a picture that came without one


@dataclass(frozen=True, eq=False)
class Paths:
    """The calculation paths of N pictures: one bit a gated filter, eight of them a byte.

    `layers` names the gated convolutions, `sizes` counts their filters, `packed` (N, bytes) holds the bits layer after
    layer, `labels` and `predicted` (N,) the classes.
    """

    layers: tuple[str, ...]
    sizes: tuple[int, ...]
    packed: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray

    def __len__(self) -> int:
        return len(self.packed)

    def __repr__(self) -> str:
        return f"Paths({len(self):,} pictures, {len(self.layers)} layers, {sum(self.sizes):,} filters)"

    @property
    def bits(self) -> np.ndarray:
        """All bits as booleans, (N, filters)."""
        return np.unpackbits(self.packed, axis=1, count=sum(self.sizes)).astype(bool)

    def layer(self, name: str) -> np.ndarray:
        """The bits of one layer, (N, C_l)."""
        if name not in self.layers:
            near = get_close_matches(name, self.layers, n=3, cutoff=0)
            raise ValueError(f"no gated layer {name!r}: the nearest are {', '.join(near)}")
        return self.bits[:, self.span(name)]

    def span(self, name: str) -> slice:
        """Where the bits of a layer stand among all."""
        ends = np.cumsum((0, *self.sizes))
        at = self.layers.index(name)
        return slice(int(ends[at]), int(ends[at + 1]))

    def split(self) -> list[np.ndarray]:
        """The bits layer by layer, (N, C_l) each."""
        bits = self.bits
        return [bits[:, start:end] for start, end in pairwise(np.cumsum((0, *self.sizes)))]

    def take(self, index: Any) -> "Paths":
        """The paths of some of the pictures."""
        return Paths(self.layers, self.sizes, self.packed[index], self.labels[index], self.predicted[index])

    def on_rate(self) -> float:
        """The share of filters that is on, the mean over layers and pictures."""
        return float(np.mean([layer.mean() for layer in self.split()]))

    def states(self) -> Any:
        """How many filters of each layer are always on, never on, and on for some pictures only: a DataFrame."""
        with needed():
            import pandas

        rows = []
        for name, layer in zip(self.layers, self.split(), strict=True):
            on = layer.mean(0)
            always, never = int((on == 1).sum()), int((on == 0).sum())
            rows.append((name, always, never, len(on) - always - never))
        return pandas.DataFrame(rows, columns=["layer", "always", "never", "conditional"]).set_index("layer")

    def conditional(self) -> np.ndarray:
        """Which filters are on for some pictures and off for others: only these tell anything, (filters,) booleans."""
        on = self.bits.mean(0)
        return (on > 0) & (on < 1)

    def classes(self) -> np.ndarray:
        """The classes that occur, in order."""
        return np.unique(self.labels)


@dataclass(frozen=True)
class Fork:
    """Two pictures at one layer: the state of each filter, an index into STATES (C_l,)."""

    layer: str
    state: np.ndarray

    def counts(self) -> list[int]:
        """How many filters are in each of STATES."""
        return [int((self.state == k).sum()) for k in range(len(STATES))]


def numbers(paths: Paths, a: int, b: int | None) -> list[Fork]:
    """For each layer which filters are on for picture a, for b, for both or for neither; b may be left out."""
    bits = paths.bits
    first = bits[a]
    second = bits[b] if b is not None else first
    state = np.where(first & second, 0, np.where(first, 1, np.where(second, 2, 3)))
    return [Fork(name, state[paths.span(name)]) for name in paths.layers]


def record(decoupled: Decoupled, batches: Iterable, limit: int | None = None) -> Paths:
    """The paths of the pictures of `batches`, the first `limit` of them, in one pass and in eval mode.

    A batch is (x, y), x alone, or a dictionary of x and labels. The same pictures have the same paths however they are
    batched.
    """
    model = decoupled.model
    device = next(model.parameters()).device
    packed, classes, predicted = [], [], []
    with torch.no_grad(), evaluating(model):
        for x, y in _chunks(batches, limit):
            padded = torch.cat([x, x[-1:].expand(_chunk(x) - len(x), *x.shape[1:])])
            with recording(model) as records:
                output = model(padded.to(device))
            bits = torch.cat([record.pop().z for record in records], 1)[: len(x)] > 0  # (N, filters)
            packed.append(np.packbits(bits.cpu().numpy(), axis=1))
            predicted.append(logits_of(output).argmax(1)[: len(x)].cpu().numpy())
            classes.append(y.numpy())
    if not packed:
        raise ValueError("the batches hold no picture: give at least one")
    return paths_of(decoupled, np.concatenate(packed), np.concatenate(classes), np.concatenate(predicted))


def paths_of(decoupled: Decoupled, packed: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> Paths:
    """Packed bits with the names and sizes of the layers that they are of."""
    layers, sizes = zip(*[(site.layer, site.filters) for site in decoupled.sites], strict=True)
    return Paths(layers, sizes, packed, labels, predicted)


def _chunks(batches: Iterable, limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The pictures and labels of the batches, chunk by chunk; torch's generator is left as it was."""
    x, y, left = torch.empty(0), torch.empty(0, dtype=torch.int64), limit if limit is not None else 2**62
    with torch.random.fork_rng(devices=[]):
        for batch in batches:
            more = next(tensors(inputs(batch)))[:left]
            left -= len(more)
            x = torch.cat([x, more]) if len(x) else more
            y = torch.cat([y, class_numbers(labels(batch), len(more))])
            while len(x) and len(x) >= (chunk := _chunk(x)):
                yield x[:chunk], y[:chunk]
                x, y = x[chunk:], y[chunk:]
            if not left:
                break
    if len(x):
        yield x, y


def _chunk(x: Tensor) -> int:
    """How many pictures of such a size (N, C, ...) a forward pass has: always as many, so that no rounding depends on
    how the data are batched."""
    return max(1, min(CHUNK, VALUES // x[0].numel()))


def class_numbers(y: Any, count: int) -> Tensor:
    """The class numbers (N,) among the labels of a batch, UNKNOWN where they are none."""
    if isinstance(y, Tensor) and y.dim() == 1:
        return y[:count].cpu().long()
    return torch.full((count,), UNKNOWN)


# -- what paths tell -------------------------------------------------------------------------------------------------


def class_paths(paths: Paths) -> np.ndarray:
    """How often each filter is on for each class: (classes, filters) in [0, 1], classes in the order of `classes()`."""
    bits = paths.bits
    return np.stack([bits[paths.labels == label].mean(0) for label in paths.classes()])


def typical_paths(reference: Paths, predicted: np.ndarray) -> np.ndarray:
    """The class path, as `reference` knows it, of each predicted class (N,): (N, filters) in [0, 1].

    ValueError for a class that has no path: it is not given a neighbour's.
    """
    classes, predicted = reference.classes(), np.asarray(predicted)
    if strange := sorted({*predicted.tolist()} - {*classes.tolist()}):
        raise ValueError(
            f"the answer {strange[0]} has no class path, `reference` has pictures of {classes.tolist()}: "
            "give it pictures of every class"
        )
    return class_paths(reference)[np.searchsorted(classes, predicted)]


def class_similarity(paths: Paths, layer: str) -> np.ndarray:
    """The cosine between class paths on the layer's conditional filters, each less its mean over classes: (K, K).

    1 on the diagonal; classes that use filters alike are near 1, those that use opposite ones near -1. A layer without
    conditional filters gives zeros beside the diagonal.
    """
    span = paths.span(layer)
    frequency = class_paths(paths)[:, span][:, paths.conditional()[span]]  # (K, conditional filters)
    centred = frequency - frequency.mean(0)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-12)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, 1.0)
    return cosine


@dataclass(frozen=True)
class Separation:
    """How alike paths are within and between classes (mean Jaccard), and how often shuffled labels do as well."""

    within: float
    between: float
    p: float
    permutations: int


def separation(paths: Paths, layer: str | None = None, *, permutations: int = 999, seed: int = 0) -> Separation:
    """Jaccard similarity of pairs of pictures on conditional filters, within against between classes.

    p = (1 + shuffles of the labels that separate at least as well) / (1 + permutations). Of all layers if `layer` is
    left out.
    """
    chosen = paths.conditional()
    if layer is not None:
        outside = np.ones_like(chosen)
        outside[paths.span(layer)] = False
        chosen = chosen & ~outside
    if not chosen.any():
        raise ValueError(
            f"{layer or 'the network'} has no filter that is on for some pictures only: nothing to compare"
        )
    if len(paths.classes()) < 2:
        raise ValueError("all paths are of one class: nothing to compare, give pictures of several, with their labels")
    alike = _jaccard(paths.bits[:, chosen])
    labels, rng = paths.labels.copy(), np.random.default_rng(seed)
    within, between = _within_between(alike, labels)
    beaten = 0
    for _ in range(permutations):
        rng.shuffle(labels)
        shuffled = _within_between(alike, labels)
        beaten += int(shuffled[0] - shuffled[1] >= within - between)
    return Separation(within, between, (1 + beaten) / (1 + permutations), permutations)


def _jaccard(bits: np.ndarray) -> np.ndarray:
    """|a and b| / |a or b| of all pairs: (N, filters) -> (N, N); two empty paths are alike."""
    b = bits.astype(np.float32)
    both = b @ b.T
    count = b.sum(1)
    either = count[:, None] + count[None] - both
    return np.divide(both, either, out=np.ones_like(both), where=either > 0)


def _within_between(alike: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The mean of alike (N, N) over pairs of one class, and over pairs of two; no picture is paired with itself."""
    member = (labels[:, None] == np.unique(labels)).astype(np.float32)  # (N, K)
    sums = np.einsum("nk,nm,mk->k", member, alike, member, optimize=True)
    diagonal = np.trace(alike)
    pairs = float((member.sum(0) ** 2).sum()) - len(labels)
    rest = float(len(labels)) ** 2 - len(labels) - pairs
    inside = float(sums.sum()) - diagonal
    return float(inside / max(pairs, 1)), float((alike.sum() - diagonal - inside) / max(rest, 1))


def probe(learn: Paths, held_out: Paths, *, seed: int = 0, progress: bool = True) -> Any:
    """How many bits each layer's encoding tells about the class, beside the same with shuffled labels: a DataFrame.

    A logistic regression learns the class from z_l on one set; H(t) minus its cross-entropy on the other set is a lower
    bound of I(z_l; t), in bits. A layer that tells nothing is near or below 0, as the control is. Raises ValueError in
    one line for held-out classes that the first set does not have: what was never shown cannot be predicted.
    """
    with needed():
        import pandas
    from ..core.progress import tqdm

    if unknown := sorted({*held_out.classes().tolist()} - {*learn.classes().tolist()}):
        names = ", ".join(map(str, unknown))
        raise ValueError(f"probe: held_out has pictures of class {names}, learn has none: give it some, or drop them")
    if len(learn.classes()) < 2:
        raise ValueError(f"probe: all pictures of learn are of class {learn.classes()[0]}: give several classes")
    shuffled = np.random.default_rng(seed).permutation(learn.labels)
    rows = []
    layers = zip(learn.layers, learn.split(), held_out.split(), strict=True)
    for name, z, z_held_out in tqdm(list(layers), desc="probes", leave=False, disable=not progress):
        bits = [_information(z, labels, z_held_out, held_out.labels) for labels in (learn.labels, shuffled)]
        rows.append((name, *bits))
    return pandas.DataFrame(rows, columns=["layer", "bits", "shuffled"]).set_index("layer")


def _information(z: np.ndarray, t: np.ndarray, z_held_out: np.ndarray, t_held_out: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    classes = np.unique(t)
    model = LogisticRegression(C=0.1, max_iter=200).fit(z.astype(np.float32), t)
    frequency = np.bincount(np.searchsorted(classes, t_held_out), minlength=len(classes)) / len(t_held_out)
    entropy = -sum(f * np.log(f) for f in frequency if f > 0)
    missed = log_loss(t_held_out, model.predict_proba(z_held_out.astype(np.float32)), labels=classes)
    return float((entropy - missed) / np.log(2))
