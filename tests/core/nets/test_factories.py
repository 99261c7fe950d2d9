"""The networks: counts of the papers to the digit, names, shapes, tracing, and configurations that rebuild them."""

import json
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import fx, nn

from lab.core import cost, nets

# config, input, parameters, parameters without norms, multiply-adds of convolutions, of convolutions and linear layers
TABLE = [
    ({"net": "lenet"}, (1, 28), 431_080, 431_080, 1_888_000, 2_293_000),
    ({"net": "vgg16_cifar"}, (3, 32), 14_991_946, 14_982_474, 313_196_544, 313_463_808),
    ({"net": "resnet_cifar", "depth": 20}, (3, 32), 269_722, 268_346, 40_550_400, 40_551_040),
    ({"net": "resnet_cifar", "depth": 56}, (3, 32), 853_018, 848_954, 125_485_056, 125_485_696),
    ({"net": "resnet_cifar", "depth": 110}, (3, 32), 1_727_962, 1_719_866, 252_887_040, 252_887_680),
    ({"net": "densenet40"}, (3, 32), 1_059_298, 1_040_578, 282_912_768, 282_917_328),
    ({"net": "googlenet_cifar"}, (3, 32), 6_166_250, 6_150_442, 1_521_745_920, 1_521_756_160),
    ({"net": "resnet50"}, (3, 224), 25_557_032, 25_503_912, 4_087_136_256, 4_089_184_256),
    ({"net": "mobilenet_v1"}, (3, 224), 4_231_976, 4_210_088, 567_716_352, 568_740_352),
    ({"net": "mobilenet_v2"}, (3, 224), 3_504_872, 3_470_760, 299_494_272, 300_774_272),
]
NAMES = [f"{row[0]['net']}{row[0].get('depth', '')}" for row in TABLE]
SMALL = [  # every factory, at the smallest size that its geometry permits and that a method may feed it
    ({"net": "lenet"}, (1, 28, 28)),
    ({"net": "vgg16_cifar", "channels": 1}, (1, 8, 8)),
    ({"net": "resnet_cifar", "depth": 8, "channels": 1}, (1, 8, 8)),
    ({"net": "densenet40", "channels": 1}, (1, 8, 8)),
    ({"net": "googlenet_cifar", "channels": 1}, (1, 8, 8)),
    ({"net": "resnet50", "classes": 10}, (3, 32, 32)),
    ({"net": "mobilenet_v1", "width": 0.25, "classes": 10}, (3, 32, 32)),
    ({"net": "mobilenet_v2", "width": 0.35, "classes": 10}, (3, 32, 32)),
    ({"net": "unet", "width": 4, "channels": 1}, (1, 8, 8)),
    ({"net": "vit", "size": 8, "patch": 2, "width": 8, "depth": 2, "heads": 2, "ratio": 2}, (1, 8, 8)),
]
SMALL_NAMES = [config["net"] for config, _ in SMALL]


def meta(config):
    """The network without storage: it can be counted, not computed."""
    with torch.device("meta"):
        return nets.build(config)


@cache
def counted(row: int):
    """The model of a row of the table and its multiply-adds by module."""
    config, (channels, size), *_ = TABLE[row]
    model = meta(config)
    return model, cost.layer_macs(model, torch.empty(1, channels, size, size))


def by_kind(row, wanted) -> int:
    """Multiply-adds of the modules of which `wanted` is true."""
    model, layers = counted(row)
    return sum(count for name, count in layers.items() if wanted(model.get_submodule(name)))


@pytest.mark.slow
@pytest.mark.parametrize("row", range(len(TABLE)), ids=NAMES)
def test_counts_are_those_of_the_papers(row):
    _, (channels, size), every, paper, conv, conv_and_linear = TABLE[row]
    model, _ = counted(row)
    assert cost.parameters(model) == every
    assert cost.parameters(model, convention="paper") == paper
    assert by_kind(row, lambda m: isinstance(m, nn.Conv2d)) == conv
    assert cost.macs(model, torch.empty(1, channels, size, size)) == conv_and_linear


