"""The `lab` command, called as the shell calls it; the recipe is a stand-in with a field of every kind."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch

import lab
from lab import __main__ as cli
from lab import doctor, settings
from lab.core import kernels, store

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Stand:
    """A recipe that only says how it was called."""

    lam: float = 0.1
    steps: int = 10
    fast: bool = False
    name: str = "x"
    kind: Literal["AR", "none"] = "AR"
    units: tuple[str, ...] = ("channel",)
    sizes: tuple[int, ...] = ()
    limit: float | None = None
    either: int | str = 0

    def __post_init__(self):
        if self.lam < 0:
            raise ValueError(f"Stand: lam={self.lam} is not allowed: give a number >= 0")

    def run(self, task=None, *, seed=0, device=None, progress=True, checkpoint=None):
        if self.name == "full":
            raise OSError("the disk is full:\nfree some space")
        return Result(self, seed, progress, checkpoint)


@dataclass
class Result:
    recipe: Stand
    seed: int
    progress: bool
    checkpoint: Path | None

    def save(self, folder):
        folder.mkdir()
        (folder / "outcome.json").write_text(json.dumps({"lam": self.recipe.lam, "seed": self.seed}))


@pytest.fixture
def stand(monkeypatch):
    monkeypatch.setitem(vars(lab), "RECIPES", (Stand,))


def refused(capsys, *arguments, status=2):
    """The one line that the command answers with."""
    assert cli.main([str(a) for a in arguments]) == status
    answer = capsys.readouterr()
    assert answer.out == ""
    assert answer.err.startswith("lab: ")
    assert answer.err.count("\n") == 1
    return answer.err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lam=0.5", 0.5),
        ("lam=1e-3", 0.001),
        ("steps=7", 7),
        ("fast=true", True),
        ("fast=no", False),
        ("name=a=b", "a=b"),
        ("kind=none", "none"),
        ("units=channel,block", ("channel", "block")),
        ("units=('channel',)", ("channel",)),
        ("sizes=1, 2", (1, 2)),
        ("sizes=", ()),
        ("limit=none", None),
        ("limit=2", 2.0),
        ("either=3", 3),
        ("either=three", "three"),
    ],
)
def test_a_value_is_read_by_the_type_of_its_field(text, value):
    name, read = settings.parse_field(Stand, text)
    assert (name, read, type(read)) == (text.split("=")[0], value, type(value))


def test_run_prints_the_report_and_saves(stand, capsys, tmp_path):
    out, checkpoint = tmp_path / "out", tmp_path / "state"
    command = f"run stand --set lam=0.25 --set steps=3 --seed 4 --quiet --checkpoint {checkpoint} --out {out}"
    assert cli.main(command.split()) == 0
    said = capsys.readouterr().out
    assert repr(Stand(lam=0.25, steps=3)) in said
    assert f"seed=4, progress=False, checkpoint={checkpoint!r}" in said
    assert said.endswith(f"saved: lab.load({str(out)!r})\n")
    assert json.loads((out / "outcome.json").read_text()) == {"lam": 0.25, "seed": 4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no method 'nothing'; there are Stand"),
        (["stan"], "did you mean 'Stand'?"),
        (["stand", "--set", "lamb=1"], "Stand has no field 'lamb' (did you mean 'lam'?); it has lam, steps"),
        (["stand", "--set", "lam"], "--set lam: write FIELD=VALUE"),
        (["stand", "--set", "lam=much"], "Stand: lam='much' is not allowed: give a number"),
        (["stand", "--set", "steps=1.5"], "steps='1.5' is not allowed: give an integer"),
        (["stand", "--set", "fast=maybe"], "give true or false"),
        (["stand", "--set", "kind=L9"], "give one of AR, none"),
        (["stand", "--set", "sizes=1,b"], "give values separated by commas, each an integer"),
        (["stand", "--set", "limit=b"], "give a number or none"),
        (["stand", "--out", __file__], "is a file: name a folder"),
        (["stand", "--set", "lam=-1"], "Stand: lam=-1.0 is not allowed: give a number >= 0"),
        (["stand", "--device", "cuda:99"], "--device='cuda:99' is not on this machine: give one of cpu"),
        (["stand", "--seed", "-1"], "--seed=-1: give an integer in 0..4294967295"),
        (["stand", "--seed", "x"], "argument --seed: invalid int value: 'x'; `lab run --help` says what there is"),
        ([], "the following arguments are required: method"),
        (["nothing", "--help"], "no method 'nothing'"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(stand, capsys, arguments, message):
    assert message in refused(capsys, "run", *arguments)


def test_the_help_of_a_method_lists_its_fields_as_they_can_be_set(stand, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "stand", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "usage: lab run" in said and "A recipe that only says how it was called." in said
    shown = dict(line.split(None, 1) for line in said.splitlines() if line.startswith("  ") and "=" in line.split()[0])
    read = dict(settings.parse_field(Stand, text) for text in shown)
    assert Stand(**read) == Stand()
    assert shown["kind=AR"] == "one of AR, none" and shown["limit=none"] == "a number or none"


def test_an_address_that_holds_no_outcome_is_refused(capsys, tmp_path):
    assert "holds no outcome.json" in refused(capsys, "load", tmp_path / "none")
    assert "is not a repository of the hub" in refused(capsys, "load", "hf://x")


def test_an_error_of_the_recipe_is_one_line(stand, capsys):
    assert "the disk is full: free some space" in refused(capsys, "run", "stand", "--set", "name=full", status=1)


def test_start_copies_what_is_missing_and_keeps_the_rest(capsys, tmp_path, monkeypatch):
    source, folder = tmp_path / "notebooks", tmp_path / "my notebooks"
    (source / "runs").mkdir(parents=True)
    for name in ("00_tour.ipynb", "01_gal.ipynb"):
        (source / name).write_text("new")
    monkeypatch.setattr(cli, "_brought", lambda name: source)
    folder.mkdir()
    (folder / "01_gal.ipynb").write_text("mine")
    assert cli.main(["start", str(folder), "--no-open"]) == 0
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "00_tour.ipynb": "new",
        "01_gal.ipynb": "mine",
    }
    assert capsys.readouterr().out == f"working folder {folder}: 1 notebooks copied, 1 that were there are kept\n"


def test_a_folder_that_notebooks_cannot_be_copied_to_is_refused(capsys):
    assert "name another folder" in refused(capsys, "start", Path(__file__) / "below", "--no-open")


def test_make_lab_works_on_a_copy_that_git_does_not_see():
    (recipe,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if "-m lab start" in line)
    assert recipe.endswith("-m lab start")  # the default folder, no folder of the checkout's own
    default = cli.parser().parse_args(["start"]).folder
    assert f"/{default}/" in (ROOT / ".gitignore").read_text().splitlines()


def test_jupyter_keeps_to_loopback_and_its_token(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_PORT", "8899")
    monkeypatch.setenv("LAB_NO_BROWSER", "1")
    command = cli.jupyter(tmp_path)
    assert {"--ServerApp.ip=127.0.0.1", "--ServerApp.port=8899", "--no-browser"} <= set(command)
    assert "--LabApp.default_url=/lab" in command
    assert not [part for part in command if "token" in part or "password" in part]
    assert "--LabApp.news_url=None" in command  # no pop-up about news
    (tmp_path / "00_tour.ipynb").touch()
    monkeypatch.setenv("LAB_NO_BROWSER", "0")
    monkeypatch.delenv("LAB_PORT")
    command = cli.jupyter(tmp_path)
    assert "--LabApp.default_url=/lab/tree/00_tour.ipynb" in command
    assert not [part for part in command if "port" in part or part == "--no-browser"]


@pytest.mark.parametrize("port", ["http", "0", "70000"])
def test_a_port_that_is_none_is_refused(capsys, monkeypatch, tmp_path, port):
    monkeypatch.setenv("LAB_PORT", port)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("JupyterLab was started"))
    monkeypatch.setattr(cli, "_brought", lambda name: tmp_path)
    assert f"LAB_PORT='{port}' is not a port" in refused(capsys, "start", tmp_path)


@pytest.fixture
def benchmarks(monkeypatch, tmp_path):
    """A folder of one benchmark, which writes down how it was called and ends with status 3."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    called = f"open({str(tmp_path / 'called')!r}, 'w').write(' '.join(sys.argv[1:]))"
    (folder / "stand.py").write_text(f"import sys\n{called}\nsys.exit(3)\n")
    monkeypatch.setattr(cli, "_brought", lambda name: folder)
    return folder


