"""GAL run: label-free, exact, controlled, and clear about what goes wrong."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lab
from lab.core.task import Task
from lab.gal import GAL
from lab.gal.budget import Budget
from lab.gal.recipe import RELEASED
from lab.gal.structures import insert_masks

QUICK = {"steps": 40, "finetune_steps": 10, "mask_every": 1, "mask_lr": 0.03, "lam": 0.8}


def run(recipe: GAL, task: Task, **options):
    return recipe.run(task, progress=False, **options)


def small(channels: int = 3, classes: int = 4, **changes) -> Task:
    """A network and data of one's own: a DataLoader of random pictures whose class is a colour."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(96) % classes
    colours = nn.functional.one_hot(y, channels * 2)[:, :channels, None, None]
    x = torch.randn(96, channels, 8, 8, generator=generator) + colours
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(channels, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, classes),
        )  # fmt: skip
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(40):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimiser.step()
        network.zero_grad(set_to_none=True)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    fields = {"model": network, "batches": loader, "score": lab.tasks.accuracy([(x, y)])}
    return Task(**{**fields, **changes})


@pytest.fixture(scope="module")
def outcome():
    return run(GAL(units="channel", **QUICK), small())


def test_the_pruned_network_is_smaller_and_plain(outcome):
    assert outcome.report["macs"].after < outcome.report["macs"].before
    parts = [module for module in outcome.model.modules() if module is not outcome.model]
    assert all(type(module).__module__.startswith("torch.") for module in parts)
    assert outcome.report["parameters"].after == sum(p.numel() for p in outcome.model.parameters())
    assert outcome.model(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


def test_the_report_shows_before_and_after_fine_tuning(outcome):
    names = [row.name for row in outcome.report]
    assert names[-2:] == ["accuracy before fine-tuning", "accuracy"]
    assert {step.stage for step in outcome.trace} == {"prune", "finetune"}


@pytest.mark.slow
def test_labels_play_no_part_in_the_pruning_stage():
    """With other labels the pruning stage is bit-identical; only the fine-tuning differs."""
    task = small()
    x, y = task.batches.dataset.tensors
    wrong = DataLoader(TensorDataset(x, (y + 1) % 4), batch_size=16, shuffle=True)
    a = run(GAL(units="channel", **QUICK), task)
    b = run(GAL(units="channel", **QUICK), small(batches=wrong))
    assert torch.equal(a.history, b.history)
    assert [s for s in a.trace if s.stage == "prune"] == [s for s in b.trace if s.stage == "prune"]
    assert [s for s in a.trace if s.stage == "finetune"] != [s for s in b.trace if s.stage == "finetune"]


@pytest.mark.slow
def test_data_without_labels_is_pruned_and_not_fine_tuned():
    task = small()
    bare = run(GAL(units="channel", **QUICK), small(batches=[task.batches.dataset.tensors[0]]))
    assert {step.stage for step in bare.trace} == {"prune"}
    assert "the batches hold no labels: not fine-tuned" in bare.report.notes
    assert bare.report["accuracy"].after == bare.report["accuracy before fine-tuning"].after


def test_at_first_the_generator_answers_like_the_baseline(outcome):
    assert outcome.trace[0].terms["data"] == 0
    assert torch.equal(outcome.history[0], torch.ones_like(outcome.history[0]))


def test_masks_are_never_negative_and_zeros_are_exact(outcome):
    assert (outcome.history >= 0).all()
    assert (outcome.history[-1] == 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("adversary", ["AR", "L1", "L2", "none", "off"])
def test_every_adversary_plays(adversary):
    found = run(GAL(units="channel", adversary=adversary, **QUICK), small())
    assert ("adversary" in found.trace[0].terms) == (adversary != "off")


@pytest.mark.slow
@pytest.mark.parametrize("switch", RELEASED)
def test_every_released_behaviour_changes_the_run(switch, outcome):
    found = run(GAL(units="channel", released=switch, **QUICK), small())
    assert found.history.shape == outcome.history.shape
    assert not torch.equal(found.history, outcome.history)


@pytest.mark.slow
def test_masks_move_only_when_they_are_due():
    found = run(GAL(units="channel", **{**QUICK, "steps": 25, "mask_every": 10}), small())
    moved = [k for k in range(1, len(found.history)) if not torch.equal(found.history[k], found.history[k - 1])]
    assert moved == [10, 20]  # snapshot k is the state after k steps


BUDGET = {**QUICK, "lam": 0.1, "mask_lr": 0.3, "steps": 200}


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1.3, 2.0, 4.0])
def test_masks_stop_at_the_multiply_adds_that_were_asked_for(ratio):
    found = run(GAL(units="channel", macs_ratio=ratio, **BUDGET), small())
    macs = found.report["macs"]
    assert ratio <= macs.ratio
    assert macs.before / ratio - macs.after < macs.before * 0.08  # one more filter would have been too much
    assert set(found.history[-1].tolist()) == {0.0, 1.0}  # what is open is whole
    assert found.report["accuracy before fine-tuning"].after > 90


