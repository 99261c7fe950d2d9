"""The table of architectures says what happens: a few families here, those that are asked for among the slow tests."""

import json

import pytest
import transformers

import lab
from lab.foldgpt.architectures import OUTCOMES, PATH

from . import families

WORKS = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "olmo2", "falcon", "opt",
    "bloom", "gpt2", "gpt_neox", "granite", "starcoder2", "smollm3", "cohere",
)  # fmt: skip
ONLY_REMOVED = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
REFUSED = ("mamba", "mamba2", "jamba", "rwkv", "recurrent_gemma", "bart", "mllama")
FEW = ("qwen3", "bloom", "gpt_oss", "jamba")


def test_what_is_asked_for_is_in_the_table():
    table = lab.foldgpt.architectures()
    outcomes = {row.model_type: row.outcome for row in table}
    assert [name for name in WORKS if outcomes[name] != "works"] == []
    assert [name for name in ONLY_REMOVED if outcomes[name] != "removal only"] == []
    assert [name for name in REFUSED if outcomes[name] != "refused"] == []
    assert table["llama"].model_class == "LlamaForCausalLM" and len(repr(table).splitlines()) == len(table) + 1
    with pytest.raises(ValueError, match="not an architecture that was tried: see llama"):
        table["lama"]


def test_every_row_is_an_outcome_with_its_reason_in_one_line():
    for row in lab.foldgpt.architectures():
        assert row.outcome in OUTCOMES and (row.why is None) == (row.outcome == "works")
        assert row.why is None or ("\n" not in row.why and len(row.why) < 300)
        assert row.outcome != "refused" or ": " in row.why  # the cause, and what to do
    assert PATH.stat().st_size < 60_000


same_version = pytest.mark.skipif(
    transformers.__version__ != lab.foldgpt.architectures().transformers, reason="another version of transformers"
)


@same_version
def test_the_table_holds_every_causal_language_model():
    assert [row.model_type for row in lab.foldgpt.architectures()] == families.names()


def row_of(name: str) -> tuple:
    return tuple(next(row for row in json.loads(PATH.read_text())["rows"] if row[0] == name))


@same_version
@pytest.mark.parametrize("name", FEW)
def test_a_few_families_do_what_the_table_says(name):
    assert families.tried(name) == row_of(name)


@pytest.mark.slow
@same_version
@pytest.mark.parametrize("name", [name for name in (*WORKS, *ONLY_REMOVED, *REFUSED) if name not in FEW])
def test_the_families_that_are_asked_for_do_what_the_table_says(name):
    assert families.tried(name) == row_of(name)
