"""What a platform keeps in its folder: one SQLite file of its versions, its clients' keys and the rounds they sent.

The file is written ahead (WAL): a transaction is there whole or not at all, and readers are not held up. A key is kept
as its SHA-256: whoever reads the file has no key.
"""

import hashlib
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import store

FILE = "platform.sqlite"
KEPT = 8  # versions, the newest among them
DAY = 86400.0  # seconds for which a round is remembered
READ = "BEGIN"
NAME = re.compile(r"[\w.@-]{1,64}")  # of a client
_TABLES = """
CREATE TABLE IF NOT EXISTS versions (version INTEGER PRIMARY KEY, state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS clients (name TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS rounds (digest TEXT PRIMARY KEY, client TEXT NOT NULL, at REAL NOT NULL);
"""


@dataclass(frozen=True)
class TakenRound:
    """An upload that was taken: the SHA-256 of its bytes, whose it was, and when, in seconds since 1970."""

    digest: str
    client: str
    at: float


@contextmanager
def _opened(folder: str | Path, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
    """The database for one transaction: all of the block is kept, or nothing. OSError in one line where it fails.

    One that only reads is begun by READ, and waits for nobody who writes.
    """
    path = Path(folder) / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.executescript(_TABLES)
            database.execute(begin)
            try:
                yield database
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")
    except (sqlite3.Error, OSError) as error:
        raise OSError(
            f"{path}: {error}: nothing was changed; free some space, mend the folder's rights, or go on from a copy"
        ) from error


def versions(folder: str | Path) -> list[int]:
    """The versions that a folder keeps, oldest first; none where there is no database."""
    if not (Path(folder) / FILE).exists():
        return []
    with _opened(folder, READ) as database:
        return [version for (version,) in database.execute("SELECT version FROM versions ORDER BY version")]


def load(folder: str | Path, version: int) -> dict[str, Any]:
    """The state of a version; ValueError in one line where it is damaged."""
    with _opened(folder, READ) as database:
        (content,) = database.execute("SELECT state FROM versions WHERE version = ?", (version,)).fetchone()
    try:
        return store.from_bytes(content)
    except ValueError as error:
        older = f"`lab rollback {folder}` gives an older one"
        raise ValueError(f"{Path(folder) / FILE}: version {version} is damaged ({error}): {older}") from error


def append(folder: str | Path, state: Mapping[str, Any], after: int, taken: TakenRound | None = None) -> None:
    """Keep a state as the newest version, and the round that led to it, in one transaction.

    ValueError where the newest version is not `after`: somebody else has written meanwhile.
    """
    content = store.to_bytes(state)
    with _opened(folder) as database:
        (newest,) = database.execute("SELECT max(version) FROM versions").fetchone()
        if newest is not None and newest != after:
            raise ValueError(f"{folder} is at version {newest}, this platform was at {after}: start it again")
        database.execute("INSERT INTO versions VALUES (?, ?)", (state["version"], content))
        database.execute("DELETE FROM versions WHERE version <= ?", (state["version"] - KEPT,))
        if taken is not None:
            database.execute("DELETE FROM rounds WHERE at < ?", (taken.at - DAY,))
            database.execute("INSERT INTO rounds VALUES (?, ?, ?)", (taken.digest, taken.client, taken.at))


def rounds(folder: str | Path) -> list[TakenRound]:
    """The rounds that were taken within the last day."""
    with _opened(folder, READ) as database:
        return [
            TakenRound(*row) for row in database.execute("SELECT * FROM rounds WHERE at >= ?", (time.time() - DAY,))
        ]


def adopt(folder: str | Path, names: Mapping[int, str]) -> None:
    """Take over what older versions of the lab kept as files, {version: name}; the files stay as they are."""
    states = [store.load(folder, name) for _, name in sorted(names.items())]
    for state in states[-KEPT:]:
        append(folder, state, (versions(folder) or [state["version"]])[-1])


# -- keys --------------------------------------------------------------------------------------------------------------


def add_client(folder: str | Path, name: str) -> str:
    """A new key for a client, which is kept nowhere but by its hash; ValueError where it has one."""
    if not NAME.fullmatch(name):
        raise ValueError(f"client {name!r}: give a name of 1 to 64 letters, digits and . _ @ -")
    key = secrets.token_urlsafe(24)
    with _opened(folder) as database:
        if database.execute("SELECT 1 FROM clients WHERE name = ?", (name,)).fetchone():
            raise ValueError(f"client {name!r} has a key: revoke it first, or give another name")
        database.execute("INSERT INTO clients VALUES (?, ?)", (name, _hash(key)))
    return key


def revoke_client(folder: str | Path, name: str) -> None:
    """Take a client's key back, at once also from a platform that is being served; ValueError where it has none."""
    if name not in clients(folder):
        raise ValueError(f"client {name!r} has no key in {folder}: `lab clients {folder}` names all that have")
    with _opened(folder) as database:
        database.execute("DELETE FROM clients WHERE name = ?", (name,))


def clients(folder: str | Path) -> list[str]:
    """The names of the clients that have a key."""
    if not (Path(folder) / FILE).exists():
        return []
    with _opened(folder, READ) as database:
        return [name for (name,) in database.execute("SELECT name FROM clients ORDER BY name")]


def client_of(folder: str | Path, key: str) -> str | None:
    """Whose key this is; None where it is nobody's."""
    with _opened(folder, READ) as database:
        row = database.execute("SELECT name FROM clients WHERE key = ?", (_hash(key),)).fetchone()
    return row[0] if row else None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
