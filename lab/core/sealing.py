"""A safetensors file with the digest of all its bytes in its own header, which is read strictly before any tensor is.

Without it a bit that flips on the way is another number, which no check of names, shapes and ranges can see.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

SEAL = "sha256"  # the digest of the file in which zeros stand in the digest's place


def sealed(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """The file of these tensors, with the facts and the digest as its metadata; alike whenever it is made."""
    content = _in_order(save(dict(tensors), {**facts, SEAL: "0" * 64}))
    return content.replace(_entry("0" * 64), _entry(hashlib.sha256(content).hexdigest()), 1)


def header(content: bytes, most: int) -> dict[str, Any]:
    """The header, {name: {dtype, shape, data_offsets}} and its `__metadata__`, of `most` bytes and of this digest.

    ValueError that says in a few words what is wrong with the bytes.
    """
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= min(most, len(content) - 8):
        raise ValueError(f"a header of {length:,} bytes in {len(content):,}")
    try:
        read = json.loads(content[8 : 8 + length], object_pairs_hook=_once)
        digest = read["__metadata__"][SEAL]
        entry = _entry(digest)
    except KeyError as error:
        raise ValueError("they carry no digest") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {str(error)[:80]}") from error
    unsealed = content.replace(entry, _entry("0" * 64), 1)
    if len(digest) != 64 or hashlib.sha256(unsealed).hexdigest() != digest:
        raise ValueError("their digest is another: send them again")
    return read


def _in_order(content: bytes) -> bytes:
    """The file with its facts in the order of their names; safetensors writes them in one by chance."""
    end = 8 + int.from_bytes(content[:8], "little")
    read = json.loads(content[8:end])
    read["__metadata__"] = dict(sorted(read["__metadata__"].items()))
    text = json.dumps(read, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def _entry(digest: str) -> bytes:
    """How the digest stands in the header."""
    return b'"%s":"%s"' % (SEAL.encode(), digest.encode())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; two of one name could be read as one here and as the other by safetensors."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name comes twice in the header")
    return dict(pairs)
