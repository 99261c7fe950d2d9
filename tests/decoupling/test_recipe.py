"""Decoupling run: with labels and without, with each control, killed, stored, and clear about what goes wrong."""

import math
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lab
from lab.core import cost, training
from lab.core.task import Task
from lab.core.training import seeded
from lab.decoupling import Decoupling
from lab.decoupling import equations as eq
from lab.decoupling.layers import MIXES, Gate, GateRecord, gates
from lab.decoupling.recipe import Decoupling as Recipe
from tests.decoupling.families import distance

QUICK = {"steps": 60, "lam_s": 0.05, "lr": 0.05}
SHORT = {**QUICK, "steps": 6}


def data(channels: int = 3, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pictures (96, channels, 8, 8) whose class is a colour."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(96) % classes
    colours = F.one_hot(y, channels * 2)[:, :channels, None, None]
    return torch.randn(96, channels, 8, 8, generator=generator) + colours, y


def own(channels: int = 3, classes: int = 4) -> nn.Module:
    """A user's network, with fresh weights."""
    return nn.Sequential(
        nn.Conv2d(channels, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, classes),
    )  # fmt: skip


def small(**changes) -> Task:
    """The user's network, trained for a moment, and a DataLoader of the pictures."""
    x, y = data()
    with seeded(0):
        network = own()
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(30):
            optimiser.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimiser.step()
    network.zero_grad(set_to_none=True)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    return Task(**{"model": network, "batches": loader, "score": lab.tasks.accuracy([(x, y)]), **changes})


def run(task: Task | None = None, seed: int = 0, checkpoint=None, device=None, **fields):
    recipe = Decoupling(**{**SHORT, **fields})
    return recipe.run(task or small(), seed=seed, progress=False, checkpoint=checkpoint, device=device)


@pytest.fixture(scope="module")
def outcome():
    return run(**QUICK, r=0.5)


def same(a, b) -> bool:
    a, b = a.model.state_dict(), b.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- what a run finds ------------------------------------------------------------------------------------------------


def test_the_wanted_share_of_filters_is_approached(outcome):
    before, after = outcome.report["on-rate"].before, outcome.report["on-rate"].after
    assert before > 0.8 and abs(after - 0.5) < abs(before - 0.5) - 0.1
    assert outcome.report["accuracy"].after > 50  # chance is 25


def test_every_step_has_all_losses_and_they_fall(outcome):
    terms = ["task", "mutual information", "agreement", "sparsity"]
    assert [list(step.terms) for step in outcome.trace] == [terms] * 60
    assert outcome.trace[-1].terms["sparsity"] < outcome.trace[0].terms["sparsity"]


def test_the_report_counts_what_there_is(outcome):
    report, task = outcome.report, small()
    assert report["gated filters"].before == 16 + 20
    assert report["gated filters"].after == sum(site.filters for site in outcome.decoupled.sites)
    assert report["macs"].before == cost.macs(task.model, task.example)
    assert report["parameters"].before == cost.parameters(task.model)
    assert report["parameters"].after == sum(p.numel() for p in outcome.model.parameters())
    assert report["conditional filters"].after == outcome.seen.conditional().sum()
    on = [torch.from_numpy(bits) for bits in outcome.seen.split()]
    assert report["macs"].after == pytest.approx(outcome.decoupled.macs(on).mean().item())
    assert "not gated, since it is a first layer: 0" in report.notes


def test_what_is_left_is_never_wholly_unused(outcome):
    """After never-on filters went, none of the seen paths leaves a filter out for good, but for a layer's last one."""
    for site, bits in zip(outcome.decoupled.sites, outcome.seen.split(), strict=True):
        assert bits.any(0).all() or site.filters == 1
    assert len(outcome.seen) == 96


def test_heads_are_there_in_training_only(outcome):
    expected = {id(p) for p in outcome.model.parameters()}
    inside = {id(p) for gate in gates(outcome.model).values() for p in gate.parameters()}
    assert not any("head" in name for name in outcome.model.state_dict())
    assert len(expected) == len(inside) + sum(1 for _ in own().parameters())
    assert set(outcome.found()["weights"]) == set(outcome.model.state_dict())


def test_the_answers_are_those_of_skipping_and_the_paths_those_of_the_model(outcome):
    x, y = data()
    with torch.no_grad():
        assert distance(outcome.skipping()(x), outcome.model(x)) < 1e-5
    again = outcome.paths([(x, y)])
    assert sorted(map(bytes, again.packed)) == sorted(map(bytes, outcome.seen.packed))


def test_the_sample_holds_pictures_of_all_classes_in_turn(outcome):
    assert len(outcome.sample) == 40 and outcome.sample.shape[1:] == (3, 8, 8)
    labels = outcome.seen.labels[outcome.sampled.numpy()]
    assert labels[:8].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    again = outcome.paths([outcome.sample])
    assert (again.packed == outcome.seen.packed[outcome.sampled.numpy()]).all()


def test_the_model_goes_between_its_modes(outcome):
    assert not any(module.training for module in outcome.model.modules())
    assert outcome.model.train() is outcome.model
    assert all(gate.training for gate in gates(outcome.model).values())
    assert outcome.model.eval() is outcome.model
    assert not any(gate.training for gate in gates(outcome.model).values())


# -- the settings do what they say -----------------------------------------------------------------------------------


def test_the_losses_of_a_gate_are_the_equations_with_their_weights():
    z, out = torch.rand(8, 5), torch.randn(8, 5, 2, 2)
    t, head = torch.arange(8) % 3, nn.Linear(5, 3, bias=False)
    recipe = Decoupling(lam_m=0.7, lam_k=0.3, lam_s=0.2, r=0.4, kl="z||out")
    found = recipe._gate_losses(GateRecord(z, eq.squeeze(out)), head.weight, t)
    known = 0.7 * eq.mutual_information_loss(z, head.weight, t), 0.3 * eq.kl_z_out(out, z), 0.2 * eq.sparsity_at(z, 0.4)
    assert [loss.item() for loss in found] == pytest.approx([loss.item() for loss in known])
    plain = Decoupling(r=0, lam_s=1.0)._gate_losses(GateRecord(z, eq.squeeze(out)), head.weight, t)
    assert plain[2].item() == pytest.approx(z.sum(1).mean().item())
    forward = Decoupling(lam_k=1.0)._gate_losses(GateRecord(z, eq.squeeze(out)), head.weight, t)
    assert forward[1].item() == pytest.approx(eq.kl_out_z(out, z).item())


@pytest.mark.parametrize(("detach", "moves"), [("none", (True, True)), ("out", (False, True)), ("z", (True, False))])
@pytest.mark.parametrize("kl", ["out||z", "z||out"])
def test_a_detached_side_takes_no_gradient_from_agreement(detach, moves, kl):
    z, out = torch.rand(8, 5, requires_grad=True), torch.randn(8, 5, requires_grad=True)
    head = nn.Linear(5, 3, bias=False)
    _, agreement, _ = Recipe(detach=detach, kl=kl)._gate_losses(GateRecord(z, out), head.weight, torch.arange(8) % 3)
    grads = torch.autograd.grad(agreement, (out, z), allow_unused=True)
    assert tuple(grad is not None for grad in grads) == moves


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"kl": "z||out"}, {"detach": "out"}, {"detach": "z"}, {"r": 0.0}, {"r": 1.0}, {"bias": 1.0}, {"lam_m": 0.0},
        {"lam_k": 0.0}, {"lam_s": 0.0}, {"milestones": ()}, {"milestones": (0.2,)}, 
        *({"mix": mix} for mix in MIXES if mix != "sample"),
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_changes_the_run_and_runs(change):
    task = small()
    found, known = run(task, **change), run(task)
    assert [step.terms for step in found.trace] != [step.terms for step in known.trace]
    assert all(math.isfinite(value) for step in found.trace for value in step.terms.values())
    for term, field in (("mutual information", "lam_m"), ("agreement", "lam_k"), ("sparsity", "lam_s")):
        if change.get(field) == 0:
            assert {step.terms[term] for step in found.trace} == {0.0}


