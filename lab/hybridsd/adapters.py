"""LoRA adapters by folder: added to the weights of one model, which stays a plain network."""

import logging
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..core.distribution import install
from .components import DENOISERS, diffusers, quiet

_FILE = "pytorch_lora_weights.safetensors"  # what diffusers' `save_lora_weights` writes


def add_lora(model: Any, source: str | Path) -> None:
    """Add the adapter of a folder or a safetensors file to the weights of a U-Net or a transformer, in place.

    ValueError in one line where it is none of this model's; the model is then as it was. Needs peft.
    """
    try:
        import peft  # noqa: F401, which diffusers asks for
    except ImportError as error:
        raise ImportError(f"a LoRA adapter needs peft: {install('diffusion')}") from error
    file = Path(source) / _FILE if Path(source).is_dir() else Path(source)
    prefix = _prefix(file)
    before = {name: x.shape for name, x in model.state_dict().items()}
    try:
        with quiet(), warnings.catch_warnings(action="ignore"):
            diffusers().utils.logging.set_verbosity(logging.CRITICAL)  # an error is told below, in one line
            model.load_lora_adapter(str(file.parent), prefix=prefix, weight_name=file.name, local_files_only=True)
            missing = not getattr(model, "peft_config", None)
            model.fuse_lora()
    except Exception as error:  # whatever peft says of an adapter for another network
        raise ValueError(_other(file, model, " ".join(str(error).split())[:120])) from error
    finally:
        model.unload_lora()  # layers that peft has put in may be left where loading fails
    if missing or {name: x.shape for name, x in model.state_dict().items()} != before:
        raise ValueError(_other(file, model, "none of its layers are there"))


def _prefix(file: Path) -> str | None:
    """What the names of an adapter's weights begin with: its model's name in a pipeline, or nothing."""
    if not file.is_file():
        raise ValueError(f"{file.parent} holds no LoRA adapter: give a folder with {_FILE}, or a safetensors file")
    try:
        with safe_open(file, "pt") as weights:
            names = list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({type(error).__name__}): save the adapter as safetensors") from error
    first = {name.split(".")[0] for name in names}
    if any(part.startswith("text_encoder") for part in first):
        raise ValueError(
            f"{file} changes a text encoder, which both sides share: give an adapter that was trained on the U-Net or "
            "transformer alone"
        )
    return next((part for part in DENOISERS if part in first), None)


def _other(file: Path, model: Any, reason: str) -> str:
    return f"{file} is no LoRA adapter of this {type(model).__name__} ({reason}): give one that was trained on it"
