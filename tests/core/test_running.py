"""The start of a run: what names its checkpoint is alike in every process, and tells other networks and data apart."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import lab
from lab.core import store
from lab.core.data.batches import Moved, shuffled
from lab.core.running import digest, fingerprint, network
from lab.core.training import seeded

ROOT = Path(__file__).parents[2]
X = torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = (X.mean((1, 2, 3)) > 0).long()


class Augmented(Dataset):
    """Samples that draw from all three global generators."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index] * torch.rand(()) + float(np.random.rand()), Y[index]


class Stream(IterableDataset):
    """Samples one after another, of no known number."""

    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Unseeded(Dataset):
    """Samples from a source of chance that nobody knows, another one in each process."""

    def __init__(self):
        self.draws = np.random.default_rng()

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index] + float(self.draws.normal()), Y[index]


LOADERS = {
    "list": lambda: list(zip(X.split(6), Y.split(6), strict=True)),
    "in order": lambda: DataLoader(TensorDataset(X, Y), 6),
    "shuffled": lambda: DataLoader(TensorDataset(X, Y), 6, shuffle=True),
    "own generator": lambda: DataLoader(TensorDataset(X, Y), 6, shuffle=True, generator=torch.Generator()),
    "augmented": lambda: DataLoader(Augmented(), 6, shuffle=True),
    "workers": lambda: DataLoader(Augmented(), 6, shuffle=True, num_workers=1, multiprocessing_context="fork"),
    "stream": lambda: DataLoader(Stream(), 6),
    "unseeded": lambda: DataLoader(Unseeded(), 6, shuffle=True),
    "pictures alone": lambda: [x for x in X.split(6)],
    "moved": lambda: shuffled(Moved(X, Y, 1), 6),
}


def net(width=4) -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 2))


def task(loader="shuffled", **changed) -> lab.Task:
    return lab.Task(**{"model": net(), "batches": LOADERS[loader](), "score": lambda m: 50.0, **changed})


def told(loader: str) -> str:
    """The fingerprint of a task, after the generators have been moved on as earlier work in a process does."""
    made = task(loader)
    first = fingerprint(made)
    torch.rand(5), np.random.rand(3)
    for _ in made.batches:
        break
    assert fingerprint(made) == first  # the same again in one process, wherever a loader's own generator stands
    return first


@pytest.fixture(scope="module")
def elsewhere():
    """The fingerprints that another process finds."""
    line = "from tests.core.test_running import LOADERS, told; print({name: told(name) for name in LOADERS})"
    run = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True, check=True)
    return eval(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
def test_the_fingerprint_is_alike_in_every_process(elsewhere, loader):
    assert told(loader) == elsewhere[loader]


@pytest.mark.slow
@pytest.mark.parametrize("loader", sorted(LOADERS.keys() - {"unseeded"}))
def test_other_data_are_told_apart(monkeypatch, loader):
    before = told(loader)
    monkeypatch.setitem(globals(), "X", X + 0.1)
    assert told(loader) != before


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
def test_the_fingerprint_is_alike_wherever_a_generator_stands(loader):
    told(loader)


@pytest.mark.parametrize("loader", ["list", "shuffled", "stream"])
def test_other_labels_are_told_apart(monkeypatch, loader):
    before = told(loader)
    monkeypatch.setitem(globals(), "Y", 1 - Y)
    assert told(loader) != before


def test_other_networks_are_told_apart():
    dense = digest(network(net()))
    assert digest(network(net())) == dense != digest(network(net(5)))
    for change in (
        lambda m: m[0].weight.data.view(-1)[3].add_(1e-6),
        lambda m: m.__setitem__(1, nn.ReLU6()),
        lambda m: setattr(m[0], "stride", (2, 2)),
        lambda m: m.double(),
    ):
        other = net()
        change(other)
        assert digest(network(other)) != dense


def test_a_fingerprint_moves_nothing():
    made = task("own generator")
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), made.batches.generator.get_state()
    fingerprint(made)
    assert torch.equal(torch.get_rng_state(), states[0]) and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(made.batches.generator.get_state(), states[2])


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False)
leaves |= st.lists(st.integers(0, 3), max_size=3).map(lambda v: torch.tensor(v, dtype=torch.int32))
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=8)


def plain(tree):
    """The tree with tensors as lists, and each leaf beside its kind: what equality of trees means."""
    if isinstance(tree, torch.Tensor):
        return ("tensor", tuple(tree.shape), tree.tolist())
    return [plain(value) for value in tree] if isinstance(tree, list) else (type(tree).__name__, repr(tree))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(a=trees, b=trees)
def test_two_digests_are_equal_if_the_trees_are(a, b):
    assert (digest(a) == digest(b)) == (plain(a) == plain(b))


@pytest.mark.parametrize(
    "tensor",
    [torch.tensor(1.0), torch.zeros(2, 0), torch.ones(3, dtype=torch.bfloat16), torch.ones(2, dtype=torch.complex64),
     torch.tensor([True]), torch.eye(2).to_sparse(), torch.empty(2, device="meta"), torch.arange(6).view(2, 3).T],
)  # fmt: skip
def test_every_tensor_has_a_digest(tensor):
    assert len(digest({"a": tensor})) == 12


# -- held ------------------------------------------------------------------------------------------------------------

HOLDING = """
import os, sys, time
from lab.core import store
from lab.core.data.batches import Moved, shuffled
with store.held(sys.argv[1]):
    if len(sys.argv) > 2 and os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a folder, and one that it has forked, as loaders fork their workers."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLDING, str(tmp_path / "run"), "fork"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.mark.slow
def test_two_processes_on_one_folder(tmp_path, holder):
    folder = tmp_path / "run"
    with pytest.raises(ValueError) as caught:
        lab.GAL(steps=1, mask_every=1).run(task(), progress=False, checkpoint=folder)
    assert str(caught.value) == (
        f"checkpoint={str(folder)!r} is in use by another run (process {holder.pid}): wait for it, end it, "
        "or give another folder"
    )
    with pytest.raises(ValueError, match="is in use by another run"):
        lab.finetune(task(), net(), steps=1, lr=0.1, checkpoint=folder)
    assert [path.name for path in folder.iterdir()] == [".lock"]
    holder.kill()  # and its forked child lives on
    holder.wait()
    deadline = time.monotonic() + 10
    while True:
        try:
            with store.held(folder):
                break
        except ValueError:
            assert time.monotonic() < deadline, "the lock outlives its holder"
            time.sleep(0.01)


@pytest.mark.slow
def test_two_runs_in_one_process(tmp_path):
    with store.held(tmp_path):
        for _ in range(2):  # the refusal leaves the lock as it was
            with pytest.raises(ValueError, match=r"in use by another run \(in this process\)"), store.held(tmp_path):
                pass
        line = "import sys; from lab.core import store; store.held(sys.argv[1]).__enter__()"
        other = subprocess.run([sys.executable, "-c", line, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
        assert f"in use by another run (process {os.getpid()})" in other.stderr
    with store.held(tmp_path):
        pass


def test_a_run_that_fails_lets_go(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), store.held(tmp_path):
        raise RuntimeError("mine")
    with store.held(tmp_path):
        pass


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [("", "give the name of a folder, or None"), (5, "checkpoint=5"), (True, "checkpoint=True"), ("file", "is a file")],
)
def test_what_is_no_folder_is_told(tmp_path, monkeypatch, checkpoint, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError) as caught, store.held(checkpoint):
        pass
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_system_without_locks_holds_all_the_same(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(store.fcntl, "lockf", unknown)
    with store.held(tmp_path):
        pass
