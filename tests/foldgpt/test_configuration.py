"""What a configuration says of single layers goes with them, or the model is refused."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

import lab
from lab.core.data import text
from lab.foldgpt.configuration import keep_layers
from lab.foldgpt.folding import Fold, folded, gates, removed, unrolled

from .small import COMMON, tokens
from .test_models import logits, outcome

KEPT = (1, 2, 4, 5)
OF_LAYERS = {  # families that say something of single layers
    "smollm3": {"num_key_value_heads": 2, "no_rope_layer_interval": 3},
    "qwen2": {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    "cohere2": {"num_key_value_heads": 2, "sliding_window": 4},
}
REFUSED = {  # and that keep it where no list says so
    "gpt_neo": {"vocab_size": 80, "hidden_size": 32, "num_layers": 6, "num_heads": 4, "window_size": 4,
                "attention_types": [[["global", "local"], 3]], "max_position_embeddings": 64},
    "gpt2": {"vocab_size": 80, "n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 64,
             "scale_attn_by_inverse_layer_idx": True},
}  # fmt: skip


def made(family: str, settings: dict):
    """A model of six blocks that all count."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return net


@pytest.mark.slow
@pytest.mark.parametrize("family", OF_LAYERS)
def test_the_smaller_model_is_the_larger_one_with_the_others_shut(family, tmp_path):
    net, x = made(family, COMMON | OF_LAYERS[family]), tokens()
    with gates(net, torch.tensor([1.0 if block in KEPT else 0.0 for block in range(6)])):
        wanted = logits(net, x)
    plain = removed(net, KEPT)
    assert torch.allclose(logits(plain, x), wanted, atol=1e-5)
    plain.save_pretrained(tmp_path / "plain")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.allclose(logits(read, x), wanted, atol=1e-5)
    pair = folded(net, Fold(KEPT, ((1, 2),), 2))
    outcome(pair).save(tmp_path / "pair")
    assert torch.equal(logits(lab.load(tmp_path / "pair").model, x), logits(pair, x))
    unrolled(pair).save_pretrained(tmp_path / "unrolled")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "unrolled")
    assert torch.allclose(logits(read, x), logits(pair, x), atol=1e-4)


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_whose_layers_hang_on_their_number_is_refused_before_training(family):
    x = [tokens(4, 16)]
    task = lab.Task(model=made(family, REFUSED[family]), batches=x, score=text.perplexity(x), metric="perplexity",
                    unit="")  # fmt: skip
    with pytest.raises(ValueError, match="give a model whose") as error:
        lab.FoldGPT(removal=1 / 6, sharing=0.0).run(task, progress=False)
    assert "\n" not in str(error.value)


@given(st.sets(st.integers(0, 5), min_size=1), st.sets(st.integers(0, 5)), st.integers(0, 9))
def test_every_list_of_layers_is_cut_with_them(kept, some, first):
    kept = tuple(sorted(kept))
    said = {"layer_types": list("abcdef"), "no_rope_layers": [1, 1, 0, 1, 1, 0], "windows": (4, 8, 4, 8, 4, 8),
            "mlp_only_layers": sorted(some), "max_window_layers": first, "num_hidden_layers": 6,
            "eos_token_id": [1, 2, 3, 4, 5, 6], "architectures": ["one"], "hidden_size": 32}  # fmt: skip
    config = SimpleNamespace(**said)
    config.get_text_config = lambda decoder: config
    keep_layers(config, kept)
    for name in ("layer_types", "no_rope_layers", "windows"):
        assert list(getattr(config, name)) == [said[name][block] for block in kept]
    assert {kept[layer] for layer in config.mlp_only_layers} == some & set(kept)
    assert all((layer < config.max_window_layers) == (block < first) for layer, block in enumerate(kept))
    assert config.num_hidden_layers == len(kept)
    assert all(getattr(config, name) == said[name] for name in ("eos_token_id", "architectures", "hidden_size"))
