"""A detector, a segmenter and a transformer, each compressed, stored, loaded, exported and run without the lab."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lab
from lab.core import cost, nets
from lab.core.batch import tensors
from lab.core.data.faces import FaceTask
from lab.core.onnx.runtime import as_input, session
from lab.core.training import seeded
from lab.hyperfd import detector


def ran(path: Path, x: torch.Tensor) -> list[torch.Tensor]:
    """What onnxruntime answers to x with the file at `path`."""
    deployed = session(path)
    return [torch.from_numpy(part) for part in deployed.run(None, {deployed.get_inputs()[0].name: as_input(x)})]


def assert_kept_and_run(outcome, task: lab.Task, x: torch.Tensor, folder: Path) -> None:
    """What is stored is found again, with equal outputs, and the same in onnxruntime."""
    outcome.save(folder / "pruned")
    again = lab.load(folder / "pruned", base=task.model)
    assert again.report == outcome.report
    with torch.no_grad():
        ours, loaded = (list(tensors(net(x))) for net in (outcome.model, again.model))
    assert all(map(torch.equal, ours, loaded))
    for want, got in zip(ours, ran(outcome.export(folder / "pruned.onnx"), x), strict=True):
        assert (want - got).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.slow
def test_a_detector_of_two_heads_is_pruned_and_still_finds_faces(tmp_path):
    faces = lab.tasks.faces("portraits")
    faces = FaceTask(learn=faces.learn, held_out=faces.held_out[range(24)], name="portraits")
    configuration = lab.hyperfd.Configuration(width=0.5, side=96)
    net, _ = detector.train(faces.learn, configuration, budget=120)
    task = detector.detection(net, faces, configuration)
    with seeded(0):
        untrained = task.measure(detector.FaceDetector(0.5))
    outcome = lab.GAL(
        units="channel", lam=0.12, steps=100, mask_lr=0.05, mask_every=1, finetune_steps=100, finetune_lr=0.01
    ).run(task, progress=False)
    report, score = outcome.report, outcome.report["average precision"]
    assert report["channels"].after < 0.8 * report["channels"].before
    assert report["parameters"].after < 0.7 * report["parameters"].before
    assert untrained < 5 and score.before > 40 and score.after > 40
    assert_kept_and_run(outcome, task, torch.rand(3, 3, 96, 96) - 0.5, tmp_path)
    ((boxes, scores),) = detector.detect(outcome.model, faces.held_out.images[:1], 96)
    assert boxes.shape[1] == 4 and len(boxes) == len(scores) > 0


def segments(count: int, seed: int) -> TensorDataset:
    """Scenes (N, 3, 32, 32) and of each pixel its colour, 1 to 4, 0 for the ground, -100 for the rim of things."""
    images, masks = lab.scenes.draw(lab.scenes.random_scenes(count, seed=seed), 32)
    colours = masks[:, 4:]
    y = torch.where(colours.any(1), colours.int().argmax(1) + 1, 0)
    near = F.max_pool2d(colours.any(1, keepdim=True).float(), 3, 1, 1)[:, 0] > 0
    return TensorDataset(images - 0.5, y.masked_fill(near & (y == 0), -100))


@pytest.mark.slow
def test_a_unet_with_concatenations_is_pruned_and_still_segments(tmp_path):
    learn, held_out = segments(512, seed=1), segments(96, seed=2)
    rare = torch.tensor([0.1, 1, 1, 1, 1])  # 19 of 20 pixels are ground
    with seeded(0):
        net = nets.unet(width=6)
        task = lab.Task(
            model=net, batches=DataLoader(learn, 16, shuffle=True), score=lab.tasks.mean_iou(DataLoader(held_out, 48)),
            metric="mean IoU", loss=partial(F.cross_entropy, weight=rare), name="segments",
        )  # fmt: skip
        untrained = task.measure(net)
        lab.finetune(task, net, steps=150, lr=0.1, progress=False)
    outcome = lab.GAL(
        units=("channel", "input"), lam=0.1, steps=100, mask_lr=0.05, mask_every=1, finetune_steps=60
    ).run(task, progress=False)
    report, score = outcome.report, outcome.report["mean IoU"]
    assert report["channels"].before == 102 and report["inputs"].before > 0
    assert report["parameters"].after < 0.5 * report["parameters"].before
    assert untrained < 20 and score.before > 60 and score.after > 60
    assert_kept_and_run(outcome, task, held_out.tensors[0][:3], tmp_path)


@pytest.mark.slow
def test_a_vision_transformer_is_quantised_with_a_strategy_a_tensor(tmp_path):
    with seeded(0):
        net = nets.vit(size=8, patch=4, width=32, depth=2, heads=4, ratio=2)
        task = lab.tasks.digits(net)
        untrained = task.measure(net)
        learned(task, net, steps=150)
    outcome = lab.DQSS(weight_bits=8, activation_bits=8, placement="full", steps=10, calibration=32).run(
        task, progress=False
    )
    score = outcome.report["accuracy"]
    assert untrained < 25 and score.before > 70 and score.after > score.before - 5
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
    assert outcome.report["bytes"].after < 0.5 * outcome.report["bytes"].before
    assert cost.parameters(outcome.model) <= cost.parameters(net) + 1


def learned(task: lab.Task, net: torch.nn.Module, steps: int) -> None:
    """Train a transformer: AdamW along one cycle."""
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
    batches = iter(())
    for _ in range(steps):
        batch = next(batches, None)
        if batch is None:
            batches = iter(task.batches)
            batch = next(batches)
        loss, _ = task.fit(net.train(), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()
