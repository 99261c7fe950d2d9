"""The networks that the registry tries, by name: how each is built, and on pictures of which size.

torchvision's compiled operators do not load beside a torch built for the CPU alone; its Python models need none of
them until a detector selects its boxes. `importable` therefore has torch ignore the shapes that torchvision registers
for operators that are not there. It lives here and not in the package: the lab imports torchvision only for a network
that was built by it.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import lab

from . import small, superres

CLASSES, SIDE = 10, 64
ARCHITECTURES = Path(sys.prefix) / "torchvision"  # where `make test` puts it


@dataclass(frozen=True)
class Network:
    """A network to try: `kind` is cnn or transformer (classifiers), segmentation, detection, superres or denoiser."""

    name: str
    source: str
    kind: str
    build: Callable[[], nn.Module]
    side: int = SIDE

    @property
    def classifies(self) -> bool:
        return self.kind in ("cnn", "transformer")

    def images(self) -> Tensor:
        """Two pictures (2, 3, side, side)."""
        return torch.rand(2, 3, self.side, self.side, generator=torch.Generator().manual_seed(0))


def importable() -> None:
    """Let torchvision's Python be imported where its compiled operators cannot be loaded."""
    register = torch.library.register_fake

    def tolerant(op: Any, *args: Any, **kwargs: Any) -> Any:
        is_theirs = isinstance(op, str) and op.startswith("torchvision::")
        return (lambda function: function) if is_theirs else register(op, *args, **kwargs)

    torch.library.register_fake = tolerant
    try:
        import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = register


@cache
def architectures() -> ModuleType | None:
    """torchvision.models, None where it is not installed.

    transformers imports a torchvision that it sees, and fails where its compiled part does not load. It is therefore
    in a folder that is no part of the environment's path, and forgotten once its models are at hand.
    """
    known = set(sys.modules)
    if find_spec("torchvision") is None and not ARCHITECTURES.is_dir():
        return None
    sys.path.insert(0, str(ARCHITECTURES))
    try:
        importable()
        return import_module("torchvision.models")
    finally:
        sys.path.remove(str(ARCHITECTURES))
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision" and name not in known]:
            del sys.modules[name]


def all_networks() -> list[Network]:
    """Every network of the registry, the small ones left out."""
    importable()
    return [*classifiers(), *dense_predictors(), *families(), *restorers(), *denoisers()]


# -- torchvision -------------------------------------------------------------------------------------------------------

# What they need at least; EfficientViT-M0's batch norms would have two values each at 64, and overflow.
_SIDES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 70, "efficientvit_m0": 128}
_OPTIONS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


def classifiers() -> Iterator[Network]:
    """All of torchvision's."""
    from torchvision import models

    for name in models.list_models(module=models):
        is_vit, side = name.startswith("vit"), _SIDES.get(name, SIDE)
        options = _OPTIONS.get(name, {}) | ({"image_size": side} if is_vit else {})
        kind = "transformer" if is_vit or name.startswith(("swin", "maxvit")) else "cnn"
        yield Network(name, "torchvision", kind, partial(_of_torchvision, name, num_classes=CLASSES, **options), side)


DENSE = (
    "fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large",
    "fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn",
    "ssd300_vgg16", "ssdlite320_mobilenet_v3_large", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn",
)  # fmt: skip


def dense_predictors() -> Iterator[Network]:
    """Segmentation networks, and detectors twice: whole, which answer lists of boxes, and their body alone."""
    for name in DENSE:
        is_detector = not name.startswith(("fcn", "deeplab", "lraspp"))
        fresh = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
        whole = partial(_of_torchvision, name, **fresh)
        yield Network(name, "torchvision", "detection" if is_detector else "segmentation", whole)
        if is_detector:
            yield Network(f"{name}.backbone", "torchvision", "detection", partial(_backbone, whole))


def _of_torchvision(name: str, **options: Any) -> nn.Module:
    importable()
    from torchvision import models

    return models.get_model(name, **options)


def _backbone(whole: Callable[[], nn.Module]) -> nn.Module:
    return whole().backbone


# -- timm --------------------------------------------------------------------------------------------------------------

