"""SparseByteNN in a browser's engine: whole MobileNet-v1 under node, one thread, against onnxruntime-web and tfjs.

    python benchmarks/sparsebytenn_web.py [--quick] [--json FILE]

Needs node 20 or newer and npm, which installs the baselines into build/web of the present folder. All take turns in one
process; times are CPU time, medians over the rounds. Every contestant computes the same picture with the same dense
weights first, and the outputs must agree; blocks of 4 x 1 then go at random. The baselines have no sparse kernels: they
run the dense network, with SIMD128; ours is given with relaxed SIMD, which Chromium has had since 2023, and without.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lab.core import cost, kernels
from lab.core.machine import machine
from lab.core.nets import mobilenet_v1
from lab.core.onnx import export
from lab.sparsebytenn import compiler, packed
from lab.sparsebytenn.packed import Map, Network, Op

WEB, BASELINES_AT = Path(__file__).parent / "web", Path("build/web")
STATIC = Path(compiler.__file__).parent / "static"
SHARES = (0, 30, 50, 70, 90)
BASELINES = ("onnxruntime-web", "tfjs")
PRODUCT = (512, 14)  # channels in and out, and pixels a side, of the product that is timed alone, 30 % of it zero


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="0 and 30 %% only, 15 rounds: under a minute")
    parser.add_argument("--json", type=Path, help="write the figures, all medians and the machine here")
    options = parser.parse_args(argv)
    if not (shutil.which("node") and shutil.which("npm")):
        print("node and npm are needed: apt-get install nodejs npm", file=sys.stderr)
        return 1
    install()
    with tempfile.TemporaryDirectory() as folder:
        macs = prepare(Path(folder), SHARES[:2] if options.quick else SHARES)
        ran = node(folder, "15" if options.quick else "40")
    agree(ran.pop("outputs"))
    versions = {"node": ran["node"], "v8": ran["v8"], "builds": ", ".join(ran["builds"])}
    report = {"figures": figures(ran), "medians": medians(ran), "macs": macs, "machine": machine() | versions}
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def install() -> None:
    """The baselines that the lock file names, once. After an update: npm install --omit-lockfile-registry-resolved."""
    lock, stamp = (WEB / "package-lock.json").read_bytes(), BASELINES_AT / "installed"
    if not stamp.exists() or stamp.read_bytes() != lock:
        BASELINES_AT.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(WEB / name, BASELINES_AT)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=BASELINES_AT, check=True)
        stamp.write_bytes(lock)


def node(*arguments: str) -> dict:
    """What race.mjs prints; relaxed SIMD is still behind a switch in node 20."""
    switch = "--experimental-wasm-relaxed-simd"
    has_switch = subprocess.run(["node", switch, "-e", ""], capture_output=True).returncode == 0
    command = ["node", *[switch] * has_switch, str(WEB / "race.mjs"), *arguments, str(BASELINES_AT.resolve())]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


# -- the contestants' files ------------------------------------------------------------------------------------------


def prepare(folder: Path, shares: tuple[int, ...]) -> int:
    """Write the network for each contestant, an image and the plan; the dense network's multiply-adds."""
    torch.manual_seed(0)
    dense, image = mobilenet_v1().eval(), torch.randn(1, 3, 224, 224)
    export.onnx(dense, folder / "dense.onnx", image)
    image.numpy().tofile(folder / "planes.f32")
    image.permute(0, 2, 3, 1).contiguous().numpy().tofile(folder / "pixels.f32")
    for share in shares:
        network = compiler.compile(blocked(share / 100), image, interleaved=True)
        (folder / f"{share}.sbnn").write_bytes(packed.write(network))
        if share == 0:
            layers = list(for_tfjs(network, folder))
    (folder / "product.sbnn").write_bytes(packed.write(product()))
    plan = {"shares": shares, "shape": image.shape[1:], "layers": layers, "static": f"{STATIC.as_uri()}/"}
    (folder / "plan.json").write_text(json.dumps(plan))
    return cost.macs(dense, image)