def test_bench_runs_the_file_and_hands_on_its_options_and_status(benchmarks, tmp_path):
    assert cli.main(["bench", "Stand", "--quick", "--json", "figures.json"]) == 3
    assert (tmp_path / "called").read_text() == "--quick --json figures.json"


def test_bench_names_what_there_is(benchmarks, capsys):
    assert "no benchmark 'stan' (did you mean 'stand'?); there are stand" in refused(capsys, "bench", "stan")
    (benchmarks / "stand.py").unlink()
    assert "no benchmark in" in refused(capsys, "bench")


def test_doctor_names_what_it_found(capsys):
    assert cli.main(["doctor"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    isa = "" if kernels.backend() == "numpy" else f", {kernels.isa_name()}"
    assert lines["kernels"] == f"backend {kernels.backend()}{isa}"
    assert lines["threads"].startswith("torch uses 1 of")
    assert lines["notebooks"].startswith("JupyterLab")
    assert {"python", "lab", "torch", "devices", "compiler", "chromium"} <= set(lines)
    assert lines["data"] == f"HybridSD's models at {ROOT / 'data' / 'hybridsd'}"


def test_doctor_says_how_to_get_what_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("LAB_KERNELS", raising=False)
    monkeypatch.setattr(kernels, "lib", None)
    monkeypatch.setattr(store, "__file__", str(tmp_path / "lab" / "core" / "store.py"))
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["torch>=99", "no-such-thing>=2; extra == 'all'"])
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "but >=99 is needed; to get it: pip install 'torch>=99'" in said
    assert "no-such-thing  missing (optional); to get it: pip install 'no-such-thing>=2'" in said
    assert "backend numpy; to get it: install a C compiler" in said
    assert "without HybridSD's models (optional); to get it: set LAB_DATA to the folder 'data'" in said
    assert "chromium       missing (browser tests only); to get it: apt-get install chromium" in said


def test_doctor_sees_a_kernel_of_another_environment(monkeypatch, tmp_path):
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps({"argv": ["/elsewhere/python"], "display_name": "P"}))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    finding = doctor.jupyter()
    assert "would start another Python (/elsewhere/python)" in finding.state
    assert finding.essential