@pytest.mark.slow
def test_the_gates_take_their_mix(outcome):
    assert {gate.mix for gate in gates(run(mix="element").model).values()} == {"element"}


@pytest.mark.slow
def test_predictions_take_the_place_of_labels():
    """With other labels the encodings' losses of the first step do not change if they tell about predictions."""
    x, y = data()
    wrong = DataLoader(TensorDataset(x, (y + 1) % 4), batch_size=16, shuffle=True)
    first = lambda task, target: run(task, target=target).trace[0].terms  # noqa: E731
    a, b = first(small(), "prediction"), first(small(batches=wrong), "prediction")
    assert a["mutual information"] == b["mutual information"] and a["task"] != b["task"]
    a, b = first(small(), "label"), first(small(batches=wrong), "label")
    assert a["mutual information"] != b["mutual information"]


@pytest.mark.slow
def test_data_without_labels_train_on_the_networks_own_answers():
    x, _ = data()
    found = run(small(batches=list(x.split(16))), steps=10)
    assert "the batches hold no labels: trained on the network's own predictions" in found.report.notes
    assert len(found.trace) == 10 and set(found.seen.labels) == {-1}
    task = small()
    with torch.no_grad():
        answered = task.model.eval()(x).argmax(1)
    told = run(small(batches=list(zip(x.split(16), answered.split(16), strict=True))), steps=10)
    assert [step.terms for step in found.trace] == [step.terms for step in told.trace]


