"""A chain's folder: one subfolder a stage, read again without its earlier networks; what is wrong is one line."""

import dataclasses
import json
import os
import shutil

import pytest
import torch

import lab
from lab.chain import Chain
from lab.chain.loading import report_of
from lab.core import store

from .small import QUICK, halved, net, pictures, widened


@pytest.fixture(scope="module")
def outcome():
    return Chain(QUICK["GAL"], halved, QUICK["SparseByteNN"], QUICK["DQSS"]).run(pictures(), progress=False)


def test_save_and_load(outcome, tmp_path):
    outcome.save(tmp_path / "chain")
    assert sorted(path.name for path in (tmp_path / "chain").iterdir() if path.is_dir()) == [
        "1-GAL", "2-halved", "3-SparseByteNN", "4-DQSS",
    ]  # fmt: skip
    loaded = lab.load(tmp_path / "chain", base=net())
    assert type(loaded) is type(outcome) and loaded.recipe == outcome.recipe
    assert loaded.report.to_dict() == outcome.report.to_dict() and repr(loaded) == repr(outcome)
    assert loaded.trace == outcome.trace and loaded.example == outcome.example
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        for one, other in zip(loaded.outcomes, outcome.outcomes, strict=True):
            assert torch.equal(one.model(x), other.model(x))
    loaded.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "chain")
    with pytest.raises(ValueError, match="'halved' is a function of your own"):
        loaded.recipe.run(pictures(), progress=False)


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_network_of_the_labs_needs_no_base(tmp_path):
    model = lab.nets.resnet_cifar(8, channels=1).eval()
    task = dataclasses.replace(pictures(), model=model)
    made = Chain(halved, QUICK["SparseByteNN"], QUICK["DQSS"]).run(task, progress=False)
    made.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(lab.load(tmp_path).model(task.example), made.model(task.example))


@pytest.mark.slow
def test_a_function_that_makes_another_structure_is_given_again(tmp_path):
    made = Chain(widened, QUICK["DQSS"]).run(pictures(), progress=False)
    made.save(tmp_path)
    with pytest.raises(ValueError, match=r"'widened' is a function .* base=\{'widened': widened\}") as caught:
        lab.load(tmp_path, base=net())
    assert "\n" not in str(caught.value)
    loaded = lab.load(tmp_path, base={"start": net(), "widened": widened})
    x = pictures().example
    with torch.no_grad():
        assert torch.equal(loaded.model(x), made.model(x))
    with pytest.raises(ValueError, match="'widened' made another network than it makes now"):
        lab.load(tmp_path, base={"start": net(), "widened": lambda model: torch.nn.Sequential(widened(model))})


@pytest.mark.slow
def test_a_class_of_ones_own_is_loaded_from_its_programs(tmp_path):
    made = Chain(halved, QUICK["SparseByteNN"], QUICK["DQSS"]).run(pictures(), progress=False)
    made.save(tmp_path / "bare")
    with pytest.raises(ValueError, match="made from a network of your own: give base=net"):
        lab.load(tmp_path / "bare")
    made.save(tmp_path / "programs", source=True)
    loaded = lab.load(tmp_path / "programs")
    loaded.save(tmp_path / "again")
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        for outcome in (loaded, lab.load(tmp_path / "again")):
            assert torch.equal(outcome.model(x), made.model(x))
            assert outcome.report.to_dict() == made.report.to_dict() and outcome.recipe == made.recipe
        assert torch.equal(lab.load(tmp_path / "programs", base=net()).model(x), made.model(x))


@pytest.mark.slow
def test_a_chain_that_goes_on_from_an_outcome_holds_it(outcome, tmp_path):
    task = dataclasses.replace(pictures(), model=lab.nets.resnet_cifar(8, channels=1).eval())
    first = QUICK["GAL"].run(task, progress=False)
    chain = Chain(halved, QUICK["SparseByteNN"], QUICK["DQSS"])
    for _ in range(2):  # the second run finds all in the checkpoint
        made = chain.run(first.task(task), progress=False, checkpoint=tmp_path / "checkpoint")
    made.save(tmp_path / "chain")
    assert (tmp_path / "chain" / "1-halved" / "base" / "outcome.json").is_file()
    loaded = lab.load(tmp_path / "chain")
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), made.model(x))
        assert torch.equal(loaded.outcomes[0].origin.model(x), first.model(x))
    by_hand = QUICK["DQSS"].run(outcome.outcomes[0].task(pictures()), progress=False)  # of a stage, too
    assert by_hand.origin is outcome.outcomes[0]


