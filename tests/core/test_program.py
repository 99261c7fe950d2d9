"""A program computes what its network does, and a file of one is only read where it holds operators and weights."""

import io
import json
import zipfile
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lab.core import program
from lab.core.program import Program, Unbuilt
from lab.core.training import seeded

WEIGHTS, CONSTANTS = program.CONFIGS


class Branches(nn.Module):
    """Two inputs by name, two outputs, a batch norm and sizes that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x, scale):
        y = self.drop(self.norm(self.conv(x))) * scale[:, None, None, None]
        return {"maps": y, "rows": y.reshape(y.shape[0] * 2, -1)}


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, dict]:
    with seeded(0):
        return Branches().eval(), {"x": torch.randn(1, 1, 8, 8), "scale": torch.randn(1)}


@pytest.fixture(scope="module")
def content(network) -> bytes:
    return program.to_bytes(*network)


def test_it_computes_the_same_on_any_batch(network, content):
    model, _ = network
    read = Program(content)
    for count in (1, 2, 5):
        x = {"x": torch.randn(count, 1, 8, 8), "scale": torch.randn(count)}
        with torch.no_grad():
            mine, its = model(**x), read(**x)
        assert all(torch.equal(mine[name], its[name]) for name in mine) and mine.keys() == its.keys()
    assert read.train() is read and read.eval() is read and not read.training
    assert program.to_bytes(read, x) == content


def test_the_file_holds_no_pickle_and_no_path_of_this_machine(content, tmp_path):
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        records = {name: file.read(name) for name in file.namelist()}
    assert not [name for name, data in records.items() if data[:2] == b"PK" or data[:1] == b"\x80"]
    assert b"site-packages" not in content and b".py" not in content
    path = program.write(Program(content), tmp_path / "net.pt2", {})
    assert torch.export.load(path)  # without the lab


def test_the_same_network_gives_the_same_file(network, content):
    assert program.to_bytes(*network) == content


def changed(content: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """The file with its records changed."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        records = {name.removeprefix("archive/"): file.read(name) for name in file.namelist()}
    change(records)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as file:
        for name, data in records.items():
            file.writestr(f"archive/{name}", data)
    return written.getvalue()


def edited(name: str, old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    def change(records: dict[str, bytes]) -> None:
        text = records[name].decode()
        assert old in text
        records[name] = text.replace(old, new, 1).encode()

    return change


def added(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda records: records.update({name: data})


CONV = "torch.ops.aten.conv2d.default"
UNSAFE = {
    "a pickle for samples": added(program.SAMPLES, b"\x80\x04."),
    "weights in the older form": added("data/weights/model.pt", b"\x80\x04."),
    "another record": added("data/aotinductor/model/a.so", b"\x7fELF"),
    "a pickled weight": edited(WEIGHTS, '"use_pickle": false', '"use_pickle": true'),
    "a weight from elsewhere": edited(WEIGHTS, '"weight_0"', '"../weight_0"'),
    "an object as a constant": edited(
        CONSTANTS, "{}", '{"a": {"path_name": "opaque_obj_0", "is_param": false, "use_pickle": false}}'
    ),
    "a function of torch": edited(program.GRAPH, CONV, "torch.load"),
    "a function within torch": edited(program.GRAPH, CONV, "torch.hub.os.system"),
    "a function of operator": edited(program.GRAPH, CONV, "_operator.attrgetter"),
    "an operator that opens files": edited(program.GRAPH, CONV, "torch.ops.aten.from_file.default"),
    "another library's operator": edited(program.GRAPH, CONV, "torch.ops.mine.conv2d.default"),
    "code as a size": edited(program.GRAPH, '"expr_str": "', '"expr_str": "__import__(\'os\').getcwd()'),
    "an attribute in a size": edited(program.GRAPH, '"expr_str": "', '"expr_str": "Max.mro'),
    "a module to import": edited(program.GRAPH, '"in_spec": "', '"in_spec": "__enum__'),
    "a module to import, escaped": edited(program.GRAPH, '"in_spec": "', '"in_spec": "\\\\u005f_enum__'),
}


@pytest.mark.parametrize("what", UNSAFE)
def test_a_file_that_could_run_code_is_not_read(content, what, monkeypatch):
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"holds more than operators and weights \(.*\): it is not read") as caught:
        Program(changed(content, UNSAFE[what]))
    assert "\n" not in str(caught.value)


def test_the_changed_file_is_read_where_nothing_was_changed(network, content):
    model, x = network
    with torch.no_grad():
        assert torch.equal(Program(changed(content, lambda records: None))(**x)["maps"], model(**x)["maps"])


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: b"no archive at all",
        lambda content: content[: len(content) // 2],
        lambda content: changed(content, lambda records: records.pop(program.GRAPH)),
        lambda content: changed(content, added(program.GRAPH, b"[]")),
        lambda content: changed(content, added(WEIGHTS, b"{}")),
        lambda content: changed(content, added(program.GRAPH, json.dumps({"graph_module": 1}).encode())),
        lambda content: changed(content, lambda records: records.pop("data/weights/weight_0")),
        lambda content: changed(content, edited(program.GRAPH, CONV, "torch.ops.aten.no_such.default")),
    ],
)
def test_a_file_that_is_no_program_is_told_in_one_line(content, change):
    with pytest.raises(ValueError, match=r"^model.pt2 ") as caught:
        Program(change(content))
    assert "\n" not in str(caught.value)


def test_two_records_of_one_name(content):
    written = io.BytesIO(content)
    with zipfile.ZipFile(written, "a", zipfile.ZIP_STORED) as file:
        file.writestr("another/models/model.json", b"{}")
    with pytest.raises(ValueError, match="two records have one name"):
        Program(written.getvalue())


class Looping(nn.Module):
    """As many rounds as the numbers say."""

    def forward(self, x):
        while x.sum() > 1:
            x = x / 2
        return x


def test_a_network_that_torch_cannot_export_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"torch.export cannot write Looping \(.*\): keep the class") as caught:
        program.write(Looping(), tmp_path / "net.pt2", torch.ones(1, 3))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_program_that_computes_something_else_is_not_written(network, monkeypatch):
    monkeypatch.setattr(program, "_same", lambda *_: False)
    with pytest.raises(ValueError, match="writes Branches as another function"):
        program.to_bytes(*network)


def test_what_a_program_lacks_is_told(content):
    for lacking in (Program(content), Unbuilt()):
        with pytest.raises(ValueError, match=r"'conv'.*call lab.load\(folder, base=net\)") as caught:
            _ = lacking.conv
        assert "\n" not in str(caught.value) and not hasattr(lacking, "conv")
