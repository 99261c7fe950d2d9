"""The golden folders: `python -m tests.formats` saves one of every recipe under tests/data/formats/<version>.

Run once a release, before the version moves on; what an older version has saved is never made again.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lab
from lab.core import machine, running
from lab.core.batch import tensors
from lab.core.data.text import perplexity
from lab.core.training import seeded
from tests.acenas import spaces
from tests.hyperfd import small as clouds

FOLDER = Path(__file__).parent / "data" / "formats"
VERSION = "0.1.0"  # the folder that is added to; each release begins one of its own


class Own(nn.Module):
    """A class of a user's own, as it was when the first golden folder was saved: it must not change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.second(self.norm(self.first(x)).relu()).relu()
        return self.head(x.mean((2, 3)))


def classifying(model: nn.Module, channels: int = 1, side: int = 8) -> lab.Task:
    with seeded(1):
        x, y = torch.randn(12, channels, side, side), torch.arange(12) % 3
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    return lab.Task(model=model, batches=batches, score=lab.tasks.accuracy(batches), name="golden")


def restoring(model: nn.Module) -> lab.Task:
    with seeded(1):
        x = torch.rand(2, 3, 8, 8)
    batches = [(x, nn.functional.interpolate(x, scale_factor=2.0))]
    score = lab.tasks.psnr(batches, border=2)
    return lab.Task(model=model, batches=batches, score=score, metric="psnr", unit="dB", name="golden")


def writing(model: nn.Module) -> lab.Task:
    x = [torch.arange(24).reshape(2, 12) % 40]
    return lab.Task(model=model, batches=x, score=perplexity(x), metric="perplexity", unit="", name="golden")


def transformer() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3, num_channels=1))


def language_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 4, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=40, max_position_embeddings=16))


def autoencoder() -> nn.Module:
    from diffusers import AutoencoderTiny

    sizes = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4), "num_encoder_blocks": (1, 1)}
    return AutoencoderTiny(**sizes, num_decoder_blocks=(1, 1), latent_channels=4)


def reproducing(model: nn.Module) -> lab.Task:
    with seeded(1):
        x = torch.rand(2, 3, 8, 8)
    loss = lambda y, x: (y.sample - x).abs().mean()  # noqa: E731
    return lab.Task(model=model, batches=[(x, x)], score=lambda model: 1.0, loss=loss, name="golden")


def drawn() -> Any:
    """A run of Hybrid SD on models of a few weights."""
    from tests.hybridsd.test_recipe import own_task

    task = replace(own_task(2), name="golden")
    return lab.HybridSD(N=2, k=1, ks=(0, 1, 2), controls=(), prompts=2).run(task, progress=False)


def after(first: Callable[[], tuple[Any, Any]], recipe: Any) -> tuple[Any, Any]:
    """An outcome that was made from another, and the task."""
    outcome, task = first()
    return recipe.run(outcome.task(task), progress=False), task


def outcomes() -> dict[str, Callable[[], tuple[Any, Any]]]:
    """Each golden folder by name: its outcome and the task, None where there is no network."""

    def of(recipe: Any, make: Callable[[], nn.Module], kind: Callable[[nn.Module], lab.Task]) -> Callable:
        def run() -> tuple[Any, Any]:
            with seeded(0):
                task = kind(make().eval())
            return recipe.run(task, progress=False), task

        return run

    gal = lab.GAL(units="channel", steps=2, finetune_steps=1)
    sparse, pams = lab.SparseByteNN(steps=2), lab.PAMS(steps=2, calibration=1)
    dqss = lab.DQSS(steps=2, calibration=2, candidates=("max", "mse"))
    fold = lab.FoldGPT(removal=1 / 4, sharing=1 / 4, rank=2, gate_steps=2, cure_steps=2)
    acenas = lab.AceNAS(budget=6, rounds=2, top=2, scorer="random")
    hyperfd = lab.HyperFD(K=1, trials=2, R=1, m=16, steps=1, by="nearest")
    vit = lambda: lab.nets.vit(size=8, patch=4, width=8, depth=1, heads=2, ratio=1, classes=3)  # noqa: E731
    edsr = lambda: lab.nets.edsr(blocks=1, width=4)  # noqa: E731
    return {
        "gal": of(gal, transformer, classifying),
        "decoupling": of(lab.Decoupling(steps=2), Own, classifying),
        "sparsebytenn": of(sparse, autoencoder, reproducing),
        "dqss": of(dqss, vit, classifying),
        "pams": of(pams, edsr, restoring),
        "foldgpt": of(fold, language_model, writing),
        "hybridsd": lambda: (drawn(), None),
        "acenas": lambda: (acenas.run(spaces.chains(), progress=False), None),
        "hyperfd": lambda: (hyperfd.run(clouds.stream(tasks=3, pictures=17), progress=False), None),
        "after-another": lambda: after(of(gal, edsr, restoring), pams),
        "program": of(dqss, Own, classifying),
        "chain": of(lab.Chain(gal, sparse, dqss), vit, classifying),
    }


# What is saved as a program too, and what is read with the user's class.
SOURCE, OWN = ("program",), ("decoupling",)


def output(outcome: Any, x: Any) -> torch.Tensor:
    """The first tensor of what an outcome's network gives."""
    with torch.no_grad():
        y = outcome.model.eval()(x)
    return next(tensors(y)).clone()


def state(outcome: Any) -> str:
    """What tells an outcome's weights from all others, to the last bit."""
    return running.digest(dict(outcome.model.state_dict()))


def loaded(folder: Path) -> Any:
    """The outcome of a golden folder."""
    return lab.load(folder, base=Own() if folder.name in OWN else None)


def main() -> int:
    """Save all that this version has not saved yet; 1 if there is nothing to do."""
    folder = FOLDER / VERSION
    facts, numbers = {}, {}
    if folder.exists():
        facts = json.loads((folder / "facts.json").read_text())["outcomes"]
        numbers = load_file(folder / "outputs.safetensors")
    new = {name: run for name, run in outcomes().items() if name not in facts}
    for name, run in new.items():
        outcome, task = run()
        outcome.save(folder / name, source=name in SOURCE)
        facts[name] = {}
        if task is not None:
            x = task.inputs_of(task.first_batch())
            facts[name] = {"state": state(loaded(folder / name))}
            numbers |= {f"{name}.x": x, f"{name}.y": output(outcome, x)}
        print(name, sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()), "bytes")
    save_file(numbers, folder / "outputs.safetensors")
    facts = {"machine": machine.machine(), "outcomes": facts}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    return int(not new)


if __name__ == "__main__":
    sys.exit(main())
