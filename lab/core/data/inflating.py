"""Compressed files, inflated up to a limit: what unpacks to far more than it is was made to fill the memory."""

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEAST, TIMES = 2**28, 50  # bytes that may always come out; above them, so many times what lies on the disk
VALUES, VALUES_TIMES = 2**22, 8  # values that text may always hold; above them, so many a byte on the disk
DAMAGE = (  # what these libraries raise for a file that is not whole
    OSError,
    ValueError,
    EOFError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)
_MARKS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


def limit(packed: int) -> int:
    """How many bytes may come out of so many packed ones."""
    return max(LEAST, TIMES * packed)


class InflatedFile:
    """A file's bytes in their order, inflated where it is packed by gzip, bzip2 or xz; ValueError above the limit."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with open(path, "rb") as file:
            mark = file.read(8)
        unpack = next((opener for sign, opener in _MARKS.items() if mark.startswith(sign)), open)
        self.left = self.most = limit(self.path.stat().st_size)
        self.file = unpack(path, "rb")

    def __enter__(self) -> "InflatedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, count: int = -1) -> bytes:
        """The next so many bytes, or all that are left."""
        content = self.file.read(self.left + 1 if count < 0 else min(count, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(f"{self.path} inflates to more than {self.most:,} bytes: {_remedy()}")
        return content


def text(path: str | Path) -> bytes:
    """All bytes of a file of JSON, a table or a listing, inflated; ValueError for more values than it may hold."""
    with InflatedFile(path) as stream:
        content = stream.read()
    validate_values(path, content)
    return content


def validate_values(path: str | Path, content: bytes, before: int = 0) -> int:
    """How many values text may hold, with those before; ValueError above what its file may: an object each fills 20
    times the text."""
    count = before + sum(map(content.count, (b",", b"[", b"{", b"\n")))
    most = max(VALUES, VALUES_TIMES * Path(path).stat().st_size)
    if count > most:
        raise ValueError(f"{path} holds {count:,} values, more than {most:,}: {_remedy()}")
    return count


def files(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(name, stream) of each plain file of a tar archive, to be read at once; links and folders are passed over."""
    with InflatedFile(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            if member.isfile():
                yield member.name, archive.extractfile(member)


def member(path: str | Path, name: str) -> bytes:
    """A member of a zip archive; KeyError where there is none."""
    with zipfile.ZipFile(path) as archive:
        _validate(f"{path}: {name}", archive.getinfo(name).file_size, archive.getinfo(name).compress_size)
        return archive.read(name)


def validate_small(path: str | Path) -> None:
    """ValueError where the members of a zip archive inflate to more than they may; nothing is inflated."""
    with zipfile.ZipFile(path) as archive:
        _validate(str(path), sum(member.file_size for member in archive.infolist()), Path(path).stat().st_size)


def _validate(name: str, size: int, packed: int) -> None:
    if size > limit(packed):
        raise ValueError(f"{name} inflates to {size:,} bytes, more than {limit(packed):,}: {_remedy()}")


def _remedy() -> str:
    return "it is damaged, or made to fill the memory"
