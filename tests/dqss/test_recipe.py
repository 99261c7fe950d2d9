"""DQSS's run: what it promises of the calibration, its two modes, networks of one's own, kills, bad input."""

import itertools
import json

import pytest
import torch
from torch import nn

import lab
from lab.core import store
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.task import Task
from lab.core.training import seeded
from lab.dqss import equations as eq
from lab.dqss import layers, search
from lab.dqss import outcome as outcome_module
from lab.dqss.space import StrategySpace

QUICK = {"steps": 8, "calibration": 8, "candidates": ("max", "p99.9", "mse", "aciq")}


class AllLayers(nn.Module):
    """All kinds of layers, for pictures of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.up, self.last = nn.ConvTranspose2d(8, 8, 2, 2), nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.head(x)).relu()
        return self.last(self.up((x + self.point(self.deep(x))).relu()).relu().mean((2, 3)))


def small_task(labels: bool = True) -> lab.Task:
    with seeded(0):
        net, x = AllLayers().eval(), torch.randn(6, 4, 3, 8, 8)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data[0] *= 6  # outliers: strategies then differ
    batches = [(part, torch.arange(4) % 5) for part in x] if labels else list(x)
    return lab.Task(model=net, batches=batches, score=lab.tasks.accuracy([(x[0], torch.arange(4) % 5)]))


def run(task=None, **fields):
    return lab.DQSS(**{**QUICK, **fields}).run(task or small_task(), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_safe_is_never_worse_than_the_best_uniform_strategy(bits):
    outcome = run(weight_bits=bits, activation_bits=bits)
    assert outcome.losses["kept"] <= outcome.losses["uniform"] <= min(outcome.uniform.values()) + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 3])
def test_safe_is_never_worse_than_what_arg_max_keeps(bits):
    """With one start less it lost up to 1.45 dB to the plain algorithm; its first start is what that one keeps."""
    plain, safe = (run(weight_bits=bits, activation_bits=bits, algorithm=one) for one in ("dqss", "dqss_safe"))
    assert safe.losses["arg-max"] == plain.losses["kept"] and safe.losses["uniform"] == plain.losses["uniform"]
    assert safe.losses["kept"] <= min(safe.losses["arg-max"], safe.losses["uniform"])
    assert safe.losses["soft"] == plain.losses["soft"] and [step.stage for step in safe.trace][::8] == [
        "search",
        "draws",
    ]


def test_what_a_merge_must_keep_stays():
    task, recipe = small_task(), lab.DQSS(steps=1, calibration=8)
    graph = fold_batch_norms(task.model, task.example)
    space = StrategySpace(graph, recipe, task.example)
    for role in space.roles:  # copies were one before
        assert len({float(one.step.mean()) for one in role.mixture.strategies}) == len(role.mixture.names)
    wanted = [[len(role.mixture.names) - 1 for role in space.roles], search.same(space, "max", "mse")]
    names = [[role.mixture.names[k] for role, k in zip(space.roles, row, strict=True)] for row in wanted]
    before = sum(len(role.mixture.names) for role in space.roles)
    kept = space.merge(keep=wanted)
    after = [[role.mixture.names[k] for role, k in zip(space.roles, row, strict=True)] for row in kept]
    assert after == names and sum(len(role.mixture.names) for role in space.roles) < before


@pytest.mark.parametrize("algorithm", ["dqss", "greedy", "uniform", "random"])
def test_every_algorithm_tells_its_gap(algorithm):
    outcome = run(algorithm=algorithm)
    assert outcome.report["soft-to-hard gap"].after == outcome.gap
    assert (outcome.gap != 0) == (algorithm == "dqss")
    if algorithm == "greedy":
        assert outcome.losses["kept"] <= outcome.losses["uniform"]
    if algorithm == "uniform":
        assert len({row["activations"] for row in outcome.choices.values()}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("scales", ["tensor", "channel"])
def test_weights_that_meet_only_zeros_leave_the_range_to_the_others(scales):
    """A channel that its ReLU has shut, then a huge weight: the thin MobileNet has one, and lost 14 points by it."""
    task = small_task()
    task.model.norm.bias.data[3], task.model.norm.weight.data[3] = -1, 0
    outcomes = []
    for size in (1, 1000):
        task.model.deep.weight.data[3] = size
        outcomes.append(run(task, weight_bits=8, activation_bits=8, scales=scales))
    assert outcomes[0].losses == outcomes[1].losses
    steps = [torch.tensor(outcome.choices["deep"]["weight_scale"]) for outcome in outcomes]
    assert torch.equal(*steps) == (scales == "tensor") and torch.equal(steps[0][:3], steps[1][:3])


@pytest.mark.slow
def test_eight_bits_are_enough_for_the_thin_mobilenet():
    task = lab.tasks.digits(size=32, channels=3)
    outcome = run(task, weight_bits=8, activation_bits=8, calibration=16, candidates=("max", "mse"), steps=1)
    assert outcome.report["accuracy"].after > 97


@pytest.mark.slow
def test_a_copy_of_a_candidate_changes_nothing():
    """Near-duplicates are one: 'mse' again under another name must not split its votes."""
    from lab.dqss import observers

    before = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(observers.OBSERVERS, "pams", observers.mse)
        again = run(candidates=(*QUICK["candidates"], "pams"))
    assert again.losses["kept"] == pytest.approx(before.losses["kept"], rel=1e-6)
    assert not any("pams" in row.values() for row in again.choices.values())


@pytest.mark.slow
def test_every_kind_of_layer_has_a_strategy_and_lies_on_its_grid():
    outcome = run(scales="channel")
    assert set(outcome.choices) == {"head", "deep", "point", "up", "last"}
    for name, row in outcome.choices.items():
        assert {"weights", "activations", "weight_scale", "scale", "zero_point"} <= set(row)
        layer = outcome.model.get_submodule(name)
        codes = layer.weight / layer.step
        assert torch.equal(codes.round() * layer.step, layer.weight)
        assert codes.abs().max() <= (127 if name in ("head", "last") else 7) + 1e-3
        assert len(row["weight_scale"]) == (5 if name == "last" else 8)


def test_a_layer_is_called_once_however_many_strategies(monkeypatch):
    calls, task, recipe = [], small_task(), lab.DQSS(**QUICK)
    graph, original = fold_batch_norms(task.model, task.example), nn.Conv2d.forward
    space = StrategySpace(graph, recipe, task.example)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: calls.append(self) or original(self, x))
    space.graph(task.example)
    assert len(calls) == 3


@pytest.mark.slow
@pytest.mark.parametrize("labels", [True, False])
def test_trained_with_its_strategies(labels):
    fields = {"mode": "aware", "candidates": (), "steps": 10, "algorithm": "dqss"}
    outcome = run(small_task(labels), **fields)
    assert [step.stage for step in outcome.trace] == ["search"] * 10 + ["restart"] * 10
    assert not torch.equal(outcome.model.point.weight, small_task().model.point.weight)
    moved = outcome.history["shares"][-1] - outcome.history["shares"][0]
    assert moved.nan_to_num(0).abs().max() > 0
    assert set(next(iter(outcome.trace)).terms) == {"task" if labels else "distance"}


AWARE = {"mode": "aware", "candidates": ("lsq", "pams", "dorefa"), "algorithm": "dqss"}


@pytest.mark.slow
def test_logits_wait_while_warming_up():
    """A tenth of 20 steps: equal shares till then, others after; without the remedy they move at once."""
    moved = {}
    for remedies in (("warm_up",), ()):
        history = run(**AWARE, steps=20, remedies=remedies).history
        moved[remedies] = [float((row - history["shares"][0].mean(1, True)).abs().max()) for row in history["shares"]]
        assert history["steps"].tolist() == list(range(1, 21))
    assert max(moved["warm_up",][:2]) < 1e-6 and min(moved["warm_up",][2:]) > 1e-4
    assert min(moved[()]) > 1e-4


def aware_space(**fields):
    task, recipe = small_task(), lab.DQSS(**{**QUICK, **AWARE, "steps": 10, **fields})
    graph = fold_batch_norms(task.model, task.example)
    return recipe, StrategySpace(graph, recipe, task.example)


def test_the_temperature_falls_to_a_tenth():
    recipe, space = aware_space(remedies=("temperature",))
    for done, T in ((0, 1.0), (5, 0.55), (10, 0.1)):
        search.remedy(recipe, space, done, True)
        assert [role.mixture.T for role in space.roles] == pytest.approx([T] * len(space.roles))
    mixture = space.roles[0].mixture
    nn.init.normal_(mixture.logits)
    x = torch.randn(2, 3, 4, 4)
    wanted = eq.mixture([one(x) for one in mixture.strategies], eq.probabilities(mixture.logits, 0.1))
    torch.testing.assert_close(mixture(x), wanted)
    recipe, space = aware_space(remedies=())
    search.remedy(recipe, space, 10, True)
    assert {role.mixture.T for role in space.roles} == {1.0}


def test_a_choice_is_frozen_once_it_has_nine_tenths():
    for remedies, frozen in ((("freeze",), True), ((), False), (("freeze", "warm_up"), True)):
        recipe, space = aware_space(remedies=remedies, steps=20)
        first, second = space.roles[0].mixture, space.roles[1].mixture
        first.logits.data[1], second.logits.data[1] = 4, 1  # shares of 0.96 and 0.58
        search.remedy(recipe, space, 0, True)
        assert first.chosen == (1 if frozen and "warm_up" not in remedies else None)
        search.remedy(recipe, space, 2, True)
        assert first.chosen == (1 if frozen else None) and second.chosen is None


def single(count: int = 3):
    """One convolution with as many strategies for its weight and for what it reads, all of their own."""
    with seeded(3):
        net, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).eval(), torch.randn(4, 3, 6, 6)
    recipe = lab.DQSS(candidates=("max", "p99.9", "mse", "aciq", "als")[:count], ends=3, activation_bits=3)
    graph = fold_batch_norms(net, x)
    space = StrategySpace(graph, recipe, x)
    for role in space.roles:
        nn.init.normal_(role.mixture.logits)
    reads, weight = sorted((role.mixture for role in space.roles), key=lambda one: "weights" in role_of(space, one))
    return space, x, reads, weight, graph.get_submodule("0")


def test_a_tensor_that_is_all_zero_leaves_the_bias_behind_it_exact():
    """Of integers, the bias is rounded to the product of the steps before it: a step of 1 would be seen."""
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 2)).eval()
    net[0].bias.data.fill_(-100)
    net[2].weight.data.mul_(8)
    task = Task(model=net, batches=[torch.randn(4, 3, 6, 6)], score=lambda net: 0.0, metric="nothing", unit="")
    recipe = lab.DQSS(algorithm="dqss", placement="full", weight_bits=8, activation_bits=8, steps=1, calibration=2)
    outcome = recipe.run(task, progress=False)
    assert all(row.steps <= 1 for row in outcome.parity())


class Awkward(nn.Module):
    """A tensor that is moved by `to`, after which its node is called, and where asked one of infinite padding."""

    def __init__(self, padding: float) -> None:
        super().__init__()
        self.padding, self.stem, self.last = padding, nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x.to(torch.float32))
        return self.last(torch.max_pool2d(nn.functional.pad(x, (0, 1, 0, 1), value=self.padding), 2)).mean((2, 3))


def test_a_group_has_a_name_that_a_module_can_have():
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    recipe = lab.DQSS(placement="full", candidates=("max", "mse"))
    space = StrategySpace(fold_batch_norms(Awkward(0.0).eval(), x), recipe, x)
    assert space.readers["to_"] == ["stem"]
    with pytest.raises(ValueError, match="pad holds values that are not finite") as caught:
        StrategySpace(fold_batch_norms(Awkward(-torch.inf).eval(), x), recipe, x)
    assert "\n" not in str(caught.value)


class Dense(nn.Module):
    """Two tensors side by side on one grid, of which a layer reads the first alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wider, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.last(torch.cat([x, self.wider(x).relu()], 1)).mean((2, 3))


