"""The kinds of denoisers: how a U-Net and the transformers of SD3, Flux and PixArt are asked for a prediction."""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from . import equations as eq

Inputs = Mapping[str, torch.Tensor]
_PAINTED = "painted over"  # among a U-Net's further inputs
_FLUX_SIDE = 128  # latents of a picture of 1024: Flux's config does not say it


def _unet(model: Any, latent: torch.Tensor, t: torch.Tensor, text: torch.Tensor, added: Inputs, emb: Inputs) -> Any:
    further = dict(added)
    if paints(model):  # mask and picture beside the latent: (B, 2 C + 1, h, w)
        b, c, h, w = latent.shape
        over = further.pop(_PAINTED, None)
        latent = torch.cat([latent, latent.new_zeros(b, c + 1, h, w) if over is None else over.to(latent)], 1)
    added_cond = {"added_cond_kwargs": further or None}
    return model(latent, t, encoder_hidden_states=text, return_dict=False, **added_cond, **emb)[0]


def _sd3(model: Any, latent: torch.Tensor, t: torch.Tensor, text: torch.Tensor, added: Inputs, emb: Inputs) -> Any:
    times = t.expand(len(latent))
    return model(latent, encoder_hidden_states=text, timestep=times, return_dict=False, **added, **emb)[0]


