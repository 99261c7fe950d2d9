"""What a platform keeps: versions, and one of them again; the keys of clients; nothing half-written, nothing twice."""

import re
import sqlite3
from contextlib import closing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.__main__ import main
from lab.core import store
from lab.core.training import seeded
from lab.hyperfd import database
from lab.hyperfd.bounds import Rejected
from lab.hyperfd.database import FILE, KEPT, TakenRound
from lab.hyperfd.platform import ROUNDS_A_DAY, adopt, versions

from . import small
from .test_platform import changed, state


def served_often(folder, times):
    """A platform that took the same upload again and again."""
    platform = small.platform(folder=folder)
    with seeded(0):
        message, _ = small.client().upload(platform.offer(), [0, 1], [5.0, 6.0])
    for base in range(times):
        platform.accept(changed(message, body={"model": base}))
    return platform


def small_upload(platform, which=1):
    with seeded(1):
        return small.client(which).upload(platform.offer(), [0, 1], [5.0, 6.0])[0]


def test_the_last_versions_are_kept_and_any_of_them_comes_back(tmp_path, capsys):
    platform = served_often(tmp_path, KEPT + 2)
    assert versions(tmp_path) == list(range(3, KEPT + 3)) and [p.name for p in tmp_path.iterdir()] == [FILE]
    assert main(["rollback", str(tmp_path), "--to", "5"]) == 0
    assert f"version {KEPT + 3} is what version 5 was" in capsys.readouterr().out
    with pytest.raises(Rejected, match=f"is at version {KEPT + 3}, this platform was at {KEPT + 2}: start it again"):
        platform.accept(small_upload(platform))
    again = small.platform(folder=tmp_path)
    assert (again.version, len(again.memory)) == (KEPT + 3, 5)
    again.accept(small_upload(again))
    assert small.platform(folder=tmp_path).version == KEPT + 4 and len(versions(tmp_path)) == KEPT
    assert main(["rollback", str(tmp_path)]) == 0 and len(small.platform(folder=tmp_path).memory) == 5


def test_what_learned_before_a_rollback_is_not_merged_after_it(tmp_path):
    platform = served_often(tmp_path, 2)
    late = small_upload(platform)
    assert main(["rollback", str(tmp_path)]) == 0
    again = small.platform(folder=tmp_path)
    with pytest.raises(Rejected, match="learned from version 2, the platform is at 3: ask for an offer"):
        again.accept(late)


@pytest.mark.parametrize(("to", "words"), [("9", "to=9: .* keeps 1, 2, the last of which is in use"), ("2", "to=2: ")])
def test_only_an_older_version_comes_back(tmp_path, capsys, to, words):
    served_often(tmp_path, 2)
    assert main(["rollback", str(tmp_path), "--to", to]) == 1
    assert re.search(words, capsys.readouterr().err) and versions(tmp_path) == [1, 2]
    assert main(["rollback", str(tmp_path / "none")]) == 1 and "holds no platform" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_folder_of_files_of_an_older_lab_goes_on(tmp_path):
    platform = served_often(tmp_path / "new", 3)
    for version in (2, 3):
        store.save(tmp_path / "old", f"platform-{version}", database.load(tmp_path / "new", version))
    files = sorted(tmp_path.glob("old/platform-*"))
    again = small.platform(folder=tmp_path / "old")
    assert state(again) == state(platform) and versions(tmp_path / "old") == [2, 3]
    again.accept(small_upload(again))
    assert versions(tmp_path / "old") == [2, 3, 4] and sorted(tmp_path.glob("old/platform-*")) == files
    store.save(tmp_path / "oldest", "platform", database.load(tmp_path / "new", 3))
    adopt(tmp_path / "oldest")
    assert state(small.platform(folder=tmp_path / "oldest")) == state(platform)


def test_a_state_that_cannot_be_stored_is_not_taken(tmp_path, monkeypatch):
    platform = small.platform(folder=tmp_path)
    message = small_upload(platform)

    def full(*_, **more):
        raise sqlite3.OperationalError("database or disk is full")

    before = state(platform)
    with monkeypatch.context() as patched:
        patched.setattr("lab.hyperfd.database.sqlite3.connect", full)
        with pytest.raises(OSError, match=r"platform\.sqlite: database or disk is full: nothing was changed"):
            platform.accept(message)
    assert state(platform) == before
    platform.accept(message)
    assert platform.version == 1 and state(small.platform(folder=tmp_path)) == state(platform)


def test_a_kill_within_a_transaction_leaves_the_version_before(tmp_path, monkeypatch):
    platform = served_often(tmp_path, 1)

    class Killed(sqlite3.Connection):
        def execute(self, command, *more):
            if command.startswith("INSERT INTO rounds"):
                raise KeyboardInterrupt
            return super().execute(command, *more)

    connect, message = sqlite3.connect, small_upload(platform)
    monkeypatch.setattr(database.sqlite3, "connect", lambda *a, **k: connect(*a, factory=Killed, **k))
    with pytest.raises(KeyboardInterrupt):
        platform.accept(message)
    monkeypatch.undo()
    assert versions(tmp_path) == [1] and small.platform(folder=tmp_path).version == platform.version == 1
    platform.accept(message)
    assert versions(tmp_path) == [1, 2]


