"""A folder goes up to the hub and comes back whole: against a server on loopback that speaks what both need."""

import base64
import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

import huggingface_hub
import pytest
import torch

import lab
from lab.core import hub
from tests.core.test_outcome import RECIPES, classifying, contents, ours, outputs

REPO = "owner/name"


class Hub(BaseHTTPRequestHandler):
    """The hub's own addresses: create, preupload, LFS, commit; revision, tree, resolve. Files are of one repository."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, state = urlparse(self.path).path, self.server.state  # type: ignore[attr-defined]
        if self.refused():
            return
        if path == "/api/repos/create":
            state["made"].append(json.loads(body))
            self.reply({"url": f"{state['url']}/{REPO}", "name": REPO, "id": REPO})
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            self.reply({"files": [self.mode(file["path"]) for file in json.loads(body)["files"]]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [self.action(entry) for entry in json.loads(body)["objects"]]
            self.reply({"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.reply({"error": path}, 404)

    def mode(self, path: str) -> dict[str, Any]:
        large = path.endswith((".safetensors", ".pt2"))
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def action(self, entry: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.server.state['url']}/lfs/{entry['oid']}"  # type: ignore[attr-defined]
        return {**entry, "actions": {"upload": {"href": href, "header": {}}}}

    def commit(self, lines: list[dict[str, Any]]) -> None:
        state = self.server.state  # type: ignore[attr-defined]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                state["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                state["files"][value["path"]] = state["objects"][value["oid"]]
            elif line["key"] == "deletedFile":
                del state["files"][value["path"]]
        state["commits"] += 1
        self.reply({"commitUrl": f"{state['url']}/{REPO}/commit/{self.sha()}", "commitOid": self.sha()})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.state["objects"][oid] = content  # type: ignore[attr-defined]
        self.reply({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, state = unquote(urlparse(self.path).path), self.server.state  # type: ignore[attr-defined]
        if self.refused():
            return
        if "/revision/" in path or path == f"/api/models/{REPO}":
            files = [{"rfilename": name} for name in state["files"]]
            self.reply({"id": REPO, "sha": self.sha(), "siblings": files, "private": False, "tags": [], "downloads": 0})
        elif "/tree/" in path:
            self.reply([self.entry(name, content) for name, content in state["files"].items()])
        elif "/resolve/" in path and (name := path.split("/resolve/")[1].partition("/")[2]) in state["files"]:
            content = state["files"][name]
            self.reply_with(content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.sha()})
        else:
            self.reply({"error": path}, 404)

    def entry(self, name: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def sha(self) -> str:
        return f"{self.server.state['commits']:040x}"  # type: ignore[attr-defined]

    def refused(self) -> bool:
        status = self.server.state["status"]  # type: ignore[attr-defined]
        if status:
            self.reply({"error": "no"}, status)
        return bool(status)

    def reply(self, value: Any, status: int = 200) -> None:
        self.reply_with(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def reply_with(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing is told."""


@pytest.fixture
def served(monkeypatch, tmp_path):
    """The state of a hub on loopback, which the library asks instead of the real one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    url = f"http://127.0.0.1:{server.server_port}"
    server.state = {"url": url, "files": {}, "objects": {}, "made": [], "commits": 0, "status": 0}  # type: ignore
    Thread(target=server.serve_forever, daemon=True).start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    huggingface_hub.utils.disable_progress_bars()
    yield server.state  # type: ignore
    huggingface_hub.utils.enable_progress_bars()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def pair():
    """An outcome made from another, so that its folder has a subfolder; and the task."""
    task = classifying(ours(), 16, 3)
    first = RECIPES["GAL"].run(task, progress=False)
    return RECIPES["SparseByteNN"].run(first.task(task), progress=False), task


def test_up_and_down_again(served, pair, tmp_path):
    outcome, task = pair
    folder = tmp_path / "out"
    outcome.save(folder)
    (folder / "figure.txt").write_text("mine")
    (folder / ".secret").write_text("not for others")
    (folder / "base" / ".secret").write_text("not for others")
    assert lab.push(folder, REPO, private=True) == f"{served['url']}/{REPO}"
    assert "private" in json.dumps(served["made"][0])
    hidden = {".secret", "base/.secret"}
    assert served["files"] == {name: data for name, data in contents(folder).items() if name not in hidden}
    assert served["objects"]  # weights went by LFS
    loaded = lab.load(f"hf://{REPO}")
    assert torch.equal(outputs(loaded, task), outputs(outcome, task)) and loaded.report == outcome.report
    assert type(loaded.origin) is type(outcome.origin)


def test_a_second_push_leaves_nothing_of_the_first(served, pair, tmp_path):
    outcome, _ = pair
    folder = tmp_path / "out"
    outcome.save(folder)
    lab.push(folder, REPO)
    before = set(served["files"])
    outcome.origin.save(folder)
    (folder / "notes.txt").write_text("mine")
    lab.push(folder, REPO)
    assert not [name for name in served["files"] if name.startswith("base/")]
    (weights,) = (name for name in served["files"] if name.endswith(".safetensors"))
    assert weights not in before and lab.load(f"hf://{REPO}@main").report == outcome.origin.report


def test_a_damaged_folder_is_not_sent(served, pair, tmp_path):
    pair[0].save(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(b"x")
    with pytest.raises(ValueError, match="is damaged"):
        lab.push(tmp_path, REPO)
    with pytest.raises(FileNotFoundError, match=r"holds no outcome\.json"):
        lab.push(tmp_path / "base" / "nothing", REPO)
    assert served["made"] == [] and served["commits"] == 0


@pytest.mark.parametrize(("status", "words"), [(401, "hf auth login"), (403, "right to write"), (404, "name is right")])
def test_what_the_hub_refuses_is_told_in_one_line(served, pair, tmp_path, status, words):
    pair[0].save(tmp_path)
    served["status"] = status
    for call in (lambda: lab.push(tmp_path, REPO), lambda: lab.load(f"hf://{REPO}")):
        with pytest.raises(OSError, match="the hub refuses owner/name") as caught:
            call()
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_repository_that_holds_no_outcome(served):
    served["files"]["README.md"] = b"# Mine\n"
    with pytest.raises(FileNotFoundError, match=r"holds no outcome\.json"):
        lab.load(f"hf://{REPO}")


@pytest.mark.parametrize("repo", ["", "name", "a/b/c", "owner/na me", "hf://", "owner/name@main", "../x/y", None])
def test_an_address_that_is_none(served, pair, tmp_path, repo):
    pair[0].save(tmp_path)
    with pytest.raises(ValueError, match="give 'owner/name'") as caught:
        lab.push(tmp_path, repo)
    assert "\n" not in str(caught.value)
    if repo and "@" not in repo and not repo.startswith("hf:"):
        with pytest.raises(ValueError, match="is not a repository of the hub"):
            lab.load(f"hf://{repo}")
    assert served["made"] == []


def test_without_the_extra(pair, tmp_path, monkeypatch):
    pair[0].save(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: lab.push(tmp_path, REPO), lambda: lab.load(f"hf://{REPO}")):
        with pytest.raises(ImportError, match=r"pip install 'shrinklab\[hub\]'"):
            call()
    assert hub.fetched(tmp_path) == tmp_path
