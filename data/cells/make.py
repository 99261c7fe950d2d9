"""Make the table of cells behind `lab.tasks.cells()`: `python data/cells/make.py`, about 15 minutes on one core.

Every distinct cell of four operators is trained twice on the digits; a super-net of them all gives the weak labels.
What is finished is kept in `data/cells/runs`, so that a second start goes on from there.
"""

import gzip
import hashlib
from pathlib import Path

import torch

import lab
from lab.acenas import supernet
from lab.core import cells, cost, store

OPERATORS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3")
SEEDS, EPOCHS, SUPERNET_EPOCHS = (0, 1), 8, 600
FOLDER = Path(__file__).parent


def row(operators: list[str]) -> dict:
    """A line of the table: both trainings, and what the network costs."""
    runs = [supernet.train(operators, seed, EPOCHS) for seed in SEEDS]
    net, picture = runs[0][2], supernet.digits_split()[0][:1]
    return {
        "arch": cells.text(operators), "parameters": cost.parameters(net), "macs": cost.macs(net, picture),
        "latency_ms": cost.latency(net, picture, repeats=60).median,
        **{f"valid_{seed}": run[0] for seed, run in zip(SEEDS, runs, strict=True)},
        **{f"test_{seed}": run[1] for seed, run in zip(SEEDS, runs, strict=True)},
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    space = cells.distinct(OPERATORS)
    rows = lab.map(row, [list(operators) for operators in space], n_jobs=1, journal=FOLDER / "runs")
    net = supernet.supernet(space, epochs=SUPERNET_EPOCHS, checkpoint=FOLDER / "runs")
    for known, accuracy in zip(rows, supernet.weak_labels(net, space).tolist(), strict=True):
        known["supernet"] = accuracy
    head = ["arch", "parameters", "macs", "latency_ms", "supernet", *(name for name in rows[0] if name[-2] == "_")]
    lines = [",".join(head)] + [",".join(shown(known[name]) for name in head) for known in rows]
    content = gzip.compress("\n".join(lines).encode() + b"\n", mtime=0)
    store.write(FOLDER / "cells.csv.gz", content)
    store.write(FOLDER / "SHA256SUMS", f"{hashlib.sha256(content).hexdigest()}  cells.csv.gz\n".encode())


def shown(value: str | int | float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
