"""The recipe on a small model: what it promises besides the contract, its rivals, its data, its errors."""

from dataclasses import replace

import pytest
import torch

import lab
from lab.core.data.text import Windows, documentation, perplexity, text_file
from lab.foldgpt import measures
from lab.foldgpt.ranking import BASELINES, by_leave_one_out, loss

from .small import WITHOUT_PADDING, Letters, model, tokens

QUICK = lab.FoldGPT(removal=1 / 6, sharing=1 / 6, rank=2, gate_steps=4, cure_steps=4)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(
        "\n\n".join(f"paragraph {k} says that number {k * k} comes after some other words" for k in range(60))
    )
    return path


@pytest.fixture
def task(text):
    return lab.tasks.prose(model("llama"), tokenizer=Letters(), text=text, context=16, batch_size=4)


@pytest.mark.slow
def test_a_network_of_ones_own(task):
    outcome = QUICK.run(task, progress=False)
    assert outcome.report["blocks"].after == 5 and len(outcome.fold.groups) == 1
    assert outcome.report["parameters"].after == sum(p.numel() for p in outcome.model.parameters())
    assert outcome.gates.shape == (4, 6) and sorted(outcome.ranking) == list(range(6))
    assert {step.stage for step in outcome.trace} == {"gates", "cure"}


@pytest.mark.slow
def test_only_numbers_a_plain_task_is_enough():
    x = [tokens(4, 16) for _ in range(3)]
    task = lab.Task(model=model("gpt2"), batches=x, score=perplexity(x), metric="perplexity", unit="")
    outcome = QUICK.run(task, progress=False)
    assert "next word of four" not in outcome.report
    with pytest.raises(ValueError, match="tokenizer"):
        outcome.text("some words")


def test_a_first_look_asks_no_questions(text):
    given = {"tokenizer": Letters(), "text": text, "context": 16}
    whole, short = (lab.tasks.prose(model("llama"), **given, **options) for options in ({}, {"questions": False}))
    assert whole.text and not short.text and whole.measure(whole.model) == short.measure(short.model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"ranking": "influence"}, {"ranking": "leave-one-out"}, {"ranking": "taylor"}, {"recovery": "logits"},
     {"recovery": "plain"}, {"start": "zero"}, {"representative": "mean"}, {"representative": "least-loss"},
     {"rank": 0}, {"sharing": 0.0}, {"removal": 0.0}, {"cure_steps": 0}],
    ids=str,
)  # fmt: skip
def test_every_switch_runs(task, change):
    outcome = replace(QUICK, **change).run(task, progress=False)
    assert outcome.report["parameters"].ratio > 1 and torch.isfinite(outcome.model(task.example).logits).all()


