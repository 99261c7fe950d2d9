"""Graphs, spaces of them, and the tables they are read from."""

import gzip
import io
import itertools
import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest
import torch

import lab
from lab.core.data import inflating
from lab.core.spaces import cells, streams, tables

NASBENCH201 = Path(__file__).parents[3] / "../shared/data/nas/nasbench201_compact.csv.gz"
needs_nasbench201 = pytest.mark.skipif(not NASBENCH201.exists(), reason="the table of NAS-Bench-201 is not here")


# -- graphs ------------------------------------------------------------------------------------------------------------


def test_nodes_are_renumbered_along_the_flow():
    graph = lab.Graph(("out", "in", "a"), ((1, 2), (2, 0)))
    assert graph.operators == ("in", "a", "out") and graph.edges == ((0, 1), (1, 2))


@pytest.mark.parametrize(
    "edges, message",
    [
        (((0, 1), (1, 2), (2, 0)), r"the graph has a cycle \(.*\): edges must point along"),
        (((0, 3),), r"edge 0 -> 3: the graph has nodes 0\.\.2"),
    ],
)
def test_what_is_no_graph_is_refused(edges, message):
    with pytest.raises(ValueError, match=message):
        lab.Graph(("a", "b", "c"), edges)


def test_a_stage_for_each_node():
    with pytest.raises(ValueError, match="give one for each of the 2 nodes"):
        lab.Graph(("a", "b"), ((0, 1),), (0,))


def pair(**fields) -> lab.Space:
    graphs = [lab.Graph.chain(("a", "b")), lab.Graph.chain(("b", "a"))]
    return lab.Space(**({"graphs": graphs, "labels": torch.tensor([1.0, 2.0])} | fields))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"graphs": [lab.Graph.chain("ab")]}, "graphs holds 1 architectures: give at least two"),
        ({"graphs": [lab.Graph.chain("ab")] * 2}, r"row 1 \(architecture 1\): column 'graphs' repeats .* of row 0"),
        ({"labels": torch.tensor([1.0, float("nan")])}, r"row 1 \(architecture 1\): column 'labels' is empty"),
        ({"labels": torch.tensor([1.0, float("inf")])}, "column 0 of 'labels' is infinite"),
        ({"labels": torch.zeros(3)}, r"labels has shape \(3, 1\) for 2 architectures"),
        ({"labels": None}, "give labels .* or train"),
        ({"train": len}, "give labels .* or train"),
        ({"labels": None, "train": len, "truth": torch.zeros(2)}, "truth is known for tables only"),
        ({"weak": {"w": torch.zeros(3)}}, "column 'w' has 3 values for 2 architectures"),
        ({"costs": {"c": torch.tensor([1.0, float("nan")])}}, r"row 1 \(architecture 1\): column 'c' holds nan"),
        ({"choices": [("a",)]}, "choices has 1 entries for 2 architectures"),
    ],
)
def test_a_table_that_is_not_whole_names_row_and_column(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        pair(**fields)
    assert "\n" not in str(caught.value)


# -- cells -------------------------------------------------------------------------------------------------------------


def test_the_notation_goes_there_and_back():
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|nor_conv_3x3~2|"
    assert cells.text(cells.parse(text)) == text


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|",
            "unknown operator 'conv': this space has none, skip_connect",
        ),
        ("|none~0|", "is not a cell: give"),
    ],
)
def test_what_is_no_cell_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        cells.parse(text)


def test_the_line_graph_of_a_cell():
    graph = cells.graph(("a", "b", "c", "d", "e", "f"))
    named = {(graph.operators[u], graph.operators[v]) for u, v in graph.edges}
    assert named == {
        ("input", "a"),
        ("input", "b"),
        ("input", "d"),
        ("a", "c"),
        ("a", "e"),
        ("b", "f"),
        ("c", "f"),
        ("d", "output"),
        ("e", "output"),
        ("f", "output"),
    }


def test_cells_of_one_function_are_one():
    assert cells.function(("skip_connect", "none", "nor_conv_1x1", "none", "none", "skip_connect")) == cells.function(
        ("none", "nor_conv_1x1", "none", "none", "none", "skip_connect")
    )
    found = cells.distinct(cells.OPERATORS[:4])
    assert len(found) == len({cells.function(cell) for cell in itertools.product(cells.OPERATORS[:4], repeat=6)}) == 871


# -- tables ------------------------------------------------------------------------------------------------------------


