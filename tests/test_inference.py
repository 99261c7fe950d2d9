"""What was pruned, then quantised, runs as sparse int8: in the engine, and as a file that holds the zeros."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lab
from lab.core import kernels
from lab.core.onnx.runtime import Deployed
from lab.core.quantisation.qparams import int_repr
from lab.core.training import seeded
from lab.sparsebytenn import engine

needs_c = pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")
INT8 = {"weight_bits": 8, "activation_bits": 8, "placement": "full"}
QUANTISERS = {
    "DQSS": lab.DQSS(**INT8, steps=2, calibration=8, candidates=("max", "mse")),
    "DQSS, uneven": lab.DQSS(**INT8, steps=2, calibration=8, candidates=("max", "mse"), scales="uneven"),
    "DQSS, a scale a channel": lab.DQSS(**INT8, steps=2, calibration=8, candidates=("max", "mse"), scales="channel"),
    "DQSS, 4 bits, where layers read": lab.DQSS(steps=2, calibration=8, candidates=("max", "mse")),
    "PAMS": lab.PAMS(placement="full", steps=6, calibration=3),
}
PICTURES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def task() -> lab.Task:
    """A thin MobileNet-v1 on noise of four classes, which PAMS too learns by a loss of the batch."""
    with seeded(0):
        net = lab.nets.mobilenet_v1(0.25, classes=4, size=16).eval()
    batches = [(x, torch.arange(8) % 4) for x in PICTURES.split(8)]
    return lab.Task(
        model=net, batches=batches, score=lambda net: 0.0, batch_loss=lambda net, b: F.cross_entropy(net(b[0]), b[1])
    )


@pytest.fixture(scope="module")
def pruned():
    """What GAL and then SparseByteNN leave: fewer channels, half of the blocks of 4 x 4 at 0."""
    ground = task()
    smaller = lab.GAL(steps=10, mask_every=1, lam=0.9, finetune_steps=2, released="uniform_masks").run(
        ground, progress=False
    )
    assert smaller.report["parameters"].ratio > 1.02
    recipe = lab.SparseByteNN(block=(4, 4), sparsity=0.5, steps=6, regroup_every=2)
    return recipe.run(replace(ground, model=smaller.model), progress=False)


SLOW = [pytest.param(name, marks=[pytest.mark.slow] if "," in name else []) for name in QUANTISERS]


@pytest.fixture(scope="module", params=SLOW)
def outcome(request, pruned):
    return QUANTISERS[request.param].run(replace(task(), model=pruned.model), progress=False)


def integers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The codes of each layer on a grid."""
    return {name: on_grid[0] for name, module in model.named_modules() if (on_grid := int_repr(module)) is not None}


@pytest.mark.slow
@needs_c
def test_products_are_done_in_int8_and_leave_blocks_out(pruned, outcome):
    made = lab.engine(outcome, strict=True, measure=False)
    rows = made.profile(2).set_index("layer")
    for name, mask in pruned.masks.items():
        assert rows.form[name] == "sparse, int8", (name, rows.form[name])
        assert rows["blocks kept"][name] == pytest.approx(float(mask.float().mean()), abs=1e-6)
    x = PICTURES[:4]
    with torch.no_grad():
        exact = outcome.model(x)
    gap = (made(x) - exact).abs().max() / exact.abs().max()
    assert gap < 0.05, gap  # a sum's last bit may decide for another code
    bare = lab.engine(replace(pruned, model=task().model), strict=True, measure=False)
    assert len(made.data) < 0.3 * len(bare.data)


def test_the_file_holds_the_zeros_and_gives_the_outputs(pruned, outcome, tmp_path):
    onnx = pytest.importorskip("onnx")
    path = outcome.export(tmp_path / "net.onnx")
    held = {part.name: onnx.numpy_helper.to_array(part) for part in onnx.load(path).graph.initializer}
    codes = integers(outcome.model)
    for name in pruned.masks:
        gone = (pruned.model.get_parameter(f"{name}.weight") == 0).numpy()
        like = [a for a in held.values() if a.dtype == np.int8 and a.shape == gone.shape]
        (same,) = [a for a in like if (a == codes[name].numpy()).all()]
        assert gone.mean() > 0.35 and (same[gone] == 0).all() and (same[~gone] != 0).any()
    with torch.no_grad():
        exact = outcome.model(PICTURES[:8])
    assert (Deployed(path)(PICTURES[:8]) - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.slow
@needs_c
def test_the_file_itself_runs_as_sparse_int8(outcome, tmp_path):
    pytest.importorskip("onnx")
    made = engine.compile(outcome.export(tmp_path / "net.onnx"), PICTURES[:1], measure=False)
    assert list(made.profile(2).form).count("sparse, int8") >= 12


def test_bytes_go_down_from_stage_to_stage_and_begin_where_the_last_ended(pruned, outcome):
    rows = outcome.report["bytes"]
    assert rows.before == pruned.report["bytes"].after and rows.after < 0.4 * rows.before
    assert rows.after == lab.cost.bytes_stored(outcome.model)


def test_what_holds_no_network_or_no_example_is_one_line():
    with pytest.raises(TypeError, match="a str holds no network: give the outcome of a run"):
        lab.engine("net")
    with pytest.raises(ValueError, match=r"keeps no example: give one, lab.engine\(outcome, example=x\)"):
        lab.engine(type("Found", (), {"model": nn.Linear(2, 2)})())
