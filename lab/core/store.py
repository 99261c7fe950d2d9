"""Files that survive a kill: safetensors for tensors, JSON for the rest, each written whole or not at all."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from . import sealing
from .errors import kind_and_line, shown

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FORMAT = 3  # 1: the JSON had no digest of its own; 2: a network's base was one of lab.nets or the user's
_DAMAGE = (
    FileNotFoundError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, SafetensorError
)  # fmt: skip


def artefact(name: str) -> Path:
    """The path of a file of the lab's own `data/`: in the folder that LAB_DATA names, the package, or a checkout.

    FileNotFoundError in one line for what is in none of them, as large models are that do not travel with the package.
    """
    package = Path(__file__).parents[1]
    given = os.environ.get("LAB_DATA", "")
    for folder in (*([Path(given)] if given else []), package / "data", package.parent / "data"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"the lab's data file {name!r} is neither in the package, with which large models do not travel, nor in "
        f"LAB_DATA={given!r}: set LAB_DATA to the folder 'data' of a checkout of the lab"
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
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(folder: str | Path, write: Callable[[Path], None]) -> None:
    """Fill a folder anew, wholly or not at all: `write(new)` fills a new one beside it, which then takes its place.

    The old folder is kept until the new one is on the disk. A kill at any moment leaves one of them whole: under
    `folder` or, between two renames, under a name beside it, where `present` finds it. Files in the old folder that
    `save` does not know as its own move along. The working folder, a home or a mount point is refused.
    """
    folder = Path(folder).resolve()
    validate_replaceable(folder)
    old, new = _aside(folder), folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        new.mkdir(parents=True)
        write(new)
        for path in new.rglob("*"):
            with suppress(OSError):  # not every file system can sync a folder, nor a file opened for reading
                _sync(path)
        if (before := present(folder)).exists():
            _take_along(before, new)
        with suppress(OSError):
            _sync(new)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)  # what a kill after the last rename left
            os.replace(folder, old)
        os.replace(new, folder)
        with suppress(OSError):
            _sync(folder.parent)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OSError(
            f"cannot save to {folder} ({cause.strerror or cause}): nothing was changed; "
            "free some space or save to another folder"
        ) from error
    finally:
        with suppress(OSError):
            if not folder.exists() and old.exists():
                os.replace(old, folder)
        shutil.rmtree(new, ignore_errors=True)
    for left in (old, *folder.parent.glob(f".{folder.name}.{'[0-9a-f]' * 8}.part")):
        shutil.rmtree(left, ignore_errors=True)


def present(folder: str | Path) -> Path:
    """Where the folder is: under its own name or, if `replace_folder` was killed between two renames, beside it."""
    folder = Path(folder)
    aside = _aside(folder.resolve())
    return aside if not folder.exists() and aside.exists() else folder


def _aside(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old"


def validate_replaceable(folder: str | Path) -> None:
    """Raise a one-line OSError where `replace_folder` could not fill the folder: a file, a mount point, no right."""
    folder = Path(folder).resolve()
    above = next((parent for parent in folder.parents if parent.exists()), folder)
    kinds = {
        "a file": folder.exists() and not folder.is_dir(),
        "below a file": not above.is_dir(),
        "the working folder or above it": folder in (Path.cwd(), *Path.cwd().parents),
        "the home folder": folder == Path.home(),
        "a mount point": folder.is_mount(),
        "in a folder that may not be written to": above.is_dir() and not os.access(above, os.W_OK),
    }
    for kind, holds in kinds.items():
        if holds:
            raise OSError(f"cannot save to {folder}, which is {kind}: name a folder of its own")


def _take_along(old: Path, new: Path) -> None:
    """Link what others have put into a saved folder into the new one; what the old save wrote itself stays behind."""
    written = {path for name in new.iterdir() for path in _written_with(old / name.name)}
    shutil.copytree(
        old, new, symlinks=True, copy_function=_link, dirs_exist_ok=True,
        ignore=lambda path, names: {name for name in names if _stays_behind(Path(path, name), old, new, written)},
    )  # fmt: skip


def _stays_behind(path: Path, old: Path, new: Path, written: set[Path]) -> bool:
    """Whether a path of the old folder is the old save's, or is there anew; of a folder, whether all in it is."""
    if path.is_dir() and not path.is_symlink() and (inside := list(path.iterdir())):
        return all(_stays_behind(part, old, new, written) for part in inside)
    return path in written or os.path.lexists(new / path.relative_to(old))


def _written_with(path: Path) -> Iterator[Path]:
    """The files that belong to the save of this JSON file, and what a kill left of them."""
    document = _document(path)
    if "tensors" in document:
        yield path
        beside = document.get("beside")
        yield from (path.parent / str(name) for name in (beside if isinstance(beside, dict) else ()))
        yield from _leftovers(path.parent, path.stem)


