"""What one module keeps of its weights, and in which order."""

from typing import Any

import torch
from torch import fx, nn

from .channels import Channels
from .operators import CONVS, INSTANCE_NORMS, NORMS, TRANSPOSED
from .tracing import module_of, shape

LAYER_NORMS = (nn.LayerNorm, nn.RMSNorm)


def has_channels(node: fx.Node) -> bool:
    """Whether a node calls a module whose weights belong to channels."""
    module = module_of(node)
    per_channel = isinstance(module, nn.PReLU) and module.num_parameters > 1
    kinds = (*CONVS, *TRANSPOSED, *NORMS, *INSTANCE_NORMS, *LAYER_NORMS, nn.GroupNorm, nn.Linear)
    return isinstance(module, kinds) or per_channel


class Slice:
    """What one module keeps, and in which order: the indices of the rows that it writes and the columns that it reads.

    `index` lists the channels of a group that stay; every other group stays as it is.
    """

    def __init__(self, channels: Channels, node: fx.Node, index: dict[int, torch.Tensor]) -> None:
        module = module_of(node)
        if isinstance(module, LAYER_NORMS) and channels.axes.get(node) != len(shape(node)) - 1:
            self.rows = self.columns = torch.arange(shape(node)[-1])  # it normalises each channel by itself
            self.sizes = (len(self.rows),) * 2
            return
        axis = -1 if isinstance(module, (nn.Linear, *LAYER_NORMS)) else 1
        written, read = (channels.entries(n, axis) for n in (node, node.all_input_nodes[0]))
        self.rows, self.columns = channels.gather(written, index), channels.gather(read, index)
        self.sizes = len(written), len(read)

    def apply(self, module: nn.Module) -> None:
        """Cut and reorder the module's weights in place; its parameters are new ones where anything changes."""
        if all(
            torch.equal(part, torch.arange(n)) for part, n in zip((self.rows, self.columns), self.sizes, strict=True)
        ):
            return
        if isinstance(module, nn.Linear):
            cut(module, "weight", self.rows, self.columns)
            cut(module, "bias", self.rows)
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, (*CONVS, *TRANSPOSED)):
            self._cut_conv(module)
        elif isinstance(module, LAYER_NORMS):
            cut(module, "weight", self.rows)
            cut(module, "bias", self.rows)
            module.normalized_shape = (len(self.rows),)
        else:
            for name in ("weight", "bias", "running_mean", "running_var"):
                cut(module, name, self.rows)
            if isinstance(module, nn.GroupNorm):
                module.num_groups = module.num_groups * len(self.rows) // module.num_channels
            kinds = {nn.PReLU: "num_parameters", nn.GroupNorm: "num_channels"}
            setattr(
                module,
                next((size for k, size in kinds.items() if isinstance(module, k)), "num_features"),
                len(self.rows),
            )

    def _cut_conv(self, module: Any) -> None:
        """Groups go as wholes, so that each reads and writes as many channels as before."""
        columns = None if module.groups > 1 else self.columns
        if isinstance(module, TRANSPOSED):
            cut(module, "weight", self.columns, None if module.groups > 1 else self.rows)
        else:
            cut(module, "weight", self.rows, columns)
        cut(module, "bias", self.rows)
        module.groups = module.groups * len(self.columns) // module.in_channels if module.groups > 1 else 1
        module.in_channels, module.out_channels = len(self.columns), len(self.rows)


def cut(module: nn.Module, name: str, rows: torch.Tensor, columns: torch.Tensor | None = None, axis: int = 0) -> None:
    """Keep these rows of a parameter or buffer, and of a weight these columns."""
    old = getattr(module, name, None)
    if old is None:
        return
    new = old.detach().index_select(axis, rows.to(old.device))
    if columns is not None:
        new = new[:, columns.to(old.device)]
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(new.clone(), requires_grad=old.requires_grad))
    else:
        setattr(module, name, new.clone())
