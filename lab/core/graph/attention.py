"""torch's own layers of attention as plain operations, so that a tracer sees what it would take for one node.

A layer keeps the names of its parts; `nn.MultiheadAttention`, whose three projections are one parameter, gets them as
layers: `q_proj`, `k_proj` and `v_proj` beside its `out_proj`.
"""

import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..batch import call, device_for, each
from ..task import evaluating

_MASKS = ("attn_mask", "key_padding_mask")


def plain_attention(model: nn.Module, example: Any) -> None:
    """Let a network's layers of attention compute by plain operations; their outputs are the same.

    What masks a layer is given is seen in a run on `example`. A layer that attends to a learned key or to zeros
    (`add_bias_kv`, `add_zero_attn`) stays as it is.
    """
    for module in model.modules():
        module.__class__ = _PLAIN.get(type(module), type(module))
    layers = {name: module for name, module in model.named_modules() if _is_plain(module)}
    if not layers:
        return
    masks = _masks_given(model, layers, example)
    for name, module in layers.items():
        if name:
            model.set_submodule(name, Attention(module, masks.get(name, {})))


def drop_unused(graph: fx.GraphModule) -> None:
    """Delete the shares of attention that nobody reads."""
    for node in reversed(list(graph.graph.nodes)):
        owners = [kind for _, kind in node.meta.get("nn_module_stack", {}).values()]
        if Attention in owners and not node.users:
            graph.graph.erase_node(node)


class Attention(nn.Module):
    """What `nn.MultiheadAttention` computes: softmax(Q K^T / sqrt(D) + M) V of each head, and a projection of all."""

    def __init__(self, module: nn.MultiheadAttention, masks: dict[str, Tensor]) -> None:
        super().__init__()
        weights = module.in_proj_weight
        parts = (
            (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight) if weights is None else weights.chunk(3)
        )
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        source = module.q_proj_weight if weights is None else weights
        self.q_proj, self.k_proj, self.v_proj = (
            _linear(weight, bias, source.requires_grad) for weight, bias in zip(parts, biases, strict=True)
        )
        out = module.out_proj
        self.out_proj, self.dropout = (
            _linear(out.weight, out.bias, out.weight.requires_grad),
            nn.Dropout(module.dropout),
        )
        self.head_dim, self.num_heads, self.batch_first = module.head_dim, module.num_heads, module.batch_first
        self.is_bool = {name: mask.dtype == torch.bool for name, mask in masks.items()}
        self.masks_heads = masks["attn_mask"].dim() == 3 if "attn_mask" in masks else False
        self.train(module.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        mask = self._mask(q, attn_mask, key_padding_mask)
        shares = value
        if need_weights or self.dropout.p:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            shares = self.dropout(torch.softmax(scores if mask is None else scores + mask, -1))
        attended = shares @ v if self.dropout.p else F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        rows = (attended.transpose(-3, -2) if self.batch_first else attended.movedim(-2, 0)).flatten(-2)
        if not need_weights:
            return self.out_proj(rows), None
        return self.out_proj(rows), shares.mean(-3) if average_attn_weights else shares

    def _heads(self, x: Tensor) -> Tensor:
        """(N, L, E), or (L, N, E), to (N, heads, L, D); without a batch axis alike."""
        heads = x.unflatten(-1, (-1, self.head_dim))
        return heads.transpose(-3, -2) if self.batch_first else heads.movedim(0, -2)

    def _mask(self, like: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """The sum of both masks, to be added to the scores; None without."""
        given = []
        if attn_mask is not None and "attn_mask" in self.is_bool:
            by_head = attn_mask.unflatten(0, (-1, self.num_heads)) if self.masks_heads else attn_mask
            given.append(self._added(by_head, "attn_mask", like))
        if key_padding_mask is not None and "key_padding_mask" in self.is_bool:
            given.append(self._added(key_padding_mask.unsqueeze(-2).unsqueeze(-2), "key_padding_mask", like))
        return sum(given[1:], given[0]) if given else None

    def _added(self, mask: Tensor, name: str, like: Tensor) -> Tensor:
        return torch.where(mask, -math.inf, 0.0).type_as(like) if self.is_bool[name] else mask


def _linear(weight: Tensor, bias: Tensor | None, learns: bool) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=learns)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=learns)
    return layer


