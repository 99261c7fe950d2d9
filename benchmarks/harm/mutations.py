"""Damage to files, drawn from a generator: to the bytes as they lie, or to what a checksum would hide, sealed anew."""

import gzip
import hashlib
import io
import json
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 255, 256, 65_535, 65_536, 1 << 20, 1 << 28, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
WORDS = (
    b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"9999999999999999999", b"1e-400", b"null", b"true", b"[]", b"{}",
    b'""', b'"x"', b"1.5", b"../../etc/passwd", b"/etc/passwd", b"%s%n", b"\xff\xfe", b"\x00", b"\n", b"a" * 5000,
    b"[" * 3000,
)  # fmt: skip
Damage = Callable[[Random, bytes], bytes]


def flipped(draw: Random, content: bytes) -> bytes:
    """One to four bits are others."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4) if content else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(draw: Random, content: bytes) -> bytes:
    """The end is gone."""
    return content[: draw.randrange(len(content) + 1)]


def longer(draw: Random, content: bytes) -> bytes:
    """A part of it comes again at its end."""
    return content + content[draw.randrange(len(content) + 1) :]


def spliced(draw: Random, content: bytes) -> bytes:
    """A part of it lies over another, or between two others."""
    (a, b), to = sorted(draw.randrange(len(content) + 1) for _ in range(2)), draw.randrange(len(content) + 1)
    return content[:to] + content[a:b] + content[to + draw.choice([0, b - a]) :]


def zeroed(draw: Random, content: bytes) -> bytes:
    """A stretch is zeros, as a block that was never written."""
    a, b = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[:a] + bytes(b - a) + content[b:]


def number(draw: Random, content: bytes) -> bytes:
    """A number in binary is one at an edge."""
    form = draw.choice(["<I", ">I", "<H", "<Q", "<B"])
    size = struct.calcsize(form)
    if len(content) < size:
        return content
    at = draw.randrange(min(len(content) - size + 1, draw.choice([64, 1024, len(content)])))
    return content[:at] + struct.pack(form, draw.choice(EDGES) % (1 << 8 * size)) + content[at + size :]


def word(draw: Random, content: bytes) -> bytes:
    """A number or a word of a text is another one."""
    kind = draw.choice([rb"[-+\w.]+", rb"[-+\w.]+", rb"[-+\w.]+|[^\w\s]"])  # a bracket that is gone is soon seen
    tokens = list(re.finditer(kind, content[: 1 << 16]))
    if not tokens:
        return content
    at = draw.choice(tokens)
    return content[: at.start()] + draw.choice(WORDS) + content[at.end() :]


ALL: tuple[Damage, ...] = (flipped, flipped, cut, longer, spliced, zeroed, number, number, word, word)


def damaged(draw: Random, content: bytes) -> bytes:
    """The content after one to three accidents."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        content = draw.choice(ALL)(draw, content)
    return content


# -- what lies within -------------------------------------------------------------------------------------------------


def in_gzip(draw: Random, content: bytes) -> bytes:
    """What is packed is damaged, and packed again."""
    return gzip.compress(damaged(draw, gzip.decompress(content)), 1, mtime=0)


def in_zip(draw: Random, content: bytes) -> bytes:
    """A member, or its name, is damaged; the archive is whole."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        which = draw.randrange(len(old.infolist()))
        for k, member in enumerate(old.infolist()):
            inside = old.read(member)
            name = member.filename
            if k == which and draw.random() < 0.1:
                name = draw.choice(["../" + name, "/" + name, name[:-1], name + "\x7f", "x" * 3000])
            elif k == which:
                inside = in_npy(draw, inside) if name.endswith(".npy") else damaged(draw, inside)
            new.writestr(name, inside)
    return target.getvalue()


def in_npy(draw: Random, content: bytes) -> bytes:
    """An array's header is damaged, its length put right; or its numbers are."""
    if draw.random() < 0.3 or content[:6] != b"\x93NUMPY":
        return damaged(draw, content)
    size = int.from_bytes(content[8:10], "little")
    head = word(draw, content[10 : 10 + size])
    return content[:8] + len(head).to_bytes(4, "little")[:2] + head + content[10 + size :]


