"""What is asked of a model before anything is trained; each refusal is one line, and comes before the first step."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertLMHeadModel, T5Config
from transformers import T5ForConditionalGeneration as T5

import lab
from lab.core.data.text import perplexity
from lab.foldgpt import rehearsal
from lab.foldgpt.folding import Fold, folded
from lab.foldgpt.rehearsal import experts, validate_foldable, validate_suits

from . import families
from .small import COMMON, FAMILIES, Letters, model, tokens
from .test_recipe import QUICK

MIXTRAL = {**COMMON, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}


def of(family: str, **settings):
    """A small model of a family in eval mode, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval()


def bert(**settings):
    sizes = {"vocab_size": 80, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
             "intermediate_size": 48}  # fmt: skip
    return BertLMHeadModel(BertConfig(**sizes, **settings)).eval()


def encoder():
    sizes = {"vocab_size": 80, "d_model": 32, "d_ff": 48, "num_layers": 4, "num_heads": 4, "d_kv": 8}
    return T5(T5Config(**sizes, decoder_start_token_id=0))


def several_inputs():
    return families.model("gemma3")


REFUSED = {
    "not a causal decoder": bert,
    "has cross-attention": lambda: of("gpt2", **FAMILIES["gpt2"], add_cross_attention=True),
    "has an encoder": encoder,
    "reads more than text (vision_config)": several_inputs,
    "keeps a state": lambda: of("mamba", vocab_size=80, hidden_size=32, num_hidden_layers=4, state_size=4),
    "has 3 blocks: give a model of 4 or more": lambda: of("llama", **COMMON | {"num_hidden_layers": 3}),
    "is folded already: give outcome.unroll()": lambda: folded(model("llama"), Fold((0, 1, 2, 3), ((1, 2),))),
    "holds no list of blocks": lambda: torch.nn.Linear(2, 2),
    "has no config": lambda: torch.nn.Sequential(torch.nn.ModuleList([torch.nn.ReLU()])),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_no_plain_decoder_is_refused(words):
    with pytest.raises(ValueError) as error:
        validate_suits(REFUSED[words](), None)
    assert words in str(error.value) and "\n" not in str(error.value) and ": give" in str(error.value)


def test_it_is_refused_before_anything_is_measured():
    x = [tokens(2, 8)]
    task = lab.Task(model=bert(), batches=x, score=lambda net: pytest.fail("measured"), metric="perplexity", unit="")
    with pytest.raises(ValueError, match="BertLMHeadModel is not a causal decoder"):
        QUICK.run(task, progress=False)


def test_a_bert_that_looks_back_only_is_a_decoder():
    validate_suits(bert(is_decoder=True), None)


def test_a_family_whose_save_does_not_repeat_it_is_refused_before_training(monkeypatch):
    read = rehearsal.FoldedForCausalLM.from_pretrained
    monkeypatch.setattr(rehearsal.FoldedForCausalLM, "from_pretrained", lambda folder: halved(read(folder)))
    x = [tokens(2, 8)]
    task = lab.Task(model=model("llama"), batches=x, score=perplexity(x), metric="perplexity", unit="")
    with pytest.raises(ValueError, match="answers otherwise after it was saved") as error:
        QUICK.run(task, progress=False)
    assert "\n" not in str(error.value)


def halved(net):
    """The model as if its file held another matrix."""
    with torch.no_grad():
        net.lm_head.weight.mul_(0.25)
    return net


def test_the_rehearsal_draws_nothing_and_leaves_the_model_alone():
    net = model("gpt2")
    before, drawn = {name: p.clone() for name, p in net.named_parameters()}, torch.get_rng_state()
    validate_suits(net, None)
    validate_foldable(net, 1, True)
    assert torch.equal(torch.get_rng_state(), drawn) and type(net).__mro__[1].__name__ != "SharedLayers"
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


# -- experts -----------------------------------------------------------------------------------------------------------


def test_a_model_of_experts_is_folded_by_removal_only_and_says_so(tmp_path):
    net, x = of("mixtral", **MIXTRAL), [tokens(4, 16) for _ in range(2)]
    assert experts(net) and not experts(model("llama"))
    task = lab.Task(model=net, batches=x, score=perplexity(x), metric="perplexity", unit="")
    outcome = QUICK.run(task, progress=False)
    assert outcome.fold.groups == () and outcome.report["blocks"].after == 5
    assert any("experts are removed and not shared" in note for note in outcome.report.notes)
    kept = [net.model.layers[block] for block in outcome.fold.kept]
    for before, after in zip(kept, outcome.model.model.layers, strict=True):  # what chooses and what is chosen
        for name, p in before.mlp.named_parameters():
            assert torch.equal(after.mlp.get_parameter(name), p), name
    outcome.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(lab.load(tmp_path).model(x[0]).logits, outcome.model(x[0]).logits)


# -- what else may be amiss --------------------------------------------------------------------------------------------


def text_of(paragraphs: int, path):
    path.write_text("\n\n".join(f"paragraph {k} says that number {k * k} comes after" for k in range(paragraphs)))
    return path


def test_tied_embeddings_stay_tied(tmp_path):
    task = lab.tasks.prose(model("gemma"), tokenizer=Letters(), text=text_of(60, tmp_path / "a.txt"), context=16)
    QUICK.run(task, progress=False).save(tmp_path / "out")
    read = lab.load(tmp_path / "out").model
    assert read.lm_head.weight is read.model.embed_tokens.weight
    assert lab.load(tmp_path / "out").report["parameters"].after == sum(p.numel() for p in read.parameters())


def test_a_missing_tokenizer_is_told(tmp_path):
    net = of("llama", **COMMON | {"vocab_size": 4096})
    with pytest.raises(ValueError, match="model has 4096 tokens and came without a tokenizer: give tokenizer="):
        lab.tasks.prose(net, text=text_of(60, tmp_path / "a.txt"), context=16)
    net.save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match="give tokenizer=") as error:
        lab.tasks.prose(tmp_path / "net", text=tmp_path / "a.txt", context=16)
    assert "\n" not in str(error.value)


def test_a_text_shorter_than_a_batch_is_one_smaller_batch_or_told(tmp_path):
    short = text_of(12, tmp_path / "a.txt")
    task = lab.tasks.prose(model("llama"), tokenizer=Letters(), text=short, context=16, batch_size=64)
    assert QUICK.run(task, progress=False).report["blocks"].after == 5
    short.write_text("\n".join("word" for _ in range(20)))
    with pytest.raises(ValueError, match="the held-out text has 10 tokens, below one context of 60: lower it") as error:
        lab.tasks.prose(model("llama"), tokenizer=Letters(), text=short, context=60)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("emulated", [True, False])
def test_bfloat16_that_the_processor_emulates_is_told(emulated, monkeypatch, tmp_path):
    monkeypatch.setattr(rehearsal, "computes_bfloat16", lambda: not emulated)
    net = model("llama", torch.bfloat16)
    assert (rehearsal.emulation(net) or "").startswith("bfloat16 is emulated by this processor") == emulated
    assert rehearsal.emulation(model("llama")) is None
