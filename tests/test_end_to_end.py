"""A transformer is quantised, stored, loaded, exported and run without the lab."""

from pathlib import Path

import pytest
import torch

import lab
from lab.core import cost, nets
from lab.core.onnx.runtime import as_input, session
from lab.core.training import seeded


def ran(path: Path, x: torch.Tensor) -> list[torch.Tensor]:
    """What onnxruntime answers to x with the file at `path`."""
    deployed = session(path)
    return [torch.from_numpy(part) for part in deployed.run(None, {deployed.get_inputs()[0].name: as_input(x)})]


@pytest.mark.slow
def test_a_vision_transformer_is_quantised_with_a_strategy_a_tensor(tmp_path):
    with seeded(0):
        net = nets.vit(size=8, patch=2, width=32, depth=2, heads=4, ratio=2)
        task = lab.tasks.digits(net)
        learned(task, net, steps=200)
    before = task.measure(net)
    assert before > 80
    outcome = lab.DQSS(weight_bits=8, activation_bits=8, placement="full", steps=10, calibration=32).run(
        task, progress=False
    )
    assert outcome.report["accuracy"].after > before - 5
    x = lab.tasks.digits_data()[2][:64]
    outcome.save(tmp_path / "quantised")
    again = lab.load(tmp_path / "quantised")
    with torch.no_grad():
        ours = outcome.model(x)
        assert torch.equal(ours, again.model(x))
    (deployed,) = ran(outcome.export(tmp_path / "net.onnx"), x)
    assert max(row.steps for row in outcome.parity(x)) <= 1
    assert (ours.argmax(1) == deployed.argmax(1)).float().mean() > 0.95
    assert outcome.fusion().share > 0.9
    assert cost.parameters(outcome.model) <= cost.parameters(net) + 1


def learned(task: lab.Task, net: torch.nn.Module, steps: int) -> None:
    """Train a transformer: AdamW along one cycle."""
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
    stream = iter(())
    for _ in range(steps):
        batch = next(stream, None)
        if batch is None:
            stream = iter(task.batches)
            batch = next(stream)
        loss, _ = task.fit(net.train(), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()
