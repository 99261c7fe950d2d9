"""What is stored comes back, damage is told in one line, and nothing in the lab is a pickle."""

import ast
import errno
import json
import math
import shutil
from pathlib import Path
from textwrap import indent

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lab
from lab.core import store

ROOT = Path(__file__).parents[2]
DTYPES = (
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.uint16, torch.complex64, torch.float8_e4m3fn,
)  # fmt: skip
FIRST = {"step": 1, "weights": torch.arange(6.0)}
SECOND = {"step": 2, "weights": torch.arange(6.0) + 1}


def alike(a, b) -> bool:
    """Whether two trees are equal to the last bit; a tuple comes back as a list."""
    if isinstance(a, torch.Tensor):
        same_kind = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return same_kind and _bytes(a) == _bytes(b)
    if isinstance(a, dict):
        pairs = isinstance(b, dict) and len(a) == len(b) and zip(a.items(), b.items(), strict=True)
        return bool(pairs) and all(type(k) is type(q) and alike(k, q) and alike(v, w) for (k, v), (q, w) in pairs)
    if isinstance(a, (list, tuple)):
        return isinstance(b, list) and len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def _bytes(x: torch.Tensor) -> list[int]:
    return x.detach().contiguous().reshape(-1).view(torch.uint8).tolist() if x.numel() else []


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds, hidden files included."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def told(caught, *words: str) -> str:
    """The error's message: one line, with these words in it."""
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    return message


