"""Networks as people write them: what is removed is removed exactly, and what is not followed is left alone."""

from itertools import combinations, permutations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import lab
from lab.core.graph import surgery
from lab.core.graph.channels import Channels
from lab.core.graph.tracing import trace
from lab.core.task import Task
from lab.gal import structures


class Net(nn.Module):
    """A network given by its layers and its forward."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.steps = forward

    def forward(self, x):
        return self.steps(self, x)


def conv(inside, outside, size=3, **options):
    return nn.Conv2d(inside, outside, size, padding=size // 2, **options)


def tied():
    net = Net(lambda s, x: s.head(F.relu(s.b(F.relu(s.a(F.relu(s.stem(x))))))).mean((2, 3)),
              stem=conv(3, 8), a=conv(8, 8), b=conv(8, 8), head=conv(8, 4))  # fmt: skip
    net.b.weight = net.a.weight
    return net


def weight_normed():
    normed = parametrizations.weight_norm
    return nn.Sequential(normed(conv(3, 8)), nn.ReLU(), normed(conv(8, 6)), nn.ReLU(), conv(6, 4), nn.Flatten())


def called_twice(s, x):
    x = F.relu(s.stem(x))
    x = x + s.norm(s.b(x))
    x = x + s.norm(s.b(x))
    return s.head(x).mean((2, 3))


def in_place_after_a_block(s, x):
    x = s.norm(s.stem(x))
    y = s.relu(s.q(x) + x)
    return s.head(torch.cat([x, y], 1)).mean((2, 3))


def gated_halves(s, x):
    p, q = s.b(F.relu(s.stem(x))).chunk(2, 1)
    return s.head(p.sigmoid() * q).mean((2, 3))


def hard_flatten(s, x):
    x = s.b(F.relu(s.stem(x)))
    return s.line(x.view(x.size(0), x.size(1) * x.size(2) * x.size(3)))


def fires(s, x):
    """SqueezeNet's modules: one layer that squeezes, two that expand side by side."""
    x = F.relu(s.stem(x))
    for squeeze, a, b in ((s.s0, s.a0, s.b0), (s.s1, s.a1, s.b1)):
        x = F.relu(squeeze(x))
        x = torch.cat([F.relu(a(x)), F.relu(b(x))], 1)
    return F.relu(s.head(x)).mean((2, 3))


def normed(inside, outside, size=3):
    norm = nn.BatchNorm2d(outside)
    norm.running_mean.normal_(0, 0.1)
    norm.running_var.uniform_(0.5, 1.5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0, 0.2)
    return nn.Sequential(conv(inside, outside, size, bias=False), norm, nn.ReLU())


def inceptions(s, x):
    """Inception's modules: four branches, one of which forks once more before it joins."""
    x = s.stem(x)
    for a, b, c, p, left, right in ((s.a0, s.b0, s.c0, s.p0, s.l0, s.r0), (s.a1, s.b1, s.c1, s.p1, s.l1, s.r1)):
        forked = c(x)
        x = torch.cat([a(x), b(x), torch.cat([left(forked), right(forked)], 1), p(F.avg_pool2d(x, 3, 1, 1))], 1)
    return s.head(x.mean((2, 3)))


def inception():
    layers = {"stem": normed(3, 6), "head": nn.Linear(17, 4)}
    for i, width in enumerate((6, 17)):
        layers[f"a{i}"], layers[f"p{i}"], layers[f"c{i}"] = (normed(width, 4, 1) for _ in range(3))
        layers[f"b{i}"] = nn.Sequential(*normed(width, 4, 1), *normed(4, 3))
        layers[f"l{i}"], layers[f"r{i}"] = normed(4, 3), normed(4, 3, 1)
    return Net(inceptions, **layers)


