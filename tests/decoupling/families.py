"""The networks that decoupling's tests gate: the lab's families, and networks as people write them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lab.core import nets
from lab.core.training import seeded
from lab.decoupling.layers import gates
from lab.decoupling.placement import Decoupled, insert_gates
from tests.core.graph.test_foreign_networks import Net, conv

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def plain(*layers: nn.Module, inside: int = 8, classes: int = 4) -> nn.Module:
    """Layers with a classifier behind them."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


def functional(s, x):
    x = F.relu(s.stem(x))
    x = x + F.relu(s.norm(s.a(x)))
    return s.fc(F.max_pool2d(F.relu(s.b(x)), 2).mean((2, 3)))


def excited(s, x):
    x = F.relu(s.stem(x))
    x = F.silu(s.norm(s.wide(x)))
    return s.fc((x * torch.sigmoid(s.up(F.relu(s.down(F.adaptive_avg_pool2d(x, 1)))))).mean((2, 3)))


def forked(s, x):
    y = s.b(F.relu(s.stem(x)))
    return s.fc(F.relu(s.c(torch.cat([F.relu(y), y, F.relu(s.stem(x))], 1))).mean((2, 3)))


def mixer(s, x):
    x = s.embed(x).flatten(2).transpose(1, 2)  # (N, 16, 12)
    x = x + s.token2(F.gelu(s.token1(s.norm1(x).transpose(1, 2)))).transpose(1, 2)
    return s.fc((x + s.channel2(F.gelu(s.channel1(s.norm2(x))))).mean(1))


def convnext(s, x):
    x = s.norm1(s.stem(x).permute(0, 2, 3, 1))  # (N, 4, 4, 8)
    y = s.norm2(s.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    x = x + s.project(s.act(s.widen(y)))
    return s.fc(s.norm3(s.down(x.permute(0, 3, 1, 2)).mean((2, 3))))


def deep(s, x):
    x = s.embed(x).flatten(2).transpose(1, 2)
    return s.fc(s.c(F.relu(s.b(F.relu(s.a(x))))).mean(1))


TOKENS = ("vit", "mixer", "convnext", "an MLP of three layers")  # networks with hidden units of tokens
NETS = {
    "vit": (lambda: nets.vit(size=8, patch=2, width=16, depth=2, heads=2, ratio=2, channels=3), (3, 8, 8)),
    "mixer": (
        lambda: Net(mixer, embed=nn.Conv2d(3, 12, 2, stride=2), norm1=nn.LayerNorm(12), token1=nn.Linear(16, 20),
                    token2=nn.Linear(20, 16), norm2=nn.LayerNorm(12), channel1=nn.Linear(12, 24),
                    channel2=nn.Linear(24, 12), fc=nn.Linear(12, 4)),
        (3, 8, 8),
    ),
    "convnext": (
        lambda: Net(convnext, stem=nn.Conv2d(3, 8, 2, stride=2), norm1=nn.LayerNorm(8),
                    depthwise=conv(8, 8, groups=8), norm2=nn.LayerNorm(8), widen=nn.Linear(8, 32), act=nn.GELU(),
                    project=nn.Linear(32, 8), down=nn.Conv2d(8, 12, 2, stride=2), norm3=nn.LayerNorm(12),
                    fc=nn.Linear(12, 4)),
        (3, 8, 8),
    ),
    "an MLP of three layers": (
        lambda: Net(deep, embed=nn.Conv2d(3, 8, 4, stride=4), a=nn.Linear(8, 12), b=nn.Linear(12, 10),
                    c=nn.Linear(10, 8), fc=nn.Linear(8, 4)),
        (3, 8, 8),
    ),
    "resnet": (lambda: nets.resnet_cifar(8), (3, 16, 16)),
    "resnet18": (lambda: nets.resnet18(classes=10), (3, 32, 32)),
    "resnet50": (lambda: nets.resnet50(classes=10), (3, 32, 32)),
    "vgg": (lambda: nets.vgg16_cifar(), (3, 32, 32)),
    "googlenet": (lambda: nets.googlenet_cifar(), (3, 8, 8)),
    "densenet": (lambda: nets.densenet40(), (3, 8, 8)),
    "mobilenet_v1": (lambda: nets.mobilenet_v1(width=0.25, classes=10), (3, 32, 32)),
    "mobilenet_v2": (lambda: nets.mobilenet_v2(), (3, 32, 32)),
    "functional": (
        lambda: Net(functional, stem=conv(3, 8), a=conv(8, 8), norm=nn.BatchNorm2d(8), b=conv(8, 6),
                    fc=nn.Linear(6, 4)),
        (3, 8, 8),
    ),
    "silu and bias": (
        lambda: plain(conv(3, 8), nn.SiLU(), conv(8, 12), nn.BatchNorm2d(12), nn.SiLU(), conv(12, 8), nn.SiLU()),
        (3, 8, 8),
    ),
    "prelu without norm": (
        lambda: plain(conv(3, 8), nn.PReLU(8), conv(8, 6), nn.PReLU(6), conv(6, 8), nn.PReLU()), (3, 8, 8)
    ),
    "sigmoid, which is not zero at zero": (
        lambda: plain(conv(3, 8), nn.Sigmoid(), conv(8, 6), nn.BatchNorm2d(6), nn.Sigmoid(), conv(6, 8)), (3, 8, 8)
    ),
    "norm behind the activation": (
        lambda: plain(conv(3, 8), nn.ReLU(), conv(8, 6), nn.ReLU(), nn.BatchNorm2d(6), conv(6, 8)), (3, 8, 8)
    ),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 8, 5, padding=2), nn.ReLU(), nn.Conv1d(8, 6, 3), nn.BatchNorm1d(6), nn.ReLU(),
            nn.Conv1d(6, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4),
        ),
        (2, 32),
    ),
    "not square": (
        lambda: plain(conv(3, 8), nn.ReLU(), conv(8, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 8)),
        (3, 6, 13),
    ),
    "groups": (
        lambda: plain(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 8, groups=2), nn.ReLU(), conv(8, 8)),
        (3, 8, 8),
    ),
    "depthwise with bias": (
        lambda: plain(
            conv(3, 8), nn.ReLU(), conv(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), conv(6, 6, groups=6), nn.ReLU(),
            conv(6, 8, 1),
        ),
        (3, 8, 8),
    ),
    "dilated and reflected": (
        lambda: plain(
            conv(3, 8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=2, dilation=2, padding_mode="reflect"), nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding="same"),
        ),
        (3, 8, 8),
    ),
    "squeeze and excite": (
        lambda: Net(excited, stem=conv(3, 8), wide=conv(8, 12), norm=nn.BatchNorm2d(12), down=conv(12, 4, 1),
                    up=conv(4, 12, 1), fc=nn.Linear(12, 4)),
        (3, 8, 8),
    ),
    "a fork before the activation": (
        lambda: Net(forked, stem=conv(3, 8), b=conv(8, 6), c=conv(20, 8), fc=nn.Linear(8, 4)), (3, 8, 8)
    ),
    "one norm for two": (
        lambda: Net(lambda s, x: s.fc(F.relu(s.norm(s.c(F.relu(s.norm(s.b(F.relu(s.stem(x)))))))).mean((2, 3))),
                    stem=conv(3, 8), b=conv(8, 8), c=conv(8, 8), norm=nn.BatchNorm2d(8), fc=nn.Linear(8, 4)),
        (3, 8, 8),
    ),
}  # fmt: skip


