"""What is saved is read again without its base, bit for bit: by name, with what it was made from, or as a program."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lab
from lab.core import store
from lab.core.batch import tensors
from lab.core.data.text import perplexity
from lab.core.outcome import NeedsBaseError, load_weights, origin_of
from lab.core.program import NoStructureError, Program
from lab.core.training import seeded
from tests.core.test_origins import networks, torchvision  # noqa: F401  # the fixture
from tests.foldgpt import small as language
from tests.formats import Own
from tests.pams import small as restoring

RECIPES = {
    "GAL": lab.GAL(units="channel", steps=2, finetune_steps=1),
    "Decoupling": lab.Decoupling(steps=2),
    "SparseByteNN": lab.SparseByteNN(steps=2),
    "DQSS": lab.DQSS(steps=2, calibration=4, candidates=("max", "mse")),
    "PAMS": lab.PAMS(steps=2, calibration=1),
    "FoldGPT": lab.FoldGPT(removal=1 / 6, sharing=1 / 6, rank=2, gate_steps=2, cure_steps=2),
}
CLASSIFYING = ["GAL", "SparseByteNN", "DQSS", pytest.param("Decoupling", marks=pytest.mark.slow)]


def classifying(model: nn.Module, side: int = 8, channels: int = 1) -> lab.Task:
    with seeded(1):
        x, y = torch.randn(12, channels, side, side), torch.arange(12) % 3
    return lab.Task(
        model=model, batches=DataLoader(TensorDataset(x, y), 4), score=lab.tasks.accuracy([(x, y)]), name="small"
    )


def own() -> nn.Module:
    with seeded(0):
        return Own()


def ours() -> nn.Module:
    with seeded(0):
        return lab.nets.resnet_cifar(depth=8, classes=3)


def task_of(name: str) -> lab.Task:
    """A task of a network of the lab's, or of transformers, for the method."""
    if name == "FoldGPT":
        x = [language.tokens(2, 12)]
        return lab.Task(model=language.model("llama"), batches=x, score=perplexity(x), metric="perplexity")
    return restoring.task() if name == "PAMS" else classifying(ours(), 16, 3)


def outputs(outcome: lab.core.outcome.Outcome, task: lab.Task) -> torch.Tensor:
    with torch.no_grad():
        y = outcome.model.eval()(task.inputs_of(task.first_batch()))
    return next(tensors(y))


def reloaded(outcome, task: lab.Task, folder: Path):
    """The outcome read again from its folder alone; its outputs are the same to the last bit, so is what it saves."""
    outcome.save(folder / "a")
    loaded = lab.load(folder / "a")
    assert torch.equal(outputs(loaded, task), outputs(outcome, task))
    assert loaded.report.to_dict() == outcome.report.to_dict() and loaded.made == outcome.made
    loaded.save(folder / "b")
    assert contents(folder / "a") == contents(folder / "b")
    return loaded


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("Decoupling", "FoldGPT"))) for name in RECIPES]
)
def test_a_network_that_a_library_builds_needs_no_base(name, tmp_path):
    task = task_of(name)
    outcome = RECIPES[name].run(task, seed=3, progress=False)
    made = outcome.made
    assert made["seed"] == 3 and made["metric"] == task.metric and made["machine"]["torch"] == torch.__version__
    assert made["network"] == {"FoldGPT": "transformers.LlamaForCausalLM", "PAMS": "lab.nets.edsr"}.get(
        name, "lab.nets.resnet_cifar"
    )
    reloaded(outcome, task, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CLASSIFYING, "PAMS"])
def test_a_network_of_torchvision_needs_no_base(name, torchvision, tmp_path):  # noqa: F811
    with seeded(0):
        model = torchvision.get_model("squeezenet1_1", num_classes=3)
    task = classifying(model, 64, 3)
    if name == "PAMS":  # which learns from pictures, or from the float network's outputs
        task = dataclasses.replace(task, batches=[task.inputs_of(task.first_batch())])
    reloaded(RECIPES[name].run(task, progress=False), task, tmp_path)


