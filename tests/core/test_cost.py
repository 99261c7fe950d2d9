"""Counting and timing: exact counts of networks small enough to count by hand, and a clock that leaves no traces."""

import dataclasses
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab.core import cost
from lab.core.quantisation.qparams import set_int_repr
from lab.pams.layers import rounded_layer


def small() -> nn.Sequential:
    """A convolution, a norm and a linear layer, to be counted by hand."""
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 5))


X = torch.ones(1, 2, 6, 6)
CONV, LINEAR = 4 * 4 * 4 * 2 * 9, 64 * 5  # multiply-adds for one X


class Sleeper(nn.Module):
    """Answers after a known time, and notes with how many threads and in which mode."""

    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms, self.calls = ms, []

    def forward(self, x):
        time.sleep(self.ms / 1000)
        self.calls.append((tuple(x.shape), torch.get_num_threads(), self.training, torch.is_grad_enabled()))
        return x


def test_parameters_by_both_conventions():
    model = small()
    assert cost.parameters(model) == (4 * 2 * 9 + 4) + 8 + (64 * 5 + 5)
    assert cost.parameters(model, convention="paper") == cost.parameters(model) - 8
    with pytest.raises(ValueError, match="convention='bn': choose 'all' or 'paper'"):
        cost.parameters(model, convention="bn")


def test_paper_convention_leaves_out_every_norm_but_not_its_neighbours():
    norms = [nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.RMSNorm(4), nn.BatchNorm1d(4), nn.InstanceNorm2d(4, affine=True)]
    assert cost.parameters(nn.ModuleList([nn.Linear(4, 4), *norms]), "paper") == 20


def test_shared_parameters_count_once():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    assert cost.parameters(model) == 64
    assert cost.bytes_stored(model) == 64 * 4


def test_bytes_follow_dtype_and_take_in_buffers():
    model = small()
    values = cost.parameters(model)
    assert cost.bytes_stored(model) == 4 * values + 4 * 8 + 8  # running mean and variance; one int64 counter
    assert cost.bytes_stored(model.half()) == 2 * values + 2 * 8 + 8
    model.register_buffer("scratch", torch.zeros(100), persistent=False)  # never written to a file
    assert cost.bytes_stored(model) == 2 * values + 2 * 8 + 8


