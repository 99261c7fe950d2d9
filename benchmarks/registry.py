"""What the methods work with: some 170 networks of torchvision, timm and diffusers, each by each method, tried.

    python benchmarks/registry.py [--quick] [--json lab/registry.json] [--records runs/registry.jsonl] [--jobs 2]
                                  [--only 'resnet*'] [--methods surgery,DQSS] [--again 'DQSS/timm/*'] [--any-sources]

Needs, beside the lab with its extras export, diffusion and test (which brings Torch-Pruning):
pip install --no-deps torchvision==0.28.0 timm. `--quick` tries twelve small networks that need neither.

All weights are random, from seeds, but so that every layer matters; pictures are 64 x 64 where a network takes them.
Every attempt runs in a process of its own, one thread, 60 seconds of the processor and 8 GB beyond the network; its
record is kept in a file of JSON lines as it ends. Started again, the benchmark goes on behind the last one: a record
counts for the network, the method and the sources of the lab that it was made with. `--any-sources` takes those of
other sources too, and `--again METHOD/NETWORK` (with * and ?) makes some anew. Torch-Pruning runs on torchvision's
classifiers, of as many channels and under the same check.

`--json` writes the registry that `lab.works_with()` shows: the figures asked for, then a line for each network. A whole
run writes it into the package, and its figures into the README.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process
sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # the process that others are forked from reads it

from tqdm.auto import tqdm
from zoo import networks
from zoo.networks import Network
from zoo.trial import trials

import lab
from lab.core.machine import machine
from lab.registry import COLUMNS, Registry

PACKAGE = Path(lab.__file__).parent
MARK = "<!-- registry: python benchmarks/registry.py writes this table -->"
METHODS = ("surgery", "ONNX", "GAL", "Decoupling", "SparseByteNN", "DQSS")

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="twelve small networks, without torchvision and timm")
    parser.add_argument("--json", type=Path, help="write the registry here; lab/registry.json in a whole run")
    parser.add_argument("--records", type=Path, default=Path("runs/registry.jsonl"), help="kept as they come")
    parser.add_argument("--jobs", type=int, default=2, help="networks tried at a time, a core each")
    parser.add_argument("--only", default="*", help="networks of such names")
    parser.add_argument("--methods", help="these only, with commas between them")
    parser.add_argument("--again", action="append", default=[], metavar="METHOD/NETWORK", help="made anew; repeat")
    parser.add_argument("--any-sources", action="store_true", help="take records of other sources of the lab too")
    options = parser.parse_args()
    here = networks.small_networks() + ([] if options.quick else networks.all_networks())
    wanted = {n.name: n for n in here if fnmatch(n.name, options.only)}
    methods = options.methods.split(",") if options.methods else None
    due = {n.name: [m for m in methods_of(n) if methods is None or m in methods] for n in wanted.values()}
    records = tried(due, options)
    kept = [record for record in records.values() if record["network"] in wanted]
    content = registry(wanted, kept)
    print(Registry(content))
    for record in kept:
        if record["outcome"] in ("different", "failed", "hangs", "memory"):
            print(
                record["network"], *(record.get(part, "") for part in ("method", "outcome", "why", "where")), sep=": "
            )
    is_whole = not options.quick and wanted.keys() == {network.name for network in here}
    target = options.json or (PACKAGE / "registry.json" if is_whole else None)
    if target:
        target.write_text(written(content))
    if target == PACKAGE / "registry.json":
        in_readme(Registry(content))


def methods_of(network: Network) -> list[str]:
    """The methods that are tried on a network."""
    more = {"superres": ["PAMS"]}.get(network.kind, [])
    rival = ["Torch-Pruning"] if network.source == "torchvision" and network.classifies else []
    return [*METHODS, *more, *rival]


# -- running -----------------------------------------------------------------------------------------------------------


def tried(due: dict[str, list[str]], options: argparse.Namespace) -> dict[tuple[str, str], Record]:
    """The records of all that is due, by network and method: those that are there, and the others as they are made."""
    digest = sources()
    records = {
        (record["network"], record["method"]): record
        for record in read(options.records)
        if (options.any_sources or record["sources"] == digest)
        and not any(fnmatch(f"{record['method']}/{record['network']}", again) for again in options.again)
    }
    missing = {name: [m for m in methods if (name, m) not in records] for name, methods in due.items()}
    missing = {name: methods for name, methods in missing.items() if methods}
    options.records.parent.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()
    with (
        options.records.open("a") as file,
        ThreadPoolExecutor(options.jobs) as pool,
        tqdm(total=sum(map(len, missing.values())), desc="attempts") as bar,
    ):

        def run(name: str) -> None:
            for record in answers(name, missing[name]):
                record = {"network": name, "sources": digest, **record}
                with lock:
                    records[name, record["method"]] = record
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    bar.update()

        list(pool.map(run, missing))
    return records


def answers(name: str, methods: list[str]) -> Iterator[Record]:
    """The records of one network, from a process that builds it once; what that does not send has failed."""
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(["zoo.warm"])
    ours, theirs = start.Pipe(duplex=False)
    process = start.Process(target=trials, args=(name, methods, theirs))
    process.start()
    theirs.close()
    left = list(methods)
    while left:
        try:
            record = ours.recv()
        except EOFError:
            break
        left.remove(record["method"])
        yield record
    process.join()
    for method in left:
        why = f"the network's process ended with status {process.exitcode}"
        yield {"method": method, "outcome": "skipped", "why": why}


def read(path: Path) -> Iterator[Record]:
    """The records of a file, the last line left out where a kill has cut it."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def sources() -> str:
    """Twelve digits of the lab's Python sources and of what is tried here."""
    hasher = hashlib.sha256()
    for path in sorted([*PACKAGE.rglob("*.py"), *Path(__file__).with_name("zoo").glob("*.py")]):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()[:12]


