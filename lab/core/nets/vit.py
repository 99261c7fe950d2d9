"""ViT (Dosovitskiy et al., ICLR 2021, 2010.11929): a transformer over the patches of a picture."""

import torch
from torch import nn
from torch.nn import functional as F

from .parts import check_counts, named


class SelfAttention(nn.Module):
    """Self-attention of several heads, queries, keys and values from one linear layer: (N, T, C) -> (N, T, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (N, heads, T, size) each
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers over each token, GELU between them: (N, T, C) -> (N, T, C)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and added to its input: (N, T, C) -> (N, T, C)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches as tokens behind a class token, blocks, and a linear layer on the class token that comes out."""

    def __init__(
        self, size: int, patch: int, width: int, depth: int, heads: int, ratio: int, classes: int, channels: int
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, ratio * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)  # (N, patches, width)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit(
    size: int = 28,
    patch: int = 4,
    width: int = 48,
    depth: int = 3,
    heads: int = 4,
    ratio: int = 4,
    classes: int = 10,
    channels: int = 1,
) -> nn.Module:
    """ViT with a class token: (N, channels, size, size) -> (N, classes), `ratio` times as wide inside its MLPs.

    DeiT-Tiny (Touvron et al., ICML 2021) is size=224, patch=16, width=192, depth=12, heads=3, classes=1000, channels=3.
    Raises ValueError for a count below 1, a size that is no multiple of the patch, a width that is none of the heads.
    """
    check_counts(
        size=size, patch=patch, width=width, depth=depth, heads=heads, ratio=ratio, classes=classes, channels=channels
    )
    if size % patch:
        raise ValueError(f"patch={patch}: give a number that divides size={size}")
    if width % heads:
        raise ValueError(f"heads={heads}: give a number that divides width={width}")
    net = ViT(size, patch, width, depth, heads, ratio, classes, channels)
    sizes = {"size": size, "patch": patch, "width": width, "depth": depth, "heads": heads, "ratio": ratio}
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(net.class_token, std=0.02)
    nn.init.trunc_normal_(net.position, std=0.02)
    return named(net, "vit", **sizes, classes=classes, channels=channels)
