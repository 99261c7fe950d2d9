"""The engines that benchmarks time beside ours: the zeros they get, what they must give, and how they are compared."""

import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
try:
    import engines
finally:
    sys.path.remove(str(Path(__file__).parents[1] / "benchmarks"))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 6), st.integers(2, 9), st.sampled_from([(), (1, 1), (3, 3)]), st.sampled_from([0.0, 0.3, 0.5, 0.9])
)
def test_a_share_of_the_blocks_is_gone_and_one_more(groups, inputs, window, share):
    weight = nn.Parameter(torch.ones(4 * groups, inputs, *window))
    engines.remove_blocks(weight, share, torch.Generator().manual_seed(0))
    by_block = weight.detach().view(groups, 4, inputs, -1).permute(0, 2, 1, 3).flatten(2)
    assert set(by_block.sum(2).unique().tolist()) <= {0.0, float(by_block.shape[2])}  # all of a block or nothing
    gone = float((by_block.sum(2) == 0).float().mean())
    assert share < gone <= share + 1 / (groups * inputs) + 1e-6 if share else gone == 0


def test_a_rival_that_computes_something_else_is_refused():
    net, x = nn.Linear(3, 2), torch.randn(1, 3)
    answer = net(x).detach().numpy()
    assert engines.checked("it", lambda: answer, net, x, 1)() is answer
    with pytest.raises(RuntimeError, match=r"it differs from torch by 2\.\de-03"):
        engines.checked("it", lambda: answer + 2e-3 * np.abs(answer).max(), net, x, 1)
    with pytest.raises(RuntimeError, match="it differs from torch by nan"):
        engines.checked("it", lambda: answer * np.nan, net, x, 1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux tells what each thread worked")
def test_a_rival_on_more_threads_than_it_was_given_is_refused():
    net, x, noise = nn.Linear(3, 2), torch.randn(1, 3), np.random.default_rng(0).bytes(300_000)
    answer = net(x).detach().numpy()

    with ThreadPoolExecutor(2) as pool:

        def call():
            list(pool.map(zlib.compress, [noise, noise]))
            return answer

        assert engines.checked("it", call, net, x, 2) is call
        with pytest.raises(RuntimeError, match="it works on 2 threads, and was given 1"):
            engines.checked("it", call, net, x, 1)


def test_ratios_are_over_the_best_dense_one_and_over_the_same_zeros():
    times = {"onnxruntime, dense": [4.0, 4.0], "MNN, dense": [3.0, 3.0], "engine, 0%": [6.0, 6.0]}
    times |= {"engine, 50%": [2.0, 2.0], "MNN, 50%": [5.0, 5.0], "engine, 90%": [1.0, 1.0]}
    table = engines.speedups(times)
    assert table["over onnxruntime"]["engine, 50%"] == 2 and table["over our dense"]["engine, 50%"] == 3
    assert table["over the best dense"].to_dict()["engine, 90%"] == 3
    assert table["over MNN, same zeros"].dropna().to_dict() == {"engine, 50%": 2.5}


def test_turns_are_taken_one_way_and_back_and_the_fastest_of_three_counts():
    turns, ticks = [], iter(range(1000))
    times = engines.interleaved({name: lambda name=name: turns.append(name) for name in "ab"}, 2, lambda: next(ticks))
    assert "".join(turns) == "aaaabbbb" + "bbbbaaaa" and times == {"a": [1, 1], "b": [1, 1]}


def test_the_rivals_that_are_installed_are_made(monkeypatch):
    monkeypatch.setattr(engines, "installed", lambda name: name == "onnxruntime")  # OpenVINO takes its time to load
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    calls = engines.rivals(net, torch.randn(2, 3, 9, 9))
    assert {name: call().shape for name, call in calls.items()} == {"onnxruntime, dense": (2, 4, 7, 7)}
