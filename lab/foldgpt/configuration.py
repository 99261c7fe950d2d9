"""What a model's configuration says of its layers one by one, and how it says so of the blocks that stay."""

import json
from collections.abc import Sequence
from copy import deepcopy
from types import NoneType
from typing import Any

import torch
from torch import nn

from ..core.modeling_folded import blocks

LAYER_NUMBERS = {"layer_idx", "layer_id"}  # where a block's modules keep its index, for the cache
FIRST_LAYERS = {"max_window_layers", "first_k_dense_replace"}  # how many of the first layers are of a kind
PLAIN = (bool, int, float, str, NoneType)


def keep_layers(config: Any, kept: tuple[int, ...]) -> None:
    """Change a model's configuration in place, so that it says of each of the blocks `kept` what it said before."""
    part = config.get_text_config(decoder=True)
    count = part.num_hidden_layers
    lists = {name: value for name, value in vars(part).items() if isinstance(value, (list, tuple))}
    changed: dict[str, Any] = {"num_hidden_layers": len(kept)}
    for name, value in lists.items():
        if _numbers_layers(name, value, count):
            changed[name] = type(value)(kept.index(block) for block in value if block in kept)
        elif len(value) == count and "token" not in name and name != "architectures":
            changed[name] = type(value)(value[block] for block in kept)
    for name in FIRST_LAYERS & vars(part).keys():
        if isinstance(first := getattr(part, name), int):
            changed[name] = sum(block < first for block in kept)
    for name, value in changed.items():
        setattr(part, name, value)


def _numbers_layers(name: str, value: Sequence[Any], count: int) -> bool:
    """Whether a list names some layers by number, as `mlp_only_layers` does, and is not a mask of all of them."""
    are_layers = all(type(k) is int and 0 <= k < count for k in value) and len(set(value)) == len(value)
    return are_layers and name.endswith(("layers", "idxs", "indices")) and (len(value) < count or count > 2)


def validate_kept(model: Any, kept: tuple[int, ...]) -> None:
    """Raise unless a model that is built from a smaller configuration, as a file keeps it, has the blocks `kept`.

    Without their weights: nothing large is copied.
    """
    config = deepcopy(model.config)
    keep_layers(config, kept)
    name = type(model).__name__
    try:
        full, smaller = _built(model.config), _built(config)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{name} cannot be built with {len(kept)} of its blocks ({reason}): give a model whose configuration says "
            "of every layer what it is"
        ) from error
    for layer, block in enumerate(kept):
        before, after = _traits(full[block]), _traits(smaller[layer])
        apart = sorted(trait for trait in before.keys() | after.keys() if before.get(trait) != after.get(trait))
        if apart:
            raise ValueError(
                f"{name}: {apart[0]} of block {block} is {before.get(apart[0])!r} and would be {after.get(apart[0])!r} "
                f"as layer {layer} of {len(kept)}: give a model whose configuration says of every layer what it is"
            )


def _built(config: Any) -> nn.ModuleList:
    """The blocks of a new model of a configuration that went through a file, without weights."""
    from transformers import AutoModelForCausalLM

    read = type(config).from_dict(json.loads(config.to_json_string()))
    with torch.device("meta"):
        return blocks(AutoModelForCausalLM.from_config(read, trust_remote_code=False))


def _traits(block: nn.Module) -> dict[str, Any]:
    """What a block's modules are besides the values of their weights and their index."""
    traits: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in block.named_parameters()}
    for path, module in block.named_modules():
        for name, value in vars(module).items():
            parts = value if isinstance(value, (list, tuple)) else (value,)
            if name not in LAYER_NUMBERS and all(isinstance(part, PLAIN) for part in parts):
                traits[f"{path}.{name}".strip(".")] = value
    return traits
