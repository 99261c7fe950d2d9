"""The public surface: what is named exists, and nothing else is promised."""

import pytest

import lab


def test_every_public_name_resolves():
    for name in lab.__all__:
        assert getattr(lab, name) is not None, name
    assert dir(lab) == sorted(lab.__all__)


def test_every_place_is_named():
    assert set(lab.__all__) == {"RECIPES", "load", *lab._PLACES}


def test_a_name_that_is_not_there_is_one_line():
    with pytest.raises(AttributeError, match="lab has no 'Prune'; it has DQSS, GAL, "):
        _ = lab.Prune


def test_an_outcome_of_a_later_version_is_refused_in_one_line(tmp_path):
    from lab.core import store

    store.save(tmp_path, "outcome", {"recipe": "Later", "fields": {}})
    with pytest.raises(ValueError, match="holds an outcome of 'Later'; this version of the lab has GAL"):
        lab.load(tmp_path)
