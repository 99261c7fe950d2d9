"""Files that survive a kill: safetensors for tensors, JSON for the rest, each written whole or not at all."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

FORMAT = 1


def artefact(name: str) -> Path:
    """The path of a file of the lab's own `data/`, in an installed package or in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "data", package.parent / "data"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"the lab's data file {name!r} is missing: install the package again, or see data/README.md")


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary file, fsync, rename, fsync of the folder.

    A write that fails (a full disk, a read-only folder) leaves no temporary file and the old content untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}): save to another folder") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives 0600, which would lock colleagues out
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise OSError(
            f"cannot write {path} ({error.strerror or error}): {len(content):,} bytes are needed, nothing was changed; "
            "free some space or save to another folder"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
    text = json.dumps(document, allow_nan=True, indent=1)
    write(folder / file, content)
    try:
        write(folder / f"{name}.json", text.encode())
    except OSError:
        if _tensor_file(folder / f"{name}.json") != file:
            (folder / file).unlink(missing_ok=True)
        raise
    for old in folder.glob(f"{name}-*.safetensors"):
        if old.name != file:
            old.unlink(missing_ok=True)


def load(folder: str | Path, name: str) -> dict[str, Any]:
    """The tree that `save` stored; a missing, torn or altered file is a one-line error."""
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no {name}.json: name a folder that was saved by the lab")
    try:
        document = json.loads(path.read_text())
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, this version reads {FORMAT}")
        content = (path.parent / Path(document["tensors"]).name).read_bytes()
        if hashlib.sha256(content).hexdigest() != document["sha256"]:
            raise ValueError("its tensors do not match their SHA-256")
        return _unpack(document["tree"], tensors_from_bytes(content))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged ({_first_line(error)}): delete the folder and save it again") from error


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
    """The tree with each tensor moved to `tensors` and replaced by its key; dicts as pairs, since JSON keys are strings."""
    if isinstance(tree, torch.Tensor):
        key = str(len(tensors))
        tensors[key] = tree.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(tree, Mapping):
        return {"dict": [[key, _pack(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {"list": [_pack(value, tensors) for value in tree]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"cannot store a {type(tree).__name__}: only numbers, strings, tensors, lists and dicts are stored")


def _unpack(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "list":
        return [_unpack(item, tensors) for item in value]
    return {key: _unpack(item, tensors) for key, item in value}