def test_a_damaged_version_is_told_and_an_older_one_comes_back(tmp_path):
    served_often(tmp_path, 3)
    with closing(sqlite3.connect(tmp_path / FILE)) as opened:
        (content,) = opened.execute("SELECT state FROM versions WHERE version = 3").fetchone()
        opened.execute("UPDATE versions SET state = ? WHERE version = 3", (content[:-1] + b"\1",))
        opened.commit()
    with pytest.raises(ValueError, match=r"version 3 is damaged \(.*\): `lab rollback .*` gives an older one"):
        small.platform(folder=tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE).write_bytes(b"no database" * 99)
    with pytest.raises(OSError, match="file is not a database"):
        small.platform(folder=tmp_path / "other")


def test_the_same_upload_is_taken_once_also_after_a_start(tmp_path):
    platform = small.platform(folder=tmp_path)
    message = small_upload(platform)
    for server in (platform, platform, None):
        server = server or small.platform(folder=tmp_path)
        server.accept(message)
        assert (server.version, len(server.memory)) == (1, 1)


def test_a_client_has_so_many_rounds_a_day_and_records(monkeypatch):
    monkeypatch.setattr("lab.hyperfd.platform.RECORDS_OF_ONE", 2)
    platform = small.platform()
    platform.taken = {str(k): TakenRound(str(k), "ann", 1e12) for k in range(ROUNDS_A_DAY - 3)}  # none is a day old
    for _ in range(3):
        platform.accept(small_upload(platform), "ann")
    assert [record.client for record in platform.memory] == ["ann", "ann"]
    with pytest.raises(Rejected, match="client 'ann' has sent 24 rounds within a day, the most"):
        platform.accept(small_upload(platform), "ann")
    platform.accept(small_upload(platform), "bob")
    assert [record.client for record in platform.memory] == ["ann", "ann", "bob"]


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys_are_given_once_and_taken_back(tmp_path, capsys):
    folder = str(tmp_path / "platform")
    assert main(["clients", folder]) == 0 and "all share the token" in capsys.readouterr().out
    assert not (tmp_path / "platform").exists()
    assert main(["clients", folder, "--add", "ann"]) == 0
    key = re.search(r"export LAB_TOKEN=(\S{32,})", capsys.readouterr().out)[1]
    assert database.client_of(folder, key) == "ann" and database.client_of(folder, key[:-1]) is None
    assert key.encode() not in (tmp_path / "platform" / FILE).read_bytes()
    assert main(["clients", folder, "--add", "ann"]) == 1 and "revoke it first" in capsys.readouterr().err
    assert main(["clients", folder, "--add", "a b"]) == 1 and "give a name of" in capsys.readouterr().err
    assert main(["clients", folder]) == 0 and capsys.readouterr().out == "ann\n"
    assert main(["clients", folder, "--revoke", "ann"]) == 0 and database.client_of(folder, key) is None
    assert main(["clients", folder, "--revoke", "ann"]) == 1 and "has no key in" in capsys.readouterr().err


TREES = st.dictionaries(
    st.text(max_size=8),
    st.one_of(
        st.integers(-(2**50), 2**50),
        st.floats(allow_nan=False),
        st.text(max_size=8),
        st.none(),
        st.lists(st.integers(0, 9), max_size=4),
        st.builds(torch.full, st.just((2, 3)), st.floats(-9, 9, width=32)),
    ),
    max_size=5,
)


@settings(max_examples=20, deadline=None)
@given(tree=TREES, at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_state_comes_back_from_its_bytes_and_damage_is_told(tree, at, bit):
    content = store.to_bytes({"tree": tree})
    back = store.from_bytes(content)["tree"]
    assert back.keys() == tree.keys()
    for name, value in tree.items():
        assert torch.equal(value, back[name]) if isinstance(value, torch.Tensor) else value == back[name]
    damaged = bytearray(content)
    damaged[at % len(content)] ^= 1 << bit
    with pytest.raises(ValueError):
        store.from_bytes(bytes(damaged))


def test_who_reads_does_not_wait_for_who_writes(tmp_path):
    key = database.add_client(tmp_path, "a")
    with database._opened(tmp_path) as writing:
        writing.execute("DELETE FROM clients")  # not kept before the block ends
        assert database.clients(tmp_path) == ["a"] and database.client_of(tmp_path, key) == "a"
    assert database.clients(tmp_path) == []


def test_a_state_of_a_later_version_is_refused(monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(store, "FORMAT", store.FORMAT + 1)
        content = store.to_bytes({"a": 1})
        assert store.from_bytes(content) == {"a": 1}
    with pytest.raises(ValueError, match=rf"format {store.FORMAT + 1}, this version of the lab reads 1 to"):
        store.from_bytes(content)
