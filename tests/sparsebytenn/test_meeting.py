"""Zeros from anywhere meet in blocks: rows that belong together come together, and no network answers otherwise."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from lab.core import nets
from lab.core.onnx import export
from lab.sparsebytenn import engine, meeting, packed
from lab.sparsebytenn.rearrange import permute

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Sums(nn.Module):
    """A residual class of `channels`, which stem, a and b write, behind norms; a depthwise layer reads it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.a, self.b = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.deep = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.a(x))
        return self.head(F.relu(self.deep(x + self.b(x))).mean((2, 3)))


def sums(channels: int = 32, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Sums(channels).eval()


def in_blocks(net: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """The network with blocks of 4 rows x 1 column set to 0 in what writes its residual class, taps by themselves."""
    g = torch.Generator().manual_seed(seed)
    for layer in (net.stem, net.a, net.b):
        w = layer.weight.data
        w *= (torch.rand(-(-len(w) // 4), *w.shape[1:], generator=g) >= share).repeat_interleave(4, 0)[: len(w)]
    return net


def torch_output(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(x)


def held(net: nn.Module, x: torch.Tensor = X, given: object = None) -> engine.Engine:
    """The engine of a network, which answers as torch does."""
    made = engine.compile(net if given is None else given, x, measure=False, strict=True)
    exact = torch_output(net, x)
    assert (made(x) - exact).abs().max() <= 1e-5 * exact.abs().max()
    return made


def blocks_of(made: engine.Engine) -> int:
    return sum(len(op.weights.blocks) for op in made.network.ops if op.weights is not None)


# -- the search --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 130), st.sampled_from([0, 0.2, 0.5, 0.9, 1]), st.integers(0, 3),
    st.integers(0, 2**31),
)  # fmt: skip
def test_rows_of_a_shuffled_pattern_meet_again(groups, columns, share, odd, seed):
    g = np.random.default_rng(seed)
    pattern = np.repeat(g.random((groups, columns)) >= share, 4, 0)[: 4 * groups - odd]
    shuffled = pattern[g.permutation(len(pattern))]
    order = meeting.best_order(shuffled)
    assert sorted(order.tolist()) == list(range(len(pattern)))
    assert meeting.blocks(shuffled[order]) <= meeting.blocks(pattern)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 130), st.floats(0, 1), st.integers(0, 2**31))
def test_no_order_is_worse_than_the_rows_as_they_came(rows, columns, share, seed):
    support = np.random.default_rng(seed).random((rows, columns)) >= share
    order = meeting.best_order(support)
    assert sorted(order.tolist()) == list(range(rows))
    kept = sum(int(support[start : start + 4].any(0).sum()) for start in range(0, rows, 4))
    assert meeting.blocks(support) == kept >= meeting.blocks(support[order])


def test_blocks_of_more_rows_meet_again_too():
    g = np.random.default_rng(0)
    pattern = np.repeat(g.random((6, 200)) >= 0.6, 16, 0)
    shuffled = pattern[g.permutation(96)]
    rows = shuffled[meeting.best_order(shuffled)].reshape(6, 16, 200)
    assert (rows.any(1) == rows.all(1)).all()


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(st.integers(5, 40), st.sampled_from([0.3, 0.6, 0.9]), st.integers(0, 1000))
def test_a_residual_class_with_its_rows_shuffled_is_as_before(channels, share, seed):
    net = in_blocks(sums(channels, seed), share, seed)
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))
    shuffled = permute(net, {"stem": order}, X)
    assert blocks_of(held(shuffled)) <= blocks_of(held(net))


def test_what_was_found_is_kept_and_shown():
    net = permute(in_blocks(sums(), 0.6), {"stem": torch.randperm(32, generator=torch.Generator().manual_seed(0))}, X)
    made = held(net)
    assert "rearranged: 39 % of blocks kept instead of 78 %" in repr(made)
    again = engine.Engine(made.data)
    assert repr(again) == repr(made)
    frame = again.profile(repeats=1).set_index("layer")
    moved = frame.loc[["stem", "a", "b"]]
    assert (moved["blocks kept"] < 0.5).all() and (moved["blocks as they came"] > 0.7).all()
    assert np.isnan(frame.loc["head", "blocks as they came"]) and (frame["rows stay"] == "").all()


@pytest.mark.slow
def test_rows_stay_where_it_was_not_asked_and_where_nothing_is_to_gain(monkeypatch):
    net = permute(in_blocks(sums(), 0.6), {"stem": torch.randperm(32, generator=torch.Generator().manual_seed(0))}, X)
    stays = engine.compile(net, X, measure=False, rearrange=False)
    assert "rearranged" not in repr(stays) and blocks_of(stays) > 1.5 * blocks_of(held(net))
    assert "came" not in held(in_blocks(sums(), 0.6)).network.meta  # in blocks already
    monkeypatch.setattr(meeting, "trace", None)  # a dense network is not even traced
    assert "came" not in held(sums()).network.meta


def test_why_rows_stay_is_said():
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    for layer in (net[1], net[3]):
        prune.random_unstructured(layer, "weight", 0.7)
    frame = held(net).profile(repeats=1).set_index("layer")
    assert frame.loc["3", "rows stay"] == "the network's output" and frame.loc["1", "rows stay"] == ""
    assert frame.loc["1", "blocks kept"] < frame.loc["1", "blocks as they came"]


def test_a_part_of_a_network_has_its_rows_met_too():
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = permute(in_blocks(sums(), 0.6), {"stem": torch.arange(32).view(4, 8).T.reshape(-1)}, X)

        def forward(self, x):
            return self.net(x).sort().values

    net = Sorted().eval()
    made = engine.compile(net, X, measure=False)
    assert torch.allclose(made(X), torch_output(net, X), atol=1e-5)
    assert (made.profile(repeats=1)["blocks as they came"] > 0.6).sum() == 3


# -- zeros from anywhere -----------------------------------------------------------------------------------------------


def of_masks(net: nn.Module) -> nn.Module:
    for layer in (net.stem, net.a, net.b):
        prune.l1_unstructured(layer, "weight", 0.8)
    net(X)  # with gradients, so that the weights are no leaves, which cannot be copied
    return net


def of_rows(net: nn.Module) -> nn.Module:
    for layer in (net.a, net.b):
        prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)
    return net


