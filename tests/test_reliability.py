"""The campaign's own eyes: a reader that crashes, hangs, speaks in many lines or reads damage in silence is seen."""

import ctypes
import sys
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lab.core import sealing, store
from tests.sparsebytenn import fuzzing

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture
def files(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from harm import files

    monkeypatch.setattr(files, "HANG", 0.2)
    return files


def whole(folder: Path) -> None:
    (folder / "a").write_bytes(b"all is well, 1 2 3")


def silent(path: Path) -> list:
    return [path.read_text(errors="replace")]


def reading(fault) -> object:
    """A reader that meets its fault at the first damaged input."""

    def read(folder: Path) -> list:
        content = (folder / "a").read_bytes()
        return [content.decode()] if content == b"all is well, 1 2 3" else fault()

    return read


def many_lines() -> None:
    raise ValueError("one\ntwo")


def works_for_ever() -> None:
    while True:
        pass


def no_error_of_ours() -> None:
    raise KeyError("a")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda: ctypes.string_at(0), "crash by signal 11"),
        (works_for_ever, "hang"),
        (lambda: time.sleep(9), "hang"),
        (many_lines, "not one line: ValueError"),
        (no_error_of_ours, "KeyError: 'a' (test_reliability.py:"),
        (lambda: ["another"], "silent: a: bytes"),
    ],
    ids=["crash", "busy", "waiting", "lines", "kind", "silent"],
)
def test_what_a_reader_may_not_do_is_seen(files, monkeypatch, fault, words):
    monkeypatch.setitem(files.READERS, "mine", files.Reader(whole, reading(fault), is_sealed=True))
    row = files.run(("mine", 0), each=3 if words != "hang" else 1)
    assert row["faults"] and words in row["faults"][0]["what"], row
    assert row["inputs"] == (3 if words != "hang" else 1)  # the next one goes on behind a crash


@pytest.mark.parametrize(
    "name", ["npz", "IDX, gzip", "CIFAR-10 archive", "JSON table", "CSV, gzip", "zip of scenes", "PNG folder"]
)
def test_damage_to_any_file_is_told_in_one_line(files, name):
    row = files.run((name, 1), each=10)
    assert row["inputs"] == 10 and row["faults"] == []


def test_damage_is_the_same_each_time_and_can_hide_behind_a_checksum(files, tmp_path):
    from harm import mutations, readers

    readers.npz(tmp_path)
    content = (tmp_path / "a.npz").read_bytes()
    assert mutations.in_zip(Random(1), content) == mutations.in_zip(Random(1), content) != content
    sealed = sealing.sealed({"x": torch.ones(9)}, {"kind": "a test", "about": "nothing at all"})
    changed = [mutations.in_sealed(Random(k), sealed) for k in range(20)]
    assert all(one != sealed for one in changed)
    assert sum(map(is_whole, changed)) > 5


def test_half_a_save_is_seen(files, tmp_path):
    from harm import kills

    for name in ("a", "b"):
        store.save(tmp_path, name, {"x": torch.ones(9)})
    (tmp_path / "config.json").write_text("{}")
    assert kills.half(tmp_path) == []
    next(tmp_path.glob("a-*.safetensors")).write_bytes(b"half")
    (tmp_path / "b.json").write_text('{"tensors": ')
    assert len(kills.half(tmp_path)) == 2


def test_a_number_that_is_wrong_is_seen_in_c(files, monkeypatch):
    from harm import shapes

    assert shapes.in_c(0, 11) == (11, [])
    monkeypatch.setattr(shapes, "kernels", SimpleNamespace(isas=lambda: ["ref"]))
    monkeypatch.setattr(shapes.Engine, "_run", lambda engine, arrays: [np.float32(12345)])
    done, faults = shapes.in_c(0, 11)
    assert done == 11 and len(faults) == 10 and "ref " in faults[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fuzzing is for Linux")
def test_a_compiler_without_libfuzzer_is_one_line(monkeypatch, tmp_path, capsys):
    compiler = tmp_path / "clang"
    compiler.write_text(f"#!/bin/sh\necho {tmp_path}\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(fuzzing, "CLANG", str(compiler))
    assert fuzzing.main(["--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"{compiler} has no libFuzzer in {tmp_path}: apt-get install clang-19 libclang-rt-19-dev\n"
    )
    (tmp_path / "libclang_rt.fuzzer-x86_64.a").touch()
    assert fuzzing.missing() == ""


def is_whole(content: bytes) -> bool:
    """Whether the digest is that of the bytes, whatever they say."""
    try:
        return bool(sealing.header(content, len(content)))
    except ValueError:
        return False
