"""The published costs and the '-66 %', each with the assumption that it needs."""

import pytest

from lab.hybridsd import costs, references
from lab.hybridsd.costs import CostModel, StepCost, split_cost


@pytest.fixture(scope="module")
def sd():
    nets = references.unet("sd-1.4"), references.unet("instance-a")
    return costs.step_cost(*nets, references.kl_vae(), CostModel.paper())


def test_the_figures_points_u_nets_only_two_inputs_without_attention_products(sd):
    bare = CostModel.paper("nowhere")
    totals = {k: split_cost(sd, k, 25, bare).total / 1e12 for k in (25, 10, 5, 0)}
    for k, published in {25: 33.89, 10: 22.64, 5: 18.89, 0: 15.14}.items():
        assert totals[k] == pytest.approx(published, rel=3e-3), k


@pytest.mark.slow
def test_the_readings_of_the_saving():
    published = costs.published_savings()
    savings = {name: percent for name, (percent, _) in published.items()}
    assert savings["sd, k=10, u-net"] == pytest.approx(60.0) and savings["sd, k=5, u-net"] == pytest.approx(80.0)
    assert savings["sd, k=10"] == pytest.approx(65.1, abs=0.05)  # the decoder twice
    assert savings["sd, k=10, once"] == pytest.approx(62.7, abs=0.05)
    assert savings["lcm, k=4"] == pytest.approx(65.7, abs=0.05)  # rounds to 66
    assert savings["lcm, k=4, as run"] == pytest.approx(savings["lcm, k=4"])
    assert all(words for _, words in published.values())


def test_the_decoders_of_the_figure_count_twice(sd):
    assert 2 * sd.decoder / 1e12 == pytest.approx(4.98, rel=6e-3)
    tiny = 2 * 2 * references.decoder_macs(references.tiny_vae()) / 1e12
    assert tiny == pytest.approx(0.28, abs=5e-3)


def test_where_the_decoder_is_and_how_often_it_counts():
    p = StepCost(cloud=3.0, edge=1.0, decoder=0.5, cloud_decoder=2.0)
    edge, cloud = (split_cost(p, 2, 5, CostModel(decoder_at=at)) for at in ("edge", "cloud"))
    assert (edge.cloud, edge.edge, edge.alone) == (6.0, 3.5, 17.0) and (cloud.cloud, cloud.edge) == (8.0, 3.0)
    assert split_cost(p, 2, 5, CostModel(decodings=2)).edge == 4.0
    assert edge.saving == pytest.approx(100 * (1 - 6 / 17)) and edge.total == 9.5
    with pytest.raises(ValueError, match=r"k=6 is not allowed: give a step in 0\.\.5"):
        split_cost(p, 6, 5)
    with pytest.raises(ValueError, match="inputs=3 is not allowed"):
        CostModel(inputs=3)


@pytest.mark.slow
def test_attention_products_change_the_ratio(sd):
    nets = references.unet("sd-1.4"), references.unet("instance-a")
    whole = costs.step_cost(*nets, references.kl_vae(), CostModel())
    assert sd.edge / sd.cloud == pytest.approx(0.447, abs=5e-4)
    assert whole.edge / whole.cloud == pytest.approx(0.456, abs=5e-4)


def test_bytes_of_the_boundary():
    sd, xl = costs.transfer_bytes(), costs.transfer_bytes(side=128, width=2048, pooled=1280)
    assert (sd["latent fp16"], sd["latent fp32"], sd["latent int8"]) == (32_768, 65_536, 16_384)
    assert (sd["embedding fp16"], sd["embedding pair fp16"], sd["token ids"]) == (118_272, 236_544, 154)
    assert (sd["history fp16"], sd["picture rgb"]) == (32_768, 786_432)
    assert (xl["latent fp16"], xl["embedding fp16"], xl["pooled fp16"]) == (131_072, 315_392, 2_560)
    assert xl["picture rgb"] == 3_145_728
