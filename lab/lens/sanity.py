"""Whether two networks and their labels are what they are taken for: checks by exact and permutation tests.

Two kinds. Some checks expect more than chance, of a network and its labels, of two networks, of a layer and itself:
they raise an alarm where chance does as well, at LEVEL, so that what knows nothing passes one at most that often.
The others expect no more than chance, such as of another numbering of the classes: all of them together raise an
alarm on a sound pair at most in a share ALARMS of pages.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from .activations import placed
from .atlas import span
from .examples import CLASSES, SCORES, Compared
from .significance import least_loss, permutation_p, sign_p

LEVEL = 0.001
ALARMS = 0.05
_SHARED = ALARMS / 3  # renamed classes, otherwise prepared pictures, and the loss
_MEAN, _STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's, of [0, 1]
_FILTERS, _COLUMNS = 128, 512  # of a layer, of a weight's rows, that are held against one another
_LEVELS = 256  # distinct values: as many or fewer are a grid of 8 bits


@dataclass(frozen=True)
class Check:
    """One check: its name, whether it raises an alarm, what was seen, and the p-value where there is one."""

    name: str
    alarm: bool
    text: str
    p: float | None = None


def checks(pair: Compared) -> tuple[Check, ...]:
    """All checks that the pair allows, in the order in which they are to be read."""
    labelled = (_knowledge, _renamed, _lost) if pair.scores else ()
    return tuple(
        check for kind in (_same, _swapped, _fresh, *labelled, _prepared, _agreement, _layers) for check in kind(pair)
    )


def _same(pair: Compared) -> Iterator[Check]:
    is_same = torch.equal(pair.outputs["before"], pair.outputs["after"])
    text = "before and after give the same numbers" if is_same else "before and after are not one network"
    yield Check("two networks", is_same, text + (": they are one network" if is_same else ""))


def _swapped(pair: Compared) -> Iterator[Check]:
    if pair.is_ordered:
        return
    where = _where_smaller(pair.before, pair.after)
    text = f"before is the smaller one ({where}): they seem to be swapped" if where else "before is not the smaller one"
    yield Check("order", bool(where), text)


def _knowledge(pair: Compared) -> Iterator[Check]:
    """Right more often than with the labels shuffled."""
    perfect = np.eye(len(pair.examples))
    if pair.examples.kind == CLASSES and pair.examples.y is not None:
        perfect = (pair.examples.y[:, None] == pair.examples.y[None]).double().numpy()
    is_enough = permutation_p(perfect, pair.seed) <= LEVEL
    for name in ("before", "after"):
        if not is_enough:
            yield Check(f"{name}, labels", False, f"{len(pair.examples)} examples are too few to tell")
            continue
        p = permutation_p(pair.by_label(name), pair.seed)
        no_better = f"{name} is no better than with shuffled labels: it knows nothing, or the labels belong elsewhere"
        yield Check(f"{name}, labels", p > LEVEL, no_better if p > LEVEL else f"{name} beats shuffled labels", p)


def _fresh(pair: Compared) -> Iterator[Check]:
    """Better than with fresh weights; without labels, nearer to the network before than these are."""
    if 0.5 ** len(pair.examples) > LEVEL:
        return
    if pair.scores:
        after, fresh, what = pair.scores["after"], pair.scores["fresh"], "better"
    else:
        after = pair.agreement
        fresh = pair.examples.agreement(pair.outputs["fresh"], pair.outputs["before"])
        what = "nearer to before"
    p = sign_p(int((after > fresh).sum()), int((after < fresh).sum()))
    text = f"after is {'no ' if p > LEVEL else ''}{what} than with fresh weights"
    yield Check("after, fresh weights", p > LEVEL, text, p)


def _renamed(pair: Compared) -> Iterator[Check]:
    """Whether another numbering of the classes, found on every second example, is right more often on the others."""
    if pair.examples.kind != CLASSES or pair.examples.y is None:
        return
    text, least = "no other numbering does better", 1.0
    for name in ("after", "before"):
        named, y = pair.outputs[name].argmax(1).numpy(), pair.examples.y.numpy()
        count = pair.outputs[name].shape[1]
        table = 1e-3 * np.eye(count)  # of equals the class itself
        np.add.at(table, (named[::2], y[::2]), 1)
        numbers = linear_sum_assignment(-table)[1]
        right, renamed = named[1::2] == y[1::2], numbers[named[1::2]] == y[1::2]
        p = sign_p(int((renamed & ~right).sum()), int((right & ~renamed).sum()))
        least = min(least, p)
        if p <= _SHARED / 2:
            text = f"with its classes numbered otherwise {name} is right {renamed.mean():.0%} of the time, as given "
            text += f"{right.mean():.0%}: {_numbering(numbers)}"
    yield Check("numbers of the classes", least <= _SHARED / 2, text, least)


def _numbering(numbers: np.ndarray) -> str:
    shift = int(numbers[0])
    if (numbers == (np.arange(len(numbers)) + shift) % len(numbers)).all():
        return f"they are shifted by {shift if shift <= len(numbers) // 2 else shift - len(numbers)}"
    return "they stand for other classes"


def preparations(x: Tensor) -> dict[str, Tensor]:
    """Pictures (N, C, H, W) as they would be if they had been prepared otherwise, by what is done to them."""
    low, high = span(x.cpu().numpy())
    variants: dict[str, Tensor] = {
        "x / 255": x / 255, "255 x": 255 * x, "2 x - 1": 2 * x - 1, "(x + 1) / 2": (x + 1) / 2,
        "x - 0.5": x - 0.5, "x + 0.5": x + 0.5, "x / 4": x / 4, "4 x": 4 * x, "inverted": low + high - x,
        "each to mean 0 and deviation 1": (x - x.mean()) / x.std().clamp(min=1e-12), "upside down": x.flip(2),
    }  # fmt: skip
    mean, std = (v.to(x).view(1, 3, 1, 1) if x.shape[1] == 3 else v.mean().to(x) for v in (_MEAN, _STD))
    variants |= {"normalised as for ImageNet": (x - mean) / std, "ImageNet's normalisation undone": x * std + mean}
    if x.shape[1] == 3:
        variants["blue and red exchanged"] = x.flip(1)
    if x.shape[2] == x.shape[3]:
        variants["rows and columns exchanged"] = x.transpose(2, 3)
    return variants


def _prepared(pair: Compared) -> Iterator[Check]:
    """Whether pictures that are prepared otherwise are answered better by either network, or bring after to before."""
    x = pair.examples.images
    if x is None or pair.examples.kind != CLASSES:
        return
    nets = {"after": pair.after} | ({"before": pair.before} if pair.scores else {})
    variants = preparations(x)
    outputs = {
        name: {way: pair.examples.outputs(model, image) for way, image in variants.items()}
        for name, model in nets.items()
    }
    level = _SHARED / (3 * len(variants))
    if pair.scores:
        yield _better(pair, outputs, level)
    yield _nearer(pair, outputs["after"], level)


def _better(pair: Compared, outputs: Mapping[str, Mapping[str, Tensor]], level: float) -> Check:
    """Whether other preparations are right significantly more often: outputs by network and by what is done."""
    best: tuple[float, str, str, float] = (1.0, "", "", 0.0)
    for name, others in outputs.items():
        right = pair.scores[name] > 0
        for way, output in others.items():
            other = pair.examples.scores(output) > 0
            p = sign_p(int((other & ~right).sum()), int((right & ~other).sum()))
            best = min(best, (p, name, way, 100 * float(other.mean())))
    p, name, way, accuracy = best
    is_alarm = p <= level and _knows(pair, outputs[name][way])  # not less wrong than wrong labels
    text = f"{name} is right {accuracy:.0f} % of the time on pictures prepared otherwise ({way}), as given "
    text += f"{100 * float(pair.scores[name].mean()):.0f} %" if name else ""
    return Check("preparation of the pictures", is_alarm, text if is_alarm else "no other preparation does better", p)


def _nearer(pair: Compared, outputs: Mapping[str, Tensor], level: float) -> Check:
    """Whether after, asked about pictures prepared otherwise, comes to less than half its distance from before."""
    before = pair.outputs["before"]
    as_given = torch.linalg.vector_norm(pair.outputs["after"] - before, dim=1)
    least, nearest = 1.0, ""
    for way, output in outputs.items():
        near = int((2 * torch.linalg.vector_norm(output - before, dim=1) < as_given).sum())
        least, nearest = min((least, nearest), (sign_p(near, len(before) - near), way))
    text = f"after answers as before does where its pictures are prepared otherwise ({nearest})"
    fine = "no other preparation brings after nearer to before"
    return Check("preparation of after", least <= level, text if least <= level else fine, least)


def _knows(pair: Compared, outputs: Tensor) -> bool:
    """Whether outputs fit the labels better than shuffled ones."""
    assert pair.examples.y is not None
    return permutation_p(pair.examples.table(outputs, pair.examples.y, by_label=True), pair.seed) <= LEVEL


def _lost(pair: Compared) -> Iterator[Check]:
    metric, unit, margin = SCORES[pair.examples.kind]
    before, after = pair.scores["before"], pair.scores["after"]
    if pair.examples.kind == CLASSES:
        worse, better = int((before > after).sum()), int((before < after).sum())
        least = 100 * least_loss(worse, better, len(before), _SHARED)
        is_alarm, p = least > margin, None
        lost = f"after has lost {least:.0f} points of accuracy or more"
    else:
        drop = (before - after) * (100 if unit == "%" else 1)
        p = sign_p(int((drop > margin).sum()), int((drop <= margin).sum()))
        is_alarm, lost = p <= _SHARED, f"most examples have lost more than {margin:g} {unit} of {metric}"
    fine = f"a loss of more than {margin:g} {unit if unit != '%' else 'points'} is not shown"
    yield Check("loss", is_alarm, lost if is_alarm else fine, p)


def _agreement(pair: Compared) -> Iterator[Check]:
    itself = pair.examples.table(pair.outputs["before"], pair.outputs["before"], by_label=False)
    if permutation_p(itself, pair.seed) > LEVEL:
        yield Check("agreement", False, "before gives much the same for all examples: agreement cannot be told")
        return
    p = permutation_p(pair.agreements, pair.seed)
    apart = "after agrees with before no more than with its outputs to other examples"
    yield Check("agreement", p > LEVEL, apart if p > LEVEL else "after agrees with before, more than shuffled", p)


def _layers(pair: Compared) -> Iterator[Check]:
    """Layers that answer everything alike, and such as answer unlike those of the same name."""
    old, new = (layer_outputs(model, pair) for model in (pair.before, pair.after))
    yield from _weights(pair, {*old} & {*new})
    if not any(name in old for name in new):
        return
    dead = [name for name in new if name in old and is_constant(new[name]) and not is_constant(old[name])]
    text = f"answer the same to everything, and did not before: {', '.join(dead[:5])}"
    yield Check("layers at work", bool(dead), text if dead else "no layer has fallen silent")
    if not pair.is_numbered:
        return
    by_layer = {
        name: (old[name][:, numbers], new[name])
        for name in new
        if name in old and _has_weights(pair.after, name)
        if (numbers := _numbers(pair, name, old[name].shape[1], new[name].shape[1])) is not None
    }
    judged = {name: is_own for name, both in by_layer.items() if (is_own := _by_number(*both, pair.seed)) is not None}
    strange = [name for name, is_own in judged.items() if not is_own]
    text = f"filters answer no more like those of their own number before than like others: {', '.join(strange[:5])}"
    if judged:
        fine = f"the filters of {len(judged)} layers answer as those of their own number before"
        yield Check("filters by number", bool(strange), text if strange else fine)


def _weights(pair: Compared, observed: set[str]) -> Iterator[Check]:
    """Weights that no layer observed answers for: read without a call, as by torch's attention, or a network's own."""
    old, new = (_unobserved(model, observed) for model in (pair.before, pair.after))
    alike = [name for name, w in new.items() if name in old and old[name].shape == w.shape]
    both = {name: (_rows(old[name]), _rows(new[name])) for name in alike}
    if not both:
        return
    dead = [name for name, (first, second) in both.items() if np.ptp(second) == 0 < np.ptp(first)]
    judged = {name: is_own for name, pair_of in both.items() if (is_own := _by_number(*pair_of, pair.seed)) is not None}
    strange = [name for name, is_own in judged.items() if not is_own and name not in dead] if pair.is_numbered else []
    texts = [f"have one value throughout, and had not before: {', '.join(dead[:5])}"] if dead else []
    if strange:
        texts.append(
            f"rows are no more like those of their own number before than like others: {', '.join(strange[:5])}"
        )
    fine = f"{len(both)} weights that no layer answers for are like those before"
    yield Check("weights read without a call", bool(texts), "; ".join(texts) or fine)


def _unobserved(model: nn.Module, observed: set[str]) -> dict[str, Tensor]:
    """Parameters and buffers of two axes or more but the `weight` of layers observed, by name."""
    answered = {f"{_module_of(name)}.weight" for name in observed}
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kinds = {name: w.ndim > 1 and w.numel() > 0 and w.is_floating_point() for name, w in every.items()}
    return {name: w.detach() for name, w in every.items() if kinds[name] and name not in answered}


def _rows(w: Tensor) -> np.ndarray:
    """Some rows of a weight, along its longest axis, in some columns: (columns, rows, 1)."""
    flat = w.movedim(int(np.argmax(w.shape)), 0).flatten(1)
    return flat[_some(len(flat), _FILTERS)][:, _some(flat.shape[1], _COLUMNS)].float().T[..., None].cpu().numpy()


def _some(count: int, most: int) -> np.ndarray:
    """At most so many of `count` numbers, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))


