"""Fair contests, the one harness of the benchmarks that compare: the same start, data, steps and budget for all rivals.

A cell is one rival at one budget with one seed. What it gives is a line of JSON beside the command, the commit,
the settings' digest, the network's hash and the processor time that it took. A contest that was broken off goes on from
its lines or from the kept file, seeds can be shared out to several processes (`--seeds 10,11` here, `--seeds 12,13,14`
there), and a line that was copied from another is refused: no two runs take the same nanoseconds.

    python benchmarks/gal.py fashion --seeds 10,11,12,13,14 --json data/gal/fashion.json

`--device cuda` computes there; the cells say so, and their last digits are other ones than a processor's. Where the
sources lie without a repository, COMMIT names theirs.
"""

import argparse
import hashlib
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from scipy import stats
from torch import nn
from tqdm.auto import tqdm

from lab.core import store
from lab.core.batch import moved
from lab.core.machine import machine
from lab.core.task import Task
from lab.core.training import seeded

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("SHARED", ROOT.parent / "shared" / "data"))  # data that are not the lab's to ship
CONFIDENCE = 0.95
TIMED = ("latency", "seconds")  # figures whose names hold one of these are of a clock
Rival = Callable[[Any, int, Path], tuple[nn.Module, Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Rivals by name, each a function (budget, seed, folder) -> its network and its figures.

    The first rival is the subject: the others are compared with it by `figure`, of which less is better if `less`.
    `folder` is where a rival may leave what another needs, with the same budget and seed. `settings` hold all that
    decides a figure: where they change, cells are made anew. `only` names rivals that have not all budgets, and theirs.
    `device` is where the networks lie, which a record names.
    """

    name: str
    rivals: Mapping[str, Rival]
    settings: Mapping[str, Any]
    figure: str
    less: bool = True
    budgets: tuple[Any, ...] = ("",)
    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)  # none of which was used to choose a setting
    once: frozenset[str] = field(default_factory=frozenset)  # rivals that no seed changes: made with the first alone
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def subject(self) -> str:
        return next(iter(self.rivals))

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True, default=repr).encode()).hexdigest()[:12]


# -- cells ------------------------------------------------------------------------------------------------------------


def made(contest: Contest, budget: Any, seed: int, rival: str, folder: Path) -> dict:
    """The record of one cell, computed here and now."""
    start = time.process_time_ns()
    with seeded(seed):
        network, figures = contest.rivals[rival](budget, seed, folder)
    spent = time.process_time_ns() - start
    return {
        "rival": rival, "budget": budget, "seed": seed,
        "figures": {name: float(value) for name, value in figures.items()},
        "network": fingerprint(network), "nanoseconds": spent, "settings": contest.digest,
        "command": command(sys.argv), "commit": commit(),
        "processor": processor(contest.device),
    }  # fmt: skip


def run(
    contest: Contest, folder: Path, rivals: Iterable[str], seeds: Iterable[int], budgets: Iterable = ()
) -> list[dict]:
    """All records of the contest, after those cells of these rivals, seeds and budgets that were missing are made."""
    path = folder / "records.jsonl"
    wanted = [
        (budget, seed, rival)
        for budget in budgets or contest.budgets
        for seed in seeds
        for rival in contest.rivals
        if rival in {*rivals}
        and (rival not in contest.once or seed == contest.seeds[0])
        and budget in contest.only.get(rival, contest.budgets)
    ]
    for budget, seed, rival in tqdm(wanted, desc=contest.name):
        if not any(_key(record) == (budget, seed, rival) for record in records(contest, path)):
            append(path, [made(contest, budget, seed, rival, folder)])
    return records(contest, path)


def append(path: Path, found: list[dict]) -> None:
    """Add records to a file of lines, one write a line: several processes may share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for record in found:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def records(contest: Contest, path: Path) -> list[dict]:
    """The records of these settings in a file of lines, checked."""
    lines = path.read_text().splitlines() if path.exists() else []
    return checked([r for r in map(json.loads, lines) if r["settings"] == contest.digest])


def adopt(contest: Contest, path: Path, kept: Path) -> None:
    """Take the records of a kept file among the lines, those that are not there yet."""
    there = {_key(record) for record in records(contest, path)}
    stored = json.loads(kept.read_text())["records"] if kept.exists() else []
    append(path, [r for r in stored if r["settings"] == contest.digest and _key(r) not in there])


def checked(found: list[dict]) -> list[dict]:
    """The records, or a ValueError in one line where one was made twice, copied, or lacks its origin."""
    cells: dict[tuple, dict] = {}
    clocks: dict[tuple, dict] = {}
    for record in found:
        name = f"{record['rival']}, budget {record['budget']!r}, seed {record['seed']}"
        if lacking := [key for key in ("command", "commit", "network", "nanoseconds") if not record.get(key)]:
            raise ValueError(f"{name}: the record has no {', '.join(lacking)}: make the cell anew")
        if bad := [key for key, value in record["figures"].items() if not math.isfinite(value)]:
            raise ValueError(f"{name}: {', '.join(bad)} is not finite: make the cell anew")
        if _key(record) in cells:
            raise ValueError(f"{name} is there twice: delete one of the two lines")
        cells[_key(record)] = record
        for clock in _clocks(record):
            if clock in clocks:
                raise ValueError(f"{name} was copied from {clocks[clock]['rival']}, seed {clocks[clock]['seed']}: "
                                 f"both have {clock[0]} {clock[1]!r}; make the cell anew")  # fmt: skip
            clocks[clock] = record
    return found


def _key(record: dict) -> tuple:
    budget = record["budget"]
    return tuple(budget) if isinstance(budget, list) else budget, record["seed"], record["rival"]


def _clocks(record: dict) -> list[tuple[str, float]]:
    """What a clock said, which no other run says again."""
    told = [(name, v) for name, v in record["figures"].items() if any(part in name for part in TIMED)]
    return [("nanoseconds", record["nanoseconds"]), *told]


def fingerprint(network: nn.Module) -> str:
    """The first 12 digits of a hash of all tensors of the network, in order."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(name.encode() + np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()[:12]


def command(words: list[str]) -> str:
    """The command line without the folders that it names, which are those of one machine."""
    script, *rest = words
    kept = [w for w, before in zip(rest, ["", *rest], strict=False) if not {w, before} & {"--runs", "--json"}]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *kept])


def processor(device: str) -> str:
    """The name of what computes."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else str(machine()["processor"])


def commit() -> str:
    """The commit of the sources, with a + if they differ from it."""
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


# -- where it is computed ---------------------------------------------------------------------------------------------


def placed(task: Task, device: str) -> Task:
    """The task with its network, its example and each of its batches on a device."""
    if device == "cpu":
        return task
    example, batches = moved(task.example, device), Placed(task.batches, device)
    return replace(task, model=task.copy_for(device), example=example, batches=batches)


class Placed:
    """Batches, each moved to a device as it is taken."""

    def __init__(self, batches: Iterable, device: str) -> None:
        self.batches, self.device = batches, device

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator:
        return (moved(batch, self.device) for batch in self.batches)


# -- what is told -----------------------------------------------------------------------------------------------------


def summary(contest: Contest, found: list[dict]) -> pandas.DataFrame:
    """A row a budget and rival: its seeds, mean and spread of each figure, and how far it is behind the subject.

    'behind', with its interval, in the figure's units, is positive where the rival does worse on the same seeds.
    """
    rows = []
    for budget in contest.budgets:
        by_rival = {rival: _by_seed(found, budget, rival) for rival in contest.rivals}
        subject = {seed: figures[contest.figure] for seed, figures in by_rival[contest.subject].items()}
        for rival, by_seed in by_rival.items():
            if not by_seed:
                continue
            names = next(iter(by_seed.values()))
            row: dict[str, Any] = {"budget": budget, "rival": rival, "seeds": len(by_seed)}
            for name in names:
                values = [figures[name] for figures in by_seed.values()]
                row |= {name: float(np.mean(values)), f"{name} sd": spread(values)}
            if rival in contest.once:
                by_seed = dict.fromkeys(subject, next(iter(by_seed.values())))
            sign = 1 if contest.less else -1
            apart = [sign * (by_seed[seed][contest.figure] - subject[seed]) for seed in by_seed if seed in subject]
            mean, low, high = interval(apart) if rival != contest.subject else (0.0, 0.0, 0.0)
            rows.append(row | {"behind": mean, "behind low": low, "behind high": high})
    return pandas.DataFrame(rows)


def _by_seed(found: list[dict], budget: Any, rival: str) -> dict[int, dict[str, float]]:
    key = tuple(budget) if isinstance(budget, list) else budget
    return {r["seed"]: r["figures"] for r in found if (_key(r)[0], r["rival"]) == (key, rival)}


def spread(values: list[float]) -> float:
    """The standard deviation of a sample; NaN of fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean of paired differences and its interval of 95 % (Student's t); NaN bounds of fewer than two."""
    mean = float(np.mean(differences)) if differences else math.nan
    if len(differences) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1) * stats.sem(differences))
    return mean, mean - half, mean + half


