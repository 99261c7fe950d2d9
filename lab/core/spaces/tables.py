"""Tables of architectures that somebody has trained, read from files into spaces: nothing is downloaded.

Every reader gives a one-line error that names the row and the column of what it cannot use.
"""

import importlib.util
import io
import json
import math
import pickletools
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import store
from ..data import inflating
from ..distribution import install, needed
from ..errors import cut, first_line, shown
from . import cells
from .architectures import Graph, Space

if TYPE_CHECKING:  # pandas takes longer to import than all of the lab: only tables that are read bring it
    import pandas as pd

NASBENCH201 = {"cifar10": "c10_test", "cifar100": "c100_test", "imagenet16-120": "in16_test"}
NASBENCHGRAPH = ("arxiv", "citeseer", "computers", "cora", "cs", "photo", "physics", "proteins", "pubmed")
_LINKS = ("0000", "0001", "0011", "0012", "0013", "0111", "0112", "0122", "0123")  # where each of four nodes reads
_LAYERS = ("gat", "gcn", "gin", "cheb", "sage", "arma", "graph", "fc", "skip")
_PERFORMANCE = ("valid_perf", "perf", "latency", "para")
_MACRO = {"0": "identity", "1": "mb3_k3", "2": "mb6_k5"}


def lab_cells() -> Space:
    """Every cell of four operators, trained by the lab on the digits: see `lab.tasks.cells`."""
    table = read_csv(store.artefact("cells/cells.csv.gz"))
    _validate(table, "arch", "valid_0", "valid_1", "test_0", "test_1", "supernet", "parameters", "macs", "latency_ms")
    costs = {name: numbers(table, name) for name in ("parameters", "macs", "latency_ms")}
    return Space(
        graphs=_cells(table, "arch"),
        names=tuple(table["arch"]),
        choices=[cells.parse(text) for text in table["arch"]],
        labels=torch.stack([numbers(table, name, 100) for name in ("valid_0", "valid_1")], 1),
        truth=torch.stack([numbers(table, name, 100) for name in ("test_0", "test_1")], 1).mean(1),
        weak={"supernet": numbers(table, "supernet", 100), **_no_latency(costs)},
        costs=costs,
        name="cells",
    )


def nasbench201(
    path: str | Path, dataset: str = "cifar10", *, supernet: str = "oneshot", latency: str | Path | None = None
) -> Space:
    """All cells of NAS-Bench-201 (Dong and Yang, 2020) from a CSV file, plain or gzipped, one row a cell.

    Its columns: arch_str in the benchmark's notation; the test accuracy in percent c10_test, c100_test or in16_test,
    and for CIFAR-10 single trainings in c10_test_seeds ('85.62;86.18') where known; oneshot_c10 or fewshot_c10, a
    super-net's accuracy, by `supernet`; flops_m and params_m in millions. `latency` is a second table in ms, a column a
    device and a row a cell, joined by its column index. Raises ValueError naming row and column.
    """
    if dataset not in NASBENCH201:
        raise ValueError(f"dataset={dataset!r}: NAS-Bench-201 has {', '.join(NASBENCH201)}")
    if supernet not in ("oneshot", "fewshot"):
        raise ValueError(f"supernet={supernet!r}: give 'oneshot' or 'fewshot'")
    table, column = read_csv(path), NASBENCH201[dataset]
    _validate(table, "arch_str", column, f"{supernet}_c10", "flops_m", "params_m")
    costs = {"parameters": numbers(table, "params_m") * 1e6, "macs": numbers(table, "flops_m") * 1e6}
    return Space(
        graphs=_cells(table, "arch_str"),
        names=tuple(table["arch_str"]),
        choices=[cells.parse(text) for text in table["arch_str"]],
        labels=_trainings(table, column),
        truth=numbers(table, column, 100),
        weak={supernet: numbers(table, f"{supernet}_c10", 100), **costs},
        costs=costs | (_latencies(table, latency) if latency else {}),
        name=f"NAS-Bench-201 {dataset}",
    )