def test_the_labs_cells():
    space = lab.tasks.cells()
    assert len(space) == 871 and space.labels.shape == (871, 2) and next(iter(space.weak)) == "supernet"
    assert set(space.costs) == {"parameters", "macs", "latency_ms"}
    assert space.truth.max() > 90


def table(**columns) -> pd.DataFrame:
    archs = [
        "|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|",
        "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|",
    ]
    known = {
        "index": [0, 1],
        "arch_str": archs,
        "c10_test": [90.0, 80.0],
        "c10_test_seeds": ["89.5;90.5", "80"],
        "oneshot_c10": [50.0, 40.0],
        "flops_m": [2.0, 1.0],
        "params_m": [0.2, 0.1],
    }
    return pd.DataFrame(known | columns)


def stored(frame: pd.DataFrame, folder: Path) -> Path:
    frame.to_csv(folder / "table.csv.gz", index=False)
    return folder / "table.csv.gz"


def test_a_table_of_ones_own_in_the_form_of_nasbench201(tmp_path):
    times = tmp_path / "times.csv"
    pd.DataFrame({"index": [1, 0], "phone": [3.0, 5.0]}).to_csv(times, index=False)
    space = lab.tables.nasbench201(stored(table(), tmp_path), latency=times)
    assert space.labels.tolist()[0] == [89.5, 90.5] and space.labels[1].isnan().tolist() == [False, True]
    assert space.truth.tolist() == [90, 80] and space.costs["latency_ms phone"].tolist() == [5, 3]
    assert space.costs["macs"].tolist() == [2e6, 1e6]


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"flops_m": ["2", "many"]}, "row 1: column 'flops_m' holds 'many': give a number"),
        ({"c10_test": [90.0, None]}, "row 1: column 'c10_test' holds 'nan'"),
        ({"arch_str": ["|none~0|"] * 2}, "row 0: column 'arch_str': .* is not a cell"),
        ({"arch_str": [table().arch_str[0]] * 2}, "row 1: column 'arch_str' repeats the cell of row 0"),
    ],
)
def test_a_broken_table_names_row_and_column(columns, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        lab.tables.nasbench201(stored(table(**columns), tmp_path))


def test_a_table_with_other_columns(tmp_path):
    path = stored(table().rename(columns={"flops_m": "gflops"}), tmp_path)
    with pytest.raises(ValueError, match="column 'flops_m' is missing: the table has index, arch_str"):
        lab.tables.nasbench201(path)
    with pytest.raises(ValueError, match="NAS-Bench-201 has cifar10, cifar100"):
        lab.tables.nasbench201(path, "svhn")
    (tmp_path / "no.csv").write_bytes(b"")
    with pytest.raises(ValueError, match="is no table"):
        lab.tables.nasbench201(tmp_path / "no.csv")


@pytest.mark.slow
@needs_nasbench201
def test_nasbench201_is_what_was_published():
    optima = {}
    for dataset in tables.NASBENCH201:
        space = lab.tables.nasbench201(NASBENCH201, dataset)
        optima[dataset] = round(float(space.truth.max()), 2)
        assert len(space) == 15_625
    assert optima == {"cifar10": 94.37, "cifar100": 73.51, "imagenet16-120": 47.31}
    row = space.names.index(cells.text(["nor_conv_3x3"] * 6))
    assert float(space.costs["macs"][row]) == pytest.approx(220.12e6, rel=1e-4)
    assert float(space.costs["parameters"][row]) == 1_531_546


def test_nasbench_macro(tmp_path):
    known = {
        arch: {"test_acc": [90.0, 91.0, 92.0], "mean_acc": 91.0, "std": 1.0, "params": 5, "flops": 7}
        for arch in ("00000000", "22212220", "01000000", "00010000", "00001000")
    }
    path = tmp_path / "macro.json.gz"
    path.write_bytes(gzip.compress(json.dumps(known).encode()))
    space = lab.tables.nasbench_macro(path)
    assert len(space) == 4 and space.chain  # the last two are one network
    assert space.graphs[0][0].operators == ("identity",) * 3 and space.labels.shape == (4, 3)
    path.write_bytes(json.dumps({"0000": {}}).encode())
    with pytest.raises(ValueError, match="row 0: column 'arch' holds '0000': give eight digits"):
        lab.tables.nasbench_macro(path)
    path.write_bytes(json.dumps({"00000000": {"test_acc": []}}).encode())
    with pytest.raises(ValueError, match=r"row 0 \(00000000\): column 'params' is missing"):
        lab.tables.nasbench_macro(path)


def mnasnet(layers: int, top1: float) -> dict:
    arch = {
        f"block{b}_{c}": value for b in range(7) for c, value in (("e", 6), ("k", 3), ("l", layers), ("se", "True"))
    }
    performance = {
        "throughput_a100": {"throughput_mean": 1000.0 / layers},
        "latency_zcu102": {"latency_mean": 2.0 * layers},
    }
    return {"architecture": arch, "metrics": {"val_top1": top1}, "platform_perf": performance}


def test_accel_nasbench(tmp_path):
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        for i in (1, 2, 3):
            content = json.dumps(mnasnet(i, 50.0 + i)).encode()
            (tmp_path / f"result_{i}.json").write_bytes(content)
            member = tarfile.TarInfo(f"results/result_{i}.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for path in (tmp_path / "all.tar.gz", tmp_path):
        space = lab.tables.accel_nasbench(path)
        assert len(space) == 3 and space.chain and space.labels[:, 0].tolist() == [51, 52, 53]
        assert space.costs["latency_zcu102"].tolist() == [2, 4, 6] and len(space.graphs[0][0].stages) == 7
    (tmp_path / "result_4.json").write_text(json.dumps({"architecture": {}}))
    with pytest.raises(ValueError, match=r"row result_4\.json: column 'block0_e' is missing"):
        lab.tables.accel_nasbench(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no result files"):
        lab.tables.accel_nasbench(tmp_path / "none")


def test_nasbench_graph_is_read_without_running_what_is_in_it():
    pytest.importorskip("nas_bench_graph", reason="the extra 'tables' is not installed")
    space = lab.tables.nasbench_graph("proteins")
    assert len(space) == 2021 and space.names[0].count(" ") == 4
    assert float(space.truth.max()) == pytest.approx(79.2634, abs=1e-3)
    with pytest.raises(ValueError, match="NAS-Bench-Graph has arxiv"):
        lab.tables.nasbench_graph("imagenet")


def test_a_harmful_pickle_is_only_looked_at(tmp_path):
    import pickle

    class Harm:
        def __reduce__(self):
            return (exec, ("raise SystemExit('run')",))

    content = pickle.dumps({1111: {"perf": 0.5, "para": 2.0, "latency": Harm()}}, protocol=3)
    assert dict(tables._records(content)) == {1111: {"perf": 0.5, "para": 2.0}}


# -- what is no table --------------------------------------------------------------------------------------------------


def one_line(read, path, words):
    with pytest.raises(ValueError, match=words) as caught:
        read(path)
    assert "\n" not in str(caught.value)


MACRO = {"test_acc": [90.0, 91.0, 92.0], "params": 5, "flops": 7}


@pytest.mark.parametrize(
    "known, words",
    [
        ([MACRO], r"macro\.json is a list of \[\{'test_acc': .*: give \{arch: \{test_acc"),
        ({}, "is a dict of {}"),
        ({"00000000": "many"}, r"row 0 \(00000000\) holds 'many': give \{test_acc: \[3 numbers\], params, flops\}"),
        ({"00000000": [90.0, 5, 7]}, "holds .90.0, 5, 7."),
        ({"00000000": MACRO | {"test_acc": "90"}}, "column 'test_acc' holds '90': give a list of 3 numbers"),
        ({"00000000": MACRO, "00000001": MACRO | {"test_acc": [90.0]}}, r"row 1 \(00000001\): column 'test_acc' holds"),
        (
            {"00000000": MACRO | {"test_acc": [90.0, "91", 92.0]}},
            "column 'test_acc' holds '91': give a number in 0..100",
        ),
        ({"00000000": MACRO | {"test_acc": [90.0, -1.0, 92.0]}}, "column 'test_acc' holds -1.0"),
        ({"00000000": MACRO | {"test_acc": [90.0, 101, 92.0]}}, "column 'test_acc' holds 101"),
        ({"00000000": MACRO | {"test_acc": [90.0, float("nan"), 92.0]}}, "column 'test_acc' holds nan"),
        ({"00000000": MACRO | {"params": -5}}, "column 'params' holds -5: give a number, 0 or more"),
        ({"00000000": MACRO | {"flops": float("inf")}}, "column 'flops' holds inf"),
        ({"00000000": MACRO | {"flops": 10**400}}, "column 'flops' holds 1000"),
        ({"00000000": MACRO | {"params": None}}, "column 'params' holds None"),
    ],
)
def test_a_macro_table_of_another_form_is_one_line(tmp_path, known, words):
    (tmp_path / "macro.json").write_text(json.dumps(known))
    one_line(lab.tables.nasbench_macro, tmp_path / "macro.json", words)


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b"\xff", gzip.compress(b"{}", mtime=0)[:-9], b"\x1f\x8brubbish"]
)
def test_what_is_no_json_is_one_line(tmp_path, content):
    (tmp_path / "macro.json").write_bytes(content)
    one_line(lab.tables.nasbench_macro, tmp_path / "macro.json", r"macro\.json is no JSON")
    one_line(lab.tables.nasbench_macro, tmp_path, "is no JSON")


def test_no_table_is_inflated_beyond_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(inflating, "LEAST", 2**16)
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(10**7)))
    one_line(lab.tables.nasbench_macro, tmp_path / "a.gz", r"inflates to more than [\d,]+ bytes")
    one_line(lab.tables.nasbench201, tmp_path / "a.gz", r"inflates to more than [\d,]+ bytes")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.gz", "x.json")
        member = tarfile.TarInfo("y.json")
        member.size = 10**7
        archive.addfile(member, io.BytesIO(bytes(10**7)))
    one_line(lab.tables.accel_nasbench, tmp_path / "a.tar.gz", r"cannot be read")


