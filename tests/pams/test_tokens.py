"""PAMS on what super-resolution took from transformers: linear layers, attention in shifted windows, norms."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab.core.onnx import ort_report
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.pams.layers import QuantisedLinear
from lab.pams.placement import PLACEMENTS, place_quantisers
from lab.pams.recipe import unpack
from tests.pams.small import QUICK, quantised, task

SIDE, WINDOW, WIDTH, HEADS = 12, 4, 8, 2
X = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """A layer of SwinIR on (N, H, W, C): attention in windows, which every second layer shifts, and an MLP."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift, self.norms = shift, nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.places = nn.Parameter(0.1 * torch.randn(HEADS, WINDOW**2, WINDOW**2))

    def attend(self, x):
        n, h, w, c = x.shape
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        x = x.view(n, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).permute(0, 1, 3, 2, 4, 5)
        tokens = x.reshape(-1, WINDOW**2, c)
        q, k, v = self.qkv(tokens).reshape(-1, WINDOW**2, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.places)
        y = self.proj(y.transpose(1, 2).reshape(-1, WINDOW**2, c))
        y = y.view(n, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y

    def forward(self, x):
        x = x + self.attend(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class SwinIR(nn.Module):
    """Two layers between a convolution and an upsampler, as SwinIR has six times six of them."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Sequential(Layer(0), Layer(WINDOW // 2))
        self.after, self.tail = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 12, 3, padding=1)

    def forward(self, x):
        first = self.head(x)
        tokens = self.body(first.permute(0, 2, 3, 1))
        return F.pixel_shuffle(self.tail(self.after(tokens.permute(0, 3, 1, 2)) + first), 2)


class ConvNeXt(nn.Module):
    """A block of ConvNeXt in a network that enlarges."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.depthwise = (
            nn.Conv2d(3, WIDTH, 3, padding=1),
            nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH),
        )
        self.norm, self.scale = nn.LayerNorm(WIDTH), nn.Parameter(torch.full((WIDTH,), 0.5))
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.tail = nn.Conv2d(WIDTH, 12, 3, padding=1)

    def forward(self, x):
        x = self.head(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        return F.pixel_shuffle(self.tail(x + y.permute(0, 3, 1, 2)), 2)


def made(kind) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


@pytest.mark.parametrize("kind", [SwinIR, ConvNeXt])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_linear_layers_and_products_are_rounded_wherever_blocks_are(kind, placement):
    graph = fold_batch_norms(made(kind), X)
    found = place_quantisers(graph, placement)
    linear = {name for name, module in graph.named_modules() if isinstance(module, nn.Linear)}
    assert linear and linear <= set(found.layers) | found.unquantised.keys()
    if kind is SwinIR:
        assert linear <= set(found.layers)
        readers = [name for point in found.points for name in point.readers if "matmul" in name]
        assert len(readers) == 8  # both operands of two products in each of two layers
        shares = [point for point in found.points if "softmax" in point.source]
        assert len(shares) == 2 and not any(point.signed for point in shares)


@pytest.mark.slow
@pytest.mark.parametrize("scales", ["tensor", "channel"])
@pytest.mark.parametrize("kind", [SwinIR, ConvNeXt])
def test_all_layers_run_on_integers_within_a_step(kind, scales):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    graph, _ = quantised(made(kind), X, placement="full", scales=scales)
    for activation_type in ("uint8", "int8"):
        assert ort_report.worst(ort_report.parity(graph, X, activation_type)).steps <= 1
    report = ort_report.fusion(graph)
    assert report.share == 1, report


@pytest.mark.slow
def test_a_network_of_windows_learns_is_packed_and_comes_back(tmp_path):
    import lab

    net = made(SwinIR)
    outcome = lab.PAMS(placement="full", **QUICK).run(task(net), progress=False)
    assert isinstance(outcome.model.get_submodule("body.0.qkv"), QuantisedLinear)
    assert any("LayerNorm is not quantised here" in note for note in outcome.report.notes)
    again = unpack(outcome.pack(tmp_path / "net.lab"), base=net)
    assert torch.equal(again(X), outcome.model(X))
    outcome.save(tmp_path / "run")
    loaded = lab.load(tmp_path / "run", base=net)
    assert torch.equal(loaded.model(X), outcome.model(X))