def in_tar_gz(draw: Random, content: bytes) -> bytes:
    """A member, its name or its kind is another; the archive is whole."""
    target = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as old,
        tarfile.open(fileobj=target, mode="w:gz", compresslevel=1) as new,
    ):
        members = old.getmembers()
        which = draw.randrange(len(members))
        for k, member in enumerate(members):
            stream = old.extractfile(member)
            inside = stream.read() if stream else b""
            if k == which:
                inside = damaged(draw, inside)
                if draw.random() < 0.2:
                    member.name = draw.choice(["../" + member.name, "/etc/" + member.name, member.name[:-1]])
                if draw.random() < 0.1:
                    member.type, member.linkname = draw.choice([tarfile.SYMTYPE, tarfile.LNKTYPE]), "/etc/passwd"
            member.size = len(inside)
            new.addfile(member, io.BytesIO(inside))
    return target.getvalue()


def in_png(draw: Random, content: bytes) -> bytes:
    """A chunk is damaged, its checksum put right; or the pixels are, packed again."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    which = draw.randrange(len(chunks))
    made = content[:8]
    for k, (kind, body) in enumerate(chunks):
        if k == which:
            is_pixels = kind == b"IDAT" and draw.random() < 0.7
            body = zlib.compress(damaged(draw, zlib.decompress(body)), 1) if is_pixels else damaged(draw, body)
        made += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return made


def in_sealed(draw: Random, content: bytes) -> bytes:
    """The header or the numbers of a safetensors file are others, and its digest is theirs."""
    size = int.from_bytes(content[:8], "little")
    head, body = content[8 : 8 + size], content[8 + size :]
    if draw.random() < 0.7:
        head = draw.choice([word, word, word, spliced, flipped])(draw, head)
    else:
        body = damaged(draw, body)
    whole = len(head).to_bytes(8, "little") + head + body
    entry = re.search(rb'"sha256":"([0-9a-f]{64})"', whole)
    if entry is None:
        return whole
    blank = whole[: entry.start(1)] + b"0" * 64 + whole[entry.end(1) :]
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


def in_packed_network(draw: Random, content: bytes) -> bytes:
    """A packed network is damaged, its size and its checksum put right."""
    changed = bytearray(damaged(draw, content))
    if len(changed) >= 16:
        changed[8:12] = struct.pack("<I", len(changed) & 0xFFFFFFFF)
        changed[12:16] = struct.pack("<I", zlib.crc32(bytes(changed[16:])))
    return bytes(changed)


def in_outcome(draw: Random, content: bytes) -> bytes:
    """The tree of an outcome is damaged, its digest put right."""
    document = json.loads(content)
    text = damaged(draw, json.dumps(document["tree"]).encode())
    try:
        document["tree"] = json.loads(text)
    except (ValueError, RecursionError):
        return content[: len(content) // 2] + text
    document.pop("digest", None)
    digest = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    return json.dumps(document | {"digest": digest}).encode()


WITHIN: dict[str, Damage] = {
    ".tar.gz": in_tar_gz, ".gz": in_gzip, ".zip": in_zip, ".npz": in_zip, ".png": in_png, ".safetensors": in_sealed,
    ".sbnn": in_packed_network, "outcome.json": in_outcome,
}  # fmt: skip


def put(draw: Random, contents: dict[Path, bytes]) -> tuple[Path, str]:
    """Damage one of these files where it lies, or take it away; gives which, and what was done."""
    files = sorted(contents)
    path = draw.choice(files)
    content, kind = contents[path], draw.random()
    if len(files) > 1 and kind < 0.03:
        path.unlink()
        return path, f"{path.name}: gone"
    if len(files) > 1 and kind < 0.08:
        path.write_bytes(contents[draw.choice(files)])
        return path, f"{path.name}: another's content"
    within = next((damage for end, damage in WITHIN.items() if path.name.endswith(end)), None)
    if within is not None and kind < 0.65:
        try:
            path.write_bytes(within(draw, content))
            return path, f"{path.name}: within"
        except (zlib.error, ValueError, OverflowError, struct.error):  # what was damaged can no longer be packed
            pass
    path.write_bytes(damaged(draw, content))
    return path, f"{path.name}: bytes"