def test_the_command_as_a_process():
    command = [sys.executable, "-m", "lab"]
    version = subprocess.run([*command, "--version"], cwd=ROOT, capture_output=True, text=True)
    assert version.stdout == f"lab {lab.__version__}\n"
    wrong = subprocess.run([*command, "run", "no-such"], cwd=ROOT, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_run_gal_for_real(tmp_path):
    fields = ["--set", "steps=4", "--set", "finetune_steps=2", "--set", "units=channel"]
    assert cli.main(["run", "gal", *fields, "--quiet", "--out", str(tmp_path / "out")]) == 0
    assert lab.load(tmp_path / "out").recipe == lab.GAL(steps=4, finetune_steps=2, units="channel")


def test_an_outcome_whose_folder_has_become_full_is_saved_elsewhere(tmp_path, capsys):
    class Full:
        """An outcome for which one folder has no room."""

        def save(self, folder):
            if folder == tmp_path / "out":
                raise OSError("No space left on device")
            folder.mkdir()

    place = cli.saved(Full(), tmp_path / "out")
    assert place.is_dir() and place.parent.name.startswith("lab-")
    assert capsys.readouterr().err == "lab: No space left on device\n"
    place.rmdir(), place.parent.rmdir()


@pytest.mark.parametrize("option", [["--out", "."], ["--out", f"{__file__}/out"], ["--checkpoint", ""]])
def test_a_folder_that_cannot_be_used_is_refused_before_the_run(capsys, monkeypatch, option):
    monkeypatch.setattr(lab.tasks, "digits", lambda: lab.Task(model=torch.nn.Linear(1, 1), batches=[torch.ones(1, 1)],
                        score=lambda model: pytest.fail("the run has begun")))  # fmt: skip
    assert cli.main(["run", "gal", "--quiet", *option]) != 0
    assert len(capsys.readouterr().err.splitlines()) == 1
