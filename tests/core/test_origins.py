"""A network is described by the call that builds it again, and by nothing that would build another one."""

import contextlib
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from torch import nn

import lab
from lab.core import nets, origins, store
from lab.core.training import seeded
from tests.foldgpt import small as language
from tests.sparsebytenn.zoo import networks

OURS = {
    "lenet": (lambda: nets.lenet(classes=7), (2, 1, 28, 28)),
    "resnet_cifar": (lambda: nets.resnet_cifar(depth=8), (2, 3, 32, 32)),
    "mobilenet_v1": (lambda: nets.mobilenet_v1(width=0.25, classes=5, size=32), (2, 3, 32, 32)),
    "edsr": (lambda: nets.edsr(blocks=1, width=8), (2, 3, 12, 12)),
    "unet": (nets.unet, (1, 3, 24, 32)),
    "vit": (nets.vit, (2, 1, 28, 28)),
}


@pytest.fixture
def torchvision(monkeypatch):
    """torchvision's architectures, under the name that a user imports them by; its compiled part may not load."""
    models = networks.architectures()
    if models is None:
        pytest.skip("torchvision is not installed: make test brings it")
    package = ModuleType("torchvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    return models


def rebuilt(net: nn.Module) -> nn.Module:
    """The network that its description builds, as it is stored, with the same weights."""
    net.eval()
    config = origins.describe(net)
    assert config is not None
    assert store._unpack(store._pack(config, {}), {}) == config  # plain values, as JSON holds them
    state = torch.get_rng_state()
    again = origins.build(config)
    assert torch.equal(torch.get_rng_state(), state)
    again.load_state_dict(net.state_dict())
    return again.eval()


def same(a: nn.Module, b: nn.Module, *x: torch.Tensor) -> bool:
    """Whether two networks give the same, to the last bit."""
    with torch.no_grad(), seeded(0):
        mine = a(*x)
    with torch.no_grad(), seeded(0):
        other = b(*x)
    parts = [list(part.values()) if isinstance(part, dict) else [part] for part in (mine, other)]
    return all(torch.equal(p, q) for p, q in zip(*parts, strict=True) if isinstance(p, torch.Tensor))


@pytest.mark.parametrize("name", OURS)
def test_a_network_of_the_lab(name):
    build, shape = OURS[name]
    with seeded(1):
        net, x = build(), torch.randn(*shape)
    assert origins.describe(net) == net.config
    assert same(rebuilt(net), net, x)


def test_a_network_of_the_lab_that_was_changed_is_not_what_its_config_says():
    net = nets.lenet()
    net.config["classes"] += 1
    assert origins.describe(net) is None
    for change in (
        lambda net: setattr(next(m for m in net.modules() if isinstance(m, nn.Conv2d)), "stride", (2, 2)),
        lambda net: net.append(nn.Identity()) if isinstance(net, nn.Sequential) else net.add_module("x", nn.ReLU()),
        lambda net: net.register_forward_hook(lambda *_: None),
        lambda net: setattr(net, "forward", net.forward),
    ):
        net = nets.lenet()
        change(net)
        assert origins.describe(net) is None


def test_the_precision_is_part_of_the_description():
    net = nets.lenet().double()
    config = origins.describe(net)
    assert config == {**net.config, "dtype": "float64"}
    assert same(rebuilt(net), net, torch.randn(2, 1, 28, 28, dtype=torch.float64))
    with pytest.raises(ValueError, match="base has the dtype 'nn': give one of torch"):
        origins.build({**net.config, "dtype": "nn"})


VISION = {  # name: what is given to the builder
    "squeezenet1_1": {"num_classes": 3},
    "shufflenet_v2_x0_5": {},
    "mobilenet_v3_small": {"num_classes": 11},
    "googlenet": {"num_classes": 4, "aux_logits": False, "transform_input": True, "init_weights": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION)
def test_a_network_of_torchvision(torchvision, name):
    with seeded(1):
        net, x = torchvision.get_model(name, **VISION[name]), torch.randn(2, 3, 64, 64)
    config = origins.describe(net)
    assert config["torchvision"] == name
    assert same(rebuilt(net), net, x)


@pytest.mark.slow
def test_another_head_of_torchvision_is_its_number_of_classes_and_another_stem_is_none(torchvision):
    net = torchvision.squeezenet1_1()
    net.classifier[1] = nn.Conv2d(512, 6, 1)
    assert origins.describe(net) == {"torchvision": "squeezenet1_1", "arguments": {"num_classes": 6}}
    net = torchvision.shufflenet_v2_x0_5()
    net.fc = nn.Linear(1024, 6)
    assert origins.describe(net) == {"torchvision": "shufflenet_v2_x0_5", "arguments": {"num_classes": 6}}
    net.conv1[0] = nn.Conv2d(1, 24, 3, 2, 1, bias=False)
    assert origins.describe(net) is None


@pytest.fixture
def timm(monkeypatch):
    """timm beside torchvision, which it imports; both are forgotten afterwards, as transformers would import them."""
    known = set(sys.modules)
    for name in ("torchvision", "timm"):
        monkeypatch.syspath_prepend(str(networks.ARCHITECTURES.with_name(name)))
    if find_spec("timm") is None or find_spec("torchvision") is None:
        pytest.skip("timm is not installed: make test brings it")
    networks.importable()
    yield import_module("timm")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "timm")]:
        if name not in known:
            del sys.modules[name]


