"""Torch-Pruning on the same networks, share and check: what it removes against the same channels read as zeros."""

from copy import deepcopy

import torch
import torch_pruning as tp
from torch import Tensor, nn

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def pruned_and_masked(model: nn.Module, x: Tensor, share: float) -> tuple[nn.Module, nn.Module]:
    """The network as Torch-Pruning leaves it, and the network as it came with zeros in the columns that went.

    It is told what its own examples tell it: which layer gives the classes, and how many heads an attention has. A
    grouped convolution that reads what goes is not masked: of networks that have one, the difference says nothing yet.
    """
    smaller, masked = deepcopy(model), deepcopy(model)
    names = {module: name for name, module in smaller.named_modules()}
    layers = [module for module in smaller.modules() if isinstance(module, LAYERS)]
    columns = {layer: list(range(layer.weight.shape[_axis(layer)])) for layer in layers}
    pruner = tp.pruner.MagnitudePruner(
        smaller, x[:1], importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=share,
        ignored_layers=[layers[-1]],
        num_heads={m: m.num_heads for m in smaller.modules() if isinstance(m, nn.MultiheadAttention)},
    )  # fmt: skip
    for group in pruner.step(interactive=True):
        for dependency, index in group:
            layer = dependency.target.module
            reads = pruner.DG.is_in_channel_pruning_fn(dependency.handler)
            if reads and isinstance(layer, LAYERS) and getattr(layer, "groups", 1) == 1:
                gone = [columns[layer][i] for i in index]
                masked.get_submodule(names[layer]).weight.data.index_fill_(_axis(layer), torch.tensor(gone), 0)
                columns[layer] = [column for column in columns[layer] if column not in set(gone)]
        group.prune()
    smaller.zero_grad(set_to_none=True)
    return smaller.eval(), masked.eval()


def _axis(layer: nn.Module) -> int:
    """Where a layer's weight has what it reads."""
    return 0 if isinstance(layer, nn.ConvTranspose2d) else 1