def nasbench_macro(path: str | Path) -> Space:
    """NAS-Bench-Macro (Su et al., 2021): eight blocks of three kinds on CIFAR-10, from its JSON file, plain or gzipped.

    {arch: {test_acc: [3 numbers], params, flops}}, arch one digit a block. Identities leave the chain shorter; what is
    then the same network is kept once.
    """
    tree = _read_json(path)
    if not isinstance(tree, dict) or not tree:
        raise ValueError(f"{path} is a {type(tree).__name__} of {shown(tree)}: give {{arch: {{test_acc, ...}}}}")
    rows: dict[Graph, tuple[str, dict[str, Any]]] = {}
    for number, (arch, record) in enumerate(tree.items()):
        if len(arch) != 8 or set(arch) - set(_MACRO):
            raise ValueError(
                f"{path} row {number}: column 'arch' holds {shown(arch)}: give eight digits, each 0, 1 or 2"
            )
        rows.setdefault(_macro(arch), (arch, _macro_record(f"{path} row {number} ({arch})", record)))
    archs, values = zip(*rows.values(), strict=True)
    costs = {"parameters": _plain(values, "params"), "macs": _plain(values, "flops")}
    return Space(
        graphs=list(rows),
        names=archs,
        choices=[tuple(arch) for arch in archs],
        weak=costs,
        costs=costs,
        chain=True,
        labels=torch.tensor([record["test_acc"] for record in values], dtype=torch.float64),  # (n, 3)
        name="NAS-Bench-Macro",
    )


def _macro_record(row: str, record: Any) -> dict[str, Any]:
    """Three accuracies and two costs, as numbers."""
    if not isinstance(record, dict):
        raise ValueError(f"{row} holds {shown(record)}: give {{test_acc: [3 numbers], params, flops}}")
    if missing := [column for column in ("test_acc", "params", "flops") if column not in record]:
        raise ValueError(f"{row}: column {missing[0]!r} is missing")
    trained = record["test_acc"]
    if not isinstance(trained, list) or len(trained) != 3:
        raise ValueError(f"{row}: column 'test_acc' holds {shown(trained)}: give a list of 3 numbers")
    costs = {column: _number(row, column, record[column]) for column in ("params", "flops")}
    return {"test_acc": [_number(row, "test_acc", value, 100) for value in trained], **costs}


def accel_nasbench(path: str | Path) -> Space:
    """Accel-NASBench (Ahmad et al., 2024): MnasNets trained on ImageNet, from its archive or folder of JSON files.

    {architecture: {block0_e, block0_k, block0_l, block0_se, ...}, metrics: {val_top1}, platform_perf}. Costs are ms
    and pictures a second by device, where every file has them. A chain of seven blocks.
    """
    seen: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, record in _json_files(Path(path)):
        try:
            blocks = _mnasnet_blocks(record["architecture"])
            top1, perf = record["metrics"]["val_top1"], _perf(record)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} row {name}: column {first_line(error)} is missing or of another form") from error
        row = f"{path} row {name}"
        costs = {key: _number(row, key, value) for key, value in perf.items()}
        seen.setdefault(blocks, {"top1": _number(row, "val_top1", top1, 100), "perf": costs})
    if not seen:
        raise ValueError(f"{path} holds no result files: give Accel-NASBench's archive of JSON files, or its folder")
    shared = set.intersection(*(set(record["perf"]) for record in seen.values()))
    return Space(
        graphs=[Graph.chain(blocks, range(7)) for blocks in seen],
        choices=list(seen),
        chain=True,
        labels=_plain(list(seen.values()), "top1"),
        names=tuple(" | ".join(blocks) for blocks in seen),
        costs={name: torch.tensor([record["perf"][name] for record in seen.values()]) for name in sorted(shared)},
        name="Accel-NASBench",
    )


def _mnasnet_blocks(arch: Mapping[str, Any]) -> tuple[str, ...]:
    """The seven blocks as names of their decisions: expansion, kernel, layers, squeeze-and-excitation."""
    decisions = ("e", "k", "l", "se")
    return tuple(" ".join(f"{d}{arch[f'block{block}_{d}']}" for d in decisions) for block in range(7))


