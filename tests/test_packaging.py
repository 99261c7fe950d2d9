"""What a stranger installs: the wheel by itself, the files that pin versions, and how fast `import lab` is."""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lab.core import distribution, kernels

from .core.test_distribution import HIDDEN
from .test_contract import QUICK

ROOT = Path(__file__).parents[1]
UNTRACKED = (
    *(".venv", ".git", ".*_cache", "__pycache__", ".ipynb_checkpoints"),
    *("build", "dist", "artefacts", "runs", "*.egg-info", "*.so", "_kernels.c"),
)
TRIAL = """
import json
import lab
from lab.core import kernels, store
outcome = lab.GAL(steps=20, finetune_steps=10).run(progress=False)
rows = {row.name: row.after for row in outcome.report}
outcome.save("saved")
again = lab.load("saved")
print(json.dumps({"from": lab.__file__, "backend": kernels.backend(), "data": str(store.artefact("digits")),
                  "accuracy": rows["accuracy"], "same": again.report == outcome.report}))
"""
# What is large and used by one notebook or benchmark: it stays in the checkout, where LAB_DATA finds it.
AT_HOME = re.compile(
    r"lab/data/(fashion/vgg16\.|sparsebytenn/(imagenet|trained_4x4|arm|web|int8\w*)\.|photos/edsr_x[34]\.|chains/bytes\."
    r"|faces/(figures|graphs|results|trust)\.|lens/explain\.|reliability/"
    r"|bound/(?!README\.md|SHA256SUMS)|hybridsd/(?!README\.md|SHA256SUMS|figures\.json|make\.py)).+"
    r"|lab/benchmarks/(zoo/.*|web/.*|harm/.*|(registry|reliability|chains|imagenet|fine_patterns|acenas_labels|dqss_cost|explain"
    r"|pams_accuracy)\.py|(foldgpt|hybridsd|hyperfd|sparsebytenn)_\w+\.py)"
)
TASKS = (
    "digits()", "digits(size=32, channels=3)", "fashion()", "fashion(net='mobilenet_v1')", "scenes()", "photos()",
    "prose()", "faces()", "cells()", "detectors()",
)  # fmt: skip


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements():
    """Every package that pyproject.toml names, in the core or an extra, the lab itself left out."""
    texts = chain(project()["dependencies"], *project()["optional-dependencies"].values())
    return [need for need in map(Requirement, texts) if need.name != distribution.NAME]


def pins():
    """Package -> version of constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^\s+]+", line) for line in lines), (
        "only name==version, no local versions"
    )
    return {canonicalize_name(name): Version(version) for name, _, version in (line.partition("==") for line in lines)}


def test_every_requirement_is_pinned_within_its_range():
    pinned = pins()
    assert str(pinned["torch"]) == "2.13.0"
    for need in requirements():
        assert need.specifier, f"{need.name} has no lower bound"
        assert need.specifier.contains(pinned[canonicalize_name(need.name)]), need


def test_no_pin_is_a_cuda_package():
    assert [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))] == []


@pytest.mark.slow
def test_the_environment_has_the_pinned_versions():
    here = {canonicalize_name(dist.name): Version(dist.version).public for dist in metadata.distributions()}
    wrong = {name: here[name] for name, version in pins().items() if here.get(name, str(version)) != str(version)}
    assert wrong == {}


def test_the_extra_all_holds_all_extras_but_lm_eval():
    extras = project()["optional-dependencies"]
    (everything,) = extras["all"]
    assert Requirement(everything).extras == set(extras) - {"all", "eval"}  # thirty packages that nothing else needs


def test_the_conda_environment_names_the_same_things():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *plain, nested = environment["dependencies"]
    assert environment["name"] == project()["name"]
    assert {"pip", "c-compiler"} <= set(plain)
    python = next(Requirement(text.replace("=", "==", 1)) for text in plain if text.startswith("python="))
    (version,) = (clause.version for clause in python.specifier)
    assert Requirement(f"python{project()['requires-python']}").specifier.contains(version)
    assert nested["pip"] == ["-c constraints.txt", f"torch=={pins()['torch']}", "-e .[all]"]


def test_import_is_fast_and_leaves_torch_alone():
    code = (
        "import sys, time; start = time.perf_counter(); import lab; seconds = time.perf_counter() - start\n"
        "print(seconds, sorted({'torch', 'numpy', 'plotly', 'ipywidgets', 'sklearn'} & set(sys.modules)))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True) for _ in range(3)]
    answers = [run.stdout.split(" ", 1) for run in runs]
    assert {loaded for _, loaded in answers} == {"[]\n"}
    assert min(float(seconds) for seconds, _ in answers) < 0.3


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the checkout without anything that git does not hold."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*UNTRACKED))
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(folder / "checkout"),
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """A fresh environment with the wheel in it; the packages it needs are lent from this one, the lab is not."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    (packages,) = folder.glob("env/lib/python3*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    (packages / "lent.pth").write_text(f"{next(p for p in site.getsitepackages() if (Path(p) / 'torch').is_dir())}\n")
    return folder, python


