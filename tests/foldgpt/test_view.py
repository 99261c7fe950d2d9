"""The pictures' numbers: the states of blocks, the gates at a step, the plane of rates."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

import lab
from lab.core.report import Report, Row
from lab.foldgpt import FoldGPTOutcome, view
from lab.foldgpt.folding import Fold
from lab.foldgpt.search import FoldMove

from .small import Letters, model, tokens


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


def measured() -> FoldGPTOutcome:
    """An outcome with what each move of four blocks costs."""
    lone = {(0,): 9.0, (1,): 2.1, (2,): 2.0, (3,): 2.4, (0, 1): 3.0, (1, 2): 2.05, (2, 3): 2.2, (0, 1, 2): 3.5}
    return replace(outcome(0.25, 0.25, 21.0), moves=tuple(FoldMove(run, loss) for run, loss in lone.items()))


def test_the_cheapest_moves_do_not_meet():
    lone = {move.blocks: move.loss for move in measured().moves}
    assert view.cheapest(lone, 1, 1) == [(2,), (0, 1)]  # 1-2 is cheaper, and has lost block 2
    assert view.cheapest(lone, 0, 2) == [(1, 2)]  # a second pair would meet it
    assert view.cheapest(lone, 3, 0) == [(2,), (1,), (3,)]


def test_two_sliders_move_on_the_map_of_what_moves_cost():
    explorer = view.moves(measured())
    explorer.removal, explorer.sharing = 1, 1
    assert "removed 2, share 0-1, blocks' weights left 2" in repr(explorer)
    assert "cheapest of all 1" in repr(explorer)  # nats: 3.0 for the pair, 2.0 for the cheapest
    picture = explorer.frame.svg
    assert picture.count("lab-shade") == 8 and picture.count("removed") == 1
    for part in picture.split("</svg>")[:-1]:
        ElementTree.fromstring(part + "</svg>")
    with pytest.raises(ValueError, match="give the outcome of a search"):
        view.moves(outcome(0.25, 0.25, 21.0))
    assert "what each move costs alone" in lab.view(measured()).frame.svg


def test_how_alike_the_blocks_of_a_readers_model_are(tmp_path):
    x = [tokens(2, 16), tokens(2, 16)]
    net = model("llama")
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            net.model.layers[3].get_submodule(name).weight.zero_()
    task = lab.Task(model=net, batches=x, score=lambda _: 1.0, metric="perplexity", unit="")
    explorer = view.similarity(task, batches=1)
    explorer.block = 3
    assert "goes in and comes out 0" in repr(explorer) and "LlamaForCausalLM" in explorer.frame.svg + explorer._title
    explorer.block = 2
    assert "behind the next block 1" in repr(explorer)


def test_texts_stand_side_by_side_up_to_where_they_part():
    class Words(Letters):
        def decode(self, numbers) -> str:
            return " ".join(str(int(n)) for n in numbers)

    whole, other = model("llama"), model("llama")
    same = view.side_by_side({"whole": whole, "copy": other}, Words(), ["some"], count=4)
    assert "words alike 8" in repr(same)
    with torch.no_grad():
        other.lm_head.weight.copy_(whole.lm_head.weight.flip(0))  # says another word at once
    parted = view.side_by_side({"whole": whole, "folded": other}, Words(), ["some", "more"], count=4)
    assert "words alike 4" in repr(parted) and parted.frame.svg.count("lab-fill c1") == 2
    parted.prompt = "more"
    ElementTree.fromstring(parted.frame.svg)
