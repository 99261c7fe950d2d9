"""What a batch holds and what a model gives for it: inputs and labels, one tensor or many."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

Example = Tensor | tuple | dict  # one input, the positional inputs, or the inputs by name
MOST_NUMBERS = 2**31  # of a tensor whose shape a file says
LABELS = "labels"  # the key of a dictionary that is no input of the model
IGNORED = -100  # a label that counts nowhere, as in cross entropy
LOGITS = ("logits", "out")  # what transformers and torchvision call the one tensor that counts


def inputs(batch: Any) -> Example:
    """What a model takes of a batch: x of `(x, y)`, x alone, or all of a dictionary but its 'labels'.

    A single tensor of a dictionary is given as it is, several by name. TypeError for what is no tensor.
    """
    if isinstance(batch, Mapping):
        named = {str(key): value for key, value in batch.items() if key != LABELS}
        x = next(iter(named.values())) if len(named) == 1 else named
    else:
        x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    return validated(x)


def labels(batch: Any) -> Any:
    """The y of `(x, y)`, the 'labels' of a dictionary; None for a batch without."""
    if isinstance(batch, Mapping):
        return batch.get(LABELS)
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


def validated(x: Any) -> Example:
    """The inputs of a model; TypeError in one line if any is no tensor."""
    wrong = [value for value in _values(x) if not isinstance(value, Tensor)]
    if wrong or not _values(x):
        kind = type(wrong[0] if wrong else x).__name__
        raise TypeError(
            f"a batch of Task.batches holds a {kind}: give tensors, (x, y), x alone or a dictionary of them, "
            "or say with Task(inputs=...) what of it the model takes"
        )
    return x


def call(model: nn.Module, x: Example) -> Any:
    """The model's output: a tuple holds positional inputs, a dictionary inputs by name."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def each(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same lists, tuples and dictionaries with every tensor changed; all else stays."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: each(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(each(value, change) for value in tree))
    return type(tree)(each(value, change) for value in tree) if type(tree) in (list, tuple) else tree


def moved(tree: Any, device: torch.device | str) -> Any:
    """The same with every tensor on a device; itself where all are there."""
    if all(x.device == torch.device(device) for x in tensors(tree)):
        return tree
    return each(tree, lambda x: x.to(device))


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested lists, tuples, dictionaries and records of fields, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (Mapping, list, tuple)):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from tensors(value)
    elif is_dataclass(tree):
        yield from tensors([getattr(tree, field.name) for field in fields(tree)])


def size(x: Example) -> int:
    """The number of samples in a model's inputs."""
    return len(next(tensors(x)))


def joined(parts: Sequence[Example]) -> Example:
    """The inputs of several batches as those of one."""
    first, every = parts[0], [list(tensors(part)) for part in parts]
    several = iter([torch.cat(column) for column in zip(*every, strict=True)])
    return each(first, lambda _: next(several))


def split(x: Example, count: int) -> list[Example]:
    """A model's inputs in batches of so many samples; the last may be smaller."""

    def part(at: int) -> Example:
        return each(x, lambda tensor: tensor[at : at + count])

    return [part(at) for at in range(0, size(x), count)]


def shapes_of(example: Example) -> Any:
    """What is stored of an example: the shape of one float32 tensor, or the shape and dtype of each of its tensors."""
    if isinstance(example, Tensor) and example.dtype == torch.float32:
        return tuple(example.shape)
    return each(example, lambda x: {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")})  # type: ignore


def zeros_of(shapes: Any) -> Example:
    """An example of zeros, of the shapes that `shapes_of` gives; lists may stand for tuples.

    ValueError for what is no shape, and for one of more than 2^31 numbers.
    """
    if isinstance(shapes, Mapping):
        if isinstance(shapes.get("dtype"), str):
            return _zeros(shapes["shape"], getattr(torch, shapes["dtype"]))
        return {name: zeros_of(part) for name, part in shapes.items()}
    if shapes and isinstance(shapes[0], Mapping):
        return tuple(map(zeros_of, shapes))
    return _zeros(shapes, torch.float32)


def _zeros(shape: Any, dtype: torch.dtype) -> Tensor:
    sizes = list(shape)
    if not all(type(n) is int and n >= 0 for n in sizes) or math.prod(sizes) > MOST_NUMBERS:
        shown = " ".join(str(shape).split())[:80]
        raise ValueError(f"an example has the shape {shown}: give sizes of 0 or more, 2^31 numbers at most")
    return torch.zeros(sizes, dtype=dtype)


def logits_of(output: Any) -> Any:
    """The one tensor of an output that counts: itself, its 'logits' or 'out', or the only one in it.

    An output of several tensors without such a name is given back as it is.
    """
    if isinstance(output, Tensor):
        return output
    for name in LOGITS:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    every = list(tensors(output))
    return every[0] if len(every) == 1 else output


def vector(output: Any) -> Tensor:
    """All floating tensors of an output side by side, one row a sample: (N, numbers); ValueError as of `vectors`."""
    return torch.cat(vectors(output), 1)


def vectors(output: Any) -> list[Tensor]:
    """Each floating tensor of an output, one row a sample: (N, numbers).

    ValueError where there is none, or where they differ in N.
    """
    parts = [x for x in tensors(output) if x.is_floating_point() and x.dim()]
    if not parts or len({len(x) for x in parts}) > 1:
        raise ValueError(
            f"the model returns a {type(output).__name__} that holds no tensor (N, ...) to compare, or "
            "the N differ: return tensors of one batch axis"
        )
    return [x.flatten(1) if x.dim() > 1 else x[:, None] for x in parts]


def device_for(model: nn.Module, x: Any = None) -> torch.device:
    """Where the model is; a model without tensors is where its inputs are."""
    for tensor in chain(model.parameters(), model.buffers(), tensors(x)):
        return tensor.device
    return torch.device("cpu")


def _values(x: Any) -> list[Any]:
    if isinstance(x, Mapping):
        return list(x.values())
    return list(x) if isinstance(x, tuple) else [x]
