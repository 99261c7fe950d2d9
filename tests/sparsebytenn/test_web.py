"""The engine in WebAssembly under node, the exported folder, and the widget: all that needs no browser."""

import json
import re
import runpy
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lab.core import kernels, nets, store
from lab.sparsebytenn import compiler, packed, reference, web
from lab.sparsebytenn.runtime import Engine
from lab.ui.classifier import Classifier

from .native import every_kind

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
STATIC = Path(web.__file__).parent / "static"
RELAXED = "--experimental-wasm-relaxed-simd"  # node 20 has it behind this switch
wasm = runpy.run_path(str(ROOT / "ckernels" / "wasm.py"))
node = shutil.which("node")
needs_node = pytest.mark.skipif(not node, reason="node is not installed: apt-get install nodejs")
needs_c = pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")
BOTH = [(plain, threads) for plain in (False, True) for threads in (2, 3)]


class Wide(nn.Module):
    """What the MobileNets lack: 5 x 5 depthwise windows of both strides, a window without padding, few channels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 5, stride=3, padding=2)
        self.five = nn.Conv2d(6, 6, 5, padding=2, groups=6)
        self.point = nn.Conv2d(6, 9, 1)
        self.down = nn.Conv2d(9, 9, 5, stride=2, padding=2, groups=9)
        self.last = nn.Conv2d(9, 7, 3)
        self.fc = nn.Linear(7, 21)

    def forward(self, x):
        x = self.point(torch.relu(self.five(torch.relu(self.first(x)))))
        return self.fc(self.last(nn.functional.relu6(self.down(x))).mean((2, 3)))


NETWORKS = {
    "mobilenet_v1": (lambda: nets.mobilenet_v1(0.25, 10), 49),
    "mobilenet_v2": (lambda: nets.mobilenet_v2(0.35, 12), 65),
    "wide": (Wide, 35),
}


def blocked(net, share=0.5):
    """The network with a share of the 4 x 1 blocks of its pointwise layers zero."""
    draws = np.random.default_rng(0)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            keep = np.repeat(draws.random((-(-len(layer.weight) // 4), layer.in_channels)) >= share, 4, 0)
            layer.weight.data *= torch.from_numpy(keep[: len(layer.weight)])[:, :, None, None]
    return net.eval()


def made(name, interleaved):
    """A network, its packed file and a picture (1, C, H, W)."""
    build, size = NETWORKS[name]
    torch.manual_seed(0)
    net, x = blocked(build()), torch.randn(1, 3, size, size)
    return net, packed.write(compiler.compile(net, x, interleaved=interleaved)), x


def run_in_node(folder, files, jobs):
    """What node's engine gives for each job (build, file, image, reference, threads); files and images by name."""
    for name, content in files.items():
        content = content if isinstance(content, bytes) else np.ascontiguousarray(content, np.float32).tobytes()
        (folder / name).write_bytes(content)
    named = [dict(zip(("build", "file", "image", "reference", "threads"), (*job, 1)[:5], strict=True)) for job in jobs]
    (folder / "jobs.json").write_text(json.dumps({"jobs": named, "wasm": str(STATIC)}))
    switch = [RELAXED] if subprocess.run([node, RELAXED, "-e", ""], capture_output=True).returncode == 0 else []
    command = [node, *switch, str(HERE / "web_outputs.mjs"), str(folder)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    for i, job in enumerate(result["done"]):
        if "message" not in job:
            job["y"] = np.fromfile(folder / f"{i}.f32", np.float32)
    return result


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_all_builds_answer_as_torch_does(tmp_path, name, interleaved):
    net, data, x = made(name, interleaved)
    with torch.no_grad():
        exact = net(x).numpy()[0]
    image = x.numpy()[0].transpose(1, 2, 0) if interleaved else x.numpy()
    jobs = [(build, "net", "x", reference) for build in web.BUILDS for reference in (False, True)]
    result = run_in_node(tmp_path, {"net": data, "x": image}, jobs)
    if result["builds"] != list(web.BUILDS):
        pytest.skip(f"this node runs {result['builds']} only")
    outputs = {job[0::3]: done["y"] for job, done in zip(jobs, result["done"], strict=True)}
    size = np.abs(exact).max()
    np.testing.assert_allclose(outputs["simd128", False], exact, rtol=0, atol=1e-4 * size)
    for same in [("scalar", False), ("scalar", True), ("simd128", True)]:
        assert outputs[same].tobytes() == outputs["simd128", False].tobytes(), same
    np.testing.assert_allclose(outputs["relaxed", False], outputs["scalar", True], rtol=0, atol=1e-5 * size)
    assert result["done"][0]["ms"] > 0 and result["done"][0]["outputs"] == len(exact)


@needs_node
def test_every_kind_of_operator_answers_as_the_reference_does(tmp_path):
    """Two inputs one behind the other, three outputs likewise."""
    network, g = every_kind(), np.random.default_rng(0)
    arrays = [g.standard_normal(network.maps[i].shape, np.float32) for i in network.inputs]
    exact = np.concatenate([y.reshape(-1) for y in reference.outputs(network, arrays)])
    files = {"net": packed.write(network), "x": np.concatenate([array.reshape(-1) for array in arrays])}
    jobs = [(build, "net", "x", plain) for build in common_builds() for plain in (False, True)]
    for done in run_in_node(tmp_path, files, jobs)["done"]:
        np.testing.assert_allclose(done["y"], exact, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("mobilenet_v1", [(False, 2), (True, 3)]),
        ("mobilenet_v2", [(False, 3), (True, 2)]),
        ("wide", BOTH),
        ("every kind", BOTH),
    ],
)
def test_threads_answer_as_one_does(tmp_path, name, pairs):
    """To the last bit, in ten runs on end by the vector kernels, in three by the plain ones, which are slow.

    ThreadSanitizer looks for races of the same engine in test_sanitized.py; with fewer cores than threads, each meeting
    here waits for the system to take turns.
    """
    if name == "every kind":
        network, g = every_kind(), np.random.default_rng(0)
        data = packed.write(network)
        image = np.concatenate([g.standard_normal(network.maps[i].shape, np.float32).ravel() for i in network.inputs])
    else:
        _, data, x = made(name, False)
        image = x.numpy()
    jobs = [("relaxed", "net", "x", plain) for plain in (False, True)]
    jobs += [("threads", "net", "x", plain, n) for plain, n in pairs]
    result = run_in_node(tmp_path, {"net": data, "x": image}, jobs)
    if "relaxed" not in result["builds"]:
        pytest.skip(f"this node runs {result['builds']} only")
    for (*_, plain, _), done in zip(jobs[2:], result["done"][2:], strict=True):
        assert "message" not in done and done["y"].tobytes() == result["done"][plain]["y"].tobytes(), done