def _flux(model: Any, latent: torch.Tensor, t: torch.Tensor, text: torch.Tensor, added: Inputs, emb: Inputs) -> Any:
    b, c, h, w = latent.shape
    # 2 x 2 neighbours side by side are a token of 4 C numbers: (B, h/2 w/2, 4 C)
    tokens = latent.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)
    rows, columns = (torch.arange(side // 2, device=latent.device, dtype=latent.dtype) for side in (h, w))
    at = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)  # (h/2 w/2, 2)
    output = model(
        hidden_states=tokens,
        encoder_hidden_states=text,
        timestep=t.expand(b).to(latent.dtype) / 1000,
        # a picture's tokens are told apart by row and column, a text's are all at 0
        img_ids=torch.nn.functional.pad(at, (1, 0)),
        txt_ids=text.new_zeros(text.shape[1], 3),
        return_dict=False,
        **added,
        **emb,
    )[0]
    return output.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def _pixart(model: Any, latent: torch.Tensor, t: torch.Tensor, text: torch.Tensor, added: Inputs, emb: Inputs) -> Any:
    # the pictures' sizes are asked by the first PixArt's model of 1024 alone
    sizes = {name: added[name] if model.config.sample_size == 128 else None for name in ("resolution", "aspect_ratio")}
    output = model(
        latent,
        encoder_hidden_states=text,
        encoder_attention_mask=added["encoder_attention_mask"],
        timestep=t.expand(len(latent)),
        added_cond_kwargs=sizes,
        return_dict=False,
        **emb,
    )[0]
    return output[:, : latent.shape[1]]  # what is more is the learned variance


class Family(NamedTuple):
    """A kind of denoiser: what it is called, how it is asked, the entries of its config that two models share.

    `packing`: how many of its input channels are one channel of the latent. `patch`: the entry that says which number
    a latent's sides are multiples of.
    """

    words: str
    predict: Callable[..., torch.Tensor]
    shared: tuple[str, ...]
    packing: int = 1
    patch: str = ""


_UNET = Family(
    "a U-Net",
    _unet,
    ("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type", "addition_time_embed_dim"),
)
_FAMILIES = {  # by the names of diffusers' classes
    "UNet2DConditionModel": _UNET,
    "SD3Transformer2DModel": Family(
        "a transformer of SD3",
        _sd3,
        ("in_channels", "out_channels", "joint_attention_dim", "pooled_projection_dim", "patch_size"),
        patch="patch_size",
    ),
    "FluxTransformer2DModel": Family(
        "a transformer of Flux", _flux, ("in_channels", "joint_attention_dim", "pooled_projection_dim"), packing=4
    ),
    "PixArtTransformer2DModel": Family(
        "a transformer of PixArt", _pixart, ("in_channels", "caption_channels", "patch_size"), patch="patch_size"
    ),
}


def family(model: Any) -> Family:
    """The kind of a denoiser; ValueError in one line for a transformer that is none of them."""
    name = type(getattr(model, "shared", model)).__name__
    if name not in _FAMILIES and "Transformer" in name:
        names = ", ".join(_FAMILIES)
        raise ValueError(f"the denoiser is a {name}, which cannot be asked here: give one of {names}")
    return _FAMILIES.get(name, _UNET)


def predict(
    model: Any, latent: torch.Tensor, t: torch.Tensor, text: torch.Tensor, added: Inputs, guidance: float
) -> torch.Tensor:
    """A denoiser's output (B, C, h, w) for latents of that shape at time t, () or (B,).

    Text (B, L, D), further inputs by name (B, ...). A model that embeds the guidance is given it.
    """
    emb = _guidance_inputs(model, latent, guidance)
    if hasattr(model, "shared"):  # by several threads (`batching.SharedModel`)
        return model.predict(latent, t, text, added, emb)
    return family(model).predict(model, latent, t, text, added, emb)


def embeds_guidance(model: Any) -> bool:
    """Whether the guidance's scale is an input of the model, which then runs once a step."""
    config = model.config
    return getattr(config, "time_cond_proj_dim", None) is not None or bool(getattr(config, "guidance_embeds", False))


def _guidance_inputs(model: Any, latent: torch.Tensor, guidance: float) -> dict[str, torch.Tensor]:
    if not embeds_guidance(model):
        return {}
    if family(model) is not _UNET:
        return {"guidance": torch.full((len(latent),), guidance, device=latent.device, dtype=torch.float32)}
    w = torch.tensor(guidance - 1).repeat(len(latent))
    emb = eq.guidance_embedding(w, model.config.time_cond_proj_dim)  # (B, width)
    return {"timestep_cond": emb.to(latent.device, latent.dtype)}


def paints(model: Any) -> bool:
    """Whether it is a U-Net for painting over pictures, whose input holds a mask and the rest of the picture too."""
    channels_in, out = (getattr(model.config, f"{side}_channels", None) for side in ("in", "out"))
    return family(model) is _UNET and channels_in is not None and out is not None and channels_in == 2 * out + 1


def painting_over(model: Any, cond: Any, painting: Inputs) -> Any:
    """The conditioning of a model that paints over a picture with that picture; of others as it is.

    `painting` holds the `image`'s latent (B, C, h, w), blank where it is painted, and the `mask` (B, 1, h, w).
    ValueError where such a model has none.
    """
    if not paints(model):
        return cond
    if not painting:
        raise ValueError("this U-Net paints over pictures: give edit=lab.hybridsd.Edit(image, strength, mask)")
    image = painting["image"]
    over = {_PAINTED: torch.cat([painting["mask"].to(image), image], 1)}
    return replace(cond, added={**cond.added, **over}, added_negative={**cond.added_negative, **over})


def joint_width(model: Any, encoders: int) -> int:
    """How wide the tokens of SD3's transformer are where it has but two of its three text encoders, else 0."""
    is_sd3 = family(model) is _FAMILIES["SD3Transformer2DModel"]
    return model.config.joint_attention_dim if is_sd3 and encoders == 2 else 0


def channels(model: Any) -> int:
    """The channels C of its latents (B, C, h, w)."""
    if paints(model):
        return model.config.out_channels
    return model.config.in_channels // family(model).packing


def sides(model: Any) -> tuple[int, int]:
    """The latent's (h, w) that it was made for."""
    side = getattr(model.config, "sample_size", _FLUX_SIDE)
    h, w = (side, side) if isinstance(side, int) else side
    return h, w


def patch(model: Any) -> int:
    """What the sides of its latents are multiples of."""
    kind = family(model)
    return getattr(model.config, kind.patch) if kind.patch else 2 if kind.packing > 1 else 1


def most(model: Any) -> int:
    """The longest side of its latents: SD3 knows so many positions, others take any (4096, of a picture of 32768)."""
    positions = getattr(model.config, "pos_embed_max_size", None)
    return positions * patch(model) if positions else 4096


# -- schedules that depend on the picture's size -----------------------------------------------------------------------


def scheduled(scheduler: Any, model: Any, latent_sides: tuple[int, int], begin: int = 0) -> Any:
    """The scheduler with what its timesteps depend on beside their number: a copy, or the one given where nothing.

    Flow matching is shifted by how many tokens a picture has: mu is a line between two numbers of them. Flux moreover
    takes sigmas from 1 to 1/N. `begin` is the first step that is taken, of a picture that is drawn over.
    """
    options: dict[str, Any] = {}
    config, (h, w) = scheduler.config, latent_sides
    if config.get("use_dynamic_shifting"):
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        slope = (high - low) / (many - few)
        options["mu"] = (h // patch(model)) * (w // patch(model)) * slope + (low - slope * few)
    if family(model).packing > 1 and type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
        options["linear"] = True
    if begin:
        options["begin"] = begin
    if not options:
        return scheduler
    other = copy(scheduler)
    other.timestep_options = options
    return other