@pytest.mark.slow
def test_a_task_of_its_own_loss_uses_it():
    loss = lambda answer, y: 3 * F.cross_entropy(answer, y)  # noqa: E731
    assert run(small(loss=loss)).trace[0].terms["task"] == pytest.approx(3 * run().trace[0].terms["task"], rel=1e-5)


@pytest.mark.slow
def test_the_device_is_taken_and_the_seed_matters():
    assert same(run(device="cpu"), run())
    assert not same(run(seed=1), run())


@pytest.mark.slow
def test_a_network_in_double_precision_is_decoupled():
    x, y = data()
    task = small()
    batches = list(zip(x.double().split(16), y.split(16), strict=True))
    found = run(small(model=task.model.double(), batches=batches, score=lab.tasks.accuracy(batches)))
    assert next(found.model.parameters()).dtype == torch.float64


@pytest.mark.slow
def test_a_network_loaded_for_inference_is_trained_like_any_other():
    """All of it learns in the copy if nothing of it may; the network that was given keeps its flags and weights."""
    learned, task = run(small()).model.state_dict()["0.weight"], small()
    before = task.model.requires_grad_(False)[0].weight.clone()
    assert torch.equal(run(task).model.state_dict()["0.weight"], learned) and not torch.equal(learned, before)
    assert torch.equal(task.model[0].weight, before) and not task.model[0].weight.requires_grad


@pytest.mark.slow
def test_frozen_weights_stay_where_others_may_learn():
    task = small()
    before = task.model[0].weight.requires_grad_(False).clone()
    others = {name: p.clone() for name, p in task.model.named_parameters() if p.requires_grad}
    learned = run(task).model.state_dict()
    assert torch.equal(learned["0.weight"], before)
    assert any(not torch.equal(learned[name], p) for name, p in others.items() if name in learned)


# -- fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("lam_m", -1, "lam_m=-1 is not allowed: give a number >= 0"),
        ("lam_k", float("nan"), "lam_k=nan is not allowed"),
        ("lam_s", "much", "lam_s='much' is not allowed"),
        ("r", 1.2, r"r=1.2 is not allowed: give a number >= 0 and <= 1"),
        ("r", -0.1, "r=-0.1 is not allowed"),
        ("kl", "both", r"kl='both' is not allowed: give one of 'out\|\|z', 'z\|\|out'"),
        ("detach", True, "detach=True is not allowed: give one of 'none', 'out', 'z'"),
        ("mix", "half", "mix='half' is not allowed: give one of 'sample', 'element', 'channel', 'index'"),
        ("target", "input", "target='input' is not allowed"),
        ("bias", float("inf"), "bias=inf is not allowed"),
        ("steps", 0, "steps=0 is not allowed: give an integer >= 1"),
        ("steps", 2.5, "steps=2.5 is not allowed"),
        ("lr", 0, "lr=0 is not allowed: give a number > 0"),
        ("milestones", (0.5, 0.25), r"milestones=\(0.5, 0.25\) is not allowed: give a tuple of rising numbers"),
        ("milestones", (1.0,), r"milestones=\(1.0,\) is not allowed"),
        ("milestones", 0.5, "milestones=0.5 is not allowed"),
    ],
)
def test_bad_fields_are_one_line(field, value, words):
    with pytest.raises(ValueError, match=words) as caught:
        Decoupling(**{field: value})
    assert "\n" not in str(caught.value)


