"""The published counts, to the digit, on networks of the published size."""

import pytest
import torch

import lab
from lab.core import cost
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.pams import sizes
from lab.pams.placement import place_quantisers

PIXEL = torch.zeros(1, 3, 1, 1)


def counted(net, **fields):
    recipe = lab.PAMS(**fields)
    plain, graph = fold_batch_norms(net, PIXEL), fold_batch_norms(net, PIXEL)
    recipe.quantise(graph, place_quantisers(graph, recipe.placement))
    return sizes.count(plain, graph, PIXEL)


@pytest.fixture(scope="module")
def baseline():
    return lab.nets.edsr(blocks=16, width=64, scale=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "equivalent", "ratio"),
    [(8, 631_299, 2.4039), (6, 557_443, 2.7224), (4, 483_587, 3.1382), (3, 446_659, 3.3976), (2, 409_731, 3.7038)],
)
def test_edsr_x4_has_the_authors_sizes(baseline, bits, equivalent, ratio):
    counts = counted(baseline, weight_bits=bits, placement="repo")
    assert (counts.parameters, counts.quantised) == (1_517_571, 1_181_696)
    assert counts.equivalent == equivalent and round(counts.parameters / counts.equivalent, 4) == ratio


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "parameters", "macs", "share", "eight", "four"),
    [
        (2, 1_369_859, 1_372_608, 85.94, 5.147, 6.493),
        (3, 1_554_499, 1_565_568, 75.35, 3.406, 3.872),
        (4, 1_517_571, 1_983_168, 59.48, 2.261, 2.413),
    ],
)
def test_edsr_has_the_tables_bit_operations(scale, parameters, macs, share, eight, four):
    net = lab.nets.edsr(blocks=16, width=64, scale=scale)
    for bits, ratio in ((8, eight), (4, four)):
        counts = counted(net, weight_bits=bits, activation_bits=bits)
        assert (counts.parameters, counts.macs) == (parameters, macs)
        assert round(1024 * counts.macs / counts.bitops, 3) == ratio
    assert round(100 * 32 * 64 * 64 * 9 / macs, 2) == share


@pytest.mark.slow
def test_a_convolution_that_reads_float_is_counted_so(baseline):
    repo, cadyq = (counted(baseline, placement=placement) for placement in ("repo", "cadyq"))
    assert len(repo.half) == 16 and all(name.endswith("conv1") for name in repo.half) and cadyq.half == ()
    conv = 64 * 64 * 9
    assert repo.bitops - cadyq.bitops == 16 * conv * 8 * (32 - 8)


@pytest.mark.parametrize(
    ("scale", "parameters", "macs"),
    [(2, 22_123_395, 22_118_848), (3, 22_308_035, 22_311_808), (4, 22_271_107, 22_729_408)],
)
def test_rdn_b_has_the_published_counts(scale, parameters, macs):
    with torch.device("meta"):
        net = lab.nets.rdn(blocks=16, layers=8, growth=64, width=64, scale=scale)
        assert cost.parameters(net) == parameters
        assert cost.macs(net, torch.zeros(1, 3, 1, 1)) == macs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "eight", "four", "size_8", "size_4"),
    [(2, 14.149, 41.301, 3.9005, 7.5505), (3, 12.704, 30.627, None, None), (4, 10.456, 19.832, 3.8269, 7.2361)],
)
def test_rdn_b_has_the_tables_ratios(scale, eight, four, size_8, size_4):
    net = lab.nets.rdn(blocks=16, layers=8, growth=64, width=64, scale=scale)
    for bits, operations, size in ((8, eight, size_8), (4, four, size_4)):
        fields = {"weight_bits": bits, "activation_bits": bits}
        cadyq, repo = (counted(net, placement=placement, **fields) for placement in ("cadyq", "repo"))
        assert round(1024 * cadyq.macs / cadyq.bitops, 3) == operations
        assert size is None or round(repo.parameters / repo.equivalent, 4) == size


@pytest.mark.slow
def test_the_alphas_of_the_release():
    """48 in EDSR; in RDN 145 that are used, and one a block that is made and never called."""
    edsr, rdn = lab.nets.edsr(blocks=16, width=4), lab.nets.rdn(blocks=16, layers=8, growth=4, width=4)
    placement = place_quantisers(fold_batch_norms(edsr, PIXEL), "repo")
    assert len(placement.groups()) == 48 and len(placement.layers) == 32
    placement = place_quantisers(fold_batch_norms(rdn, PIXEL), "repo")
    assert len(placement.groups()) == 145 and 145 + 16 == 161
    assert len(placement.layers) == 16 * 9 + 2
