"""A file gives in OpenVINO what it gives in onnxruntime, and its layers run there on integers."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.core.onnx import qdq
from lab.core.onnx.openvino import DeployedOpenVINO, openvino_report
from lab.core.quantisation.bn_folding import fold_batch_norms
from tests.core.onnx.networks import HAS_VNNI, quantised
from tests.core.onnx.test_operators import X, net


def test_without_the_extra_one_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'shrinklab\[openvino\]'") as caught:
        DeployedOpenVINO(b"")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def installed():
    pytest.importorskip("openvino", reason="needs the extra `openvino`")
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")


BITS = 8 if HAS_VNNI else 7
PARTS = ["gelu", "channels last", "pool to 1", *(["attention by function"] if HAS_VNNI else [])]


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=2),
    st.sampled_from(["uint8", "int8"]),
    st.booleans(),
)
def test_both_runtimes_agree_within_two_steps_and_layers_are_integer(installed, names, kind, per_channel):
    graph = quantised(net(*names), X, per_channel, BITS)
    report = openvino_report(qdq.to_model(graph, activation_type=kind).SerializeToString(), X)
    assert report.difference <= 2.01 / 127, report
    assert report.integers == sum(report.precisions.values()) >= 2, report


def test_a_float_network_is_the_same_and_runs_in_float32(installed):
    report = openvino_report(qdq.to_model(fold_batch_norms(net("gelu"), X)).SerializeToString(), X)
    assert report.difference < 1e-5 and report.precisions.keys() == {"f32"} and report.integers == 0


def test_a_file_is_run_as_a_module(installed, tmp_path):
    graph = fold_batch_norms(net("gelu"), X)
    run = DeployedOpenVINO(qdq.write(graph, tmp_path / "net.onnx"))
    torch.testing.assert_close(run(X[:1]), graph(X[:1]).detach(), atol=1e-5, rtol=1e-4)
