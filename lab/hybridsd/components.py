"""The parts of a diffusion pipeline, found in folders or by id, and checked."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..core.distribution import install
from ..core.errors import first_line
from . import families
from .solvers import flows, is_flow

_NEEDED = ("scheduler", "vae", "text_encoder", "tokenizer")
DENOISERS = ("unet", "transformer")  # what a pipeline calls its model


def diffusers() -> Any:
    """The library, or an error that names the extra."""
    try:
        import diffusers as library
    except ImportError as error:
        raise ImportError(f"Hybrid SD needs diffusers and transformers: {install('diffusion')}") from error
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


@contextmanager
def reading(source: str | Path) -> Iterator[None]:
    """A block in which diffusers reads a folder or hub id, quietly: one line for one that is damaged."""
    try:
        with quiet():
            yield
    except ImportError:
        raise
    except Exception as error:  # diffusers, transformers, tokenizers and safetensors have a dozen kinds
        reason = first_line(error)
        raise ValueError(
            f"{source} cannot be read ({reason}): give the folder of a whole diffusers pipeline"
        ) from error


def pipeline_parts(source: str | Path, **options: Any) -> dict[str, Any]:
    """The parts of a diffusers folder or hub id, by name; ValueError that names the parts a folder lacks.

    Beside them `force_zeros` and `most`, which only the pipeline's class or config says (see `text.Text`). A part that
    is given by its name, as `vae=`, takes the place of the folder's.
    """
    folder, index = Path(source), {}
    if folder.is_dir():
        model = "transformer" if (folder / "transformer").exists() else "unet"
        needed = [part for part in ("model_index.json", model, *_NEEDED) if part not in options]
        missing = [part for part in needed if not (folder / part).exists()]
        if missing:
            raise ValueError(f"{source} lacks {', '.join(missing)}: give the folder of a whole diffusers pipeline")
        with reading(source):
            index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    unchecked: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    unchecked = {} if index and "safety_checker" not in index else unchecked
    local = {"local_files_only": True} if folder.is_dir() else {}
    with reading(source):
        loaded = diffusers().DiffusionPipeline.from_pretrained(str(source), **unchecked, **local, **exact(options))
    parts = {name: part for name, part in loaded.components.items() if part is not None}
    most = 300 if "Sigma" in type(loaded).__name__ else 0  # PixArt Sigma's texts are longer than PixArt Alpha's
    return parts | {"force_zeros": bool(loaded.config.get("force_zeros_for_empty_prompt", False)), "most": most}


def vae_of(source: str | Path, **options: Any) -> Any:
    """The decoder of a folder or id: a KL autoencoder or a tiny one (AutoencoderTiny), as its config says."""
    library = diffusers()
    with reading(source):
        config = library.AutoencoderKL.load_config(str(source), local_files_only=Path(source).is_dir())
        kind = {"AutoencoderTiny": library.AutoencoderTiny}.get(config.get("_class_name"), library.AutoencoderKL)
        return kind.from_pretrained(str(source), local_files_only=Path(source).is_dir(), **exact(options))


def validate_unets(unets: Sequence[Any], vae: Any) -> None:
    """ValueError that names what differs unless all models and the decoder share one latent space and one text."""
    first = families.family(unets[0])
    for i, unet in enumerate(unets[1:], 1):
        other = families.family(unet)
        if other is not first:
            raise ValueError(
                f"models 0 and {i} share no latent space: {first.words} and {other.words}; take models made from one "
                "another"
            )
        for name in first.shared:
            here, there = (getattr(model.config, name, None) for model in (unets[0], unet))
            if here != there:
                raise ValueError(
                    f"models 0 and {i} share no latent space: {name} is {here!r} and {there!r}; take models made from "
                    "one another"
                )
    channels = None if vae is None else vae.config.latent_channels
    if channels is not None and channels != families.channels(unets[0]):
        raise ValueError(
            f"the decoder reads {channels} latent channels, the models make {families.channels(unets[0])}: take the "
            "VAE of the same family"
        )


_SCHEDULE = (  # what a model was trained with, whatever solves it
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr",
)  # fmt: skip
_LATENTS = ("latent_channels", "scaling_factor", "shift_factor", "latents_mean", "latents_std")


def validate_edge(source: str | Path, scheduler: Any, vae: Any) -> None:
    """ValueError that names what differs where a folder was trained with another noise schedule or other latents.

    The folder of a model alone, without a scheduler or a decoder, is taken as it is.
    """
    files = {"scheduler": "scheduler_config.json", "vae": "config.json"}
    for part, names, config in (("scheduler", _SCHEDULE, scheduler.config), ("vae", _LATENTS, vae.config)):
        file = Path(source) / part / files[part]
        with reading(source):
            theirs = dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
        if part == "scheduler" and theirs and flows(theirs.get("_class_name", ""), theirs) != is_flow(scheduler):
            raise ValueError(
                f"{source} cannot go on from this cloud: its {theirs.get('_class_name')} and the cloud's "
                f"{type(scheduler).__name__} are a flow and a diffusion; take models made from one another"
            )
        for name in names:
            if name in theirs and name in config and theirs[name] != config[name]:
                raise ValueError(
                    f"{source} cannot go on from this cloud: its {part}'s {name} is {theirs[name]!r}, the cloud's "
                    f"{config[name]!r}; take models made from one another"
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
