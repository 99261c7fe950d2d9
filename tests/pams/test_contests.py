"""PAMS's contests: rivals quantise what PAMS quantises, and kept cells can be made again."""

import sys
from pathlib import Path

import pytest
import torch

import lab
from lab.core.quantisation.quantisers import RangeQuantiser
from tests.kept import twice, validated
from tests.pams import small

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import pams_accuracy as accuracy
    import set5
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

CONTESTS = {"photos": accuracy.on_photos, "full": accuracy.full, "transfer": accuracy.transfer}
KEPT = {name: path for name in CONTESTS if (path := ROOT / "data" / "pams" / f"{name}.json").exists()}
CELLS = {  # budget, rival and how far dB may be on another processor
    "photos": ("4 bits", "not trained", 0.05),
    "full": ("8 bits, full", "onnxruntime MinMax", 0.05),
    "transfer": ("4 bits, random start", "transfer 0", 0.5),
}
SHORT = lab.PAMS(weight_bits=3, activation_bits=3, steps=3, calibration=2, lr=1e-3)


def grids(model: torch.nn.Module) -> dict[str, tuple[bool, int]]:
    return {name: (q.signed, q.n) for name, q in model.named_modules() if isinstance(q, RangeQuantiser)}


@pytest.mark.parametrize("name", accuracy.RIVALS)
@pytest.mark.parametrize("fields", [{}, {"placement": "full"}])
def test_a_rival_quantises_what_pams_quantises(name, fields):
    task, recipe = small.task(), lab.PAMS(**{**SHORT.__dict__, **fields})
    ours = recipe.run(task, progress=False).model
    theirs = accuracy.learned(task, recipe, *accuracy.RIVALS[name])
    rounded = {key for key, module in theirs.named_modules() if hasattr(module, "parametrizations")}
    assert rounded == {key for key, module in ours.named_modules() if hasattr(module, "int_repr")}
    images = {} if fields == {} else {key for key, (_, n) in grids(ours).items() if n in (127, 255)}
    assert {key: grid for key, grid in grids(theirs).items() if key not in images} == {
        key: grid for key, grid in grids(ours).items() if key not in images
    }


@pytest.mark.slow
def test_transfer_pulls_in_proportion_to_what_the_maps_differ_by():
    task = small.task()
    coarse, fine = (SHORT.__class__(weight_bits=b, activation_bits=b, steps=2, calibration=2) for b in (2, 8))
    pulls = [accuracy.pull(task, recipe.run(task, progress=False)) for recipe in (coarse, fine)]
    assert pulls[0] > pulls[1] > 0


def test_vdsr_reads_enlarged_luma():
    pairs = small.pictures(1)
    ((y, wanted),) = set5.EnlargedLuma(pairs)
    assert y.shape == wanted.shape == (2, 1, 24, 24) and 16 / 255 <= float(wanted.min()) <= float(wanted.max()) <= 1
    net = set5.VDSR(8, 4)
    torch.nn.init.zeros_(net.tail.weight)
    assert torch.equal(net(y), y)


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_is_of_these_settings(name):
    now = CONTESTS[name](False)
    assert {r["seed"] for r in validated(KEPT[name], now)} == {*now.seeds}


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_a_kept_cell_is_made_again(name, tmp_path):
    budget, rival, near = CELLS[name]
    kept, again = twice(KEPT[name], CONTESTS[name](False), rival, budget, tmp_path)
    assert again["lost"] == pytest.approx(kept["lost"], abs=near)
