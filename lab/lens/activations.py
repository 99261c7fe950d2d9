"""What every layer of a model answers, read by hooks that are always taken away again."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import nn

from ..core.errors import first_line
from ..core.models import checked
from ..core.progress import tqdm
from ..core.task import evaluating
from .tokens import Axes, tracked

Input = torch.Tensor | tuple | dict  # one input, the positional inputs, or the inputs by name


def activations(model: nn.Module, x: Input, layers: Sequence[str] | str | None = None) -> dict[str, torch.Tensor]:
    """What the layers answer to x, by name in the order in which they ran; the model is left as it was.

    `layers` are names of `named_modules()`; left out, all modules that call no other. A layer that runs again gives
    'name#2', a tuple or a dict of tensors 'name[0]', 'name[key]'. x is a tensor with its batch axis, a tuple of inputs
    or a dict of inputs by name; floats are brought to the model's dtype and device. In eval mode, without gradients,
    and copied, so that a later layer in place changes nothing. Raises ValueError for a layer that is not there or did
    not run, and for an input that the model does not take.
    """
    return {name: output for name, (output, _) in _observed(model, x, layers).items()}


def placed(model: nn.Module, x: Input, layers: Sequence[str] | str | None = None) -> dict[str, torch.Tensor]:
    """What the layers answer to x with their filters on axis 1, tokens as maps without those that stand for no patch.

    A linear layer has its filters on the last axis, and so has what keeps its shape; the patches lie as the pixels do
    of the convolution that has made them. Tokens that do not fit them stay (N, tokens, filters).
    """
    return {name: axes.placed(output) for name, (output, axes) in _observed(model, x, layers).items()}


def left_out(model: nn.Module, x: Input, layers: Sequence[str] | str | None = None) -> dict[str, int]:
    """How many tokens of each layer stand for no patch and are in none of its maps: class tokens, registers."""
    return {name: axes.extra(output) or 0 for name, (output, axes) in _observed(model, x, layers).items()}


def _observed(model: nn.Module, x: Input, layers: Sequence[str] | str | None) -> dict[str, tuple[torch.Tensor, Axes]]:
    """What the layers answer to x, with what was known then of where filters and tokens lie."""
    modules = dict(checked(model).named_modules())
    names = [name for name in modules if name] if layers is None else named(model, layers)
    outputs: dict[str, tuple[torch.Tensor, Axes]] = {}
    calls: Counter[str] = Counter()
    ran: set[nn.Module] = set()
    with tracked(model) as axes:

        def note(name: str, output: Any) -> None:
            if layers is None and _called_inside(modules[name], ran):
                return
            calls[name] += 1
            key = name if calls[name] == 1 else f"{name}#{calls[name]}"
            seen = axes.at_present()
            outputs.update((key + suffix, (tensor.detach().clone(), seen)) for suffix, tensor in _tensors(output))

        with hooked(model, {name: partial(note, name) for name in names}):
            run(model, x)
    silent = [name for name in names if not calls[name]]
    if silent and layers is not None:
        raise ValueError(f"{silent[0]!r} did not run on this input: {type(model).__name__}'s forward does not call it")
    return outputs


def maps(model: nn.Module, x: Input, layers: Sequence[str] | str | None = None) -> dict[str, torch.Tensor]:
    """The outputs that are feature maps, (N, C, H, W) of more than one pixel, by layer; those of tokens are folded.

    ValueError where a named layer, or the whole model, gives none.
    """
    names = [] if layers is None else named(model, layers)
    outputs = placed(model, x, layers)
    by_layer = {name: output for name, output in outputs.items() if _is_map(output)}
    for name in names:
        if name not in by_layer and f"{name}[0]" in by_layer:
            by_layer[name] = by_layer.pop(f"{name}[0]")  # the first tensor speaks for a layer that gives several
        if name not in by_layer:
            shape = _shapes(outputs, name)
            raise ValueError(f"{name!r} gives {shape}, no feature maps (N, C, H, W): {_hint(model, x)}")
    if not by_layer:
        kind = type(model).__name__
        raise ValueError(f"no layer of {kind} gives feature maps (N, C, H, W): this needs a network of convolutions")
    return by_layer


def features(output: torch.Tensor, name: str) -> torch.Tensor:
    """A layer's output, (N, filters) or (N, filters, H, W), as it is; ValueError for another shape."""
    if output.ndim not in (2, 4):
        raise ValueError(
            f"{name!r} gives {tuple(output.shape)}, where filters are axis 1 of (N, filters) or (N, filters, H, W), "
            "or the last axis of tokens that lie on a grid of patches"
        )
    return output


def first_tensor(output: Any, name: str) -> torch.Tensor:
    """The first tensor of a layer's output, of 2 to 4 axes; ValueError for another shape."""
    tensor = next((tensor for _, tensor in _tensors(output)), None)
    if tensor is None or tensor.ndim not in (2, 3, 4):
        shape = None if tensor is None else tuple(tensor.shape)
        raise ValueError(f"{name!r} gives {shape}, where filters are axis 1 of (N, filters) or (N, filters, H, W)")
    return tensor


def reading(model: nn.Module, layer: str, x: Input) -> torch.Tensor:
    """What one layer gives at its first call: (N, filters) or (N, filters, H, W)."""
    return features(next(iter(placed(model, x, [layer]).values())), layer)


def first(outputs: Mapping[str, torch.Tensor], layer: str) -> torch.Tensor:
    """The first tensor that a layer gave at its first call."""
    return next(output for name, output in outputs.items() if name == layer or name.startswith(f"{layer}["))