SLOW = {"resnet50", "googlenet", "mobilenet_v2", "resnet18", "vgg"}  # what takes over half a second to trace
QUICK = [name for name in NETS if name not in SLOW]


def network(name: str, count: int = 4) -> tuple[nn.Module, Tensor]:
    """A network in eval mode with lively batch norms, and inputs that differ in the means of their channels."""
    make, shape = NETS[name]
    with seeded(0):
        found = make()
        x = torch.randn(count, *shape) + torch.randn(count, shape[0], *[1] * (len(shape) - 1))
        for module in found.modules():
            if isinstance(module, NORMS):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
    return found.eval(), x


def lively(decoupled: Decoupled, seed: int = 1) -> Decoupled:
    """Controllers drawn so that about half of the filters are on, other ones for other inputs, some of them never."""
    with seeded(seed), torch.no_grad():
        for gate in gates(decoupled.model).values():
            fc1, fc2 = gate.controller.fc1, gate.controller.fc2
            fc1.weight.normal_(0, 2 / fc1.in_features**0.5)
            fc1.bias.normal_(0, 0.3)
            fc2.weight.normal_(0, 2 / fc2.in_features**0.5)
            fc2.bias.copy_(torch.where(torch.rand(fc2.out_features) < 0.3, -1e3, 0.3 * torch.randn(fc2.out_features)))
    decoupled.model.eval()
    return decoupled


def gated(name: str, count: int = 4, seed: int = 1) -> tuple[Decoupled, Tensor]:
    """A network with lively gates, and inputs for it."""
    found, x = network(name, count)
    return lively(insert_gates(found, x[:1]), seed), x


@torch.no_grad()
def always(decoupled: Decoupled, on: bool = True, only: str | None = None) -> None:
    """Open or close the gates of all layers, or of one, for every input."""
    for site in decoupled.sites:
        if only in (None, site.layer):
            fc2 = decoupled.model.get_submodule(site.gate).controller.fc2
            fc2.weight.zero_()
            fc2.bias.fill_(1 if on else -1)


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of two outputs, relative to the largest output of the second."""
    return float((a - b).detach().abs().max() / b.abs().max().clamp(min=1e-3))
