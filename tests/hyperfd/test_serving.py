"""The platform's service as the command starts it: its token, and who may ask."""

import re

from starlette.testclient import TestClient

from lab.__main__ import main
from lab.hyperfd import serving
from lab.hyperfd.client import PATH


def test_one_command_makes_a_token_and_asks_for_it(monkeypatch, capsys):
    started = []
    monkeypatch.delenv("LAB_TOKEN", raising=False)
    monkeypatch.setattr(serving.service, "serve", lambda app, host, port: started.append(app))
    assert main(["serve", "platform", "--port", "4321", "--name", "lab.example"]) == 0
    token = re.search(r"export LAB_TOKEN=(\S{32,})", capsys.readouterr().out)[1]
    client = TestClient(started[0], base_url="http://127.0.0.1:4321")
    for host, page, given, status in (
        ("127.0.0.1", None, "", 401), ("127.0.0.1", None, token, 200), ("lab.example", None, token, 200),
        ("evil.example", None, token, 403), ("127.0.0.1", "http://evil.example", token, 403),
    ):  # fmt: skip
        headers = {"Host": f"{host}:4321", "Authorization": f"Bearer {given}"} | ({"Origin": page} if page else {})
        assert client.post(PATH, params={"ask": "offer"}, headers=headers).status_code == status, (host, page, given)
