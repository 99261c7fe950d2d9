"""Torch-Pruning on the same networks, share and check: what it removes against the same channels read as zeros."""

from copy import deepcopy

import torch_pruning as tp
from torch import Tensor, nn

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def pruned_and_masked(model: nn.Module, x: Tensor, share: float) -> tuple[nn.Module, nn.Module]:
    """The network as Torch-Pruning leaves it, and the network as it came with zeros in the columns that went.

    It is told what its own examples tell it: which layer gives the classes, and how many heads an attention has. Norms
    over channels (LayerNorm, GroupNorm) are left as they are: their statistics are then of what stays in the one
    network, of all channels in the other, which is what their difference tells.
    """
    smaller, masked = deepcopy(model), deepcopy(model)
    names = {module: name for name, module in smaller.named_modules()}
    layers = [module for module in smaller.modules() if isinstance(module, LAYERS)]
    columns = {layer: list(range(width(layer))) for layer in layers}  # what each still reads, as it came
    pruner = tp.pruner.MagnitudePruner(
        smaller, x[:1], importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=share,
        ignored_layers=[layers[-1]],
        num_heads={m: m.num_heads for m in smaller.modules() if isinstance(m, nn.MultiheadAttention)},
    )  # fmt: skip
    for group in pruner.step(interactive=True):
        for dependency, index in group:
            layer = dependency.target.module
            reads = pruner.DG.is_in_channel_pruning_fn(dependency.handler)
            if reads and isinstance(layer, LAYERS) and not is_depthwise(layer):
                gone = {columns[layer][i] for i in index}
                silence(masked.get_submodule(names[layer]), gone)
                columns[layer] = [column for column in columns[layer] if column not in gone]
        group.prune()
    smaller.zero_grad(set_to_none=True)
    return smaller.eval(), masked.eval()


def silence(layer: nn.Module, gone: set[int]) -> None:
    """Zeros in the weights with which a layer reads these channels of its input."""
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.data  # (O, I / groups, ...), transposed (I, O / groups, ...)
    if isinstance(layer, nn.ConvTranspose2d):
        weight[sorted(gone)] = 0
        return
    inputs, rows = weight.shape[1], len(weight) // groups
    for channel in gone:
        group = channel // inputs
        weight[group * rows : (group + 1) * rows, channel % inputs] = 0


def width(layer: nn.Module) -> int:
    """How many channels a layer reads."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def is_depthwise(layer: nn.Module) -> bool:
    """Whether every channel is read by an output of its own: that goes with it."""
    return 1 < getattr(layer, "groups", 1) == layer.in_channels