def test_easyquant_compares_a_layer_on_what_it_reads():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    recipe = lab.DQSS(placement="full", activation_bits=8, candidates=("max", "easyquant"))
    graph = fold_batch_norms(Dense().eval(), x)
    with torch.no_grad():
        first = graph.get_submodule("stem")(x).relu()
        second = graph.get_submodule("wider")(first).relu()
    space = StrategySpace(graph, recipe, x)
    (group,) = [group for group, names in space.readers.items() if "wider" in names]
    assert [point.source for point in space.placement.points if point.group == group] == ["relu", "relu_1"]
    ranges = dict(zip(space.activations[group].names, space.activations[group].strategies, strict=True))
    largest = float(torch.cat([first.flatten(), second.flatten()]).max())
    assert float(ranges["max"].qparams().scale) == pytest.approx(largest / 255)
    assert "easyquant" in space.weights["wider"].names


def role_of(space: StrategySpace, mixture) -> str:
    return next(role.role for role in space.roles if role.mixture is mixture)


def test_the_running_network_is_all_branches_with_the_written_gradient():
    """Card (2), (4) and (5) beside what runs: one layer, mixtures on both sides, autograd through all of it."""
    space, x, reads, weight, layer = single(5)
    W = layer.parametrizations.weight.original.detach()
    q, p = (eq.probabilities(one.logits.detach()) for one in (reads, weight))
    parts = [one(x) for one in reads.strategies], [one(W) for one in weight.strategies]

    def op(a, b):
        return nn.functional.conv2d(a, b, padding=1)

    y = space.graph(x)
    bias = layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(y, eq.branches(*parts, q, p, op) + bias, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(y, eq.efficient(*parts, q, p, op) + bias, atol=1e-5, rtol=1e-4)
    above = torch.randn_like(y)
    (y * above).sum().backward()
    mixed = [eq.mixture(*one).requires_grad_() for one in ((parts[0], q), (parts[1], p))]
    G = torch.autograd.grad((op(*mixed) * above).sum(), mixed)
    for mixture, share, part, g in zip((reads, weight), (q, p), parts, G, strict=True):
        torch.testing.assert_close(mixture.logits.grad, eq.gradient_logits(g, part, share), atol=1e-3, rtol=1e-3)


def test_the_running_mixture_has_the_error_of_the_mean_and_draws_the_expected_one():
    """Card (7) and (8) beside what runs: the mixture's own squared error, and the mean of one strategy at a time."""
    _, x, reads, _, _ = single(5)
    p = eq.probabilities(reads.logits.detach())
    with torch.no_grad():
        C = eq.error_products([one(x) for one in reads.strategies], x)
        soft = float((reads(x) - x).square().sum())
        alone = [float((one(x) - x).square().sum()) for one in reads.strategies]
    assert float(eq.loss_of_mean(p, C)) == pytest.approx(soft, rel=1e-3)
    assert float(eq.expected_loss(p, C)) == pytest.approx(
        sum(a * b for a, b in zip(p.tolist(), alone, strict=True)), rel=1e-3
    )
    assert soft < min(alone)


def test_draws_learn_the_expected_logarithm_of_the_loss(monkeypatch):
    """Card (9) as it runs, over all pairs of draws: its mean gradient is that of sum P log L, exactly."""
    space, x, *_ = single(3)
    with torch.no_grad():
        space.set(None)
        wanted = space.graph(x) + 0.01
    logits = [role.mixture.logits for role in space.roles]
    choices = list(itertools.product(*(range(len(one)) for one in logits)))

    def log_of(chosen):
        return torch.stack([one.log_softmax(0)[k] for one, k in zip(logits, chosen, strict=True)]).sum()

    exact = torch.zeros(())
    for chosen in choices:
        space.set(list(chosen))
        with torch.no_grad():
            loss = search.distance(space.graph(x), wanted).log()
        exact = exact + log_of(chosen).exp() * loss
    total = torch.zeros(())
    for pair in itertools.product(choices, repeat=2):
        drawn = iter([(list(chosen), log_of(chosen)) for chosen in pair])
        monkeypatch.setattr(search, "draw", lambda _, drawn=drawn: next(drawn))
        total = total + (log_of(pair[0]) + log_of(pair[1])).exp().detach() * search.expected(space, x, wanted)
    for mine, right in zip(*(torch.autograd.grad(one, logits) for one in (total, exact)), strict=True):
        torch.testing.assert_close(mine, right, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_draws_move_the_logits():
    trace = run().trace
    assert any(step.terms["policy"] != 0 for step in trace if step.stage == "draws")


@pytest.mark.parametrize("algorithm", ["greedy", "uniform", "random"])
def test_the_trace_of_what_learns_nothing_is_what_was_tried(algorithm):
    outcome = run(algorithm=algorithm)
    losses = [step.terms["distance"] for step in outcome.trace]
    assert {step.stage for step in outcome.trace} == {"tried"} and all(loss > 0 for loss in losses)
    assert len(losses) == len(set(step.index for step in outcome.trace)) >= len(QUICK["candidates"])
    assert outcome.losses["kept"] in losses and outcome.losses["uniform"] in losses
    if algorithm != "random":
        assert outcome.losses["kept"] == min(losses)


@pytest.mark.slow
def test_super_resolution():
    task = lab.tasks.photos(2, patch=32, batch_size=2)
    outcome = run(task, steps=4)
    assert outcome.report["psnr"].after > 25 and outcome.losses["kept"] <= outcome.losses["uniform"]


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["layers", "full"])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_exported_network_answers_alike(placement, bits, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    from lab.core.onnx.runtime import Deployed

    task = lab.tasks.scenes()
    outcome = run(
        task,
        placement=placement,
        weight_bits=bits,
        activation_bits=bits,
        candidates=("max", "mse"),
        algorithm="uniform",
    )
    x = lab.tasks.scenes_data()[2][:64]
    outputs = Deployed(outcome.export(tmp_path / "net.onnx"))(x)
    with torch.no_grad():
        assert (outputs.argmax(1) == outcome.model(x).argmax(1)).float().mean() > 0.95
    assert max(row.steps for row in outcome.parity()) <= 1
    if placement == "full":
        assert outcome.fusion().share >= 0.8, outcome.fusion()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_zero_point_of_its_own(bits):
    """Pictures mostly above 0: an asymmetric grid is finer, and onnxruntime and torch say the same."""
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    task = small_task()
    shifted = [(x + 2, y) for x, y in task.batches]
    task = lab.Task(model=task.model, batches=shifted, score=task.score)
    fields = {"weight_bits": 8, "activation_bits": bits, "ends": bits, "algorithm": "uniform", "candidates": ("mse",)}
    even, uneven = (run(task, scales=one, **fields) for one in ("tensor", "uneven"))
    assert uneven.choices["head"]["scale"] < 0.8 * even.choices["head"]["scale"]
    assert even.choices["head"]["zero_point"] == 128 and 0 < uneven.choices["head"]["zero_point"] < 2**bits * 0.4
    assert max(row.steps for row in uneven.parity()) <= 1


@pytest.mark.slow
def test_a_recipe_as_json(tmp_path):
    outcome = run()
    assert json.loads(outcome.write_recipe(tmp_path / "net.json").read_text()) == outcome.choices


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("step", torch.ones(2, 2)), ("step", float("nan")), ("step", -0.5), ("step", "x"), ("low", 1), ("low", 0.5),
        ("high", -1), ("high", 2**40), ("zero", None), ("zero", -1), ("low", True),
    ],
)  # fmt: skip
def test_a_grid_that_is_none_is_refused_in_one_line(part, value):
    grid = {"step": 0.5, "low": -7, "high": 7, "zero": 128}
    assert outcome_module._from_dict(grid).range == (-3.5, 3.5)
    with pytest.raises(ValueError, match="a grid of this outcome is damaged"):
        outcome_module._from_dict({**grid, part: value})


