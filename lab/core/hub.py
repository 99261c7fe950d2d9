"""A saved outcome on the Hugging Face hub, up and down; needs the extra `hub`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import store
from .distribution import install
from .errors import first_line, quiet

SCHEME = "hf://"
REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
REPLACED = ["outcome-*.safetensors", "*/outcome-*.safetensors", "base/*"]  # what an older push leaves otherwise
HIDDEN = [".*", "*/.*"]


def push(folder: str | Path, repo: str, *, private: bool | None = None) -> str:
    """Upload a saved outcome to the repository 'owner/name', which is made where it is missing; its address.

    All of the folder goes up, but for hidden files. private: None leaves it to the account's default. ValueError or
    FileNotFoundError in one line for a folder that holds no whole outcome: nothing is sent then. OSError where the hub
    refuses or cannot be reached.
    """
    match = REPOSITORY.fullmatch(str(repo).removeprefix(SCHEME))
    if match is None or match[2]:
        raise ValueError(f"repo={repo!r}: give 'owner/name'")
    folder = store.present(folder)
    store.load(folder, "outcome")
    api = _library().HfApi()
    with _one_line(match[1]):
        url = api.create_repo(match[1], private=private, exist_ok=True)
        api.upload_folder(
            repo_id=match[1], folder_path=folder, commit_message="lab.push", ignore_patterns=HIDDEN,
            delete_patterns=REPLACED,
        )  # fmt: skip
    return str(url)


def is_id(source: Any) -> bool:
    """Whether a text can be the id of a model: 'name' or 'owner/name'."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(source)) is not None


def fetched(folder: str | Path) -> str | Path:
    """The folder itself, or where 'hf://owner/name' lies on this machine after it was downloaded.

    'hf://owner/name@revision' is a branch, tag or commit. ValueError in one line for another form of address, OSError
    where the hub does not have it or cannot be reached.
    """
    if not str(folder).startswith(SCHEME):
        return folder
    match = REPOSITORY.fullmatch(str(folder).removeprefix(SCHEME))
    if match is None:
        raise ValueError(
            f"{folder!r} is not a repository of the hub: give 'hf://owner/name' or 'hf://owner/name@revision'"
        )
    with _one_line(match[1]):
        return Path(_library().snapshot_download(match[1], revision=match[2]))


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f"the hub needs huggingface_hub: {install('hub')}") from error
    return huggingface_hub


@contextmanager
def _one_line(repo: str) -> Iterator[None]:
    """What the hub refuses, in one line that says what to do."""
    try:
        with quiet("huggingface_hub"):
            yield
    except ImportError:
        raise
    except Exception as error:  # of many kinds: of httpx, of the hub, of the file system
        status = _status(error) or 0
        remedy = {401: "log in with `hf auth login`", 403: "ask its owner for the right to write"}.get(
            status, "see that the name is right and the hub can be reached"
        )
        raise OSError(
            f"the hub refuses {repo} ({type(error).__name__}: {first_line(error)[:120]}): {remedy}"
        ) from error


def _status(error: BaseException | None) -> int | None:
    """The status that the hub answered with, of an error or of what caused it."""
    while error is not None:
        if (status := getattr(getattr(error, "response", None), "status_code", None)) is not None:
            return status
        error = error.__cause__ or error.__context__
    return None
