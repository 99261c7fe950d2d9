"""Make the table of detectors behind `lab.tasks.detectors()`: `python data/faces/make.py`, about an hour.

On two cores. First a detector of each width learns plain scenes of another seed, which all others start from
(`start.safetensors`, kept if it is there). Then every configuration is trained on every composed domain, from a seed of
its own. What is finished is kept in `data/faces/runs`, so that a second start goes on from there, as it does from the
table. Configurations come in an order in which any number of them covers the space: a run that is stopped leaves a
table of fewer configurations, which says so.

    python data/faces/make.py [--count 216] [--jobs 2] [--only 3] [--keep]

--count trains so many configurations of each domain, --only so many cells in all (to see what one costs), --keep writes
the table of what is there and trains nothing.
"""

import argparse
import gzip
import hashlib
import time
from pathlib import Path

import pandas
import torch
from safetensors.torch import save

import lab
from lab.core import store
from lab.core.data import faces
from lab.core.parallel import Journal
from lab.core.spaces import streams
from lab.hyperfd import detector
from lab.hyperfd.space import NAMES, Configuration, configurations, even_part

FOLDER = Path(__file__).parent
PLAIN = ("portraits", "groups", "small", "cluttered")


def begin() -> None:
    """The weights that detectors start from: half floats, a name begins with the width."""
    parts = [faces.composed(domain, seed=1).learn for domain in PLAIN]
    plain = faces.Faces(
        images=[image for part in parts for image in part.images],
        boxes=[boxes for part in parts for boxes in part.boxes],
        name="plain scenes",
    )
    found = {}
    for width in streams.DETECTORS["width"]:
        configuration = Configuration(width=width, side=128, iou=0.45, optimiser="adamw")
        budget = 500 * detector.BUDGET // detector.affordable(configuration)  # some 500 steps
        net, _ = detector.train(plain, configuration, budget, fresh=True)
        for name, value in net.state_dict().items():
            found[f"{width} {name}"] = value.half() if value.is_floating_point() else value
        print(f"width {width}: {detector.score(net, faces.composed('groups').held_out, 128)}", flush=True)
    store.write(FOLDER / "start.safetensors", save({name: value.contiguous() for name, value in found.items()}))


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
        for number in even_part(count)
        for place, domain in enumerate(faces.DOMAINS)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=216)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep", action="store_true", help="write the table of what is there, train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (FOLDER / "start.safetensors").exists():
        begin()
    before = known()
    wanted = [item for item in items(options.count) if (item[0], *item[1]) not in before][: options.only]
    if not options.keep:
        lab.map(cell, wanted, n_jobs=options.jobs, journal=FOLDER / "runs")
    done = Journal(FOLDER / "runs", cell, wanted).done
    rows = [*before.values(), *((*wanted[index], done[index]) for index in sorted(done))]
    print(f"{len(rows)} of {len(items(216))} cells, {sum(r['seconds'] for *_, r in rows) / len(rows):.2f} s each")
    if options.only is None:
        write(rows)


def known() -> dict[tuple, tuple]:
    """The rows of the table that is there already, by domain and decisions: (domain, choice, seed, result)."""
    if not (FOLDER / "detectors.csv.gz").exists():
        return {}
    found = {}
    for row in pandas.read_csv(FOLDER / "detectors.csv.gz").to_dict("records"):
        choice = [row[name] for name in NAMES]
        result = {name: row[name] for name in ("ap50", "ap", "seconds")}
        found[row["domain"], *choice] = (row["domain"], choice, row["seed"], result)
    return found


def write(rows: list[tuple]) -> None:
    """The table, in the order of domains and configurations, and its hash."""
    order = {name: place for place, name in enumerate(faces.DOMAINS)}
    lines = [",".join(("domain", *NAMES, "seed", "ap50", "ap", "seconds"))]
    for domain, choice, seed, found in sorted(rows, key=lambda row: (order[row[0]], row[1])):
        numbers = (f"{found['ap50']:.3f}", f"{found['ap']:.3f}", f"{found['seconds']:.1f}")
        lines.append(",".join(map(str, (domain, *choice, seed, *numbers))))
    content = gzip.compress("\n".join(lines).encode() + b"\n", mtime=0)
    store.write(FOLDER / "detectors.csv.gz", content)
    kept = sorted(path for path in FOLDER.iterdir() if path.name.endswith((".gz", ".safetensors", ".json", ".csv")))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in kept]
    store.write(FOLDER / "SHA256SUMS", "".join(sums).encode())


if __name__ == "__main__":
    main()