def nasbench_graph(dataset: str = "cora") -> Space:
    """NAS-Bench-Graph (Qin et al., 2022): graph networks of four layers, from its package; needs the extra `tables`.

    Labels are validation accuracies, truth the test accuracies, in percent.
    """
    rows = graph_records(dataset)
    archs, records = [graph_network(key) for key in rows], list(rows.values())
    costs = {"parameters": _plain(records, "para") * 1e6, "latency_ms": _plain(records, "latency") * 1e3}
    return Space(
        graphs=[graph for graph, _ in archs],
        choices=[choice for _, choice in archs],
        costs=costs,
        weak=costs,
        names=tuple(" ".join(choice) for _, choice in archs),
        name=f"NAS-Bench-Graph {dataset}",
        labels=100 * _plain(records, "valid_perf"),
        truth=100 * _plain(records, "perf"),
    )


def graph_records(dataset: str) -> dict[int, dict[str, float]]:
    """NAS-Bench-Graph's {key: {valid_perf, perf, latency, para}} of a data set: shares, shares, seconds, millions.

    The package keeps its tables as pickles: they are read as lists of opcodes, and nothing in them is run.
    """
    if dataset not in NASBENCHGRAPH:
        raise ValueError(f"dataset={dataset!r}: NAS-Bench-Graph has {', '.join(NASBENCHGRAPH)}")
    package = importlib.util.find_spec("nas_bench_graph")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(f"NAS-Bench-Graph comes as a package: {install('tables')}")
    path = Path(package.origin).parent / "light" / f"{dataset}.bench"
    records = dict(_records(path.read_bytes()))
    for key, record in records.items():
        for name in _PERFORMANCE:  # accuracies are shares
            _number(f"{path} row {key}", name, record.get(name), 1 if name.endswith("perf") else math.inf)
    return records


# -- parts of files ----------------------------------------------------------------------------------------------------


def read_csv(path: str | Path) -> "pd.DataFrame":
    """A table, plain or packed; ValueError in one line for a file that is none."""
    with needed():
        import pandas as pd

    try:
        return pd.read_csv(io.BytesIO(inflating.text(path)))
    except inflating.DAMAGE as error:
        reason = first_line(error)
        raise ValueError(f"{path} is no table ({reason}): give a CSV file") from error


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(inflating.text(path))
    except inflating.DAMAGE as error:
        raise ValueError(f"{path} is no JSON ({first_line(error)}): give the benchmark's own file") from error


def _json_files(path: Path) -> Iterator[tuple[str, Any]]:
    if path.is_dir():
        for file in sorted(filter(Path.is_file, path.rglob("*.json"))):
            yield file.name, _read_json(file)
        return
    members: dict[str, Any] = {}
    reading, count = str(path), 0
    try:
        for name, stream in inflating.files(path):
            if name.endswith(".json"):
                reading, content = f"{path}: {name}", stream.read()
                count = inflating.validate_values(path, content, count)
                members[name] = json.loads(content)
    except inflating.DAMAGE as error:
        raise ValueError(f"{reading} cannot be read ({first_line(error)}): give an archive of JSON files") from error
    yield from sorted(members.items())


def _validate(table: "pd.DataFrame", *columns: str) -> None:
    for name in columns:
        if name not in table.columns:
            raise ValueError(f"column {name!r} is missing: the table has {cut(', '.join(table.columns))}")


def numbers(table: "pd.DataFrame", column: str, most: float = math.inf) -> torch.Tensor:
    """A column of numbers from 0 to `most`, all finite."""
    with needed():
        import pandas as pd

    values = torch.tensor(pd.to_numeric(table[column], errors="coerce").to_numpy(float))
    if (bad := ~((values >= 0) & (values <= most) & values.isfinite())).any():
        row = int(bad.nonzero()[0])
        raise _no_number(f"row {row}", column, str(table[column].iloc[row]), most)
    return values


