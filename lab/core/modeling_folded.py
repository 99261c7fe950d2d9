"""A causal language model whose blocks share weights: what `transformers` needs to load one, in a file by itself.

Each logical layer is a module of its own, with its own `layer_idx` and so its own place in the cache, its own norms and
its own low-rank adapters; only the large matrices of a group are the same tensors. Such a model is one of its family's
own class that knows its shared tensors as tied ones, so `transformers` itself reads and writes it: in shards, in a
`dtype`, on several devices. A copy of this file lies in every folder that holds such a model, whose `model_type` is no
family's own: without this file `transformers` refuses it.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KIND = "folded"  # the `model_type` of such a folder; the family's own is kept as BASE
BASE = "base_model_type"
AUTO_MAP = {"AutoConfig": "modeling_folded.FoldedConfig", "AutoModelForCausalLM": "modeling_folded.FoldedForCausalLM"}
WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
HOW = ("max_memory", "offload_buffers", "offload_folder", "output_loading_info", "use_safetensors", "variant")
OF_AUTO = ("_from_auto", "adapter_kwargs", "code_revision", "name_or_path", "trust_remote_code")  # what Auto adds


class LowRank(nn.Module):
    """A linear layer and its layer's own correction of low rank: y = base(x) + x A^T B^T, A (r, in), B (out, r)."""

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        rows, columns = out_in(base)
        weight = base.get_parameter("weight")  # its device and dtype
        self.base = base
        self.A = nn.Parameter(torch.randn(rank, columns).to(weight) / columns**0.5)
        self.B = nn.Parameter(torch.zeros(rows, rank).to(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.A), self.B)

    @property
    def weight(self) -> Tensor:
        """The matrix of the layer inside, which some families look at from without."""
        return self.base.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer inside."""
        return getattr(self.base, "bias", None)


def out_in(linear: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer; GPT-2 keeps its matrices the other way round."""
    rows, columns = linear.get_parameter("weight").shape
    return (rows, columns) if isinstance(linear, nn.Linear) else (columns, rows)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix: `nn.Linear`, or the `Conv1D` of GPT-2."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def linears(block: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a block by name, those inside adapters and of experts left out."""
    inside = {f"{name}.base" for name, module in block.named_modules() if isinstance(module, LowRank)}
    named = {name: module for name, module in block.named_modules() if name not in inside and "expert" not in name}
    return {name: module for name, module in named.items() if is_linear(module)}