def of_transformers() -> lab.Task:
    """A task of a small vision transformer."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    with seeded(0):
        config = ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3)
        return classifying(ViTForImageClassification(config).eval(), 16, 3)


@pytest.mark.parametrize("name", [pytest.param("GAL", marks=pytest.mark.slow), "SparseByteNN", "DQSS"])
def test_a_network_of_transformers_needs_no_base(name, tmp_path):
    task = of_transformers()
    outcome = RECIPES[name].run(task, progress=False)
    assert outcome.base["transformers"] == "ViTForImageClassification"
    reloaded(outcome, task, tmp_path)


@pytest.mark.slow
def test_a_network_of_diffusers_needs_no_base(tmp_path):
    from diffusers import AutoencoderTiny

    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 1)}
    with seeded(0):
        net, x = AutoencoderTiny(**sizes, num_decoder_blocks=(1, 1), latent_channels=4).eval(), torch.rand(2, 3, 16, 16)
    task = lab.Task(model=net, batches=[(x, x)], score=lambda model: 1.0, loss=lambda y, x: (y.sample - x).abs().mean())
    outcome = RECIPES["SparseByteNN"].run(task, progress=False)
    assert outcome.base["diffusers"] == "AutoencoderTiny"
    reloaded(outcome, task, tmp_path)


def test_a_network_in_double_precision_stays_one(tmp_path):
    batches = double(28)
    task = lab.Task(model=lab.nets.lenet(classes=3).double(), batches=batches, score=lab.tasks.accuracy(batches))
    outcome = RECIPES["GAL"].run(task, progress=False)
    loaded = reloaded(outcome, task, tmp_path)
    assert next(loaded.model.parameters()).dtype == torch.float64


def double(side: int) -> list:
    with seeded(1):
        return [(torch.randn(4, 1, side, side, dtype=torch.float64), torch.arange(4) % 3)]


# -- with what it was made from --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFYING)
def test_what_was_made_from_an_outcome_needs_no_base(name, tmp_path):
    task = classifying(ours(), 16, 3)
    first = RECIPES["GAL"].run(task, progress=False)
    follows = first.task(task)
    assert follows.model is first.model and follows.origin is first and follows.score is task.score
    outcome = RECIPES[name].run(follows, progress=False)
    assert outcome.origin is first and outcome.made["network"] == "what GAL made"
    loaded = reloaded(outcome, task, tmp_path)
    assert type(loaded.origin) is type(first) and (tmp_path / "a" / "base" / "outcome.json").is_file()
    assert torch.equal(outputs(loaded.origin, task), outputs(first, task))
    assert not (tmp_path / "a" / "base" / "README.md").exists()


@pytest.mark.slow
def test_three_after_one_another_in_one_folder(tmp_path):
    task = restoring.task()
    outcomes = [RECIPES["GAL"].run(task, progress=False)]
    for name in ("SparseByteNN", "PAMS"):
        outcomes.append(RECIPES[name].run(outcomes[-1].task(task), progress=False))
    loaded = reloaded(outcomes[-1], task, tmp_path)
    assert [type(o).__name__ for o in (loaded, loaded.origin, loaded.origin.origin)] == [
        "PAMSOutcome", "SparseByteNNOutcome", "GALOutcome"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_folded_model_is_whole_without_the_one_before(tmp_path):
    task = task_of("FoldGPT")
    first = dataclasses.replace(RECIPES["FoldGPT"], sharing=0.0).run(task, progress=False)
    second = RECIPES["FoldGPT"].run(first.task(task), progress=False)
    assert second.origin is first
    second.save(tmp_path)
    assert not (tmp_path / "base").exists()
    assert torch.equal(outputs(lab.load(tmp_path), task), outputs(second, task))


def test_the_users_network_at_the_beginning_is_the_base_of_all(tmp_path):
    task = classifying(own())
    first = RECIPES["GAL"].run(task, progress=False)
    second = RECIPES["DQSS"].run(first.task(task), progress=False)
    second.save(tmp_path)
    with pytest.raises(NeedsBaseError, match=r"of your own: give base=net, .* and what was saved with") as told:
        lab.load(tmp_path)
    assert "\n" not in str(told.value)
    loaded = lab.load(tmp_path, base=Own())
    assert torch.equal(outputs(loaded, task), outputs(second, task))
    with pytest.raises(ValueError) as told:
        lab.load(tmp_path, base=lab.nets.lenet())
    assert "\n" not in str(told.value)


def test_another_network_is_not_what_the_outcome_made():
    task = classifying(own())
    outcome = RECIPES["GAL"].run(task, progress=False)
    follows = outcome.task(task)
    assert dataclasses.replace(follows, name="another").origin is outcome
    assert dataclasses.replace(follows, model=own()).origin is None
    assert "origin" not in repr(follows)


def test_what_cannot_be_handed_on():
    outcome = lab.load(Path(__file__).parents[1] / "data" / "formats" / "format-2" / "hyperfd")  # holds no network
    for call in (lambda: outcome.task(classifying(own())), lambda: outcome.task(None)):
        with pytest.raises(TypeError) as caught:
            call()
        assert "\n" not in str(caught.value)


# -- as a program ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CLASSIFYING, pytest.param("PAMS", marks=pytest.mark.slow)])
def test_a_class_of_the_users_own_is_read_from_its_program(name, tmp_path):
    task = restored_task() if name == "PAMS" else classifying(own())
    outcome = RECIPES[name].run(task, progress=False)
    outcome.save(tmp_path / "plain")
    with pytest.raises(NeedsBaseError):
        lab.load(tmp_path / "plain")
    outcome.save(tmp_path / "source", source=True)
    assert {path.name for path in (tmp_path / "source").iterdir()} >= {"outcome.json", "model.pt2", "README.md"}
    loaded = lab.load(tmp_path / "source")
    x = task.inputs_of(task.first_batch())
    assert isinstance(loaded.model, Program)
    for part in (x, x[:1]):
        with torch.no_grad():
            assert torch.equal(loaded.model(part), outcome.model(part))
    assert loaded.report == outcome.report and loaded.trace == outcome.trace
    loaded.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "source")
    with pytest.raises(ValueError, match=r"call lab\.load") as caught:
        loaded.task(task)
    assert "\n" not in str(caught.value)
    base = restored_task().model if name == "PAMS" else Own()
    assert not isinstance(lab.load(tmp_path / "source", base=base).model, Program)


def restored_task() -> lab.Task:
    """A task of restoring with a network that is the user's own: EDSR without its description."""
    net = restoring.edsr()
    del net.config
    return restoring.task(net)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        pytest.param("Decoupling", lambda outcome, folder: outcome.skipping(), marks=pytest.mark.slow),
        ("Decoupling", lambda outcome, folder: outcome.seen.numbers),
        pytest.param("Decoupling", lambda outcome, folder: lab.view(outcome), marks=pytest.mark.slow),
        ("PAMS", lambda outcome, folder: outcome.alphas()),
        ("PAMS", lambda outcome, folder: outcome.export(folder / "net.onnx")),
        ("DQSS", lambda outcome, folder: outcome.export(folder / "net.onnx")),
        ("DQSS", lambda outcome, folder: outcome.model.conv1),
    ],
)
def test_what_a_program_cannot_do_is_told_in_one_line(name, use, tmp_path):
    task = restored_task() if name == "PAMS" else classifying(own())
    RECIPES[name].run(task, progress=False).save(tmp_path, source=True)
    with pytest.raises(NoStructureError, match=r"call lab.load\(folder, base=net\)") as caught:
        use(lab.load(tmp_path), tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "net.onnx").exists()