def test_its_card_says_what_it_is(outcome, tmp_path):
    outcome.save(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "|  | start | 1 GAL | 2 halved | 3 SparseByteNN | 4 DQSS | unit |" in card
    row = outcome.report["bytes"]
    assert f"| bytes | {' | '.join(map(row.shown, row.values))} | B |" in card


def test_a_shorter_chain_takes_the_folder_of_a_longer_one(outcome, tmp_path):
    outcome.save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "figures").mkdir()
    Chain(halved).run(pictures(), progress=False).save(tmp_path)
    kept = {path.name.partition(".")[0].partition("-")[0] for path in tmp_path.iterdir()}
    assert kept == {"1", "README", "figures", "notes", "outcome"} and (tmp_path / "1-halved").is_dir()
    outcome.outcomes[0].save(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("1-")]


def damaged(folder, change) -> str:
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        lab.load(folder, base=net())
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def swapped(folder):
    for name, other in (("1-GAL", "x"), ("3-SparseByteNN", "1-GAL"), ("x", "3-SparseByteNN")):
        os.rename(folder / name, folder / other)


def edited(change):
    """What writes the chain's tree anew, its digests right."""

    def write(folder):
        tree = store.load(folder, "outcome")
        change(tree)
        store.save(folder, "outcome", tree)

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "3-SparseByteNN"), "damaged"),
        (swapped, "is damaged"),
        (lambda folder: (folder / "4-DQSS" / "outcome.json").write_text("{}"), "does not match its SHA-256"),
        (edited(lambda tree: tree["fields"].update(stages=[])), "damaged"),
        (
            edited(lambda tree: tree["fields"].update(stages=["4-DQSS", "1-GAL"])),
            "is not the network that was quantised",
        ),
        (edited(lambda tree: tree["fields"].update(stages=["1-GAL", "4-DQSS"])), "damaged"),
        (edited(lambda tree: tree["fields"].update(stages=5)), "damaged"),
        (edited(lambda tree: tree["fields"].update(stages=["../chain/1-GAL"])), "lies outside of it"),
        (edited(lambda tree: tree.pop("report")), "damaged (no report)"),
        (edited(lambda tree: tree["report"].pop("columns")), "damaged"),
        (edited(lambda tree: tree["fields"].update(stages=["../1-GAL"])), "lies outside of it"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(outcome, tmp_path, change, words):
    outcome.save(tmp_path / "chain")
    assert words in damaged(tmp_path / "chain", change)


def test_a_folder_of_a_newer_version_is_refused_in_one_line(outcome, tmp_path):
    outcome.save(tmp_path)
    path = tmp_path / "outcome.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    assert "has format 99" in damaged(tmp_path, lambda folder: None)
    with pytest.raises(ValueError, match="has format 99"):
        report_of(tmp_path)


def test_the_report_is_read_without_a_network(outcome, tmp_path):
    outcome.save(tmp_path / "chain")
    assert report_of(tmp_path / "chain").to_dict() == outcome.report.to_dict()
    outcome.outcomes[0].save(tmp_path / "gal")
    assert report_of(tmp_path / "gal").to_dict() == outcome.outcomes[0].report.to_dict()
    store.save(tmp_path / "gal", "outcome", {"recipe": "GAL"})
    with pytest.raises(ValueError, match="damaged"):
        report_of(tmp_path / "gal")


def test_what_comes_out_runs_in_the_engine_and_as_onnx(outcome, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        wanted = outcome.model(x)
    assert float((outcome.engine(measure=False)(x) - wanted).abs().max()) < 0.1 * float(wanted.abs().max())
    path = outcome.export(tmp_path / "chain.onnx")
    (output,) = runtime.InferenceSession(path.read_bytes()).run(None, {"input": x.numpy()})
    assert float((torch.from_numpy(output) - wanted).abs().max()) < 0.1 * float(wanted.abs().max())


@pytest.mark.slow
def test_a_path_that_ends_in_pt2_is_a_program_of_the_last_network(outcome, tmp_path):
    program = torch.export.load(outcome.export(tmp_path / "chain.pt2")).module()
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(program(x), outcome.model(x))
