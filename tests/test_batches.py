"""Whatever form a batch has, a method learns the same from it; dense labels, and losses of model and batch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lab
from lab.core.data.text import perplexity
from lab.core.finetune import finetune
from lab.core.graph.tracing import trace

from .test_contract import SMALL, net

PICTURES = [name for name in SMALL if name != "FoldGPT"]
RECIPES = {name: recipe for name, (recipe, _) in SMALL.items()}


def run(name: str, task: lab.Task):
    return RECIPES[name].run(task, progress=False)


def pairs(name: str) -> list:
    """The first batches of the method's small task, (x, y)."""
    return [tuple(batch) for batch in SMALL[name][1]().batches]


def own(name: str, batches: list, **fields) -> lab.Task:
    made = SMALL[name][1]()
    return lab.Task(model=made.model, batches=batches, score=made.score, metric=made.metric, unit=made.unit, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_dictionaries_and_keys_are_pairs(name):
    data = pairs(name)
    forms = [
        own(name, data),
        own(name, [{"pixel_values": x, "labels": y} for x, y in data]),
        own(name, [(k, y, x) for k, (x, y) in enumerate(data)], inputs=2, labels=lambda batch: batch[1]),
    ]
    plain, *others = (run(name, task) for task in forms)
    for other in others:
        assert other.trace == plain.trace
        assert [row for row in other.report.rows if row.kind != "timed"] == [
            row for row in plain.report.rows if row.kind != "timed"
        ]


class Segmenter(nn.Module):
    """Five classes a pixel, in a dictionary, as segmentation nets answer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = (
            nn.Conv2d(1, 6, 3, padding=1),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.Conv2d(6, 5, 1),
        )

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return {"out": self.head(torch.relu(self.body(x)))}


def dense(count: int = 3) -> list:
    draw = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        x, y = torch.randn(4, 1, 8, 8, generator=draw), torch.randint(5, (4, 8, 8), generator=draw)
        y[:, :2] = -100
        batches.append({"pixel_values": x, "labels": y})
    return batches


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GAL", "SparseByteNN", "DQSS"])
def test_a_segmenter_with_ignored_pixels(name):
    data = dense()
    torch.manual_seed(0)
    task = lab.Task(model=Segmenter(), batches=data, score=lab.tasks.accuracy(data))
    outcome = run(name, task)
    assert all(torch.isfinite(torch.tensor(list(step.terms.values()))).all() for step in outcome.trace)
    assert outcome.model(data[0]["pixel_values"])["out"].shape == (4, 5, 8, 8)
    own_loss = lab.Task(
        model=task.model, batches=data, score=task.score,
        loss=lambda output, y: F.cross_entropy(output["out"], y, ignore_index=-100),
    )  # fmt: skip
    assert run(name, own_loss).trace == outcome.trace


def test_decoupling_asks_for_a_class_a_picture():
    data = dense()
    task = lab.Task(model=Segmenter(), batches=data, score=lab.tasks.accuracy(data))
    with pytest.raises(ValueError, match=r"decoupling needs class scores of shape \(N, classes\)") as caught:
        run("Decoupling", task)
    assert "\n" not in str(caught.value)


class Detector(nn.Module):
    """Two heads, classes and boxes of one object a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, stride=2)
        self.classes, self.boxes = nn.Linear(6, 3), nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.body(torch.relu(self.stem(x)))).mean((2, 3))
        return self.classes(x), self.boxes(x)


def objects(count: int = 3) -> list:
    draw = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(4, 1, 8, 8, generator=draw),
            [{"class": torch.tensor(k % 3), "box": torch.rand(4, generator=draw)} for k in range(4)],
        )
        for _ in range(count)
    ]


def detection(output, targets) -> torch.Tensor:
    classes, boxes = output
    wanted = torch.stack([target["box"] for target in targets])
    return F.cross_entropy(classes, torch.stack([t["class"] for t in targets])) + F.l1_loss(boxes, wanted)


