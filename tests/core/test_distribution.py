"""The distribution's name: one constant, which every hint uses, and a foreign `lab` in our folder is noticed."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lab
from lab import __main__ as cli
from lab import doctor
from lab.core import distribution

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIP = re.compile(r"""pip install (?:-[-\w]+ )*['"\\]*([A-Za-z0-9_.-]+)(?:\[([\w,]+)\])?""")
SOURCES = sorted((ROOT / "lab").rglob("*.py"))
PROSE = [
    *ROOT.glob("*.md"),
    *(
        path
        for folder in ("docs", "data", "benchmarks", "notebooks", ".github")
        for path in (ROOT / folder).rglob("*.md")
    ),
    *(ROOT / "benchmarks").rglob("*.py"),
    *(ROOT / "notebooks").glob("*.ipynb"),
]


def misnamed(text: str) -> list[str]:
    """Every `pip install` of a text that asks for the lab by another name, or for an extra that it has not got."""
    asked = [(name, extras.split(",") if extras else []) for name, extras in PIP.findall(text)]
    extras = set(PROJECT["optional-dependencies"])
    return [
        name
        for name, wanted in asked
        if name == "lab" or (wanted and (name != distribution.NAME or set(wanted) - extras))
    ]


def test_the_constant_is_the_projects_name():
    assert PROJECT["name"] == distribution.NAME


def test_no_hint_names_another_distribution():
    wrong = {path: misnamed(path.read_text(encoding="utf-8")) for path in [*SOURCES, *PROSE]}
    assert len(wrong) > 300 and {path: names for path, names in wrong.items() if names} == {}


def test_a_wrong_hint_is_noticed():
    assert misnamed("pip install 'lab[lens]'") == ["lab"]
    assert misnamed('pip install \\"lab[lens]\\" and pip install -U lab') == ["lab", "lab"]
    assert misnamed(f"pip install '{distribution.NAME}[lenses]'") == [distribution.NAME]
    assert misnamed(f"pip install '{distribution.NAME}[lens,hub]' or pip install lab-other, pip install onnx") == []


@pytest.mark.slow
def test_messages_take_the_name_from_the_constant_and_ask_for_extras_that_there_are():
    asked = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        parts = [part for call in calls if call.func.id == "install" for part in call.args]
        asked |= {part.value for part in parts if isinstance(part, ast.Constant)}
        if path.name != "distribution.py":
            assert f"{distribution.NAME}[" not in path.read_text(encoding="utf-8"), path
    assert {"lens", "export", "diffusion"} <= asked <= set(PROJECT["optional-dependencies"])
    assert distribution.install("lens", "hub") == f"pip install '{distribution.NAME}[lens,hub]'"


# -- a foreign `lab` ---------------------------------------------------------------------------------------------------


def installed(site: Path, name: str, *files: str) -> Path:
    """Folder of packages with a distribution in it whose list of files has these."""
    record = site / f"{name}.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    record.write_text("".join(f"{file},sha256=x,1\n" for file in files))
    (record.parent / "METADATA").write_text("Metadata-Version: 2.1\nName: {}\nVersion: {}\n".format(*name.split("-")))
    return site / "lab"


def test_another_lab_in_our_folder_is_said_in_one_line(tmp_path):
    folder = installed(tmp_path, "lab-8.2", "../../bin/lab", "lab/__init__.py")
    assert distribution.clash(folder) == (
        "lab 8.2 is another project that installs a package 'lab', too: "
        "pip uninstall -y lab && pip install --force-reinstall --no-deps shrinklab"
    )


@pytest.mark.parametrize(
    ("name", "file"),
    [("lab-8.2", "labels/__init__.py"), ("lab_tools-1.0", "lab/x.py"), ("shrinklab-0.2.0", "lab/__init__.py")],
)
def test_what_is_no_other_lab_is_left_alone(tmp_path, name, file):
    assert distribution.clash(installed(tmp_path, name, file)) == ""


def test_a_folder_that_cannot_be_listed_or_has_no_list_of_files_is_no_clash(tmp_path):
    assert distribution.clash(tmp_path / "lab.zip" / "lab") == ""
    (tmp_path / "lab-8.2.dist-info").mkdir()
    assert distribution.clash(tmp_path / "lab") == ""


@pytest.fixture
def shared(tmp_path):
    """A folder of packages with the lab's first files and a foreign `lab` beside them."""
    folder = installed(tmp_path, "lab-8.2", "lab/__init__.py", "lab/steps.py")
    (folder / "core").mkdir(parents=True)
    for file in (
        "__init__.py",
        "__main__.py",
        "settings.py",
        "core/__init__.py",
        "core/distribution.py",
        "core/errors.py",
    ):
        shutil.copyfile(ROOT / "lab" / file, folder / file)
    return tmp_path


def ran(shared: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-P", *command], env={"PYTHONPATH": str(shared)}, capture_output=True, text=True
    )


def test_import_lab_warns_and_goes_on(shared):
    done = ran(shared, "-c", "import lab; print(lab.__file__)")
    assert done.stdout.strip() == str(shared / "lab" / "__init__.py")
    assert "RuntimeWarning: lab 8.2 is another project" in done.stderr
    shutil.rmtree(shared / "lab-8.2.dist-info")
    assert ran(shared, "-c", "import lab").stderr == ""


def test_the_command_says_so_where_the_foreign_package_has_won(shared):
    (shared / "lab" / "__init__.py").write_text("steps = 3\n")
    done = ran(shared, "-m", "lab", "doctor")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lab: lab 8.2 is another project") and done.stderr.count("\n") == 1
    shutil.rmtree(shared / "lab-8.2.dist-info")
    assert "is not the lab's: install shrinklab into an environment of its own" in ran(shared, "-m", "lab").stderr


@pytest.mark.slow
def test_doctor_finds_another_lab_wherever_it_lies(tmp_path, monkeypatch):
    package = installed(tmp_path, "lab-8.2", "lab/__init__.py")
    package.mkdir()
    (
        package / "__init__.py"
    ).touch()  # importlib_metadata, where a library has loaded it, passes over what is not there
    assert "lab 8.2" not in "".join(finding.state for finding in doctor.clashes())
    monkeypatch.syspath_prepend(str(tmp_path))
    (finding,) = (finding for finding in doctor.clashes() if "lab 8.2" in finding.state)
    assert finding.state == "lab 8.2 is another project that installs a package 'lab', too"
    assert finding.remedy.startswith("pip uninstall -y lab") and finding.essential


# -- the core alone ----------------------------------------------------------------------------------------------------

HIDDEN = """
import sys
from importlib.machinery import ModuleSpec
class Hidden:  # importing fails; looking does not, for torch and others look for libraries that they do not need
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in {absent!r} else None
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {{spec.name!r}}", name=spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Hidden())
"""
ALONE = """
sys.modules["jupyterlab"] = None  # which is looked for, not imported
import lab
from lab import __main__ as cli
outcome = lab.GAL(steps=2, finetune_steps=1, units="channel").run(progress=False)
print(outcome)
outcome.save("saved")
assert lab.load("saved").report == outcome.report
for ask in (lambda: lab.view, lambda: lab.gal.view, outcome.report.to_frame, lambda: lab.lens, lab.tasks.photos):
    try:
        ask()
    except ImportError as error:
        print(error)
print(cli.main(["start", "notebooks"]))
"""


@pytest.mark.slow
def test_the_core_runs_without_what_the_extras_bring_and_names_the_extra(tmp_path):
    code = HIDDEN.format(absent=[*distribution.BROUGHT_BY, "IPython", "matplotlib"]) + ALONE
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert any("parameters" in line for line in lines)
    asked = [line.partition(": ")[2] for line in lines if line.startswith("this needs ")]
    notebook, data = distribution.install("notebook"), distribution.install("data")
    assert asked == [notebook, notebook, data, notebook, data]
    assert done.stderr == "lab: JupyterLab is not in this environment: pip install 'shrinklab[notebook]'\n"


def test_what_is_needed_is_brought_by_an_extra_and_by_no_dependency():
    brought = {"skimage": "scikit-image", "PIL": None}  # Pillow comes with scikit-image
    for library, extra in distribution.BROUGHT_BY.items():
        package = brought.get(library, library)
        if package:
            assert any(text.startswith(package) for text in PROJECT["optional-dependencies"][extra])
            assert not any(text.startswith(package) for text in PROJECT["dependencies"])


def test_a_library_that_is_no_extra_s_is_missed_as_ever():
    with pytest.raises(ModuleNotFoundError, match="no_such_library"), distribution.needed():
        import no_such_library  # noqa: F401


def test_the_version_is_the_installed_one_or_unknown(monkeypatch):
    from importlib import metadata

    monkeypatch.setattr(metadata, "version", lambda name: {distribution.NAME: "7.8"}[name])
    assert lab.__version__ == "7.8"

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert distribution.version() == "0+unknown"


def test_import_asks_for_no_list_of_distributions():
    code = "import sys, json, lab; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout)
    assert "lab.core.distribution" in loaded and not {"importlib.metadata", "packaging", "torch"} & set(loaded)


def test_both_commands_are_the_same():
    assert PROJECT["scripts"] == {"lab": "lab.__main__:main", distribution.NAME: "lab.__main__:main"}
    assert cli.main.__module__ == "lab.__main__"
