"""What pyproject.toml cannot say: the C kernels, folders inside the wheel, an editable install's data files, links."""

import re
import sysconfig
import tomllib
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree
from zipfile import ZIP_DEFLATED, ZipFile

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

TRAVELS = ("notebooks", "data", "benchmarks")  # each becomes lab/<folder> in the wheel
STAYS = {  # in the checkout, where LAB_DATA finds it: the wheel is to stay below 12 MB
    "data": ("reliability",),
    "data/hybridsd": (
        "unet",
        "edge",
        "vae",
        "tiny",
        "text_encoder",
        "tokenizer",
        "scheduler",
        "reader.*",
        "model_index.*",
        "baselines.*",
        "faults.*",
    ),
    "data/bound": ("unet", "edge", "text_encoder", "tokenizer", "scheduler", "*.json", "*.safetensors", "make.py"),
    "data/chains": ("bytes.json",),
    "data/faces": ("figures.json", "results.csv.gz", "graphs.json", "trust.json"),
    "data/fashion": ("vgg16.*",),
    "data/lens": ("explain.json",),
    "data/photos": ("edsr_x3.*", "edsr_x4.*"),
    "data/sparsebytenn": ("trained_4x4.npz", "imagenet.json", "arm.json", "web.json", "int8*.json"),
    "benchmarks": (
        "zoo",
        "web",
        "harm",
        "reliability.py",
        "registry.py",
        "chains.py",
        "imagenet.py",
        "fine_patterns.py",
        "acenas_labels.py",
        "dqss_cost.py",
        "explain.py",
        "foldgpt_*.py",
        "hybridsd_*.py",
        "hyperfd_*.py",
        "pams_accuracy.py",
        "sparsebytenn_*.py",
    ),
}


class BuildWithFolders(build_py):
    """Copy the folders beside the package into it; an editable install reads them where they are."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for folder in TRAVELS:
            if Path(folder).is_dir():
                target = Path(self.build_lib) / "lab" / folder
                rmtree(target, ignore_errors=True)  # an earlier build may have brought more
                copytree(folder, target, ignore=left_out)


class SmallWheel(bdist_wheel):
    """Pack the wheel as tightly as zip can, which takes 70 KB off; RECORD holds hashes of what is packed, and stays."""

    def run(self):
        super().run()
        for kind, _, path in self.distribution.dist_files:
            if kind == "bdist_wheel":
                repack(Path(path))


def repack(wheel):
    """Write a zip file's contents anew at the highest level."""
    tight = wheel.with_suffix(".tight")
    with ZipFile(wheel) as loose, ZipFile(tight, "w", ZIP_DEFLATED) as packed:
        for info in loose.infolist():
            packed.writestr(info, loose.read(info), compresslevel=9)
    tight.replace(wheel)


def left_out(folder, names):
    """The names of a folder that do not travel, as `copytree` asks for them."""
    stays = STAYS.get(Path(folder).as_posix(), ())
    return ignore_patterns("__pycache__", ".*", "runs", "*.html", *stays)(folder, names)


class WithData(Distribution):
    """An editable install asks for the data files by this name: JupyterLab's extension is among them."""

    has_data = Distribution.has_data_files


def long_description():
    """README.md with whole addresses: where packages are shown, no folder lies beside it."""
    home = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    text = Path("README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:)", rf"\1{home}/raw/main/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\1{home}/blob/main/", text)


# cffi builds for the stable interface: one wheel for all. Without the GIL there is no such interface yet.
STABLE = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}}

setup(
    distclass=WithData,
    cffi_modules=["ckernels/build.py:ffi"],
    cmdclass={"build_py": BuildWithFolders, "bdist_wheel": SmallWheel},
    options=STABLE,
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
