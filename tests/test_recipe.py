"""Conda's recipe: rattler-build renders it, and it asks for what pyproject.toml does, of the sdist it is given."""

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rattler_build import RenderConfig, Stage0Recipe, VariantConfig
from rattler_build.jinja_config import JinjaConfig
from rattler_build.tool_config import PlatformConfig

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
CONDA = {"torch": "pytorch"}  # what conda calls by another name
COMPILERS = {"linux-64": "gcc_linux-64", "linux-aarch64": "gcc_linux-aarch64", "osx-arm64": "clang_osx-arm64"}


def rendered(platform: str, path: Path = ROOT / "recipe" / "recipe.yaml") -> dict:
    """The recipe for a platform with everything filled in."""
    place = PlatformConfig(target_platform=platform)
    variants = ROOT / "recipe" / "variants.yaml"
    given = VariantConfig.from_file_with_context(variants, JinjaConfig(platform=place))
    (one,) = Stage0Recipe.from_file(path).render(given, RenderConfig(platform=place))
    return one.recipe.to_dict()


def needs(texts: list[str]) -> dict:
    """Names and versions of pip's requirements, by conda's names."""
    found = [Requirement(text) for text in texts]
    return {CONDA.get(need.name, need.name): str(need.specifier) for need in found}


def asked(texts: list[str]) -> dict:
    """Names and versions of conda's requirements."""
    return dict((*text.split(" "), "")[:2] for text in texts)


@pytest.mark.parametrize("platform", COMPILERS)
def test_it_is_rendered_and_asks_for_what_the_project_asks_for(platform):
    recipe = rendered(platform)
    wanted = recipe["requirements"]
    assert wanted["build"][0] == COMPILERS[platform] and len(wanted["build"]) == 2
    assert asked(wanted["run"]) == {"python": PROJECT["requires-python"], **needs(PROJECT["dependencies"])}
    host = asked(wanted["host"])
    assert needs(PYPROJECT["build-system"]["requires"]).items() <= host.items()
    assert host["python"] == host["python-abi3"] == PROJECT["requires-python"].removeprefix(">=") + ".*"
    scripts = [f"{name} = {target}" for name, target in PROJECT["scripts"].items()]
    assert recipe["build"]["python"] == {"entry_points": scripts, "version_independent": True}


def test_it_says_of_the_project_what_the_project_says_of_itself():
    recipe, urls = rendered("linux-64"), PROJECT["urls"]
    version = PYPROJECT["tool"]["setuptools_scm"]["fallback_version"]
    assert recipe["package"] == {"name": PROJECT["name"], "version": version}
    assert recipe["about"] == {
        "homepage": urls["Documentation"],
        "repository": urls["Repository"],
        "summary": PROJECT["description"],
        "license": PROJECT["license"],
        "license_file": PROJECT["license-files"],
    }


def test_a_release_writes_the_recipe_of_its_sdist(tmp_path):
    sdist, written = tmp_path / "shrinklab-0.3.1.tar.gz", tmp_path / "recipe.yaml"
    sdist.write_bytes(b"an sdist")
    command = [sys.executable, ROOT / ".ci" / "recipe.py"]
    subprocess.run([*command, sdist, written], check=True, capture_output=True)
    (source,) = rendered("linux-64", written)["source"]
    home = f"{PROJECT['urls']['Repository']}/releases/download"
    assert source == {"url": f"{home}/v0.3.1/{sdist.name}", "sha256": hashlib.sha256(b"an sdist").hexdigest()}
    done = subprocess.run([*command, tmp_path / "lab-8.2.zip", written], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "'lab-8.2.zip' is no sdist of shrinklab: give dist/shrinklab-<version>.tar.gz\n"