def stack(model: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the list of decoder blocks, and the list's name in it."""
    lists = [
        (len(child), holder, name)
        for holder in model.modules()
        for name, child in holder.named_children()
        if isinstance(child, nn.ModuleList) and len(child) and not is_linear(child[0])
    ]
    if not lists:
        raise ValueError(f"{type(model).__name__} holds no list of blocks: give a decoder of repeated blocks")
    _, holder, name = max(lists, key=lambda entry: entry[0])
    return holder, name


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks, one a logical layer."""
    holder, name = stack(model)
    return getattr(holder, name)


def adapt(block: nn.Module, rank: int) -> None:
    """Give every linear layer of a block an adapter."""
    for name, linear in linears(block).items():
        parent, _, last = name.rpartition(".")
        setattr(block.get_submodule(parent), last, LowRank(linear, rank))


def share(source: nn.Module, target: nn.Module) -> None:
    """Make the matrices and biases of `target` those of `source`, tensor for tensor; its norms and adapters stay."""
    for name, linear in target.named_modules():
        if is_linear(linear):
            for part in ("weight", "bias"):
                if getattr(linear, part, None) is not None:
                    setattr(linear, part, getattr(source.get_submodule(name), part))


def apply_fold(model: Any, fold: dict) -> Any:
    """Share and adapt in place as a plan says: `groups` of logical layers, the `rank` of their adapters."""
    layers = blocks(model)
    for group in fold["groups"]:
        if fold["rank"]:
            for layer in group:
                adapt(layers[layer], fold["rank"])
        for layer in group[1:]:
            share(layers[group[0]], layers[layer])
    if fold["groups"]:
        model.config.fold = fold
        family: Any = type(model)
        model.__class__ = folded_class(family)
        model.mark_shared()
    return model


def unfold(model: Any) -> Any:
    """Make a folded model one of its family again, in place; its matrices must be shared and adapted no more."""
    if issubclass(type(model), SharedLayers):
        del model.config.fold, model._tied_weights_keys, model._keys_to_ignore_on_load_unexpected
        model.__class__ = type(model).__mro__[2]
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    return model


def shared_names(model: nn.Module) -> dict[str, str]:
    """The names of tensors in later layers of a group, each with the name of the first layer's own."""
    first: dict[int, str] = {}
    names = [(name, id(tensor)) for name, tensor in model.named_parameters(remove_duplicate=False)]
    inside = {id(tensor) for tensor in blocks(model).parameters()}
    return {name: first[key] for name, key in names if key in inside and first.setdefault(key, name) != name}


def mark_of(model: Any) -> str:
    """The name of the empty tensor that keeps the family's class out of a folder.

    That class looks for a matrix under this name, and would fill it at random if it were missing; the wrong shape makes
    it refuse the file.
    """
    block = blocks(model)[model.config.fold["groups"][0][1]]
    layer = next(name for name, module in model.named_modules() if module is block)
    matrix = next(name for name, module in block.named_modules() if isinstance(module, LowRank) or is_linear(module))
    return f"{layer}.{matrix}.weight"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and the load report of `transformers`, for a block that says itself what is amiss."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    logging.set_verbosity(max(level, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


class SharedLayers:
    """What a folded model has before its family's class: it shares when it is made, and says so when it is saved."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        apply_fold(self, config.fold)

    def mark_shared(self: Any) -> None:
        """Note the shared tensors as tied ones, which `transformers` writes once and ties again."""
        family = dict(type(self)._tied_weights_keys or {}) if self.config.tie_word_embeddings else {}
        self._tied_weights_keys = family | shared_names(self)
        self._keys_to_ignore_on_load_unexpected = {
            mark_of(self),
            *(type(self)._keys_to_ignore_on_load_unexpected or ()),
        }
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys()

    def get_expanded_tied_weights_keys(self: Any, all_submodels: bool = False) -> dict[str, str]:
        """Names of tied tensors with those they are tied to; the family's own and the shared ones."""
        family = super().get_expanded_tied_weights_keys(all_submodels)  # type: ignore[misc]
        return family | shared_names(self) if hasattr(self.config, "fold") else family

    def tie_weights(self: Any, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie what is shared; in a folder the matrix that the mark stands for is a missing one."""
        if missing_keys is not None:
            missing_keys.add(mark_of(self))
        super().tie_weights(missing_keys, recompute_mapping)  # type: ignore[misc]
        if missing_keys is not None:
            missing_keys.discard(mark_of(self))

    @staticmethod
    def _load_pretrained_model(model: Any, state: Any, files: Any, how: Any, *rest: Any) -> tuple[Any, Any]:
        """Read the tensors of a folder; what lies on the disk is found there under the names of all that share it."""
        shared = shared_names(model)
        for name, first in shared.items() if how.device_map else ():
            if _lies_on(name, how.device_map) != _lies_on(first, how.device_map):
                raise ValueError(f"device_map parts {first} and {name}, which are one tensor: give both one device")
        family: Any = type(model).__mro__[2]
        info, on_disk = family._load_pretrained_model(model, state, files, how, *rest)
        for name, first in shared.items() if on_disk else ():
            if first in on_disk:
                on_disk[name] = on_disk[first]
        return info, on_disk

    def _adjust_bias(self: Any, output_embeddings: nn.Module, input_embeddings: Any) -> None:
        """Fit a tied bias to its matrix, but for GPT-2's, whose rows are inputs."""
        if isinstance(output_embeddings, nn.Linear):
            super()._adjust_bias(output_embeddings, input_embeddings)  # type: ignore[misc]

    def save_pretrained(
        self: Any, save_directory: Any, *, state_dict: Any = None, push_to_hub: bool = False, **options: Any
    ) -> None:
        """Write a folder as the family does, shared tensors once, that needs this file to be read; `options` likewise.

        ValueError for `push_to_hub`: `model.push_to_hub(repository)` sends the whole folder.
        """
        if push_to_hub:
            raise ValueError("a folded model is not sent while it is saved: call model.push_to_hub(repository)")
        state = self.state_dict() if state_dict is None else state_dict
        super().save_pretrained(save_directory, state_dict=state | {mark_of(self): torch.empty(0)}, **options)  # type: ignore[misc]
        path = Path(save_directory) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"model_type": KIND, BASE: self.config.model_type, "auto_map": AUTO_MAP}
        config["architectures"] = [FoldedForCausalLM.__name__]
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (Path(save_directory) / "modeling_folded.py").write_bytes(Path(__file__).read_bytes())


@cache
def folded_class(family: type) -> type:
    """The class of a family's folded models, under the name by which `transformers` looks up the family's facts."""
    if issubclass(family, SharedLayers):
        return family
    return type(family.__name__, (SharedLayers, family), {"__module__": family.__module__, "__doc__": family.__doc__})


class FoldedConfig:
    """What `AutoConfig.from_pretrained` calls if it trusts remote code; gives the family's own configuration."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing to register: the folder names this file."""

    @classmethod
    def from_pretrained(cls, folder: Any, **options: Any) -> Any:
        """The family's configuration of a folder, with its `fold`; `options` as transformers takes them."""
        from transformers import CONFIG_MAPPING, PreTrainedConfig

        values, options = PreTrainedConfig.get_config_dict(str(folder), **options)
        values["model_type"] = values.pop(BASE, values["model_type"])
        return CONFIG_MAPPING[values["model_type"]].from_dict(values, **options)


class FoldedForCausalLM:
    """What `AutoModelForCausalLM.from_pretrained` calls if it trusts remote code; gives the family's own class."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Nothing to register: the folder names this file."""

    @classmethod
    def from_pretrained(
        cls,
        folder: Any,
        *,
        config: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device_map: Any = None,
        **options: Any,
    ) -> Any:
        """The folded model of a folder or a hub id, in eval mode and, unless `dtype` is given, as precise as saved.

        `device_map` names a device, or says as transformers takes it what goes to several, or to the disk. ValueError
        for a folder that holds another model, TypeError for keywords that are not known.
        """
        options = {name: value for name, value in options.items() if value is not None}  # None asks for nothing
        _validate_known(options)
        where = {name: options[name] for name in WHERE if name in options}
        config = FoldedConfig.from_pretrained(folder, **where) if config is None else deepcopy(config)
        if hasattr(config, "auto_map"):
            del config.auto_map  # it is the folder's, and is written with it
        options = {name: value for name, value in options.items() if name not in OF_AUTO}
        device = _device(device_map)
        options |= {"dtype": _dtype(torch_dtype if dtype is None else dtype), "use_safetensors": True}  # no pickle
        options |= {} if device is not None else {"device_map": device_map}
        wants_info = options.pop("output_loading_info", False)
        try:
            with quiet():
                model, info = _class_of(config).from_pretrained(
                    str(folder), config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
                )
        except RuntimeError as error:
            if device is not None:
                raise
            reason = next(iter(str(error).splitlines()), "")
            raise ValueError(f"device_map={device_map!r} cannot be had here ({reason}): name one device") from error
        _validate_whole(model, info, folder)
        model = model if device is None else model.to(device)
        return (model.eval(), info) if wants_info else model.eval()


def _lies_on(name: str, device_map: dict[str, Any]) -> Any:
    """Where a tensor lies by the longest part of its name that a device map has."""
    parts = name.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), -1, -1))
    return next((device_map[part] for part in names if part in device_map), None)


