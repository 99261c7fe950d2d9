"""Make the table of cells behind `lab.tasks.cells()`: `python data/cells/make.py`, about 25 minutes on one core.

Every distinct cell of four operators is trained twice on the digits; a super-net of them all gives the weak labels.
What is finished is kept in `data/cells/runs`, so that a second start goes on from there. Latencies are measured last,
of all cells in turn, round by round: leave the machine alone meanwhile, or stop before them with --no-latency.
"""

import gzip
import hashlib
import sys
from pathlib import Path

import torch

import lab
from lab.acenas import supernet
from lab.core import cost, store
from lab.core.spaces import cells

OPERATORS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3")
SEEDS, EPOCHS, SUPERNET_EPOCHS, ROUNDS = (0, 1), 8, 600, 60
FOLDER = Path(__file__).parent


def trained(operators: list[str]) -> dict[str, float]:
    """Accuracy in percent on the 297 digits to search on and on the 500 to report, of each training."""
    runs = [(seed, *supernet.train(operators, seed, EPOCHS)[:2]) for seed in SEEDS]
    return {f"{part}_{seed}": value for seed, valid, test in runs for part, value in (("valid", valid), ("test", test))}


def costs(space: list[cells.Operators]) -> dict[str, dict[str, float]]:
    """Parameters, multiply-adds and milliseconds of each cell's network, for one picture."""
    picture = supernet.digits_split()[0][:1]
    nets = {cells.text(cell): supernet.CellNet([(name,) for name in cell]) for cell in space}
    times = cost.latencies(nets, picture, repeats=ROUNDS)
    return {
        arch: {"parameters": cost.parameters(net), "macs": cost.macs(net, picture), "latency_ms": times[arch].median}
        for arch, net in nets.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    space = cells.distinct(OPERATORS)
    accuracies = lab.map(trained, [list(cell) for cell in space], n_jobs=1, journal=FOLDER / "runs")
    net = supernet.supernet(space, epochs=SUPERNET_EPOCHS, checkpoint=FOLDER / "runs")
    weak = supernet.weak_labels(net, space).tolist()
    if "--no-latency" in sys.argv:
        return
    known = costs(space)
    rows = [
        {"arch": (arch := cells.text(cell)), **known[arch], "supernet": label, **accuracy}
        for cell, label, accuracy in zip(space, weak, accuracies, strict=True)
    ]
    lines = [",".join(rows[0])] + [",".join(map(shown, row.values())) for row in rows]
    content = gzip.compress("\n".join(lines).encode() + b"\n", mtime=0)
    store.write(FOLDER / "cells.csv.gz", content)
    store.write(FOLDER / "SHA256SUMS", f"{hashlib.sha256(content).hexdigest()}  cells.csv.gz\n".encode())


def shown(value: str | int | float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