def found(data: list):
    """A score: minus the detection loss."""
    return lambda model: -sum(float(detection(model(x), targets)) for x, targets in data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GAL", "SparseByteNN", "DQSS"])
def test_a_detector_learns_by_a_loss_of_ones_own(name):
    data = objects()
    torch.manual_seed(0)
    model, fields = Detector(), {"batches": data, "score": found(data), "metric": "loss", "unit": ""}
    by_output = run(name, lab.Task(model=model, loss=detection, **fields))
    by_batch = run(
        name, lab.Task(model=model, batch_loss=lambda net, batch: detection(net(batch[0]), batch[1]), **fields)
    )
    assert by_output.trace == by_batch.trace
    assert any(step.stage in ("finetune", "prune", "aware", "search", "soft", "restart") for step in by_batch.trace)


@pytest.mark.slow
def test_decoupling_learns_by_a_loss_of_model_and_batch():
    data = pairs("Decoupling")
    plain = run("Decoupling", own("Decoupling", data))
    by_batch = own("Decoupling", data, batch_loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    assert run("Decoupling", by_batch).trace == plain.trace
    boxes = [(x, [{"class": label} for label in y]) for x, y in data]
    task = own("Decoupling", boxes, batch_loss=lambda model, batch: model(batch[0]).square().mean())
    with pytest.raises(ValueError, match=r"target='label': the labels of Task\.batches are list, not one class number"):
        run("Decoupling", task)


@pytest.mark.slow
def test_a_language_model_learns_from_dictionaries():
    x = list(SMALL["FoldGPT"][1]().batches)
    made = SMALL["FoldGPT"][1]()

    def folded(batches):
        return run(
            "FoldGPT", lab.Task(model=made.model, batches=batches, score=perplexity(batches), metric="perplexity")
        )

    plain, named = folded(x), folded([{"input_ids": ids} for ids in x])
    assert named.trace == plain.trace and named.ranking == plain.ranking
    full = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids} for ids in x]
    for a, b in zip(folded(full).trace, plain.trace, strict=True):
        assert a.terms == pytest.approx(b.terms, rel=1e-4)
    padded = [_padded(batch, 5) for batch in full]  # what stands behind the text counts for nothing
    for a, b in zip(folded(padded).trace[3:], plain.trace[3:], strict=True):
        assert a.terms["text"] == pytest.approx(b.terms["text"], rel=1e-2)


def _padded(batch: dict, count: int) -> dict:
    fill = {"input_ids": 7, "attention_mask": 0, "labels": -100}
    return {name: F.pad(value, (0, count), value=fill[name]) for name, value in batch.items()}


def test_several_inputs_are_told_in_one_line():
    data = [{"a": x, "b": x, "labels": y} for x, y in pairs("GAL")]

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, a, b):
            return self.net(a + b)

    task = lab.Task(model=Two(), batches=data, score=lambda model: 0.0)
    for name in ("Decoupling", "PAMS"):
        with pytest.raises(ValueError, match=f"gives the model 2 inputs, {name} takes networks of one"):
            run(name, task)


# -- frozen parameters and half precision ------------------------------------------------------------------------------

KEPT = {  # recipes that leave the numbers of a layer as they are where they do not train it
    "Decoupling": lab.Decoupling(steps=4, lam_s=0.0),
    "SparseByteNN": lab.SparseByteNN(steps=4, sparsity=0.0, search="none"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_what_is_frozen_is_not_trained_and_all_is_where_all_is_frozen(name):
    model, data = net(), pairs(name)
    weight, last = model[0].weight.detach().clone(), model[5].weight.detach().clone()
    for frozen, same in ((model[:4], True), (model, False)):
        frozen.requires_grad_(False)
        task = lab.Task(model=model, batches=data, score=lab.tasks.accuracy(data))
        trained = KEPT[name].run(task, progress=False).model
        assert (trained.get_parameter("0.weight").shape == weight.shape) and (
            torch.equal(trained.get_parameter("0.weight"), weight) == same
        )
        assert not torch.equal(trained.get_parameter("5.weight"), last)


def test_fine_tuning_leaves_frozen_parameters():
    model, data = net(), pairs("GAL")
    model[0].requires_grad_(False)
    task = lab.Task(model=model, batches=data, score=lab.tasks.accuracy(data))
    graph = trace(model, task.example)
    before = {name: p.detach().clone() for name, p in graph.named_parameters()}
    finetune(task, graph, steps=3, lr=0.1, progress=False)
    moved = {name for name, p in graph.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.startswith("0.")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GAL", "Decoupling", "SparseByteNN"])
def test_bfloat16_is_trained_in_bfloat16(name):
    data = [(x.bfloat16(), y) for x, y in pairs(name)]
    task = lab.Task(model=net().bfloat16(), batches=data, score=lab.tasks.accuracy(data))
    outcome = run(name, task)
    assert {p.dtype for p in outcome.model.parameters()} == {torch.bfloat16}
    output = outcome.model(data[0][0])
    assert output.dtype == torch.bfloat16 and torch.isfinite(output).all()
    assert all(torch.isfinite(torch.tensor(list(step.terms.values()))).all() for step in outcome.trace)


@pytest.mark.parametrize("name", ["DQSS", "PAMS"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_quantisation_wants_single_precision(name, dtype):
    made = own(name, [(x.to(dtype), y.to(dtype) if name == "PAMS" else y) for x, y in pairs(name)])
    made.model.to(dtype)
    task = lab.Task(model=made.model, batches=made.batches, score=lambda model: 0.0)
    with pytest.raises(ValueError, match=r"is in b?float16, too coarse to quantise: give model\.float") as caught:
        run(name, task)
    assert "\n" not in str(caught.value)