def _called_inside(module: nn.Module, ran: set[nn.Module]) -> bool:
    """Whether a module has called another inside it; noted among those that `ran`.

    Torch's attention reads the weights of its last layer without calling it: it answers for that layer.
    """
    ran.add(module)
    return any(part in ran for part in module.modules() if part is not module)


def named(model: nn.Module, layers: Iterable[str] | str) -> list[str]:
    """The names, each once, or a one-line ValueError that offers the nearest ones."""
    modules = dict(checked(model).named_modules(remove_duplicate=False))
    names = [layers] if isinstance(layers, str) else list(layers)
    for name in names:
        if name not in modules or name == "":
            near = get_close_matches(str(name), modules, n=3, cutoff=0.5) or [name for name in modules if name][:5]
            hint = ", ".join(map(repr, near)) or "none, for it has no layers inside"
            raise ValueError(f"no layer {name!r} in {type(model).__name__}: the nearest are {hint}")
    return list(dict.fromkeys(names))


@contextmanager
def hooked(model: nn.Module, notes: Mapping[str, Callable[[Any], Any]]) -> Iterator[None]:
    """For a `with` block, hand each named layer's output to a function; what it returns, if not None, replaces it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    with ExitStack() as hooks:
        for name, note in notes.items():
            handle = modules[name].register_forward_hook(lambda _, __, output, note=note: note(output))
            hooks.callback(handle.remove)
        yield


def run(model: nn.Module, x: Input) -> Any:
    """The model's output in eval mode without gradients; the model's modes and torch's generator are left as they were.

    ValueError in one line where the model does not take x.
    """
    moved = as_taken(model, x)
    try:
        with torch.no_grad(), evaluating(model), torch.random.fork_rng(devices=[]):
            return call(model, moved)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        reason = first_line(error)
        shapes = ", ".join(str(tuple(t.shape)) for _, t in _tensors(x)) or type(x).__name__
        raise ValueError(
            f"the model does not take an input of shape {shapes} ({reason}): give one that it does"
        ) from error


def call(model: nn.Module, x: Input) -> Any:
    """The model applied to an input, its positional inputs or its inputs by name."""
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def as_taken(model: nn.Module, x: Any) -> Any:
    """The input on the model's device, floats in its dtype."""
    if isinstance(x, dict):
        return {name: as_taken(model, value) for name, value in x.items()}
    if isinstance(x, tuple):
        return tuple(as_taken(model, value) for value in x)
    if not isinstance(x, torch.Tensor):
        return x
    like = next((p for p in checked(model).parameters() if p.is_floating_point()), x)
    return x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)


def over(batches: Iterable, progress: str = "") -> Iterator[Any]:
    """The batches with a bar under that name; a loader that shuffles draws from a copy of torch's generator."""
    if isinstance(batches, Iterator):
        kind = type(batches).__name__
        raise TypeError(f"the batches are a {kind}, which ends after one pass: give a DataLoader or a list")
    state = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws as soon as tqdm has it
        rest = iter(tqdm(batches, desc=progress, disable=not progress, leave=False))
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            try:
                batch = next(rest)
            except StopIteration:
                return
            state = torch.get_rng_state()
        yield batch


def labelled(batches: Iterable, progress: str = "", what: str = "y") -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches as (x, y); ValueError where there are none, or one is not a pair of equal length."""
    empty = True
    for batch in over(batches, progress):
        empty = False
        pair = isinstance(batch, (tuple, list)) and len(batch) >= 2 and isinstance(batch[1], torch.Tensor)
        if not pair or len(batch[0]) != len(batch[1]):
            raise ValueError(f"a batch is no pair (x, {what}) of equal length: give one {what} for each picture")
        yield batch[0], batch[1]
    if empty:
        raise ValueError(f"the batches are empty: give at least one (x, {what})")


def as_images(x: Any, name: str = "x") -> torch.Tensor:
    """x as a batch of pictures (N, C, H, W); ValueError in one line for anything else, and for NaN."""
    if not isinstance(x, torch.Tensor) or x.ndim != 4 or not len(x):
        shape = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"{name} is {shape}: give a batch of pictures (N, C, H, W)")
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or infinite values: clean the pictures first")
    return x.detach()


def _is_map(output: torch.Tensor) -> bool:
    return output.ndim == 4 and output.shape[2] * output.shape[3] > 1


def _tensors(output: Any, suffix: str = "") -> list[tuple[str, torch.Tensor]]:
    """The tensors of an output with their index in it: '' for a tensor alone, '[0]', '[1][0]', '[key]'."""
    if isinstance(output, torch.Tensor):
        return [(suffix, output)]
    if isinstance(output, Mapping):
        parts: Iterable = output.items()
    elif isinstance(output, (tuple, list)):
        parts = enumerate(output)
    else:
        return []
    return [tensor for key, value in parts for tensor in _tensors(value, f"{suffix}[{key}]")]


def _shapes(outputs: Mapping[str, torch.Tensor], name: str) -> str:
    shapes = [str(tuple(out.shape)) for key, out in outputs.items() if key == name or key.startswith(f"{name}[")]
    return ", ".join(shapes) or "nothing"


def _hint(model: nn.Module, x: Input) -> str:
    names = [name for name, output in placed(model, x).items() if _is_map(output)]
    if not names:
        return f"no layer of {type(model).__name__} does"
    return f"choose among {', '.join(map(repr, names[:4]))}{' ...' if len(names) > 4 else ''}"