def _number(row: str, column: str, value: Any, most: float = math.inf) -> float:
    """A number of JSON from 0 to `most`, finite."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= min(most, 1e300):
        raise _no_number(row, column, value, most)
    return float(value)


def _no_number(row: str, column: str, value: Any, most: float) -> ValueError:
    allowed = "a number, 0 or more" if most == math.inf else f"a number in 0..{most:g}"
    return ValueError(f"{row}: column {column!r} holds {shown(value)}: give {allowed}")


def _cells(table: "pd.DataFrame", column: str) -> list[Graph]:
    graphs: dict[str, Graph] = {}
    for row, text in enumerate(table[column]):
        if text in graphs:
            first = list(graphs).index(text)
            raise ValueError(f"row {row}: column {column!r} repeats the cell of row {first}: keep one")
        try:
            graphs[text] = cells.graph(cells.parse(str(text)))
        except ValueError as error:
            raise ValueError(f"row {row}: column {column!r}: {first_line(error)}") from error
    return list(graphs.values())


def _trainings(table: "pd.DataFrame", column: str) -> torch.Tensor:
    """(n, most) the single trainings of each row, NaN where there were fewer; the mean where none is told apart."""
    if (seeds := f"{column}_seeds") not in table.columns:
        return numbers(table, column, 100)
    runs: list[list[float]] = []
    for row, text in enumerate(table[seeds].fillna("").astype(str)):
        try:
            runs.append([float(part) for part in text.split(";")])
        except ValueError:
            raise _no_number(f"row {row}", seeds, text, 100) from None
        if not all(0 <= value <= 100 for value in runs[-1]):
            raise _no_number(f"row {row}", seeds, text, 100)
    most = max(map(len, runs), default=0)
    return torch.tensor([[*run, *[math.nan] * (most - len(run))] for run in runs], dtype=torch.float64)


def _latencies(table: "pd.DataFrame", path: str | Path) -> dict[str, torch.Tensor]:
    times = read_csv(path)
    _validate(times, "index")
    _validate(table, "index")
    joined = times.set_index("index").reindex(table["index"])
    return {f"latency_ms {device}": numbers(joined.reset_index(), device) for device in joined.columns}


def _no_latency(costs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values for name, values in costs.items() if not name.startswith("latency")}


def _plain(rows: Sequence[Mapping[str, float]], name: str) -> torch.Tensor:
    return torch.tensor([float(row[name]) for row in rows], dtype=torch.float64)


def _macro(arch: str) -> Graph:
    stages = (0, 0, 1, 1, 1, 2, 2, 2)  # a stage's first block shrinks the picture, so that it is never left out
    kept = [
        (_MACRO[digit], stage)
        for i, (digit, stage) in enumerate(zip(arch, stages, strict=True))
        if digit != "0" or i in (0, 2, 5)
    ]
    return Graph.chain([operator for operator, _ in kept], [stage for _, stage in kept])


def _perf(record: Mapping[str, Any]) -> dict[str, float]:
    means = {}
    for name, values in record.get("platform_perf", {}).items():
        metric = name.partition("_")[0]
        if f"{metric}_mean" in values:
            means[name] = values[f"{metric}_mean"]
    return means


def graph_network(key: int) -> tuple[Graph, tuple[str, ...]]:
    """A network of the benchmark by its key, five decimal digits: how its layers are linked, and what the four are."""
    if not isinstance(key, int) or not 0 <= key < 10_000 * len(_LINKS):
        raise ValueError(f"key={key!r}: NAS-Bench-Graph has integers of five digits, 0 to {10_000 * len(_LINKS) - 1}")
    first, *rest = map(int, f"{key:05d}")
    operators, link = tuple(_LAYERS[digit] for digit in rest), _LINKS[first]
    edges = [(int(source), node + 1) for node, source in enumerate(link)]
    ends = [(node, 5) for node in range(1, 5) if str(node) not in link]  # what nobody reads goes to the output
    return Graph(("input", *operators, "output"), tuple(edges + ends)), (link, *operators)


def _records(content: bytes) -> Iterator[tuple[int, dict[str, float]]]:
    """{integer: {name: number}} out of a pickle's opcodes, which are read here and never run."""
    memo: dict[int, str] = {}
    key, name = 0, ""
    previous: Any = None
    record: dict[str, float] = {}
    value: Any
    for opcode, value, _ in pickletools.genops(content):
        if opcode.name == "EMPTY_DICT" and isinstance(previous, int):  # a key, and a record begins
            if record:
                yield key, record
            key, record = previous, {}
        elif opcode.name in ("BINPUT", "LONG_BINPUT") and isinstance(previous, str):
            memo[value] = previous
        elif opcode.name in ("BINUNICODE", "BINGET", "LONG_BINGET"):
            word = value if isinstance(value, str) else memo.get(value)
            name = word if word in _PERFORMANCE else name
        elif opcode.name == "BINFLOAT":
            record[name] = value
        elif opcode.name == "SHORT_BINBYTES":  # how a numpy number is kept
            (record[name],) = struct.unpack("<d", value)
        previous = value
    yield key, record
