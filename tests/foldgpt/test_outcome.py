"""A saved folder: who may read it, what is refused, and that it is there whole or not at all."""

import builtins
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

import lab
from lab.core import cost
from lab.core.modeling_folded import FoldedForCausalLM, blocks
from lab.foldgpt.folding import Fold, unrolled
from lab.foldgpt.sharing import shared
from tests.core.test_store_failures import killed_at

from .small import Letters, model, tokens
from .test_models import FOLD, logits, moved, outcome


@pytest.fixture(scope="module")
def net():
    return moved(shared(model("llama"), FOLD, "first", "zero", ()))


@pytest.fixture
def folder(net, tmp_path):
    outcome(net).save(tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch):
    """A question at the keyboard fails."""

    def ask(prompt=""):
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr(builtins, "input", ask)


def prose(source, tmp_path, **options):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"paragraph {k} says that number {k * k} comes after other words" for k in range(60)))
    return lab.tasks.prose(source, tokenizer=Letters(), text=text, context=16, **options)


def changed(folder, **values):
    """Other values in the folder's config.json; None takes one out."""
    path = folder / "config.json"
    told = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in told.items() if value is not None}))


# -- who reads it ------------------------------------------------------------------------------------------------------


def test_a_task_of_a_folded_folder_has_its_model(net, folder, tmp_path):
    assert torch.equal(logits(prose(folder, tmp_path).model, tokens()), logits(net, tokens()))


def test_transformers_without_the_folders_code_refuses_it(folder):
    with pytest.raises(ValueError, match=r"model type `folded`|custom code"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        LlamaForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_familys_own_class_refuses_it_with_and_without_adapters(rank, tmp_path):
    outcome(shared(model("gpt2"), replace(FOLD, rank=rank), "first", "zero", ())).save(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(model("gpt2")).from_pretrained(tmp_path)


def test_where_nothing_is_shared_the_folder_is_a_plain_one(tmp_path):
    cut = shared(model("llama"), Fold((0, 2, 3)), "first", "zero", ())
    replace(outcome(cut), fold=Fold((0, 2, 3))).save(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    for read in (AutoModelForCausalLM.from_pretrained(tmp_path), lab.load(tmp_path).model):
        assert torch.equal(logits(read, tokens()), logits(cut, tokens()))


def test_a_folder_of_the_first_kind_is_read(net, folder, tmp_path):
    changed(folder, model_type="llama", base_model_type=None, auto_map={"AutoModelForCausalLM": "modeling_folded.A"})
    for read in (FoldedForCausalLM.from_pretrained(folder), prose(folder, tmp_path).model):
        assert torch.equal(logits(read, tokens()), logits(net, tokens()))


def test_who_may_read_the_configuration_may_read_the_weights(folder):
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


# -- keywords ----------------------------------------------------------------------------------------------------------


def read_with(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("given", [torch.bfloat16, "bfloat16"], ids=str)
def test_the_type_of_the_numbers_is_the_one_asked_for(folder, name, given):
    assert {p.dtype for p in read_with(folder, **{name: given}).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in read_with(folder, **{name: "auto"}).parameters()} == {torch.float32}


def test_device_and_attention_are_those_asked_for(net, folder):
    for place in ("cpu", {"": "cpu"}, torch.device("cpu")):
        read = read_with(folder, device_map=place, attn_implementation="eager")
        assert read.device.type == "cpu" and read.config._attn_implementation == "eager"
    assert torch.allclose(logits(read, tokens()), logits(net, tokens()), atol=1e-5)
    asked = FoldedForCausalLM.from_pretrained(folder, device_map="auto").device.type
    assert asked == (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else asked).__str__()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"potato": 1}, "takes no potato="), ({"quantization_config": {}}, "takes no quantization_config="),
     ({"device_map": "nowhere"}, "device_map='nowhere': name a device"), ({"device_map": ["cpu"]}, "name a device"),
     ({"dtype": torch.int8}, "dtype=torch.int8: give a type")],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_done_is_told(folder, options, words):
    for read in (FoldedForCausalLM.from_pretrained, read_with):
        with pytest.raises((TypeError, ValueError), match=re.escape(words)):
            read(folder, **options)


def test_a_keyword_that_is_none_asks_for_nothing(net, folder):  # as lm-eval gives all that transformers knows
    for read in (FoldedForCausalLM.from_pretrained, read_with):
        made = read(folder, gguf_file=None, quantization_config=None, device_map=None)
        assert torch.equal(logits(made, tokens()), logits(net, tokens()))


def over(net, where):
    """A device map with the first blocks of a model in main memory and its others elsewhere."""
    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    return parts | {f"model.layers.{layer}": "cpu" if layer < 1 else where for layer in range(len(blocks(net)))}


def test_a_model_larger_than_its_memory_lies_on_the_disk_too(net, folder, tmp_path):
    read = read_with(folder, device_map=over(net, "disk"), offload_folder=tmp_path / "aside")
    assert set(read.hf_device_map.values()) == {"cpu", "disk"}
    assert torch.equal(logits(read, tokens()), logits(net, tokens()))
    room = {"cpu": "60KB"}
    read = read_with(folder, device_map="auto", max_memory=room, offload_folder=tmp_path / "aside")
    assert "disk" in read.hf_device_map.values()
    assert torch.equal(logits(read, tokens()), logits(net, tokens()))
    with pytest.raises(ValueError, match=r"device_map parts model\.layers\.1.*which are one tensor"):
        read_with(folder, device_map=over(net, "disk") | {"model.layers.1": "cpu"}, offload_folder=tmp_path / "aside")


# -- saved again -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])  # matrices the other way round; tied embeddings
@pytest.mark.parametrize("rank", [0, 2])
def test_a_loaded_model_is_trained_on_and_saved_again(family, rank, tmp_path):
    outcome(moved(shared(model(family), replace(FOLD, rank=rank), "first", "zero", ()))).save(tmp_path / "one")
    read = read_with(tmp_path / "one", dtype=torch.float32)
    before = logits(read, tokens())
    sgd = torch.optim.SGD(read.parameters(), 0.1)
    read.train()(tokens(), labels=tokens()).loss.backward()
    sgd.step()
    trained = logits(read.eval(), tokens())
    assert not torch.allclose(trained, before, atol=1e-3)
    read.save_pretrained(tmp_path / "two", max_shard_size="20KB")
    assert len(list((tmp_path / "two").glob("model-*-of-*.safetensors"))) > 1
    again = FoldedForCausalLM.from_pretrained(tmp_path / "two")
    assert torch.equal(logits(again, tokens()), trained) and cost.parameters(again) == cost.parameters(read)
    for refused in (AutoModelForCausalLM, type(model(family))):
        with pytest.raises((ValueError, RuntimeError)):
            refused.from_pretrained(tmp_path / "two")


def test_one_that_is_unrolled_is_of_its_familys_class_again(net, tmp_path):
    plain = unrolled(net)
    assert type(plain) is LlamaForCausalLM and not hasattr(plain.config, "fold")
    plain.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(logits(read, tokens()), logits(net, tokens()), atol=1e-4)


def test_it_is_sent_as_a_whole_folder_only(net, tmp_path):
    with pytest.raises(ValueError, match=r"call model\.push_to_hub"):
        net.save_pretrained(tmp_path, push_to_hub=True)


def test_a_hub_id_is_read_as_a_folder_is(net, folder, tmp_path, monkeypatch):
    """From the cache of a hub that cannot be reached, as a download leaves it."""
    home = tmp_path / "hub" / "models--one--folded"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, home / "snapshots" / ("0" * 40))
    read = FoldedForCausalLM.from_pretrained("one/folded", cache_dir=tmp_path / "hub", local_files_only=True)
    assert torch.equal(logits(read, tokens()), logits(net, tokens()))


