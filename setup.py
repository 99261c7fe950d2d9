"""What pyproject.toml cannot say: the C kernels, folders inside the wheel, the data files of an editable install."""

from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

TRAVELS = ("notebooks", "data", "benchmarks")  # each becomes lab/<folder> in the wheel
STAYS = {  # in the checkout, where LAB_DATA finds it: the wheel is to stay below 12 MB
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
    ),
    "data/fashion": ("vgg16.*",),
    "data/sparsebytenn": ("trained_4x4.npz", "imagenet.json"),
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


def left_out(folder, names):
    """The names of a folder that do not travel, as `copytree` asks for them."""
    stays = STAYS.get(Path(folder).as_posix(), ())
    return ignore_patterns("__pycache__", ".*", "runs", "*.html", *stays)(folder, names)


class WithData(Distribution):
    """An editable install asks for the data files by this name: JupyterLab's extension is among them."""

    has_data = Distribution.has_data_files


setup(
    distclass=WithData,
    cffi_modules=["ckernels/build.py:ffi"],
    cmdclass={"build_py": BuildWithFolders},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # cffi builds for the stable interface: one wheel for all
)
