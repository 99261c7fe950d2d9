"""What `lab doctor` looks at: versions, devices, kernels, tools; what is missing and how to get it."""

import importlib.metadata as metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from .core import distribution

OURS = ("python", "python3", f"python3.{sys.version_info.minor}")  # Jupyter puts its own Python in for these
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and, where something is missing, how to get it."""

    name: str
    state: str
    remedy: str = ""
    essential: bool = False


def examine() -> list[Finding]:
    """Look at everything once, the essential things first."""
    return [*versions(), *clashes(), devices(), threads(), kernels(), compiler(), data(), jupyter(), chromium()]


def versions() -> list[Finding]:
    """Python, the lab and every package that it names, extras included."""
    python = Finding("python", f"{platform.python_version()} at {sys.executable}")
    try:
        needs = metadata.requires(distribution.NAME) or []
    except metadata.PackageNotFoundError:
        state = f"not installed, used from {Path(__file__).parents[1]}"
        return [python, Finding("lab", state, "pip install -c constraints.txt -e . in that folder")]
    here = Finding("lab", f"{distribution.NAME} {distribution.version()} at {Path(__file__).parent}")
    return [python, here, *filter(None, (_package(Requirement(text)) for text in needs))]


def clashes() -> list[Finding]:
    """Other distributions that install a package `lab`: whose files are imported is then chance."""
    brought = sorted({*metadata.packages_distributions().get("lab", ())} - {distribution.NAME})
    lines = [distribution.told_apart(f"{name} {metadata.version(name)}").split(": ", 1) for name in brought]
    return [Finding("clash", state, remedy, True) for state, remedy in lines]


def _package(need: Requirement) -> Finding | None:
    """One package; those of the extras that are only collections of other extras are left out."""
    core = not (need.marker and "extra" in str(need.marker))
    if need.name == distribution.NAME:
        return None
    remedy = f"pip install '{need.name}{need.specifier}'"
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return Finding(need.name, "missing" if core else "missing (optional)", remedy, core)
    if not need.specifier.contains(version, prereleases=True):
        return Finding(need.name, f"{version}, but {need.specifier} is needed", remedy, core)
    return Finding(need.name, version)


def devices() -> Finding:
    """What torch can compute on."""
    import torch

    devices = [f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return Finding("devices", ", ".join(devices))


def threads() -> Finding:
    """Cores and torch's threads; one thread is what the lab's numbers are stated for."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    setting = os.environ.get("OMP_NUM_THREADS", "not set")
    return Finding("threads", f"torch uses {torch.get_num_threads()} of {cores} cores (OMP_NUM_THREADS {setting})")


def kernels() -> Finding:
    """The backend of the C kernels, or why it cannot be used."""
    import warnings

    from .core import kernels

    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            backend = kernels.backend()
    except RuntimeError as error:
        return Finding("kernels", f"unusable ({error})", kernels.REBUILD, True)
    missing = backend == "numpy" and os.environ.get("LAB_KERNELS") != "numpy"
    named = f"backend {backend}" if backend == "numpy" else f"backend {backend}, {kernels.isa_name()}"
    return Finding("kernels", named, kernels.GET if missing else "")


def compiler() -> Finding:
    """A C compiler, which only building the kernels needs."""
    path = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    remedy = "apt-get install gcc (Debian, Ubuntu), xcode-select --install (macOS)"
    return Finding("compiler", path, "") if path else Finding("compiler", "missing (optional)", remedy)


def data() -> Finding:
    """Whether the models are here that are too large to travel with the package."""
    from .core import store

    try:
        return Finding("data", f"HybridSD's models at {store.artefact('hybridsd/model_index.json').parent}")
    except FileNotFoundError as error:
        return Finding("data", "without HybridSD's models (optional)", str(error).rpartition(": ")[2])


def jupyter() -> Finding:
    """JupyterLab and the kernel that its notebooks get: both must be of this environment, or widgets stay blank."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

        version = metadata.version("jupyterlab")
        kernel = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except (ImportError, metadata.PackageNotFoundError, NoSuchKernel):
        return Finding("notebooks", "missing (optional)", distribution.install("notebook"))
    if kernel not in OURS and Path(kernel) != Path(sys.executable):
        remedy = f"{sys.executable} -m ipykernel install --sys-prefix"
        return Finding("notebooks", f"JupyterLab {version} would start another Python ({kernel})", remedy, True)
    absent = [name for name in ("anywidget", "jupyterlab-plotly") if not _extension(name)]
    if absent:
        remedy = "pip install --force-reinstall anywidget plotly"
        return Finding("notebooks", f"JupyterLab lacks {' and '.join(absent)}: pictures stay blank", remedy, True)
    return Finding("notebooks", f"JupyterLab {version}, kernel and widgets in this environment")


def _extension(name: str) -> bool:
    return (Path(sys.prefix) / "share" / "jupyter" / "labextensions" / name).is_dir()


def chromium() -> Finding:
    """A browser for the browser tests."""
    names = (os.environ.get("LAB_CHROMIUM", ""), *CHROMIUM)
    path = next(filter(None, (shutil.which(name) for name in names if name)), None)
    remedy = "apt-get install chromium (Debian), or name one in LAB_CHROMIUM"
    return Finding("chromium", path) if path else Finding("chromium", "missing (browser tests only)", remedy)