@pytest.mark.slow
def test_closed_masks_stay_closed_and_weights_wait_for_the_end_of_a_round(monkeypatch):
    seen, task = [], small()
    update = Budget.update

    def watched(budget, fista):
        was = budget.is_closing
        update(budget, fista)
        weight = budget.masked.model.get_submodule("0").weight.detach().clone()
        seen.append((was, budget.round, weight, torch.cat(fista.now)))

    monkeypatch.setattr(Budget, "update", watched)
    run(GAL(units="channel", macs_ratio=2.0, **BUDGET), task)
    assert seen[-1][1] == 5  # rounds
    assert torch.equal(seen[0][2], task.model[0].weight)
    for (_, before, old, masks), (closing, after, new, later) in pairwise(seen):
        assert torch.equal(old, new) == closing  # weights move between rounds alone
        assert closing or torch.equal(masks, later)  # and masks within them
        assert before == after or set(later.tolist()) == {0.0, 1.0}
        if after:
            closed = next(m for _, r, _, m in seen if r == after) == 0
            assert (later[closed] == 0).all()


def test_lam_weighs_what_an_entry_saves_against_what_it_loses():
    masked = insert_masks(small().model.eval(), ("channel",), torch.zeros(1, 3, 8, 8))
    budget = Budget(masked, torch.zeros(1, 3, 8, 8), 2.0, 3)
    first, second = 3 * 9 * 64 + 16 * 9 * 16, 12 * 9 * 16 + 16 * 4  # multiply-adds that are written and read
    assert budget.prices[0] / budget.prices[1] == pytest.approx(first / second)
    assert 12 * budget.prices[0] + 16 * budget.prices[1] == pytest.approx(28)
    budget.begin(lambda: masked.model(torch.randn(64, 3, 8, 8)), 10.0)
    lams = budget.lams(0.1)
    assert lams[0] / lams[1] == pytest.approx(first / second)
    lost = torch.cat([c / p for c, p in zip(budget.curvature, budget.prices, strict=True)])
    assert lams[0] / budget.prices[0] == pytest.approx(0.1 * float(lost.median()))
    for rate, c in zip(budget.rates(0.3), budget.curvature, strict=True):
        assert torch.allclose(rate[c > 0.1] * c[c > 0.1], torch.tensor(0.3))


@pytest.mark.slow
def test_a_budget_that_the_masks_do_not_reach_is_told():
    recipe = GAL(units="channel", macs_ratio=50.0, **{**BUDGET, "steps": 4, "mask_lr": 1e-3})
    notes = run(recipe, small()).report.notes
    assert any("macs_ratio=50.0 was not reached: 1.0x; raise lam, mask_lr or steps" in note for note in notes)


@pytest.mark.slow
def test_a_run_with_a_budget_is_resumed_as_it_was(tmp_path):
    recipe, stop = GAL(units="channel", macs_ratio=1.5, **BUDGET), 3
    whole = run(recipe, small())

    class Broken(DataLoader):
        def __iter__(self):
            nonlocal stop
            stop -= 1
            if not stop:
                raise KeyboardInterrupt
            return super().__iter__()

    task = small()
    task = replace(task, batches=Broken(task.batches.dataset, batch_size=16, shuffle=True))
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lab.core.training.SAVE_SECONDS", 0.0)
        run(recipe, task, checkpoint=tmp_path)
    again = run(recipe, task, checkpoint=tmp_path)
    assert torch.equal(again.history, whole.history) and again.report["macs"] == whole.report["macs"]


@pytest.mark.slow
def test_the_baseline_is_frozen_with_its_buffers():
    task = small()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    run(GAL(units="channel", **QUICK), task)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in task.model.parameters())


def test_an_own_network_is_reloaded_with_its_class_and_only_then(outcome, tmp_path):
    outcome.save(tmp_path / "pruned")
    with pytest.raises(ValueError, match=r"lab.load\(folder, base=net\)"):
        lab.load(tmp_path / "pruned")
    again = lab.load(tmp_path / "pruned", base=small().model)
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(again.model.eval()(x), outcome.model.eval()(x))
    assert again.report == outcome.report and again.trace == outcome.trace
    with pytest.raises(ValueError, match=r"plan|network that was pruned"):
        lab.load(tmp_path / "pruned", base=nn.Sequential(nn.Conv2d(3, 12, 3), nn.Flatten(), nn.Linear(432, 4)))