@pytest.mark.slow
def test_a_program_of_what_was_made_from_an_outcome(tmp_path):
    task = classifying(own())
    first = RECIPES["GAL"].run(task, progress=False)
    outcome = RECIPES["SparseByteNN"].run(first.task(task), progress=False)
    outcome.save(tmp_path, source=True)
    loaded = lab.load(tmp_path)
    assert isinstance(loaded.model, Program) and torch.equal(outputs(loaded, task), outputs(outcome, task))
    assert type(lab.load(tmp_path, base=Own()).origin) is type(first)


def test_a_network_that_cannot_be_a_program_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    outcome = RECIPES["GAL"].run(classifying(own()), progress=False)
    outcome.save(tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a\nb")))
    with pytest.raises(ValueError, match=r"torch\.export cannot write") as caught:
        outcome.save(tmp_path / "out", source=True)
    assert "\n" not in str(caught.value) and contents(tmp_path / "out") == before


# -- what others have put there --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_base_of_an_older_save_goes_and_what_others_put_into_it_stays(tmp_path):
    task = classifying(ours(), 16, 3)
    first = RECIPES["GAL"].run(task, progress=False)
    second = RECIPES["SparseByteNN"].run(first.task(task), progress=False)
    folder = tmp_path / "out"
    for mine in (False, True):
        second.save(folder)
        if mine:
            (folder / "base" / "mine.txt").write_text("mine")
            (folder / "notes").mkdir()
        second.save(folder)
        assert lab.load(folder).origin is not None and (folder / "base" / "mine.txt").exists() == mine
        first.save(folder)
        assert lab.load(folder).origin is None
        assert (folder / "base").exists() == mine
    assert [path.name for path in (folder / "base").iterdir()] == ["mine.txt"] and (folder / "notes").is_dir()
    assert not list(folder.glob("*/outcome*"))


@pytest.mark.slow
def test_a_base_of_another_outcome_is_noticed(tmp_path):
    task = classifying(ours(), 16, 3)
    firsts = [RECIPES["GAL"].run(task, seed=seed, progress=False) for seed in (0, 1)]
    for name, first in zip("ab", firsts, strict=True):
        RECIPES["SparseByteNN"].run(first.task(task), progress=False).save(tmp_path / name)
    shutil.rmtree(tmp_path / "a" / "base")
    shutil.copytree(tmp_path / "b" / "base", tmp_path / "a" / "base")
    with pytest.raises(ValueError, match=r"outcome.json is damaged .*base/outcome") as caught:
        lab.load(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_a_weight_that_was_not_stored_is_missed_though_torch_does_without():
    net = nn.BatchNorm2d(2)
    weights = {name: value for name, value in net.state_dict().items() if name != "num_batches_tracked"}
    nn.BatchNorm2d(2).load_state_dict(dict(weights))
    with pytest.raises(ValueError, match="is not the network that was pruned: it has num_batches_tracked, which"):
        load_weights(nn.BatchNorm2d(2), weights, net, "pruned")
    load_weights(nn.BatchNorm2d(2), dict(net.state_dict()), net, "pruned")


def test_an_origin_that_names_no_folder_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"is damaged \(its origin is a Tensor\)"):
        origin_of({"origin": torch.ones(2, 2)}, tmp_path, None, lab.load)
    assert origin_of({}, tmp_path, None, lab.load) is None


def test_a_file_outside_the_folder_is_no_part_of_it(tmp_path):
    store.save(tmp_path / "x", "tree", {"a": 1})
    path = tmp_path / "x" / "tree.json"
    document = json.loads(path.read_text())
    document.pop("digest")
    (tmp_path / "other").write_text("x")
    document["beside"] = {"../other": store._digest(tmp_path / "other")}
    path.write_text(json.dumps(document | {"digest": store._digest_of(document)}))
    with pytest.raises(ValueError, match="is damaged"):
        store.load(tmp_path / "x", "tree")


@pytest.mark.slow
def test_a_library_that_is_missing_where_it_is_loaded(tmp_path, monkeypatch):
    task = of_transformers()
    RECIPES["SparseByteNN"].run(task, progress=False).save(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="is one of transformers: pip install transformers"):
        lab.load(tmp_path)


def test_a_field_of_many_letters_is_one_short_line(tmp_path):
    saved = store.load(Path(__file__).parents[1] / "data" / "formats" / "0.1.0" / "acenas", "outcome")
    saved["fields"]["x" * 3000] = 1
    store.save(tmp_path, "outcome", saved)
    with pytest.raises(ValueError, match=r"holds a AceNAS with the fields x+\.\.\., which this version") as error:
        lab.load(tmp_path)
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)