@pytest.mark.parametrize(
    "content", [b"", b"rubbish" * 200, gzip.compress(b"rubbish" * 200, mtime=0), gzip.compress(b"a" * 99, mtime=0)[:-9]]
)
def test_a_broken_archive_is_one_line(tmp_path, content):
    (tmp_path / "all.tar.gz").write_bytes(content)
    one_line(lab.tables.accel_nasbench, tmp_path / "all.tar.gz", r"all\.tar\.gz cannot be read")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"metrics": {"val_top1": 101.0}}, r"row r\.json: column 'val_top1' holds 101.0: give a number in 0..100"),
        ({"metrics": {"val_top1": float("inf")}}, "column 'val_top1' holds inf"),
        ({"metrics": [1]}, "is missing or of another form"),
        ({"platform_perf": [1]}, "is missing or of another form"),
        (
            {"platform_perf": {"latency_a": {"latency_mean": -2.0}}},
            "column 'latency_a' holds -2.0: give a number, 0 or",
        ),
    ],
)
def test_a_result_of_another_form_is_one_line(tmp_path, change, words):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "r.json").write_text(json.dumps(mnasnet(1, 50.0) | change))
    one_line(lab.tables.accel_nasbench, tmp_path, words)
    (tmp_path / "r.json").write_text("[1]")
    one_line(lab.tables.accel_nasbench, tmp_path, "row r.json: column .* is missing or of another form")