def of_parametrizations(net: nn.Module) -> nn.Module:
    class Mask(nn.Module):
        def __init__(self, w: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("mask", w.abs() >= w.abs().quantile(0.8))

        def forward(self, w):
            return w * self.mask

    for layer in (net.a, net.b):
        parametrize.register_parametrization(layer, "weight", Mask(layer.weight.detach()))
    return net


def of_state(net: nn.Module) -> nn.Module:
    cut = {name: part * (part.abs() > 0.05) for name, part in net.state_dict().items() if part.dim() > 1}
    net.load_state_dict(net.state_dict() | cut)
    return net


def two_of_four(net: nn.Module) -> nn.Module:
    """2:4: of each four weights of a row the two largest."""
    for layer in (net.a, net.b):
        fours = layer.weight.data.flatten(1).view(len(layer.weight), -1, 4)
        fours[fours.abs().argsort(-1).argsort(-1) < 2] = 0
    return net


@pytest.mark.parametrize("zeros", [of_masks, of_rows, of_parametrizations, of_state, two_of_four])
def test_zeros_from_anywhere(zeros):
    net = zeros(sums())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    made = held(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    stays = engine.compile(net, X, measure=False, rearrange=False)
    assert stored(made) <= stored(stays)
    assert stored(made) < stored(engine.compile(net, X, measure=False, dense=True))
    assert (stored(made) < stored(stays)) == (zeros in (of_rows, two_of_four))  # else single weights are left out


def stored(made) -> int:
    return sum(op.weights.blocks.size for op in made.network.ops if op.weights is not None)


def test_channels_that_torch_pruning_cut_and_masked():
    pruning = pytest.importorskip("torch_pruning")
    net = sums()
    pruner = pruning.pruner.MagnitudePruner(net, X, pruning.importance.MagnitudeImportance(), pruning_ratio=0.25)
    pruner.step()
    assert len(net.a.weight) == 24
    assert blocks_of(held(of_masks(net))) < blocks_of(held(deepcopy(in_blocks(sums(24), 0.0))))


@pytest.mark.slow
def test_a_file_with_sparse_initialisers(tmp_path):
    onnx = pytest.importorskip("onnx")
    net = of_state(sums())
    model = onnx.load(str(export.onnx(net, tmp_path / "dense.onnx", X)))
    names = [t.name for t in model.graph.initializer if len(t.dims) > 1]
    for name, is_linear in zip(names, (True, False, True, False, True), strict=False):
        dense = next(t for t in model.graph.initializer if t.name == name)
        array = onnx.numpy_helper.to_array(dense)
        at = np.flatnonzero(array)
        values = onnx.numpy_helper.from_array(array.reshape(-1)[at], name)
        indices = at if is_linear else np.stack(np.unravel_index(at, array.shape), 1)
        held_at = onnx.numpy_helper.from_array(indices.astype(np.int64), f"{name}.at")
        model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, held_at, array.shape))
        model.graph.initializer.remove(dense)
    onnx.save(model, str(tmp_path / "sparse.onnx"))
    made = held(net, X, tmp_path / "sparse.onnx")
    assert blocks_of(made) == blocks_of(held(net)) < blocks_of(held(sums()))


def test_a_description_of_another_program_does_no_harm():
    made = held(permute(in_blocks(sums(), 0.6), {"stem": torch.arange(32).view(4, 8).T.reshape(-1)}, X))
    for came in ("text", [1], ["a"] * len(made.network.ops)):
        made.network.meta["came"] = came
        again = engine.Engine(packed.write(made.network))
        assert "rearranged" not in repr(again) and len(again.profile(repeats=1))


@pytest.mark.slow
def test_a_network_of_the_lab_gains():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nets.mobilenet_v2(0.35, 10).eval()
    for layer in [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]:
        prune.l1_unstructured(layer, "weight", 0.8)
    x = torch.randn(1, 3, 32, 32)
    stays = engine.compile(net, x, measure=False, rearrange=False)
    assert blocks_of(held(net, x)) < 0.9 * blocks_of(stays)
