"""Everything kept in `data/` is what its SHA256SUMS says, has its README, and stays small."""

import hashlib
import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
FOLDERS = sorted(path for path in DATA.iterdir() if path.is_dir())
ASIDE = {"README.md", "SHA256SUMS", "make.py"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_file_is_the_one_that_was_kept(folder):
    kept = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    apart = ("__pycache__", "runs/")  # what make.py has on the way
    files = {name: path for name, path in files.items() if name not in ASIDE and not any(one in name for one in apart)}
    assert set(files) == set(kept)
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == kept[name], f"{path} was altered"
    assert "python " in (folder / "README.md").read_text()  # the command that makes it again


def test_all_of_it_stays_small():
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 30_000_000


OURS = sorted(
    path for path in DATA.rglob("*.json") if path.name != "scheduler_config.json"
)  # diffusers writes -Infinity


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.relative_to(DATA).as_posix())
def test_kept_json_is_what_every_reader_takes(path):
    def refused(constant):
        raise ValueError(f"{path}: {constant} is no JSON")

    json.loads(path.read_text(), parse_constant=refused)


def test_what_no_command_counts_is_marked_as_quoted():
    rows = json.loads((DATA / "sparsebytenn" / "arm.json").read_text())["product"]
    assert [row["source"].split(":")[0] for row in rows] == ["counted"] + ["quoted"] * 3
    assert all(("XNNPACK" in row["kernel"]) == row["source"].startswith("quoted") for row in rows)