def test_vit_counts_are_those_of_deit_tiny():
    sizes = {"size": 224, "patch": 16, "width": 192, "depth": 12, "heads": 3, "classes": 1000, "channels": 3}
    model, example = meta({"net": "vit", **sizes}), torch.empty(1, 3, 224, 224)
    assert cost.parameters(model) == 5_717_416
    layers = 196 * 768 * 192 + 12 * 197 * 192 * (3 + 1 + 4 + 4) * 192 + 192 * 1000
    attention = 12 * 2 * 197**2 * 192  # the two products of every block
    assert cost.macs(model, example) == layers + attention


def test_unet_counts_are_those_of_the_paper():
    """The paper's network has 31.0 million weights, without batch norms; its convolutions keep the size here."""
    model = meta({"net": "unet", "width": 64, "depth": 4, "classes": 2, "channels": 1})
    down = sum(9 * a * b + 9 * b * b for a, b in pairwise((1, 64, 128, 256, 512, 1024)))
    up = sum(4 * b * a + a + 9 * 2 * a * a + 9 * a * a for a, b in pairwise((64, 128, 256, 512, 1024)))
    assert cost.parameters(model, convention="paper") == down + up + 64 * 2 + 2
    assert 31.0e6 < down + up < 31.05e6


@pytest.mark.parametrize("sizes", [{"width": 0}, {"depth": 0}, {"classes": 0}, {"channels": 0}])
def test_unet_refuses_counts_below_one(sizes):
    with pytest.raises(ValueError, match=f"{next(iter(sizes))}=0: give an integer"):
        nets.unet(**sizes)


def test_unet_joins_each_level_to_its_counterpart():
    """What reaches the head without the way down through the middle still changes with the picture, to the pixel."""
    model = nets.unet(width=2, depth=2).eval()
    nn.init.zeros_(model.up[-1].weight)  # the last level hears nothing from below
    x, far = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    far[0, :, 15, 15] = 9
    with torch.no_grad():
        change = (model(x) - model(far)).abs().amax(1)[0]
    assert change[11:, 11:].max() > 0 and change[:11].max() == 0 and change[:, :11].max() == 0


@pytest.mark.parametrize(("sizes", "cause"), [({"patch": 5}, "patch=5: "), ({"heads": 5}, "heads=5: ")])
def test_vit_refuses_sizes_that_do_not_divide(sizes, cause):
    with pytest.raises(ValueError, match=cause):
        nets.vit(**sizes)


def test_mobilenet_v1_splits_as_published():
    def groups(n, size):
        return lambda m: isinstance(m, nn.Conv2d) and m.kernel_size == (size, size) and (m.groups > 1) == n

    row = NAMES.index("mobilenet_v1")
    convs = [m for m in counted(row)[0].modules() if isinstance(m, nn.Conv2d)]
    assert by_kind(row, groups(False, 1)) == 539_492_352
    assert by_kind(row, groups(True, 3)) == 17_385_984
    assert by_kind(row, groups(False, 3)) == 10_838_016
    assert by_kind(row, lambda m: isinstance(m, nn.Linear)) == 1_024_000
    assert sum(m.weight.numel() for m in convs if m.kernel_size == (1, 1)) == 3_139_584
    assert sum(m.weight.numel() for m in convs if m.groups > 1) == 44_640


@pytest.mark.slow
def test_googlenet_branches_split_as_published():
    _, layers = counted(NAMES.index("googlenet_cifar"))
    millions = [sum(n for name, n in layers.items() if f".branch{i}." in name) / 1e6 for i in (1, 2, 3, 4)]
    assert [round(m, 1) for m in millions] == [190.8, 959.4, 279.1, 87.0]


