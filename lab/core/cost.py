"""What a model costs: parameters, multiply-adds and bytes are counted, latency is measured; nothing is guessed."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .batch import Example, call, device_for, each, moved, tensors
from .errors import first_line
from .models import checked
from .quantisation.qparams import int_repr
from .task import evaluating

__all__ = ["Latency", "bytes_stored", "latencies", "latency", "layer_macs", "macs", "parameters"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # batch and instance norms: _NormBase
_LEAST = 3  # rounds that are timed, however long they take
_WARM_UP = 3  # calls before the clock starts: the first ones allocate and choose algorithms


# Counted --------------------------------------------------------------------------------------------------------------


def parameters(model: nn.Module, convention: Literal["all", "paper"] = "all") -> int:
    """Number of parameters, shared ones counted once.

    "all" counts every one; "paper" leaves out those of torch's normalisation layers, as pruning papers do.
    Raises ValueError for another convention.
    """
    if convention not in ("all", "paper"):
        raise ValueError(f"convention={convention!r}: choose 'all' or 'paper' (without normalisation layers)")
    counted = set(checked(model).parameters())
    if convention == "paper":
        norms = (module for module in model.modules() if isinstance(module, _NORMS))
        counted -= {parameter for norm in norms for parameter in norm.parameters(recurse=False)}
    return sum(parameter.numel() for parameter in counted)


def bytes_stored(model: nn.Module) -> int:
    """Bytes of the parameters and buffers as the smallest plain file keeps them, shared ones once.

    Each in its own dtype; a weight that lies on a grid as integers, in as few bits as the largest takes, with the steps
    of its grid. Each tensor of two or more axes is stored dense or sparse, whichever is smaller: sparse is a bit for
    every entry, which says whether it is 0, and those in full that are not.
    """
    tensors = {id(t): t for t in checked(model).state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor)}
    integers, steps = _on_grids(model)
    tensors |= {id(step): step for step in steps}
    bits = {key: _bits(codes) for key, codes in integers.items()}
    return sum(_stored(integers.get(key, t), bits.get(key, 8 * t.element_size())) for key, t in tensors.items())


def _on_grids(model: nn.Module) -> tuple[dict[int, torch.Tensor], list[torch.Tensor]]:
    """The integers of the weights that lie on grids, by the identity of the weight, and the steps of the grids."""
    integers, steps = {}, []
    for module in model.modules():
        if (on_grid := int_repr(module)) is not None:
            (codes, step), weight = on_grid, module.get_parameter("weight")
            if torch.equal(codes.to(step) * step, weight):
                integers[id(weight)] = codes
                steps.append(step)
    return integers, steps


def _bits(codes: torch.Tensor) -> int:
    """The least bits of a signed integer that holds each of these."""
    return max((code if code >= 0 else -1 - code).bit_length() for code in map(int, codes.aminmax())) + 1


def _stored(tensor: torch.Tensor, bits: int) -> int:
    """Bytes of a tensor of so many bits an entry, dense or sparse."""
    n = tensor.numel()
    dense = -(-n * bits // 8)
    if tensor.dim() < 2:
        return dense
    return min(dense, -(-n // 8) - (-int((tensor != 0).sum()) * bits // 8))


def macs(model: nn.Module, example: Example) -> int:
    """Multiply-adds of convolutions, linear layers and matrix products for `example` as given, in eval mode.

    Give an example of batch 1 for the number papers print; a tuple holds positional inputs, a dict inputs by name.
    Recurrent and bilinear layers count as nothing.
    Raises ValueError if the model does not take the example.
    """
    with _counting() as counter:
        _output(checked(model), example)
    return counter.get_total_flops() // 2  # a multiply-add is two operations


def layer_macs(model: nn.Module, example: Example) -> dict[str, int]:
    """Multiply-adds that each module does itself, by its name in `named_modules()`; together they are `macs`.

    Modules that do none are left out; what a module does outside its children stands under its own name.
    Raises ValueError if the model does not take the example.
    """
    flops_of: dict[str, int] = {}
    with _counting() as counter, ExitStack() as hooks:
        running: list[list[int]] = []  # of each module now in its forward: [count at entry, count inside its children]

        def enter(*_: Any) -> None:
            running.append([counter.get_total_flops(), 0])

        def leave(name: str) -> None:
            start, inside = running.pop()
            total = counter.get_total_flops() - start
            flops_of[name] = flops_of.get(name, 0) + total - inside
            if running:
                running[-1][1] += total

        for name, module in checked(model).named_modules():
            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(lambda *_, name=name: leave(name)).remove)
        _output(model, example)
    return {name: flops // 2 for name, flops in flops_of.items() if flops}


def macs_without(model: nn.Module, example: Example, zeros: Mapping[str, int]) -> int:
    """Multiply-adds without those of pruned weights; `zeros` counts them by the name of their parameter.

    Each weight of a layer is used equally often, and only what a module `name` does with `name.weight` is spared.
    Raises ValueError if the model does not take the example.
    """
    layers, spared = layer_macs(model, example), 0
    for name, count in layers.items():
        if gone := zeros.get(f"{name}.weight"):
            spared += count // model.get_parameter(f"{name}.weight").numel() * gone
    return sum(layers.values()) - spared


# Measured -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass of a whole batch: median and quartiles in ms, and what it was measured with."""

    median: float
    low: float
    high: float
    batch: int
    threads: int
    device: str
    times: tuple[float, ...] = field(repr=False)  # ms, one per round

    def over(self, other: "Latency") -> float:
        """How many times longer this one took than `other`: the median of the ratios, round by round.

        Both must come from the same `latencies` call; raises ValueError if they cannot.
        """
        if (self.batch, self.threads, len(self.times)) != (other.batch, other.threads, len(other.times)):
            raise ValueError(f"{self} and {other} were measured apart: time them together with cost.latencies")
        return statistics.median(a / b for a, b in zip(self.times, other.times, strict=True))

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.median:.3g} ms ({self.low:.3g} to {self.high:.3g}), batch {self.batch}, {threads}, {self.device}"


