"""Super-resolution x2 learned from T91 and judged on Set5, and the float networks that the contests on it start from.

    python benchmarks/set5.py edsr --device cuda --runs runs

trains one of NETS once, resumable, into `runs/starts`; a contest trains the start that it does not find there. T91 and
Set5 are for academic use, and so are weights learned from them: none are kept. Both are read of the folder SHARED, or
of `shared/data` beside the project: `sr/t91`, `sr/set5` and VDSR's published weights, `sr/weights/vdsr.safetensors`.

Set5 is scored as published: PSNR on luma, a border of two pixels left out, bicubic reduction with antialiasing.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from contest import ROOT, SHARED, placed
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import lab
from lab.core import store
from lab.core.data.batches import enlarged
from lab.core.scores import luma
from lab.core.task import Task
from lab.core.training import Stage, descend, seeded

FOLDER = SHARED / "sr"
SCALE, PATCH, BATCH = 2, 64, 16
NETS = {  # EDSR-baseline as published; RDN at a twenty-fifth of RDN-B's parameters
    "edsr": {"net": "edsr", "blocks": 16, "width": 64, "scale": SCALE},
    "rdn": {"net": "rdn", "blocks": 8, "layers": 4, "growth": 32, "width": 32, "scale": SCALE},
}
LEARNED = {"steps": 6000, "lr": 4e-4, "seed": 0}  # Adam, the rate falls to 0 along a cosine


@cache
def task(name: str, runs: Path, device: str) -> Task:
    """Patches of T91 and the score on Set5, with the trained network of this name."""
    fresh = untrained(name)
    path = runs / "starts" / f"{name}.safetensors"
    if not path.exists():
        learn(name, runs, device)
    fresh.model.load_state_dict(load_file(path))
    return placed(fresh, device)


def untrained(name: str) -> Task:
    """The same with fresh weights."""
    with seeded(LEARNED["seed"]):  # type: ignore[arg-type]
        model = lab.nets.build(NETS[name])
    t91, set5 = FOLDER / "t91", FOLDER / "set5"
    made = lab.tasks.photos(SCALE, model, folder=t91, held_out=set5, patch=PATCH, batch_size=BATCH)
    return replace(made, name=f"{name} on T91")


def learn(name: str, runs: Path, device: str, progress: bool = True) -> float:
    """Train a start on L1 and leave it in `runs/starts`; PSNR on Set5, dB. Goes on where it was broken off."""
    made = placed(untrained(name), device)
    folder = runs / "starts"
    checkpoint = folder / f"{name} in training"
    with seeded(LEARNED["seed"]), store.held(checkpoint):  # type: ignore[arg-type]
        adam = Adam(made.model.parameters(), lr=LEARNED["lr"])
        schedule = CosineAnnealingLR(adam, LEARNED["steps"])  # type: ignore[arg-type]
        stage = Stage(
            checkpoint, "start", f"{LEARNED} {name}", every=1000, model=made.model, adam=adam, schedule=schedule
        )
        made.model.train()

        def terms(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            return {"l1": F.l1_loss(made.model(batch[0]), batch[1])}

        steps = int(LEARNED["steps"])
        for _ in descend(terms, made.batches, adam, stage, steps=steps, schedule=schedule, progress=progress):
            pass
    weights = save({key: value.cpu() for key, value in made.model.state_dict().items()})
    store.write(folder / f"{name}.safetensors", weights)
    return made.measure(made.model)


# -- VDSR as published ------------------------------------------------------------------------------------------------


class VDSR(nn.Module):
    """VDSR (Kim et al., CVPR 2016, 1511.04587): twenty convolutions whose output is added to the enlarged luma."""

    def __init__(self, width: int = 64, layers: int = 20) -> None:
        super().__init__()
        inner = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(layers - 2))
        convs = [nn.Conv2d(1, width, 3, padding=1, bias=False), *inner]
        self.body = nn.Sequential(*(part for conv in convs for part in (conv, nn.ReLU())))
        self.tail = nn.Conv2d(width, 1, 3, padding=1, bias=False)

    def forward(self, y: Tensor) -> Tensor:
        return y + self.tail(self.body(y))  # (N, 1, H, W), luma in [0, 1]


@cache
def vdsr(device: str, patch: int) -> Task:
    """VDSR with its published weights: enlarged patches of T91, the score on the luma of Set5."""
    t91, set5 = FOLDER / "t91", FOLDER / "set5"
    colour = lab.tasks.photos(SCALE, published_vdsr(), folder=t91, held_out=set5, patch=patch, batch_size=BATCH)
    held_out = list(EnlargedLuma(lab.tasks.photos_held_out(SCALE, set5)))
    made = replace(
        colour,
        batches=EnlargedLuma(colour.batches),
        score=lab.tasks.psnr(held_out, border=SCALE),
        example=held_out[0][0][:, :, :32, :32],
        name="vdsr on T91",
    )
    return placed(made, device)


def published_vdsr() -> VDSR:
    """The weights, without the eighteen names that they were published under."""
    published = load_file(FOLDER / "weights" / "vdsr.safetensors")
    names = ["input", *(f"residual_layer.{k}.conv" for k in range(18))]
    state = {f"body.{2 * k}.weight": published[f"{name}.weight"] for k, name in enumerate(names)}
    net = VDSR()
    net.load_state_dict(state | {"tail.weight": published["output.weight"]})
    return net.eval()


class EnlargedLuma:
    """Batches of pictures as VDSR reads them: luma (N, 1, H, W) in [0, 1], the small ones enlarged by bicubic."""

    def __init__(self, batches: Iterable) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for low, high in self.batches:
            yield enlarged(_luma(low), SCALE), _luma(high)


def _luma(x: Tensor) -> Tensor:
    return luma(x)[:, None] / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=[*NETS])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.net}: {learn(options.net, options.runs, options.device):.3f} dB on Set5")


if __name__ == "__main__":
    main()
