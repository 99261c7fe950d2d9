"""The exported file answers like the network, in another runtime, at another batch size."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from lab.core.onnx import export
from tests.gal.families import family

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20 jointly", "densenet40 inputs", "googlenet branches"])
def test_a_pruned_network_runs_in_onnxruntime(name, tmp_path):
    from lab.core.graph import surgery
    from lab.gal import structures
    from tests.gal.families import close_some

    network, x, units, _ = family(name)
    masked = structures.insert_masks(network, units, x[:1])
    close_some(masked)
    plan, _ = structures.plan(masked)
    smaller = surgery.remove(structures.fold(masked), plan, x[:1])
    path = export.onnx(smaller, tmp_path / "net.onnx", x[:1])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    three = torch.cat([x, x[:1]])
    (output,) = session.run(None, {"input": three.numpy()})
    with torch.no_grad():
        assert (torch.from_numpy(output) - smaller(three)).abs().max() < 1e-4


@pytest.mark.slow
def test_an_export_says_nothing(tmp_path):
    """Not even of packages that the exporter would like to find, which it logs once a process."""
    path = str(tmp_path / "net.onnx")
    export_it = f"export.onnx(torch.nn.Linear(2, 2), {path!r}, torch.zeros(1, 2))"
    code = f"import torch; from lab.core.onnx import export; {export_it}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Sorted(torch.nn.Module):
    """An operator that only torch's exporter knows."""

    def forward(self, x):
        return x.sort(-1).values


class Fourier(torch.nn.Module):
    """An operator that no exporter knows."""

    def forward(self, x):
        return torch.linalg.svdvals(x)


@pytest.mark.slow
def test_what_is_not_known_here_is_left_to_torch(tmp_path):
    path = export.onnx(Sorted(), tmp_path / "net.onnx", torch.zeros(1, 4))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": np.float32([[3, 1, 2, 0], [0, 2, 1, 5]])})
    assert output.tolist() == [[0, 1, 2, 3], [0, 1, 2, 5]]


@pytest.mark.slow
def test_what_nobody_can_write_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"svdvals.* has no ONNX form here.*; nor can torch\.onnx\.export") as caught:
        export.onnx(Fourier(), tmp_path / "net.onnx", torch.eye(3)[None])
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("module", "model"), [("onnx", torch.nn.Linear(4, 2)), ("onnxscript", Sorted())])
def test_a_missing_extra_is_one_line(module, model, monkeypatch, tmp_path):
    for name in {module, *(name for name in sys.modules if name.split(".")[0] == module)}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'shrinklab\[export\]'"):
        export.onnx(model, tmp_path / "net.onnx", torch.zeros(1, 4))
    assert not list(tmp_path.iterdir())


def test_the_opset_is_the_one_asked_for(tmp_path):
    for opset in (17, 21):
        path = export.onnx(torch.nn.Linear(4, 2), tmp_path / "net.onnx", torch.zeros(1, 4), opset)
        assert [entry.version for entry in onnx.load(path).opset_import] == [opset]
    with pytest.raises(ValueError, match="opset=16"):
        export.onnx(torch.nn.Linear(4, 2), tmp_path / "net.onnx", torch.zeros(1, 4), 16)
