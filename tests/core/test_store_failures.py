"""Saves that fail or are killed at every possible point: the save before stays whole, and no litter is left."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lab.core import store
from tests.core.test_store import FIRST, ROOT, SECOND, alike, files, told

# -- failures --------------------------------------------------------------------------------------------------------


def no_space() -> None:
    """What the system answers when a disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed() -> None:
    """A process that ends without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


class Trouble:
    """Something that happens at the n-th of the calls that a save makes of the system; a write is then half done."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, happens: Callable[[], None] = no_space) -> None:
        self.calls: list[str] = []
        self.at, self.happens = at, happens
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "open"), (Path, "mkdir"), (store, "open")):
            real = getattr(owner, name, open)
            patch.setattr(owner, name, self._counted(name, real), raising=False)

    def _counted(self, name, real):
        def call(*args, **kwargs):
            self._count(name)
            opened = real(*args, **kwargs)
            return self._filling(opened) if real is open else opened

        return call

    def _filling(self, file):
        """The opened file; writing to it stops half-way when its turn comes."""
        real = file.write

        class Handle:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(handle, content):
                if len(self.calls) + 1 == self.at:
                    real(content[: len(content) // 2])
                    file.flush()
                self._count("write")
                return real(content)

            flush, fileno = file.flush, file.fileno

        return Handle()

    def _count(self, name):
        self.calls.append(name)
        if len(self.calls) == self.at:
            self.happens()


def calls_of_a_save(folder) -> list[str]:
    """The calls of the system that a save makes, in order."""
    with pytest.MonkeyPatch.context() as patch:
        none = Trouble(patch, at=0)
        store.save(folder, "tree", SECOND)
    return none.calls


def test_what_a_save_asks_of_the_system(tmp_path):
    one_file = ["mkdir", "open", "write", "fsync", "replace", "open", "fsync"]
    assert calls_of_a_save(tmp_path) == 2 * one_file  # so the failures below come at every point there is


@pytest.mark.parametrize("before", [None, FIRST, SECOND], ids=["first save", "new tensors", "same tensors"])
@pytest.mark.parametrize("at", range(1, 15))
def test_a_full_disk_at_every_point(tmp_path, at, before):
    if before is not None:
        store.save(tmp_path, "tree", before)
    old = files(tmp_path)
    point = 0
    with pytest.MonkeyPatch.context() as patch:
        full = Trouble(patch, at)
        try:
            store.save(tmp_path, "tree", SECOND)
        except OSError as error:
            point = len(full.calls)
            assert "\n" not in str(error)
            for word in (str(tmp_path), "No space left on device", "bytes are needed", "free some space"):
                assert word in str(error)
    if point:
        assert files(tmp_path) == old
    else:  # only what comes after the rename may fail without a word: the file is there, whole
        assert full.calls[at - 1] in ("open", "fsync") and full.calls[at - 2] in ("replace", "open")
        assert alike(store.load(tmp_path, "tree"), SECOND) and len(files(tmp_path)) == 2


def test_an_interrupt_leaves_no_litter(tmp_path, monkeypatch):
    store.save(tmp_path, "tree", FIRST)
    old = files(tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(tmp_path, "tree", SECOND)
    assert files(tmp_path) == old


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError) as caught:
        store.save(tmp_path / "file", "tree", FIRST)
    told(caught, str(tmp_path / "file"), "save to another folder")
    assert files(tmp_path) == {"file": b"mine"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, where the machine lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_really_is_full(small_disk):
    store.save(small_disk, "tree", FIRST)
    old = files(small_disk)
    with pytest.raises(OSError) as caught:
        store.save(small_disk, "tree", {"weights": torch.zeros(100_000)})
    told(caught, str(small_disk), "No space left on device", "400,0", "nothing was changed", "free some space")
    assert files(small_disk) == old
    assert alike(store.load(small_disk, "tree"), FIRST)
    store.save(small_disk, "tree", SECOND)
    assert alike(store.load(small_disk, "tree"), SECOND)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_file_mode_honours_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        store.save(tmp_path, "tree", FIRST)
        assert os.umask(mask) == mask  # and it is left as it was
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~mask}


# -- kills -----------------------------------------------------------------------------------------------------------

SAVING = """
import sys, torch
from lab.core import store
for step in range(10**6):
    store.save(sys.argv[1], "tree", {"step": step, "weights": torch.full((20_000,), float(step))})
"""


@pytest.mark.slow
def test_whatever_a_kill_leaves_loads(tmp_path):
    tree, litter = tmp_path / "tree.json", 0
    for saves in (1, 4, 9):
        saving = subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path)], cwd=ROOT)
        try:
            times, deadline = {tree.stat().st_mtime_ns} if tree.exists() else set(), time.monotonic() + 60
            most = len(times) + saves
            while len(times) < most:
                assert saving.poll() is None and time.monotonic() < deadline, "nothing was saved"
                times |= {tree.stat().st_mtime_ns} if tree.exists() else set()
                time.sleep(0.0005)
        finally:
            saving.send_signal(signal.SIGKILL)
            saving.wait()
        found = store.load(tmp_path, "tree")
        assert found["weights"].tolist() == [found["step"]] * 20_000 and found["step"] >= saves - 1
        litter = max(litter, len(files(tmp_path)))
        assert litter <= 4  # at most one new tensor file and one half-written file beside the pair
    store.save(tmp_path, "tree", FIRST)
    assert len(files(tmp_path)) == 2  # the next save clears up what the kills left


