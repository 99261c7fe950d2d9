"""Small random diffusion models of the three families, and what the tests draw with them."""

from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

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


# -- transformers ------------------------------------------------------------------------------------------------------


def t5(seed=4, width=16):
    with seeded(seed):
        config = T5Config(
            vocab_size=60, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
        )
        return T5EncoderModel(config).eval()


def t5_tokenizer(length=16):
    """Letters only, padded by 0 as T5 does."""
    words = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz,. "]
    letters = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=letters, model_max_length=length, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def flow_vae(channels, seed=2):
    """SD3's and Flux's latents have a shift."""
    with seeded(seed):
        return AutoencoderKL(
            block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=channels,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, sample_size=16, scaling_factor=1.5,
            shift_factor=0.06,
        ).eval()  # fmt: skip


def sd3_transformer(seed=0, layers=2):
    with seeded(seed):
        return SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=layers, attention_head_dim=8, num_attention_heads=2,
            caption_projection_dim=16, joint_attention_dim=32, pooled_projection_dim=24, out_channels=4,
            pos_embed_max_size=16,
        ).eval()  # fmt: skip


def flux_transformer(seed=0, layers=1, guidance=True):
    with seeded(seed):
        return FluxTransformer2DModel(
            in_channels=16, num_layers=layers, num_single_layers=layers, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=guidance, axes_dims_rope=(4, 4, 8),
        ).eval()  # fmt: skip


def pixart_transformer(seed=0, layers=2, **changes):
    with seeded(seed):
        return PixArtTransformer2DModel(
            sample_size=8, num_layers=layers, patch_size=2, attention_head_dim=8, num_attention_heads=2,
            caption_channels=16, cross_attention_dim=16, in_channels=4, out_channels=8, **changes,
        ).eval()  # fmt: skip


def sd3(seed=0, layers=2):
    """Stable Diffusion 3 in small: a flow, two CLIPs and T5."""
    clips = [text_encoder(CLIPTextModelWithProjection, i) for i in (1, 4)]
    return StableDiffusion3Pipeline(
        sd3_transformer(seed, layers), FlowMatchEulerDiscreteScheduler(shift=3.0), flow_vae(4), clips[0], tokenizer(),
        clips[1], tokenizer(), t5(width=32), t5_tokenizer(),
    )  # fmt: skip


def flux(seed=0, layers=1, guidance=True):
    """Flux in small: a flow that is shifted by the picture's size, and guidance as an input."""
    shifted = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return FluxPipeline(
        shifted,
        flow_vae(4),
        text_encoder(),
        tokenizer(),
        t5(),
        t5_tokenizer(),
        flux_transformer(seed, layers, guidance),
    )


def pixart(seed=0, layers=2, kind=PixArtAlphaPipeline):
    """PixArt in small: a diffusion, T5, a variance that is learned and not used."""
    schedule = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    return kind(t5_tokenizer(), t5(), vae(), pixart_transformer(seed, layers), schedule)


TRANSFORMERS = {"sd3": sd3, "flux": flux, "pixart": pixart}
