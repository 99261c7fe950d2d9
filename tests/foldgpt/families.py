"""Every causal language model of the installed `transformers`, built small from its configuration.

    python -m tests.foldgpt.families [NAME ...]

makes `lab/foldgpt/architectures.json` anew, what `lab.foldgpt.architectures()` prints, in some minutes. Given names, it
tries these alone and prints what came of them.
"""

import json
import sys
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from lab.core.errors import first_line
from lab.foldgpt.architectures import PATH
from lab.foldgpt.folding import Fold, folded, removed
from lab.foldgpt.measures import generated
from lab.foldgpt.rehearsal import experts, other_kind, validate_foldable, validate_suits

SMALL = {  # what the families call their sizes; what is not there is left as it is
    "vocab_size": 80, "vocab_size_per_layer_input": 80, "text_vocab_size": 80, "hidden_size": 32, "d_model": 32,
    "n_embd": 32, "embed_dim": 32, "emb_dim": 32, "dim_model": 32, "embedding_size": 32, "num_hidden_layers": 6,
    "n_layer": 6, "n_layers": 6, "num_layers": 6, "decoder_layers": 6, "encoder_layers": 6, "num_attention_heads": 4,
    "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4, "encoder_attention_heads": 4,
    "num_decoder_layers": 6, "num_encoder_layers": 6, "num_decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2, "n_kv_heads": 2,
    "head_dim": 8, "dim_head": 8, "global_head_dim": 8, "rotary_dim": 4, "intermediate_size": 48, "n_inner": 48,
    "ffn_dim": 48, "ffn_hidden_size": 48, "dff": 48, "dim_ff": 48, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48,
    "word_embed_proj_dim": 32, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "top_k": 2, "moe_k": 2, "n_group": 1, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64,
    "max_seq_len": 64, "sliding_window": 16, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    "state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2, "laurel_rank": 4,
    "hidden_size_per_layer_input": 4, "altup_num_inputs": 2, "is_decoder": True, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 4, "linear_num_value_heads": 4, "add_cross_attention": False,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {  # what a family needs besides
    "bart": {"is_encoder_decoder": False},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"activation_sparsity_pattern": [0.0] * 6, "num_kv_shared_layers": 0},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "xmod": {"default_language": "en_XX"},
}
NESTED = ("text_config", "decoder")
LARGEST = 2_000_000  # parameters that are tried; a family that cannot be made so small is asked without weights


def small(name: str) -> Any:
    """A family's configuration with six small layers."""
    kind = CONFIG_MAPPING[name]
    values = kind().to_dict()
    changed = {key: value for key, value in SMALL.items() if key in values}
    if "qk_rope_head_dim" in values:  # of keys that are kept compressed: positions turn a part of a head
        changed |= {"head_dim": SMALL["qk_rope_head_dim"], "num_key_value_heads": SMALL["num_attention_heads"]}
    for part in NESTED:
        if isinstance(values.get(part), dict):
            changed[part] = {key: value for key, value in SMALL.items() if key in values[part]}
    count = values.get("num_hidden_layers")
    for key, value in values.items():  # lists of layers, as long as there are layers
        if isinstance(value, list) and isinstance(count, int) and len(value) == count != 6:
            changed[key] = (value * 6)[:6]
    return kind(**changed | OWN.get(name, {}))


def model(name: str) -> nn.Module:
    """A family's model of six blocks that all count; on the meta device where it is large."""
    config = small(name)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    if sum(p.numel() for p in empty.parameters()) > LARGEST:
        return empty
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.05 * torch.randn_like(p))
    return net


def names() -> list[str]:
    """All model types that `transformers` has a causal language model for."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tried(name: str) -> tuple[str, str, str, str | None]:
    """A family's name, its class, what came of folding it, and why; errors but of one line are raised."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]
    try:
        net = model(name)
        reason = other_kind(net, net.config)
        large = next(net.parameters()).is_meta
        if not reason and not large:
            with torch.no_grad():
                net(torch.arange(1, 9)[None])
    except Exception as error:  # of a hundred families, each its own
        return (
            name,
            kind,
            "not tried",
            f"not built small ({type(error).__name__}: {' '.join(str(error).split())[:120]})",
        )
    if reason or large:
        return name, kind, *(("refused", f"{kind} {reason}") if reason else ("not tried", "not built small enough"))
    try:
        validate_suits(net, None)
        shares = not experts(net)
        validate_foldable(net, 1, shares)
    except ValueError as error:
        assert "\n" not in str(error), f"{name}: {error}"
        return name, kind, "refused", str(error)
    return name, kind, *generates(net, shares)


def generates(net: nn.Module, shares: bool) -> tuple[str, str | None]:
    """What to say of a model that was folded: its cache must change no token."""
    small = folded(net, Fold((0, 2, 3, 4), ((2, 3),), 2)) if shares else removed(net, (0, 2, 3, 4))
    x = torch.arange(1, 9)[None]
    assert torch.equal(generated(small, x, 6), generated(small, x, 6, cache=False))
    return ("works", None) if shares else ("removal only", "its blocks hold experts, which are not shared")


def written(rows: list[tuple[str, str, str, str | None]]) -> str:
    """What `lab/foldgpt/architectures.json` holds."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    return f'{{\n "transformers": "{transformers.__version__}",\n "rows": [\n{lines}\n ]\n}}\n'


if __name__ == "__main__":
    logging.set_verbosity_error()
    rows = []
    for name in sys.argv[1:] or names():
        try:
            rows.append(tried(name))
        except Exception as error:
            rows.append((name, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name], "FAILED", f"{type(error)} {first_line(error)}"))
        print(*rows[-1], flush=True)
    if not sys.argv[1:]:
        PATH.write_text(written(rows))
