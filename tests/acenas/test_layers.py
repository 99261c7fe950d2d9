"""Encoders: sizes, and what they must not see."""

import torch

import lab
from lab.acenas.layers import GraphBatch, GraphEncoder, Scorer
from lab.acenas.scorers import SETTINGS


def scorer(name: str, features: int, **others) -> Scorer:
    s = SETTINGS[name]
    encoder = GraphEncoder(features, s.hidden, pool=s.pool, out=s.out, fuse=s.fuse, **others)
    return Scorer(encoder, s.head, s.dropout)


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_encoder_has_the_sizes_of_the_released_code():
    net = scorer("gcn", 7)
    convolutions = 7 * 64 + 64 + 3 * (64 * 64 + 64)
    reader = 64 * 32 + 32 + 32 * 64 * 5 + 64
    assert count(net.encoder) == convolutions + reader + 64 * 128 + 128
    assert count(net.heads) == 128 * 128 + 128 + 128 + 1


def test_chains_of_blocks_have_sizes_of_their_own():
    net = scorer("chain", 12)
    convolutions = 12 * 128 + 128 + 3 * (128 * 128 + 128)
    reader = 128 * 32 + 32 + 32 * 128 * 5 + 128
    assert count(net.encoder) == convolutions + reader and net.encoder.width == 128
    assert count(net.heads) == 128 * 256 + 256 + 256 + 1


def test_two_graphs_and_real_numbers_are_joined():
    graphs = [[lab.Graph(("in", op, "out"), ((0, 1), (1, 2))), lab.Graph(("in", "out"), ((0, 1),))] for op in "ab"]
    space = lab.Space(graphs=graphs, labels=torch.tensor([1.0, 2.0]), hparams=torch.tensor([[0.5], [1.5]]))
    x = GraphBatch.of(space)
    assert x.nodes.shape == (2, 2, 3, 4) and x.present[0, 1].tolist() == [True, True, False]
    net = scorer("gcn", 4, parts=2, hparams=1)
    assert net.encoder.fuse.in_features == 2 * 64 + 1 and net(x).shape == (2, 1)


def test_the_order_of_nodes_does_not_matter():
    torch.manual_seed(0)
    one = lab.Graph(("in", "a", "b", "out"), ((0, 1), (0, 2), (1, 3), (2, 3)))
    other = lab.Graph(
        ("in", "b", "a", "out"), ((0, 1), (0, 2), (1, 3), (2, 3))
    )  # the same, a and b listed the other way
    third = lab.Graph(("in", "a", "b", "out"), ((0, 1), (1, 2), (2, 3)))
    x = GraphBatch.of(lab.Space(graphs=[one, other, third], labels=torch.zeros(3)))
    for name in ("gcn", "brp"):
        net = scorer(name, x.nodes.shape[-1]).eval()
        with torch.no_grad():
            a, b, c = net(x)[:, 0].tolist()
        assert abs(a - b) < 1e-6 and abs(a - c) > 1e-5


def test_padding_does_not_matter():
    torch.manual_seed(0)
    small, large = lab.Graph(("a", "b"), ((0, 1),)), lab.Graph(tuple("abbbb"), tuple((i, i + 1) for i in range(4)))
    alone = GraphBatch.of(lab.Space(graphs=[small, lab.Graph(("b", "a"), ((0, 1),))], labels=torch.zeros(2)))
    padded = GraphBatch.of(lab.Space(graphs=[small, large], labels=torch.zeros(2)))
    for name in ("gcn", "vanilla"):
        net = scorer(name, 2).eval()
        with torch.no_grad():
            assert torch.allclose(net(alone)[0], net(padded)[0], atol=1e-6)