NETS = {
    "SqueezeNet": lambda: Net(
        fires, stem=conv(3, 6), s0=conv(6, 4, 1), a0=conv(4, 5, 1), b0=conv(4, 6), s1=conv(11, 4, 1),
        a1=conv(4, 5, 1), b1=conv(4, 6), head=conv(11, 4, 1),
    ),
    "Inception": inception,
    "tied weights": tied,
    "weight norm": weight_normed,
    "a block called twice": lambda: Net(
        called_twice, stem=conv(3, 8), b=conv(8, 8), norm=nn.BatchNorm2d(8), head=conv(8, 4)
    ),
    "rows joined": lambda: Net(
        lambda s, x: s.head(torch.cat([F.relu(s.b(x)), F.relu(s.c(x))], 2)).mean((2, 3)),
        b=conv(3, 8), c=conv(3, 8), head=conv(8, 4),
    ),
    "a joined output": lambda: Net(
        lambda s, x: torch.cat([s.b(x), s.c(x)], 1).mean((2, 3)), b=conv(3, 4), c=conv(3, 4)
    ),
    "in place after a block": lambda: Net(
        in_place_after_a_block, stem=conv(3, 8), norm=nn.BatchNorm2d(8), q=conv(8, 8),
        relu=nn.ReLU(inplace=True), head=conv(16, 4),
    ),
    "a gate from two halves": lambda: Net(gated_halves, stem=conv(3, 8), b=conv(8, 16), head=conv(8, 4)),
    "the largest channel": lambda: Net(
        lambda s, x: s.head(s.k(F.relu(s.stem(x))).max(1, keepdim=True)[0]).mean((2, 3)),
        stem=conv(3, 8), k=conv(8, 8), head=conv(1, 4),
    ),
    "scaled by its width": lambda: Net(
        lambda s, x: s.head(F.relu(s.b(x)) * s.b(x).shape[1] ** -0.5).mean((2, 3)), b=conv(3, 8), head=conv(8, 4)
    ),
    "a sum with alpha": lambda: Net(
        lambda s, x: s.head(torch.add(s.b(F.relu(s.stem(x))), F.relu(s.stem(x)), alpha=0.5)).mean((2, 3)),
        stem=conv(3, 8), b=conv(8, 8), head=conv(8, 4),
    ),
    "a narrow shortcut": lambda: Net(
        lambda s, x: (x.mean((2, 3), keepdim=True) + s.b(x)).mean((2, 3)), b=conv(3, 3)
    ),
    "flattened by sizes": lambda: Net(hard_flatten, stem=conv(3, 8), b=conv(8, 6), line=nn.Linear(6 * 64, 4)),
    "a tensor joined to itself": lambda: Net(
        lambda s, x: s.head(torch.cat(tensors=[F.relu(s.b(x))] * 2, dim=1)).mean((2, 3)), b=conv(3, 8), head=conv(16, 4)
    ),
    "groups and dilation": lambda: nn.Sequential(
        conv(3, 8), nn.PReLU(8), nn.Conv2d(8, 8, 3, groups=2, dilation=2), nn.Hardswish(), conv(8, 4), nn.Flatten()
    ),
}  # fmt: skip


