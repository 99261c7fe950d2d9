"""Where quantisers stand, in the lab's networks and in networks of one's own."""

import pytest
import torch
from torch import nn

import lab
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.quantisation.placement import with_feature_output
from lab.pams.placement import PLACEMENTS, place_quantisers
from tests.pams.small import edsr, quantised

X = torch.rand(1, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def read_by(placement, reader: str) -> set[str]:
    return {point.source for point in placement.points if reader in point.readers}


def test_the_published_placements_disagree_as_documented():
    graph = fold_batch_norms(edsr(), X)
    placements = {name: place_quantisers(graph, name) for name in PLACEMENTS}
    assert [len(placements[name].groups()) for name in PLACEMENTS] == [4, 6, 6, 12]
    assert read_by(placements["fig1"], "blocks_0_conv1") == {"head"} and read_by(placements["fig1"], "add") == set()
    assert read_by(placements["repo"], "blocks_0_conv1") == set() and read_by(placements["repo"], "add") == {
        "head",
        "blocks_0_conv2",
    }
    assert read_by(placements["cadyq"], "blocks_0_conv1") == {"head"} and read_by(placements["cadyq"], "add") == {
        "head",
        "blocks_0_conv2",
    }
    for name in ("fig1", "repo", "cadyq"):
        assert placements[name].layers == ("blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2")
        assert list(placements[name].unquantised) == ["head", "fuse", "upsampler.0", "tail"]
        assert placements[name].feature == "add_2"


def test_only_what_stands_behind_a_relu_is_unsigned():
    graph = fold_batch_norms(edsr(), X)
    assert {point.source for point in place_quantisers(graph, "full").points if not point.signed} == {
        "blocks_0_relu",
        "blocks_1_relu",
    }
    assert all(point.signed for point in place_quantisers(graph, "full", unsigned=False).points)


def test_a_concatenation_and_its_parts_share_one_alpha():
    placement = place_quantisers(fold_batch_norms(lab.nets.rdn(blocks=2), X), "full")
    points = {point.source: point for point in placement.points}
    assert points["second"].group == points["blocks_0_relus_0"].group == points["blocks_0_relus_2"].group
    assert points["second"].group != points["blocks_0_fuse"].group
    assert points["add_1"].group == points["add"].group  # the fusion of all blocks reads both
    assert {source for source, point in points.items() if point.image} == {"x", "tail"}


def test_a_dense_block_quantises_each_concatenation_anew():
    placement = place_quantisers(fold_batch_norms(lab.nets.rdn(blocks=2), X), "repo")
    assert read_by(placement, "blocks_0_convs_0") == {"second"} and read_by(placement, "blocks_0_convs_1") == {"cat"}
    assert read_by(placement, "add") == {"second"}  # the shortcut is, the end of the branch is not
    assert read_by(placement, "fuse_0") == {"cat_6"} and read_by(placement, "fuse_1") == set()


def test_many_bits_change_little_and_few_much():
    net = edsr()
    with torch.no_grad():
        wanted = net(X)
        errors = []
        for bits in (8, 6, 4, 2):
            graph, _ = quantised(net, X, weight_bits=bits, activation_bits=bits, placement="full")
            errors.append(float((graph(X) - wanted).abs().mean()))
    assert errors == sorted(errors) and errors[0] < 0.01 < errors[-1]


def test_the_feature_is_what_the_upsampler_reads():
    graph = fold_batch_norms(edsr(), X)
    read = []
    graph.get_submodule("upsampler.0").register_forward_pre_hook(lambda _, args: read.append(args[0]))
    output, feature = with_feature_output(graph, place_quantisers(graph, "fig1").feature)(X)
    assert torch.equal(feature, read[0]) and torch.equal(output, graph(X))


class Foreign(nn.Module):
    """Norms, a scale, a transposed convolution, a leaky slope: what other people's networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.PReLU(), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = nn.functional.leaky_relu(self.head(x), 0.1)
        return torch.sigmoid(self.tail(self.up(x + 0.5 * self.body(x))))


@pytest.fixture(scope="module")
def users_net():
    net = Foreign()
    nn.init.normal_(net.body[1].running_mean)
    return net.eval()


def test_norms_and_factors_are_folded_exactly(users_net):
    graph = fold_batch_norms(users_net, X)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.modules())
    assert not any("mul" in node.name for node in graph.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(graph(X), users_net(X), atol=1e-5, rtol=1e-4)


def test_a_factor_between_two_readers_stays():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.tail = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y = self.conv(x)
            return self.tail(y * 0.5) + y

    net = Fork()
    with torch.no_grad():
        torch.testing.assert_close(fold_batch_norms(net, X)(X), net(X))


def test_what_cannot_be_quantised_is_named_and_left_in_float(users_net):
    placement = place_quantisers(fold_batch_norms(users_net, X), "full")
    assert placement.layers == ("head", "body.0", "body.3", "tail")
    assert placement.unquantised["up"] == "ConvTranspose2d is not quantised here"
    assert placement.unquantised["body.2"] == "PReLU is not quantised here"
    assert placement.unquantised["leaky_relu"] == "leaky_relu is computed in float"
    graph, _ = quantised(users_net, X, placement="full")
    assert type(graph.up) is nn.ConvTranspose2d


def test_a_chain_without_blocks_quantises_its_body():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )
    placement = place_quantisers(fold_batch_norms(net, X), "fig1")
    assert placement.layers == ("2",) and [point.readers for point in placement.points] == [("_2",)]


def test_a_network_with_nothing_to_quantise_is_told_in_one_line():
    with pytest.raises(ValueError, match="has no Conv2d, which pictures are made by"):
        place_quantisers(fold_batch_norms(nn.Sequential(nn.ReLU()), X), "full")
    with pytest.raises(ValueError, match=r"placement='fig1' finds no convolution .* take 'full'"):
        place_quantisers(fold_batch_norms(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)), X), "fig1")
