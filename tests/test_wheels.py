"""Wheels for other machines: 64-bit ARM's kernels run by qemu, Pythons without the GIL, Windows without kernels."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import lab
from lab import doctor
from lab.core import kernels

from .sparsebytenn.native import HERE, KERNELS, arm
from .test_packaging import UNTRACKED

ROOT = Path(__file__).parents[1]
SYSROOT = "/usr/aarch64-linux-gnu"
ELF_AARCH64 = 0xB7  # e_machine, at byte 18


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    """The kernels of the wheel for ARM, taken out of it; the wheel is built by `.ci/arm-wheel` from a copy."""
    if absent := arm.missing(arm.CC, arm.QEMU):
        pytest.skip(absent)
    folder = tmp_path_factory.mktemp("arm-wheel")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*UNTRACKED))
    script = folder / "checkout" / ".ci" / "arm-wheel"
    done = subprocess.run([script, folder], env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.endswith("-cp311-abi3-linux_aarch64.whl")
    return Path(zipfile.ZipFile(wheel).extract("lab/core/_kernels.abi3.so", folder))


def linked(source: Path, extension: Path) -> Path:
    """A C program that calls the kernels in the extension; Python's own functions, which it never calls, are empty."""
    names = subprocess.run(
        ["aarch64-linux-gnu-nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True
    ).stdout
    wanted = sorted(set(re.findall(r"\bU (_?Py\w+)", names)))
    assert wanted
    empty = extension.with_name("empty.c")
    empty.write_text("".join(f"void *{name};\n" for name in wanted))
    made = extension.with_name(source.stem)
    inputs = [f"-I{ROOT / 'ckernels'}", source, empty, extension, "-rdynamic", "-lm", "-lpthread"]
    subprocess.run([arm.CC, "-O2", *inputs, f"-Wl,-rpath,{extension.parent}", "-o", made], check=True)
    return made


@pytest.mark.slow
def test_the_kernels_in_the_wheel_for_arm_compute_under_qemu(extension):
    assert int.from_bytes(extension.read_bytes()[18:20], "little") == ELF_AARCH64
    made = linked(HERE / "kernels.c", extension)
    lines = arm.emulated(made, "neon", 0, 20, options=("-L", SYSROOT)).splitlines()
    found = [re.fullmatch(r"neon (\w+) compared 60 wrong 0 nan \d+", line) for line in lines]
    assert [match[1] for match in found] == KERNELS


@pytest.mark.parametrize(("free", "tag"), [(0, "cp311"), (1, None)])
def test_without_the_gil_no_stable_interface_is_asked_for(free, tag):
    code = f"""
import json, sys, sysconfig
given = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: {free} if name == "Py_GIL_DISABLED" else given(name)
from setuptools.extension import Extension
from distutils.core import run_setup
made = run_setup("setup.py", ["--quiet"], stop_after="init")
(extension,) = made.ext_modules
options = made.command_options.get("bdist_wheel", {{}})
print(json.dumps([options.get("py_limited_api", [None, None])[1], bool(extension.py_limited_api)]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [tag, tag is not None]


@pytest.mark.parametrize(("platform", "remedy"), [("linux", "install a C compiler"), ("win32", "under WSL")])
def test_where_the_kernels_are_not_built_it_is_said_and_numpy_computes(platform, remedy, monkeypatch):
    """MSVC cannot compile them: the build leaves them out, as it does without a compiler."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setitem(sys.modules, "lab.core._kernels", None)
    spec = importlib.util.spec_from_file_location("lab.core.kernels_elsewhere", kernels.__file__)
    elsewhere = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, elsewhere)  # its dataclasses look for their module there
    spec.loader.exec_module(elsewhere)
    monkeypatch.undo()
    monkeypatch.delenv("LAB_KERNELS", raising=False)
    assert elsewhere.lib is None and elsewhere.GET.count("\n") == 0
    with pytest.warns(RuntimeWarning, match=f"numpy does their work and is slower: .*{remedy}"):
        assert elsewhere.backend() == "numpy"
    monkeypatch.setattr(kernels, "lib", None)
    monkeypatch.setattr(kernels, "GET", elsewhere.GET)
    assert doctor.kernels() == doctor.Finding("kernels", "backend numpy", elsewhere.GET)
    kernels._warn_numpy.cache_clear()
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.ones(1, 3, 5, 5)
    with pytest.warns(RuntimeWarning, match=remedy) as warned:
        engine = lab.sparsebytenn.engine.compile(net, x)
        torch.testing.assert_close(engine(x), net(x).detach())
    assert len([one for one in warned if "numpy" in str(one.message)]) == 1
    kernels._warn_numpy.cache_clear()