def names(wheel):
    return zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_the_wheel_holds_everything_and_nothing_else(wheel):
    held = names(wheel)
    assert not list(filter(AT_HOME.match, held))
    for folder in ("notebooks", "data", "benchmarks"):
        sources = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        tracked = {f"lab/{path.relative_to(ROOT).as_posix()}" for path in sources if not ignored(path)}
        travels = {name for name in tracked if not AT_HOME.match(name)}
        assert travels == {name for name in held if name.startswith(f"lab/{folder}/")}
    assert {"lab/notebooks/00_tour.ipynb", "lab/__main__.py", "lab/py.typed", "lab/ui/static/explorer.js"} <= set(held)
    made = "-".join(wheel.name.split("-")[:2])  # shrinklab-0.2.0
    parts = {"lab", *(f"{made}.{part}" for part in ("dist-info", "data"))}
    assert {name.split("/")[0] for name in held} == parts
    extension = f"{made}.data/data/share/jupyter/labextensions/lab-pictures/"
    assert {name.removeprefix(extension) for name in held if ".data/" in name} == {"package.json", "static/pictures.js"}
    assert not [name for name in held if name.endswith((".pyc", "_kernels.c"))]


def ignored(path):
    return bool({"runs", "__pycache__", ".ipynb_checkpoints"} & set(path.parts)) or path.name.startswith(".")


@pytest.mark.slow
@pytest.mark.skipif(kernels.lib is None, reason="no C compiler")
def test_one_wheel_serves_every_python(wheel):
    assert "-cp311-abi3-" in wheel.name
    assert [name for name in names(wheel) if re.search(r"_kernels.*\.(so|pyd)$", name)]


@pytest.mark.slow
def test_the_wheel_runs_outside_the_checkout(elsewhere):
    folder, python = elsewhere
    answer = json.loads(answered(python, folder, "-c", TRIAL))
    assert answer["from"].startswith(str(folder)) and answer["data"].startswith(str(folder))
    assert answer["backend"] == kernels.backend()
    assert answer["accuracy"] > 50
    assert answer["same"]


@pytest.mark.slow
def test_a_first_report_comes_without_compiler_and_extras(elsewhere):
    folder, python = elsewhere
    hidden = folder / "sitecustomize.py"
    hidden.write_text(HIDDEN.format(absent=[*distribution.BROUGHT_BY]))
    report = answered(python.with_name("lab"), folder, "run", "GAL", "--quiet", PATH="", PYTHONPATH=str(folder))
    hidden.unlink()
    assert "accuracy" in report and "macs" in report


