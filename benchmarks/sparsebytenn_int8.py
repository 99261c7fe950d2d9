"""SparseByteNN's products in int8: what they gain over fp32 in time, and lose in accuracy.

    python benchmarks/sparsebytenn_int8.py [--quick] [--isa avx2] [--json FILE] [--imagenet FOLDER]
    python benchmarks/sparsebytenn_int8.py --train data/sparsebytenn/trained_4x4.npz

Whole MobileNet-v1 at 224 x 224, one thread: onnxruntime in fp32 and in int8 (static, a scale a channel), the engine in
fp32 and in int8, all in one run, interleaved as in sparsebytenn.py; what each of them computes is held to torch first.
In int8 zeros stand where `SparseByteNN(block=(4, 4))` left them when it was trained: the masks of `trained_4x4.npz`,
which --train makes anew from the pictures of `imagenet.py` (two runs of some minutes). In fp32 they stand in blocks of
4 x 1 at random; so the two networks of one share are not the same. Time asks only where zeros stand: weights are those
of a network that nobody trained. --isa holds the engine to an instruction set: AVX2 does without VNNI.
With --imagenet, a folder that holds mobilenet_v1_100_224.npz (8-bit weights, norms folded) and
imagenet_sample_224.zip: top-1 on every fourth picture, ranges from 32 others.
Those weights were trained for 8 bits and are kept in them: there, only taking the inputs as uint8 can lose anything.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import sparsebytenn as fp32  # the benchmarks beside this one
import sparsebytenn_accuracy as trained
from imagenet import imagenet, mobilenet, pictures

import lab
from lab.core import kernels, store
from lab.core.onnx import export
from lab.core.training import seeded
from lab.sparsebytenn import compiler, int8, packed
from lab.sparsebytenn.runtime import Engine
from lab.sparsebytenn.tuning import tuned

SHARES = (0.5, 0.7)  # of the 4 x 4 blocks, trained
DECIBELS = 10.0  # of the signal over the noise of 8 bits, the least that a side in int8 must have


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and pictures: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings and the machine here")
    parser.add_argument("--imagenet", type=Path, help="a folder with weights and pictures, for the accuracy")
    parser.add_argument("--isa", choices=kernels.isas(), help="the instruction set, else the best of this machine")
    parser.add_argument("--train", type=Path, help="only train the blocks of 4 x 4, and write their masks here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.train:
        train(options.train)
        return
    if options.isa:
        os.environ["LAB_ISA"] = options.isa
    rounds = 8 if options.quick else 40
    times = fp32.interleaved(contenders(), rounds)
    print(f"{fp32.processor()}, kernels {kernels.isa_name()}, one thread, {rounds} rounds")
    figures = report(times)
    if options.imagenet:
        figures |= accuracy(options.imagenet, 64 if options.quick else 250)
    print(json.dumps(figures, indent=1))
    if options.json:
        settings = {"rounds": rounds, "seconds": times, "machine": fp32.machine() | {"isa": kernels.isa_name()}}
        options.json.write_text(json.dumps({"figures": figures, **settings}, indent=1) + "\n")


# -- time --------------------------------------------------------------------------------------------------------------


def contenders() -> dict[str, Callable[[], object]]:
    """name -> one call on one picture, whose answer is torch's."""
    with seeded(0):
        model = lab.nets.mobilenet_v1().eval()
        settle(model)
        x = torch.randn(1, 3, 224, 224)
    calls = {
        "onnxruntime, fp32": fp32.rivals(model, x)["onnxruntime, dense"],
        "onnxruntime, int8": checked(onnxruntime_int8(model, x), model, x),
    }
    for share in (0.0, *SHARES):
        calls[f"fp32, {share:.0%}"] = partial(fp32.engine(fp32.pruned(model, share), x)._run, [x[0].numpy()])
        in_int8 = pruned(model, share)
        calls[f"int8, {share:.0%}"] = checked(ours_int8(in_int8, x), in_int8, x)
    return calls


