"""Ctrl-C: two lines in a notebook, for every recipe and with every kind of checkpoint."""

import pytest
from IPython.core.interactiveshell import InteractiveShell

import lab
from lab.core import stopping, store

WITHOUT = "Stopped. Nothing is kept of this run, which has no checkpoint."
GOES_ON = "To go on, run the same again: the same recipe, task, seed and checkpoint."


def stopped(checkpoint):
    """The lines of a run that is stopped once it holds its checkpoint."""
    with pytest.raises(KeyboardInterrupt) as error, stopping.held(checkpoint):
        raise KeyboardInterrupt
    return str(error.value).splitlines()


def test_the_lines_say_what_is_kept_and_how_it_goes_on(tmp_path):
    assert stopped(None)[0] == WITHOUT and "checkpoint='runs/mine'" in stopped(None)[1]
    assert stopped(tmp_path / "new") == ["Stopped. Nothing had been saved yet.", GOES_ON]
    store.save(tmp_path, "prune", {"step": 1})
    assert stopped(tmp_path) == [f"Stopped. The run is kept in {str(tmp_path)!r} as it was last saved.", GOES_ON]
    with stopping.held(tmp_path):  # and the folder is free again
        pass


def test_a_notebook_shows_no_more_than_the_lines(capsys):
    result = InteractiveShell().run_cell("from lab.core.stopping import held\nwith held(None): raise KeyboardInterrupt")
    shown = capsys.readouterr().out.splitlines()
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    assert len(shown) == 2 and shown[0] == WITHOUT


@pytest.mark.parametrize("recipe", [lab.GAL(), lab.AceNAS(), lab.HyperFD(), lab.HybridSD(), lab.Chain(lab.GAL())])
def test_every_kind_of_run_is_stopped_by_it(monkeypatch, recipe, tmp_path):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "held", interrupted)
    with pytest.raises(stopping.Stopped, match="Nothing had been saved yet"):
        recipe.run(progress=False, checkpoint=tmp_path / "run")