def _is_plain(module: nn.Module) -> bool:
    is_torchs = type(module) is nn.MultiheadAttention
    return is_torchs and module.bias_k is None and not module.add_zero_attn


def _masks_given(model: nn.Module, layers: dict[str, Any], example: Any) -> dict[str, dict[str, Tensor]]:
    """The masks that each layer is called with in a run on an example."""
    given: dict[str, dict[str, Tensor]] = {}
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")

    def note(name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        called = dict(zip(names, args, strict=False)) | kwargs
        given[name] = {mask: called[mask] for mask in _MASKS if called.get(mask) is not None}

    hooks = [
        module.register_forward_pre_hook(lambda _, args, kwargs, name=name: note(name, args, kwargs), with_kwargs=True)
        for name, module in layers.items()
    ]
    with torch.no_grad(), evaluating(model):
        device = device_for(model, example)
        call(model, each(example, lambda x: x.to(device, copy=True)))
    for hook in hooks:
        hook.remove()
    return given


# -- layers around it, with the forward of torch's documentation -------------------------------------------------------


class _EncoderLayer(nn.TransformerEncoderLayer):
    def forward(self, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
        x = src
        if self.norm_first:
            x = x + self._sa_block(self.norm1(x), src_mask, src_key_padding_mask)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(x + self._sa_block(x, src_mask, src_key_padding_mask))
        return self.norm2(x + self._ff_block(x))


class _Encoder(nn.TransformerEncoder):
    def forward(self, src, mask=None, src_key_padding_mask=None, is_causal=None):
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        return src if self.norm is None else self.norm(src)


class _DecoderLayer(nn.TransformerDecoderLayer):
    def forward(
        self, tgt, memory, tgt_mask=None, memory_mask=None, tgt_key_padding_mask=None,
        memory_key_padding_mask=None, tgt_is_causal=False, memory_is_causal=False,
    ):  # fmt: skip
        x, to_self, to_memory = tgt, (tgt_mask, tgt_key_padding_mask), (memory_mask, memory_key_padding_mask)
        if self.norm_first:
            x = x + self._sa_block(self.norm1(x), *to_self)
            x = x + self._mha_block(self.norm2(x), memory, *to_memory)
            return x + self._ff_block(self.norm3(x))
        x = self.norm1(x + self._sa_block(x, *to_self))
        x = self.norm2(x + self._mha_block(x, memory, *to_memory))
        return self.norm3(x + self._ff_block(x))


class _Decoder(nn.TransformerDecoder):
    def forward(
        self, tgt, memory, tgt_mask=None, memory_mask=None, tgt_key_padding_mask=None,
        memory_key_padding_mask=None, tgt_is_causal=None, memory_is_causal=False,
    ):  # fmt: skip
        for layer in self.layers:
            tgt = layer(tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        return tgt if self.norm is None else self.norm(tgt)


class _Transformer(nn.Transformer):
    def forward(
        self, src, tgt, src_mask=None, tgt_mask=None, memory_mask=None, src_key_padding_mask=None,
        tgt_key_padding_mask=None, memory_key_padding_mask=None, src_is_causal=None, tgt_is_causal=None,
        memory_is_causal=False,
    ):  # fmt: skip
        memory = self.encoder(src, src_mask, src_key_padding_mask)
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        return self.decoder(tgt, memory, *masks)


_PLAIN: dict[type, type] = {
    nn.TransformerEncoderLayer: _EncoderLayer,
    nn.TransformerEncoder: _Encoder,
    nn.TransformerDecoderLayer: _DecoderLayer,
    nn.TransformerDecoder: _Decoder,
    nn.Transformer: _Transformer,
}
