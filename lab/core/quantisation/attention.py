"""Attention written out: the products and the softmax of `scaled_dot_product_attention`, each a node of its own.

A quantiser can stand behind each of them then, and an engine finds products of two tensors that it knows.
"""

import math
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from ..graph.calls import arguments
from ..graph.tracing import shape


def write_out_attention(graph: fx.GraphModule) -> None:
    """Put softmax(s Q K^T + M) V in the place of each scaled dot-product attention, in place; it computes the same.

    Attention that drops shares out in eval mode stays as it is.
    """
    for node in list(graph.graph.nodes):
        if node.target is F.scaled_dot_product_attention and not arguments(node)["dropout_p"]:
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(_written_out(graph, node, arguments(node)))
            graph.graph.erase_node(node)


def _written_out(graph: fx.GraphModule, node: fx.Node, args: dict[str, Any]) -> fx.Node:
    query, key, value = (args[name] for name in ("query", "key", "value"))
    repeats = shape(query)[-3] // shape(key)[-3] if args.get("enable_gqa") else 1
    make = graph.graph
    if repeats > 1:  # heads of queries that share a key and a value
        key, value = (_repeated(make, part, repeats) for part in (key, value))
    scale = shape(query)[-1] ** -0.5 if args["scale"] is None else args["scale"]
    scaled = make.call_function(torch.mul, (query, scale))
    scores = make.call_function(torch.matmul, (scaled, make.call_method("transpose", (key, -2, -1))))
    scores = _masked(graph, node, scores, args)
    return make.call_function(torch.matmul, (make.call_function(torch.softmax, (scores, -1)), value))


def _repeated(make: fx.Graph, part: fx.Node, repeats: int) -> fx.Node:
    """Each head (..., H, L, D) as often as queries share it, side by side: (..., H repeats, L, D)."""
    alone = make.call_method("unsqueeze", (part, -3))
    sizes = [-1] * (len(shape(part)) + 1)
    sizes[-3] = repeats
    return make.call_method("flatten", (make.call_method("expand", (alone, *sizes)), -4, -3))


def _masked(graph: fx.GraphModule, node: fx.Node, scores: fx.Node, args: dict[str, Any]) -> fx.Node:
    """The scores with what a query may not see at -inf, or with what a mask adds."""
    mask, make = args["attn_mask"], graph.graph
    if args["is_causal"]:
        name = f"{node.name}_mask"
        rows, columns = shape(args["query"])[-2], shape(args["key"])[-2]
        device = next((p.device for p in graph.parameters()), None)
        graph.register_buffer(name, torch.full((rows, columns), -math.inf, device=device).triu(1), persistent=False)
        return make.call_function(torch.add, (scores, make.get_attr(name)))
    if mask is None:
        return scores
    if mask.meta["tensor_meta"].dtype == torch.bool:
        return make.call_function(torch.where, (mask, scores, -math.inf))
    return make.call_function(torch.add, (scores, mask))