# -- what is kept ------------------------------------------------------------------------------------------------------


def registry(wanted: dict[str, Network], records: list[Record]) -> dict[str, Any]:
    """The registry as JSON values: how it was made, the figures asked for, and a row for each network."""
    reasons = sorted({record["why"] for record in records if record.get("why")})
    rows: dict[str, Any] = {}
    for name, network in wanted.items():
        mine = [record for record in records if record["network"] == name]
        if mine:
            known = max(mine, key=lambda record: record.get("parameters", 0))
            head = {"source": network.source, "kind": network.kind, "side": known.get("side")}
            cells = {record["method"]: cell(record, reasons) for record in mine}
            rows[name] = {**head, "parameters": known.get("parameters"), "methods": cells}
    versions = {name: version(name) for name in ("torch", "torchvision", "timm", "diffusers", "torch-pruning")}
    counts = Counter(record["sources"] for record in records)  # one, unless records of other sources were taken too
    made = {"sources": counts, "versions": versions, "processor": machine()["processor"]}
    return {"made": made, "figures": figures(wanted, records), "reasons": reasons, "networks": rows}


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cell(record: Record, reasons: list[str]) -> list[Any]:
    """One attempt in the order of COLUMNS, numbers rounded, the reason by its number."""
    digits = {"reachable": ".2f", "error": ".1e", "onnx": ".1e", "seconds": ".1f", "megabytes": ".0f"}
    values = {name: float(f"{record[name]:{form}}") for name, form in digits.items() if record.get(name) is not None}
    why = reasons.index(record["why"]) if record.get("why") else None
    row = {**record, **values, "why": why}
    filled = [row.get(name) for name in COLUMNS]
    while filled and filled[-1] is None:
        filled.pop()
    return filled


def figures(wanted: dict[str, Network], records: list[Record]) -> list[Record]:
    """The figures asked for, each a count of a count."""
    outcomes = {(record["network"], record["method"]): record for record in records}

    def count(names: list[str], *methods: str, good: str = "works") -> tuple[int, int]:
        tried = [n for n in names if any((n, m) in outcomes for m in methods)]
        reached = [n for n in tried if any(outcomes.get((n, m), {}).get("outcome") == good for m in methods)]
        return len(reached), len(tried)

    home = "torchvision" if any(n.source == "torchvision" for n in wanted.values()) else "by hand"
    classifiers = [n.name for n in wanted.values() if n.classifies and n.source == home]
    families = [n.name for n in wanted.values() if n.source == "timm"]
    cnns = [name for name in classifiers if wanted[name].kind == "cnn"]
    attached = [n for n in cnns if "error" in outcomes.get((n, "Decoupling"), {})]
    runs = [n for n in classifiers if "error" in outcomes.get((n, "Torch-Pruning"), {})]
    rival = count(classifiers, "Torch-Pruning")
    broken = [r for r in records if r["outcome"] in ("failed", "hangs", "different") and r["method"] != "Torch-Pruning"]
    rows = [
        ("classifiers that surgery or GAL prunes exactly, 30 %", 95, *count(classifiers, "surgery", "GAL")),
        ("... that Torch-Pruning prunes exactly", None, *rival),
        ("... that run after Torch-Pruning", None, len(runs), rival[1]),
        ("... that DQSS searches and exports with parity", 90, *count(classifiers, "DQSS")),
        ("... of CNNs, that Decoupling attaches to", 90, len(attached), count(cnns, "Decoupling")[1]),
        ("timm families that surgery prunes exactly", 80, *count(families, "surgery")),
        ("tracebacks, hangs, silent differences", 0, len(broken), sum(r["method"] != "Torch-Pruning" for r in records)),
    ]
    return [{"figure": name, "asked": asked, "reached": n, "of": of} for name, asked, n, of in rows if of]


def written(content: dict[str, Any]) -> str:
    """The registry as text, a line for each network."""
    parts = [f'"{key}": {compact(content[key])}' for key in ("made", "figures", "reasons")]
    lines = [f"{json.dumps(name)}:{compact(row)}" for name, row in content["networks"].items()]
    return "{\n" + ",\n".join([*parts, '"networks": {\n' + ",\n".join(lines) + "\n}"]) + "\n}\n"


def in_readme(table: Registry) -> None:
    """Write the figures between their marks in the README, in a checkout."""
    readme = PACKAGE.parent / "README.md"
    if readme.exists():
        before, mark, rest = readme.read_text().partition(f"{MARK}\n")
        readme.write_text(f"{before}{mark}{table.to_markdown()}\n{rest[rest.index('<!-- end -->') :]}")


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    main()
