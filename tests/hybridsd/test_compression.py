"""A small U-Net out of a large one: what is left out, what is cut, and what it learns."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.data import TensorDataset

from lab.core.data.batches import shuffled
from lab.core.training import seeded
from lab.hybridsd import blocks
from lab.hybridsd.blocks import unet_of
from lab.hybridsd.distillation import distil, pairs

from . import small

SD = {
    "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8,
    "sample_size": 64,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(scope="module")
def large():
    with seeded(0):
        return UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32, 32), layers_per_block=2, norm_num_groups=8,
            cross_attention_dim=16, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        ).eval()  # fmt: skip


def test_counts_of_stable_diffusion_and_of_bk_tiny():
    with torch.device("meta"):
        whole = UNet2DConditionModel(**SD)
        tiny = UNet2DConditionModel(
            **SD | {"block_out_channels": (320, 640, 1280), "layers_per_block": 1, "mid_block_type": None,
                    "down_block_types": SD["down_block_types"][:3], "up_block_types": SD["up_block_types"][1:]}
        )  # fmt: skip
        instance = blocks.narrowed(
            tiny,
            [256, 480, 320, 320, 640, 160, 160, 96, 256],
            [heads for first in (6, 4, 8, 6, 8, 8, 8, 8, 6) for heads in (first, 8)],
        )
    assert count(whole) == 859_520_964 and count(tiny) == 323_384_964
    assert count(instance) == 224_491_396
    assert pairs(whole, tiny) == [
        ("down_blocks.0", "down_blocks.0"),
        ("down_blocks.1", "down_blocks.1"),
        ("down_blocks.2.attentions.1.proj_out", "down_blocks.2.attentions.0.proj_out"),
        ("up_blocks.1", "up_blocks.0"),
        ("up_blocks.2", "up_blocks.1"),
        ("up_blocks.3", "up_blocks.2"),
    ]


def test_blocks_left_out_leave_a_plain_unet_with_the_large_ones_weights(large, tmp_path):
    made = blocks.without_blocks(large)
    assert made.mid_block is None and len(made.down_blocks) == 2 and len(blocks.residual_blocks(made)) == 6
    assert torch.equal(made.up_blocks[0].resnets[1].conv1.weight, large.up_blocks[1].resnets[2].conv1.weight)
    assert torch.equal(made.down_blocks[1].resnets[0].conv2.weight, large.down_blocks[1].resnets[0].conv2.weight)
    made.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)
    with torch.no_grad():
        assert torch.equal(again(x, 3, text).sample, made(x, 3, text).sample)


@pytest.mark.slow
def test_narrowed_is_the_masked_original(large, tmp_path):
    plain = blocks.without_blocks(large)
    before = {name: x.clone() for name, x in plain.state_dict().items()}
    widths = [8, *[block.conv1.out_channels for block in blocks.residual_blocks(plain)][1:]]
    heads = [2] + [4] * (len(blocks.attentions(plain)) - 1)
    made = blocks.narrowed(plain, widths, heads)
    assert all(torch.equal(before[name], x) for name, x in plain.state_dict().items())
    masked = blocks.narrowed(plain, [block.conv1.out_channels for block in blocks.residual_blocks(plain)])
    masked.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_out[0].weight.data[:, 8:] = 0
    masked.down_blocks[0].resnets[0] = made.down_blocks[0].resnets[0]  # norm2's groups are others: not a mask
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    with torch.no_grad():
        assert torch.allclose(made(x, 3, text).sample, masked(x, 3, text).sample, atol=1e-5)
    made.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(unet_of(tmp_path)(x, 3, text).sample, made(x, 3, text).sample)
    kept = plain.down_blocks[0].resnets[0].conv1.weight.flatten(1).norm(dim=1).topk(8).indices.sort().values
    assert torch.equal(made.down_blocks[0].resnets[0].conv1.weight, plain.down_blocks[0].resnets[0].conv1.weight[kept])


def test_the_released_rule_of_widths():
    assert [blocks.kept_width(c, r) for c, r in ((320, 0.25), (640, 0.5), (1280, 0.75))] == [96, 320, 960]
    assert blocks.kept_width(128, 0.5) == 128  # 64 or below: left alone
    assert blocks.kept_width(80, 0.25, unit=16, least=0) == 32


def test_what_does_not_fit_is_told(large):
    plain = blocks.without_blocks(large)
    with pytest.raises(ValueError, match="1 widths and 12 heads for 6 residual blocks and 12 attentions"):
        blocks.narrowed(plain, [8])
    with pytest.raises(ValueError, match="a width of 12 is not a multiple of the 8 groups"):
        blocks.narrowed(plain, [12, 32, 32, 32, 16, 16])
    with pytest.raises(ValueError, match="heads=9 is not allowed: give 1 to 4"):
        blocks.narrowed(plain, [16, 32, 32, 32, 16, 16], [9] + [4] * 11)


@pytest.mark.slow
def test_distillation_brings_the_student_nearer_and_resumes(large, tmp_path):
    alphas = torch.linspace(0.99, 0.05, 100)
    x, ids = torch.randn(32, 4, 8, 8), torch.arange(32)
    text = torch.randn(32, 5, 16)

    def run(folder, steps):
        with seeded(1):
            student = blocks.without_blocks(large).train()
            batches = shuffled(TensorDataset(x, ids), 8)
            options = {"steps": steps, "lr": 1e-3, "checkpoint": folder, "progress": False}
            trace = list(distil(large, student, alphas, lambda i: text[i], batches, **options))
        return student, trace

    student, trace = run(tmp_path / "a", 24)
    assert set(trace[0].terms) == {"noise", "output", "features"}
    first, last = (sum(step.terms["features"] for step in part) for part in (trace[:6], trace[-6:]))
    assert last < 0.8 * first, (first, last)
    run(tmp_path / "b", 12)
    again, _ = run(tmp_path / "b", 24)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))
    assert not student.down_blocks[0]._forward_hooks and not large.down_blocks[0]._forward_hooks


@pytest.mark.parametrize(("flow", "velocity"), [(True, False), (False, True), (False, False)])
def test_the_student_is_asked_about_its_own_kind_of_noise_at_the_times_that_are_asked_for(large, flow, velocity):
    seen = []

    class Told(torch.nn.Module):
        """Says at each time what the loss wants, which the picture (all zeros) and the noise tell."""

        def __init__(self):
            super().__init__()
            self.inner = blocks.without_blocks(large)
            self.down_blocks, self.up_blocks = self.inner.down_blocks, self.inner.up_blocks
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, noisy, t, text):
            seen.extend(t.tolist())
            self.inner(noisy, t, text)  # for the features
            level = levels[t].view(-1, 1, 1, 1)
            noise = noisy / (level if flow else (1 - level).sqrt())
            return SimpleNamespace(sample=self.scale * (noise * level.sqrt() if velocity else noise))

    levels, often = torch.linspace(0.9, 0.1, 10), torch.tensor([0.0] * 7 + [1.0, 1.0, 0.0])
    batches, text = [(torch.zeros(8, 4, 8, 8), torch.arange(8))], torch.randn(8, 5, 16)
    options = {"steps": 1, "progress": False, "flow": flow, "velocity": velocity, "often": often}
    with seeded(0):
        (step,) = distil(large, Told(), levels, lambda ids: text[ids], batches, **options)
    assert step.terms["noise"] < 1e-10 and set(seen) <= {7, 8}


def test_one_stage_cannot_lose_its_innermost():
    with pytest.raises(ValueError, match="has one stage"):
        blocks.without_blocks(
            small.unet(block_out_channels=(8,), down_block_types=("CrossAttnDownBlock2D",),
                       up_block_types=("CrossAttnUpBlock2D",))
        )  # fmt: skip
