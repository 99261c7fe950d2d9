"""torch's layers of attention are traced as plain operations, with their outputs, names and weights."""

import pytest
import torch
from torch import nn

from lab.core.graph.tracing import trace

E, HEADS, L = 12, 3, 5
X = torch.randn(2, L, E, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Attention whose query, key and value differ, given its masks and flags."""

    def __init__(self, call, **options):
        super().__init__()
        self.attention, self.call = nn.MultiheadAttention(E, HEADS, **options), call
        self.key, self.value = nn.Linear(E, options.get("kdim", E)), nn.Linear(E, options.get("vdim", E))
        for name, mask in call.items():
            if isinstance(mask, torch.Tensor):
                self.register_buffer(name, mask)

    def forward(self, x):
        given = {name: getattr(self, name, value) for name, value in self.call.items()}
        y, weights = self.attention(x, self.key(x), self.value(x), **given)
        return y if weights is None else (y, weights)


DROP = torch.rand(L, L, generator=torch.Generator().manual_seed(1)) > 0.7
ADDED = torch.randn(2 * HEADS, L, L, generator=torch.Generator().manual_seed(2))
PADDED = torch.arange(L) > torch.tensor([[2], [4]])
CASES = {
    "average": ({}, {}),
    "shares of each head": ({"average_attn_weights": False}, {"batch_first": True}),
    "output alone": ({"need_weights": False}, {"batch_first": True}),
    "other widths": ({"need_weights": False}, {"kdim": 7, "vdim": 4}),
    "no bias": ({}, {"bias": False, "batch_first": True}),
    "dropout": ({"need_weights": False}, {"dropout": 0.4}),
    "mask": ({"attn_mask": DROP}, {"batch_first": True}),
    "mask of each head": ({"attn_mask": ADDED, "need_weights": False}, {"batch_first": True}),
    "padding": ({"key_padding_mask": PADDED}, {"batch_first": True}),
    "mask and padding": ({"attn_mask": DROP, "key_padding_mask": PADDED}, {"batch_first": True, "dropout": 0.1}),
}


def same(model, *examples):
    graph = trace(model, examples[0])
    for x in examples:
        ours, theirs = ([y] if isinstance(y, torch.Tensor) else y for y in (graph(x), model(x)))
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, atol=1e-6), (a - b).abs().max()
    return graph


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_torchs(case):
    call, options = CASES[case]
    model = Net(call, **options).eval()
    batch_first = options.get("batch_first", False)
    graph = same(model, X if batch_first else X.transpose(0, 1))
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    assert {f"attention.{part}_proj" for part in ("q", "k", "v", "out")} <= called
    assert type(model.attention) is nn.MultiheadAttention


@torch.no_grad()
def test_no_batch_axis():
    same(Net({}).eval(), X[0])
    same(Net({"need_weights": False}, batch_first=True).eval(), X[0])


def test_gradients_are_torchs_while_training():
    model = Net({"need_weights": False}, batch_first=True).eval()
    graph = trace(model, X)
    for net in (model, graph):
        net(X).square().sum().backward()
    weight = model.attention.in_proj_weight.grad.chunk(3)[1]
    assert torch.allclose(graph.get_submodule("attention.k_proj").weight.grad, weight, rtol=1e-4, atol=1e-5)


def test_dropout_is_still_drawn_while_training():
    model = Net({"need_weights": False}, batch_first=True, dropout=0.5).eval()
    graph = trace(model, X)
    assert torch.equal(graph(X), graph(X))
    assert not torch.equal(graph.train()(X), graph(X))


class First(Net):
    def forward(self, x):
        return self.attention(x, x, x)[0]


def test_shares_that_nobody_reads_are_not_computed():
    names = [node.name for node in trace(First({}, batch_first=True), X).graph.nodes]
    assert "softmax" not in names and "mean" not in names


def test_a_learned_key_stays_one_layer():
    model = First({}, add_bias_kv=True, batch_first=True).eval()
    graph = same(model, X)
    assert type(graph.get_submodule("attention")) is nn.MultiheadAttention


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("norm", [None, nn.LayerNorm(E)])
@torch.no_grad()
def test_encoders(first, norm):
    layer = nn.TransformerEncoderLayer(E, HEADS, 20, batch_first=True, norm_first=first)
    same(nn.TransformerEncoder(layer, 2, norm).eval(), X)
    same(layer.eval(), X)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("first", [True, False])
@torch.no_grad()
def test_encoder_and_decoder(first):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Transformer(E, HEADS, 1, 2, 20, norm_first=first)
            self.register_buffer("mask", torch.ones(L, L).triu(1).bool())

        def forward(self, x):
            return self.net(x, 2 * x, tgt_mask=self.mask)

    same(Both().eval(), X.transpose(0, 1))
