"""Small random models of each family, made here."""

from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {"vocab_size": 80, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4,
          "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 0,
          "eos_token_id": 0}  # fmt: skip
FAMILIES = {
    "llama": {**COMMON, "num_key_value_heads": 2},
    "mistral": {**COMMON, "num_key_value_heads": 2, "sliding_window": 16},
    "qwen2": {**COMMON, "num_key_value_heads": 2},
    "qwen3": {**COMMON, "num_key_value_heads": 2, "head_dim": 8},
    "gemma": {**COMMON, "num_key_value_heads": 1, "head_dim": 8},
    "gpt2": {"vocab_size": 80, "n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 64, "pad_token_id": 0,
             "bos_token_id": 0, "eos_token_id": 0},
    "gpt_neox": COMMON,
}  # fmt: skip


def model(family: str, dtype: torch.dtype = torch.float32):
    """A model of six blocks in eval mode, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **FAMILIES[family])
        net = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        with torch.no_grad():
            for p in net.parameters():  # larger than usual, so that every block counts
                p.add_(0.05 * torch.randn_like(p))
        return net


def tokens(rows: int = 2, length: int = 12) -> torch.Tensor:
    """Token numbers (rows, length), 1 to 79."""
    return torch.randint(1, 80, (rows, length), generator=torch.Generator().manual_seed(3))


class Letters:
    """A tokenizer of letters, for tasks of a test's own."""

    pad_token_id, eos_token_id = 0, 0

    def __len__(self) -> int:
        return 80

    def __call__(self, text: str, add_special_tokens: bool = False):
        return {"input_ids": [1 + ord(c) % 79 for c in text]}

    def save_pretrained(self, folder) -> None:
        """Nothing to keep."""


WITHOUT_PADDING = SimpleNamespace(pad_token_id=None, eos_token_id=1)