@pytest.mark.slow
def test_a_network_of_ones_own_is_stored(tmp_path):
    outcome = run()
    outcome.save(tmp_path)
    with pytest.raises(ValueError, match="give base=net"):
        lab.load(tmp_path)
    loaded = lab.load(tmp_path, base=AllLayers())
    x = small_task().example
    assert torch.equal(loaded.model(x), outcome.model(x)) and loaded.choices == outcome.choices


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{}, {"mode": "aware", "candidates": (), "algorithm": "dqss"}], ids=["post", "aware"]
)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, monkeypatch, fields):
    uninterrupted = run(**fields)

    class Kill(Exception):
        pass

    monkeypatch.setattr("lab.core.training.SAVE_SECONDS", 0.0)
    original, calls = store.save, []

    def save(*args):
        original(*args)
        calls.append(args)
        if len(calls) == 4:
            raise Kill

    monkeypatch.setattr(store, "save", save)
    recipe = lab.DQSS(**{**QUICK, **fields})
    with pytest.raises(Kill):
        recipe.run(small_task(), progress=False, checkpoint=tmp_path)
    monkeypatch.setattr(store, "save", original)
    resumed = recipe.run(small_task(), progress=False, checkpoint=tmp_path)
    assert (
        resumed.trace == uninterrupted.trace
        and resumed.report == uninterrupted.report
        and resumed.choices == uninterrupted.choices
    )


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_candidate_that_finds_no_range_drops_out_with_a_note():
    task = small_task()
    nn.init.zeros_(task.model.deep.weight)
    nn.init.zeros_(task.model.deep.bias)
    outcome = run(task)
    assert any(note.startswith("deep, weights: no range from ") for note in outcome.report.notes)
    assert torch.isfinite(outcome.model(task.example)).all() and not outcome.model.deep.weight.any()


