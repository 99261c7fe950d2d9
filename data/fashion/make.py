"""Cut Fashion-MNIST and train the networks that `lab.tasks.fashion()` starts from.

`python data/fashion/make.py images FOLDER` keeps the first 10,000 training and 2,000 test images of the four idx files;
`python data/fashion/make.py train [resnet20 mobilenet_v1 vgg16]` trains what is named, or all. Both can be interrupted
and given again: a training goes on where it was.
"""

import hashlib
import lzma
import struct
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from lab.core import store
from lab.core.data import inflating
from lab.core.task import evaluating
from lab.core.tasks import FASHION_NETS, fashion, fashion_net
from lab.core.training import Stage, descend, seeded

SEED, BATCH, LR, MOMENTUM, DECAY, EPOCHS = 0, 128, 0.1, 0.9, 5e-4, 40
COUNTS = {"train": 10_000, "t10k": 2_000}
FOLDER = Path(__file__).parent
# what packs these pictures best: four bits of the byte before are looked at, and every match is searched for
PACKING = [
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "nice_len": 273, "depth": 1000}
]


def cut(folder: Path) -> None:
    """Keep the first images and labels of each part in the same format, packed by xz, a seventh smaller than gzip."""
    for part, count in COUNTS.items():
        for name, rank in ((f"{part}-images-idx3-ubyte.gz", 3), (f"{part}-labels-idx1-ubyte.gz", 1)):
            content = inflating.content(folder / name)
            magic, _, *sides = struct.unpack(f">{1 + rank}I", content[: 4 + 4 * rank])
            head = struct.pack(f">{1 + rank}I", magic, count, *sides)
            body = content[len(head) : len(head) + count * (sides[0] * sides[1] if sides else 1)]
            packed = lzma.compress(head + body, filters=PACKING)
            store.write((FOLDER / name).with_suffix(".xz"), packed)


def train(name: str) -> nn.Module:
    """The network on the 10,000 images; SGD, a cosine down to zero."""
    net = fashion_net(name)
    task = fashion(net, batch_size=BATCH)
    steps = EPOCHS * len(task.batches)
    sgd = torch.optim.SGD(net.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    stage = Stage(FOLDER / "runs" / name, name, "maker", net=net, sgd=sgd, schedule=schedule)

    def terms(batch):
        return {"cross-entropy": F.cross_entropy(net(batch[0]), batch[1])}

    for _ in descend(terms, task.batches, sgd, stage, steps=steps, schedule=schedule):
        pass
    return net


def make(name: str) -> None:
    """Train one of the networks, keep it in half precision, and say how well what was kept does."""
    with seeded(SEED):
        net = train(name).half().float()
    with evaluating(net):
        print(f"{name}: held-out accuracy {fashion(net).score(net):.2f} %", flush=True)
    store.write(FOLDER / f"{name}.safetensors", save({key: _halved(t) for key, t in net.state_dict().items()}))


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def main() -> None:
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["images", folder]:
            cut(Path(folder))
        case ["train", *names]:
            for name in names or FASHION_NETS:
                make(name)
        case _:
            sys.exit(__doc__)
    files = sorted(path for path in FOLDER.iterdir() if path.suffix in (".xz", ".safetensors"))
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    store.write(FOLDER / "SHA256SUMS", sums.encode())


if __name__ == "__main__":
    main()