def _class_of(config: Any) -> Any:
    """The class that a configuration's model has: the family's own, or its folded one."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    family = family[0] if isinstance(family, (list, tuple)) else family
    return folded_class(family) if (getattr(config, "fold", None) or {}).get("groups") else family


def _validate_whole(model: Any, info: dict[str, Any], folder: Any) -> None:
    """Raise unless all tensors of a model were in the folder, and nothing else; the mark is nobody's."""
    mark = {mark_of(model)} if hasattr(model.config, "fold") else set()
    strange = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]}
    amiss = sorted(({*info["missing_keys"], *info["unexpected_keys"]} | strange) - mark)
    if amiss:
        raise ValueError(f"{folder} does not hold this model: {amiss[0]} is amiss; save it again")


def _validate_known(options: Iterable[str]) -> None:
    unknown = [name for name in options if name not in {*WHERE, *HOW, *OF_AUTO, "attn_implementation"}]
    if unknown:
        raise TypeError(
            f"a folded model takes no {unknown[0]}=: give dtype, device_map, attn_implementation or where the files lie"
        )


def _device(device_map: Any) -> torch.device | None:
    """The one device that a `device_map` names; None where it says what goes to several."""
    name = device_map[""] if isinstance(device_map, dict) and set(device_map) == {""} else device_map
    if name == "auto" and find_spec("accelerate") is None:
        name = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    if isinstance(name, dict) or name in ("auto", "balanced", "balanced_low_0", "sequential", "disk"):
        if find_spec("accelerate") is None:
            raise ImportError(f"device_map={device_map!r} needs accelerate: pip install accelerate, or name one device")
        return None
    try:
        return torch.device("cpu" if name is None else name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device_map={device_map!r}: name a device such as 'cpu' or 'cuda:0', or 'auto'") from error


def _dtype(dtype: Any) -> Any:
    """The type that the numbers are turned into; 'auto' for 'auto' and None, which leave them as they were saved."""
    kind = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if kind in (None, "auto"):
        return "auto"
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype={dtype!r}: give a type of torch such as 'float32' or torch.bfloat16, or 'auto'")
    return kind
