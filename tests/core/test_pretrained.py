"""Language models and tokenizers by folder: what is missing is told, and no folder's code is run or asked about."""

import builtins
import json

import pytest
from safetensors.torch import load_file, save_file

from lab.core import pretrained
from tests.foldgpt.small import model


@pytest.fixture
def folder(tmp_path):
    model("llama").save_pretrained(tmp_path)
    return tmp_path


def refused(call, folder) -> str:
    with pytest.raises(ValueError) as error:
        call(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


def test_a_whole_folder_is_read(folder):
    assert pretrained.language_model(folder).config.num_hidden_layers == 6


def test_weights_that_are_missing_are_not_made_up(folder):
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"], state["model.norm.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert "holds no lm_head.weight, one of 2 tensors that would be random" in refused(
        pretrained.language_model, folder
    )


def test_a_cut_file_is_told(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be read" in refused(pretrained.language_model, folder)


@pytest.mark.parametrize(
    "config",
    ["{", "[]", '{"model_type": "none of these"}', '{"model_type": "llama", "tie_word_embeddings": 7}', "[" * 3000],
)
def test_a_configuration_that_says_nothing(folder, config):
    (folder / "config.json").write_text(config)
    assert "cannot be read" in refused(pretrained.language_model, folder)


def test_the_code_of_a_folder_is_neither_run_nor_asked_about(folder, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda prompt="": pytest.fail("asked"))
    (folder / "own.py").write_text("raise SystemExit('run')")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.Words", None]}}))
    for call in (pretrained.language_model, pretrained.tokenizer):
        assert "is not run here; load it with transformers and trust_remote_code=True" in refused(call, folder)


@pytest.mark.parametrize("source", ["no/such/folder", "./missing", "/missing/folder", "my model"])
def test_a_folder_that_is_missing_is_told_apart_from_an_id(source):
    with pytest.raises(ValueError, match="is no folder here and no id of the hub: give one of these") as error:
        pretrained.language_model(source)
    assert "\n" not in str(error.value)
