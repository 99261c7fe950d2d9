"""A network made ready to be quantised: a traced copy whose batch norms and constant factors are in its weights."""

import operator

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..batch import Example
from ..graph.calls import arguments
from ..graph.inplace import operator_name
from ..graph.tracing import module_of, propagate, trace
from .attention import write_out_attention

_PRODUCTS = {operator.mul, torch.mul, "mul"}


def fold_batch_norms(model: nn.Module, example: Example) -> fx.GraphModule:
    """A traced copy in eval mode that computes the same; the model is left as it is.

    A batch norm or a number that multiplies a convolution's output is folded into it: an integer convolution must be
    followed by its quantiser. Stochastic depth is left out, and attention is written out. Raises ValueError for a
    network that cannot be traced.
    """
    graph = trace(model, example)
    for node in list(graph.graph.nodes):
        if _skips_nothing(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    for node in list(graph.graph.nodes):
        if len(node.all_input_nodes) != 1:
            continue
        (source,) = node.all_input_nodes
        conv = module_of(source)
        if not isinstance(conv, nn.Conv2d) or len(source.users) > 1 or calls.count(source.target) > 1:
            continue  # what else reads the convolution, or calls it, would get the folded one too
        folded = _folded(node, conv)
        if folded is not None:
            graph.set_submodule(str(source.target), folded)
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
    write_out_attention(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()
    propagate(graph, example)
    return graph


def _skips_nothing(node: fx.Node) -> bool:
    """Whether a node is torchvision's stochastic depth in eval mode, which gives what it gets."""
    return operator_name(node.target) == "stochastic_depth" and not arguments(node).get("training")


def _folded(node: fx.Node, conv: nn.Conv2d) -> nn.Conv2d | None:
    """The convolution with the node behind it folded in, None for a node that is not folded."""
    norm = module_of(node)
    if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
        return fuse_conv_bn_eval(conv, norm)
    factors = [arg for arg in node.args if isinstance(arg, (int, float))]
    if node.target in _PRODUCTS and len(factors) == 1:
        with torch.no_grad():
            conv.weight *= factors[0]
            if conv.bias is not None:
                conv.bias *= factors[0]
        return conv
    return None
