"""DQSS on attention: products of two tensors get a strategy for each, and all of it runs on integers."""

import pytest
import torch
from torch import nn

import lab
from lab.core.onnx import ort_report
from tests.core.quantisation.test_attention import TOKENS, WIDTH, heads


class Tokens(nn.Module):
    """A picture in patches, attention, and a class of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.heads = nn.Conv2d(1, WIDTH, 2, 2), nn.LayerNorm(WIDTH), heads(2, "added")
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.last(nn.functional.gelu(tokens + self.heads(self.norm(tokens))).mean(1))


@pytest.mark.slow
@pytest.mark.parametrize(("placement", "scales"), [("layers", "channel"), ("full", "tensor")])
def test_products_have_strategies_and_the_network_comes_back(placement, scales, tmp_path):
    torch.manual_seed(0)
    net = Tokens().eval()
    x, y = torch.randn(16, 1, 4, 2 * TOKENS // 2), torch.arange(16) % 3
    task = lab.Task(model=net, batches=[(x, y)], score=lab.tasks.accuracy([(x, y)]))
    recipe = lab.DQSS(
        weight_bits=8,
        activation_bits=8,
        calibration=16,
        steps=3,
        placement=placement,
        scales=scales,
        candidates=("max", "mse", "kl"),
    )
    outcome = recipe.run(task, progress=False)
    products = {name for name in outcome.choices if name.startswith("matmul")}
    assert len(products) == (4 if placement == "layers" else len(products))
    assert all(outcome.choices[name]["activation_bits"] == 8 for name in products)
    shares = [m for name, m in outcome.model.named_modules() if hasattr(m, "qparams") and "right" not in name]
    assert any(quantiser.qparams().qmin == 0 for quantiser in shares)  # softmax
    assert any("LayerNorm is not quantised here" in note for note in outcome.report.notes)
    outcome.save(tmp_path / "run")
    assert torch.equal(lab.load(tmp_path / "run", base=net).model(x), outcome.model(x))
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    assert ort_report.worst(outcome.parity(x)).steps <= 1
    if placement == "full":
        assert outcome.fusion().share == 1, outcome.fusion()