class ZeroLast(nn.Module):
    """A residual block whose last layer begins at 0, and a layer that gives nothing but 0."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.f = nn.Linear(8, 5)
        nn.init.zeros_(self.c.weight)
        nn.init.zeros_(self.c.bias)

    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.f(torch.relu(x + self.c(torch.relu(self.b(x)))).mean((2, 3)))


def zero_last() -> lab.Task:
    task = small_task()
    with seeded(0):
        net = ZeroLast().eval()
    return lab.Task(model=net, batches=task.batches, score=task.score)


@pytest.mark.parametrize("kind", ["dorefa", "lsq", "lsq+", "dsq", "tqt", "pams"])
def test_a_layer_that_begins_at_0_can_be_trained_by_every_strategy(kind):
    """It answers 0 at first, has a gradient, and afterwards answers something else."""
    task = zero_last()
    fields = {"mode": "aware", "weight_bits": 8, "activation_bits": 8, "candidates": (kind,), "algorithm": "dqss"}
    outcome = run(task, **fields, steps=6, lr=0.5, remedies=())
    x = task.example
    assert torch.isfinite(outcome.model(x)).all()
    assert outcome.model.c.weight.abs().max() > 1e-3


@pytest.mark.parametrize("scales", ["tensor", "channel"])
def test_channels_of_zeros_leave_the_others_as_they_are(scales):
    """Norms that training shut, folded: no strategy has a range for their channels, and all have for the rest."""
    task = small_task()
    task.model.norm.weight.data[::3] = 0
    task.model.norm.bias.data.uniform_(0.3, 1.5, generator=torch.Generator().manual_seed(0))
    outcome = run(task, weight_bits=8, activation_bits=8, scales=scales)
    x = task.example
    with torch.no_grad():
        lost = (outcome.model(x) - task.model(x)).abs().max() / task.model(x).abs().max()
    assert float(lost) < 0.05
    assert not any("no range" in note for note in outcome.report.notes)


def test_one_element_and_constant_tensors():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(4, 2))
    x = [(torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1]))] * 4
    outcome = run(lab.Task(model=net, batches=x, score=lab.tasks.accuracy(x)))
    assert torch.isfinite(outcome.model(x[0][0])).all()


def test_nan_pictures_and_nothing_to_quantise_are_one_line():
    task = small_task()
    late = [*task.batches[:1], (torch.full((4, 3, 8, 8), torch.nan), torch.arange(4))]
    with pytest.raises(ValueError, match=r"^calibration: the pictures hold NaN .*clean Task.batches first$"):
        run(lab.Task(model=task.model, batches=late, score=task.score))
    norm = lab.Task(model=nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).eval(), batches=task.batches, score=lambda _: 0.0)
    with pytest.raises(ValueError, match="has no Conv2d, ConvTranspose2d or Linear: there is nothing to quantise"):
        run(norm)
    with pytest.raises(ValueError, match=r"DQSS: candidates=\('lsq',\) is not allowed: give any of 'max'"):
        lab.DQSS(candidates=("lsq",))
    with pytest.raises(ValueError, match="the paper's two uses are ptq, qat"):
        lab.DQSS.paper("resnet")


def test_descent_asks_only_for_what_is_new():
    task, recipe = small_task(), lab.DQSS(**QUICK)
    graph = fold_batch_norms(task.model, task.example)
    with torch.no_grad():
        space = StrategySpace(graph, recipe, task.example)
        wanted = fold_batch_norms(task.model, task.example)(task.example)
    objective = search.Objective(space, [(task.example, wanted)])
    best, _ = search.uniform(objective)
    kept = search.descent(objective, best)
    asked = objective.asked
    assert objective(kept) <= objective(best) and objective.asked == asked


def test_off_the_processor_a_mixture_is_not_cut_up():
    assert layers._chunk(torch.empty(3 * layers.CHUNK, device="meta")) == 3 * layers.CHUNK
    assert layers._chunk(torch.empty(3 * layers.CHUNK)) == layers.CHUNK


def test_a_high_temperature_compares_logits():
    z, target = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = torch.nn.functional.kl_div(z.log_softmax(1), target.softmax(1), reduction="batchmean")
    assert float(search.distance(z, target)) == pytest.approx(float(plain))
    variance = 0.5 * (z - target).var(1, correction=0).mean()
    assert float(search.distance(z, target, 1000.0)) == pytest.approx(float(variance), rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dqss_safe", "uniform"])
def test_losses_are_told_at_the_temperature(algorithm):
    outcome = run(algorithm=algorithm, temperature=8.0, weight_bits=3, activation_bits=3)
    task = small_task()
    teacher, x = fold_batch_norms(task.model, task.example), torch.cat([batch[0] for batch in task.batches])[:8]
    with torch.no_grad():
        apart = search.distance(outcome.model(x), teacher(x), 8.0)
    assert outcome.losses["kept"] == pytest.approx(float(apart), rel=1e-4)
