"""SparseByteNN on 64-bit ARM without an ARM machine: instructions counted under qemu, inner loops modelled.

    python benchmarks/sparsebytenn_arm.py [--quick] [--json FILE]

Needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user and llvm-19. Counts are exact and the same on every
machine. Cycles come from llvm-mca's model of Neoverse N1, a server's Cortex-A76, for operands in the first-level cache:
milliseconds made of them are a bound that memory only worsens, no prediction of a phone's time.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import nn

from lab.core.nets import mobilenet_v1
from lab.sparsebytenn import compiler, packed
from lab.sparsebytenn.packed import Network

CKERNELS = Path(__file__).resolve().parents[1] / "ckernels"
SHARES = (0, 30, 50, 70, 90)
PEAK = 8  # multiply-adds a cycle: two units of four floats
# Instructions and FMLA of XNNPACK's sparse kernels for the product below: quoted, for this command does not count them.
QUOTED = "quoted: counted once under qemu, cut from ai-edge-litert 2.3.0's aarch64 wheel by symbol, tails as vectors"
XNNPACK = {"XNNPACK 32x1": (29.2e6, 8.99e6), "XNNPACK 32x2": (21.2e6, 9.00e6), "XNNPACK 32x4": (26.0e6, 9.04e6)}


def tools():
    """ckernels/arm.py, which is beside the C code and in no package."""
    spec = importlib.util.spec_from_file_location("arm", CKERNELS / "arm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="whole networks are modelled, but not run")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(argv)
    arm = tools()
    if lacking := arm.missing(arm.CC, arm.QEMU, arm.DUMP, arm.MCA):
        print(lacking, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        report = measured(arm, Path(folder), options.quick)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measured(arm, folder: Path, quick: bool) -> dict:
    built = arm.library(folder)
    loops = inner_loops(arm, built)
    plugin, steps = arm.counter(folder), arm.program(CKERNELS / "tools" / "steps.c", built)
    networks = {
        share: compiler.compile(thinned(mobilenet_v1(), share / 100), torch.zeros(1, 3, 224, 224)) for share in SHARES
    }
    report = {
        "loops": loops,
        "product": product(arm, plugin, steps, folder),
        "bound": [bound(arm, loops, share, network) for share, network in networks.items()],
    }
    if not quick:
        report["network"] = [whole(arm, plugin, steps, folder, share, networks[share]) for share in (0, 30)]
    return report


@torch.no_grad()
def thinned(net: nn.Module, share: float) -> nn.Module:
    """The network with that share of the 4 x 1 blocks of each pointwise layer zeroed, at random."""
    draws = np.random.default_rng(0)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            rows, columns = layer.weight.shape[:2]
            keep = np.repeat(draws.random((rows // 4, columns)) >= share, 4, 0)
            layer.weight *= torch.from_numpy(keep)[:, :, None, None]
    return net.eval()


def inner_loops(arm, built: Path) -> list[dict]:
    """spmm's loops: what a 4 x 1 block costs on a tile of so many pixels."""
    rows = []
    for (fmla, indexed), loop in sorted(arm.spmm_loops(built).items()):
        rows.append(
            {
                "tile": f"{fmla // 4 * arm.LANES + fmla % 4}x4",
                "indexed": indexed,
                "fmla": fmla,
                "instructions": len(loop),
                "stack": arm.stack_references(loop),
                "cycles": round(arm.cycles(loop), 3),
            }
        )
    return rows


def product(arm, plugin: Path, steps: Path, folder: Path) -> list[dict]:
    """Instructions of one pass, 512 -> 512 channels on 14 x 14 pixels, 30 % zeros; what is quoted of XNNPACK beside."""
    torch.manual_seed(0)
    network = compiler.compile(thinned(nn.Sequential(nn.Conv2d(512, 512, 1)), 0.3), torch.zeros(1, 512, 14, 14))
    file = folder / "product.sbnn"
    file.write_bytes(packed.write(network))
    blocks = len(network.ops[0].weights.blocks)
    counted = arm.count_pass(plugin, steps, file, 0)
    assert counted[1] == arm.fmla_of_spmm(blocks, 196), "the FMLA are not those of the formula"
    rows = {"16x4, 4 x 1 blocks": (*counted, "counted"), **{name: (*two, QUOTED) for name, two in XNNPACK.items()}}
    most = XNNPACK["XNNPACK 32x1"][0]
    return [
        {"kernel": name, "instructions": n, "fmla": fmla, "share_of_32x1": n / most, "source": source}
        for name, (n, fmla, source) in rows.items()
    ]


def bound(arm, loops: list[dict], share: int, network: Network) -> dict:
    """A network's time if its products ran as the model says and everything else at the peak."""
    cost = {(row["fmla"], row["indexed"]): row["cycles"] for row in loops}
    products = rest = 0.0
    for op in network.ops:
        x, y = network.maps[op.x], network.maps[op.y]
        if op.kind in ("conv", "pointwise", "separable"):
            indexed, pixels = op.weights.col is not None, y.pixels
            bands = [(min(y.h, top + op.tile_rows) - top) * y.w for top in range(0, y.h, op.tile_rows)]
            bands = [pixels] if op.kind == "pointwise" else bands
            products += len(op.weights.blocks) * sum(cost[n, indexed] for band in bands for n in arm.tiles(band))
        elif op.kind == "linear":
            rest += op.weights.blocks.size / PEAK
        if op.taps is not None:
            rest += x.c * y.pixels * op.k[0] * op.k[1] / PEAK
    return {
        "sparsity": share,
        "products_ms": 1000 * products / arm.HERTZ,
        "ms": 1000 * (products + rest) / arm.HERTZ,
    }


def whole(arm, plugin: Path, steps: Path, folder: Path, share: int, network: Network) -> dict:
    """Instructions of one pass through the whole network."""
    file = folder / f"{share}.sbnn"
    file.write_bytes(packed.write(network))
    counted, fmla = arm.count_pass(plugin, steps, file)
    return {"sparsity": share, "instructions": counted, "fmla": fmla}


def show(report: dict) -> None:
    frame = {name: pandas.DataFrame(rows) for name, rows in report.items()}
    print("Inner loops of spmm, cycles a block in llvm-mca's model of Neoverse N1 (operands in the first-level cache)")
    print(frame["loops"].to_string(index=False))
    print("\n512 -> 512 channels, 14 x 14 pixels, 30 % zeros: instructions of one pass")
    print(frame["product"].drop(columns="source").to_string(index=False, float_format="{:,.3f}".format))
    print(f"XNNPACK's are {QUOTED}")
    print("\nMobileNet-v1 224 at 2.84 GHz, a bound with all operands in the first-level cache, no prediction")
    bounds = frame["bound"]
    bounds["speedup"] = bounds["ms"].iloc[0] / bounds["ms"]
    print(bounds.to_string(index=False, float_format="{:.2f}".format))
    if "network" in frame:
        counts = frame["network"]
        counts["fewer"] = counts["instructions"].iloc[0] / counts["instructions"]
        print("\nMobileNet-v1 224 under qemu: instructions of one pass")
        print(counts.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