def shown(contest: Contest, found: list[dict]) -> str:
    """The summary as a table to print."""
    table = summary(contest, found)
    columns = {"budget": table.budget, "rival": table.rival, "seeds": table.seeds}
    for name in table.columns:
        if f"{name} sd" in table:
            columns[name] = [f"{m:.2f} ± {s:.2f}" for m, s in zip(table[name], table[f"{name} sd"], strict=True)]
    columns[f"{contest.figure}: behind {contest.subject}"] = [
        f"{m:+.2f}" + ("" if math.isnan(low) else f" ({low:+.2f} to {high:+.2f})")
        for m, low, high in zip(table.behind, table["behind low"], table["behind high"], strict=True)
    ]
    return pandas.DataFrame(columns).to_string(index=False)


def keep(contest: Contest, found: list[dict], path: Path) -> None:
    """Write the kept file: settings, summary and every record, a line each."""
    head = {
        "contest": contest.name, "figure": contest.figure, "less": contest.less, "subject": contest.subject,
        "settings": contest.settings, "digest": contest.digest, "machine": machine(),
        "summary": json.loads(summary(contest, found).to_json(orient="records")),
    }  # fmt: skip
    lines = ",\n  ".join(json.dumps(record) for record in sorted(found, key=lambda r: (str(_key(r)[0]), _key(r)[1:])))
    text = json.dumps(head, indent=1, default=repr).rstrip().removesuffix("}").rstrip()
    store.write(path, f'{text},\n "records": [\n  {lines}\n ]\n}}\n'.encode())


