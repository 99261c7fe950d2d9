"""Files that survive a kill: safetensors for tensors, JSON for the rest, each written whole or not at all."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

FORMAT = 1
_DAMAGE = (
    FileNotFoundError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, SafetensorError
)  # fmt: skip


def artefact(name: str) -> Path:
    """The path of a file of the lab's own `data/`, in an installed package or in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "data", package.parent / "data"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"the lab's data file {name!r} is missing: install the package again, or see data/README.md"
    )


def write(path: str | Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary file, fsync, rename, fsync of the folder.

    A write that fails (a full disk, a read-only folder) leaves no temporary file and the old content untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror or error}): {len(content):,} bytes are needed, nothing was changed; "
            "free some space or save to another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    with suppress(OSError):  # the file is whole; not every file system can sync a folder
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(folder: str | Path, name: str, tree: Mapping[str, Any]) -> None:
    """Store a tree of dicts, lists, numbers, strings and tensors as `<name>.json` and `<name>-<hash>.safetensors`.

    The JSON file is replaced last and names its tensor file by hash: a kill in between leaves the older pair valid.
    """
    folder = Path(folder)
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _pack(tree, tensors)
    content = tensors_to_bytes(tensors)
    digest = hashlib.sha256(content).hexdigest()
    file = f"{name}-{digest[:12]}.safetensors"
    document = {"format": FORMAT, "tensors": file, "sha256": digest, "tree": skeleton}
    text = json.dumps(document)  # not indented: Python indents slowly, and a trace is long
    write(folder / file, content)
    try:
        write(folder / f"{name}.json", text.encode())
    except OSError:
        if _tensor_file(folder / f"{name}.json") != file:
            (folder / file).unlink(missing_ok=True)
        raise
    for old in _leftovers(folder, name):
        if old.name != file:
            old.unlink(missing_ok=True)


def _leftovers(folder: Path, name: str) -> Iterator[Path]:
    """Tensor files of earlier saves of this name, and what a kill left of them."""
    tensors = f"{name}-{'[0-9a-f]' * 12}.safetensors"  # in full, or 'a' would take what belongs to 'a-b'
    for pattern in (tensors, f".{tensors}.*.part", f".{name}.json.*.part"):
        yield from folder.glob(pattern)


def load(folder: str | Path, name: str) -> dict[str, Any]:
    """The tree that `save` stored; a missing, torn or altered file is a one-line error."""
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no {name}.json: name a folder that was saved by the lab")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document["format"]
        if found == FORMAT:
            content = (path.parent / Path(document["tensors"]).name).read_bytes()
            if hashlib.sha256(content).hexdigest() != document["sha256"]:
                raise ValueError(f"{document['tensors']} does not match its SHA-256")
            return _unpack(document["tree"], tensors_from_bytes(content))
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged ({_first_line(error)}): delete the folder and save it again") from error
    raise ValueError(
        f"{path} has format {found!r}, this version of the lab reads {FORMAT}: load it with the one that wrote it"
    )


def exists(folder: str | Path, name: str) -> bool:
    """Whether `save` has stored a tree of this name in the folder."""
    return (Path(folder) / f"{name}.json").exists()


def _tensor_file(path: Path) -> str | None:
    try:
        return json.loads(path.read_text())["tensors"]
    except (OSError, ValueError, KeyError):
        return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _pack(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree with each tensor moved to `tensors` and its key put there; dicts as pairs, for JSON keys are strings."""
    if isinstance(tree, torch.Tensor):
        key = str(len(tensors))
        tensors[key] = _dense(tree).detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(tree, Mapping):
        return {"dict": [[_plain(key), _pack(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {"list": [_pack(value, tensors) for value in tree]}
    return _plain(tree)


def _plain(value: Any) -> Any:
    """A number or string as JSON takes it."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"cannot store a {type(value).__name__}: only numbers, strings, tensors, lists and dicts are stored"
    )


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype == torch.complex128:
        kind = "meta" if tensor.is_meta else f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
        raise TypeError(f"cannot store a tensor that is {kind}: make it a dense one of real numbers first")
    return tensor


def _unpack(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "list":
        return [_unpack(item, tensors) for item in value]
    return {key: _unpack(item, tensors) for key, item in value}
