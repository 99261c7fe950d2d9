"""SparseByteNN's products in int8: what they gain over fp32 in time, and lose in accuracy.

    python benchmarks/sparsebytenn_int8.py [--quick] [--json FILE] [--imagenet FOLDER]

Whole MobileNet-v1 at 224 x 224, one thread: onnxruntime in fp32 and in int8 (static, a scale a channel), the engine in
fp32 and in int8, all in one run, interleaved as in sparsebytenn.py. Zeros stand in blocks at random, 4 x 1 in fp32 and
4 x 4 in int8, for whose instructions that is the smallest block; so the two networks of one share are not the same.
With --imagenet, a folder that holds mobilenet_v1_100_224.npz (8-bit weights, norms folded) and
imagenet_sample_224.zip: top-1 on every fourth picture, ranges from 32 others.
Those weights were trained for 8 bits and are kept in them: there, only taking the inputs as uint8 can lose anything.
"""

import argparse
import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import sparsebytenn as fp32  # the benchmark beside this one

import lab
from lab.core import kernels
from lab.core.onnx import export
from lab.core.training import seeded
from lab.sparsebytenn import compiler, int8, packed
from lab.sparsebytenn.runtime import Engine
from lab.sparsebytenn.tuning import tuned


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and pictures: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings and the machine here")
    parser.add_argument("--imagenet", type=Path, help="a folder with weights and pictures, for the accuracy")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rounds = 8 if options.quick else 40
    times = fp32.interleaved(contenders(), rounds)
    print(f"{fp32.processor()}, kernels {kernels.isa_name()}, one thread, {rounds} rounds")
    figures = report(times)
    if options.imagenet:
        figures |= accuracy(options.imagenet, 64 if options.quick else 250)
    print(json.dumps(figures, indent=1))
    if options.json:
        settings = {"rounds": rounds, "seconds": times, "machine": fp32.machine()}
        options.json.write_text(json.dumps({"figures": figures, **settings}, indent=1) + "\n")


# -- time --------------------------------------------------------------------------------------------------------------


def contenders() -> dict[str, Callable[[], object]]:
    """name -> one call on one picture."""
    with seeded(0):
        model = lab.nets.mobilenet_v1().eval()
        settle(model)
        x = torch.randn(1, 3, 224, 224)
    calls = {
        "onnxruntime, fp32": fp32.rivals(model, x)["onnxruntime, dense"],
        "onnxruntime, int8": onnxruntime_int8(model, x),
    }
    for share in fp32.SHARES:
        calls[f"fp32, {share:.0%}"] = partial(fp32.engine(fp32.pruned(model, share), x)._run, [x[0].numpy()])
        calls[f"int8, {share:.0%}"] = ours_int8(pruned(model, share), x)
    return calls


def settle(model: nn.Module) -> None:
    """Norms whose statistics are those of images of noise: else an untrained network dies out within a few layers."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 224, 224))
    model.eval()


def pruned(model: nn.Module, share: float) -> nn.Module:
    """The network with a share of its pointwise layers' 4 x 4 blocks set to 0."""
    g = torch.Generator().manual_seed(1)
    copy = fp32.pruned(model, 0.0)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            keep = torch.rand(module.out_channels // 4, module.in_channels // 4, generator=g) >= share
            module.weight.data *= keep.repeat_interleave(4, 0).repeat_interleave(4, 1)[:, :, None, None]
    return copy


def ours_int8(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    network = int8.quantised(compiler.compile(model, x), x)
    engine = Engine(packed.write(tuned(network)))
    image = np.ascontiguousarray(x[0].numpy())
    return lambda: engine._run(image)


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
    for share in fp32.SHARES:
        mine, key = times[f"int8, {share:.0%}"], f"int8_{round(100 * share)}"
        figures[f"{key}_over_fp32"] = fp32.ratio(times[f"fp32, {share:.0%}"], mine)
        figures[f"{key}_over_fp32_dense"] = fp32.ratio(times["fp32, 0%"], mine)
        figures[f"{key}_over_onnxruntime_fp32"] = fp32.ratio(times["onnxruntime, fp32"], mine)
        figures[f"{key}_over_onnxruntime_int8"] = fp32.ratio(times["onnxruntime, int8"], mine)
    return figures


# -- accuracy ----------------------------------------------------------------------------------------------------------


def accuracy(folder: Path, count: int) -> dict[str, float]:
    """Top-1 in percent in fp32 and in int8, how often both give the same class, and the noise of int8 in decibels."""
    model = trained(folder / "mobilenet_v1_100_224.npz")
    x, labels = read_images(folder / "imagenet_sample_224.zip", range(0, 1000, 4)[:count])
    network = compiler.compile(model, x[:1])
    others, _ = read_images(folder / "imagenet_sample_224.zip", range(1, 1000, 32))
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


def trained(path: Path) -> nn.Sequential:
    """The trained network turned by 180 degrees, for pictures turned as well.

    It was trained with padding behind the last pixel where a stride of 2 has only one to pad. Turned, that is the
    padding before the first pixel that the engine, as torch, gives to maps of even sides: the same function.
    """
    saved = np.load(path)
    layers: list[nn.Module] = []
    for layer in json.loads(str(saved["spec"])):
        if "pool" in layer:
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            continue
        i, k, c_in, c_out = map(layer.get, ("i", "k", "cin", "cout"))
        weight = torch.from_numpy(saved[f"{i}.q"].astype(np.float32) * saved[f"{i}.s"].reshape(-1, 1, 1, 1))
        last = layer["act"] == 0
        made = nn.Linear(c_in, c_out) if last else nn.Conv2d(c_in, c_out, k, layer["s"], k // 2, groups=layer["g"])
        made.weight.data = weight.flatten(1) if last else weight.flip(2, 3)
        made.bias.data = torch.from_numpy(saved[f"{i}.b"])
        layers += [made] if last else [made, nn.ReLU6()]
    return nn.Sequential(*layers).eval()


def read_images(path: Path, which: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, 3, 224, 224) turned by 180 degrees, -1 to 1, and their classes, of which 0 is none."""
    from PIL import Image

    with zipfile.ZipFile(path) as file:
        names = sorted(file.namelist())
        images = [np.asarray(Image.open(io.BytesIO(file.read(names[i]))).convert("RGB"), np.float32) for i in which]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    return x.flip(2, 3).contiguous(), torch.tensor([i + 1 for i in which])


if __name__ == "__main__":
    main()
