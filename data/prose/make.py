"""Train the small Llama and the tokenizer that `lab.tasks.prose()` starts from: `python data/prose/make.py`.

About a quarter of an hour on one core. `--checkpoint FOLDER` keeps the training, which goes on there after a kill.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lab.core.data import text
from lab.core.training import Stage, descend, seeded

SEED, STEPS, BATCH, CONTEXT, LR, DECAY, VOCABULARY = 0, 700, 16, 128, 2e-3, 0.1, 1024
EVERY = 35  # steps between two looks at the paragraphs that say when to stop
GRAIN = 1 / 256  # what is kept of a matrix are multiples of it
HERE = Path(__file__).parent


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, learned from the training paragraphs alone."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", pad_token="<end>", bos_token="<end>")


def network() -> LlamaForCausalLM:
    """Twelve blocks of 128 channels, 2.5 million parameters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=352, num_hidden_layers=12, num_attention_heads=4,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        attention_dropout=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train(net: LlamaForCausalLM, learn: list[str], watch: list[str], words, folder: str | None) -> dict:
    """Train in place; gives the weights that did best on `watch`, which are the ones to keep."""
    data = text.Windows(text.tokens(words, learn), CONTEXT)
    batches = DataLoader(data, BATCH, shuffle=True, drop_last=True)
    score = text.perplexity(text.windows(text.tokens(words, watch), CONTEXT, BATCH))
    adam = torch.optim.AdamW(net.parameters(), LR, betas=(0.9, 0.95), weight_decay=DECAY)
    warm = torch.optim.lr_scheduler.LinearLR(adam, 0.02, total_iters=50)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS - 50, 1e-5)
    schedule = torch.optim.lr_scheduler.SequentialLR(adam, [warm, cosine], [50])
    best = Best(net)
    stage = Stage(folder, "prose", f"prose {STEPS}", net=net, adam=adam, schedule=schedule, best=best)

    def terms(x):
        return {"loss": text.next_token_loss(net(x), x)}

    net.train()
    for step in descend(terms, batches, adam, stage, steps=STEPS, schedule=schedule, progress=False):
        if (step.index + 1) % EVERY == 0:
            best.note(net, score(net))
            print(step.index + 1, f"loss {step.terms['loss']:.3f}, watched perplexity {best.now:.2f}", flush=True)
    return best.weights


class Best:
    """The weights with the lowest perplexity so far."""

    def __init__(self, net: LlamaForCausalLM) -> None:
        self.weights, self.value, self.now = {k: v.clone() for k, v in net.state_dict().items()}, float("inf"), 0.0

    def note(self, net: LlamaForCausalLM, value: float) -> None:
        self.now = value
        if value < self.value:
            self.weights, self.value = {k: v.clone() for k, v in net.state_dict().items()}, value

    def state_dict(self) -> dict:
        return {"weights": dict(self.weights), "value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.weights, self.value = state["weights"], state["value"]


@torch.no_grad()
def rounded(net: LlamaForCausalLM) -> LlamaForCausalLM:
    """In place: half precision, and matrices in multiples of GRAIN, which a zip file holds in half as many bytes."""
    for parameter in net.half().parameters():
        if parameter.dim() > 1:
            parameter.div_(GRAIN).round_().mul_(GRAIN)
    return net


def keep(net: LlamaForCausalLM, words: PreTrainedTokenizerFast, held_out: list[str]) -> None:
    """Store the rounded network, its tokenizer and their hashes; say how well what was stored does."""
    rounded(net).save_pretrained(HERE)
    words.save_pretrained(HERE)
    score = text.perplexity(text.windows(text.tokens(words, held_out), CONTEXT, BATCH))
    print(f"held-out perplexity {score(net.float()):.2f}")
    kept = sorted(path for path in HERE.iterdir() if path.suffix in (".json", ".safetensors"))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in kept]
    (HERE / "SHA256SUMS").write_text("".join(sums))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", help="a folder that keeps the training")
    folder = parser.parse_args().checkpoint
    torch.set_num_threads(1)
    texts, held_out = text.documentation()
    watch = texts[5::20]  # paragraphs that say when to stop; the held-out topics do not
    learn = [paragraph for paragraph in texts if paragraph not in set(watch)]
    with seeded(SEED):
        words, net = tokenizer(learn), network()
        print(f"{sum(p.numel() for p in net.parameters()):,} parameters", flush=True)
        print(f"{len(text.tokens(words, learn)):,} tokens; watched {len(text.tokens(words, watch)):,}", flush=True)
        net.load_state_dict(train(net, learn, watch, words, folder))
    keep(net, words, held_out)


if __name__ == "__main__":
    main()