@torch.no_grad()
def checked(call: Callable[[], object], model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """The call of a side in int8, if its answer lies DECIBELS above the difference from torch's."""
    exact, y = model(x).flatten(), call()
    found = torch.from_numpy(np.asarray(y[0] if isinstance(y, (list, tuple)) else y)).flatten()
    decibels = float(10 * torch.log10(exact.square().sum() / (found - exact).square().sum()))
    if not decibels >= DECIBELS:
        raise ValueError(f"it answers otherwise than torch: {decibels:.1f} dB above the difference, not {DECIBELS:g}")
    return call


def settle(model: nn.Module) -> None:
    """Norms whose statistics are those of images of noise: else an untrained network dies out within a few layers."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 224, 224))
    model.eval()


def pruned(model: nn.Module, share: float) -> nn.Module:
    """The network with its pointwise layers' 4 x 4 blocks at 0 where training removed that share of them."""
    copy = fp32.pruned(model, 0.0)
    layers = [m for m in copy.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    for layer, keep in zip(layers, masks(share), strict=True) if share else ():
        layer.weight.data *= keep.repeat_interleave(4, 0).repeat_interleave(4, 1)[:, :, None, None]
    return copy


def masks(share: float) -> list[torch.Tensor]:
    """The trained masks of the pointwise layers, first to last: (OC / 4, IC / 4) bool, True is kept."""
    saved = np.load(store.artefact("sparsebytenn/trained_4x4.npz"))
    return [torch.from_numpy(saved[name]) for name in sorted(saved) if name.startswith(f"{share:.0%} ")]


def train(path: Path) -> None:
    """Train a network until each share of its blocks of 4 x 4 is removed, with seed 0, and keep the masks alone."""
    kept, task = {}, replace(imagenet(trained.FEW), score=lambda _: 0.0)
    for share in SHARES:
        recipe = replace(trained.OF_IMAGENET, block=(4, 4), sparsity=share, steps=30, ramp=1.0)
        found = recipe.run(task, seed=0)
        print(found.report["retained magnitude"])
        kept |= {f"{share:.0%} {i:02d}": M.numpy() for i, M in enumerate(found.masks.values())}
    np.savez_compressed(path, **kept)


def ours_int8(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    network = int8.quantised(compiler.compile(model, x), x)
    engine = Engine(packed.write(tuned(network)))
    image = np.ascontiguousarray(x[0].numpy())
    return lambda: engine._run([image])


def onnxruntime_int8(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """onnxruntime's own static quantisation, a scale a channel, one thread."""
    import onnxruntime as ort
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"input": x.numpy()}]

        def get_next(self) -> dict | None:
            return self.left.pop() if self.left else None

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path, prepared, made = (Path(folder) / name for name in ("fp32.onnx", "prepared.onnx", "int8.onnx"))
        export.onnx(model, path, x)
        q.shape_inference.quant_pre_process(str(path), str(prepared))
        q.quantize_static(str(prepared), str(made), Reader(), per_channel=True, activation_type=q.QuantType.QUInt8)
        session = ort.InferenceSession(str(made), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": x.numpy()})


def report(times: dict[str, list[float]]) -> dict[str, float]:
    """How many times faster int8 is than its baselines, round by round; printed with the milliseconds."""
    for name, seconds in times.items():
        print(f"{name:20} {1000 * np.median(seconds):7.2f} ms")
    figures = {}
    for share in (0.0, *SHARES):
        mine, key = times[f"int8, {share:.0%}"], f"int8_{round(100 * share)}"
        figures[f"{key}_over_fp32"] = fp32.ratio(times[f"fp32, {share:.0%}"], mine)
        figures[f"{key}_over_fp32_dense"] = fp32.ratio(times["fp32, 0%"], mine)
        figures[f"{key}_over_onnxruntime_fp32"] = fp32.ratio(times["onnxruntime, fp32"], mine)
        figures[f"{key}_over_onnxruntime_int8"] = fp32.ratio(times["onnxruntime, int8"], mine)
    return figures


# -- accuracy ----------------------------------------------------------------------------------------------------------


def accuracy(folder: Path, count: int) -> dict[str, float]:
    """Top-1 in percent in fp32 and in int8, how often both give the same class, and the noise of int8 in decibels."""
    model = mobilenet(folder)
    x, labels = pictures(range(0, 1000, 4)[:count], folder)[:]
    network = compiler.compile(model, x[:1])
    others, _ = pictures(range(1, 1000, 32), folder)[:]
    y = Engine(packed.write(network))(x)
    y_int8 = Engine(packed.write(int8.quantised(network, others)))(x)
    noise = 10 * torch.log10(y.square().mean() / (y - y_int8).square().mean())
    return {
        "top1_fp32": percent(y.argmax(1) == labels),
        "top1_int8": percent(y_int8.argmax(1) == labels),
        "same_class": percent(y.argmax(1) == y_int8.argmax(1)),
        "decibels": round(float(noise), 1),
        "pictures": len(x),
    }


def percent(hits: torch.Tensor) -> float:
    return round(100 * float(hits.float().mean()), 2)


if __name__ == "__main__":
    main()