@pytest.mark.slow
def test_an_empty_environment_comes_to_a_first_report_without_a_compiler(wheel, tmp_path):
    """As a new user does it: what the wheel needs is installed by pip, from wheels alone, and a recipe is run."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-compile",
        "--only-binary=:all:",
    ]
    done = subprocess.run([*install, "-c", ROOT / "constraints.txt", wheel], capture_output=True, text=True)
    if done.returncode and re.search("No matching distribution|Could not fetch|timed out|[Cc]onnection", done.stderr):
        pytest.skip("pip finds no packages from here")
    assert done.returncode == 0, done.stderr[-2000:]
    report = answered(python.with_name("lab"), tmp_path, "run", "GAL", "--quiet", PATH="")
    assert "accuracy" in report and "macs" in report


@pytest.mark.slow
def test_the_long_description_leads_into_the_repository(wheel):
    (name,) = [name for name in names(wheel) if name.endswith(".dist-info/METADATA")]
    head, _, text = zipfile.ZipFile(wheel).read(name).decode().partition("\n\n")
    home = project()["urls"]["Repository"]
    assert f"Project-URL: Repository, {home}\n" in head and "\nDescription-Content-Type: text/markdown\n" in head
    targets = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", text)
    assert f"{home}/blob/main/docs/index.md" in {target for _, target in targets}
    assert f"{home}/raw/main/.github/slider.png" in {target for picture, target in targets if picture}
    assert [target for _, target in targets if not target.startswith(("https://", "#"))] == []


@pytest.mark.slow
def test_the_wheel_stays_small(wheel):
    assert wheel.stat().st_size < 12_000_000


@pytest.mark.slow
def test_every_task_comes_with_the_wheel(elsewhere):
    folder, python = elsewhere
    makes = "\n".join(f"print(type(lab.tasks.{task}).__name__)" for task in TASKS)
    assert len(answered(python, folder, "-c", f"import lab\n{makes}").splitlines()) == len(TASKS)


@pytest.mark.slow
def test_every_method_but_one_runs_from_the_wheel(elsewhere):
    folder, python = elsewhere
    runs = [f"lab.{name}(**{settings!r})" for name, settings in QUICK.items() if name != "HybridSD"]
    reports = "\n".join(f"print(len(str({run}.run(progress=False).report)))" for run in runs)
    sizes = answered(python, folder, "-c", f"import lab\n{reports}").splitlines()
    assert len(sizes) == len(runs) and all(int(size) > 100 for size in sizes)


@pytest.mark.slow
def test_what_stays_at_home_is_named_in_one_line_and_found_there(elsewhere):
    folder, python = elsewhere
    hybrid = f"lab.HybridSD(**{QUICK['HybridSD']!r}).run(progress=False)"
    runs = [hybrid, "lab.tasks.fashion(net='vgg16')", "lab.tasks.photos(3)"]
    told = "try:\n    {}\nexcept FileNotFoundError as error:\n    print(error)"
    missed = "\n".join(["import lab", *map(told.format, runs)])
    line = r"the lab's data file '\S+' is neither .*: set LAB_DATA to the folder 'data' of a checkout .*"
    messages = answered(python, folder, "-c", missed).splitlines()
    assert len(messages) == len(runs) and all(re.fullmatch(line, message) for message in messages)
    found = "\n".join(["import lab", *runs])
    assert answered(python, folder, "-c", found, LAB_DATA=str(ROOT / "data")) == ""


@pytest.mark.slow
def test_the_wheel_brings_the_notebooks_and_the_command(elsewhere):
    folder, python = elsewhere
    answered(python.with_name("lab"), folder, "start", "--no-open", "my notebooks")
    copied = {path.name: path.read_bytes() for path in (folder / "my notebooks").iterdir()}
    assert copied == {path.name: path.read_bytes() for path in (ROOT / "notebooks").iterdir() if path.is_file()}


def answered(program, folder, *arguments, **settings):
    """What a program of the fresh environment prints; no path of the checkout is handed on but what is set here."""
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "LAB_DATA")
    clean = {name: value for name, value in os.environ.items() if name not in ours} | settings
    done = subprocess.run([program, *arguments], cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