@needs_node
def test_threads_refuse_what_one_refuses(tmp_path):
    _, data, x = made("wide", False)
    files = {
        "short": data[:20],
        "odd": data[:21],
        "empty": b"",
        "altered": data[:4000] + b"?" + data[4001:],
        "vast": data[:32] + bytes([255] * 4),
    }
    jobs = [("threads", name, "x", False, 2) for name in files]
    messages = [done["message"] for done in run_in_node(tmp_path, {**files, "x": x.numpy()}, jobs)["done"]]
    wrong = re.compile("this is not a packed network that can be run: .+|the browser has no .+ MB of memory .+")
    assert all(map(wrong.fullmatch, messages)), messages


@pytest.mark.slow
@needs_node
def test_nan_in_is_nan_out(tmp_path):
    _, data, x = made("wide", False)
    x[0, 1, 7, 7] = float("nan")
    result = run_in_node(
        tmp_path, {"net": data, "x": x.numpy()}, [(build, "net", "x", False) for build in common_builds()]
    )
    assert all(np.isnan(done["y"]).all() for done in result["done"])


def common_builds():
    return ("simd128", "scalar")  # what every node has


@pytest.mark.slow
@needs_node
@needs_c
def test_damaged_files_are_refused_for_the_reason_that_the_c_engine_gives(tmp_path):
    _, data, x = made("wide", False)
    draws, files = np.random.default_rng(0), {"short": data[:100], "half": data[: len(data) // 2], "empty": b""}
    for i in range(12):
        broken = bytearray(data)
        broken[draws.integers(len(data)) if i > 5 else 4 * draws.integers(16)] ^= 1 << draws.integers(8)
        files[f"flipped {i}"] = bytes(broken)
    for i in range(40):  # damage that the checksum has been made to fit
        broken = bytearray(data)
        broken[16 + draws.integers(1500)] ^= 1 << draws.integers(8)
        files[f"forged {i}"] = resealed(bytes(broken))
    jobs = [(build, name, "x", False) for name in files for build in common_builds()]
    result = run_in_node(tmp_path, {**files, "x": x.numpy()}, jobs)
    refused = 0
    for (_, name, *_), done in zip(jobs, result["done"], strict=True):
        content = kernels.ffi.from_buffer("uint8_t[]", files[name] + bytes(64))
        wrong = kernels.lib.engine_check(content, len(files[name]))
        if wrong:
            refused += 1
            assert done["wrong"] == wrong and packed.WRONG[wrong] in done["message"], name
        else:  # harmless: it runs, or it is for other pictures or a larger memory
            assert re.match("the picture has|the browser has no", done.get("message", "the picture has")), (name, done)
    assert refused > len(jobs) / 3


def resealed(data):
    """The file with a checksum that fits."""
    return data[:12] + zlib.crc32(data[16:]).to_bytes(4, "little") + data[16:]


@needs_node
def test_a_picture_of_another_size_is_refused_in_one_line(tmp_path):
    _, data, _ = made("wide", False)
    result = run_in_node(tmp_path, {"net": data, "x": np.zeros(12)}, [("scalar", "net", "x", False)])
    assert result["done"][0]["message"] == "the picture has 12 numbers: this network takes 3675"


# -- the builds --------------------------------------------------------------------------------------------------------


def test_the_builds_are_from_these_sources():
    built = json.loads((STATIC / "built_from.json").read_text())
    assert built["sources"] == wasm["sources_now"](), "the WebAssembly is stale: make kernels-wasm"


@pytest.mark.slow
def test_a_rebuild_gives_the_same_bytes():
    built = json.loads((STATIC / "built_from.json").read_text())
    if not all(map(shutil.which, (wasm["CLANG"], wasm["LINKER"]))):
        pytest.skip("clang-19 is not installed: apt-get install clang-19 lld-19")
    if wasm["compiler"]() != built["compiler"]:
        pytest.skip(f"this is {wasm['compiler']()}, the builds are from {built['compiler']}")
    for build in wasm["BUILDS"]:
        assert wasm["compiled"](build) == (STATIC / f"{build}.wasm").read_bytes(), f"{build} differs: make kernels-wasm"


def test_the_browsers_reasons_are_pythons():
    script = (STATIC / "engine.mjs").read_text()
    listed = re.search(r"const WRONG = \[(.*?)\];", script, re.DOTALL).group(1)
    assert json.loads(f"[{listed.strip().rstrip(',')}]") == ["", *packed.WRONG.values()]


# -- the folder --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engines():
    """A sparse network and its dense one."""
    torch.manual_seed(0)
    dense = nets.mobilenet_v1(0.25, 10).eval()
    x = torch.zeros(1, 3, 32, 32)
    pair = [Engine(packed.write(compiler.compile(dense, x, interleaved=True)))]
    return Engine(packed.write(compiler.compile(blocked(dense), x, interleaved=True))), *pair


def setup_of(page):
    return json.loads(re.search(r'id="setup">(.*?)</script>', page).group(1))


def test_a_folder_holds_everything_and_names_nothing_outside(engines, tmp_path):
    sparse, dense = engines
    images = [np.full((20, 20), 99, np.uint8), np.zeros((9, 8, 3), np.uint8), np.zeros((3, 32, 32), np.float32)]
    labels = [f"<{i}>" for i in range(10)]
    options = {"labels": labels, "mean": 0.5, "std": (1, 2, 3), "images": images, "title": "Five & </title>"}
    index = web.export_web(sparse, tmp_path / "new" / "folder", dense=dense, **options)
    names = {path.name for path in index.parent.iterdir()}
    builds = {f"{build}.wasm" for build in (*web.BUILDS, "threads")}
    assert names == {"index.html", "model.sbnn", "dense.sbnn", "_headers", *builds}
    assert "Cross-Origin-Embedder-Policy: require-corp" in (index.parent / "_headers").read_text()
    assert Engine.load(index.parent / "model.sbnn").data == sparse.data
    page = index.read_text()
    assert not re.search(r"https?:|@import|url\(|import .* from|<script[^>]* src|<img|<link(?! rel=.icon)", page)
    assert page.count("</title>") == 1 and page.count("</script>") == page.count("<script")
    setup = setup_of(page)
    assert setup["labels"] == labels and setup["mean"] == [0.5] * 3 and setup["std"] == [1, 2, 3]
    assert [address[:22] for address in setup["samples"]] == ["data:image/png;base64,"] * 3
    assert setup["networks"] == {"sparse": "model.sbnn", "dense": "dense.sbnn"}
    assert all(f'id="{name}"' in page for name in names - {"index.html", "threads.wasm", "_headers"})


def test_large_networks_stay_beside_the_page(engines, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "INLINE", 1000)
    page = web.export_web(engines[0], tmp_path).read_text()
    assert 'id="model.sbnn"' not in page and "python -m http.server" in page
    assert len(page) < 40_000


def test_a_network_that_is_not_packed_yet(engines, tmp_path):
    index = web.export_web(engines[0].network, tmp_path)
    assert (index.parent / "model.sbnn").stat().st_size > 100_000


def test_a_failed_export_leaves_nothing_behind(engines, tmp_path, monkeypatch):
    (tmp_path / "model.sbnn").write_bytes(b"old")
    (tmp_path / "mine.txt").write_bytes(b"mine")
    write = store.write

    def full(path, content):
        if path.name == "index.html":
            raise OSError("cannot write index.html: the disk is full")
        write(path, content)

    monkeypatch.setattr(store, "write", full)
    with pytest.raises(OSError, match="the disk is full"):
        web.export_web(engines[0], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "model.sbnn"]


def test_bad_options_are_one_line_and_write_nothing(engines, tmp_path):
    sparse, _ = engines
    x = torch.zeros(1, 3, 32, 32)
    other = compiler.compile(nets.mobilenet_v1(0.25, 7).eval(), x, interleaved=True)
    five = compiler.compile(nn.Sequential(nn.Conv2d(5, 4, 3), nn.AdaptiveAvgPool2d(1)).eval(), torch.zeros(1, 5, 8, 8))
    ends_in_map = compiler.compile(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), x)
    for given, options, words in [
        (sparse, {"labels": ["one"]}, "1 labels are given: the network has 10 classes"),
        (sparse, {"mean": (1, 2)}, r"mean=\(1, 2\): give one number, or 3"),
        (sparse, {"std": 0}, "std holds a 0"),
        (sparse, {"dense": other}, "dense takes other pictures or has other classes"),
        (sparse, {"images": [np.zeros((2, 2))]}, r"a picture is float64 \(2, 2\): give uint8"),
        (five, {}, "the network takes 5 channels"),
        (ends_in_map, {}, r"answers with a map \(4, 30, 30\)"),
    ]:
        with pytest.raises(ValueError, match=words) as error:
            web.export_web(given, tmp_path / "out", **options)
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="this is a Linear: give an engine"):
        web.export_web(nn.Linear(2, 2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_floats_as_the_network_takes_them_become_the_same_picture():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    floats = ((grey / 255 - 0.3) / 0.7).astype(np.float32)[None]
    scale = {"mean": [0.3], "std": [0.7]}
    np.testing.assert_array_equal(web._as_uint8(floats, scale), grey)


# -- the widget --------------------------------------------------------------------------------------------------------


def test_the_widget_is_handed_everything_and_tells_what_the_browser_saw(engines):
    sparse, dense = engines
    shown = Classifier(**web.widget(sparse, dense=dense, title="A <title>", images=[np.zeros((8, 8), np.uint8)]))
    assert repr(shown) == "Classifier(no browser has shown it yet)"
    assert set(shown.parts) == {"model.sbnn", "dense.sbnn", *(f"{build}.wasm" for build in web.BUILDS)}
    assert "import " not in shown._esm.replace("import.meta", "") and "export default" in shown._esm
    assert ".lab-classify" in shown._css
    seen = {
        "seen": {"label": "digit 7", "probability": 0.981},
        "times": {"sparse": 0.5, "dense": 0.8},
        "build": "relaxed",
    }
    shown._handle_msg({"content": {"data": {"method": "update", "state": seen}}, "buffers": []})
    text = "digit 7 98.1%, sparse 0.50 ms, dense 0.80 ms, 1.60x as fast as dense, WebAssembly relaxed"
    assert repr(shown) == f"Classifier({text})"
    data, _ = shown._repr_mimebundle_()
    assert data["text/plain"] == repr(shown) and "application/vnd.jupyter.widget-view+json" in data
    page = data["text/html"]
    assert "\n" not in page and "<script" not in page and "A &lt;title&gt;" in page and page.count("<img ") == 1
    assert "1.60x as fast as dense" in page


def test_the_widget_without_a_dense_network(engines):
    shown = Classifier(**web.widget(engines[0]))
    shown.times = {"sparse": 1.5}
    assert repr(shown) == "Classifier(sparse 1.50 ms)"
    assert "Run this cell" in Classifier(**web.widget(engines[0])).static()
