"""Twelve small networks written as people write them, one of each kind: what `make test` holds the methods to."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .superres import SwinBlock


def normed(inside: int, outside: int, size: int = 3, stride: int = 1, groups: int = 1, act: type = nn.ReLU):
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(inside, outside, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), act())


def head(width: int, classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def plain() -> nn.Module:
    """Convolutions in a chain, two linear layers behind a hard-coded flatten."""
    body = [normed(3, 16), nn.MaxPool2d(2), normed(16, 24), nn.MaxPool2d(2), normed(24, 32), nn.AdaptiveMaxPool2d(4)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))


class Bottleneck(nn.Module):
    """ResNet's, with a projection where the width or the side changes."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside // 2, 1, bias=False), nn.BatchNorm2d(outside // 2)
        self.conv2 = nn.Conv2d(outside // 2, outside // 2, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside // 2)
        self.conv3, self.bn3 = nn.Conv2d(outside // 2, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        changes = stride > 1 or inside != outside
        conv = nn.Conv2d(inside, outside, 1, stride, bias=False)
        self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outside)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        out += identity
        return self.relu(out)


def resnet() -> nn.Module:
    return nn.Sequential(normed(3, 16), Bottleneck(16, 32, 2), Bottleneck(32, 32), Bottleneck(32, 48, 2), head(48))


class Excite(nn.Module):
    """Squeeze and excite; `gate` is what the last activation is."""

    def __init__(self, width: int, act: type, gate: type) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.act(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """An inverted residual with squeeze and excite; dropped at random in training (stochastic depth)."""

    def __init__(self, inside: int, outside: int, stride: int, act: type, gate: type, drop: float = 0.0) -> None:
        super().__init__()
        wide, self.drop = 4 * inside, drop
        self.expand = normed(inside, wide, 1, act=act)
        self.depthwise = normed(wide, wide, 3, stride, groups=wide, act=act)
        self.excite = Excite(wide, nn.ReLU if act is nn.Hardswish else act, gate)
        self.project = normed(wide, outside, 1, act=nn.Identity)
        self.is_residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.excite(self.depthwise(self.expand(x))))
        if not self.is_residual:
            return y
        if self.training and self.drop:
            y = y * torch.bernoulli(torch.full((len(y), 1, 1, 1), 1 - self.drop)) / (1 - self.drop)
        return x + y


def inverted(act: type, gate: type, drop: float) -> nn.Module:
    blocks = [Inverted(8, 12, 2, act, gate, drop), Inverted(12, 12, 1, act, gate, drop), Inverted(12, 16, 2, act, gate)]
    return nn.Sequential(normed(3, 8, stride=2, act=act), *blocks, normed(16, 32, 1, act=act), head(32))


def mobilenet_v3() -> nn.Module:
    return inverted(nn.Hardswish, nn.Hardsigmoid, 0.0)


def efficientnet() -> nn.Module:
    return inverted(nn.SiLU, nn.Sigmoid, 0.2)


class Shuffle(nn.Module):
    """ShuffleNet-v2's unit: half of the channels pass, the others are convolved, then both are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        depthwise = normed(half, half, groups=half, act=nn.Identity)
        self.branch = nn.Sequential(*normed(half, half, 1), *depthwise, *normed(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        x = torch.cat((a, self.branch(b)), dim=1)
        N, C, H, W = x.size()
        return x.view(N, 2, C // 2, H, W).transpose(1, 2).contiguous().view(N, C, H, W)


def shufflenet() -> nn.Module:
    units = [Shuffle(16) for _ in range(3)]
    return nn.Sequential(normed(3, 16), nn.MaxPool2d(3, 2, 1), *units, normed(16, 32), head(32))


class Dense(nn.Module):
    """DenseNet's layer: norm, activation, convolution, joined to all that came before."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inside), nn.Conv2d(inside, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet() -> nn.Module:
    layers = [Dense(12 + 6 * k, 6) for k in range(4)]
    pooled = [nn.BatchNorm2d(36), nn.ReLU(), nn.Conv2d(36, 18, 1, bias=False), nn.AvgPool2d(2)]
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), *layers, *pooled, Dense(18, 6), nn.BatchNorm2d(24), head(24))


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, then norm and MLP with the channels last, scaled layer by layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.scale * self.fc2(F.gelu(self.fc1(y))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    blocks = [ConvNeXtBlock(16), nn.Conv2d(16, 24, 2, 2), ConvNeXtBlock(24)]
    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), *blocks, head(24))


class Attention(nn.Module):
    """Self-attention with one layer for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        N, T, C = x.shape
        q, k, v = self.qkv(x).reshape(N, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, T, C))


class Encoder(nn.Module):
    """A transformer's block with the norms in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, a class token, positions, two blocks and a linear head."""

    def __init__(self, width: int = 24, side: int = 32, patch: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(Encoder(width, 4), Encoder(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Merge(nn.Module):
    """Swin's patch merging: each 2 x 2 pixels side by side, normed and projected; channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, a::2, b::2] for b in (0, 1) for a in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    """Two stages of shifted windows, channels last."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        first = [SwinBlock(width, 2, 4, 0), SwinBlock(width, 2, 4, 2)]
        self.stages = nn.Sequential(*first, Merge(width), SwinBlock(2 * width, 4, 4, 0))
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stages(self.patches(x).permute(0, 2, 3, 1)))
        return self.head(x.mean((1, 2)))


class UNet(nn.Module):
    """Two levels down, two up, each joined to its counterpart: a map of four classes as large as the picture."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        w = width
        self.down1, self.down2, self.middle = normed(3, w), normed(w, 2 * w), normed(2 * w, 4 * w)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * w, 2 * w, 2, 2), nn.ConvTranspose2d(2 * w, w, 2, 2)
        self.join2, self.join1, self.out = normed(4 * w, 2 * w), normed(2 * w, w), nn.Conv2d(w, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.middle(F.max_pool2d(b, 2))
        y = self.join2(torch.cat([b, self.up2(y)], 1))
        return self.out(self.join1(torch.cat([a, self.up1(y)], 1)))


class Detector(nn.Module):
    """A body and two heads: scores and boxes of each place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(normed(3, 16, stride=2), Bottleneck(16, 32, 2), normed(32, 32))
        self.scores = nn.Sequential(*normed(32, 24), nn.Conv2d(24, 3, 1))
        self.boxes = nn.Sequential(*normed(32, 24), nn.Conv2d(24, 4, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.scores(x).permute(0, 2, 3, 1).flatten(1, 2), self.boxes(x).permute(0, 2, 3, 1).flatten(1, 2)
