"""The parts of a diffusion pipeline, found in folders or by id and checked, and what a prompt becomes."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .sampling import Conditioning

_SHARED = ("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type", "addition_time_embed_dim")
_NEEDED = ("unet", "scheduler", "vae", "text_encoder", "tokenizer")
NO_LIMIT = 10**9  # tokens: a tokenizer that claims to read more does not know its limit


def diffusers() -> Any:
    """The library, or an error that names the extra."""
    try:
        import diffusers as library
    except ImportError as error:
        raise ImportError("Hybrid SD needs diffusers and transformers: pip install 'lab[diffusion]'") from error
    return library


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice of diffusers and transformers for a block, then as it was."""
    from transformers.utils import logging as theirs

    ours = diffusers().utils.logging
    logs, before = (ours, theirs), [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in (ours, theirs)]
    try:
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        for log, (verbosity, bar) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            (log.enable_progress_bar if bar else log.disable_progress_bar)()


def exact(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with single precision where none is asked for: all parts then have one."""
    return {"dtype": torch.float32, **options}


def is_source(value: Any) -> bool:
    """Whether this names an existing folder or a hub id 'owner/name'."""
    if not isinstance(value, str):
        return False
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", value)) or Path(value).is_dir()


def pipeline_parts(source: str | Path, **options: Any) -> dict[str, Any]:
    """The parts of a diffusers folder or hub id, by name; ValueError that names the parts a folder lacks."""
    folder = Path(source)
    if folder.is_dir():
        missing = [part for part in ("model_index.json", *_NEEDED) if not (folder / part).exists()]
        if missing:
            raise ValueError(f"{source} lacks {', '.join(missing)}: give the folder of a whole diffusers pipeline")
    unchecked = {} if _is_xl(folder) else {"safety_checker": None, "requires_safety_checker": False}
    local = {"local_files_only": True} if folder.is_dir() else {}
    with quiet():
        loaded = diffusers().DiffusionPipeline.from_pretrained(str(source), **unchecked, **local, **exact(options))
    parts = {name: part for name, part in loaded.components.items() if part is not None}
    return parts | {"force_zeros": bool(loaded.config.get("force_zeros_for_empty_prompt", False))}


def vae_of(source: str | Path, **options: Any) -> Any:
    """The decoder of a folder or id: a KL autoencoder or a tiny one (AutoencoderTiny), as its config says."""
    library = diffusers()
    config = library.AutoencoderKL.load_config(str(source), local_files_only=Path(source).is_dir())
    kind = {"AutoencoderTiny": library.AutoencoderTiny}.get(config.get("_class_name"), library.AutoencoderKL)
    with quiet():
        return kind.from_pretrained(str(source), local_files_only=Path(source).is_dir(), **exact(options))


def validate_unets(unets: Sequence[Any], vae: Any) -> None:
    """ValueError that names what differs unless all U-Nets and the decoder share one latent space and one text."""
    first = unets[0].config
    for i, unet in enumerate(unets[1:], 1):
        for name in _SHARED:
            here, there = getattr(first, name, None), getattr(unet.config, name, None)
            if here != there:
                raise ValueError(
                    f"U-Nets 0 and {i} share no latent space: {name} is {here!r} and {there!r}; take models made from "
                    "one another"
                )
    channels = None if vae is None else vae.config.latent_channels
    if channels is not None and channels != first.in_channels:
        raise ValueError(
            f"the decoder reads {channels} latent channels, the U-Nets make {first.in_channels}: take the VAE of the "
            "same family"
        )


def scaled(latent: torch.Tensor, config: Any) -> torch.Tensor:
    """An encoder's latent (B, C, h, w) as the U-Nets read it."""
    spread, shift = _stretch(config, latent)
    return (latent - shift) / spread * config.scaling_factor


def unscaled(latent: torch.Tensor, config: Any) -> torch.Tensor:
    """A sampler's latent (B, C, h, w) as the decoder reads it."""
    spread, shift = _stretch(config, latent)
    return latent * spread / config.scaling_factor + shift


def _stretch(config: Any, like: torch.Tensor) -> tuple[Any, Any]:
    """What a decoder's config gives beside its scale: each channel's spread and mean, or one shift of all."""
    mean, spread = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or spread is None:
        return 1, getattr(config, "shift_factor", None) or 0
    mean, spread = (torch.tensor(x).view(1, -1, 1, 1).to(like) for x in (mean, spread))
    return spread, mean


def context_length(tokenizer: Any, encoder: nn.Module | None) -> int:
    """Tokens that a prompt has room for: the tokenizer's limit or the encoder's positions, whichever is less.

    transformers says 10^30 for a tokenizer that was stored without a limit. ValueError where neither has one.
    """
    positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    limits = [n for n in (getattr(tokenizer, "model_max_length", None), positions) if n and 0 < n < NO_LIMIT]
    if not limits:
        raise ValueError(
            "the tokenizer has no model_max_length and the text encoder no max_position_embeddings: set "
            "tokenizer.model_max_length, 77 for CLIP"
        )
    return int(min(limits))


def token_ids(prompts: Sequence[str], tokenizer: Any, encoder: nn.Module | None) -> torch.Tensor:
    """Token ids (B, L); words beyond what the tokenizer and its encoder read are cut off, with a warning of them."""
    length = context_length(tokenizer, encoder)
    uncut = tokenizer(
        list(prompts), padding="longest", truncation=True, max_length=NO_LIMIT, return_tensors="pt"
    ).input_ids
    if uncut.shape[1] > length:
        lost = [text for text in tokenizer.batch_decode(uncut[:, length - 1 : -1], skip_special_tokens=True) if text]
        warnings.warn(f"the prompt is cut to {length} tokens, without {'; '.join(lost)!r}", stacklevel=3)
    padded = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return padded.input_ids


class Text(nn.Module):
    """Text encoders with their tokenizers: one (SD 1.x, LCM) or two (SDXL, whose second gives a pooled vector too)."""

    def __init__(self, encoders: Sequence[nn.Module], tokenizers: Sequence[Any], force_zeros: bool = False) -> None:
        super().__init__()
        self.encoders, self.tokenizers, self.force_zeros = nn.ModuleList(encoders), list(tokenizers), force_zeros

    @property
    def is_pair(self) -> bool:
        """Whether this is SDXL's pair."""
        return len(self.encoders) > 1

    def tokens(self, prompts: Sequence[str], negative: str = "") -> dict[str, torch.Tensor]:
        """Token ids by name: what goes over the wire instead of embeddings, (B, L) each."""
        ids = {}
        for i, (tokenizer, encoder) in enumerate(zip(self.tokenizers, self.encoders, strict=True)):
            ids[f"tokens{i}"] = token_ids(prompts, tokenizer, encoder)
            ids[f"negative{i}"] = token_ids([negative], tokenizer, encoder).expand(len(prompts), -1)
        return ids

    @torch.no_grad()
    def conditioning(
        self, tokens: Mapping[str, torch.Tensor], guidance: float, size: tuple[int, int], zeros: bool = False
    ) -> Conditioning:
        """The U-Nets' conditioning for these tokens (B, L); `size` is the picture's (H, W), which SDXL takes too.

        `zeros`: no negative prompt was given, for which SDXL takes zeros instead of an empty text's embedding.
        """
        text, pooled = self._encoded([tokens[f"tokens{i}"] for i in range(len(self.encoders))])
        if zeros and self.force_zeros:
            negative, negative_pooled = torch.zeros_like(text), None if pooled is None else torch.zeros_like(pooled)
        else:
            negative, negative_pooled = self._encoded([tokens[f"negative{i}"] for i in range(len(self.encoders))])
        if pooled is None or negative_pooled is None:
            return Conditioning(text, negative, guidance)
        # SDXL's six numbers: the size that is wanted, where it is cropped, the size again
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=text.dtype, device=text.device).expand(len(text), -1)
        added = ({"text_embeds": embedding, "time_ids": ids} for embedding in (pooled, negative_pooled))
        return Conditioning(text, negative, guidance, *added)

    def _encoded(self, tokens: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings (B, L, D), and the pooled vector (B, P) of SDXL's second encoder."""
        device = next(self.encoders[0].parameters()).device
        if not self.is_pair:
            return self.encoders[0](tokens[0].to(device))[0], None
        outputs = [
            encoder(ids.to(device), output_hidden_states=True)
            for encoder, ids in zip(self.encoders, tokens, strict=True)
        ]
        # SDXL reads the layer before the last of both encoders, side by side
        return torch.cat([output.hidden_states[-2] for output in outputs], -1), outputs[-1][0]


def _is_xl(folder: Path) -> bool:
    index = folder / "model_index.json"
    return index.exists() and "StableDiffusionXL" in index.read_text(encoding="utf-8")
