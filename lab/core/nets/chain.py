"""Networks that are one chain of layers: LeNet and VGG."""

from collections import OrderedDict

from torch import nn

from .parts import Mean, check_counts, check_width, conv_bn, named


def lenet(classes: int = 10, channels: int = 1) -> nn.Module:
    """LeNet of the Caffe examples, 20-50-500, for (N, channels, 28, 28) -> (N, classes).

    A ReLU stands behind each convolution, where Caffe's own file has none: a mask needs it there.
    Raises ValueError for a count below 1.
    """
    check_counts(classes=classes, channels=channels)
    layers = OrderedDict(
        conv1=nn.Conv2d(channels, 20, 5),  # no padding: 28 -> 24
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),  # 12
        conv2=nn.Conv2d(20, 50, 5),  # 8
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),  # 4
        flatten=nn.Flatten(),  # (N, 50, 4, 4) -> (N, 800)
        fc1=nn.Linear(800, 500),
        relu3=nn.ReLU(),
        fc2=nn.Linear(500, classes),
    )
    return named(nn.Sequential(layers), "lenet", classes=classes, channels=channels)


# Widths of the convolutions, a pool between the stages; of the VGG paper, configurations D and E.
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


def vgg16_cifar(classes: int = 10, channels: int = 3, width: float = 1.0) -> nn.Module:
    """VGG-16 for small pictures, with batch norm and one hidden layer of 512: (N, channels, H, W) -> (N, classes).

    H, W: 32 in the papers; any size works, the last map is averaged. All layers have `width` times the paper's
    channels. Raises ValueError for a count below 1 and a width outside (0, 8].
    """
    check_counts(classes=classes, channels=channels)
    check_width(width)
    stages = tuple(tuple(max(8, int(c * width)) for c in stage) for stage in _VGG16)
    c = stages[-1][-1]
    classifier = nn.Sequential(nn.Linear(c, c), nn.BatchNorm1d(c), nn.ReLU(), nn.Linear(c, classes))
    net = nn.Sequential(OrderedDict(features=_stages(stages, channels), classifier=classifier))
    thin = {} if width == 1 else {"width": width}
    return named(net, "vgg16_cifar", classes=classes, channels=channels, **thin)


def vgg19_cifar(classes: int = 10, channels: int = 3) -> nn.Module:
    """VGG-19 for small pictures, with batch norm and no hidden layer: (N, channels, H, W) -> (N, classes).

    H, W: 32 in the papers; any size works, the last map is averaged. Raises ValueError for a count below 1.
    """
    check_counts(classes=classes, channels=channels)
    net = nn.Sequential(OrderedDict(features=_stages(_VGG19, channels), classifier=nn.Linear(512, classes)))
    return named(net, "vgg19_cifar", classes=classes, channels=channels)


def _stages(stages: tuple[tuple[int, ...], ...], channels: int) -> nn.Sequential:
    """Convolutions with norms, a pool behind each stage, the mean behind the last."""
    features, width = [], channels
    for stage in stages:
        for c_out in stage:
            features += conv_bn(width, c_out, 3, bias=True)
            width = c_out
        features.append(nn.MaxPool2d(2, ceil_mode=True))  # ceil: an 8 x 8 picture still has a pixel at the end
    features[-1] = Mean()  # the papers' average over the last 2 x 2
    return nn.Sequential(*features)


def vgg16(classes: int = 1000) -> nn.Module:
    """VGG-16 as published (configuration D, no norms): (N, 3, H, W) -> (N, classes), H, W: 224 in the paper.

    Weights of torchvision's VGG-16 load with `strict=True`. Raises ValueError for a count below 1.
    """
    check_counts(classes=classes)
    features: list[nn.Module] = []
    width = 3
    for stage in _VGG16:
        for c_out in stage:
            features += [nn.Conv2d(width, c_out, 3, padding=1), nn.ReLU()]
            width = c_out
        features.append(nn.MaxPool2d(2))
    hidden = [nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
    head = OrderedDict(
        features=nn.Sequential(*features),
        avgpool=nn.AdaptiveAvgPool2d(7),
        flatten=nn.Flatten(),  # (N, 512, 7, 7) -> (N, 25088)
        classifier=nn.Sequential(*hidden, nn.Linear(4096, classes)),
    )
    return named(nn.Sequential(head), "vgg16", classes=classes)
