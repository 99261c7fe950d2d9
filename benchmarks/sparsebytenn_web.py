"""SparseByteNN in a browser's engine: whole networks under node, one thread, against onnxruntime-web and tfjs.

    python benchmarks/sparsebytenn_web.py [--quick] [--json FILE] [--only resnet18]

MobileNet-v1, and torchvision's ResNet-18 and MobileNet-v3-large, at 224 x 224. Needs node 20 or newer and npm, which
installs the baselines into build/web of the present folder; the networks of torchvision are left out where it is not
installed (pip install --no-deps torchvision==0.28.0, or `make test`). All contestants of a network take turns in one
process; times are CPU time, medians over the rounds. Every contestant computes the same picture with the same dense
weights first, and the outputs must agree; blocks of 4 x 1 then go at random, of MobileNet-v1's pointwise layers, of the
others' every layer but the first and the last. The baselines have no sparse kernels: they run the dense network, with
SIMD128, tfjs MobileNet-v1 alone; ours is given with relaxed SIMD, which Chromium has had since 2023, and without. Then
ours on one thread and on two, as in a page that is cross-origin isolated, by the wall's clock.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import sparsebytenn
import sparsebytenn_networks
from zoo import networks
from zoo.weights import calm, lively, pictures

from lab.core import cost, kernels
from lab.core.machine import machine
from lab.core.onnx import export
from lab.core.training import seeded
from lab.sparsebytenn import compiler, packed
from lab.sparsebytenn.packed import Map, Network, Op

WEB, BASELINES_AT = Path(__file__).parent / "web", Path("build/web")
STATIC = Path(compiler.__file__).parent / "static"
SHARES = {"mobilenet_v1": (0, 30, 50, 70, 90), "resnet18": (0, 50, 90), "mobilenet_v3_large": (0, 50, 90)}
BASELINES = ("onnxruntime-web", "tfjs")
THREADS = 2
PRODUCT = (512, 14)  # channels in and out, and pixels a side, of the product that is timed alone, 30 % of it zero


@dataclass(frozen=True)
class Found:
    """A dense network, one picture (1, 3, 224, 224), and what sets a share of its blocks to 0 in a copy."""

    dense: nn.Module
    image: torch.Tensor
    pruned: Callable[[nn.Module, float], nn.Module]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two shares of each network, 10 rounds: under two minutes")
    parser.add_argument("--json", type=Path, help="write the figures, all medians and the machine here")
    parser.add_argument("--only", default="", help="networks in whose names this stands")
    options = parser.parse_args(argv)
    if not (shutil.which("node") and shutil.which("npm")):
        print("node and npm are needed: apt-get install nodejs npm", file=sys.stderr)
        return 1
    install()
    torch.set_num_threads(1)
    report: dict = {"figures": {}, "medians": {}, "macs": {}, "machine": machine()}
    for name in [name for name in SHARES if options.only in name]:
        if found := network(name):
            shares = SHARES[name][:2] if options.quick else SHARES[name]
            add(report, name, *raced(found, shares, 10 if options.quick else 40))
    print(json.dumps({name: round(value, 3) for name, value in report["figures"].items()}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def raced(found: Found, shares: tuple[int, ...], rounds: int) -> tuple[dict, int]:
    """What the contestants of one network did; and the dense network's multiply-adds."""
    with tempfile.TemporaryDirectory() as folder:
        macs = prepare(Path(folder), found, shares)
        ran = node(folder, str(rounds))
    agree(ran.pop("outputs"))
    return ran, macs


def add(report: dict, name: str, ran: dict, macs: int) -> None:
    """Enter and print what a network's contestants did."""
    ratios, of = figures(ran), "" if name == "mobilenet_v1" else f"{name}_"
    report["figures"] |= {f"{of}{figure}": value for figure, value in ratios.items()}
    report["medians"][name], report["macs"][name] = medians(ran), macs
    report["machine"] |= {"node": ran["node"], "v8": ran["v8"], "builds": ", ".join(ran["builds"])}
    show(name, report)


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


def network(name: str) -> Found | None:
    """The network of this name, or None, with a line that says so, where torchvision is missing."""
    if name == "mobilenet_v1":
        return Found(*sparsebytenn.network(), sparsebytenn.pruned)
    if (architectures := networks.architectures()) is None:
        print(f"{name} is left out: pip install --no-deps torchvision==0.28.0, or make test")
        return None
    with seeded(0):
        images = pictures(4, 3, 224, 224)
        return Found(calm(lively(architectures.get_model(name), images)), images[:1], sparsebytenn_networks.pruned)


def prepare(folder: Path, found: Found, shares: tuple[int, ...]) -> int:
    """Write the network for each contestant, an image and the plan; the dense network's multiply-adds."""
    dense, image = found.dense, found.image
    export.onnx(dense, folder / "dense.onnx", image)
    image.numpy().tofile(folder / "planes.f32")
    image.permute(0, 2, 3, 1).contiguous().numpy().tofile(folder / "pixels.f32")
    plan: dict = {"shares": shares, "threads": THREADS, "shape": image.shape[1:], "static": f"{STATIC.as_uri()}/"}
    for share in shares:
        made = compiler.compile(found.pruned(dense, share / 100), image, interleaved=True)
        (folder / f"{share}.sbnn").write_bytes(packed.write(made))
        if share == 0 and found.pruned is sparsebytenn.pruned:
            plan["layers"] = list(for_tfjs(made, folder))
            (folder / "product.sbnn").write_bytes(packed.write(product()))
    (folder / "plan.json").write_text(json.dumps(plan))
    return cost.macs(dense, image)


def product() -> Network:
    """One pointwise layer, 30 % of its blocks zero."""
    (channels, side), draws = PRODUCT, np.random.default_rng(0)
    keep = np.repeat(draws.random((channels // 4, channels)) >= 0.3, 4, 0)
    weights = kernels.pack(draws.normal(size=keep.shape) * keep, k_tile=compiler.K_TILE)
    op = Op("pointwise", "product", 0, 1, weights=weights, clamp=(0, np.inf))
    return Network([Map(channels, side, side), Map(channels, side, side)], [op], (0,), (1,))


def for_tfjs(network: Network, folder: Path) -> Iterator[dict]:
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
    best, baseline = ran["builds"][0], min(ms[name] for name in BASELINES if name in ms)
    shares = sorted({int(name.split()[1]) for name in ms if name.startswith("ours")})
    ratios = {f"wasm_speedup_{share}": baseline / ms[f"ours {share} % {best}"] for share in shares}
    ratios |= {f"wasm_speedup_{share}_simd128": baseline / ms[f"ours {share} % simd128"] for share in shares}
    for share, times in ran["threads"].items():
        gains = [one / two for one, two in zip(times["alone"], times["shared"], strict=True)]
        ratios[f"wasm_threads_{THREADS}_{share}"] = statistics.median(gains)
    macs = product().ops[0].weights.blocks.size * PRODUCT[1] ** 2
    for build in ran["products"]:
        ratios[f"wasm_gmacs_{build}"] = macs / ms[f"product {build}"] / 1e6
        ratios[f"wasm_{build}_over_scalar"] = ms["product scalar"] / ms[f"product {build}"]
    return ratios


def show(name: str, report: dict) -> None:
    """The table of a network."""
    print(f"{name} 224, fp32, one thread; medians", *report["machine"].values(), sep="; ")
    print(f"{'':28}{'CPU ms':>9}{'wall ms':>9}")
    for contestant, times in report["medians"][name].items():
        print(f"{contestant:28}{times['cpu']:9.2f}{times['wall']:9.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
