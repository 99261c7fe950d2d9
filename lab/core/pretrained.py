"""Causal language models and tokenizers of `transformers`, by folder or id, with errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("language models need transformers: pip install 'lab[language]'") from error
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own progress bars, for a block."""
    logging = _library().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def language_model(source: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The causal language model of a folder or an id, in eval mode; a folder is read without a network."""
    folder = Path(source)
    if folder.exists():
        if not any(found for kind in WEIGHTS for found in folder.glob(kind)):
            raise ValueError(f"{folder} holds no weights: name a folder with a config.json and a model.safetensors")
        if not (folder / "config.json").exists():
            raise ValueError(f"{folder} holds no config.json: name a folder that save_pretrained wrote")
    try:
        options = {"local_files_only": folder.exists(), "dtype": dtype}
        with torch.random.fork_rng(devices=[]), _quiet():
            return _library().AutoModelForCausalLM.from_pretrained(str(source), **options).eval()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"model={str(source)!r} cannot be read ({reason}): give a folder or an id of the hub"
        ) from error


def tokenizer(source: str | Path) -> Any:
    """The tokenizer of a folder or an id."""
    try:
        return _library().AutoTokenizer.from_pretrained(str(source), local_files_only=Path(source).exists())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{source} holds no tokenizer ({reason}): give tokenizer=") from error


def check(model: nn.Module, words: Any, context: int) -> None:
    """Raise a one-line ValueError unless model, tokenizer and context go together."""
    if not isinstance(context, int) or isinstance(context, bool) or context < 2:
        raise ValueError(f"context={context!r}: give a whole number of tokens, 2 or more")
    if words.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token: set tokenizer.pad_token = tokenizer.eos_token")
    config = getattr(model, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    if limit and context > limit:
        raise ValueError(f"context={context} is longer than the model's {limit} tokens: give at most {limit}")
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary and len(words) > vocabulary:
        raise ValueError(
            f"the tokenizer has {len(words)} tokens, the model {vocabulary}: give the model's own, tokenizer="
        )