def test_a_list_of_milestones_is_a_tuple():
    assert Decoupling(milestones=[0.5]) == Decoupling(milestones=(0.5,))


# from the v2 release's README: lam_k, lam_m, lam_s, r, rate, milestones of epochs, epochs, batch, pictures
RELEASED = {
    "resnet56": (1, 0.01, 1.5e-4, 0, 0.1, (100, 150), 200, 128, 50_000),
    "vgg19": (1, 0.04, 2e-4, 0, 0.1, (100, 150), 200, 128, 50_000),
    "googlenet": (1, 0.006, 5e-5, 0, 0.1, (100, 150), 200, 128, 50_000),
    "resnet18": (1, 0.005, 0.01, 0.6, 0.01, (30, 60, 90), 120, 256, 1_281_167),
    "vgg16": (1, 0.01, 0.01, 0.5, 0.01, (30, 60, 90), 120, 64, 1_281_167),
    "resnet56 v1": (1, 0.005, 1e-4, 0, 0.01, (100,), 200, 128, 50_000),
}


@pytest.mark.parametrize("name", RELEASED)
def test_paper_settings_are_the_released_ones(name):
    lam_k, lam_m, lam_s, r, lr, epochs, whole, batch, pictures = RELEASED[name]
    recipe = Decoupling.paper(name)
    assert (recipe.lam_k, recipe.lam_m, recipe.lam_s, recipe.r, recipe.lr) == (lam_k, lam_m, lam_s, r, lr)
    assert recipe.milestones == tuple(epoch / whole for epoch in epochs)
    assert recipe.steps == whole * math.ceil(pictures / batch)
    assert recipe.kl == ("z||out" if "vgg" in name else "out||z") and recipe.bias == 1


def test_an_unknown_paper_network_is_one_line():
    with pytest.raises(ValueError, match=r"name='lenet': .*resnet56, resnet56 v1, vgg19, googlenet, resnet18, vgg16"):
        Decoupling.paper("lenet")


# -- what goes wrong -------------------------------------------------------------------------------------------------


class Segmenting(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.stem(x)))))


class Pair(Segmenting):
    def forward(self, x):
        x = super().forward(x)
        return x.mean((2, 3)), x


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((192, 4), float("nan")))

    def forward(self, x):
        return x.flatten(1) @ self.weight


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batches": []}, "Task.batches is empty"),
        ({"batches": [torch.full((4, 3, 8, 8), float("nan"))]}, "NaN or infinite"),
        ({"batches": [torch.zeros(4, 1, 8, 8)]}, r"shape \(4, 1, 8, 8\), which the model does not take"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(192, 4))}, "no convolution that can be gated"),
        (
            {"model": Segmenting()},
            r"answers with \(1, 4, 4, 4\): decoupling needs class scores of shape \(N, classes\)",
        ),
        ({"model": Pair()}, "answers with tuple: decoupling needs class scores"),
        ({"model": Broken()}, "answers NaN on finite data"),
    ],
    ids=["empty", "nan", "channels", "no convolution", "maps", "tuple", "broken weights"],
)
def test_bad_tasks_are_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        run(small(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_nan_behind_the_first_batch_stops_the_run_and_says_so():
    x, y = data()
    x[50] = float("nan")
    batches = list(zip(x.split(16), y.split(16), strict=True))
    with pytest.raises(FloatingPointError, match=r"decouple step 3: .*the batch holds NaN or infinite values"):
        run(small(batches=batches))


@pytest.mark.slow
def test_losses_that_are_not_finite_stop_the_run():
    with pytest.raises(FloatingPointError, match=r"decouple step \d+: .* not finite; lower the learning rates"):
        run(lr=1e12, steps=40)


# -- stored and resumed ----------------------------------------------------------------------------------------------


def test_an_own_network_is_reloaded_with_its_class_and_only_then(outcome, tmp_path):
    outcome.save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"lab.load\(folder, base=net\)"):
        lab.load(tmp_path / "run")
    again = lab.load(tmp_path / "run", base=own())
    assert same(again, outcome) and again.plan == outcome.plan and again.report == outcome.report
    x, _ = data()
    with torch.no_grad():
        assert torch.equal(again.model(x), outcome.model(x))
        assert distance(again.skipping()(x), outcome.skipping()(x)) < 1e-5  # which layers are done whole is timed anew
    assert again.decoupled.sites == outcome.decoupled.sites and again.trace == outcome.trace
    assert (again.seen.packed == outcome.seen.packed).all() and torch.equal(again.sample, outcome.sample)


WRONG = {
    "narrower": lambda: own(classes=5),
    "other names": lambda: lab.nets.resnet_cifar(8, channels=3, classes=4),
    "no convolution": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)),
    "fewer layers": lambda: nn.Sequential(*list(own())[:7], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    "other input": lambda: own(channels=1),
}


