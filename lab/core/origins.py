"""Where a network came from, as plain values: by which call of which library it is built again."""

import inspect
import json
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from . import nets
from .errors import first_line, quiet, shown

PLAIN = (bool, int, float, str, type(None))
MOST_PARTS = 50_000  # modules and tensors; the largest networks of these libraries have fewer than 20,000
# What changes while a network is loaded or trained, or is said by its shapes too, and nothing of what it computes.
ASIDE = {"training", "name_or_path", "num_classes", "gradient_checkpointing", "warnings_issued"}


def describe(model: nn.Module) -> dict[str, Any] | None:
    """The call that builds a network of the same structure, as JSON holds it; None where no library of these has one.

    Each candidate is built, large ones without numbers, and compared module by module, so that a network that was
    changed after it was built (another stem, fewer channels) is not mistaken for the one that it began as.
    """
    for candidates in (_of_lab, _of_torchvision, _of_timm, _of_transformers, _of_diffusers):
        for config in candidates(model):
            for precise in _precisely(config, model):
                if _rebuilds(precise, model):
                    return precise
    return None


def base_of(task: Any) -> dict[str, Any] | None:
    """What an outcome stores of a task's network: the kind of the outcome that it comes from, or its description."""
    if task.origin is not None:
        return {"outcome": type(task.origin).__name__.removesuffix("Outcome")}
    return describe(task.model)


def build(config: Mapping[str, Any]) -> nn.Module:
    """The network of a description, with fresh weights; nothing global is drawn from, nothing is downloaded.

    ValueError in one line for a description that is none, ImportError where its library is not installed.
    """
    values = dict(config)
    dtype, is_cast = getattr(torch, values.pop("dtype", "float32"), None), values.pop("cast", True)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"base has the dtype {shown(config['dtype'])}: give one of torch, such as 'float32'")
    kind = next((kind for kind in BUILDERS if kind in values), None)
    try:
        with torch.random.fork_rng(devices=[]), quiet("diffusers", "transformers"):
            with _numbers_in(torch.float32 if is_cast else dtype), _bounded():
                model = nets.build(values) if kind is None else BUILDERS[kind](values)
    except ImportError:
        raise
    except Exception as error:  # of many kinds, by library, some with pages of advice
        if isinstance(error, ValueError) and first_line(error) == str(error):
            raise
        raise ValueError(
            f"the network that this was made from is none that {kind or 'lab.nets'} builds "
            f"({type(error).__name__}: {first_line(error)}): install the version that it was saved with"
        ) from error
    return model.to(dtype) if is_cast and dtype != torch.float32 else model


def name_of(model: nn.Module, config: Mapping[str, Any] | None) -> str:
    """What a network is called: by its library and the name there, or by its class."""
    if config is None:
        return type(model).__name__
    kind, name = next(iter(config.items()))
    return {"net": f"lab.nets.{name}", "outcome": f"what {name} made"}.get(kind, f"{kind}.{name}")


def hub_id(model: nn.Module) -> str | None:
    """The 'owner/name' of the hub that transformers or diffusers read a network's weights from; None for others."""
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return name if isinstance(name, str) and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) else None


def _precisely(config: dict[str, Any], model: nn.Module) -> list[dict[str, Any]]:
    """The description with the precision of the weights: built in it, which leaves some buffers finer, or cast."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype == torch.float32:
        return [config]
    cast = config | {"dtype": str(dtype).removeprefix("torch.")}
    return [cast | {"cast": False}, cast] if "transformers" in config else [cast]


@contextmanager
def _numbers_in(dtype: torch.dtype) -> Iterator[None]:
    """New tensors in this precision, for a block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _bounded() -> Iterator[None]:
    """A damaged description may ask for any number of layers of any size: ends before they are built, in a block."""
    thread, memory = threading.get_ident(), _memory()
    made = {"parts": 0, "bytes": 0}

    def count(module: nn.Module, name: str, part: Any) -> None:
        if threading.get_ident() != thread:
            return
        made["parts"] += 1
        if isinstance(part, nn.Parameter) and part.device.type == "cpu":
            made["bytes"] += part.numel() * part.element_size()  # memory that nothing was written to yet
        if made["parts"] > MOST_PARTS:
            raise ValueError(f"base asks for more than {MOST_PARTS:,} layers and weights: the file is damaged")
        if made["bytes"] > memory:
            raise ValueError(f"base asks for more than the {memory / 2**30:,.1f} GiB of memory of this machine")

    handles = [
        each(count) for each in (register_module_module_registration_hook, register_module_parameter_registration_hook)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _memory() -> float:
    """Bytes of this machine's memory; without end where the system does not tell."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf


def _rebuilds(config: Mapping[str, Any], model: nn.Module) -> bool:
    where = "cpu" if "net" in config else "meta"  # small ones are built before torch has got its meta kernels ready
    try:
        with torch.device(where):
            return _structure(build(config)) == _structure(model)
    except Exception:  # of many kinds, by library: such arguments are not the network's
        return False


def _structure(model: nn.Module) -> list[Any]:
    """All modules by name, with their classes and settings, and the shapes of all that is stored."""
    modules = [
        (name, type(module), _settings(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    tensors = [*model.state_dict().items(), *model.named_buffers()]  # of these some are not stored
    return [modules, [(name, tensor.shape, tensor.dtype) for name, tensor in tensors]]


def _settings(module: nn.Module) -> dict[str, Any]:
    """A module's plain attributes with their values, the others with their kinds."""
    return {
        name: value if _is_plain(value) else type(value).__qualname__
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in ASIDE
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, (tuple, list)) and all(map(_is_plain, value)))


