"""What a repository is judged by besides its code: the citation, the changelog, the forms, licences, workflows."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.licenses import canonicalize_license_expression
from packaging.version import Version

import lab

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_citation_names_the_paper_of_every_recipe():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    papers = {entry["notes"].removeprefix("lab."): entry for entry in cited["references"]}
    assert set(papers) == {recipe.__name__ for recipe in lab.RECIPES}
    for name, (room, _) in lab._RECIPES.items():
        card = " ".join(getattr(lab, room).__doc__.split())
        number = papers[name]["url"].removeprefix("https://arxiv.org/abs/")
        year = str(papers[name]["year"])
        assert number in card and (year in card or number.startswith(year[2:])), name
        assert all({"family-names", "given-names"} == set(author) for author in papers[name]["authors"])


def test_the_changelog_has_versions_in_order_under_known_heads():
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *versions = re.findall(r"^## \[?([^\] \n]+)", text, re.MULTILINE)
    assert first == "Unreleased" and versions == sorted(versions, key=Version, reverse=True)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds


def test_every_folder_of_data_states_its_licence():
    licences = tomllib.loads((ROOT / "data" / "licences.toml").read_text())
    assert set(licences) >= {path.name for path in (ROOT / "data").iterdir() if path.is_dir()}
    for facts in licences.values():
        for expression in (facts["stored"], *(source["licence"] for source in facts.get("sources", []))):
            assert canonicalize_license_expression(expression) == expression


def test_the_bill_of_materials_lists_the_data(tmp_path):
    bill = tmp_path / "sbom.json"
    bill.write_text(json.dumps({"bomFormat": "CycloneDX", "components": [{"name": "torch"}]}))
    subprocess.run([sys.executable, str(ROOT / ".ci" / "sbom.py"), str(bill)], check=True, capture_output=True)
    components = {entry["name"]: entry for entry in json.loads(bill.read_text())["components"]}
    assert "torch" in components
    assert components["data/fashion"]["licenses"] == [{"expression": "MIT AND BSD-3-Clause"}]
    assert components["data/digits"]["properties"][0]["value"].endswith(": CC-BY-4.0")


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.stem)
def test_a_form_is_one(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in form["body"])
    assert path.stem == "wish" or "`lab doctor`" in path.read_text()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_pins_what_it_uses_and_asks_for_little(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] in ({}, {"contents": "read"})
    uses = re.findall(r"uses: (\S+)", path.read_text())
    assert uses and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", use) for use in uses)
    writes = {
        (name, scope)
        for name, job in workflow["jobs"].items()
        for scope, level in job.get("permissions", {}).items()
        if level == "write"
    }
    publish = {("publish", "id-token"), ("publish", "attestations"), ("publish", "pages")}
    assert writes <= publish | {("assets", "contents")}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HOME = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")


def test_only_a_tag_publishes_and_only_at_home():
    published = {path.stem: yaml.safe_load(path.read_text())["jobs"].get("publish", {}).get("if") for path in WORKFLOWS}
    here = f"github.repository == '{HOME}'"
    tagged = f"startsWith(github.ref, 'refs/tags/v') && {here}"
    assert published == {"ci": None, "docs": here, "release": tagged}
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert release["assets"]["if"] == tagged and release["assets"]["needs"] == "publish"
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT


def test_every_address_of_the_project_is_of_its_one_repository():
    owner, name = HOME.split("/")
    assert PROJECT["urls"]["Documentation"] == f"https://{owner}.github.io/{name}/"
    others = {url for label, url in PROJECT["urls"].items() if label not in ("Repository", "Documentation")}
    assert others and all(url.startswith(f"https://github.com/{HOME}/") for url in others)
    assert [author["email"] for author in PROJECT["authors"]] == [f"{owner}@users.noreply.github.com"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == PROJECT["urls"]["Repository"]
