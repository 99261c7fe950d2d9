"""Super-resolution networks that the lab does not bring: RLFN, and one of Swin's windows as SwinIR has them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ESA(nn.Module):
    """RLFN's enhanced spatial attention: a gate computed on a coarse grid, enlarged and multiplied in."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.conv1, self.conv_f = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, squeezed, 1)
        self.conv2 = nn.Conv2d(squeezed, squeezed, 3, stride=2)
        self.conv3 = nn.Conv2d(squeezed, squeezed, 3, padding=1)
        self.conv4 = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(x)
        coarse = self.conv3(F.max_pool2d(self.conv2(first), kernel_size=7, stride=3))
        coarse = F.interpolate(coarse, (x.size(2), x.size(3)), mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(coarse + self.conv_f(first)))


class RLFB(nn.Module):
    """A residual local feature block: three convolutions, a sum, a 1 x 1 convolution and the gate."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(layer for _ in range(3) for layer in (
            nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.05, inplace=True),
        )))  # fmt: skip
        self.fuse, self.esa = nn.Conv2d(width, width, 1), ESA(width, squeezed)

    def forward(self, x: Tensor) -> Tensor:
        return self.esa(self.fuse(self.convs(x) + x))


class RLFN(nn.Module):
    """RLFN (Kong et al., CVPR Workshops 2022, 2205.07514) of a smaller width."""

    def __init__(self, blocks: int = 4, width: int = 24, squeezed: int = 8, scale: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(RLFB(width, squeezed) for _ in range(blocks)))
        self.fuse = nn.Conv2d(width, width, 3, padding=1)
        self.tail, self.shuffle = nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.shuffle(self.tail(self.fuse(self.blocks(x)) + x))


class WindowAttention(nn.Module):
    """Attention in windows of side x side pixels with a bias for each relative position; channels last."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
        apart = at[:, :, None] - at[:, None] + side - 1
        self.register_buffer("index", apart[0] * (2 * side - 1) + apart[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        N, H, W, C = x.shape
        x = x.view(N, H // self.side, self.side, W // self.side, self.side, C).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, self.side**2, C)
        q, k, v = self.qkv(x).reshape(-1, self.side**2, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(self.side**2, self.side**2, -1).permute(2, 0, 1)
        attention = (q @ k.transpose(-2, -1) * (C // self.heads) ** -0.5 + bias).softmax(-1)
        x = self.proj((attention @ v).transpose(1, 2).reshape(-1, self.side**2, C))
        x = x.view(N, H // self.side, W // self.side, self.side, self.side, C).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(N, H, W, C)


class SwinBlock(nn.Module):
    """Norm, shifted windows and an MLP, each with its residual sum; channels last."""

    def __init__(self, width: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, side)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        x = x + torch.roll(self.attention(y), (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class SwinIR(nn.Module):
    """A small network of SwinIR's kind (Liang et al., ICCV Workshops 2021, 2108.10257): sides a multiple of 4."""

    def __init__(self, groups: int = 2, width: int = 24, heads: int = 4, scale: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        blocks = [nn.Sequential(SwinBlock(width, heads, 4, 0), SwinBlock(width, heads, 4, 2)) for _ in range(groups)]
        self.groups = nn.ModuleList(blocks)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(groups))
        self.norm, self.fuse = nn.LayerNorm(width), nn.Conv2d(width, width, 3, padding=1)
        self.tail, self.shuffle = nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.head(x)
        for blocks, conv in zip(self.groups, self.convs, strict=True):
            x = x + conv(blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.shuffle(self.tail(self.fuse(x) + first))