@pytest.mark.slow
@pytest.mark.parametrize(("released", "is_equal"), [((), True), (("raw_outputs",), False)])
def test_masks_close_alike_whatever_the_size_of_the_outputs(released, is_equal):
    """A network whose outputs are eight times as large has the same masks, unless the losses see them as they are."""
    plain, large = small(), small()
    with torch.no_grad():
        large.model[-1].weight.mul_(8)
        large.model[-1].bias.mul_(8)
    settings = {**QUICK, "lr": 1e-6, "finetune_steps": 0}  # as good as fixed: training moves larger weights less
    a, b = (run(GAL(units="channel", released=released, **settings), task).history for task in (plain, large))
    assert torch.allclose(a, b, atol=1e-3) == is_equal


def test_weights_are_clipped_apart_from_masks():
    """A steep loss of weights must not weaken what holds masks open."""
    weights, masks = [nn.Parameter(torch.zeros(4))], [nn.Parameter(torch.ones(4))]
    weights[0].grad, masks[0].grad = torch.full((4,), 50.0), torch.full((4,), 0.5)
    GAL(clip=10)._clip(weights, masks)
    assert weights[0].grad.norm().item() == pytest.approx(10)
    assert torch.equal(masks[0].grad, torch.full((4,), 0.5))


@pytest.mark.slow
def test_the_outcome_is_exported(outcome, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    session = onnxruntime.InferenceSession(outcome.export(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = outcome.model.eval()(x)
    assert (torch.from_numpy(session.run(None, {"input": x.numpy()})[0]) - expected).abs().max() < 1e-4


def test_a_mask_that_closes_everything_is_stopped():
    with pytest.raises(ValueError, match=r"lam=1000: all 28 mask entries are 0 after step 0.*lower lam") as caught:
        run(GAL(units="channel", **{**QUICK, "lam": 1000}), small())
    assert "\n" not in str(caught.value)


def test_losses_that_are_not_finite_stop_the_run_and_keep_the_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match=r"prune step \d+: .* not finite; lower the learning rates"):
        run(GAL(units="channel", **QUICK, lr=1e9), small(), checkpoint=tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batches": []}, "Task.batches is empty"),
        ({"batches": [torch.full((4, 3, 8, 8), float("nan"))]}, "NaN or infinite"),
        ({"batches": [torch.zeros(4, 1, 8, 8)]}, r"shape \(4, 1, 8, 8\), which the model does not take"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(192, 4))}, "can be masked"),
    ],
)
def test_bad_tasks_are_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        run(GAL(units="channel", **QUICK), small(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("lam", -1, "lam=-1 is not allowed: give a number >= 0"),
        ("lam", float("nan"), "lam=nan is not allowed"),
        ("lam", "much", "lam='much' is not allowed"),
        ("steps", 0, "steps=0 is not allowed: give an integer >= 1"),
        ("units", ("filter",), r"units=\('filter',\) is not allowed: give at least 1 of 'channel', 'block'"),
        ("mask_every", 601, "mask_every=601 is not allowed: give an integer in"),
        ("macs_ratio", 1, "macs_ratio=1 is not allowed: give a number > 1"),
        ("adversary", "wgan", "adversary='wgan' is not allowed"),
        ("released", ("bugs",), r"released=\('bugs',\) is not allowed"),
        ("released", ("normal_masks", "uniform_masks"), "masks start 'normal_masks' or 'uniform_masks'"),
    ],
)
def test_bad_fields_are_one_line(field, value, words):
    with pytest.raises(ValueError, match=words):
        GAL(**{field: value})


def test_paper_settings_are_the_released_ones():
    recipe = GAL.paper("resnet56")
    assert (recipe.lam, recipe.mu, recipe.units, recipe.mask_every, recipe.lr) == (0.6, 1.0, ("block",), 200, 0.01)
    assert recipe.steps == 39_100
    starts = {name: GAL.paper(name).released[-1] for name in ("resnet56", "vgg16", "googlenet", "densenet40")}
    assert starts == {**dict.fromkeys(starts, "normal_masks"), "densenet40": "uniform_masks"}
    with pytest.raises(ValueError, match=r"name='resnet18'.*resnet56"):
        GAL.paper("resnet18")


@pytest.mark.slow
def test_three_times_fewer_multiply_adds_are_asked_for_by_number():
    """On digits, before any label is used: within a point of the original, and not far below what was asked for.

    The tour makes the default run and says that it has at most half the multiply-adds within a point.
    """
    report = lab.GAL(macs_ratio=3, finetune_steps=0).run(progress=False).report
    assert 3 <= report["macs"].ratio < 3.2
    assert report["accuracy"].change >= -1.0