def test_networks_of_timm(timm):
    for name, arguments in (("test_resnet", {"num_classes": 3, "in_chans": 1}), ("test_vit", {"num_classes": 4})):
        net = timm.create_model(name, **arguments)
        config = origins.describe(net)
        assert config == {"timm": name, "arguments": {"in_chans": 3, **arguments}} and origins.hub_id(net) is None
        assert same(rebuilt(net), net, torch.randn(2, config["arguments"]["in_chans"], 160, 160))
    net.head = nn.Linear(net.head.in_features, 6)
    assert origins.describe(net)["arguments"]["num_classes"] == 6  # another head, whatever num_classes says


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_language_model_of_transformers(family, attention):
    net = language.model(family)
    net.set_attn_implementation(attention)
    config = origins.describe(net)
    assert config["transformers"] == type(net).__name__ and config["attention"] == attention
    again = rebuilt(net)
    assert again.config._attn_implementation == attention and same(again, net, language.tokens())


def test_half_precision_of_transformers():
    net = language.model("llama", torch.bfloat16)
    assert same(rebuilt(net), net, language.tokens())


def test_a_vision_model_of_transformers():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    net = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3))
    assert same(rebuilt(net), net, torch.randn(2, 3, 16, 16))


def test_a_class_derived_from_transformers_is_the_users_own():
    from transformers import LlamaForCausalLM

    class Mine(LlamaForCausalLM):
        pass

    net = language.model("llama")
    net.__class__ = Mine
    assert origins.describe(net) is None


def test_a_network_of_diffusers():
    from diffusers import AutoencoderTiny

    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 1)}
    net = AutoencoderTiny(**sizes, num_decoder_blocks=(1, 1), latent_channels=4)
    assert origins.describe(net)["diffusers"] == "AutoencoderTiny"
    assert same(rebuilt(net), net, torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"transformers": "AutoModel", "config": {}, "attention": None}, "has no network 'AutoModel'"),
        ({"transformers": "logging", "config": {}, "attention": None}, "has no network 'logging'"),
        ({"diffusers": "StableDiffusionPipeline", "config": {}}, "has no network 'StableDiffusionPipeline'"),
        ({"diffusers": "AutoencoderTiny", "config": {"in_channels": "x"}}, "is none that diffusers builds"),
        ({"net": "lenet", "classes": "x"}, "classes='x': give an integer"),
        ({"outcome": "GAL"}, "the network of another outcome"),
        ({"net": "alexnet"}, "choose one of"),
        ({"torchscript": "x"}, "choose one of"),
    ],
)
def test_what_is_no_network_is_never_called(config, error):
    with pytest.raises(ValueError, match=error) as caught:
        origins.build(config)
    assert "\n" not in str(caught.value)


def test_a_description_that_asks_for_endless_layers_ends_early(monkeypatch):
    monkeypatch.setattr(origins, "MOST_PARTS", 100)
    with pytest.raises(ValueError, match="more than 100 layers and weights: the file is damaged"):
        origins.build({"net": "edsr", "blocks": 10**9})
    assert origins.build({"net": "edsr", "blocks": 2, "width": 4}) is not None


def test_a_description_that_asks_for_more_than_the_memory_ends_before_it_is_filled(monkeypatch):
    monkeypatch.setattr(origins, "_memory", lambda: 2**18)
    with pytest.raises(ValueError, match=r"base asks for more than the 0\.0 GiB of memory"):
        origins.build({"net": "edsr", "blocks": 2, "width": 128})
    with torch.device("meta"):  # where nothing lies in memory
        assert origins.build({"net": "edsr", "blocks": 2, "width": 128}) is not None


def test_what_bounds_a_network_in_the_making_is_gone_afterwards():
    for config in ({"net": "lenet"}, {"net": "lenet", "classes": "x"}):
        with contextlib.suppress(ValueError):
            origins.build(config)
    assert not nn.modules.module._global_parameter_registration_hooks
    assert not nn.modules.module._global_module_registration_hooks


@pytest.mark.parametrize("library", ["torchvision", "timm", "transformers", "diffusers"])
def test_a_library_that_is_missing_is_named(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    config = {library: "x", "arguments": {}, "config": {}, "attention": None}
    with pytest.raises(ImportError, match=f"is one of {library}: pip install {library}"):
        origins.build(config)


def test_names():
    assert origins.name_of(nn.Linear(1, 1), None) == "Linear"
    assert origins.name_of(nn.Linear(1, 1), {"net": "lenet"}) == "lab.nets.lenet"
    assert origins.name_of(nn.Linear(1, 1), {"timm": "x"}) == "timm.x"
    assert origins.hub_id(nn.Linear(1, 1)) is None
    net = language.model("llama")
    for name, shown in (("owner/name", "owner/name"), ("/tmp/x", None), ("./a", None), ("gpt2", None)):
        net.config._name_or_path = name
        assert origins.hub_id(net) == shown


def test_the_users_own_is_described_by_nothing():
    assert origins.describe(nn.Sequential(nn.Linear(2, 2))) is None
    net = nn.Linear(2, 2)
    net.config = {"net": "lenet"}
    assert origins.describe(net) is None
    assert lab.core.origins is origins
