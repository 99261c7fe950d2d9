"""Every published count, without a weight: parameters, and multiply-adds at batch 2."""

import pytest
import torch

from lab.core import cost
from lab.hybridsd import references

from . import small

COUNTS = {
    "sd-1.4": 859_520_964, "sd-1.4-lcm": 859_602_884, "bk-base": 579_384_964, "bk-small": 482_346_884,
    "bk-tiny": 323_384_964, "instance-a": 224_491_396, "instance-a-lcm": 224_573_316, "sdxl": 2_567_463_684,
    "koala-700m": 782_822_724, "koala-1b": 1_161_184_324,
}  # fmt: skip
MACS = {"sd-1.4": 677_221_171_200, "bk-small": 435_290_767_360, "bk-tiny": 409_905_397_760}


@pytest.mark.parametrize("name", references.UNETS)
def test_parameters(name):
    assert cost.parameters(references.unet(name)) == COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", MACS)
def test_multiply_adds_of_a_guided_step_without_attention_products(name):
    assert references.unet_macs(references.unet(name)) == MACS[name]


@pytest.mark.slow
def test_attention_products_come_on_top():
    large, edge = references.unet("sd-1.4"), references.unet("instance-a")
    whole, small_one = (references.unet_macs(net, attention_products=True) for net in (large, edge))
    assert whole - MACS["sd-1.4"] == pytest.approx(126.1e9, rel=1e-3)
    assert whole == pytest.approx(803.3e9, rel=1e-3) and small_one == pytest.approx(365.9e9, rel=1e-3)
    assert small_one / whole == pytest.approx(0.456, abs=5e-4)


@pytest.mark.slow
def test_instance_a_costs_what_was_published():
    macs = references.unet_macs(references.unet("instance-a"))
    assert macs == pytest.approx(302.458e9, rel=1e-5)
    assert 25 * 2 * macs / 1e12 == pytest.approx(15.14, rel=3e-3)
    assert 8 * 2 * references.unet_macs(references.unet("sd-1.4-lcm")) / 1e12 == pytest.approx(10.86, rel=3e-3)


def test_decoders():
    kl, tiny = references.kl_vae(), references.tiny_vae()
    assert (cost.parameters(kl), cost.parameters(kl.decoder)) == (83_653_863, 49_490_179)
    assert (cost.parameters(tiny), cost.parameters(tiny.decoder)) == (2_445_063, 1_222_531)
    assert references.decoder_macs(kl) == pytest.approx(1240.08e9, rel=1e-5)
    assert references.decoder_macs(tiny) == pytest.approx(70.675e9, rel=1e-5)


def test_the_225_8_million_are_lcm_and_tiny_decoder():
    parts = references.unet("instance-a-lcm"), references.tiny_vae().decoder
    assert sum(cost.parameters(part) for part in parts) == 225_795_847


def test_an_own_unet_is_counted_and_left_as_it_was():
    net = small.unet()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    plain, whole = (references.unet_macs(net, 1, products) for products in (False, True))
    assert 0 < plain < whole and whole == cost.macs(net, references.example(net, 1))
    assert all(torch.equal(before[name], x) for name, x in net.state_dict().items())
    with pytest.raises(ValueError, match=r"name='sd-2' is not a reference: give one of sd-1\.4, "):
        references.unet("sd-2")
