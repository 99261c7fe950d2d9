"""Attention written out is torch's own, and its products stand on grids and run on integers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lab.core.onnx import ort_report, qdq
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.quantisation.placement import is_positive, matrix_products
from tests.core.onnx.networks import KINDS, quantised

TOKENS, WIDTH = 6, 8
X = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """Attention of four heads, with fewer of keys and values where they share them, and with every kind of mask."""

    def __init__(self, shared: int, mask: str, scale: float | None) -> None:
        super().__init__()
        self.shared, self.mask, self.scale = shared, mask, scale
        self.q, self.kv, self.out = (nn.Linear(WIDTH, n) for n in (WIDTH, 2 * WIDTH // shared, WIDTH))
        some = torch.rand(TOKENS, TOKENS, generator=torch.Generator().manual_seed(1)) + torch.eye(TOKENS) > 0.4
        self.register_buffer("seen", some)
        self.register_buffer("bias", torch.randn(4, TOKENS, TOKENS, generator=torch.Generator().manual_seed(2)))

    def forward(self, x):
        n, t, c = x.shape
        q = self.q(x).view(n, t, 4, c // 4).transpose(1, 2)
        k, v = self.kv(x).view(n, t, 2, 4 // self.shared, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        mask = {"bool": self.seen, "added": self.bias}.get(self.mask)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self.mask == "causal", scale=self.scale, enable_gqa=self.shared > 1
        )
        return self.out(y.transpose(1, 2).reshape(n, t, c))


def heads(shared=1, mask="", scale=None):
    torch.manual_seed(0)
    return Heads(shared, mask, scale).eval()


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["", "bool", "added", "causal"]),
    st.sampled_from([None, 0.7]),
    st.sampled_from(KINDS),
    st.booleans(),
)
def test_all_forms_answer_as_torch_does_and_within_a_step_on_integers(shared, mask, scale, kind, per_channel):
    model = heads(shared, mask, scale)
    graph = fold_batch_norms(model, X)
    assert len(matrix_products(graph)) == 2
    torch.testing.assert_close(graph(X), model(X), atol=1e-6, rtol=1e-5)
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    from lab.core.onnx.runtime import Deployed

    run = Deployed(qdq.to_model(graph).SerializeToString())
    torch.testing.assert_close(run(X[:1]), model(X[:1]).detach(), atol=1e-5, rtol=1e-4)
    rounded = quantised(model, X, per_channel)
    assert ort_report.worst(ort_report.parity(rounded, X, kind)).steps <= 1


class Asked(nn.Module):
    """Attention that forward can be asked to mask, and is not (timm's)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x, is_causal: bool = False):
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)[:, 0]


def test_what_forward_is_not_given_is_its_default():
    torch.manual_seed(0)
    model = Asked().eval()
    torch.testing.assert_close(fold_batch_norms(model, X)(X), model(X), atol=1e-6, rtol=1e-5)


def test_shares_are_known_to_be_positive_and_products_run_on_integers():
    graph = quantised(heads(), X)
    scores, mixed = matrix_products(graph)
    (shares,) = mixed.all_input_nodes[0].all_input_nodes  # behind the quantiser
    assert is_positive(shares) and not is_positive(scores)
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    report = ort_report.fusion(graph)
    assert {row.layer for row in report.rows} == {"q", "kv", "out", scores.name, mixed.name}
    assert report.share == 1, report


def test_attention_that_goes_on_dropping_stays_whole():
    class Dropping(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, dropout_p=1e-12)

    assert not matrix_products(fold_batch_norms(Dropping(), X))