@pytest.mark.slow
def test_bfloat16(text):
    task = lab.tasks.prose(model("qwen2", torch.bfloat16), tokenizer=Letters(), text=text, context=16, batch_size=4)
    outcome = QUICK.run(task, progress=False)
    assert {p.dtype for p in outcome.model.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(task, tmp_path, monkeypatch):
    whole = QUICK.run(task, progress=False)
    calls = iter(range(100))

    def dies(*args):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return tail(*args)

    from lab.foldgpt import equations as eq

    tail = eq.tail
    with monkeypatch.context() as patch:
        patch.setattr(eq, "tail", dies)
        with pytest.raises(KeyboardInterrupt):
            QUICK.run(task, progress=False, checkpoint=tmp_path)
    again = QUICK.run(task, progress=False, checkpoint=tmp_path)
    assert again.trace == whole.trace and again.report == whole.report


def idle(block: int, sure: float = 20.0):
    """A model that is `sure` of what it says, one of whose blocks does nothing, and what it says: (4, 16)."""
    net = model("llama")
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            net.model.layers[block].get_submodule(name).weight.zero_()
        net.lm_head.weight.mul_(sure)
        x = tokens(4, 1)
        for _ in range(15):
            x = torch.cat([x, net(x).logits[:, -1:].argmax(-1)], 1)
    return net, x


@pytest.mark.slow
@pytest.mark.parametrize("rank", BASELINES.values(), ids=BASELINES)
def test_every_rival_takes_the_block_that_does_nothing_first(rank):
    for block in (1, 3):
        net, x = idle(block)
        ranking = rank(net, (x,), 2)
        assert ranking[0] == block and sorted(ranking) == list(range(6))
        assert all(p.grad is None for p in net.parameters())


def told(net, x) -> lab.Task:
    """A task on one batch that the model has said itself."""
    return lab.Task(model=net, batches=[x], score=perplexity([x]), metric="perplexity", unit="")


@pytest.mark.slow
@pytest.mark.parametrize("ranking", ["gates", *BASELINES])
@pytest.mark.parametrize("block", [1, 3])
def test_the_block_that_does_nothing_is_the_one_to_go(block, ranking):
    recipe = lab.FoldGPT(removal=1 / 6, sharing=0.0, ranking=ranking, gate_steps=6, cure_steps=0)
    outcome = recipe.run(told(*idle(block, 1.0 if ranking == "gates" else 20.0)), progress=False)
    assert outcome.ranking[0] == block
    assert outcome.fold.kept == tuple(other for other in range(6) if other != block)
    assert outcome.report["perplexity"].after == pytest.approx(outcome.report["perplexity"].before, rel=1e-4)


@pytest.mark.parametrize("block", [2, 4])
def test_a_block_that_does_nothing_is_most_like_its_neighbour(block):
    recipe = lab.FoldGPT(removal=0.0, sharing=1 / 6, rank=0, ranking="influence", cure_steps=0)
    assert recipe.run(told(*idle(block)), progress=False).fold.groups == ((block - 1, block),)


@pytest.mark.slow
@pytest.mark.parametrize("recovery", ["tail", "logits"])
def test_distillation_counts_as_much_as_beta_says(task, recovery):
    once, twice, none, plain = (
        replace(QUICK, ranking="influence", cure_steps=2, **change).run(task, progress=False)
        for change in ({"recovery": recovery}, {"recovery": recovery, "beta": 2.0}, {"recovery": recovery, "beta": 0.0},
                       {"recovery": "plain"})
    )  # fmt: skip
    first = [outcome.trace[0].terms for outcome in (once, twice, plain)]
    assert first[0]["text"] == first[1]["text"] == first[2]["text"] and set(first[2]) == {"text"}
    assert first[0][recovery] > 1e-4 and first[1][recovery] == pytest.approx(2 * first[0][recovery])
    assert cured(none) == cured(plain) and len({cured(once), cured(twice), cured(plain)}) == 3


def cured(outcome) -> float:
    """A number that stands for the weights after the cure."""
    return float(sum(p.detach().double().abs().sum() for p in outcome.model.parameters()))


@pytest.mark.slow
def test_equal_folds_are_cured_alike_whatever_ranked_them(task):
    recipe = replace(QUICK, removal=0.0, gate_steps=3, cure_steps=2)  # none goes: the ranking does not matter
    gates, rival = (replace(recipe, ranking=ranking).run(task, progress=False) for ranking in ("gates", "influence"))
    assert gates.fold == rival.fold and gates.ranking != rival.ranking
    assert gates.report["perplexity"].after == rival.report["perplexity"].after
    assert [step for step in gates.trace if step.stage == "cure"] == list(rival.trace)


def test_states_that_are_computed_again_change_nothing(task, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls, forward = [], LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: calls.append(torch.is_grad_enabled()) or forward(self, x))
    recipe = replace(QUICK, ranking="influence", cure_steps=2)
    kept = recipe.run(task, progress=False)
    once = sum(calls)
    again = replace(recipe, gradient_checkpointing=True).run(task, progress=False)
    assert sum(calls) - once == 2 * once  # with a gradient every block is computed twice
    assert again.trace == kept.trace and cured(again) == cured(kept)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in again.model.modules())


def test_leave_one_out_is_greedy_over_the_loss():
    from lab.foldgpt.folding import removed

    net, x = model("llama"), (tokens(4, 16),)
    without = {b: loss(removed(net, tuple(k for k in range(6) if k != b)), x) for b in range(6)}
    assert by_leave_one_out(net, x, 1) == tuple(sorted(without, key=without.get))


# -- data and measures -------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_words(tmp_path):
    lines = [f"line {number} of the text" for number in range(20)]
    (tmp_path / "a.txt").write_bytes("\r\n\r\n".join(lines).encode("utf-8-sig"))
    assert text_file(tmp_path / "a.txt") == (lines[:18], lines[18:])


