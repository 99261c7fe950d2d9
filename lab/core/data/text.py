"""English to model, in windows of tokens: Python's documentation, or a text file; and its scores."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..batch import IGNORED, LABELS, call, inputs, moved
from ..scores import Score
from ..task import Task, evaluating

# Topics of `pydoc_data.topics` that no checkpoint of the lab has learned from, whatever Python's version says in them.
HELD_OUT = (
    "assert", "async", "bltin-null-object", "break", "comparisons", "conversions", "else", "exceptions", "exprlists",
    "floating", "for", "global", "integers", "lambda", "lists", "naming", "numeric-types", "operator-summary", "pass",
    "raise", "shifting", "slicings", "typesfunctions", "typesmethods", "unary", "while", "with", "yield",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class TextTask(Task):
    """A causal language model, windows of tokens to learn from, and held-out text that is scored in perplexity.

    `batches` holds (N, T) int64 token numbers, x alone; `held_out` the same for text that is never learned from.
    `text` is the held-out paragraphs in words, `tokenizer` turns text into numbers and back.
    """

    tokenizer: Any = field(repr=False)
    held_out: tuple[Tensor, ...] = field(repr=False)
    text: tuple[str, ...] = field(repr=False)
    metric: str = "perplexity"
    unit: str = ""
    higher_is_better: bool = False


def paragraphs(source: str) -> list[str]:
    """The English sentences of a reStructuredText page, one paragraph a string; code, grammar and titles are left."""
    blocks = re.split(r"\n\s*\n", source)
    joined = (" ".join(block.split()) for block in blocks if "::=" not in block and ">>>" not in block)
    return [text for text in joined if _is_english(text)]


def _is_english(text: str) -> bool:
    letters = sum(char.isalpha() or char == " " for char in text)
    return len(text.split()) >= 6 and text[-1] in ".:" and letters > 0.85 * len(text)


def documentation() -> tuple[list[str], list[str]]:
    """Paragraphs of Python's documentation to learn from, and held out: apart by topic, none in both."""
    from pydoc_data.topics import topics

    by_topic = {name: paragraphs(topics[name]) for name in sorted(topics)}
    held_out = dict.fromkeys(text for name in HELD_OUT for text in by_topic.get(name, ()))  # in order, each once
    train = dict.fromkeys(text for name, texts in by_topic.items() if name not in HELD_OUT for text in texts)
    return [text for text in train if text not in held_out], list(held_out)


def text_file(path: str | Path) -> tuple[list[str], list[str]]:
    """Paragraphs of a text file, between empty lines or, if there are none, by line; the last tenth is held out."""
    try:
        source = Path(path).read_text(encoding="utf-8-sig")  # a byte order mark is no word
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"text={str(path)!r} cannot be read ({error}): give a text file in UTF-8") from error
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", source) if part.strip()]
    parts = parts if len(parts) >= 10 else [line.strip() for line in source.splitlines() if line.strip()]
    if len(parts) < 10:
        raise ValueError(
            f"text={str(path)!r} holds {len(parts)} paragraphs: give ten or more, with empty lines between"
        )
    cut = len(parts) - max(1, len(parts) // 10)
    return parts[:cut], parts[cut:]


def tokens(tokenizer: Any, texts: Iterable[str]) -> Tensor:
    """The paragraphs as one row of token numbers (tokens,), each ended by the end-of-text token where there is one."""
    eos = getattr(tokenizer, "eos_token_id", None)
    end = [] if eos is None else [eos]
    rows = (tokenizer(text, add_special_tokens=False)["input_ids"] + end for text in texts)
    return torch.tensor([number for row in rows for number in row], dtype=torch.int64)


class Windows(Dataset):
    """Stretches of `context` tokens, each from a start drawn anew: (context,) int64, or (N, context) for a batch."""

    def __init__(self, row: Tensor, context: int) -> None:
        if len(row) <= 2 * context:
            raise ValueError(f"prose: the text has {len(row)} tokens, below two contexts of {context}: lower context")
        self.row, self.context = row, context

    def __len__(self) -> int:
        return len(self.row) // self.context

    def __getitem__(self, index: Any) -> Tensor:
        index = torch.as_tensor(index)  # one number, or a batch of them: (context,) or (N, context)
        start = index * self.context + torch.randint(self.context, index.shape)
        start = start.clamp(max=len(self.row) - self.context)
        return self.row[start[..., None] + torch.arange(self.context)]


def windows(row: Tensor, context: int, batch_size: int) -> tuple[Tensor, ...]:
    """The row cut into (batch_size, context) batches in order; the last stretch shorter than a context is left."""
    count = len(row) // context
    if not count:
        raise ValueError(f"prose: the held-out text has {len(row)} tokens, below one context of {context}: lower it")
    return row[: count * context].view(count, context).split(batch_size)


def logits(output: Any) -> Tensor:
    """The logits (N, T, V) of a language model's output: a tensor, or an object that has them."""
    if isinstance(output, Mapping) or hasattr(output, "logits"):
        return output["logits"] if isinstance(output, Mapping) else output.logits
    return output


def targets(x: Any) -> Tensor:
    """The token numbers (N, T) that are to be foretold: x itself, the 'labels' of a dictionary, or its 'input_ids'."""
    if isinstance(x, Mapping):
        return x[LABELS] if LABELS in x else x["input_ids"]
    return x


def next_token_loss(output: Any, x: Tensor) -> Tensor:
    """Cross-entropy in nats of each token given those before it, the mean over (N, T - 1); -100 is left out."""
    return F.cross_entropy(logits(output)[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten())


def perplexity(batches: Iterable[Tensor]) -> Score:
    """A score: exp of the mean cross-entropy over the held-out windows (N, T), no context carried between windows.

    A batch may be a dictionary of 'input_ids' and, if some tokens do not count, 'labels' that are -100 there.
    """
    batches = tuple(batches)
    if not batches:
        raise ValueError("perplexity: the held-out data are empty: give at least one batch of tokens (N, T)")

    def score(model: nn.Module) -> float:
        device, total, count = next(model.parameters()).device, 0.0, 0
        with torch.no_grad(), evaluating(model):
            for x in batches:
                x = moved(x, device)
                y = targets(x)
                tokens = int((y[:, 1:] != IGNORED).sum())
                total, count = total + tokens * float(next_token_loss(call(model, inputs(x)), y)), count + tokens
        return math.exp(min(total / count, 700.0))  # a broken model gives a huge number, not an error

    return Score(batches, score)