def linear(rows: list[list[float]]) -> nn.Linear:
    """A layer without a bias, of these weights."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def test_a_tensor_is_stored_dense_or_sparse_whichever_is_smaller():
    """Of 16 numbers: a bit for each, 2 bytes, and those that are not 0."""
    few, most = [[1.0, 0, 0, 0]] * 4, [[1.0, 2, 3, 4]] * 3 + [[1.0, 2, 3, 0]]
    assert cost.bytes_stored(linear(few)) == 2 + 4 * 4
    assert cost.bytes_stored(linear(most)) == 2 + 15 * 4
    assert cost.bytes_stored(linear([[1.0, 2, 3, 4]] * 4)) == 16 * 4  # 2 + 16 * 4 would be more
    assert cost.bytes_stored(linear(few).half()) == 2 + 4 * 2
    norm = nn.BatchNorm1d(16, affine=False)  # statistics of one axis are as long as they are, with a counter
    assert cost.bytes_stored(norm) == 2 * 16 * 4 + 8


@pytest.mark.parametrize(("largest", "bits"), [(1, 2), (3, 3), (7, 4), (8, 5), (127, 8), (-128, 8), (-8, 4), (-1, 1)])
def test_integers_take_the_bits_of_the_largest_and_a_step(largest, bits):
    """24 codes of so many bits, as whole bytes, and a step of 4."""
    layer = nn.Linear(8, 3, bias=False)
    codes = torch.full((3, 8), 1 if largest > 0 else -1)
    codes[0, 0] = largest
    set_int_repr(layer, codes, torch.tensor(0.25))
    assert cost.bytes_stored(layer) == 3 * bits + 4


def test_sparse_integers_are_stored_as_both():
    """Of 64 codes of 4 bits 16 are not 0: 8 bytes say which, 8 hold them; steps of each row, a bias of floats."""
    layer = nn.Linear(16, 4)
    codes = torch.zeros(4, 16)
    codes[:, :4] = 7
    set_int_repr(layer, codes, torch.ones(4, 1) / 8)
    assert cost.bytes_stored(layer) == 8 + 8 + 4 * 4 + 4 * 4
    layer.weight.data[0, 0] += 1e-3  # no longer on its grid: floats, and the steps that are there
    assert cost.bytes_stored(layer) == 8 + 16 * 4 + 4 * 4 + 4 * 4


def test_integers_in_blocks_of_a_pams_layer_count_their_step_once():
    layer = rounded_layer(nn.Conv2d(2, 4, 1), bits=4)
    layer.set_int_repr(torch.tensor([7, 0, -7, 0, 0, 0, 0, 0]).view(4, 2, 1, 1), torch.full((1, 1, 1, 1), 0.5))
    assert cost.bytes_stored(layer) == 1 + 1 + 4 + 4 * 4  # which, 2 codes of 4 bits, a step, a bias


def test_macs_of_layers_add_up():
    model = small()
    assert cost.macs(model, X) == CONV + LINEAR
    assert cost.layer_macs(model, X) == {"0": CONV, "4": LINEAR}
    assert cost.macs(model, X.repeat(3, 1, 1, 1)) == 3 * (CONV + LINEAR)


def test_macs_of_pruned_weights_are_spared_and_no_others():
    model = small()
    pixels = CONV // model[0].weight.numel()
    assert (
        cost.macs_without(model, X, {"0.weight": 5, "4.weight": 3, "gone.weight": 9}) == CONV + LINEAR - 5 * pixels - 3
    )
    assert cost.macs_without(model, X, {}) == cost.macs(model, X)


def test_depthwise_convolution_counts_its_groups():
    assert cost.macs(nn.Conv2d(8, 8, 3, groups=8, padding=1), torch.ones(1, 8, 5, 5)) == 8 * 9 * 25


def test_work_outside_of_children_belongs_to_the_module():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return F.linear(self.inner(self.inner(x)), self.inner.weight)  # twice by the child, once by itself

    outer = nn.Sequential(Mixed())
    assert cost.layer_macs(outer, torch.ones(1, 4)) == {"0": 16, "0.inner": 32}
    assert cost.macs(outer, torch.ones(1, 4)) == 48


def test_a_block_used_in_two_places_is_counted_twice_under_its_first_name():
    block = nn.Linear(4, 4)
    model = nn.Sequential(nn.Sequential(block), nn.Sequential(block))
    assert cost.layer_macs(model, torch.ones(1, 4)) == {"0.0": 32}


@pytest.mark.parametrize("frozen", [False, True])  # torch takes its fused path only for frozen weights
def test_attention_counts_its_matrix_products(frozen):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).requires_grad_(not frozen)
    n, d = 7, 32
    assert cost.macs(layer, torch.ones(1, n, d)) == n * d * 3 * d + 2 * n * n * d + n * d * d + 2 * n * d * 64
    assert torch.backends.mha.get_fastpath_enabled()


def test_inputs_by_position_and_by_name():
    class Product(nn.Module):
        def forward(self, a, b, scale=1):
            return a @ b * scale

    a, b = torch.ones(1, 2, 3), torch.ones(1, 3, 4)
    assert cost.macs(Product(), (a, b)) == cost.macs(Product(), {"b": b, "a": a, "scale": 2}) == 24
    assert cost.latency(Product(), (a, b), batch=5, repeats=3).batch == 5
    with pytest.raises(ValueError, match=r"an example of shape \(1, 2, 3\), \(1, 2, 3\) "):
        cost.macs(Product(), (a, a))


def test_counting_leaves_the_model_as_it_was():
    model = small().train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    cost.macs(model, X)
    cost.layer_macs(model, X)
    assert [m.training for m in model.modules()] == [True, True, True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_example_goes_to_the_models_device():
    with torch.device("meta"):
        model = small()
    assert cost.macs(model, X) == CONV + LINEAR
    with pytest.raises(ValueError, match="on the meta device, which computes nothing: build it on the cpu"):
        cost.latency(model, X)


@pytest.mark.parametrize("count", [cost.macs, cost.layer_macs, cost.latency])
def test_wrong_example_is_one_line_and_leaves_nothing_behind(count):
    model = small().train()
    with pytest.raises(ValueError, match=r"does not take an example of shape \(1, 3, 6, 6\) \(.*channels.*") as caught:
        count(model, torch.ones(1, 3, 6, 6))
    assert "\n" not in str(caught.value)
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert cost.macs(model, X) == CONV + LINEAR  # the counter is free again


@pytest.mark.parametrize(
    "count", [cost.parameters, cost.bytes_stored, lambda m: cost.macs(m, X), lambda m: cost.latency(m, X)]
)
def test_not_a_model(count):
    with pytest.raises(TypeError, match=r"model is a int: give a torch\.nn\.Module"):
        count(3)


def test_latency_measures_a_known_time():
    found = cost.latency(Sleeper(4), X, repeats=5)
    assert 4 <= found.low <= found.median <= found.high
    assert found.median < 40  # a busy machine may be late, not by ten times
    assert (found.batch, found.threads, found.device, len(found.times)) == (1, 1, "cpu", 5)
    assert str(found).endswith("batch 1, 1 thread, cpu")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.median = 0


def test_latency_sets_batch_threads_and_mode_and_gives_them_back():
    model, before = Sleeper(0).train(), torch.get_num_threads()
    found = cost.latency(model, X.repeat(2, 1, 1, 1), batch=4, repeats=3, threads=before + 1)
    assert (found.batch, found.threads) == (4, before + 1)
    assert model.calls[-3:] == [((4, 2, 6, 6), before + 1, False, False)] * 3
    assert len(model.calls) > 3 + 2  # it was warmed up
    assert model.training and torch.get_num_threads() == before


def test_threads_come_back_after_an_error():
    class Tires(Sleeper):
        def forward(self, x):
            if len(self.calls) == 5:
                raise KeyError("tired")
            return super().forward(x)

    model, before = Tires(0).train(), torch.get_num_threads()
    with pytest.raises(KeyError, match="tired"):
        cost.latency(model, X, threads=before + 1)
    assert model.training and torch.get_num_threads() == before


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 3), (60, 5)])
def test_slow_models_are_timed_in_fewer_rounds(seconds, rounds):
    models = {"dense": Sleeper(1), "pruned": Sleeper(1)}
    found = cost.latencies(models, X, repeats=5, seconds=seconds)
    assert [len(latency.times) for latency in found.values()] == [rounds] * 2
    assert {len(model.calls) for model in models.values()} == {1 + (3 if seconds else 1) + rounds}


def test_models_are_timed_in_turn():
    turns = []

    class Turn(Sleeper):
        def forward(self, x):
            turns.append(self.ms)
            return super().forward(x)

    found = cost.latencies({"dense": Turn(30), "pruned": Turn(10)}, X, repeats=4)
    assert turns[-8:] == [30, 10, 10, 30, 30, 10, 10, 30]
    assert list(found) == ["dense", "pruned"]
    assert 1.5 < found["dense"].over(found["pruned"]) < 4
    assert found["dense"].over(found["dense"]) == 1


def test_ratio_is_taken_round_by_round():
    calm = cost.Latency(2, 2, 2, 1, 1, "cpu", (2, 2, 20))  # the third round was disturbed, for both alike
    slow = cost.Latency(4, 4, 4, 1, 1, "cpu", (4, 4, 40))
    assert slow.over(calm) == 2
    with pytest.raises(ValueError, match="were measured apart: time them together"):
        slow.over(dataclasses.replace(calm, batch=8))
    with pytest.raises(ValueError, match="were measured apart"):
        slow.over(dataclasses.replace(calm, times=(2, 2)))


def test_clock_waits_for_the_accelerator(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    cost.settle(torch.device("cpu"))
    cost.settle(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]
    monkeypatch.setattr(cost, "settle", waited.append)
    cost.latency(small(), X, repeats=3)
    assert waited[1:] == [torch.device("cpu")] * (cost._WARM_UP + 3)  # after every call, inside the clock


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_latency_on_cuda_takes_an_example_from_the_cpu():
    found = cost.latency(small().cuda(), X, batch=8, repeats=5)
    assert found.device.startswith("cuda") and found.median > 0


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"batch": 0}, "batch=0: give an integer, 1 or more"),
        ({"batch": 1.5}, "batch=1.5: give an integer, 1 or more"),
        ({"repeats": 2}, "repeats=2: give an integer, 3 or more"),
        ({"threads": 0}, "threads=0: give an integer, 1 or more"),
        ({"threads": True}, "threads=True: give an integer, 1 or more"),
    ],
)
def test_bad_settings_of_the_clock(arguments, cause):
    with pytest.raises(ValueError, match=cause):
        cost.latency(small(), X, **arguments)
