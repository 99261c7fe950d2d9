"""A chain written down in TOML, and the commands that run one and print what was saved."""

import pytest

import lab
from lab import __main__ as cli
from lab.chain import Chain
from lab.chain.files import read

WRITTEN = """
task = "digits"
[[stages]]
recipe = "GAL"
lam = 0.5
units = ["channel"]
[[stages]]
recipe = "dqss"
weight_bits = 8
candidates = ["max", "mse"]
"""
CHAIN = Chain(lab.GAL(lam=0.5, units="channel"), lab.DQSS(weight_bits=8, candidates=("max", "mse")))


def test_recipes_and_fields_in_order(tmp_path):
    (tmp_path / "chain.toml").write_text(WRITTEN)
    assert read(tmp_path / "chain.toml", lab.RECIPES) == (CHAIN, "digits")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", "a chain needs a stage"),
        ("[[stages", "cannot be read as TOML"),
        (f"stages = {'[' * 3000}", "cannot be read as TOML (maximum recursion depth exceeded"),
        ("stages = 5", "stages is no list of tables"),
        ("stages = [5]", "stages is no list of tables"),
        ("stage = 5", "'stage' means nothing here (did you mean 'stages'?)"),
        ("task = 5\n[[stages]]\nrecipe = 'GAL'", "task=5: give the name of a task"),
        ("[[stages]]\nlam = 1", "recipe=None is none: give one of GAL, Decoupling"),
        ("[[stages]]\nrecipe = 'GALL'", "recipe='GALL' is none (did you mean 'GAL'?)"),
        (f"[[stages]]\nrecipe = '{'x' * 3000}'", "xxx... is none: give one of GAL, Decoupling"),
        (f"{'x' * 3000} = 5", "xxx... means nothing here: give [[stages]] and task"),
        ("[[stages]]\nrecipe = 'GAL'\nlamb = 1", "GAL has no field 'lamb' (did you mean 'lam'?); it has lam, mu"),
        ("[[stages]]\nrecipe = 'GAL'\nlam = -1", "GAL: lam=-1 is not allowed"),
        ("[[stages]]\nrecipe = 'DQSS'\n[[stages]]\nrecipe = 'GAL'", "this order works: GAL, DQSS"),
        ("[[stages]]\nrecipe = 'AceNAS'", "stage 1 is AceNAS: AceNAS searches architectures of a Space"),
        ("task = 'digit'\n[[stages]]\nrecipe = 'GAL'", "no task 'digit' (did you mean 'digits'?); there are digits"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, written, words):
    path = tmp_path / "chain.toml"
    path.write_text(written)
    assert cli.main(["run", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"lab: {path}: ") or err.startswith(f"lab: {path} cannot be read")
    assert words in err and err.count("\n") == 1 and len(err) < 700


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert cli.main(["run", str(tmp_path / "no.toml")]) == 2
    assert "no.toml cannot be read as TOML (No such file or directory)" in capsys.readouterr().err
    (tmp_path / "chain.toml").write_text(WRITTEN)
    assert cli.main(["run", str(tmp_path / "chain.toml"), "--set", "lam=1"]) == 2
    assert "--set is for one recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_run_and_load(tmp_path, capsys):
    (tmp_path / "chain.toml").write_text(
        "[[stages]]\nrecipe = 'DQSS'\nsteps = 2\ncalibration = 8\ncandidates = 'max'\n"
    )
    assert cli.main(["run", str(tmp_path / "chain.toml"), "--quiet", "--out", str(tmp_path / "out")]) == 0
    report, _, saved = capsys.readouterr().out.rpartition("saved: ")
    assert (
        report.splitlines()[1].split() == ["start", "1", "DQSS", "unit"]
        and saved == f"lab.load({str(tmp_path / 'out')!r})\n"
    )
    assert cli.main(["load", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == report
    for folder in (tmp_path, tmp_path / "none"):
        assert cli.main(["load", str(folder)]) == 2
        err = capsys.readouterr().err
        assert "holds no outcome.json" in err and err.count("\n") == 1
