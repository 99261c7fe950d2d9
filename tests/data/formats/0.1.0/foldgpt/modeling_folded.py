"""A causal language model whose blocks share weights: what `transformers` needs to load one, in a file by itself.

Each logical layer is a module of its own, with its own `layer_idx` and so its own place in the cache, its own norms and
its own low-rank adapters; only the large matrices of a group are the same tensors. A copy of this file lies in every
folder that holds such a model, whose `model_type` is no family's own: without this file `transformers` refuses it.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

KIND = "folded"  # the `model_type` of such a folder; the family's own is kept as BASE
BASE = "base_model_type"
AUTO_MAP = {"AutoConfig": "modeling_folded.FoldedConfig", "AutoModelForCausalLM": "modeling_folded.FoldedForCausalLM"}
WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
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
        return self.base(x) + (x @ self.A.T) @ self.B.T


def out_in(linear: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer; GPT-2 keeps its matrices the other way round."""
    rows, columns = linear.get_parameter("weight").shape
    return (rows, columns) if isinstance(linear, nn.Linear) else (columns, rows)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix: `nn.Linear`, or the `Conv1D` of GPT-2."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def linears(block: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a block by name, those inside adapters left out."""
    inside = {f"{name}.base" for name, module in block.named_modules() if isinstance(module, LowRank)}
    return {name: m for name, m in block.named_modules() if is_linear(m) and name not in inside}


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
    return model


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor once, under its first name."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach().cpu().contiguous()
    return state


def stored_state(model: Any) -> dict[str, Tensor]:
    """What a file holds: every tensor once and, where layers share, an empty one that keeps the family's class out.

    The family's own class looks for a matrix under the empty one's name, and would fill it at random if it were
    missing; the wrong shape makes it refuse the file.
    """
    fold = getattr(model.config, "fold", None)
    if not fold:
        return unique_state(model)
    block = blocks(model)[fold["groups"][0][1]]
    layer = next(name for name, module in model.named_modules() if module is block)
    matrix = next(name for name, module in block.named_modules() if isinstance(module, LowRank) or is_linear(module))
    return unique_state(model) | {f"{layer}.{matrix}.weight": torch.empty(0)}


def fill(model: nn.Module, state: dict[str, Tensor], source: object) -> None:
    """Put tensors in place of a model's, shared ones once; ValueError unless they are all there and fit."""
    present = model.state_dict(keep_vars=True)
    filled = {id(present[name]) for name in state if name in present}
    missing = [name for name, tensor in present.items() if id(tensor) not in filled]
    strange = [name for name, tensor in state.items() if name not in present or present[name].shape != tensor.shape]
    if missing or strange:
        raise ValueError(f"{source} does not hold this model: {(missing + strange)[0]} is amiss; save it again")
    for name, tensor in state.items():
        present[name].data = tensor


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
        attn_implementation: str | None = None,
        **options: Any,
    ) -> Any:
        """The folded model of a folder, in eval mode and, unless `dtype` is given, as precise as it was saved.

        `device_map` names one device. ValueError for a folder that holds another model, TypeError for other keywords.
        """
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import cached_file

        where = {name: options.pop(name) for name in WHERE if name in options}
        _validate_known(options)
        device, dtype = _device(device_map), _dtype(torch_dtype if dtype is None else dtype)
        config = config or FoldedConfig.from_pretrained(folder, **where)
        if hasattr(config, "auto_map"):
            del config.auto_map
        file = str(cached_file(str(folder), "model.safetensors", **where))
        state = {name: tensor for name, tensor in load_file(file, str(device)).items() if tensor.numel()}
        if dtype is not None:
            state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        kind = min((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), key=str)
        extra = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are overwritten
            model = AutoModelForCausalLM.from_config(config, dtype=kind, **extra)
            apply_fold(model, getattr(config, "fold", None) or {"groups": [], "rank": 0})
        fill(model.to(device), state, folder)
        settings = cached_file(
            str(folder), "generation_config.json", _raise_exceptions_for_missing_entries=False, **where
        )
        if settings:
            model.generation_config = GenerationConfig.from_pretrained(str(folder), **where)
        return model.eval()


def _validate_known(options: Iterable[str]) -> None:
    unknown = [name for name in options if name not in OF_AUTO]
    if unknown:
        raise TypeError(
            f"a folded model takes no {unknown[0]}=: give dtype, device_map, attn_implementation or where the files lie"
        )


def _device(device_map: Any) -> torch.device:
    """The one device that a `device_map` names; 'auto' is the accelerator where there is one."""
    name = device_map[""] if isinstance(device_map, dict) and set(device_map) == {""} else device_map
    if name == "auto":
        name = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:
        return torch.device("cpu" if name is None else name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device_map={device_map!r}: a folded model lies on one device: give its name, such as 'cpu' or 'cuda:0'"
        ) from error


def _dtype(dtype: Any) -> torch.dtype | None:
    """The type that the numbers are turned into; None for 'auto' and None, which leave them as they were saved."""
    kind = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if kind in (None, "auto"):
        return None
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype={dtype!r}: give a type of torch such as 'float32' or torch.bfloat16, or 'auto'")
    return kind
