"""Causal language models and tokenizers of `transformers`, by folder or id, with errors that say what to do."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import hub, store
from .distribution import install
from .modeling_folded import FoldedForCausalLM, quiet

WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"language models need transformers: {install('language')}") from error
    return transformers


def language_model(source: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The causal language model of a folder or an id, in eval mode; a folder is read without a network.

    A folder whose layers share weights, as FoldGPT saves one, is read by the lab's own code; code that a folder brings
    is never run. ValueError in one line for weights that are missing or damaged.
    """
    folder = store.present(source)
    if folder.exists():
        if not any(path for kind in WEIGHTS for path in folder.glob(kind)):
            raise ValueError(f"{folder} holds no weights: name a folder with a config.json and a model.safetensors")
        if not (folder / "config.json").exists():
            raise ValueError(f"{folder} holds no config.json: name a folder that save_pretrained wrote")
    elif not hub.is_id(source):
        raise ValueError(f"model={str(source)!r} is no folder here and no id of the hub: give one of these")
    transformers = _library()
    try:
        if folder.exists() and "fold" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
            return FoldedForCausalLM.from_pretrained(folder, dtype=dtype)
        with torch.random.fork_rng(devices=[]), quiet():
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                str(folder) if folder.exists() else str(source),
                local_files_only=folder.exists(),
                dtype=dtype,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # transformers, safetensors and the hub have a dozen kinds
        raise ValueError(f"model={str(source)!r} {_reason(error)}: give a folder or an id of the hub") from error
    if missing := loading["missing_keys"]:
        raise ValueError(
            f"model={str(source)!r} holds no {min(missing)}, one of {len(missing)} tensors that would be random: give "
            "a folder that holds the whole causal language model"
        )
    return model.eval()


def tokenizer(source: str | Path) -> Any:
    """The tokenizer of a folder or an id; code that a folder brings is never run."""
    folder = store.present(source)
    try:
        return _library().AutoTokenizer.from_pretrained(
            str(folder) if folder.exists() else str(source), local_files_only=folder.exists(), trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises its own kind, which is no other than Exception
        raise ValueError(f"the tokenizer of {source} {_reason(error)}: give tokenizer=") from error


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            "is made by code that its folder brings, which is not run here; load it with transformers and "
            "trust_remote_code=True if you trust that code, and give what was loaded"
        )
    return f"cannot be read ({' '.join(str(error).split())[:160]})"


def check(model: nn.Module, words: Any, context: int) -> None:
    """Raise a one-line ValueError unless model, tokenizer and context go together."""
    if not isinstance(context, int) or isinstance(context, bool) or context < 2:
        raise ValueError(f"context={context!r}: give an integer number of tokens, 2 or more")
    if getattr(words, "pad_token_id", None) is None:
        ended = getattr(words, "eos_token_id", None) is not None
        remedy = "tokenizer.eos_token" if ended else "one of its own tokens, such as tokenizer.convert_ids_to_tokens(0)"
        raise ValueError(f"the tokenizer has no padding token: set tokenizer.pad_token = {remedy}")
    config = getattr(model, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    if limit and context > limit:
        raise ValueError(f"context={context} is longer than the model's {limit} tokens: give at most {limit}")
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary and len(words) > vocabulary:
        raise ValueError(
            f"the tokenizer has {len(words)} tokens, the model {vocabulary}: give the model's own, tokenizer="
        )