@pytest.mark.parametrize("base", WRONG)
def test_a_wrong_base_is_one_line(outcome, tmp_path, base):
    outcome.save(tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"not the network that was decoupled|plan|can be gated|does not run"
    ) as caught:
        lab.load(tmp_path / "run", base=WRONG[base]())
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_network_of_the_lab_needs_no_base(tmp_path):
    with seeded(0):
        found = run(small(model=lab.nets.resnet_cifar(8, channels=3, classes=4)), mix="element", steps=3)
    found.save(tmp_path / "run")
    again = lab.load(tmp_path / "run")
    assert same(again, found)
    assert {gate.mix for gate in gates(again.model).values()} == {"element"}


class Killed(BaseException):
    """What no `except Exception` stops."""


@pytest.mark.slow
@pytest.mark.parametrize("moments", [[8, 9, 14], [1, 2, 26]], ids=str)
def test_a_killed_run_ends_like_an_unbroken_one(tmp_path, monkeypatch, moments):
    """Stopped at the n-th file that is put in its place: between the two files of a save, before, and behind the last.

    Nothing of a stopped run is used again but its files.
    """
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    rename, left = os.replace, []

    def counted(source, target):
        if Path(target).name.startswith("decouple"):
            left[0] -= 1
            if not left[0]:
                raise Killed
        rename(source, target)

    for moment in moments:
        left[:] = [moment]
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "replace", counted)
            run(checkpoint=tmp_path, steps=14)
    last, whole = run(checkpoint=tmp_path, steps=14), run(steps=14)
    assert same(last, whole) and last.trace == whole.trace and last.plan == whole.plan
    assert last.report == whole.report and (last.seen.packed == whole.seen.packed).all()


def stopped(checkpoint: Path) -> None:
    """Run, saving after every step, and end without another word at the ninth file."""
    training.SAVE_SECONDS = 0
    rename, seen = os.replace, []

    def counted(source, target):
        seen.append(target)
        if len(seen) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = counted
    run(checkpoint=checkpoint, steps=14)


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_in_another(tmp_path):
    child = multiprocessing.get_context("spawn").Process(target=stopped, args=(tmp_path / "run",))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert same(run(checkpoint=tmp_path / "run", steps=14), run(steps=14))


@pytest.mark.slow
def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    run(checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match=r"belongs to Decoupling.*this run is Decoupling") as caught:
        run(checkpoint=tmp_path / "run", lam_m=0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_outcome_is_exported(outcome, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    session = onnxruntime.InferenceSession(outcome.export(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    x, _ = data()
    with torch.no_grad():
        expected = outcome.model(x[:5])
    assert (torch.from_numpy(session.run(None, {"input": x[:5].numpy()})[0]) - expected).abs().max() < 1e-4
    assert not any(isinstance(module, Gate) and module.training for module in outcome.model.modules())


@pytest.mark.slow
def test_a_network_is_decoupled_once():
    """What carries gates already is refused before anything is trained."""
    gated = run(small(), steps=1).model
    with pytest.raises(ValueError, match=r"^the model has gates already: decouple the network that it was made from$"):
        Decoupling(steps=1).run(small(model=gated), progress=False)
