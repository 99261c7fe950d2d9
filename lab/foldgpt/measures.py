"""How well and how fast a language model does: the next word of four, text, tokens a second, memory."""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.data.text import logits
from ..core.task import evaluating

WORDS = 20  # of context before the word that is asked for


@dataclass(frozen=True)
class Question:
    """Words in front of a gap and four words for it, the right one first."""

    context: str
    choices: tuple[str, ...]


def questions(texts: Sequence[str], count: int = 120, seed: int = 0) -> list[Question]:
    """Questions made by rule: in every paragraph a word of five letters or more, and three as long from elsewhere."""
    draw = np.random.default_rng(seed)
    long = sorted({word for text in texts for word in re.findall(r"\b[a-z]{5,}\b", text)})
    made: list[Question] = []
    for text in texts:
        words = text.split()
        gaps = [k for k in range(8, len(words)) if re.fullmatch(r"[a-z]{5,}", words[k])]
        if gaps and len(made) < count:
            k = gaps[int(draw.integers(len(gaps)))]
            near = [w for w in long if w != words[k] and abs(len(w) - len(words[k])) <= 1 and w not in words]
            if len(near) >= 3:
                wrong = draw.choice(near, 3, replace=False).tolist()
                made.append(Question(" ".join(words[max(0, k - WORDS) : k]), (words[k], *wrong)))
    return made


def accuracy(model: nn.Module, tokenizer: Any, questions: Sequence[Question]) -> float:
    """Percent of questions whose right word is the likeliest of the four in its context; 25 is chance."""
    if not questions:
        return float("nan")
    with torch.no_grad(), evaluating(model):
        return 100 * sum(_chosen(model, tokenizer, question) == 0 for question in questions) / len(questions)


def _chosen(model: nn.Module, tokenizer: Any, question: Question) -> int:
    """The number of the choice that the model holds for the likeliest."""
    texts = (question.context, *(f"{question.context} {word}" for word in question.choices))
    context, *rows = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    start, longest = len(context), max(map(len, rows))  # padding stands behind, where a causal model does not look
    x = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])  # (4, T)
    x = x.to(next(model.parameters()).device)
    log_p = logits(model(x)).float().log_softmax(-1)[:, :-1].gather(-1, x[:, 1:, None])[..., 0]  # (4, T - 1)
    return int(np.argmax([float(log_p[k, start - 1 : len(row) - 1].sum()) for k, row in enumerate(rows)]))


def generated(model: Any, x: Tensor, count: int, cache: bool = True) -> Tensor:
    """`count` more tokens, each the likeliest: (N, T) -> (N, T + count). ValueError where the context is too short."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and x.shape[1] + count > limit:
        raise ValueError(
            f"the prompt has {x.shape[1]} tokens and {count} are wanted, the model's context is {limit}: shorten it"
        )
    with torch.no_grad(), evaluating(model):
        return model.generate(
            x,
            attention_mask=torch.ones_like(x),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            use_cache=cache,
            pad_token_id=0,
        )


def text(model: nn.Module, tokenizer: Any, prompt: str, count: int = 30) -> str:
    """The prompt and what the model makes of it, each token the likeliest."""
    x = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    if not x.numel():
        raise ValueError("prompt is empty: give at least one word")
    return tokenizer.decode(generated(model, x.to(next(model.parameters()).device), count)[0])


def speeds(models: Mapping[str, nn.Module], x: Tensor, count: int = 32, repeats: int = 5) -> dict[str, list[float]]:
    """Tokens a second of each model, one number a round; models take turns, so that noise disturbs all alike."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for k in range(repeats + 1):
        for name in list(models)[:: 1 if k % 2 else -1]:
            begun = time.perf_counter()
            generated(models[name], x, count)
            if x.device.type != "cpu":
                torch.accelerator.synchronize(x.device)
            if k:  # the first round warms up
                times[name].append(count * len(x) / (time.perf_counter() - begun))
    return times


def speedup(rates: Mapping[str, Sequence[float]], fast: str, slow: str) -> float:
    """How many times faster: the median of the ratios of `speeds`, round by round."""
    return statistics.median(a / b for a, b in zip(rates[fast], rates[slow], strict=True))


_PEAK = """
import re, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
about = lambda name: 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
AutoModelForCausalLM, torch.randn(64, 64) @ torch.randn(64, 64)
Path("/proc/self/clear_refs").write_text("5")  # the highest mark so far is forgotten
before = about("VmRSS")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
model.generate(torch.ones(1, 8, dtype=torch.long), max_new_tokens=int(sys.argv[2]), pad_token_id=0)
print("peak", about("VmHWM") - before)
"""


def peak_memory(folder: str | Path, count: int = 32) -> int:
    """Bytes by which a fresh process grows to load a saved model and to generate; runs the folder's own code.

    Linux alone keeps the marks that are read here; elsewhere a RuntimeError says so.
    """
    command = [sys.executable, "-c", _PEAK, str(folder), str(count)]
    process = subprocess.run(command, capture_output=True, text=True)
    match = re.search(r"^peak (\d+)", process.stdout, re.MULTILINE)
    if not match:
        raise RuntimeError(f"{folder} could not be measured: {process.stderr.strip().splitlines()[-1:]}")
    return int(match[1])