@pytest.fixture(params=NETS)
def network(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETS[request.param]().eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def close_some(masked, seed):
    """Draw every mask and close half of it; a concatenation keeps its first branch."""
    generator, readers = torch.Generator().manual_seed(seed), set()
    for structure, mask in zip(masked.structures, masked.masks(), strict=True):
        mask.data.uniform_(0.3, 1.2, generator=generator)
        mask.data[torch.rand(mask.shape, generator=generator) < 0.5] = 0
        if structure.unit == "branch" and structure.reader not in readers:
            mask.data.fill_(0.7)
            readers.add(structure.reader)


def attached(network, units):
    """The masked network, or None if it has no structure of these units."""
    try:
        return structures.insert_masks(network, units, X[:1])
    except ValueError as error:
        assert "can be masked" in str(error) and "\n" not in str(error)


def assert_one_function(network, units, seed):
    """Masked, folded and removed; what cannot be masked exactly must have been left dense."""
    before, masked = network(X), attached(network, units)
    if masked is None:
        return
    assert torch.allclose(masked.model(X), before, atol=1e-6)
    close_some(masked, seed)
    expected = masked.model(X)
    folded = structures.fold(masked)
    plan, _ = structures.plan(masked)
    removed = surgery.remove(folded, plan, X[:1])
    scale = expected.abs().max().clamp(min=1e-3)
    assert (folded(X) - expected).abs().max() / scale < 1e-5
    assert (removed(X) - expected).abs().max() / scale < 1e-5
    assert torch.equal(network(X), before)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_masked_folded_and_removed_are_one_function(network, seed):
    assert_one_function(network, structures.UNITS, seed)


*OTHERS, STREAM = structures.UNITS
# Alone, in pairs, and all four in six orders, in which any three of them stand in each order that they can stand in.
SIX = ((0, 1, 2, 3), (0, 3, 2, 1), (1, 3, 0, 2), (2, 1, 0, 3), (2, 3, 0, 1), (3, 1, 2, 0))
ORDERS = [order for count in (1, 2) for order in permutations(OTHERS, count)]
ORDERS += [tuple(OTHERS[i] for i in order) for order in SIX]
ORDERS += [(STREAM,), *((unit, STREAM) for unit in OTHERS), *((STREAM, unit) for unit in OTHERS)]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("units", [("channel", "branch"), ("input", "branch", "channel"), structures.UNITS[::-1]])
def test_masked_and_removed_are_one_function_in_other_orders(network, units):
    assert_one_function(network, units, 0)


def test_six_orders_have_three_units_in_every_order():
    assert {three for order in SIX for three in combinations(order, 3)} == {*permutations(range(4), 3)}


@pytest.mark.slow
@torch.no_grad()
def test_masked_and_removed_are_one_function_in_all_orders_of_all_units(network):
    for units in ORDERS:
        assert_one_function(network, units, 0)


@pytest.mark.slow
def test_every_mask_is_read_and_the_order_of_units_does_not_matter(network):
    network.requires_grad_(False)
    found = {}
    for units in [("channel", "branch"), ("branch", "channel"), structures.UNITS, structures.UNITS[::-1]]:
        masked = attached(network, units)
        if masked is not None:
            masked.model(X).square().sum().backward()
            assert all(mask.grad is not None for mask in masked.masks())
        known = None if masked is None else sorted(masked.structures, key=repr)
        assert found.setdefault(frozenset(units), known) == known


@pytest.mark.slow
@torch.no_grad()
def test_half_of_all_channels_can_go_or_one_line_says_why_not(network):
    before = network(X)
    scores = surgery.magnitude(network, X[:1])
    if not scores:
        return
    smaller = surgery.remove(network, surgery.plan_at(scores, 0.5), X[:1])
    assert smaller(X).shape == before.shape
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in network.parameters())


def test_channels_whose_number_is_read_stay():
    for name in ("scaled by its width", "the largest channel"):
        scores = surgery.magnitude(NETS[name](), X[:1])
        assert ("channel", ("b",)) not in scores and ("channel", ("k",)) not in scores, name


def test_weights_computed_in_a_hook_are_refused():
    net = nn.Sequential(prune.l1_unstructured(conv(3, 8), "weight", 0.5), nn.Flatten())
    with pytest.raises(ValueError, match=r"0 computes its weight in a hook: .*prune\.remove"):
        trace(net, X[:1])


def test_a_shape_that_does_not_fit_prints_nothing_but_its_line(capfd):
    with pytest.raises(ValueError, match="does not run on an input") as caught:
        trace(nn.Sequential(conv(1, 8)), X[:1])
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_float64_network_is_pruned():
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    x, y = X.double(), torch.tensor([0, 1])
    task = Task(model=net, batches=[(x, y)], score=lab.tasks.accuracy([(x, y)]))
    outcome = lab.GAL(units="channel", steps=4, mask_every=1, finetune_steps=2).run(task, progress=False)
    assert next(outcome.model.parameters()).dtype == torch.float64


def test_a_network_with_two_answers_is_one_line():
    net = Net(lambda s, x: (s.b(x).mean((2, 3)), s.b(x)), b=conv(3, 4))
    task = Task(model=net, batches=[X], score=lambda _: 0.0)
    with pytest.raises(ValueError, match=r"returns a tuple|can be masked") as caught:
        lab.GAL(units="channel", steps=2, mask_every=1).run(task, progress=False)
    assert "\n" not in str(caught.value)


def small(*middle):
    return nn.Sequential(conv(3, 8), nn.ReLU(), *middle, nn.ReLU(), conv(8, 4), nn.Flatten()).eval()


def hooked(spot, before):
    net = small(conv(8, 8))
    module = net.get_submodule(spot)
    if before:
        module.register_forward_pre_hook(lambda _, given: (given[0] + 1,))
    else:
        module.register_forward_hook(lambda _, given, answer: 2 * answer)
    return net


class Defaulted(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small(conv(8, 8))

    def forward(self, x, scale=None):
        return 2 * self.net(x) if scale is None else self.net(x)


class Mixed(Defaulted):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).float()


