"""EDSR and RDN: the paper's count to the digit, shapes, tracing, rebuilding, its two skips, and bad arguments."""

import pytest
import torch
from torch import fx

from lab.core import cost, nets


@pytest.mark.parametrize(("scale", "parameters"), [(2, 1_369_859), (3, 1_554_499), (4, 1_517_571)])
def test_baseline_has_the_published_parameters(scale, parameters):
    with torch.device("meta"):
        net = nets.edsr(blocks=16, width=64, scale=scale)
    assert cost.parameters(net) == parameters


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_tracing_and_rebuilding(scale, channels):
    net = nets.edsr(blocks=2, width=4, scale=scale, channels=channels, scaling=0.1)
    x = torch.rand(2, channels, 7, 5)
    again = nets.build(net.config)
    again.load_state_dict(net.state_dict())
    assert net(x).shape == (2, channels, 7 * scale, 5 * scale)
    assert torch.equal(again(x), net(x))
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))


def test_scaling_weighs_the_blocks():
    one, tenth = nets.edsr(blocks=1, width=4), nets.edsr(blocks=1, width=4, scaling=0.1)
    tenth.load_state_dict(one.state_dict())
    x = torch.rand(1, 4, 6, 6)
    torch.testing.assert_close(tenth.blocks[0](x) - x, 0.1 * (one.blocks[0](x) - x), atol=1e-6, rtol=1e-4)


def test_without_body_and_tail_the_mean_colour_comes_out():
    net = nets.edsr()
    torch.nn.init.zeros_(net.tail.weight)
    torch.nn.init.zeros_(net.tail.bias)
    assert net(torch.rand(1, 3, 4, 4))[0, :, 0, 0].tolist() == pytest.approx([0.4488, 0.4371, 0.4040])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 5}, "scale=5: give 2, 3 or 4"),
        ({"blocks": 0}, "blocks=0: give an integer, 1 or more"),
        ({"scaling": 0}, r"scaling=0: give a number above 0"),
        ({"scaling": "0.1"}, "scaling='0.1': give a number above 0"),
    ],
)
def test_bad_arguments_are_told_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        nets.edsr(**arguments)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_rdn_is_traced_rebuilt_and_enlarges(scale):
    net = nets.rdn(blocks=2, layers=2, growth=4, width=6, scale=scale, channels=1)
    x = torch.rand(2, 1, 7, 5)
    again = nets.build(net.config)
    again.load_state_dict(net.state_dict())
    assert net(x).shape == (2, 1, 7 * scale, 5 * scale)
    assert torch.equal(again(x), net(x)) and torch.equal(fx.symbolic_trace(net)(x), net(x))


def test_rdn_adds_its_blocks_inputs():
    net = nets.rdn(blocks=1, width=4, growth=4)
    torch.nn.init.zeros_(net.blocks[0].fuse.weight)
    torch.nn.init.zeros_(net.blocks[0].fuse.bias)
    x = torch.rand(1, 4, 6, 6)
    assert torch.equal(net.blocks[0](x), x)
    with pytest.raises(ValueError, match="growth=0: give an integer"):
        nets.rdn(growth=0)
    with pytest.raises(ValueError, match="scale=5: give 2, 3 or 4"):
        nets.rdn(scale=5)
