"""Small random diffusion models of the three families, and what the tests draw with them."""

from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lab.core.training import seeded

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def unet(seed=0, width=8, **changes):
    """A U-Net of two levels for 8 x 8 latents."""
    settings = {
        "sample_size": 8, "block_out_channels": (width, 2 * width), "norm_num_groups": 4, "cross_attention_dim": 16,
        "layers_per_block": 1, "attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    with seeded(seed):
        return UNet2DConditionModel(**{**settings, **changes}).eval()


def tokenizer(length=16):
    """Letters only: every word is spelled."""
    letters = "abcdefghijklmnopqrstuvwxyz,."
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=length)


def text_encoder(kind=CLIPTextModel, seed=1, width=16):
    with seeded(seed):
        config = CLIPTextConfig(
            vocab_size=58, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, projection_dim=12, bos_token_id=56, eos_token_id=57, pad_token_id=57,
        )  # fmt: skip
        return kind(config).eval()


def vae(seed=2):
    with seeded(seed):
        return AutoencoderKL(
            block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, sample_size=16,
        ).eval()  # fmt: skip


def tiny_vae(seed=3):
    with seeded(seed):
        return AutoencoderTiny(
            encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1), latent_channels=4,
        ).eval()  # fmt: skip


def sd(seed=0, **changes):
    """Stable Diffusion 1.x in small."""
    return StableDiffusionPipeline(
        vae(), text_encoder(), tokenizer(), unet(seed, **changes), DPMSolverMultistepScheduler(**SCHEDULE),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def lcm(seed=0):
    """A latent consistency model in small: its U-Net embeds the guidance."""
    return LatentConsistencyModelPipeline(
        vae(), text_encoder(), tokenizer(), unet(seed, time_cond_proj_dim=8), LCMScheduler(**SCHEDULE),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 36,
      "cross_attention_dim": 32}  # fmt: skip


def sdxl(seed=0):
    """SDXL in small: two text encoders, one pooled vector, the picture's size."""
    return StableDiffusionXLPipeline(
        vae(), text_encoder(), text_encoder(CLIPTextModelWithProjection, 4), tokenizer(), tokenizer(),
        unet(seed, **XL), DPMSolverMultistepScheduler(**SCHEDULE), add_watermarker=False,
    )  # fmt: skip


FAMILIES = {"sd": sd, "sdxl": sdxl, "lcm": lcm}