@pytest.mark.parametrize(
    "columns, words",
    [
        ({"c10_test": [90.0, 101.0]}, "row 1: column 'c10_test' holds '101.0': give a number in 0..100"),
        ({"c10_test_seeds": ["89;90", "-1"]}, "row 1: column 'c10_test_seeds' holds '-1': give a number in 0..100"),
        ({"c10_test_seeds": ["89;many", "80"]}, "row 0: column 'c10_test_seeds' holds '89;many'"),
        ({"c10_test_seeds": ["89;inf", "80"]}, "row 0: column 'c10_test_seeds' holds '89;inf'"),
        ({"oneshot_c10": [-3.0, 40.0]}, "row 0: column 'oneshot_c10' holds '-3.0'"),
        ({"params_m": [0.2, -0.1]}, "row 1: column 'params_m' holds '-0.1': give a number, 0 or more"),
        ({"flops_m": [float("inf"), 1.0]}, "row 0: column 'flops_m' holds 'inf'"),
    ],
)
def test_numbers_that_cannot_be_are_one_line(columns, words, tmp_path):
    one_line(lab.tables.nasbench201, stored(table(**columns), tmp_path), words)


def test_detectors_with_scores_that_cannot_be_are_one_line(tmp_path):
    lines = "domain,width,side,iou,ratio,weight,optimiser,ap50\n{},0.5,128,0.35,3,1.0,sgd,{}\n"
    for domain, value, words in (
        ("small", "-5", "row 0: column 'ap50' holds '-5': give a number in 0..100"),
        ("small", "good", "row 0: column 'ap50' holds 'good'"),
        ("small", "inf", "row 0: column 'ap50' holds 'inf'"),
        ("dogs", "5", "domain 'dogs': there are portraits, groups"),
    ):
        path = tmp_path / f"{domain}{value}.csv"
        path.write_text(lines.format(domain, value))
        one_line(streams.detectors, path, words)
