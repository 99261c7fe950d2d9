"""Networks that people use, whole in the engine and equal to torch's, their outputs as the network gives them."""

import pytest
import torch

from lab.core import nets

from . import zoo
from .test_graphs import EXACT, ROUNDING, apart, beside, built, form

LARGE = {*zoo.TORCHVISION, "vgg16", "vgg19_cifar", "resnet50", "googlenet_cifar"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in zoo.NETWORKS])
def test_a_network_runs_whole(name):
    net, x = zoo.made(name)
    exact, single = beside(net, (x,))
    assert apart(single, exact) < ROUNDING  # else the weights, not the engine, decide what comes out
    engine = built(net, (x,))
    outputs = engine(x)
    assert form(outputs) == form(exact)
    assert apart(outputs, exact) < EXACT
    arena, least = engine.memory
    assert least <= arena <= 1.2 * least


def test_the_zoo_has_every_factory():
    assert set(nets.__all__) - {"build"} <= {name.split()[0] for name in zoo.OURS}


@pytest.mark.parametrize("name", ["YOLO", "outputs within outputs"])
def test_several_images_at_once(name):
    """Every image of a batch gives what it gives alone, in each of the outputs."""
    net, x = zoo.made(name)
    images = torch.cat([x, x.flip(-1), 0.5 * x])
    with torch.no_grad():
        exact = net(images)
    outputs = built(net, (x,))(images)
    assert form(outputs) == form(exact) and apart(outputs, exact) < EXACT