def latency(model: nn.Module, example: Example, *, batch: int = 1, repeats: int = 30, threads: int = 1) -> Latency:
    """Measure the time of a forward pass in ms, in eval mode on the model's device, after a warm-up.

    `batch` repeats the first item of `example`; `threads` is torch's number of CPU threads, set back afterwards.
    Raises ValueError for counts that are too small, a meta model, or an example that the model does not take.
    """
    return latencies({"model": model}, example, batch=batch, repeats=repeats, threads=threads)["model"]


def latencies(
    models: Mapping[str, nn.Module],
    example: Example,
    *,
    batch: int = 1,
    repeats: int = 30,
    threads: int = 1,
    seconds: float = math.inf,
) -> dict[str, Latency]:
    """Measure several models in turn, round by round, so that a noisy machine disturbs all of them alike.

    The order turns round with every round; none but the first three begins after `seconds`. Other arguments and errors
    as for `latency`; ratios: `dense.over(pruned)`.
    """
    _at_least("batch", batch, 1)
    _at_least("repeats", repeats, _LEAST)
    _at_least("threads", threads, 1)
    end = time.perf_counter() + seconds
    calls = {name: _prepared(name, model, _batched(example, batch)) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    with ExitStack() as stack:
        stack.enter_context(_threads(threads))
        for model in models.values():
            stack.enter_context(evaluating(model))
        for i in range(_WARM_UP):
            if i == 0 or time.perf_counter() < end:
                for call in calls.values():
                    call()
        for i in range(repeats):
            if i >= _LEAST and time.perf_counter() >= end:
                break
            for name in list(calls) if i % 2 == 0 else reversed(calls):
                start = time.perf_counter()
                calls[name]()
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: _summary(times[name], batch, threads, device_for(models[name], example)) for name in models}


def _prepared(name: str, model: nn.Module, example: Example) -> Callable[[], None]:
    """A call that runs the model once and returns when its device has finished."""
    device = device_for(checked(model), example)
    if device.type == "meta":
        raise ValueError(f"{name} is on the meta device, which computes nothing: build it on the cpu to time it")
    placed = moved(example, device)
    _output(model, placed)  # a wrong example fails here, in one line, before anything is timed

    def timed() -> None:
        with torch.no_grad():
            call(model, placed)
        settle(device)

    return timed


def settle(device: torch.device) -> None:
    """Wait until everything queued on an accelerator is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _summary(times: list[float], batch: int, threads: int, device: torch.device) -> Latency:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, low, high, batch, threads, str(device), tuple(times))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch's CPU threads set to `count`, and back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Running a model on an example ----------------------------------------------------------------------------------------


@contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    """Count operations; attention is spelled out meanwhile, for the counter cannot look into all its fused forms."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _output(model: nn.Module, example: Example) -> Any:
    """The model's output in eval mode, or a one-line error that says why there is none."""
    placed = moved(example, device_for(model, example))
    try:
        with torch.no_grad(), evaluating(model):
            return call(model, placed)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        reason = first_line(error)
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors(example)) or type(example).__name__
        raise ValueError(
            f"the model does not take an example of shape {shapes} ({reason}): give one that it does"
        ) from error


def _batched(example: Example, batch: int) -> Example:
    """The first item of every tensor, `batch` times; tensors without axes stay."""
    return each(example, lambda x: x[:1].repeat(batch, *[1] * (x.ndim - 1)) if x.ndim else x)


def _at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: give an integer, {least} or more")