def _by_number(old: np.ndarray, new: np.ndarray, seed: int) -> bool | None:
    """Whether filters (N, F, places) are more like those of their own number before than like others.

    None for too few filters, and for such as are alike.
    """
    some = _some(new.shape[1], _FILTERS)
    first, second = old[:, some], new[:, some]
    if permutation_p(correlations(first, first), seed) > LEVEL:
        return None
    return permutation_p(correlations(first, second), seed) <= LEVEL


def _numbers(pair: Compared, name: str, before: int, after: int) -> np.ndarray | None:
    """The numbers before of a layer's filters after; None where they are not known."""
    if _module_of(name) in pair.kept:
        numbers = np.asarray(list(pair.kept[_module_of(name)]), dtype=int)
        return numbers if len(numbers) == after and numbers.max(initial=0) < before else None
    return np.arange(after) if before == after else None


def layer_outputs(model: nn.Module, pair: Compared, most: int = 32) -> dict[str, np.ndarray]:
    """What the layers give for some examples, maps made small: by name (N, filters, places)."""
    x = pair.examples.x
    if not isinstance(x, Tensor):
        return {}
    some = x[: most if x[0].numel() <= 3 * 64 * 64 else 8]
    parts = [_small_outputs(model, part) for part in some.split(32)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _small_outputs(model: nn.Module, some: Tensor) -> dict[str, np.ndarray]:
    outputs = {}
    for name, output in placed(model, some).items():
        if output.ndim not in (2, 3, 4) or not output.is_floating_point() or len(output) != len(some):
            continue
        output = output.float()
        if output.ndim == 4:
            small = F.adaptive_avg_pool2d(output, (min(4, output.shape[2]), min(4, output.shape[3])))
            output = small.flatten(2)
        elif output.ndim == 3:
            output = output.transpose(1, 2)  # tokens without places
        else:
            output = output[..., None]
        outputs[name] = output.cpu().numpy()
    return outputs


def is_constant(output: np.ndarray) -> bool:
    """Whether a layer gives the same for all examples, (N, filters, places)."""
    return bool(len(output) > 1 and np.ptp(output, axis=0).max(initial=0.0) == 0)


def correlations(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The squared correlation of every filter after with every filter before, over examples and places: (F, F)."""
    a, b = (_normed(output) for output in (old, new))
    return np.square(b @ a.T)


def _normed(output: np.ndarray) -> np.ndarray:
    """Each filter's departures from its mean over the examples, as a vector of length 1: (F, N places)."""
    flat = (output - output.mean(0)).swapaxes(0, 1).reshape(output.shape[1], -1).astype(np.float64)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(length > 0, length, 1)


def _has_weights(model: nn.Module, name: str) -> bool:
    module = dict(model.named_modules()).get(_module_of(name))
    return module is not None and any(p.ndim > 1 for p in module.parameters())


def _module_of(name: str) -> str:
    """The module of an output 'name', 'name[0]' or 'name#2'."""
    return name.partition("[")[0].partition("#")[0]


def _is_embedding(model: nn.Module, name: str) -> bool:
    """Whether a weight is a table of tokens, whose rows are 0 where a token is never read."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)


def _where_smaller(before: nn.Module, after: nn.Module) -> str:
    """Where the network before is smaller than the one after, and nowhere larger; '' elsewhere."""
    old, new = ({name: p.detach() for name, p in net.named_parameters() if p.ndim > 1} for net in (before, after))
    measures: dict[str, Callable[[Tensor], float]] = {
        "fewer filters": lambda p: float(p.numel()),
        "more zeros": lambda p: round(4 * float((p != 0).float().mean())),  # quarters
        "fewer distinct values": lambda p: float(min(len(p.unique()), 2 * _LEVELS) // _LEVELS),
    }
    pairs = [(old[name], new[name]) for name in old if name in new and not _is_embedding(before, name)]
    for text, measure in measures.items():
        sizes = [(measure(a), measure(b)) for a, b in pairs]
        if any(a < b for a, b in sizes) and not any(a > b for a, b in sizes):
            return text
        if any(a > b for a, b in sizes):
            return ""
    quantised, plain = (any("Quant" in type(m).__name__ for m in net.modules()) for net in (before, after))
    if quantised and not plain:
        return "quantised"
    counts = [sum(p.numel() for p in net.parameters()) for net in (before, after)]
    return "fewer parameters" if not pairs and counts[0] < counts[1] else ""