# -- the command ------------------------------------------------------------------------------------------------------


def main(
    contests: Mapping[str, Callable[[bool, str], Contest]], doc: str | None, arguments: list[str] | None = None
) -> Contest:
    """Run one of the contests as the command line says, print its summary, keep it where asked."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contest", nargs="?", choices=[*contests], default=next(iter(contests)))
    parser.add_argument("--quick", action="store_true", help="one seed, few steps: under two minutes")
    parser.add_argument("--json", type=Path, help="write settings, summary and all records here, and go on from them")
    parser.add_argument("--seeds", help="those of the contest, or some of them: 10,11")
    parser.add_argument("--rivals", help="some of them, by name: 'GAL; uniform L1'")
    parser.add_argument("--budgets", help="some of the contest's: 2,3")
    parser.add_argument("--device", default="cpu", help="where networks are trained: cpu, cuda")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where records and outcomes are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    contest = contests[options.contest](options.quick, options.device)
    seeds = [int(seed) for seed in options.seeds.split(",")] if options.seeds else [*contest.seeds]
    rivals = [name.strip() for name in options.rivals.split(";")] if options.rivals else [*contest.rivals]
    if unheard := {*rivals} - {*contest.rivals}:
        parser.error(f"--rivals {', '.join(sorted(unheard))}: give some of {', '.join(contest.rivals)}")
    folder = options.runs / contest.name
    if options.json:
        adopt(contest, folder / "records.jsonl", options.json)
    some = contest.budgets
    if options.budgets:
        some = tuple(budget for budget in contest.budgets if str(budget) in options.budgets.split(","))
    found = run(contest, folder, rivals, seeds[:1] if options.quick else seeds, some)
    print(f"{contest.name}; one thread of {processor('cpu')}, networks on {options.device}; torch {torch.__version__}")
    print(shown(contest, found))
    if options.json:
        keep(contest, found, options.json)
    return contest