# The sixty families whose smallest member that takes 64 x 64 pixels has the fewest parameters: those members.
_CNNS = """
    convnext_atto cs3darknet_s cspnext_tiny densenet121 dla46x_c dpn48b efficientnet_b0 ese_vovnet19b_slim
    fasternet_t0 ghostnet_050 hardcorenas_a hgnetv2_b0 hrnet_w18_small inception_next_atto lcnetv2_small
    legacy_seresnet18 mambaout_femto mobilenetv3_small_050 mobileone_s1 nf_ecaresnet26 poolformer_s12 regnetx_002
    repghostnet_050 repvit_m1 resnest14d resnet10t resnetv2_18 rexnet_100 skresnet18 starnet_s050
"""
_TRANSFORMERS = """
    cait_xxs24_224 coat_lite_tiny coatnet_nano_cc_224 convit_tiny cpubone_nano crossvit_tiny_240 csatv2
    deit_tiny_patch16_224 edgenext_xx_small efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0
    eva02_tiny_patch14_224 fastvit_t8 gcvit_xxtiny gmlp_ti16_224 iformer_t levit_128s lowformer_b0 mobilevit_xxs
    pit_ti_224 pvt_v2_b0 shvit_s1 swiftformer_xs tiny_vit_5m_224 visformer_tiny vit_tiny_patch16_224
    vit_tiny_r_s16_p8_224 xcit_nano_12_p8_224
"""


def families() -> Iterator[Network]:
    """One small member of each of sixty of timm's families."""
    for kind, names in (("cnn", _CNNS), ("transformer", _TRANSFORMERS)):
        for name in names.split():
            side = _SIDES.get(name, SIDE)
            yield Network(f"timm/{name}", "timm", kind, partial(_of_timm, name, side), side)


def _of_timm(name: str, side: int) -> nn.Module:
    """A network of timm; those with positions are built for the side that they get."""
    importable()
    import timm

    try:
        return timm.create_model(name, pretrained=False, num_classes=CLASSES, img_size=side)
    except TypeError:
        return timm.create_model(name, pretrained=False, num_classes=CLASSES)


# -- super-resolution, denoising, the small ones -----------------------------------------------------------------------


def restorers() -> Iterator[Network]:
    builders = {"EDSR": lab.nets.edsr, "RDN": lab.nets.rdn, "RLFN": superres.RLFN, "SwinIR-like": superres.SwinIR}
    for name, build in builders.items():
        yield Network(name, "by hand" if build.__module__ == superres.__name__ else "lab", "superres", build, 32)


UNETS = {
    "UNet2DModel": {"down": ("DownBlock2D", "DownBlock2D"), "up": ("UpBlock2D", "UpBlock2D")},
    "UNet2DModel, attention": {"down": ("DownBlock2D", "AttnDownBlock2D"), "up": ("AttnUpBlock2D", "UpBlock2D")},
}


class AtStep(nn.Module):
    """A diffusion network at one step of its schedule: a function of the noisy picture alone."""

    def __init__(self, unet: nn.Module, step: int = 10) -> None:
        super().__init__()
        self.unet, self.step = unet, step

    def forward(self, x: Tensor) -> Tensor:
        return self.unet(x, self.step, return_dict=False)[0]


def denoisers() -> Iterator[Network]:
    """Small U-Nets of diffusers."""
    for name, blocks in UNETS.items():
        yield Network(f"diffusers/{name}", "diffusers", "denoiser", partial(_unet, **blocks), 32)


def _unet(down: tuple[str, ...], up: tuple[str, ...]) -> nn.Module:
    from diffusers import UNet2DModel

    return AtStep(UNet2DModel(
        sample_size=32, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=down, up_block_types=up, attention_head_dim=8,
    ))  # fmt: skip


def by_name(name: str) -> Network:
    """The network of this name, of the small ones or of the registry."""
    small_ones = {network.name: network for network in small_networks()}
    return small_ones.get(name) or next(network for network in all_networks() if network.name == name)


def small_networks() -> list[Network]:
    """The twelve of the quick form; they need nothing but torch."""
    cnns = {
        "plain CNN": small.plain, "ResNet": small.resnet, "MobileNet-v3-like": small.mobilenet_v3,
        "EfficientNet-like": small.efficientnet, "ShuffleNet-like": small.shufflenet,
        "DenseNet-like": small.densenet, "ConvNeXt-like": small.convnext,
    }  # fmt: skip
    others = {
        "ViT": ("transformer", small.ViT), "Swin-like": ("transformer", small.Swin),
        "U-Net": ("segmentation", small.UNet),
        "two-headed detector": ("detection", small.Detector), "EDSR": ("superres", lab.nets.edsr),
    }  # fmt: skip
    kinds = {**{name: ("cnn", build) for name, build in cnns.items()}, **others}
    return [Network(name, "by hand", kind, build, 32) for name, (kind, build) in kinds.items()]
