"""The controlling module and the gate: how they start, what they binarise, and that nothing stays behind."""

import copy
import math

import pytest
import torch
from torch import nn

from lab.core.training import seeded
from lab.decoupling import equations as eq
from lab.decoupling.layers import MIXES, Controller, Gate, changing, gates, recording


@pytest.fixture(autouse=True)
def _seeded():
    with seeded(0):
        yield


def gate(c_in: int = 8, c_out: int = 6, mix: str = "sample") -> Gate:
    """A gate whose encodings depend on its input."""
    found = Gate(Controller(c_in, c_out, bias=0.0), mix)
    nn.init.normal_(found.controller.fc1.weight)
    return found


@pytest.mark.parametrize(("c_in", "inside"), [(64, 16), (18, 4), (3, 1), (1, 1)])
def test_the_controller_is_a_quarter_as_wide_inside(c_in, inside):
    controller = Controller(c_in, 10, bias=2.0)
    assert tuple(controller.fc1.weight.shape) == (inside, c_in) and tuple(controller.fc2.weight.shape) == (10, inside)
    assert controller(torch.randn(5, c_in, 3, 7)).shape == (5, 10)


def test_encodings_do_not_depend_on_the_input_at_first():
    controller = Controller(8, 6, bias=1.0)
    y = controller(torch.randn(5, 8, 3, 3) * 100)
    assert torch.equal(y, y[:1].expand_as(y))
    assert not torch.equal(y[0], y[0, :1].expand(6))


@pytest.mark.parametrize("bias", [1.0, 2.0])
def test_most_filters_are_on_at_first(bias):
    """y ~ N(bias, 2): with the released bias of 1 a share of 24 % is off, with 2 one of 8 %."""
    off = float((Controller(256, 40_000, bias=bias)(torch.zeros(1, 256)) <= 0).float().mean())
    assert off == pytest.approx(0.5 * (1 + math.erf(-bias / 2)), abs=0.01)


@pytest.mark.parametrize("mix", MIXES)
def test_in_use_bits_are_exact_with_and_without_gradients(mix):
    found, a, out = gate(mix=mix).eval(), torch.randn(50, 8, 4, 4), torch.randn(50, 6, 4, 4)
    with recording(found) as records:
        first = found(out, a)
        with torch.no_grad():
            second, third = found(out, a), found(out, a)
    z = [seen.z.detach() for seen in records[0]]
    assert torch.equal(z[0], (found.controller(a) > 0).float())
    assert set(z[0].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(z[0], z[1]) and torch.equal(z[1], z[2])
    assert torch.equal(first, second) and torch.equal(second, third)


def test_in_use_gradients_pass_through_the_soft_value():
    found, a = gate().eval(), torch.randn(50, 8, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(found(torch.ones(50, 6), a).sum(), a)
    (known,) = torch.autograd.grad(eq.saturating_sigmoid(found.controller(a)).sum(), a)
    assert torch.allclose(grad, known, atol=1e-7) and known.abs().max() > 0


def hard_ones(mix: str, n: int, c: int) -> torch.Tensor:
    """Which entries a gate binarises in training; soft values in between are made sure of by logits near 0."""
    found = Gate(Controller(8, c, bias=0.0), mix).train()
    z = found.architecture(torch.zeros(n, c, requires_grad=True))
    soft_in_between = (z != 0) & (z != 1)
    assert soft_in_between.any()
    return found._hard(torch.zeros(n, c)).expand(n, c)


def test_half_of_the_samples_are_binarised_whole():
    hard = hard_ones("sample", 2000, 5)
    assert torch.equal(hard, hard[:, :1].expand_as(hard))
    assert hard[:, 0].float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_half_of_the_elements_are_binarised_one_by_one():
    hard = hard_ones("element", 400, 30)
    assert hard.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert 0 < hard.float().mean(1).std() < 0.2 and 0 < hard.float().mean(0).std() < 0.2


def test_released_channels_are_drawn_with_replacement_and_alike_for_all_samples():
    hard = hard_ones("channel", 7, 4000)
    assert torch.equal(hard, hard[:1].expand_as(hard))
    assert hard[0].float().mean().item() == pytest.approx(1 - math.exp(-0.5), abs=0.03)  # 39 %


@pytest.mark.parametrize("c", [16, 64])
def test_released_indices_are_numbers_of_channels_taken_for_samples(c):
    """With C channels C / 2 draws from the first C samples: about 6 of 128 for 16 channels, 25 for 64."""
    counts = []
    for _ in range(200):
        hard = Gate(Controller(8, c, bias=0.0), "index")._hard(torch.zeros(128, c)).expand(128, c)
        assert torch.equal(hard, hard[:, :1].expand_as(hard)) and not hard[c:].any()
        counts.append(int(hard[:, 0].sum()))
    assert sum(counts) / 200 == pytest.approx(c * (1 - (1 - 1 / c) ** (c / 2)), rel=0.04)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("c", [1, 3, 512])
def test_every_mix_takes_few_samples_and_many_channels(mix, c):
    found = Gate(Controller(8, c, bias=0.0), mix).train()
    z = found(torch.ones(4, c, 2, 2), torch.randn(4, 8, 5, 5))
    assert z.shape == (4, c, 2, 2) and z.isfinite().all()


def test_training_is_noisy_and_use_is_not():
    found, a = gate(), torch.randn(4, 8)
    out = torch.ones(4, 6)
    assert not torch.equal(found(out, a), found(out, a))
    found.eval()
    assert torch.equal(found(out, a), found(out, a))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = gate(8, 8), gate(8, 8)

    def forward(self, x):
        return self.b(self.a(x, x), x)


def test_train_and_eval_give_the_network_back_and_reach_every_part():
    model = Two()
    for mode in (False, True):
        assert model.train(mode) is model
        assert {module.training for module in model.modules()} == {mode}
    assert model.eval() is model


def test_a_record_holds_encoding_and_ungated_means_in_order():
    model, x = Two().eval(), torch.randn(3, 8, 4, 4)
    assert list(gates(model)) == ["a", "b"]
    with recording(model) as records:
        model(x)
    assert torch.equal(records[0][0].out, x.mean((2, 3)))
    assert torch.equal(records[0][0].z, (model.a.controller(x) > 0).float())
    passed = x * records[0][0].z[:, :, None, None]
    assert torch.allclose(records[1][0].out, passed.mean((2, 3)), atol=1e-6)
    model(x)
    assert [len(record) for record in records] == [1, 1]


def test_nothing_stays_behind_after_an_error():
    model = Two().eval()
    with pytest.raises(RuntimeError), recording(model):
        model(torch.randn(3, 5))
    with pytest.raises(RuntimeError, match="mine"), changing(model, {"a": lambda z: z}):
        raise RuntimeError("mine")
    assert all(one.record is None and one.change is None for one in gates(model).values())


def test_a_change_is_used_by_its_gate_only():
    model, x = Two().eval(), torch.randn(3, 8, 4, 4)
    with torch.no_grad(), changing(model, {"b": torch.zeros_like}), recording(model) as records:
        assert model(x).abs().max() == 0
    assert records[0][0].z.any() and not records[1][0].z.any()


def test_a_gate_is_copied_with_its_weights():
    found = gate()
    again = copy.deepcopy(found)
    again.controller.fc1.weight.data.zero_()
    assert found.controller.fc1.weight.abs().max() > 0