class Noisy(Defaulted):
    def forward(self, x):
        return self.net(x + torch.randn(3, 6, 6))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (hooked("", False), "answers otherwise without the hooks of Sequential, which a traced copy leaves out"),
        (hooked("2", False), "answers otherwise without the hooks of 2, which a traced copy leaves out"),
        (hooked("2", True), "answers otherwise without the hooks of 2, which a traced copy leaves out"),
        (Mixed(), "answers otherwise than its traced copy"),
        (Noisy(), "answers otherwise than its traced copy"),
    ],
)
def test_what_a_trace_would_lose_is_one_line(net, words):
    with pytest.raises(ValueError, match=words) as caught:
        trace(net.eval(), torch.randn(1, 3, 6, 6))
    assert "\n" not in str(caught.value)


def test_arguments_left_to_their_defaults_stay_there():
    net, x = Defaulted().eval(), torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(trace(net, x[:1])(x), net(x))


def test_hooks_that_only_look_on_stay_behind():
    net, seen, x = small(conv(8, 8)), [], torch.randn(1, 3, 6, 6)
    net[2].register_forward_hook(lambda _, given, answer: seen.append(answer))
    copy = trace(net, x)
    seen.clear()
    torch.testing.assert_close(copy(x), net.requires_grad_(False)(x))
    assert len(seen) == 1  # the network's own call


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("wrap, inside", [(nn.DataParallel, ".module"), (torch.jit.script, "TorchScript")])
def test_a_network_in_a_wrapper_is_one_line(wrap, inside):
    with pytest.raises(ValueError, match=inside):
        trace(wrap(small(conv(8, 8))), torch.randn(1, 3, 6, 6))


def test_a_weight_that_is_read_beside_its_layer_keeps_its_shape():
    """An autoencoder whose decoder is its encoder's weight, transposed."""
    net = Net(lambda s, x: F.linear(s.inner(F.relu(s.stem(x)).mean((2, 3))), s.inner.weight.t()),
              stem=conv(3, 8), inner=nn.Linear(8, 5))  # fmt: skip
    x = torch.randn(2, 3, 6, 6)
    assert not list(Channels(trace(net, x)).free())
    with pytest.raises(ValueError, match="stem cannot lose channels: inner is used more than once"):
        surgery.remove(net, surgery.Plan(channels={"stem": (0, 1)}), x)


@pytest.mark.parametrize("sizes", [lambda x: x.shape[2:], lambda x: x.shape[-2:], lambda x: x.size()[2:4]])
def test_a_slice_of_a_shape_beside_the_channels_is_harmless(sizes):
    net = Net(lambda s, x: s.head(F.interpolate(F.relu(s.a(F.relu(s.stem(x)))), sizes(x))).mean((2, 3)),
              stem=conv(3, 8), a=conv(8, 8, stride=2), head=conv(8, 4))  # fmt: skip
    x = torch.randn(2, 3, 6, 7)
    assert {name for _, names in Channels(trace(net, x)).free() for name in names} == {"stem", "a"}


@pytest.mark.parametrize("sizes", [lambda x: x.shape[1:], lambda x: x.shape[:2], lambda x: x.size()[-3::2]])
def test_a_slice_of_a_shape_over_the_channels_pins_them(sizes):
    net = Net(
        lambda s, x: s.head(F.relu(y := s.stem(x)) * sizes(y).numel()).mean((2, 3)), stem=conv(3, 8), head=conv(8, 4)
    )
    channels = Channels(trace(net, torch.randn(2, 3, 6, 7)))
    assert "not followed" in channels.frozen[channels.group_of("stem")]


def test_a_buffer_may_be_called_as_an_operation_is():
    net = Net(lambda s, x: s.head(F.relu(s.stem(x)) * s.mul), stem=conv(3, 8), head=conv(8, 4))
    net.register_buffer("mul", torch.rand(1, 8, 1, 1))
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(surgery.remove(net, surgery.Plan(), x)(x), net(x))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_network_of_half_precision_is_masked_in_its_own(kind):
    net, x = small(conv(8, 8)).to(kind), torch.randn(1, 3, 6, 6, dtype=kind)
    torch.testing.assert_close(structures.insert_masks(net, ("channel",), x).model(x), net(x))


def test_a_network_may_give_booleans():
    net, x = Net(lambda n, x: n.a(x) > 0, a=nn.Conv2d(3, 4, 1)), torch.randn(2, 3, 5, 5)
    assert torch.equal(trace(net, x)(x), net(x))