def blocked(share: float) -> nn.Module:
    """The network with a share of the 4 x 1 blocks of its pointwise layers zero, chosen at random."""
    torch.manual_seed(0)
    net, draws = mobilenet_v1().eval(), np.random.default_rng(0)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            rows, columns = layer.weight.shape[:2]
            keep = np.repeat(draws.random((rows // 4, columns)) >= share, 4, 0)
            layer.weight.data *= torch.from_numpy(keep)[:, :, None, None]
    return net


def product() -> Network:
    """One pointwise layer, 30 % of its blocks zero."""
    (channels, side), draws = PRODUCT, np.random.default_rng(0)
    keep = np.repeat(draws.random((channels // 4, channels)) >= 0.3, 4, 0)
    weights = kernels.pack(draws.normal(size=keep.shape) * keep, k_tile=compiler.K_TILE)
    op = Op("pointwise", "product", 0, 1, weights=weights, clamp=(0, np.inf))
    return Network([Map(channels, side, side), Map(channels, side, side)], [op], (0,), (1,))


def for_tfjs(network: Network, folder: Path):
    """The network's layers as tfjs takes them: filters (k, k, in, out), depthwise (k, k, channels, 1), norms folded."""
    for i, op in enumerate(network.ops):
        window = {"stride": op.stride[0], "pad": op.pad[0]}
        if op.taps is not None:
            taps = op.taps.T.reshape(*op.k, -1, 1)
            yield layer(folder, f"{i}a", "depthwise", taps, op.taps_bias, op.inner, **window)
            window = {"stride": 1, "pad": 0}
        if op.weights is not None:
            rows, k = op.weights.to_dense(), op.k[0] if op.kind == "conv" else 1
            filters = rows.T if op.kind == "linear" else rows.reshape(len(rows), -1, k, k).transpose(2, 3, 1, 0)
            kind = "linear" if op.kind == "linear" else "conv"
            yield layer(folder, f"{i}b", kind, filters, op.bias, op.clamp, **window)


def layer(folder: Path, file: str, kind: str, weight: np.ndarray, bias: np.ndarray, clamp: tuple, **window) -> dict:
    for part, values in (("weight", weight), ("bias", bias)):
        np.ascontiguousarray(values, np.float32).tofile(folder / f"{file}.{part}")
    activation = {(0, np.inf): "relu", (0, 6): "relu6"}.get(clamp, "linear")
    return {"file": file, "kind": kind, "shape": weight.shape, "activation": activation, **window}


# -- what they did ---------------------------------------------------------------------------------------------------


def agree(outputs: dict[str, list[float]]) -> None:
    """All contestants compute the same network."""
    first, *others = (np.array(output) for output in outputs.values())
    for name, other in zip(list(outputs)[1:], others, strict=True):
        worst = np.abs(other - first).max() / np.abs(first).max()
        if not worst < 1e-4:
            raise SystemExit(f"{name} computes another network than {next(iter(outputs))}: {worst:.1e} apart")


def medians(ran: dict) -> dict[str, dict[str, float]]:
    """Each contestant's CPU and wall ms."""
    both = {**ran["networks"], **{f"product {build}": times for build, times in ran["products"].items()}}
    return {name: {clock: statistics.median(t) for clock, t in times.items()} for name, times in both.items()}


def figures(ran: dict) -> dict[str, float]:
    """The ratios that count; the speed-ups are those of the best build that this node runs."""
    ms = {name: times["cpu"] for name, times in medians(ran).items()}
    best, baseline = ran["builds"][0], min(ms[name] for name in BASELINES)
    shares = sorted({int(name.split()[1]) for name in ms if name.startswith("ours")})
    ratios = {f"wasm_speedup_{share}": baseline / ms[f"ours {share} % {best}"] for share in shares}
    ratios |= {f"wasm_speedup_{share}_simd128": baseline / ms[f"ours {share} % simd128"] for share in shares}
    macs = product().ops[0].weights.blocks.size * PRODUCT[1] ** 2
    for build in ran["builds"]:
        ratios[f"wasm_gmacs_{build}"] = macs / ms[f"product {build}"] / 1e6
        ratios[f"wasm_{build}_over_scalar"] = ms["product scalar"] / ms[f"product {build}"]
    return ratios


def show(report: dict) -> None:
    """The table and the ratios."""
    print("MobileNet-v1 224, fp32, one thread; medians", *report["machine"].values(), sep="; ")
    print(f"{'':28}{'CPU ms':>9}{'wall ms':>9}")
    for name, times in report["medians"].items():
        print(f"{name:28}{times['cpu']:9.2f}{times['wall']:9.2f}")
    print(json.dumps({name: round(value, 3) for name, value in report["figures"].items()}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