@pytest.mark.slow
def test_a_kill_at_every_point_of_a_save(tmp_path):
    for point in range(1, 1 + len(calls_of_a_save(tmp_path))):
        store.save(tmp_path, "tree", FIRST)
        assert len(files(tmp_path)) == 2  # what the kill before left is cleared up
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # the child starts no thread
            child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                Trouble(patch, point, killed)
                store.save(tmp_path, "tree", SECOND)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        found = store.load(tmp_path, "tree")
        assert alike(found, FIRST) or alike(found, SECOND)


def killed_at(call: str, at: int, action: Callable[[], object]) -> bool:
    """Do `action` in a process that is killed at the n-th call of `os.<call>`; False if it ended before."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # the child starts no thread
        child = os.fork()
    if not child:
        real, seen = getattr(os, call), []

        def counted(*args, **kwargs):
            seen.append(args)
            return killed() if len(seen) == at else real(*args, **kwargs)

        try:
            setattr(os, call, counted)
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


# -- whole folders ---------------------------------------------------------------------------------------------------


def fill(tree) -> Callable[[Path], None]:
    """What fills a folder with a save of the tree and one file beside it."""

    def write(folder: Path) -> None:
        name = f"weights {tree['step']}.bin"
        (folder / name).write_bytes(bytes([tree["step"]]))
        store.save(folder, "tree", tree, beside=[name])

    return write


def validate_whole(folder: Path) -> int:
    """Which of the two saves the folder holds, with its own file and not the other's."""
    step = store.load(folder, "tree")["step"]
    found = {path.name for path in store.present(folder).iterdir()}
    assert {name for name in found if name.startswith("weights")} == {f"weights {step}.bin"}
    assert {name for name in found if name.startswith("my")} == {"my notes.txt", "my folder"}
    assert (store.present(folder) / "my folder" / "inside").read_text() == "also mine"
    return step


@pytest.fixture
def own_folder(tmp_path):
    """A saved folder to which its owner has added a file and a folder."""
    folder = tmp_path / "out"
    store.replace_folder(folder, fill(FIRST))
    (folder / "my notes.txt").write_text("mine")
    (folder / "my folder").mkdir()
    (folder / "my folder" / "inside").write_text("also mine")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("call", ["replace", "link", "rmdir", "unlink", "fsync"])
def test_a_folder_killed_at_every_call_is_the_old_or_the_new_one(own_folder, call):
    at = 1
    while killed_at(call, at, lambda: store.replace_folder(own_folder, fill(SECOND))):
        validate_whole(own_folder)
        store.replace_folder(own_folder, fill(FIRST))  # the next save heals whatever the kill has left
        assert validate_whole(own_folder) == 1 and [path.name for path in own_folder.parent.iterdir()] == ["out"]
        at += 1
    assert at > 2 and validate_whole(own_folder) == 2


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_folder_on_a_failing_disk_stays_as_it_was(own_folder, monkeypatch, call):
    before = files(own_folder.parent / "out" / "my folder"), store.load(own_folder, "tree")["step"]
    real, failures = getattr(os, call), 0
    for at in range(1, 5):
        seen = []

        def counted(*args, _seen=seen, **kwargs):
            _seen.append(args)
            return no_space() if len(_seen) == at else real(*args, **kwargs)  # noqa: B023

        monkeypatch.setattr(os, call, counted)
        try:
            store.replace_folder(own_folder, fill(SECOND))
        except OSError as error:
            failures += 1
            for word in ("cannot save to", str(own_folder), "No space left", "nothing was changed", "another folder"):
                assert word in str(error) and "\n" not in str(error)
            assert validate_whole(own_folder) == 1 and before[0] == files(own_folder / "my folder")
        monkeypatch.setattr(os, call, real)
        store.replace_folder(own_folder, fill(FIRST))
        assert [path.name for path in own_folder.parent.iterdir()] == ["out"]
    assert failures == {"replace": 4, "fsync": 2}[call]  # a folder that cannot be synced is no failure


def test_what_write_raises_leaves_the_old_folder(own_folder):
    def write(folder):
        fill(SECOND)(folder)
        raise ValueError("the answers differ")

    with pytest.raises(ValueError, match="the answers differ"):
        store.replace_folder(own_folder, write)
    assert validate_whole(own_folder) == 1 and [path.name for path in own_folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["a file", "the working folder", "above it", "the home folder"])
def test_a_folder_that_cannot_give_its_place(tmp_path, monkeypatch, kind):
    folder = tmp_path / "place"
    (folder / "inner").mkdir(parents=True)
    (folder / "mine").write_text("mine")
    monkeypatch.chdir({"the working folder": folder, "above it": folder / "inner"}.get(kind, tmp_path))
    if kind == "the home folder":
        monkeypatch.setenv("HOME", str(folder))
    target = folder / "mine" if kind == "a file" else folder
    with pytest.raises(OSError) as caught:
        store.replace_folder(target, fill(FIRST))
    told(caught, str(target), kind, "name a folder of its own")
    assert sorted(path.name for path in folder.iterdir()) == ["inner", "mine"]


def test_a_relative_folder_and_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for folder in ("new/er", "link", "link"):
        store.replace_folder(folder, fill(SECOND))
        assert store.load(folder, "tree")["step"] == 2
    assert (tmp_path / "link").is_symlink() and store.exists(tmp_path / "real", "tree")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "new", "real"]