# -- round trips -----------------------------------------------------------------------------------------------------

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.booleans() | st.integers() | st.text() | st.none() | st.floats(allow_nan=False)
shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.builds(
    lambda shape, dtype, seed: torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    shapes,
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
trees = st.recursive(
    plain | tensors,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(tree=st.dictionaries(keys, trees, max_size=4))
def test_any_tree_comes_back(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("tree")
    store.save(folder, "tree", tree)
    assert alike(tree, store.load(folder, "tree"))
    assert len(files(folder)) == 2
    shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_tensor_comes_back(tmp_path, dtype):
    square = torch.arange(12).reshape(3, 4).to(dtype)
    tree = {"whole": square, "turned": square.T, "part": square[:, 1], "none": square[:0], "one": square[0, 1]}
    store.save(tmp_path, "tensors", tree)
    assert alike(tree, store.load(tmp_path, "tensors"))


def test_shared_tensors_and_parameters_come_back_as_plain_tensors(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3))
    store.save(tmp_path, "shared", {"a": weight, "b": weight, "view": weight[1:]})
    found = store.load(tmp_path, "shared")
    assert alike(found, {"a": torch.ones(3), "b": torch.ones(3), "view": torch.ones(2)})
    assert not found["a"].requires_grad
    found["a"] += 1  # what is loaded can be written to, and is no longer shared
    assert found["b"].tolist() == [1, 1, 1]


def test_numbers_keep_kind_and_every_bit(tmp_path):
    tree = {1: 0.1 + 0.2, "1": True, False: 1e-320, None: [math.inf, -math.inf, -0.0], 2.5: 10**40, "nan": math.nan}
    store.save(tmp_path, "numbers", {"tree": tree})
    found = store.load(tmp_path, "numbers")["tree"]
    assert alike(tree, found)
    assert math.copysign(1, found[None][2]) == -1


def test_numpy_numbers_become_plain_ones(tmp_path):
    tree = {np.int64(3): [np.float32(0.5), np.float64(0.1), np.bool_(True), np.str_("a")]}
    store.save(tmp_path, "numpy", tree)
    assert alike({3: [0.5, 0.1, True, "a"]}, store.load(tmp_path, "numpy"))


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    for name in ("a", "b", "b"):
        store.save(tmp_path / name, "tree", FIRST)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_save_replaces_its_own_files_and_no_others(tmp_path):
    for name in ("stage", "stage-two", "stage.two"):
        store.save(tmp_path, name, FIRST)
    (tmp_path / "stage-notes.safetensors").write_bytes(b"mine")
    store.save(tmp_path, "stage", SECOND)
    assert len(files(tmp_path)) == 7
    assert alike(store.load(tmp_path, "stage"), SECOND)
    assert alike(store.load(tmp_path, "stage-two"), FIRST)
    assert alike(store.load(tmp_path, "stage.two"), FIRST)


@pytest.mark.parametrize(
    ("thing", "kind"),
    [
        (object(), "object"),
        ({1, 2}, "set"),
        (b"raw", "bytes"),
        (1j, "complex"),
        (np.zeros(2), "ndarray"),
        (torch.nn.Linear(1, 1), "Linear"),
        (len, "builtin_function_or_method"),
        ({(1, 2): 3}, "tuple"),
        ({torch.ones(1): 3}, "Tensor"),
        (torch.eye(2).to_sparse(), "sparse_coo float32"),
        (torch.empty(2, device="meta"), "meta"),
        (torch.zeros(2, dtype=torch.complex128), "strided complex128"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_stored_is_refused_before_anything_is_written(tmp_path, thing, kind):
    with pytest.raises(TypeError) as caught:
        store.save(tmp_path, "tree", {"deep": [{"down": thing}]})
    told(caught, "cannot store a", kind)
    assert files(tmp_path) == {}


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A folder with a save, its JSON file and its tensor file."""
    store.save(tmp_path, "tree", FIRST)
    (tensor_file,) = tmp_path.glob("*.safetensors")
    return tmp_path, tmp_path / "tree.json", tensor_file


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_torn_json(saved, share):
    folder, document, _ = saved
    text = document.read_bytes()
    document.write_bytes(text[: int(share * len(text))])
    with pytest.raises(ValueError, match="is damaged") as caught:
        store.load(folder, "tree")
    told(caught, str(document), "delete the folder and save it again")


@pytest.mark.parametrize(
    "text",
    [
        "no JSON\nat all",
        "[]",
        "null",
        "{}",
        '{"format": 1}',
        '{"format": 1, "tensors": "tree.json", "sha256": 3, "tree": {}}',
        "[" * 100_000,
        "\x00",
    ],
    ids=["words", "list", "null", "empty", "half", "wrong file", "deep", "zero"],
)
def test_corrupt_json(saved, text):
    folder, document, _ = saved
    document.write_text(text)
    with pytest.raises(ValueError, match="is damaged") as caught:
        store.load(folder, "tree")
    told(caught, str(document), "delete the folder and save it again")


@pytest.mark.parametrize("tree", ['{"tensor": "7"}', '{"dict": [[1]]}', '{"a": 1, "b": 2}', '{"list": 3}', "{}"])
def test_json_whose_tree_makes_no_sense(saved, tree):
    folder, document, _ = saved
    document.write_text(json.dumps(json.loads(document.read_text()) | {"tree": json.loads(tree)}))
    with pytest.raises(ValueError, match="is damaged") as caught:
        store.load(folder, "tree")
    told(caught, str(document), "delete the folder")


def test_bytes_that_are_no_text(saved):
    folder, document, _ = saved
    document.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is damaged") as caught:
        store.load(folder, "tree")
    told(caught, str(document))


def test_every_altered_character_of_the_json_is_found(saved):
    folder, document, _ = saved
    text = document.read_bytes()
    for at in range(len(text)):
        document.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        with pytest.raises(ValueError) as caught:
            store.load(folder, "tree")
        told(caught, str(document))


@pytest.mark.parametrize("change", ["altered", "missing"])
def test_a_file_beside_is_covered_by_the_digest(tmp_path, change):
    (tmp_path / "weights.bin").write_bytes(b"abc")
    store.save(tmp_path, "tree", FIRST, beside=["weights.bin"])
    assert alike(store.load(tmp_path, "tree"), FIRST)
    (tmp_path / "weights.bin").write_bytes(b"abd") if change == "altered" else (tmp_path / "weights.bin").unlink()
    with pytest.raises(ValueError, match="is damaged") as caught:
        store.load(tmp_path, "tree")
    told(caught, "weights.bin", "save it again")


def test_an_outcome_of_the_first_format_loads():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    found = lab.load(ROOT / "tests" / "data" / "formats" / "format-1", base=net)
    assert found.report["parameters"].after == 203 and len(found.trace) == 5
    assert found.model.get_parameter("6.weight")[0, :2].tolist() == [-0.23900817334651947, 0.3189312815666199]


@pytest.mark.parametrize("change", ["bit", "shorter", "longer", "empty"])
def test_altered_tensor_file(saved, change):
    folder, document, tensor_file = saved
    content = tensor_file.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    tensor_file.write_bytes({"bit": flipped, "shorter": content[:-1], "longer": content + b"0", "empty": b""}[change])
    with pytest.raises(ValueError, match="is damaged") as caught:
        store.load(folder, "tree")
    told(caught, str(document), tensor_file.name, "SHA-256", "delete the folder and save it again")


def test_missing_tensor_file(saved):
    folder, document, tensor_file = saved
    tensor_file.unlink()
    with pytest.raises(ValueError, match="is damaged") as caught:
        store.load(folder, "tree")
    told(caught, str(document), tensor_file.name, "delete the folder and save it again")


def test_a_tensor_file_outside_the_folder_is_never_read(saved):
    folder, document, tensor_file = saved
    (folder / "inner").mkdir()
    tensor_file.rename(folder / "elsewhere.safetensors")
    text = json.loads(document.read_text()) | {"tensors": "../elsewhere.safetensors"}
    (folder / "inner" / "tree.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match="is damaged"):
        store.load(folder / "inner", "tree")


@pytest.mark.parametrize("found", [0, 4, "1", True, None])
def test_another_format(saved, found):
    folder, document, _ = saved
    document.write_text(json.dumps(json.loads(document.read_text()) | {"format": found}))
    with pytest.raises(ValueError, match="has format") as caught:
        store.load(folder, "tree")
    message = told(caught, str(document), f"format {found!r}", "reads 1 to 3", "load it with the one that wrote it")
    assert "delete" not in message  # nothing is wrong with it


def test_folder_without_a_save(tmp_path):
    store.save(tmp_path, "other", FIRST)
    assert store.exists(tmp_path, "other") and not store.exists(tmp_path, "tree")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError) as caught:
            store.load(folder, "tree")
        told(caught, str(folder), "tree.json", "name a folder that was saved by the lab")


def test_a_file_that_may_not_be_read_is_not_called_damaged(saved, monkeypatch):
    folder, _, tensor_file = saved

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError) as caught:
        store.load(folder, "tree")
    assert "delete" not in told(caught, str(tensor_file), "Permission denied")


# -- no pickles ------------------------------------------------------------------------------------------------------

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def pickles(source: str) -> list[str]:
    """What in a module's source reads or writes a pickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in PICKLES and not node.level else []
            found += [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in UNSAFE]
        elif isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name == "torch.load" and keywords.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
            if name in ("torch.save", "torch.jit.save", "np.save", "numpy.save"):
                found.append(name)
            if keywords.get("allow_pickle", "False") != "False":
                found.append(f"{name} with allow_pickle")
    return found


UNSAFE = {"torch.load", "torch.save"}  # by these names only, so that the calls are found


@pytest.mark.parametrize("path", sorted((ROOT / "lab").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_pickle_anywhere(path):
    found = pickles(path.read_text(encoding="utf-8"))
    if path.name == "parallel.py":  # joblib runs the workers; it stores nothing for us
        found = [name for name in found if not name.startswith("joblib")]
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import a, dill.detect as d",
        "from cloudpickle import dumps",
        "import torch\ntorch.load('f')",
        "torch.load('f', weights_only=False)",
        "torch.save({}, 'f')",
        "from torch import save",
        "np.load('f', allow_pickle=True)",
    ],
)
def test_a_planted_pickle_is_found(line):
    assert pickles("def f():\n" + indent(line, "    "))
    assert not pickles("import torch\ntorch.load('f', weights_only=True)\nfrom .pickle import x\n")


# -- outcomes --------------------------------------------------------------------------------------------------------


def altered(tree: dict, change: str) -> dict:
    """The tree of a stored outcome with one thing wrong."""
    if change == "unknown field":
        return tree | {"fields": tree["fields"] | {"wings": 2}}
    if change == "value out of range":
        return tree | {"fields": tree["fields"] | {"lam": -1.0}}
    if change.startswith("no "):
        return {key: value for key, value in tree.items() if key != change.removeprefix("no ")}
    if change == "found without plan":
        return tree | {"found": {key: value for key, value in tree["found"].items() if key != "plan"}}
    return tree | {
        "found is a list": {"found": [1]}, "fields is a list": {"fields": [1]}, "trace is a number": {"trace": 3},
        "report is empty": {"report": {}}, "recipe is a list": {"recipe": ["GAL"]},
        "recipe is another": {"recipe": "X"}, "rows are words": {"report": {"title": "t", "rows": ["a"], "notes": []}},
    }[change]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    ["unknown field", "value out of range", "no found", "no recipe", "no fields", "no report", "no trace",
     "found without plan", "found is a list", "fields is a list", "trace is a number", "report is empty",
     "recipe is a list", "recipe is another", "rows are words"],
)  # fmt: skip
def test_an_outcome_that_is_none_is_told_in_one_line(tmp_path, change):
    first = ROOT / "tests" / "data" / "formats" / "format-1"
    store.save(tmp_path, "outcome", altered(store.load(first, "outcome"), change))
    with pytest.raises(ValueError) as caught:
        lab.load(tmp_path, base=nn.Conv2d(1, 4, 3))
    told(caught)


def test_a_base_that_is_no_network_and_a_folder_that_is_a_file(tmp_path):
    first = ROOT / "tests" / "data" / "formats" / "format-1"
    with pytest.raises(TypeError) as caught:
        lab.load(first, base="resnet")
    told(caught, "base is a str", "torch.nn.Module")
    (tmp_path / "outcome.json").mkdir()
    for folder in (tmp_path, first / "outcome.json", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError) as caught:
            lab.load(folder)
        told(caught, str(folder), "name a folder that was saved by the lab")


def test_a_tree_too_deep_to_read(tmp_path):
    deep = '{"list": [' * 5000 + "]}" * 5000
    (tmp_path / "tree.json").write_text(f'{{"format": 1, "tensors": "t", "sha256": "", "tree": {deep}}}')
    with pytest.raises(ValueError, match="is damaged") as caught:
        store.load(tmp_path, "tree")
    told(caught, "delete the folder")


# -- the lab's own data -----------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package whose `data` has one file, and none beside it."""
    package = tmp_path / "site-packages" / "lab"
    (package / "data" / "small").mkdir(parents=True)
    (package / "data" / "small" / "net").write_text("the package's")
    monkeypatch.setattr(store, "__file__", str(package / "core" / "store.py"))
    monkeypatch.delenv("LAB_DATA", raising=False)
    return tmp_path


def test_data_are_found_in_the_package_and_first_where_lab_data_says(installed, monkeypatch):
    assert store.artefact("small/net").read_text() == "the package's"
    for name in ("small", "large"):
        (installed / "mine" / name).mkdir(parents=True)
        (installed / "mine" / name / "net").write_text("mine")
    monkeypatch.setenv("LAB_DATA", str(installed / "mine"))
    assert {store.artefact(name).read_text() for name in ("small/net", "large/net")} == {"mine"}
    (installed / "mine" / "small" / "net").unlink()
    assert store.artefact("small/net").read_text() == "the package's"


@pytest.mark.parametrize("given", [None, "no such folder"])
def test_data_that_did_not_travel_are_told_in_one_line(installed, monkeypatch, given):
    if given is not None:
        monkeypatch.setenv("LAB_DATA", given)
    with pytest.raises(FileNotFoundError) as caught:
        store.artefact("large/net")
    told(caught, "'large/net'", f"LAB_DATA={given or ''!r}", "set LAB_DATA to the folder 'data' of a checkout")
