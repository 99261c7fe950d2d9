"""Networks of several inputs through each recipe that takes them: run, saved, loaded, and as ONNX of two inputs."""

import pytest
import torch
from torch import nn

import lab
from lab.core.batch import call, joined, shapes_of, split, zeros_of
from lab.core.training import seeded

RECIPES = {
    "GAL": lab.GAL(
        units=("channel", "stream"), steps=12, lam=2.0, mask_every=1, finetune_steps=2, released="uniform_masks"
    ),
    "SparseByteNN": lab.SparseByteNN(steps=4, sparsity=0.5),
    "DQSS": lab.DQSS(steps=3, calibration=8, candidates=("max", "mse"), placement="full"),
    "DQSS aware": lab.DQSS(steps=3, calibration=8, mode="aware", candidates=("dorefa", "lsq")),
}


class Two(nn.Module):
    """A picture and a short vector, which meet as a sum of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.embed, self.hidden, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, image, vector):
        x = torch.relu(self.body(torch.relu(self.stem(image)))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x + torch.relu(self.embed(vector)))))


def model() -> Two:
    with seeded(0):
        return Two().eval()


def batches(form: str) -> list:
    draw = torch.Generator().manual_seed(1)
    drawn = [
        (torch.randn(4, 3, 6, 6, generator=draw), torch.randn(4, 5, generator=draw), torch.arange(4)) for _ in range(3)
    ]
    if form == "tuple":
        return drawn
    return [{"vector": vector, "image": image, "labels": y} for image, vector, y in drawn]  # in another order


def task(form: str) -> lab.Task:
    data = batches(form)
    takes = {"inputs": lambda batch: batch[:2], "labels": 2} if form == "tuple" else {}

    def score(net) -> float:
        pairs = [(made.inputs_of(batch), made.labels_of(batch)) for batch in data]
        return 100 * sum(float((call(net, x).argmax(1) == y).float().mean()) for x, y in pairs) / len(pairs)

    made = lab.Task(model=model(), batches=data, score=score, **takes)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_inputs_are_run_stored_and_written(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    outcomes = {form: RECIPES[name].run(task(form), progress=False) for form in ("tuple", "dictionary")}
    positional, named = outcomes.values()
    assert positional.trace == named.trace
    x = task("tuple").example
    by_name = dict(zip(("image", "vector"), x, strict=True))
    for form, outcome in outcomes.items():
        assert not any("fail" in note for note in outcome.report.notes), outcome.report.notes
        outcome.save(tmp_path / form)
        loaded = lab.load(tmp_path / form, base=model())
        with torch.no_grad():
            wanted = outcome.model(**by_name)
            assert torch.equal(loaded.model(**by_name), wanted)
        path = loaded.export(tmp_path / f"{form}.onnx")
        session = runtime.InferenceSession(path.read_bytes())
        assert {end.name for end in session.get_inputs()} == {"image", "vector"}
        (output,) = session.run(None, {key: part.numpy() for key, part in by_name.items()})
        apart = (torch.from_numpy(output) - wanted).abs().max() / wanted.abs().max()
        assert apart < (0.1 if "DQSS" in name else 1e-5)  # of DQSS, products that round to another code
        if "DQSS" in name:
            assert max(row.steps for row in loaded.parity()) <= 1
            assert set(loaded.race(model(), repeats=3)) == {"fp32", "int8"}


@pytest.mark.slow
def test_gal_cuts_what_two_inputs_share():
    outcome = RECIPES["GAL"].run(task("tuple"), progress=False)
    assert outcome.report["parameters"].after < outcome.report["parameters"].before
    assert outcome.model.body.out_channels == outcome.model.embed.out_features < 8


@pytest.mark.slow
def test_the_engine_of_sparsebytenn_reads_as_many_inputs_as_the_network():
    data = task("tuple")
    outcome = RECIPES["SparseByteNN"].run(data, progress=False)
    engine, inputs = outcome.engine(measure=False), data.inputs_of(next(iter(data.batches)))
    assert outcome.report["packed bytes"].after and torch.allclose(engine(*inputs), outcome.model(*inputs), atol=1e-4)


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(1, 3, 4, 4),
        torch.zeros(1, 7, dtype=torch.int64),
        (torch.zeros(1, 2), torch.zeros(1, 3, dtype=torch.bool)),
        {"a": torch.zeros(1, 2, dtype=torch.bfloat16), "dtype": torch.zeros(1)},
    ],
    ids=str,
)
def test_an_example_is_stored_as_shapes(example):
    shapes = shapes_of(example)
    made = zeros_of(list(shapes) if isinstance(shapes, tuple) else shapes)
    assert type(made) is type(example)
    assert [*map(str, _tensors(made))] == [*map(str, _tensors(example))]


def _tensors(example) -> list:
    return list(example.values()) if isinstance(example, dict) else [*example] if type(example) is tuple else [example]


@pytest.mark.parametrize("form", ["tuple", "dictionary"])
def test_batches_of_several_inputs_are_joined_and_split(form):
    made = task(form)
    parts = [made.inputs_of(batch) for batch in made.batches]
    whole = joined(parts)
    again = joined(split(whole, 5))
    assert [len(_tensors(part)[0]) for part in split(whole, 5)] == [5, 5, 2]
    assert type(again) is type(parts[0]) and all(map(torch.equal, _tensors(again), _tensors(whole)))
