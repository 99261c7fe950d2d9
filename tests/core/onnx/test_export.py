"""The exported file answers like the network, in another runtime, at another batch size."""

import subprocess
import sys

import pytest
import torch

from lab.core.onnx import export
from tests.gal.families import family

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


def test_a_missing_extra_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'lab\[export\]'"):
        export.onnx(torch.nn.Linear(2, 2), tmp_path / "net.onnx", torch.zeros(1, 2))
    assert not list(tmp_path.iterdir())