@pytest.mark.parametrize("size", [0, 2.0, "8"])
def test_a_batch_size_that_is_none_is_told(size):
    with pytest.raises(ValueError, match=r"prose: batch_size=.*: give an integer, 1 or more"):
        lab.tasks.prose(batch_size=size)


@pytest.mark.slow
def test_the_embedded_prose_is_apart_and_its_model_reads_it():
    learn, held_out = documentation()
    assert not set(learn) & set(held_out) and len(held_out) > 100
    task = lab.tasks.prose()
    assert task.measure(task.model) < 40 < 1024  # a model of no knowledge stands at 1,024
    asked = measures.questions(task.text)
    assert measures.accuracy(task.model, task.tokenizer, asked) > 45  # chance is 25
    assert asked == measures.questions(task.text) and all(len(set(one.choices)) == 4 for one in asked)


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary():
    class Even(torch.nn.Linear):
        def forward(self, x):
            return torch.zeros(*x.shape, 80)

    assert perplexity([tokens()])(Even(1, 1)) == pytest.approx(80, rel=1e-5)


def test_windows_cover_the_text_and_change():
    row = torch.arange(100)
    windows = Windows(row, 10)
    first = windows[torch.arange(10)]
    assert first.shape == (10, 10) and torch.equal(first.diff(dim=1), torch.ones(10, 9, dtype=torch.int64))
    assert not torch.equal(first, windows[torch.arange(10)]) and windows[3].shape == (10,)


@pytest.mark.slow
def test_a_real_model_from_a_folder(text, tmp_path):
    model("gpt_neox").save_pretrained(tmp_path / "net")
    task = lab.tasks.prose(tmp_path / "net", tokenizer=Letters(), text=text, context=16)
    assert QUICK.run(task, progress=False).report["blocks"].after == 5


@pytest.mark.slow
def test_peak_memory_of_a_saved_model(tmp_path):
    model("llama").save_pretrained(tmp_path)
    assert measures.peak_memory(tmp_path, 4) > 0


# -- bad input, in one line --------------------------------------------------------------------------------------------


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_removal_that_leaves_none(task):
    with pytest.raises(ValueError) as error:
        replace(QUICK, removal=1.0).run(task, progress=False)
    assert "takes all 6 blocks: give at most 0.833" in one_line(error)


def test_a_tokenizer_without_a_padding_token(text):
    with pytest.raises(ValueError) as error:
        lab.tasks.prose(model("llama"), tokenizer=WITHOUT_PADDING, text=text)
    assert "set tokenizer.pad_token = tokenizer.eos_token" in one_line(error)


def test_a_tokenizer_that_has_neither_padding_nor_end(text):
    class Bare(Letters):
        pad_token_id = eos_token_id = None

    with pytest.raises(ValueError) as error:
        lab.tasks.prose(model("llama"), tokenizer=Bare(), text=text, context=16)
    assert "set tokenizer.pad_token = one of its own tokens" in one_line(error)
    words = Bare()
    words.pad_token_id = 0
    whole, ended = (
        lab.tasks.prose(model("llama"), tokenizer=one, text=text, context=16).held_out for one in (words, Letters())
    )
    assert sum(x.numel() for x in whole) < sum(x.numel() for x in ended)  # no paragraph's end is marked


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(ValueError) as error:
        lab.tasks.prose(tmp_path)
    assert "holds no weights: name a folder" in one_line(error)


def test_a_context_that_the_model_does_not_have(text):
    with pytest.raises(ValueError) as error:
        lab.tasks.prose(model("llama"), tokenizer=Letters(), text=text, context=65)
    assert "give at most 64" in one_line(error)


def test_another_models_tokenizer(text):
    with pytest.raises(ValueError) as error:
        lab.tasks.prose(model("llama"), text=text, context=16)
    assert "the tokenizer has 1024 tokens, the model 80" in one_line(error)


def test_a_text_that_is_too_short(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    with pytest.raises(ValueError, match="give ten or more"):
        lab.tasks.prose(model("llama"), tokenizer=Letters(), text=tmp_path / "a.txt", context=16)


def test_settings_for_the_papers_models():
    assert round(lab.FoldGPT.paper("llama-2-7b").removal * 32) == 6
    with pytest.raises(ValueError, match="tinyllama"):
        lab.FoldGPT.paper("opt")
