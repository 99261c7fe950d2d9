"""Blocks of rows and inputs on networks drawn at random: where zeros stand at the end, and what they keep."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import lab
from lab.core import kernels
from lab.core.graph.channels import Channels
from lab.core.graph.slices import Slice
from lab.core.graph.tracing import trace
from lab.sparsebytenn import equations as eq
from lab.sparsebytenn import view
from lab.sparsebytenn.pattern import Pattern, retained
from lab.sparsebytenn.rearrange import moves, rearranged, sides, survey

from .test_recipe import QUICK, run, small

BLOCKS = [block for block in lab.sparsebytenn.recipe.BLOCKS if max(sides(block)) < 16]
KINDS = ("plain", "wide", "depthwise", "residual", "joined", "twice")
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Drawn(nn.Module):
    """Blocks of the kinds of KINDS with numbers of channels that 4 need not divide, before a pooled or a flat head."""

    def __init__(self, steps: list[tuple[str, int]], flat: bool) -> None:
        super().__init__()
        self.kinds, self.flat = [kind for kind, _ in steps], flat
        self.stem, c = nn.Conv2d(3, 11, 1), 11
        self.parts = nn.ModuleList()
        for kind, size in steps:
            groups, k = (c, 3) if kind == "depthwise" else (1, 3 if kind in ("wide", "residual") else 1)
            out = c if kind in ("depthwise", "residual") else size
            self.parts.append(nn.ModuleList([nn.Conv2d(c, out, k, padding=k // 2, groups=groups), nn.BatchNorm2d(out)]))
            c = {"joined": c + out, "twice": 2 * out}.get(kind, out)
        self.hidden = nn.Linear(c * 16 if flat else c, 9)
        self.head = nn.Linear(9, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for kind, (conv, norm) in zip(self.kinds, self.parts, strict=True):
            y = F.relu(norm(conv(x)))
            x = {"residual": lambda x=x, y=y: x + y, "joined": lambda x=x, y=y: torch.cat([x, y], 1),
                 "twice": lambda y=y: torch.cat([y, y], 1)}.get(kind, lambda y=y: y)()  # fmt: skip
        return self.head(F.relu(self.hidden(x.flatten(1) if self.flat else x.mean((2, 3)))))


@st.composite
def patterns(draw, searches=("none", "sort", "greedy")):  # swaps, which begin at greedy's order, take long
    """A drawn network in double precision, its channels, and its pattern."""
    steps = draw(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(8, 19)), min_size=1, max_size=4))
    torch.manual_seed(draw(st.integers(0, 99)))
    model = trace(Drawn(steps, draw(st.booleans())).eval().double(), X[:1])
    block, channels = draw(st.sampled_from(BLOCKS)), Channels(model)
    budget, search = draw(st.sampled_from(["layer", "global"])), draw(st.sampled_from(searches))
    return channels, Pattern(channels, survey(model, block, channels), block, budget, search), draw(st.floats(0, 0.95))


def blocks_of(W, rows, inputs):
    """W (OC, IC, taps) -> which of its blocks hold anything, as they stand: (groups, groups of inputs)."""
    there = (W != 0).flatten(2).any(2) if W.dim() > 2 else W != 0
    return eq.block_scores(there.float(), rows, inputs) > 0


@pytest.mark.slow
@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(patterns())
def test_zeros_stand_in_blocks_of_the_rearranged_network_which_computes_the_same(drawn):
    channels, pattern, s = drawn
    if s:
        pattern.regroup(s)
    pattern.prune(s)
    model, exact = channels.graph, channels.graph(X)
    parts = moves(channels, pattern.orders)
    moved = rearranged(deepcopy(model), parts, X[:1])
    for name, M in pattern.masks.items():
        W = moved.get_parameter(f"{name}.weight")
        standing = M if pattern.inputs > 1 else M[:, parts[name].columns]
        assert torch.equal(blocks_of(W, pattern.rows, pattern.inputs), standing)
        assert int((W == 0).sum()) == int(pattern.gone[name].expand_as(W).sum())
        if pattern.budget == "layer":
            assert int((~M).sum()) == min(round(s * M.numel()), M.numel() - 1)
    kept, blocks = pattern.blocks()
    assert pattern.budget == "layer" or abs(blocks - kept - s * blocks) <= 1
    torch.testing.assert_close(moved(X), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(patterns(searches=("sort", "greedy")), st.integers(1, 3))
def test_no_search_keeps_less_in_all_layers_together(drawn, rounds):
    _, pattern, s = drawn
    S = {name: pattern.saliency(name) for name in pattern.weights}
    removed = {name: 1 - int(M.sum()) / M.numel() for name, M in pattern.find_masks(S, s).items()}
    kept = [sum(pattern.objective(name, S[name], removed[name]) for name in S)]
    for _ in range(rounds if pattern.budget == "layer" else 1):  # a global budget finds other shares each time
        pattern.regroup(s)
        kept.append(sum(pattern.objective(name, S[name], removed[name]) for name in S))
    assert all(after >= before - 1e-9 * before for before, after in pairwise(kept))


def chain(rows: int = 16) -> tuple[Channels, dict[str, torch.Tensor]]:
    """Three layers whose weights stand in blocks of 4 x 4, most of them small, behind shuffled channels."""
    g = torch.Generator().manual_seed(1)
    net = nn.Sequential(*(nn.Conv2d(c, rows, 1) for c in (3, rows, rows)), nn.Flatten(), nn.Linear(rows, 2)).double()
    large = {}
    orders = [torch.randperm(rows, generator=g) for _ in range(3)]
    with torch.no_grad():
        for at in (1, 2):
            M = torch.rand(rows // 4, rows // 4, generator=g) < 0.5
            M[0, 0], M[1, 1] = True, False
            cells = eq.spread(M, 4, orders[at], 4, orders[at - 1])
            net[at].weight[:] = torch.where(cells, 1.0, 0.01)[..., None, None]
            large[str(at)] = float((~M).float().mean())
    return Channels(trace(net, X[:1, :, :1, :1])), large


def test_writers_and_readers_of_a_class_are_searched_together_until_blocks_are_exact():
    channels, _ = chain()
    ground = survey(channels.graph, (4, 4), channels)
    assert ground.classes == {"0": (), "1": ("1",), "2": ("2",)}  # the first layer is dense, and its rows may move
    pattern = Pattern(channels, ground, (4, 4), "layer", "greedy")
    S = {name: pattern.saliency(name) for name in pattern.weights}
    came = retained(S, (4, 4), 0.5)
    for _ in range(4):
        pattern.regroup(0.5)
    found = retained({name: pattern.arranged(name, S[name]) for name in S}, (4, 4), 0.5)
    alone = Pattern(channels, survey(channels.graph, 4, channels), 4, "layer", "greedy")
    assert found > came + 0.2 and not torch.equal(pattern.orders["0"], torch.arange(16))
    assert set(alone.orders) == {"1", "2"}  # with blocks of one input nothing asks for the first layer's order


def test_columns_are_those_of_the_moves():
    channels, _ = chain()
    pattern = Pattern(channels, survey(channels.graph, (4, 4), channels), (4, 4), "layer", "greedy")
    pattern.orders = {name: torch.randperm(16) for name in pattern.orders}
    parts = moves(channels, pattern.orders)
    for name in pattern.weights:
        assert isinstance(parts[name], Slice) and torch.equal(pattern.columns(name), parts[name].columns)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pair_of_one_input_is_the_number_of_its_rows():
    a, b = (run(lab.SparseByteNN(**QUICK, block=block), small()) for block in (4, (4, 1)))
    assert a.recipe == b.recipe and a.report == b.report and a.trace == b.trace
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name])
    assert all(torch.equal(a.masks[name], b.masks[name]) for name in a.masks)


@pytest.fixture(scope="module")
def outcome():
    return run(lab.SparseByteNN(**QUICK, block=(4, 4)), small())


def test_a_trained_network_has_its_zeros_in_blocks_of_rows_and_inputs(outcome):
    for name, M in outcome.masks.items():
        W = outcome.model.get_parameter(f"{name}.weight")
        assert M.shape == (-(-W.shape[0] // 4), -(-W.shape[1] // 4))
        assert torch.equal(blocks_of(W, 4, 4), M) and int((~M).sum()) == round(0.5 * M.numel())
    rows = outcome.report
    assert rows["blocks"].after == sum(int(M.sum()) for M in outcome.masks.values())
    assert rows["retained magnitude"].after > rows["retained magnitude"].before
    assert not torch.equal(outcome.orders["0"], torch.arange(12))


def test_it_is_saved_and_loaded(outcome, tmp_path):
    outcome.save(tmp_path)
    again = lab.load(tmp_path, base=small().model)
    assert again.recipe == outcome.recipe and again.classes == outcome.classes
    assert all(torch.equal(again.masks[name], M) for name, M in outcome.masks.items())
    for name in outcome.masks:
        assert torch.equal(again.columns(name), outcome.columns(name))
        S = view.arranged(again, name)
        assert torch.equal(S, again.saliencies[name].float()[again.order(name)][:, again.columns(name)])


@pytest.mark.slow
@pytest.mark.parametrize("block", [(4, 4), (1, 4)])
def test_its_pictures_are_of_its_blocks(block, outcome):
    found = outcome if block == (4, 4) else run(lab.SparseByteNN(**QUICK, block=block), small())
    shown = view.numbers(found, 0.5)
    came, after = (100 * sum(shares) / len(shares) for shares in zip(*shown.values(), strict=True))
    assert came == pytest.approx(found.report["retained magnitude"].before, abs=0.05)  # float16
    assert after == pytest.approx(found.report["retained magnitude"].after, abs=0.05)
    assert view.pattern(found, "4.narrow", 0.5).shape == found.masks["4.narrow"].shape
    at = [view.searched(found, "4.narrow")[name][5] for name in view.SEARCHES]
    assert at == pytest.approx(sorted(at), abs=1e-6) and at[0] < at[-1]
    facts = lab.view(found).frame.facts
    assert facts["shown"].endswith("groups of 4 inputs")


@pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")
def test_in_int8_the_engine_leaves_out_the_blocks_that_were_trained(outcome):
    """A block of the engine is 4 rows x 4 columns of the matrix (OC, IC taps), a trained one as many as it has taps."""
    engine = outcome.engine(measure=False, calibrate=torch.randn(8, 3, 8, 8))
    packed = {op.name: op.weights for op in engine.network.ops if op.int8 is not None}
    for name, M in outcome.masks.items():
        inputs, taps = outcome.model.get_parameter(f"{name}.weight").flatten(2).shape[1:] if name != "6" else (192, 1)
        columns = taps * torch.tensor([min(4, inputs - 4 * group) for group in range(M.shape[1])])
        fours = (columns + 3) // 4  # of each group of inputs
        assert len(packed[name].blocks) == int((M * fours).sum()) < len(M) * int(fours.sum())


@pytest.mark.parametrize("block", [2, (4, 2), (3, 3), (0, 4), (4, 4, 4), "4", None, [], (True, 4.5)])
def test_other_blocks_are_one_line(block):
    with pytest.raises(ValueError, match=r"block=.* is not allowed: give one of 1, 4, 8, 16, ") as caught:
        lab.SparseByteNN(block=block)
    assert "\n" not in str(caught.value)


def test_layers_of_fewer_inputs_than_a_block_stay_dense():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8, 2))
    graph = trace(net, torch.zeros(1, 3, 1, 1))
    assert survey(graph, (4, 4)).dense["1"] == "fewer than 4 inputs" and survey(graph, (4, 4)).layers == ("2",)
    with pytest.raises(ValueError, match="blocks of 16 rows x 16 inputs"):
        survey(graph, (16, 16))
