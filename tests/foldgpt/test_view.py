"""The pictures' numbers: the states of blocks, the gates at a step, the plane of rates."""

import pytest
import torch

import lab
from lab.core.report import Report, Row
from lab.foldgpt import FoldGPTOutcome, view
from lab.foldgpt.folding import Fold


def outcome(removal: float, sharing: float, perplexity: float) -> FoldGPTOutcome:
    rows = [Row("parameters", 100, 64), Row("macs", 10, 8), Row("bytes", 400, 256, "B"),
            Row("perplexity", 20.0, perplexity, "", "learned", 2)]  # fmt: skip
    return FoldGPTOutcome(
        recipe=lab.FoldGPT(removal=removal, sharing=sharing), report=Report("a", tuple(rows)), trace=(),
        model=torch.nn.Linear(1, 1), ranking=(2, 1, 0, 3), fold=Fold((0, 1, 3), ((0, 1),), 2),
        gates=torch.tensor([[0.75, 0.75, 0.75, 0.75], [0.95, 0.75, 0.3, 1.0], [1.0, 1.0, 0.0, 1.0]]),
        similarity=torch.eye(5) + 0.5 * (1 - torch.eye(5)),
    )  # fmt: skip


def test_numbers_of_a_run():
    found = view.numbers(outcome(0.25, 0.25, 21.0), 1)
    assert found["state"] == ["shares", "shares", "removed", "own weights"]
    assert found["place"] == [3, 2, 1, 4]  # which goes first
    assert found["gate"] == pytest.approx([0.95, 0.75, 0.3, 1.0])
    assert found["neighbours"] == [0.5] * 4
    assert view.numbers(outcome(0.25, 0.25, 21.0))["gate"] == [1.0, 1.0, 0.0, 1.0]


def test_the_slider_of_steps():
    explorer = lab.view(outcome(0.25, 0.25, 21.0))
    assert "between 0.1 and 0.9 0" in repr(explorer)
    explorer.step = 1
    assert "mean gate 0.75" in repr(explorer) and "between 0.1 and 0.9 2" in repr(explorer)


def test_two_sliders_fold_the_stack(tmp_path):
    grid = [outcome(r, s, 20 + 10 * r + 5 * s) for r in (0.0, 0.25) for s in (0.0, 0.25)]
    explorer = view.folding(grid)
    explorer.removal, explorer.sharing = 25, 25
    assert "perplexity 23.75 (20.00 before)" in repr(explorer)
    explorer.sharing = 0
    assert "perplexity 22.50 (20.00 before)" in repr(explorer)
    page = explorer.save(tmp_path / "page.html").read_text()
    assert len(page) < 300_000 and "the stack" in page


def test_a_plane_with_a_hole_is_refused():
    with pytest.raises(ValueError, match="one for every removal with every sharing"):
        view.folding([outcome(0.0, 0.0, 20.0), outcome(0.25, 0.25, 21.0)])
    with pytest.raises(ValueError, match="0 pairs of rates"):
        view.folding([])