def test_mask_entries_are_those_of_the_paper():
    vgg, dense, res50 = (meta({"net": name}) for name in ("vgg16_cifar", "densenet40", "resnet50"))
    assert sum(m.num_features for m in vgg.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)) == 4736
    assert sum(m.in_channels for m in dense.modules() if isinstance(m, nn.Conv2d)) - 3 == 8904
    blocks = [block for i in (1, 2, 3, 4) for block in res50.get_submodule(f"layer{i}")]
    inner = sum(conv.in_channels for block in blocks for conv in (block.conv1, block.conv2, block.conv3))
    assert len(blocks) + inner == 20_688


def test_resnet56_without_the_blocks_of_gal_06():
    model = meta({"net": "resnet_cifar", "depth": 56})
    for stage, out in (("layer1", 6), ("layer2", 4)):
        for i in range(1, 1 + out):  # none of them the first of its stage
            model.get_submodule(stage)[i] = nn.Identity()
    assert cost.macs(model, torch.empty(1, 3, 32, 32)) == 78_299_776
    assert cost.parameters(model, convention="paper") == 747_578


def test_resnet50_without_the_blocks_of_gal_1():
    model = meta({"net": "resnet50"})
    for stage, out in (("layer1", (1, 2)), ("layer2", (0, 1, 2)), ("layer3", (0, 1, 2, 3, 4)), ("layer4", (1,))):
        for i in out:
            model.get_submodule(stage)[i] = model.get_submodule(stage)[i].downsample
    assert cost.macs(model, torch.empty(1, 3, 224, 224)) == 1_584_398_336
    assert cost.parameters(model, convention="paper") == 14_665_896


@pytest.mark.parametrize(("width", "parameters"), [(0.35, 1_677_128), (1.4, 6_108_776)])
def test_mobilenet_v2_widths_round_as_torchvision_does(width, parameters):
    assert cost.parameters(meta({"net": "mobilenet_v2", "width": width})) == parameters


def test_resnet_names_are_those_of_the_stored_weights():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"conv1.weight", "linear.weight", "linear.bias", *(f"bn1.{n}" for n in norm)}
    for block in (f"layer{i}.{j}" for i in (1, 2, 3) for j in range(9)):
        names |= {f"{block}.conv{k}.weight" for k in (1, 2)} | {f"{block}.bn{k}.{n}" for k in (1, 2) for n in norm}
    assert set(meta({"net": "resnet_cifar", "depth": 56}).state_dict()) == names


def test_names_torchvision_uses():
    res50, v2 = meta({"net": "resnet50"}).state_dict(), meta({"net": "mobilenet_v2"}).state_dict()
    assert (len(res50), len(v2)) == (320, 314)
    assert {"layer1.0.downsample.0.weight", "layer4.2.bn3.running_var", "fc.bias"} <= set(res50)
    assert {"features.0.1.bias", "features.1.conv.1.weight", "features.2.conv.1.0.weight"} <= set(v2)
    assert {"features.17.conv.3.running_mean", "features.18.0.weight", "classifier.1.weight"} <= set(v2)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "shape"), SMALL, ids=SMALL_NAMES)
def test_traced_network_answers_the_same_for_any_batch(config, shape):
    torch.manual_seed(0)
    model = nets.build(config).eval()
    traced = fx.symbolic_trace(model)
    x = torch.randn(3, *shape)
    with torch.no_grad():
        whole, single = model(x), model(x[:1])
        torch.testing.assert_close(traced(x), whole, rtol=0, atol=0)
    assert whole.shape[:2] == (3, model.config["classes"])
    torch.testing.assert_close(single, whole[:1], rtol=1e-3, atol=1e-3 * whole.abs().max().item())
    assert whole.std(0).max() > 0  # different pictures, different answers


