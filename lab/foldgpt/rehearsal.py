"""What is asked of a language model before anything is trained: that its blocks can go, share, and be saved so."""

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.data.text import logits
from ..core.errors import first_line
from ..core.modeling_folded import FoldedForCausalLM, LowRank, blocks, quiet
from ..core.task import evaluating
from .folding import Fold, alike, folded, probe, uniform

FEWEST = 4  # blocks: one that goes, one that stays, and two that share
MORE_THAN_TEXT = re.compile(r"vision|audio|image|video|codec|encoder|decoder|patcher")  # parts of a configuration
CROSS = re.compile(r"cross_?attn|cross_?attention|encoder_?attn|encoder_decoder_attention", re.IGNORECASE)
RECURRENT = re.compile(r"mamba|rwkv|ssm|recurrent|linear_attention|conv|mlstm|slstm", re.IGNORECASE)
BARE = (TypeError, IndexError, KeyError, AttributeError, RuntimeError, NotImplementedError, ZeroDivisionError)


def validate_suits(model: nn.Module, example: Any) -> None:
    """Raise a one-line ValueError for a model that is no plain decoder of four or more equal blocks of attention.

    `example` is not looked at: every model is asked on tokens of its own.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    layers = blocks(model)
    if config is None:
        raise ValueError(f"{name} has no config: give a causal language model of transformers")
    if getattr(config, "fold", None):
        raise ValueError(f"{name} is folded already: give outcome.unroll(), whose layers share nothing")
    reason = other_kind(model, config)
    if reason:
        raise ValueError(f"{name} {reason}")
    if len(layers) < FEWEST:
        raise ValueError(f"{name} has {len(layers)} blocks: give a model of {FEWEST} or more")
    uniform(model)
    try:
        looks_back = _looks_back_only(model)
    except BARE as error:
        raise ValueError(f"{name} cannot be run on tokens alone ({first_line(error)}): give another model") from error
    if not looks_back:
        raise ValueError(
            f"{name} is not a causal decoder, it reads words before it names them: give one with is_decoder"
        )


def other_kind(model: Any, config: Any) -> str | None:
    """Why a model is no plain decoder, and what to give instead; None if it is one."""
    parts = sorted(part for part in type(config).sub_configs if MORE_THAN_TEXT.search(part))
    if parts:
        return f"reads more than text ({parts[0]}): give its language model alone"
    if getattr(config, "is_encoder_decoder", False):
        return "has an encoder: give a model of a decoder alone"
    if any(CROSS.search(path) for path, _ in model.named_modules()):
        return "has cross-attention, which looks at another model: give a decoder without"
    kinds = [kind for kind in getattr(config, "layer_types", None) or () if RECURRENT.search(kind)]
    if kinds or getattr(model, "_is_stateful", False) or getattr(config, "use_mamba", False):
        return "keeps a state that is no keys and values, as Mamba and its hybrids do: give a model of attention alone"
    return None


def _looks_back_only(model: Any) -> bool:
    """Whether what is said of a word hangs on the words before it alone."""
    x = probe(model, 8)
    other = torch.cat([x[:, :-1], x[:, :1]], 1)  # another last word
    with torch.no_grad(), evaluating(model):
        return alike(logits(model(other))[:, :-1], logits(model(x))[:, :-1])


def experts(model: nn.Module) -> bool:
    """Whether blocks of a model choose among experts: these are removed, and neither shared nor adapted."""
    return any("expert" in f"{path} {type(module).__name__}".lower() for path, module in blocks(model).named_modules())


def computes_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 itself; where torch does not say, it is taken to."""
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return asked is None or bool(asked())


def emulation(model: nn.Module) -> str | None:
    """A line for the report where a model in bfloat16 lies on a processor that only emulates it."""
    p = next(model.parameters())
    if p.dtype != torch.bfloat16 or p.device.type != "cpu" or computes_bfloat16():
        return None
    return "bfloat16 is emulated by this processor, which is slow: give lab.tasks.prose(dtype=torch.float32)"


def validate_foldable(model: Any, removals: int, sharing: bool) -> None:
    """Raise a one-line ValueError unless a small fold of the model gives the same after it was saved and read again.

    The fold keeps blocks 1 and 2, all blocks where nothing is removed; these share where `sharing`.
    """
    count = len(blocks(model))
    kept = (1, 2) if removals else tuple(range(count))
    pair = ((kept[0], kept[1]),) if sharing else ()
    try:
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]), torch.no_grad():
            copy = folded(model, Fold(kept, pair, 1 if pair else 0))
            for module in copy.modules():
                if isinstance(module, LowRank):
                    module.B.fill_(0.01)  # zero would say nothing of an adapter that is lost
            write_model(copy, Path(folder))
    except BARE as error:
        raise ValueError(
            f"{type(model).__name__} cannot be folded ({first_line(error)}): give another model"
        ) from error


def write_model(model: Any, folder: Path) -> None:
    """Write a model as `transformers` reads it; ValueError unless what was written gives what the model does."""
    with quiet():
        model.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):  # which are written for their owner alone
        path.chmod((folder / "config.json").stat().st_mode)
    x, read = probe(model), FoldedForCausalLM.from_pretrained(folder)
    with torch.no_grad(), evaluating(model):
        if not alike(logits(read.to(x.device)(x)), logits(model(x))):
            raise ValueError(
                f"{type(model).__name__} answers otherwise after it was saved and read again, so nothing was kept: "
                "save outcome.unroll() with its save_pretrained"
            )
