"""Which networks the lab takes: plain modules with numbers in them; one line says what any other is."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from .batch import Example, tensors

_INSIDE = "_orig_mod"  # where torch.compile keeps the network that it was given


def checked(model: nn.Module) -> nn.Module:
    """The model itself; TypeError in one line for what is no module of torch."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    return model


def uncompiled(model: nn.Module) -> nn.Module:
    """The network that `torch.compile` was given; any other as it is. Of compiled parts, the same, in place."""
    for name, module in list(model.named_modules()):
        if name and not name.endswith(_INSIDE) and _INSIDE in module._modules:
            model.set_submodule(name, module.get_submodule(_INSIDE))
    return _unwrapped(model)


def original(model: nn.Module) -> nn.Module:
    """The network that was compiled, with a warning that says so; any other as it is."""
    if not any(_INSIDE in module._modules for module in model.modules()):
        return model
    warnings.warn(
        "Task.model is compiled: the network that torch.compile was given is compressed; compile what comes out",
        stacklevel=4,
    )
    return _unwrapped(model)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.get_submodule(_INSIDE) if _INSIDE in model._modules else model


def learnable(model: nn.Module) -> nn.Module:
    """The model itself; of one that was loaded for inference, all of whose parameters are frozen, all learn."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return model


def same_numbers(model: nn.Module) -> dict[int, nn.Parameter]:
    """What `deepcopy` is to put for a model's parameters: others of the copy's own, on the same memory."""
    plain = [p for p in model.parameters() if type(p) is nn.Parameter]
    return {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in plain}


def unmasked(model: nn.Module) -> nn.Module:
    """A copy with the masks of torch.nn.utils.prune multiplied in; the network itself where it has none."""
    masks = [
        (name, hook._tensor_name)
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]
    if not masks:
        return model
    computed = [getattr(model.get_submodule(name), part) for name, part in masks]  # which torch does not copy
    copy = deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
    for name, part in masks:
        prune.remove(copy.get_submodule(name), part)
    return copy


@contextmanager
def learning(parameters: Iterable[nn.Parameter], learns: bool) -> Iterator[None]:
    """All parameters learn, or none, for a `with` block; then each learns or is frozen as it was."""
    before = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(learns)
        yield
    finally:
        for parameter, learned in before:
            parameter.requires_grad_(learned)


def validate_model(model: nn.Module) -> None:
    """Raise a one-line ValueError for a network that cannot be traced, with the module, the cause and the remedy."""
    for name, module in model.named_modules():
        called = name or type(model).__name__
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise ValueError(f"{called} is wrapped around a network: give its .module")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{called} is TorchScript, which is not traced: give the nn.Module it was made from")
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise ValueError(f"{called} is a layer of integers ({type(module).__module__}): give the float network")
        for part, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and (reason := _unfit(tensor)):
                raise ValueError(f"{called} has a {part} that is {reason}")


def validate_weights(model: nn.Module) -> None:
    """Raise a one-line ValueError for weights that are on the meta device."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device, without numbers: load weights, or build it on the cpu")


def validate_precision(model: nn.Module, example: Example) -> None:
    """Raise a one-line ValueError for weights in half precision, whose own rounding is coarser than a quantiser's."""
    for name, tensor in model.named_parameters():
        if tensor.dtype in (torch.float16, torch.bfloat16):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name} is in {kind}, too coarse to quantise: give model.float() and float32 batches")


def validate_inputs(x: Example) -> None:
    """Raise a one-line ValueError for inputs that cannot be computed with."""
    for tensor in tensors(x):
        if tensor.is_meta:
            raise ValueError("Task.batches gives inputs on the meta device, without numbers: give tensors on the cpu")
        if reason := _unfit(tensor):
            raise ValueError(f"Task.batches gives an input that is {reason}")


def _unfit(tensor: Tensor) -> str:
    """Why a tensor is none to compute with, and what to do; '' for any other."""
    if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        return "not initialised, as in lazy layers: call the model on a batch once"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype}): call .dequantize() on it, or give the float network"
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout}): call .to_dense() on it"
    if tensor.is_complex():
        return f"complex ({tensor.dtype}): keep its real and imaginary parts in real tensors"
    return ""
