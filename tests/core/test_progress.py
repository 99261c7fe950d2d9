"""The bar of a wait: there for people, and hidden where notebooks are stored."""

import pytest

from lab.core.progress import tqdm


@pytest.mark.parametrize(
    ("environment", "disable", "shown"), [("", False, True), ("0", False, True), ("1", False, False), ("", True, False)]
)
def test_a_bar_is_hidden_by_its_caller_or_by_the_environment(monkeypatch, capsys, environment, disable, shown):
    monkeypatch.setenv("TQDM_DISABLE", environment)
    assert list(tqdm(range(3), desc="waiting", disable=disable)) == [0, 1, 2]
    assert ("waiting" in capsys.readouterr().err) is shown
