"""Heads, hidden units and widths of transformers, however they are written, are found and cut exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lab.core.graph import surgery
from lab.core.graph.channels import Channels
from lab.core.graph.groups import groups
from lab.core.graph.tracing import trace

from .test_channels import Masked, assert_exact

H, D = 4, 6
C = H * D


class Fused(nn.Module):
    """One layer for query, key and value; `ways` is how they are told apart."""

    def __init__(self, way):
        super().__init__()
        self.qkv, self.proj, self.way = nn.Linear(C, 3 * C), nn.Linear(C, C), way
        self.bias = nn.Parameter(torch.randn(25, H))
        self.register_buffer("index", torch.randperm(25).view(5, 5))

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x)
        if self.way == "chunk":
            q, k, v = qkv.chunk(3, dim=-1)
            q, k, v = (part.view(b, n, H, D).transpose(1, 2) for part in (q, k, v))
        elif self.way == "unbind":
            q, k, v = qkv.reshape(b, n, 3, H, c // H).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            qkv = qkv.reshape(b, -1, 3, H, D).permute(2, 0, 3, 1, 4)
            q, k, v = qkv[0], qkv[1], qkv[2]
        scores = (q * D**-0.5) @ k.transpose(-2, -1)
        scores = scores + self.bias[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).unsqueeze(0)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Apart(nn.Module):
    """A layer each for query, key and value; `way` is how they are multiplied."""

    def __init__(self, way, kv=H):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(C, C), nn.Linear(C, kv * D), nn.Linear(C, kv * D)
        self.o, self.way, self.kv, self.norm = nn.Linear(C, C), way, kv, nn.LayerNorm(D)

    def heads(self, x, count):
        return x.view(x.size(0), -1, count, D).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.heads(self.q(x), H), self.heads(self.k(x), self.kv), self.heads(self.v(x), self.kv)
        return self.o(getattr(self, self.way)(self.norm(q), k, v).transpose(1, 2).flatten(2))

    def sdpa(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def grouped(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    def repeated(self, q, k, v):
        k, v = (x.repeat_interleave(H // self.kv, dim=1) for x in (k, v))
        return self.sdpa(q, k, v)

    def expanded(self, q, k, v):
        b, kv, n, d = k.shape
        k, v = (x[:, :, None].expand(b, kv, H // kv, n, d).reshape(b, H, n, d) for x in (k, v))
        mask = torch.ones(5, 5).tril() == 0
        return torch.softmax((q @ k.mT * 0.3).masked_fill(mask, -torch.inf), -1) @ v

    def einsum(self, q, k, v):
        shares = torch.einsum("b h i d, b h j d -> b h i j", F.normalize(q, dim=-1), k).softmax(-1)
        return torch.einsum("...ij,...jd->...id", shares, v)

    def batched(self, q, k, v):
        q, k, v = (x.reshape(x.size(0) * H, -1, D) for x in (q, k, v))
        shares = torch.baddbmm(torch.zeros(1, 5, 5), q, k.transpose(1, 2), alpha=0.4).softmax(-1)
        return torch.bmm(shares, v).view(-1, H, 5, D)

    def linear(self, q, k, v):
        return F.relu(q) @ (F.relu(k).transpose(-2, -1) @ v)

    def rotated(self, q, k, v):
        angle = torch.arange(5.0)[:, None] * torch.ones(D)
        q, k = (x * angle.cos() + torch.cat([-x[..., D // 2 :], x[..., : D // 2]], -1) * angle.sin() for x in (q, k))
        return self.sdpa(q, k, v)


class Torchs(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(C, H, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Convs(nn.Module):
    """Tokens as pixels: heads from a 1x1 convolution, and an inner product over all channels of one head."""

    def __init__(self, heads):
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Conv1d(C, 3 * C, 1), nn.Conv1d(C, C, 1), heads

    def forward(self, x):
        q, k, v = self.qkv(x.transpose(1, 2)).unflatten(1, (3, self.heads, -1)).unbind(1)
        y = v @ (q.transpose(-2, -1) @ k * 0.2).softmax(-1).transpose(-2, -1)
        return self.proj(y.flatten(1, 2)).transpose(1, 2)


class NonLocal(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(C, C) for _ in range(4))

    def forward(self, x):
        return self.o((self.q(x) @ self.k(x).transpose(1, 2) / 5) @ self.v(x))


class Gated(nn.Module):
    """A gated linear unit: from one layer or from two."""

    def __init__(self, fused):
        super().__init__()
        self.up, self.gate = nn.Linear(C, 16 if fused else 8), None if fused else nn.Linear(C, 8)
        self.down = nn.Linear(8, C)

    def forward(self, x):
        value, gate = self.up(x).chunk(2, -1) if self.gate is None else (self.up(x), self.gate(x))
        return self.down(value * F.silu(gate))


def plain(*between):
    return nn.Sequential(nn.Linear(C, 8), nn.GELU(), *between, nn.Linear(8, C))


ATTENTIONS = {
    **{way: lambda way=way: Fused(way) for way in ("chunk", "unbind", "index")},
    **{way: lambda way=way: Apart(way) for way in ("sdpa", "einsum", "batched", "linear", "rotated")},
    **{f"{way} by two": lambda way=way: Apart(way, 2) for way in ("grouped", "repeated", "expanded")},
    "torch's": Torchs,
    "convolved": lambda: Convs(H),
}
OTHERS = {
    "one head": lambda: Convs(1),
    "non-local": NonLocal,
    "one key for all": lambda: Apart("grouped", 1),
    "plain": plain,
    "dropout": lambda: plain(nn.Dropout(0.3)),
    "normed": lambda: plain(nn.LayerNorm(8)),
    "fused gate": lambda: Gated(True),
    "gate": lambda: Gated(False),
}
BLOCKS = ATTENTIONS | OTHERS


class Tokens(nn.Module):
    """A small transformer of pictures."""

    def __init__(self, names):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, C, 4, 4), nn.Parameter(torch.randn(1, 1, C))
        self.places, self.scale = nn.Parameter(torch.randn(1, 5, C)), nn.Parameter(torch.rand(C))
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in names)
        self.blocks = nn.ModuleList(BLOCKS[name]() for name in names)
        self.norm, self.head = nn.LayerNorm(C), nn.Linear(C, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + self.scale * block(norm(x))
        return self.head(self.norm(x)[:, 0])


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def network(names, seed=0):
    torch.manual_seed(seed)
    return Tokens(names).eval()


def found(names):
    with torch.random.fork_rng(), torch.no_grad():
        channels = Channels(trace(network(names), X[:1]))
    return channels, groups(channels)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(list(BLOCKS)), min_size=1, max_size=3), st.integers(0, 2**16))
def test_random_plans_on_random_transformers_are_exact(names, seed):
    with torch.random.fork_rng(), torch.no_grad():
        net = network(names, seed)
        kept = {}
        for group in groups(Channels(trace(net, X[:1]))):
            rows = net.get_submodule(group.name).weight.shape[0] if "attention." not in group.name else C
            kept[group.name] = tuple(torch.rand(rows).gt(0.6).nonzero().flatten().tolist()) or (0,)
        assert_exact(net, surgery.Plan(channels=kept), X)
        if scores := surgery.magnitude(net, X[:1]):
            assert_exact(net, surgery.plan_at(scores, 0.3), X)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_whole_heads_go_with_all_that_belongs_to_them(name):
    channels, listed = found([name])
    (heads,) = (group for group in listed if group.kind == "heads")
    shared = 2 if "two" in name else 1
    assert (heads.size, len(heads.readers)) == (H // shared, 1)
    written = sum(len(channels.rows[producer]) for producer in heads.producers)
    assert written == C * (2 if shared == 2 else 3)
    assert heads.entries == len(channels.rows[heads.name]) // heads.size
    assert not [reason for group, reason in channels.frozen.items() if group in channels.heads]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("plain", {("hidden units", 8, 1)}),
        ("dropout", {("hidden units", 8, 1)}),
        ("fused gate", {("hidden units", 8, 2)}),
        ("gate", {("hidden units", 8, 1)}),
        ("normed", set()),
        ("non-local", {("hidden units", C, 1)}),
        ("one key for all", {("heads", H, D)}),
    ],
)
def test_other_groups_are_named_by_kind(name, wanted):
    assert {(group.kind, group.size, group.entries) for group in found([name])[1]} == wanted


def test_what_stays_says_why():
    reasons = {name: set(found([name])[0].frozen.values()) for name in ("normed", "one key for all")}
    assert "LayerNorm normalises over all of its channels" in reasons["normed"]
    assert any("shares its channels between all heads" in reason for reason in reasons["one key for all"])


class Renormalised(Masked):
    """Masked, with LayerNorms that take their statistics over what is kept."""

    def run_node(self, n):
        module = self.module.get_submodule(n.target) if n.op == "call_module" else None
        layout = self.channels.layouts.get(n)
        if isinstance(module, nn.LayerNorm) and self.channels.axes[n] == len(n.meta["tensor_meta"].shape) - 1:
            stays, x = self.channels.expand(layout, self.kept), self.env[n.args[0]]
            y = F.layer_norm(x[..., stays], (int(stays.sum()),), module.weight[stays], module.bias[stays], module.eps)
            return torch.zeros_like(x).masked_scatter(stays.expand(x.shape), y)
        return super().run_node(n)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from(list(BLOCKS)), min_size=1, max_size=2), st.integers(0, 2**16))
def test_an_embedding_loses_width_with_all_that_reads_and_writes_it(names, seed):
    with torch.random.fork_rng(), torch.no_grad():
        net = network(names, seed)
        channels = Channels(trace(net, X[:1]), embeddings=True)
        (embedding,) = (group for group in groups(channels) if group.name == "patches")
        assert (embedding.kind, embedding.size, embedding.entries) == ("embedding", C, 1)
        kept = tuple(torch.randperm(C)[:7].sort().values.tolist())
        plan = surgery.Plan(embedding={"patches": kept})
        small = surgery.remove(net, surgery.Plan.from_dict(plan.to_dict()), X[:1])
        expected = Renormalised(channels.graph, channels, surgery.kept_channels(channels, plan)).run(X)
        assert (small(X) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (small.token.shape[-1], small.norm.normalized_shape, small.head.in_features) == (7, (7,), 7)


def test_a_width_under_a_layer_norm_is_cut_as_an_embedding_only():
    net = network(["plain"])
    with pytest.raises(ValueError, match="patches cannot lose channels: LayerNorm normalises over all"):
        surgery.remove(net, surgery.Plan(channels={"patches": (0,)}), X[:1])
    with pytest.raises(ValueError, match="name it under embedding"):
        surgery.remove(net, surgery.Plan(channels={"patches": (0,)}, embedding={"blocks.0.2": (0,)}), X[:1])
    assert "embedding" not in surgery.Plan(channels={"patches": (0,)}).to_dict()


def test_a_norm_within_each_head_leaves_heads_as_they_are():
    with torch.random.fork_rng(), torch.no_grad():
        listed = groups(Channels(trace(network(["sdpa"]), X[:1]), embeddings=True))
    assert [(group.kind, group.name) for group in listed] == [("embedding", "patches"), ("heads", "blocks.0.q")]
