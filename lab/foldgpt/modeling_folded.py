"""A causal language model whose blocks share weights: what `transformers` needs to load one, in a file by itself.

Each logical layer is a module of its own, with its own `layer_idx` and so its own place in the cache, its own norms and
its own low-rank adapters; only the large matrices of a group are the same tensors.
"""

from pathlib import Path

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """A linear layer and its layer's own correction of low rank: y = base(x) + x A^T B^T, A (r, in), B (out, r)."""

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        rows, columns = out_in(base)
        like = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.base = base
        self.A = nn.Parameter(torch.randn(rank, columns, **like) / columns**0.5)
        self.B = nn.Parameter(torch.zeros(rows, rank, **like))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.A.T) @ self.B.T


def out_in(linear: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer; GPT-2 keeps its matrices the other way round."""
    rows, columns = linear.weight.shape
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
    found = [
        (len(child), owner, name)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) and not is_linear(child[0])
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} holds no list of blocks: give a decoder of repeated blocks")
    _, owner, name = max(found, key=lambda one: one[0])
    return owner, name


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks, one a logical layer."""
    owner, name = stack(model)
    return getattr(owner, name)


def adapt(block: nn.Module, rank: int) -> None:
    """Give every linear layer of a block an adapter."""
    for name, linear in linears(block).items():
        parent, _, last = name.rpartition(".")
        setattr(block.get_submodule(parent), last, LowRank(linear, rank))


def share(source: nn.Module, target: nn.Module) -> None:
    """Make the matrices and biases of `target` those of `source`, tensor for tensor; its norms and adapters stay."""
    for name, own in target.named_modules():
        if is_linear(own):
            for part in ("weight", "bias"):
                if getattr(own, part, None) is not None:
                    setattr(own, part, getattr(source.get_submodule(name), part))


def apply_fold(model: nn.Module, fold: dict) -> nn.Module:
    """Share and adapt in place as a plan says: `groups` of logical layers, the `rank` of their adapters."""
    layers = blocks(model)
    for group in fold["groups"]:
        if fold["rank"]:
            for layer in group:
                adapt(layers[layer], fold["rank"])
        for layer in group[1:]:
            share(layers[group[0]], layers[layer])
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


class FoldedForCausalLM:
    """What `AutoModelForCausalLM.from_pretrained` calls if it trusts remote code; gives the family's own class."""

    _auto_class = None

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModelForCausalLM") -> None:
        cls._auto_class = auto_class

    @classmethod
    def from_pretrained(cls, folder, *_, config=None, dtype=None, **__):
        """The folded model of a folder, in eval mode and in the dtype it was saved in, or `dtype`."""
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        folder = Path(folder)
        config = config or AutoConfig.from_pretrained(folder)
        fold = config.fold
        if hasattr(config, "auto_map"):
            del config.auto_map
        state = load_file(folder / "model.safetensors")
        stored = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
        kind = dtype if isinstance(dtype, torch.dtype) else min(stored, key=str)
        before = torch.get_rng_state()  # the weights that are drawn here are overwritten
        model = AutoModelForCausalLM.from_config(config, dtype=kind)
        apply_fold(model, fold)
        torch.set_rng_state(before)
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = {id(tensor) for name, tensor in model.state_dict(keep_vars=True).items() if name in state}
        lost = [name for name in missing if id(model.state_dict(keep_vars=True)[name]) not in tied]
        if lost or unexpected:
            raise ValueError(
                f"{folder} does not hold this model: {(lost + list(unexpected))[0]} is amiss; save it again"
            )
        if (folder / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return model.eval()
