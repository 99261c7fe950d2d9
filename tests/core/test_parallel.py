"""lab.map: order, failures, the journal, a kill in mid-run, workers of one thread, a real cluster of two processes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import joblib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.core import parallel


def square(x):
    return x * x


def brittle(x):
    if x == 2:
        raise ArithmeticError("two is not allowed\nsecond line")
    return x * x


def slow_first(x):
    """The first item finishes last."""
    time.sleep(3 if x == 0 else 0)
    return x


def threads_and_process(x):
    import torch

    time.sleep(0.1)
    return [torch.get_num_threads(), os.getpid()]


@dataclass(frozen=True)
class Settings:
    lam: float = 0.1

    def scaled(self, x):
        return self.lam * x


def lines(folder) -> list[str]:
    return (Path(folder) / "journal.jsonl").read_text().splitlines()


# -- where and in what order ------------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_items():
    assert parallel.map(square, range(5), progress=False) == [0, 1, 4, 9, 16]
    assert parallel.map(square, [], progress=False) == []


def test_cheap_items_stay_in_this_process(monkeypatch):
    monkeypatch.setattr(parallel, "_workers", lambda *_: pytest.fail("processes were started for a cheap item"))
    assert parallel.map(lambda x: os.getpid(), range(3), progress=False) == [os.getpid()] * 3


@pytest.mark.slow
@pytest.mark.skipif(joblib.cpu_count() < 2, reason="on one core all items stay in this process")
def test_dear_items_go_to_processes(monkeypatch):
    monkeypatch.setattr(parallel, "CHEAP", 0.05)
    first, *rest = [pid for _, pid in parallel.map(threads_and_process, range(4), progress=False)]
    assert first == os.getpid()
    assert os.getpid() not in rest


@pytest.mark.slow
def test_unordered_finish_ordered_result(tmp_path):
    assert parallel.map(slow_first, range(4), n_jobs=2, journal=tmp_path, progress=False) == [0, 1, 2, 3]
    finished = [json.loads(line)["result"] for line in lines(tmp_path)]
    assert sorted(finished) == [0, 1, 2, 3]
    assert finished[0] != 0  # written as they came, not in the order of the items


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_one_torch_thread_in_each_worker(n_jobs):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [n for n, _ in parallel.map(threads_and_process, range(3), n_jobs=n_jobs, progress=False)] == [1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_worker_that_dies_is_told_in_one_line():
    with pytest.raises(RuntimeError, match=r"workers stopped .*journal=folder") as caught:
        parallel.map(lambda x: os.kill(os.getpid(), signal.SIGKILL), range(2), n_jobs=2, progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_jobs": 0}, "n_jobs=0: give an integer, 1 or more, or -1"),
        ({"n_jobs": 1.5}, r"n_jobs=1\.5: give an integer"),
        ({"n_jobs": True}, "n_jobs=True: give an integer"),
        ({"backend": "threads"}, "backend='threads': give one of serial, processes, dask, ray"),
    ],
)
def test_bad_arguments_are_told_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        parallel.map(square, [1], **arguments)


@pytest.mark.parametrize(
    ("backend", "module", "remedy"), [("dask", "distributed", r"'shrinklab\[distributed\]'"), ("ray", "ray", "ray")]
)
def test_missing_backend_names_the_remedy(monkeypatch, backend, module, remedy):
    monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    with pytest.raises(ImportError, match=rf"backend={backend!r} needs {module}: pip install {remedy}$"):
        parallel.map(square, [1, 2], backend=backend, progress=False)


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_failed_item_does_not_stop_the_others(tmp_path, n_jobs):
    with pytest.raises(parallel.FailedItems) as caught:
        parallel.map(brittle, range(4), n_jobs=n_jobs, journal=tmp_path, progress=False)
    head, line = str(caught.value).splitlines()
    assert head.startswith("lab.map: 1 of 4 items failed, the others are in ")
    assert line == "  2: ArithmeticError: two is not allowed"
    assert caught.value.results == [0, 1, None, 9]
    assert "in brittle" in caught.value.__notes__[0]  # the traceback of the worker
    assert len(lines(tmp_path)) == 3


def test_failed_item_is_tried_again_and_the_others_are_not(tmp_path):
    bad, calls = {2}, []

    def job(x):
        calls.append(x)
        return 1 / (x not in bad)

    with pytest.raises(parallel.FailedItems, match="ZeroDivisionError"):
        parallel.map(job, range(4), journal=tmp_path, progress=False)
    bad.clear()
    assert parallel.map(job, range(4), journal=tmp_path, progress=False) == [1, 1, 1, 1]
    assert calls == [0, 1, 2, 3, 2]


# -- the journal ------------------------------------------------------------------------------------------------------


def test_second_start_skips_what_is_done_and_says_how_many(tmp_path, capsys):
    assert parallel.map(square, range(3), journal=tmp_path) == [0, 1, 4]
    assert "already" not in capsys.readouterr().err
    assert parallel.map(square, range(5), journal=tmp_path) == [0, 1, 4, 9, 16]
    assert "lab.map: 3 of 5 items are already in" in capsys.readouterr().err
    assert len(lines(tmp_path)) == 5


def test_each_result_is_on_the_disk_before_the_next_item_starts(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(file) or fsync(file))

    def job(x):
        return [len(synced), len(lines(tmp_path)) if x else 0]

    assert parallel.map(job, range(3), journal=tmp_path, progress=False) == [[0, 0], [1, 1], [2, 2]]


def test_torn_last_line_is_tolerated(tmp_path):
    parallel.map(square, range(3), journal=tmp_path, progress=False)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # a kill in mid-write
    assert parallel.map(square, range(4), journal=tmp_path, progress=False) == [0, 1, 4, 9]
    done = [json.loads(line)["result"] for line in lines(tmp_path) if line.endswith("}")]
    assert done == [0, 1, 4, 9]  # the lines written after the torn one are whole


def test_a_line_that_was_altered_is_done_again(tmp_path):
    parallel.map(square, range(3), journal=tmp_path, progress=False)
    first, *others = lines(tmp_path)
    older = json.loads(others[1])
    del older["digest"]  # a version without digests wrote such, and so does whatever cuts a line's own out
    spliced = first.replace('"result": 0, "digest":', '"result":')
    altered = [first.replace('"result": 0', '"result": 7'), first.replace("0", "7").replace("digest", "x"), spliced]
    kept = [json.dumps(older | {"result": 40}), others[0], *altered, "[" * 3000, "5", ""]
    (tmp_path / "journal.jsonl").write_text("\n".join(kept))
    assert parallel.Journal(tmp_path, square, range(3)).done == {1: 1}
    assert parallel.map(square, range(3), journal=tmp_path, progress=False) == [0, 1, 4]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda tree: st.lists(tree, max_size=3) | st.dictionaries(st.text(max_size=3), tree, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(JSON, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_journal_gives_back_what_it_was_told_whatever_the_order_of_its_lines(results, draw):
    with tempfile.TemporaryDirectory() as folder:
        items = list(range(len(results)))
        kept = parallel.Journal(folder, square, items)
        for index, result in enumerate(results):
            assert kept.note(index, result) == result
        shuffled = lines(folder)
        draw.shuffle(shuffled)
        (Path(folder) / "journal.jsonl").write_text("\n".join([*shuffled, *shuffled, ""]))
        assert parallel.Journal(folder, square, items).done == dict(enumerate(results))


def test_results_are_the_same_whether_fresh_or_resumed(tmp_path):
    def pair(x):
        return (x, {"half": x / 2})

    fresh = parallel.map(pair, [1], journal=tmp_path, progress=False)
    assert fresh == parallel.map(pair, [1], journal=tmp_path, progress=False) == [[1, {"half": 0.5}]]


def test_result_that_is_not_json_names_the_remedy(tmp_path):
    with pytest.raises(TypeError, match=r"the result of 1 is a Tensor, no JSON .*outcome\.report\.to_dict") as caught:
        parallel.map(torch.tensor, [1], journal=tmp_path, progress=False)
    assert "\n" not in str(caught.value)


def test_functions_and_what_is_bound_to_them_are_told_apart(tmp_path):
    jobs = [square, brittle, Settings(0.5).scaled, Settings(2.0).scaled, partial(pow, 3), partial(pow, 5)]
    results = [parallel.map(job, [4], journal=tmp_path, progress=False) for job in jobs]
    assert results == [[16], [16], [2.0], [8.0], [81], [625]]
    assert len(lines(tmp_path)) == len(jobs)


def test_items_may_be_frozen_dataclasses(tmp_path):
    assert parallel.map(lam_of, [Settings(0.5), Settings(2.0)], journal=tmp_path, progress=False) == [0.5, 2.0]
    assert parallel.map(lam_of, [Settings(2.0)], journal=tmp_path, progress=False) == [2.0]
    assert len(lines(tmp_path)) == 2


def lam_of(settings):
    return settings.lam


@pytest.mark.parametrize(
    ("fn", "item", "message"),
    [
        (lambda x: x, 1, "fn is a lambda, which has no name"),
        (square, object(), "has no repr to keep its result by"),
        (square, torch.zeros(5000), "has no repr to keep its result by"),
    ],
)
def test_what_cannot_be_known_again_is_refused_before_work_starts(tmp_path, fn, item, message):
    with pytest.raises(ValueError, match=message):
        parallel.map(fn, [item], journal=tmp_path, progress=False)
    assert not (tmp_path / "journal.jsonl").exists()


def test_unwritable_journal_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*: give another journal folder"):
        parallel.map(square, [1], journal=tmp_path / "file" / "below", progress=False)


@pytest.mark.slow
def test_killed_run_goes_on_where_it_stopped(tmp_path):
    script = tmp_path / "sweep.py"
    script.write_text(
        textwrap.dedent("""
            import sys, time
            from pathlib import Path
            from lab.core import parallel

            folder, pause = Path(sys.argv[1]), float(sys.argv[2])

            def job(x):
                with open(folder / "calls", "a") as file:
                    file.write(f"{x}\\n")
                time.sleep(pause)
                return 10 * x

            print(parallel.map(job, range(8), n_jobs=1, journal=folder))
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(parallel.__file__).parents[2])}
    command = [sys.executable, str(script), str(tmp_path)]
    run = subprocess.Popen([*command, "0.3"], env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "journal.jsonl").exists() or len(lines(tmp_path)) < 2:
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = len(lines(tmp_path))
    assert 2 <= before < 8
    again = subprocess.run([*command, "0"], env=environment, capture_output=True, text=True, check=True)
    assert again.stdout.strip() == str([10 * x for x in range(8)])
    assert f"{before} of 8 items are already in" in again.stderr
    calls = (tmp_path / "calls").read_text().split()
    assert [calls.count(str(x)) for x in range(before)] == [1] * before  # what was done is not done again


# -- clusters ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(find_spec("distributed") is None, reason="the extra `distributed` is not installed")
def test_dask_without_a_cluster_is_told_in_one_line():
    with pytest.raises(ValueError, match=r"finds no cluster: first make one, client = dask\.distributed\.Client"):
        parallel.map(square, [1, 2], backend="dask", progress=False)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("distributed") is None, reason="the extra `distributed` is not installed")
def test_real_dask_cluster_of_two_processes(tmp_path):
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        seen = parallel.map(threads_and_process, range(8), backend="dask", progress=False)
        assert parallel.map(slow_first, range(4), backend="dask", journal=tmp_path, progress=False) == [0, 1, 2, 3]
        with pytest.raises(parallel.FailedItems, match="1 of 4 items failed"):
            parallel.map(brittle, range(4), backend="dask", progress=False)
    assert {threads for threads, _ in seen} == {1}
    workers = {pid for _, pid in seen}
    assert len(workers) == 2 and os.getpid() not in workers
    assert len(lines(tmp_path)) == 4