def _link(source: str, target: str) -> None:
    """A second name for the file, or a copy where the file system knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


_HELD: set[Path] = set()  # the folders of this process, whose own locks the system does not set against each other


@contextmanager
def held(folder: str | Path | None) -> Iterator[None]:
    """Hold a checkpoint folder for a block: no other run writes there. The lock dies with the process that has it.

    None holds nothing. ValueError in one line if the folder is held by another run, OSError if it cannot be made.
    """
    if folder is None:
        yield
        return
    path = _folder(folder)
    in_use = f"checkpoint={str(folder)!r} is in use by another run ({{}}): wait for it, end it, or give another folder"
    if path in _HELD:  # the file must not even be opened: closing it would give this process's lock away
        raise ValueError(in_use.format("in this process"))
    with _lock_file(path) as file:
        if not _lock(file.fileno()):
            file.seek(0)
            raise ValueError(in_use.format(f"process {file.read(20).decode(errors='replace') or 'unknown'}"))
        _HELD.add(path)
        try:
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            file.flush()
            yield
        finally:
            _HELD.remove(path)


def _folder(folder: str | Path) -> Path:
    """The checkpoint folder's full path; a one-line error for what cannot be one."""
    if not isinstance(folder, (str, Path)) or not str(folder):
        raise ValueError(f"checkpoint={folder!r}: give the name of a folder, or None to keep nothing")
    path = Path(folder).resolve()
    if path.exists() and not path.is_dir():
        raise ValueError(f"checkpoint={str(folder)!r} is a file: give the name of a folder")
    return path


def _lock_file(path: Path) -> Any:
    try:
        path.mkdir(parents=True, exist_ok=True)
        return open(path / ".lock", "a+b")
    except OSError as error:
        raise OSError(f"cannot write to checkpoint={str(path)!r} ({error.strerror or error}): give another") from error


def _lock(descriptor: int) -> bool:
    """Whether the file is now this process's own; True as well on a file system that knows no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 2**20, os.SEEK_SET)  # beyond what the file holds, which others may read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: a forked worker would inherit it
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def save(folder: str | Path, name: str, tree: Mapping[str, Any], beside: Iterable[str] = ()) -> None:
    """Store a tree of dicts, lists, numbers, strings and tensors as `<name>.json` and `<name>-<hash>.safetensors`.

    The JSON file is replaced last and names its tensor file by hash: a kill in between leaves the older pair valid. It
    holds the digest of all that belongs to the save, of the files `beside` it in the folder ('a', 'folder/a') too.
    """
    folder = Path(folder)
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _pack(tree, tensors)
    content = tensors_to_bytes(tensors)
    digest = hashlib.sha256(content).hexdigest()
    file = f"{name}-{digest[:12]}.safetensors"
    others = {other: _digest(folder / other) for other in beside}
    document = {"format": FORMAT, "tensors": file, "sha256": digest, "beside": others, "tree": skeleton}
    text = json.dumps(document | {"digest": _digest_of(document)})  # not indented: slow in Python, and a trace is long
    write(folder / file, content)
    try:
        write(folder / f"{name}.json", text.encode())
    except OSError:
        if _document(folder / f"{name}.json").get("tensors") != file:
            (folder / file).unlink(missing_ok=True)
        raise
    for old in _leftovers(folder, name):
        if old.name != file:
            old.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_of(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _leftovers(folder: Path, name: str) -> Iterator[Path]:
    """Tensor files of earlier saves of this name, and what a kill left of them."""
    tensors = f"{name}-{'[0-9a-f]' * 12}.safetensors"  # in full, or 'a' would take what belongs to 'a-b'
    for pattern in (tensors, f".{tensors}.*.part", f".{name}.json.*.part"):
        yield from folder.glob(pattern)


def load(folder: str | Path, name: str) -> dict[str, Any]:
    """The tree that `save` stored; a missing, torn or altered file is a one-line error."""
    path = present(folder) / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {name}.json: name a folder that was saved by the lab")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document["format"]
        if version in range(1, FORMAT + 1) and not isinstance(version, bool):
            return _unpack(document["tree"], _tensors(path, document))
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged ({kind_and_line(error)}): delete the folder and save it again") from error
    raise ValueError(
        f"{path} has format {shown(version)}, this version of the lab reads 1 to {FORMAT}: "
        "load it with the one that wrote it"
    )


def to_bytes(tree: Mapping[str, Any]) -> bytes:
    """The tree as one sealed safetensors file, for what keeps bytes, such as a row of a database."""
    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.dumps(_pack(tree, tensors))
    return sealing.sealed(tensors, {"format": str(FORMAT), "tree": skeleton})


def from_bytes(content: bytes) -> dict[str, Any]:
    """The tree that `to_bytes` made; ValueError in a few words for damaged bytes, or those of a later version."""
    try:
        facts = sealing.header(content, len(content))["__metadata__"]
        if not 1 <= int(facts["format"]) <= FORMAT:
            raise ValueError(f"they have format {facts['format']}, this version of the lab reads 1 to {FORMAT}")
        return _unpack(json.loads(facts["tree"]), tensors_from_bytes(content))
    except _DAMAGE as error:
        raise ValueError(kind_and_line(error)) from error


def _tensors(path: Path, document: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a document, after all its digests were compared."""
    if document["format"] > 1 or "digest" in document:
        if document.pop("digest") != _digest_of(document):
            raise ValueError(f"{path.name} does not match its SHA-256")
    for name, digest in document.get("beside", {}).items():
        if ".." in Path(name).parts or _digest(path.parent / name) != digest:
            raise ValueError(f"{name} does not match its SHA-256")
    content = path.with_name(Path(document["tensors"]).name).read_bytes()
    if hashlib.sha256(content).hexdigest() != document["sha256"]:
        raise ValueError(f"{document['tensors']} does not match its SHA-256")
    return tensors_from_bytes(content)


def exists(folder: str | Path, name: str) -> bool:
    """Whether `save` has stored a tree of this name in the folder."""
    return (present(folder) / f"{name}.json").exists()


def _document(path: Path) -> dict[str, Any]:
    """The document in a JSON file, empty where there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


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
