"""What is not computed changes nothing: skipping gives the answers of the gated network, picture by picture."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lab.decoupling import skipping as skips
from lab.decoupling.layers import gates
from lab.decoupling.placement import insert_gates
from lab.decoupling.skipping import GatedLayer, skipping
from tests.decoupling.families import NETS, QUICK, always, distance, gated, network


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", NETS)
def test_skipping_gives_the_same_answers(name):
    decoupled, x = gated(name)
    expected = decoupled.model(x)
    for example in (None, x):
        skipped = skipping(decoupled, example)
        assert distance(skipped(x), expected) < 1e-5
        assert distance(skipped(x[2:3]), expected[2:3]) < 1e-5
    assert torch.equal(decoupled.model(x), expected)  # on copies


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", QUICK)
def test_layers_that_are_off_leave_the_answers_alike(name):
    """A layer in turn wholly off, so that its readers find nothing to read; then all of them; then none."""
    decoupled, x = gated(name, count=2)
    for site in decoupled.sites[:: max(1, len(decoupled.sites) // 3)]:
        always(decoupled, on=False, only=site.layer)
        assert distance(skipping(decoupled)(x), decoupled.model(x)) < 1e-5
    for on in (False, True):
        always(decoupled, on)
        assert distance(skipping(decoupled)(x), decoupled.model(x)) < 1e-5


@pytest.mark.slow
@torch.no_grad()
def test_only_what_is_on_is_computed(monkeypatch):
    """The shapes of the weights that are used are those of the bits."""
    used = []
    convolve = skips._convolve
    monkeypatch.setattr(
        skips, "_convolve", lambda c, x, w, b: used.append((x.shape[1], *w.shape[:2])) or convolve(c, x, w, b)
    )
    decoupled, x = gated("vgg", count=1)
    kept = []
    hooks = [
        gate.controller.register_forward_hook(lambda *a: kept.append(int((a[2] > 0).sum())))
        for gate in gates(decoupled.model).values()
    ]
    decoupled.model(x)
    for hook in hooks:
        hook.remove()
    skipping(decoupled)(x)
    on = [64, *kept]  # the first layer is not gated
    assert all(on) and used == [(read, written, read) for read, written in pairwise(on)]


@torch.no_grad()
def test_a_layer_is_computed_whole_where_that_was_faster(monkeypatch):
    decoupled, x = gated("resnet")
    monkeypatch.setattr(skips, "_seconds", lambda conv, a, densified: densified == (a.shape[1] > 16))
    convs = [part for part in skipping(decoupled, x).modules() if isinstance(part, GatedLayer)]
    assert {(conv.densified, conv.controller.fc1.in_features > 16) for conv in convs} == {(True, False), (False, True)}
    assert not any(part.densified for part in skipping(decoupled).modules() if isinstance(part, GatedLayer))


@torch.no_grad()
def test_the_clock_that_chooses_waits_for_the_device(monkeypatch):
    """What an accelerator has not done yet is not timed: each reading of the clock comes behind a wait."""
    seen = []
    monkeypatch.setattr(skips.cost, "settle", lambda device: seen.append(str(device)))
    monkeypatch.setattr(skips.time, "perf_counter", lambda: seen.append("clock") or float(len(seen)))
    skips._seconds(nn.Identity(), torch.zeros(1), densified=True)
    assert seen == ["cpu", "clock", "cpu", "clock"]


def test_the_skipping_network_has_no_gates_and_no_weights_twice():
    decoupled, _ = gated("resnet")
    skipped = skipping(decoupled)
    assert not gates(skipped) and not skipped.training
    fused = sum(p.numel() for p in skipped.parameters())
    norms = sum(m.weight.numel() for m in decoupled.model.modules() if isinstance(m, nn.BatchNorm2d))
    whole = sum(p.numel() for p in decoupled.model.parameters())
    first = decoupled.model.get_submodule("bn1").weight.numel()
    assert fused == whole - 2 * (norms - first) + (norms - first)  # a norm becomes its convolution's bias


def test_the_network_that_it_is_made_of_keeps_its_mode():
    found, x = network("resnet")
    decoupled = insert_gates(found, x[:1])
    decoupled.model.train()
    skipping(decoupled)
    assert decoupled.model.training and len(gates(decoupled.model)) == len(decoupled.sites)


@torch.no_grad()
def test_a_norm_without_statistics_takes_those_of_the_picture():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 2),
    )  # fmt: skip
    x = torch.randn(1, 3, 8, 8)
    decoupled = insert_gates(net.eval(), x)
    decoupled.model.eval()
    assert distance(skipping(decoupled)(x), decoupled.model(x)) < 1e-5
