"""Where gates sit, which convolutions stay without, and what a path costs: the paper's networks and people's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab.core import cost, nets
from lab.core.graph.operators import CONVS, is_depthwise
from lab.core.graph.tracing import module_of
from lab.decoupling import equations as eq
from lab.decoupling.layers import gates, recording
from lab.decoupling.placement import DENSE, Decoupled, UnitReader, insert_gates
from lab.lens import activations
from tests.core.graph.test_foreign_networks import Net, conv, tied
from tests.decoupling.families import QUICK, always, gated, lively, network, plain

# network, side: layers, bits, multiply-adds, controllers' multiply-adds and parameters, heads', ratios at r = .8 .6 .5
TABLE = {
    "ResNet-56": (lambda: nets.resnet_cifar(56), 32, 54, 2_016, "125.49M", "0.047M", "49.3K", "20.2K", (720, 480, 375)),
    "VGG-19-C": (nets.vgg19_cifar, 32, 15, 5_440, "398.14M", "1.09M", "1.10M", "54.4K", (660, 388, 280)),
    "GoogLeNet-C": (nets.googlenet_cifar, 32, 63, 7_712, "1521.8M", "3.52M", "3.53M", "77.1K", (648, 371, 262)),
    "ResNet-18": (nets.resnet18, 224, 19, 4_736, "1814.1M", ".65M", "659K", "4.74M", (732, 504, 406)),
    "VGG-16": (nets.vgg16, 224, 12, 4_160, "15.47G", ".80M", "801K", "4.16M", (664, 397, 290)),
}


def printed(value: float, like: str) -> str:
    """A number in the digits and the unit of another."""
    unit = {"K": 1e3, "M": 1e6, "G": 1e9}[like[-1]]
    digits = len(like[:-1].partition(".")[2])
    text = f"{value / unit:.{digits}f}"
    return (text.removeprefix("0") if like.startswith(".") else text) + like[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_counts_are_those_of_the_papers_networks(name):
    make, side, layers, bits, macs, control, weights, heads, ratios = TABLE[name]
    with torch.device("meta"):
        found = make()
        decoupled = insert_gates(found, torch.zeros(1, 3, side, side))
    sizes = [site.filters for site in decoupled.sites]
    classes = list(found.modules())[-1].out_features
    assert (len(sizes), sum(sizes)) == (layers, bits)
    assert printed(decoupled.dense, macs) == macs
    assert printed(decoupled.control, control) == control
    of_gates = sum(p.numel() for gate in gates(decoupled.model).values() for p in gate.parameters())
    assert printed(of_gates, weights) == weights
    assert printed(classes * sum(sizes), heads) == heads
    for r, thousandths in zip((0.8, 0.6, 0.5), ratios, strict=True):
        uniform = [torch.full((1, size), r, device="cpu") for size in sizes]
        assert round(1000 * float(decoupled.macs(uniform)) / decoupled.dense) == thousandths


@pytest.fixture(params=QUICK)
def name(request):
    return request.param


@pytest.mark.slow
@torch.no_grad()
def test_with_all_gates_on_it_is_the_network_itself(name):
    found, x = network(name)
    before = found(x)
    decoupled = insert_gates(found, x[:1])
    always(decoupled)
    decoupled.model.eval()
    assert torch.equal(decoupled.model(x), before)
    assert torch.equal(found(x), before) and not gates(found)


@pytest.mark.slow
def test_every_convolution_is_gated_or_has_a_reason(name):
    found, x = network(name)
    decoupled = insert_gates(found, x[:1])
    convs = {n for n, module in found.named_modules() if isinstance(module, CONVS) and not is_depthwise(module)}
    convs |= {n for n, output in activations(found, x[:1]).items() if output.dim() > 2 and is_linear(found, n)}
    assert {site.layer for site in decoupled.sites} | set(decoupled.ungated) == convs
    assert [site.gate for site in decoupled.sites] == list(gates(decoupled.model))
    assert decoupled.dense == cost.macs(found, x[:1])


@pytest.mark.slow
def test_controllers_read_what_the_convolution_reads(name):
    decoupled, _ = gated(name)
    nodes = {str(n.target): n for n in decoupled.model.graph.nodes if n.op == "call_module"}
    for site in decoupled.sites:
        gate = nodes[site.gate]
        assert gate.args[1] is nodes[site.layer].args[0]
        controller = decoupled.model.get_submodule(site.gate).controller
        assert controller.fc1.in_features == decoupled.model.get_submodule(site.layer).weight.shape[1]
        assert site.control == controller.fc1.weight.numel() + controller.fc2.weight.numel()


@pytest.mark.slow
@torch.no_grad()
def test_what_is_off_is_exactly_zero_and_means_are_those_before_the_gate(name):
    decoupled, x = gated(name)
    kept = {}
    hooks = [
        gate.register_forward_hook(lambda _, given, out, key=key: kept.update({key: (given[0], out)}))
        for key, gate in gates(decoupled.model).items()
    ]
    with recording(decoupled.model) as records:
        decoupled.model(x)
    for hook in hooks:
        hook.remove()
    for key, (record,) in zip(gates(decoupled.model), records, strict=True):
        before, after = (out.movedim(decoupled.model.get_submodule(key).axis, 1) for out in kept[key])
        on = record.z.bool()
        assert not after[~on].any()
        assert torch.equal(after[on], before[on])
        assert torch.equal(record.out, eq.squeeze(before))


def is_linear(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.split("#")[0]), nn.Linear)


def behind(decoupled: Decoupled, conv: str) -> tuple[list, list]:
    """The kinds of layer between a convolution and its gate, and those behind the gate."""
    nodes = {str(n.target): n for n in decoupled.model.graph.nodes if n.op == "call_module"}
    gate = nodes[next(site.gate for site in decoupled.sites if site.layer == conv)]
    way, node = [], gate.args[0]
    while node is not nodes[conv]:
        way.insert(0, kind(node))
        node = node.args[0]
    return way, sorted(str(kind(user)) for user in gate.users)


def kind(node):
    module = module_of(node)
    return type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)


def test_residual_gates_stand_behind_the_activation_or_before_the_sum():
    decoupled, _ = gated("resnet18")
    assert behind(decoupled, "layer1.0.conv1") == (["BatchNorm2d", "ReLU"], ["Conv2d", "Gate"])
    assert behind(decoupled, "layer1.0.conv2") == (["BatchNorm2d"], ["add"])
    assert behind(decoupled, "layer2.0.downsample.0") == (["BatchNorm2d"], ["add"])
    assert decoupled.ungated == {"conv1": "it is a first layer"}


@pytest.mark.slow
def test_a_chain_is_gated_behind_norm_and_activation_but_for_its_first_layer():
    found = nets.vgg19_cifar()
    decoupled = insert_gates(found, torch.zeros(1, 3, 32, 32))
    assert {tuple(behind(decoupled, site.layer)[0]) for site in decoupled.sites} == {("BatchNorm2d", "ReLU")}
    assert list(decoupled.ungated.values()) == ["it is a first layer"]


@pytest.mark.slow
def test_all_seven_convolutions_of_an_inception_module_are_gated():
    decoupled, _ = gated("googlenet")
    modules: dict[str, int] = {}
    for site in decoupled.sites:
        module = site.layer.split(".")[0]
        modules[module] = modules.get(module, 0) + 1
    assert list(modules.values()) == [7] * 9


def test_depthwise_layers_belong_to_the_gate_before_them():
    decoupled, _ = gated("mobilenet_v1")
    model = decoupled.model
    assert not any(is_depthwise(model.get_submodule(site.layer)) for site in decoupled.sites)
    tails = {site.layer: site.tail for site in decoupled.sites}
    way, _ = behind(decoupled, decoupled.sites[0].layer)
    assert way == ["BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU"]
    assert tails[decoupled.sites[0].layer] > 0 and tails[decoupled.sites[-1].layer] == 0


def test_what_does_not_scale_stays_behind_the_gate():
    decoupled, _ = gated("silu and bias")
    assert behind(decoupled, "2") == (["BatchNorm2d"], ["SiLU"])
    decoupled, _ = gated("prelu without norm")
    assert behind(decoupled, "2")[0] == ["PReLU"]
    decoupled, _ = gated("a fork before the activation")
    assert behind(decoupled, "b")[0] == []


def test_grouped_layers_are_left_alone_with_the_reason():
    decoupled, _ = gated("groups")
    assert decoupled.ungated == {"0": "it is a first layer", "4": "it has groups"}


def test_the_filters_of_a_transformer_are_the_hidden_units_of_its_mlps():
    decoupled, _ = gated("vit")
    assert [site.layer for site in decoupled.sites] == ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]
    assert behind(decoupled, "blocks.0.mlp.fc1") == ([], ["GELU"])
    first = decoupled.sites[0]
    assert (first.filters, first.sources, first.macs) == (32, ((DENSE, 16),), 17 * 16 * 32)
    assert decoupled.readers[0] == UnitReader("blocks.0.mlp.fc2", ((0, 32),), 17 * 32 * 16)
    assert decoupled.ungated["embed"] == "it is a first layer"
    assert decoupled.ungated["blocks.1.attn.proj"].startswith("its units are not read by linear layers")


def test_units_of_channels_last_blocks_and_of_tokens_that_change_places_are_gated():
    decoupled, _ = gated("convnext")
    assert [site.layer for site in decoupled.sites] == ["widen", "down"]
    decoupled, _ = gated("mixer")
    assert [(site.layer, site.filters) for site in decoupled.sites] == [("token1", 20), ("channel1", 24)]
    decoupled, _ = gated("an MLP of three layers")
    assert [site.layer for site in decoupled.sites] == ["a", "b"]
    assert behind(decoupled, "a") == (["relu"], ["Gate", "Linear"])
    assert decoupled.sites[1].sources == ((0, 12),) and decoupled.readers[0].layer == "c"


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda s, x: s.norm(s.a(x)), "its units are not read by linear layers"),
        (lambda s, x: torch.softmax(s.a(x), -1), "its units are not read by linear layers"),
        (lambda s, x: s.a(x) * s.a2(x), "its units are not read by linear layers"),
        (lambda s, x: s.a(s.a(x)), "it is used more than once"),
        (lambda s, x: s.a(x.transpose(0, 1)).transpose(0, 1), "its first axis is not that of the pictures"),
    ],
    ids=["norm", "softmax", "two layers", "twice", "tokens first"],
)
def test_other_linear_layers_over_tokens_are_left_alone(between, reason):
    net = Net(
        lambda s, x: s.fc(
            s.c(between(s, s.embed(x).flatten(2).transpose(1, 2))).mean(1) + s.b(s.embed(x)).mean((2, 3))
        ),
        embed=nn.Conv2d(3, 8, 4, stride=4), a=nn.Linear(8, 8), a2=nn.Linear(8, 8), norm=nn.LayerNorm(8),
        b=conv(8, 8), c=nn.Linear(8, 8), fc=nn.Linear(8, 4),
    )  # fmt: skip
    decoupled = insert_gates(net, torch.zeros(1, 3, 8, 8))
    assert decoupled.ungated["a"].startswith(reason)
    assert [site.layer for site in decoupled.sites] == ["b"] and not decoupled.readers


def test_a_layer_called_twice_is_left_alone():
    net = Net(
        lambda s, x: s.fc(F.relu(s.c(F.relu(s.b(F.relu(s.b(F.relu(s.stem(x)))))))).mean((2, 3))),
        stem=conv(3, 8), b=conv(8, 8), c=conv(8, 8), fc=nn.Linear(8, 4),
    )  # fmt: skip
    decoupled = insert_gates(net, torch.zeros(1, 3, 8, 8))
    assert decoupled.ungated["b"] == "it is used more than once"
    assert [site.layer for site in decoupled.sites] == ["c"]


def test_a_layer_of_windows_is_not_gated():
    """Its rows are windows, of which a picture has several: no path of a picture could be read off them."""

    def forward(s, x):
        x = F.relu(s.stem(x))
        n, c, h, w = x.shape
        parts = x.view(n, c, 2, h // 2, w).transpose(1, 2).reshape(2 * n, c, h // 2, w)
        y = F.relu(s.inner(parts)).view(n, 2, c, h // 2, w).transpose(1, 2).reshape(n, c, h, w)
        return s.head(F.relu(s.b(y)).mean((2, 3)))

    net = Net(forward, stem=conv(3, 8), inner=conv(8, 8), b=conv(8, 8), head=nn.Linear(8, 4))
    decoupled = insert_gates(net.eval(), torch.zeros(1, 3, 8, 8))
    assert [site.layer for site in decoupled.sites] == ["b"]
    assert decoupled.ungated["inner"] == "its first axis is not that of the pictures"


def test_tied_weights_are_gated_apart():
    decoupled = insert_gates(tied(), torch.zeros(1, 3, 8, 8))
    assert [site.layer for site in decoupled.sites] == ["a", "b"]


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x.mean((2, 3)),
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2),
        lambda x: F.log_softmax(x.mean((2, 3)), 1),
        lambda x: F.relu(x).view(x.size(0), -1),
        lambda x: torch.cat([x, x], 1).mean((2, 3)),
        lambda x: F.relu(x) * 2 + 1,
    ],
    ids=["mean", "pool", "squeeze", "log softmax", "view", "cat", "scaled"],
)
def test_class_scores_that_a_convolution_writes_are_not_gated(end):
    net = Net(lambda s, x: end(s.head(F.relu(s.b(F.relu(s.stem(x)))))), stem=conv(3, 8), b=conv(8, 8), head=conv(8, 4))
    decoupled = insert_gates(net.eval(), torch.zeros(1, 3, 8, 8))
    assert [site.layer for site in decoupled.sites] == ["b"]
    assert decoupled.ungated["head"] == "its channels are the network's output"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 4)),
            "Sequential has no convolution that can be gated .it has none",
        ),
        (plain(conv(3, 8)), "has no convolution that can be gated .0: it is a first layer"),
    ],
)
def test_a_network_without_layers_to_gate_is_one_line(model, words):
    with pytest.raises(ValueError, match=words) as caught:
        insert_gates(model, torch.zeros(1, 3, 8, 8))
    assert "\n" not in str(caught.value)


def test_a_forward_that_branches_on_values_is_one_line():
    net = Net(lambda s, x: s.b(x) if x.sum() > 0 else x, b=conv(3, 3))
    with pytest.raises(ValueError, match=r"Net cannot be traced .*must not branch on values") as caught:
        insert_gates(net, torch.zeros(1, 3, 8, 8))
    assert "\n" not in str(caught.value)


def test_the_networks_own_kind_of_numbers_is_kept():
    found, x = network("functional")
    decoupled = insert_gates(found.double(), x[:1].double())
    assert decoupled.model.eval()(x.double()).dtype == torch.float64


def test_the_network_passed_in_is_left_as_it_is():
    found, x = network("resnet")
    found.train()
    before = {key: value.clone() for key, value in found.state_dict().items()}
    lively(insert_gates(found, x[:1])).model(x)
    assert all(module.training for module in found.modules())
    assert found.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in found.state_dict().items())


# -- what a path costs -----------------------------------------------------------------------------------------------


def of(decoupled: Decoupled, conv: str):
    return next(site for site in decoupled.sites if site.layer == conv)


def test_residual_streams_are_read_dense_and_chains_through_their_gates():
    decoupled, _ = gated("resnet18")
    index = {site.layer: k for k, site in enumerate(decoupled.sites)}
    assert of(decoupled, "layer2.0.conv1").sources == ((DENSE, 64),)
    assert of(decoupled, "layer2.0.conv2").sources == ((index["layer2.0.conv1"], 128),)
    assert of(decoupled, "layer2.0.downsample.0").sources == ((DENSE, 64),)


@pytest.mark.slow
def test_concatenations_are_read_operand_by_operand():
    decoupled, _ = gated("googlenet")
    inside = {k: site.filters for k, site in enumerate(decoupled.sites)}
    second = [site for site in decoupled.sites if site.layer.startswith(decoupled.sites[7].layer.split(".")[0])]
    sources = second[0].sources
    assert len(sources) == 4 and all(k != DENSE and inside[k] == n for k, n in sources)


def test_what_is_not_zero_at_zero_is_read_dense():
    decoupled, _ = gated("sigmoid, which is not zero at zero")
    assert of(decoupled, "5").sources == ((DENSE, 6),)
    decoupled, _ = gated("a fork before the activation")
    assert of(decoupled, "c").sources == ((0, 6), (0, 6), (DENSE, 8))


@pytest.mark.slow
def test_macs_of_a_path_by_hand():
    """The first layer reads the ungated stem, the second what the first leaves on; depthwise goes with its gate."""
    decoupled, _ = gated("depthwise with bias")
    first, second = decoupled.sites
    assert (first.layer, second.layer) == ("2", "7")
    assert first.sources == ((DENSE, 8),) and second.sources == ((0, 6),)
    assert first.macs == 8 * 6 * 64 and first.tail == 6 * 9 * 64 and second.macs == 6 * 8 * 64
    z = [torch.tensor([[1.0, 1, 0, 0, 0, 0], [0] * 6]), torch.tensor([[1.0] * 4 + [0] * 4, [1] * 8])]
    stem_and_classifier = 3 * 8 * 9 * 64 + 8 * 4
    dense = [stem_and_classifier + decoupled.control] * 2
    expected = [
        dense[0] + (first.macs + first.tail) * 2 / 6 + second.macs * 2 / 6 * 4 / 8,
        dense[1],
    ]
    assert decoupled.macs(z).tolist() == pytest.approx(expected)


def test_macs_are_counted_where_the_bits_are():
    decoupled, _ = gated("depthwise with bias")
    on = [torch.ones(3, site.filters, device="meta") for site in decoupled.sites]
    assert decoupled.macs(on).device.type == "meta"


@pytest.mark.slow
def test_macs_with_everything_on_are_those_of_network_and_controllers(name):
    found, x = network(name)
    decoupled = insert_gates(found, x[:1])
    on = [torch.ones(3, site.filters) for site in decoupled.sites]
    assert decoupled.macs(on).tolist() == pytest.approx([cost.macs(found, x[:1]) + decoupled.control] * 3)
    off = [torch.zeros(1, site.filters) for site in decoupled.sites]
    assert decoupled.macs(off).item() == pytest.approx(decoupled.rest + decoupled.control)
