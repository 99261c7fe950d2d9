"""What pyproject.toml cannot say: the C kernels, folders inside the wheel, the data files of an editable install."""

from pathlib import Path
from shutil import copytree, ignore_patterns

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

TRAVELS = ("notebooks", "data", "benchmarks")  # each becomes lab/<folder> in the wheel


class BuildWithFolders(build_py):
    """Copy the folders beside the package into it; an editable install reads them where they are."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for folder in TRAVELS:
            if Path(folder).is_dir():
                skip = ignore_patterns("__pycache__", ".*", "runs", "*.html")
                copytree(folder, Path(self.build_lib) / "lab" / folder, ignore=skip, dirs_exist_ok=True)


class WithData(Distribution):
    """An editable install asks for the data files by this name: JupyterLab's extension is among them."""

    has_data = Distribution.has_data_files


setup(
    distclass=WithData,
    cffi_modules=["ckernels/build.py:ffi"],
    cmdclass={"build_py": BuildWithFolders},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # cffi builds for the stable interface: one wheel for all
)
