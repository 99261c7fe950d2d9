"""LoRA adapters by folder, on either side: what peft computes beside a layer is in its weights afterwards."""

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from lab.hybridsd.adapters import add_lora
from lab.hybridsd.pipeline import HybridPipeline

from . import small

NAME = "pytorch_lora_weights.safetensors"


def adapter(model, folder, seed=5):
    """A random adapter of a model, stored as diffusers does; the model with it beside its layers."""
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    model.add_adapter(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    layers = peft.get_peft_model_state_dict(model)
    metadata = {"unet_lora_adapter_metadata": config.to_dict()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, **metadata)
    return model


def asked(model):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 8, 8, generator=g), torch.randn(1, 16, 16, generator=g)
    with torch.no_grad():
        return model(x, torch.tensor(7), encoder_hidden_states=text, return_dict=False)[0]


def is_same(a, b):
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_an_adapter_is_in_the_weights_and_nothing_else_is_there(tmp_path):
    beside, plain = adapter(small.unet(0), tmp_path), small.unet(0)
    names = plain.state_dict().keys()
    add_lora(plain, tmp_path)
    assert torch.allclose(asked(plain), asked(beside), atol=1e-5)
    assert not torch.allclose(asked(plain), asked(small.unet(0)), atol=1e-3)
    assert plain.state_dict().keys() == names and not getattr(plain, "peft_config", None)


def test_each_side_has_adapters_of_its_own(tmp_path):
    small.sd().save_pretrained(tmp_path / "cloud")
    small.unet(1).save_pretrained(tmp_path / "edge")
    for i, name in enumerate(("one", "two")):
        adapter(small.unet(i), tmp_path / name, seed=i)
    folders = tmp_path / "cloud", tmp_path / "edge"
    both = HybridPipeline.from_pretrained(*folders, lora=tmp_path / "one", edge_lora=tmp_path / "two")
    parts = [small.unet(0), small.unet(1)]
    for model, name in zip(parts, ("one", "two"), strict=True):
        add_lora(model, tmp_path / name)
    assert all(is_same(a, b) for a, b in zip(both.unets, parts, strict=True))
    cloud = HybridPipeline.from_pretrained(*folders, lora=tmp_path / "one" / NAME)
    assert is_same(cloud.unets[0], parts[0]) and is_same(cloud.unets[1], small.unet(1))
    with pytest.raises(ValueError, match="edge_lora has 1 adapters for 2 edges: give one for each"):
        HybridPipeline.from_pretrained(folders[0], [folders[1]] * 2, edge_lora=[tmp_path / "one"])


def test_what_is_no_adapter_of_the_model_is_one_line_and_leaves_it_as_it_was(tmp_path):
    adapter(small.unet(0), tmp_path)
    weights = load_file(tmp_path / NAME)
    cases = {
        "wide": {name: torch.zeros(3 * x.shape[0], x.shape[1]) for name, x in weights.items()},
        "other": {"unet.nowhere.lora_A.weight": torch.zeros(2, 8), "unet.nowhere.lora_B.weight": torch.zeros(8, 2)},
        "text": {**weights, "text_encoder.q.lora_A.weight": torch.zeros(2, 2)},
    }
    words = {
        "wide": "is no LoRA adapter of this UNet2DConditionModel",
        "other": "is no LoRA adapter of this UNet2DConditionModel",
        "text": "changes a text encoder, which both",
        "empty": "holds no LoRA adapter: give a folder",
        "rubbish": "cannot be read",
    }
    for name in words:
        (tmp_path / name).mkdir()
        if name in cases:
            save_file(cases[name], tmp_path / name / NAME)
    (tmp_path / "rubbish" / NAME).write_bytes(b"rubbish" * 9)
    for name, line in words.items():
        model = small.unet(0)
        with pytest.raises(ValueError, match=line) as caught:
            add_lora(model, tmp_path / name)
        assert "\n" not in str(caught.value)
        assert is_same(model, small.unet(0)) and not getattr(model, "peft_config", None), name
