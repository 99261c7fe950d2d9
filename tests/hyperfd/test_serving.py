"""The platform's service as the command starts it: its token, and who may ask."""

import re

from starlette.testclient import TestClient

from lab.__main__ import main
from lab.core.spaces.streams import coded, detector_choices
from lab.hyperfd import database, serving
from lab.hyperfd.client import PATH
from lab.hyperfd.features import SIDE
from lab.hyperfd.learning import RoundConfig
from lab.hyperfd.platform import versions


def test_one_command_makes_a_token_and_asks_for_it(monkeypatch, capsys):
    started = []
    monkeypatch.delenv("LAB_TOKEN", raising=False)
    monkeypatch.setattr(serving.service, "serve", lambda app, host, port: started.append(app))
    assert main(["serve", "platform", "--port", "4321", "--name", "lab.example"]) == 0
    token = re.search(r"export LAB_TOKEN=(\S{32,})", capsys.readouterr().out)[1]
    client = TestClient(started[0], base_url="http://127.0.0.1:4321")
    for host, page, given, status in (
        ("127.0.0.1", None, "", 401),
        ("127.0.0.1", None, token, 200),
        ("lab.example", None, token, 200),
        ("evil.example", None, token, 403),
        ("127.0.0.1", "http://evil.example", token, 403),
    ):
        headers = {"Host": f"{host}:4321", "Authorization": f"Bearer {given}"} | ({"Origin": page} if page else {})
        assert client.post(PATH, params={"ask": "offer"}, headers=headers).status_code == status, (host, page, given)


def test_a_folder_is_served_once_and_not_rolled_back_meanwhile(tmp_path, monkeypatch, capsys):
    said = []

    def meanwhile(app, host, port):
        said.append(main(["serve", "platform", "--folder", str(tmp_path), "--port", "4322"]))
        said.append(main(["rollback", str(tmp_path)]))

    platform = serving.Platform((4, SIDE, SIDE), coded(detector_choices()), RoundConfig(), folder=tmp_path)
    for version in (1, 2):
        database.append(tmp_path, {"owner": platform.run_id, **platform.state(), "version": version}, version - 1)
    monkeypatch.setattr(serving.service, "serve", meanwhile)
    assert main(["serve", "platform", "--folder", str(tmp_path), "--port", "4321"]) == 0
    told = capsys.readouterr()
    assert said == [1, 1] and told.err.count("is in use by another run") == 2 and "4322" not in told.out
    assert versions(tmp_path) == [1, 2] and main(["rollback", str(tmp_path)]) == 0