def test_a_type_that_does_not_exist_is_told(folder):
    with pytest.raises(ValueError, match="dtype='float33': give a type"):
        FoldedForCausalLM.from_pretrained(folder, dtype="float33")


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json", "modeling_folded.py"])
@pytest.mark.parametrize("damage", ["altered", "cut", "gone"])
def test_an_altered_file_is_told(folder, name, damage):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink() if damage == "gone" else path.write_bytes(content if damage == "altered" else content[:-9])
    with pytest.raises(ValueError, match=name) as error:
        lab.load(folder)
    assert "\n" not in str(error.value) and "save it again" in str(error.value)


def test_a_cut_file_is_told_in_a_task_too(folder, tmp_path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="cannot be read") as error:
        prose(folder, tmp_path)
    assert "\n" not in str(error.value)


def test_weights_of_another_model_are_told(folder):
    changed(folder, num_hidden_layers=5)
    with pytest.raises(ValueError, match=r"does not hold this model: .* is amiss"):
        FoldedForCausalLM.from_pretrained(folder)


# -- whole or not at all -----------------------------------------------------------------------------------------------


def test_what_answers_otherwise_when_read_again_is_not_kept(folder, net):
    odd = moved(shared(model("llama"), FOLD, "first", "zero", ()))
    odd.lm_head.register_forward_hook(lambda module, args, out: -out)  # which no file holds
    with pytest.raises(ValueError, match="answers otherwise after it was saved") as error:
        outcome(odd).save(folder)
    assert "\n" not in str(error.value)
    assert torch.equal(logits(lab.load(folder).model, tokens()), logits(net, tokens()))
    with pytest.raises(ValueError, match="answers otherwise"):
        outcome(odd).save(folder.parent / "new")
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_save_killed_at_any_rename_leaves_weights_and_report_of_one_run(folder, net):
    other = moved(shared(model("llama"), FOLD, "mean", "zero", ()))
    old, new = outcome(net), replace(outcome(other), ranking=(0, 1, 2, 3, 4, 5))
    wanted = {old.ranking: logits(net, tokens()), new.ranking: logits(other, tokens())}
    assert not torch.equal(*wanted.values())
    at = 1
    while killed_at("replace", at, lambda: new.save(folder)):
        found = lab.load(folder)
        assert torch.equal(logits(found.model, tokens()), wanted[found.ranking])
        old.save(folder)
        assert [path.name for path in folder.parent.iterdir()] == ["out"]
        at += 1
    assert at > 4 and lab.load(folder).ranking == new.ranking


def test_the_configuration_is_the_familys_with_its_fold(folder):
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__name__ == "LlamaConfig" and config.fold == FOLD.logical()