def _comes_from(model: nn.Module, package: str) -> bool:
    return type(model).__module__.startswith(f"{package}.")


def _classes(model: nn.Module) -> int | None:
    """The outputs of the last linear layer or convolution."""
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return layers[-1].weight.shape[0] if layers else None


# -- lab.nets --------------------------------------------------------------------------------------------------------


def _of_lab(model: nn.Module) -> Iterator[dict[str, Any]]:
    config = getattr(model, "config", None)
    if isinstance(config, Mapping) and "net" in config:
        yield dict(config)


# -- torchvision -----------------------------------------------------------------------------------------------------


def _of_torchvision(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Each builder of the class's own module, with the network's number of classes and its plain settings."""
    if not _comes_from(model, "torchvision.models"):
        return
    from torchvision import models

    builders = {name: models.get_model_builder(name) for name in models.list_models()}
    parameters = inspect.signature(type(model)).parameters
    settings = {name: value for name, value in vars(model).items() if name in parameters and isinstance(value, PLAIN)}
    arguments = [{"num_classes": _classes(model)}, {}, settings, settings | {"num_classes": _classes(model)}]
    for name, builder in builders.items():
        if builder.__module__ == type(model).__module__:
            yield from ({"torchvision": name, "arguments": given} for given in arguments)


def _by_torchvision(config: Mapping[str, Any]) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise _missing("torchvision") from error
    builder = models.get_model_builder(config["torchvision"])
    weights = {"weights", "weights_backbone"} & {*inspect.signature(builder).parameters}
    return builder(**dict.fromkeys(weights), **config["arguments"])


# -- timm ------------------------------------------------------------------------------------------------------------


def _of_timm(model: nn.Module) -> Iterator[dict[str, Any]]:
    if not _comes_from(model, "timm.models"):
        return
    name = dict(getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if not name or convolution is None:
        return
    counts = dict.fromkeys([getattr(model, "num_classes", None), _classes(model)])
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    pool = getattr(model, "global_pool", None)
    further = {"img_size": list(size) if size else None, "global_pool": pool if isinstance(pool, str) else None}
    further = {name: value for name, value in further.items() if value is not None}
    for added in ({}, *({name: value} for name, value in further.items()), further):
        for classes in counts:
            given = {"num_classes": classes, "in_chans": convolution.in_channels}
            yield {"timm": name, "arguments": given | added}


def _by_timm(config: Mapping[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise _missing("timm") from error
    return timm.create_model(config["timm"], pretrained=False, **config["arguments"])


# -- transformers and diffusers --------------------------------------------------------------------------------------


def _of_transformers(model: nn.Module) -> Iterator[dict[str, Any]]:
    if _comes_from(model, "transformers.models"):
        given: Any = model.config
        config = json.loads(given.to_json_string(use_diff=False))
        attention = getattr(given, "_attn_implementation", None)
        yield {"transformers": type(model).__name__, "config": config, "attention": attention}


def _by_transformers(config: Mapping[str, Any]) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise _missing("transformers") from error
    kind = _class_of(transformers, config["transformers"], transformers.PreTrainedModel)
    settings = kind.config_class.from_dict(dict(config["config"]))
    settings._attn_implementation = config["attention"]
    return kind(settings)


def _of_diffusers(model: nn.Module) -> Iterator[dict[str, Any]]:
    if _comes_from(model, "diffusers.models"):
        given: Any = model.config
        parameters = inspect.signature(type(model)).parameters  # its config may hold more, with a warning for each
        config = {name: value for name, value in given.items() if name in parameters}
        yield {"diffusers": type(model).__name__, "config": json.loads(json.dumps(config))}


def _by_diffusers(config: Mapping[str, Any]) -> nn.Module:
    try:
        import diffusers
    except ImportError as error:
        raise _missing("diffusers") from error
    kind = _class_of(diffusers, config["diffusers"], diffusers.ModelMixin)
    return kind.from_config(dict(config["config"]))


def _class_of(library: Any, name: str, base: type) -> Any:
    """The class of this name of a library's own networks; nothing else that the library has is ever called."""
    kind = getattr(library, name, None)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ValueError(
            f"{library.__name__} {library.__version__} has no network {shown(name)}: install another version"
        )
    return kind


def _by_outcome(config: Mapping[str, Any]) -> nn.Module:
    raise ValueError(
        f"this was made from the network of another outcome ({config['outcome']}), which is not beside it: give "
        "base=outcome.model"
    )


def _missing(library: str) -> ImportError:
    return ImportError(f"the network that this was made from is one of {library}: pip install {library}")


BUILDERS = {
    "torchvision": _by_torchvision, "timm": _by_timm, "transformers": _by_transformers, "diffusers": _by_diffusers,
    "outcome": _by_outcome,
}  # fmt: skip