@pytest.mark.slow
@pytest.mark.parametrize(("config", "shape"), SMALL, ids=SMALL_NAMES)
def test_network_can_learn(config, shape):
    torch.manual_seed(0)
    model = nets.build(config)
    model(torch.randn(4, *shape)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("config", "shape"), SMALL, ids=SMALL_NAMES)
def test_config_is_json_and_builds_the_same_network(config, shape):
    torch.manual_seed(3)
    first = nets.build(config)
    torch.manual_seed(3)
    again = nets.build(json.loads(json.dumps(first.config)))
    assert again.config == first.config
    assert config.items() <= first.config.items()
    assert str(again) == str(first)
    for (name, a), (other, b) in zip(first.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    assert not torch.equal(next(nets.build(config).parameters()), next(first.parameters()))  # another draw


@pytest.mark.slow
@pytest.mark.parametrize("row", range(len(TABLE)), ids=NAMES)
def test_a_mask_can_stand_behind_every_relu(row):
    relus = [m for _, m in counted(row)[0].named_modules(remove_duplicate=False) if isinstance(m, nn.ReLU | nn.ReLU6)]
    assert relus and not any(relu.inplace for relu in relus)
    assert len(set(relus)) == len(relus)  # none is used in two places


def test_first_weights():
    torch.manual_seed(0)
    model = nets.vgg16_cifar()
    conv, norm = model.features[3], model.features[4]
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert torch.all(conv.bias == 0) and torch.all(norm.weight == 1) and torch.all(norm.bias == 0)
    depthwise = nets.mobilenet_v1().features[12][0]
    assert depthwise.groups == 512
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_shortcut_of_option_a():
    shortcut = nets.resnet_cifar(20).layer2[0].shortcut
    x = torch.arange(2 * 16 * 4 * 4.0).reshape(2, 16, 4, 4) + 1
    y = shortcut(x)
    assert y.shape == (2, 32, 2, 2)
    assert torch.equal(y[:, 8:24], x[:, :, [0, 2]][:, :, :, [0, 2]])
    assert torch.all(y[:, :8] == 0) and torch.all(y[:, 24:] == 0)


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: nets.resnet_cifar(21), r"depth=21: give 6n \+ 2"),
        (lambda: nets.resnet_cifar(2), r"depth=2: give 6n \+ 2"),
        (lambda: nets.resnet_cifar(20.0), "depth=20.0: give an integer"),
        (lambda: nets.lenet(0), "classes=0: give an integer"),
        (lambda: nets.vgg16_cifar(channels=True), "channels=True: give an integer"),
        (lambda: nets.densenet40("ten"), "classes='ten': give an integer"),
        (lambda: nets.googlenet_cifar(channels=-1), "channels=-1: give an integer"),
        (lambda: nets.resnet50(0), "classes=0: give an integer"),
        (lambda: nets.mobilenet_v1(0), "width=0: give a number above 0"),
        (lambda: nets.mobilenet_v2(float("nan")), "width=nan: give a number above 0"),
        (lambda: nets.mobilenet_v2(1.0, classes=0), "classes=0: give an integer"),
        (lambda: nets.build({"net": "alexnet"}), "config\\['net'\\] is 'alexnet': choose one of densenet40"),
        (lambda: nets.build({"net": "build"}), "config\\['net'\\] is 'build': choose one of"),
        (lambda: nets.build({"net": "Mapping"}), "config\\['net'\\] is 'Mapping': choose one of"),
        (lambda: nets.build({"depth": 20}), "config\\['net'\\] is None: choose one of"),
        (lambda: nets.build({"net": "lenet", "depth": 20}), "does not fit nets.lenet: .*'depth'"),
        (lambda: nets.build({"net": "resnet_cifar"}), "does not fit nets.resnet_cifar: .*'depth'"),
        (lambda: nets.build(None), "config is a NoneType: give a dict"),
    ],
)
def test_bad_arguments_are_one_line(make, cause):
    with pytest.raises(ValueError, match=cause) as caught:
        make()
    assert "\n" not in str(caught.value)
