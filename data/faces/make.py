"""Make the table of detectors behind `lab.tasks.detectors()`: `python data/faces/make.py`, about 2.5 hours.

On two cores. Every configuration is trained on every composed domain, from a seed of its own. What is finished is
kept in `data/faces/runs`, so that a second start goes on from there. Configurations come in an order in which any
number of them covers the space: a run that is stopped leaves a table of fewer configurations, which says so.

    python data/faces/make.py [--count 216] [--jobs 2] [--only 3] [--keep]

--count trains so many configurations of each domain, --only so many cells in all (to see what one costs), --keep writes
the table of what is there and trains nothing.
"""

import argparse
import gzip
import hashlib
import time
from pathlib import Path

import torch

import lab
from lab.core import faces, store
from lab.core.parallel import Journal
from lab.hyperfd import detector
from lab.hyperfd.space import NAMES, Configuration, configurations, even_part

FOLDER = Path(__file__).parent


def cell(item: list) -> dict[str, float]:
    """Average precisions in percent of one training, and its seconds of processor time."""
    domain, choice, seed = item
    began = time.process_time()
    found = detector.evaluated(faces.composed(domain), Configuration(*choice), seed=seed)
    return {**found, "seconds": time.process_time() - began}


def items(count: int) -> list[list]:
    """(domain, choice, seed) of every cell: all domains of a configuration before the next configuration."""
    everything = configurations()
    return [
        [domain, list(everything[number].choice), 1000 * place + number]
        for number in even_part(count) for place, domain in enumerate(faces.DOMAINS)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=216)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep", action="store_true", help="write the table of what is there, train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = items(options.count)[: options.only]
    if not options.keep:
        lab.map(cell, wanted, n_jobs=options.jobs, journal=FOLDER / "runs")
    done = Journal(FOLDER / "runs", cell, wanted).done
    rows = [(*wanted[index], done[index]) for index in sorted(done)]
    print(f"{len(rows)} of {len(items(216))} cells, {sum(r['seconds'] for *_, r in rows) / len(rows):.2f} s each")
    if options.only is None:
        write(rows)


def write(rows: list[tuple]) -> None:
    """The table, in the order of domains and configurations, and its hash."""
    order = {name: place for place, name in enumerate(faces.DOMAINS)}
    lines = [",".join(("domain", *NAMES, "seed", "ap50", "ap", "seconds"))]
    for domain, choice, seed, found in sorted(rows, key=lambda row: (order[row[0]], row[1])):
        numbers = (f"{found['ap50']:.3f}", f"{found['ap']:.3f}", f"{found['seconds']:.1f}")
        lines.append(",".join(map(str, (domain, *choice, seed, *numbers))))
    content = gzip.compress("\n".join(lines).encode() + b"\n", mtime=0)
    store.write(FOLDER / "detectors.csv.gz", content)
    store.write(FOLDER / "SHA256SUMS", f"{hashlib.sha256(content).hexdigest()}  detectors.csv.gz\n".encode())


if __name__ == "__main__":
    main()
