"""One set of prompts drawn at every split, beside its controls: all of them start from the same noise."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from ..core import cost, store
from ..core.task import evaluating
from . import equations as eq
from .costs import Price, split_cost
from .handoff import Handoff, advance, begin
from .pipeline import Split
from .prompts import PromptTask
from .sampling import Conditioning, noise_prediction

KINDS = ("hybrid", "edge first", "fewer steps")


@dataclass(frozen=True)
class Point:
    """One way of drawing: its kind, k steps in the cloud, its quality in percent and Frechet distance, its cost.

    `parts` are the shares of prompts whose count, colour ... is right. MACs are those of one picture, guidance and one
    decoding counted; `bytes` is one picture's hand-off.
    """

    kind: str
    k: int
    accuracy: float
    parts: tuple[float, ...]
    frechet: float
    cloud_macs: float
    edge_macs: float
    bytes: int


class _Guided(nn.Module):
    def __init__(self, unet: nn.Module, said: Conditioning) -> None:
        super().__init__()
        self.unet, self.said = unet, said

    def forward(self, latent: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return noise_prediction(self.unet, latent, t, self.said)


class _Decoder(nn.Module):
    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latent, return_dict=False)[0]


@torch.no_grad()
def price(split: Split, guidance: float) -> Price:
    """MACs of one picture's step in the cloud and at the edge (guidance counted) and of one decoding.

    Convolutions, linear layers and the products of attention. A cloud elsewhere tells its own.
    """
    said = split.conditioning(split.text.tokens(["a"]), guidance)
    latent, _ = split.noise(1, 0, 2)
    t = torch.tensor(1, device=latent.device)
    edge = cost.macs(_Guided(split.unets[-1], said), (latent, t))
    if split.cloud is not None:
        cloud = split.cloud.about()["macs"][guidance > 1]
    else:
        cloud = cost.macs(_Guided(split.unets[0], said), (latent, t))
    return Price(cloud=cloud, edge=edge, decoder=cost.macs(_Decoder(split.vae), (latent,)))


Turn = Callable[[Handoff, int], Handoff]  # a trajectory goes on until a step


def turns(split: Split, said: Conditioning) -> tuple[Turn, Turn]:
    """How the cloud and how the edge go on with a trajectory: here, or elsewhere where the pipeline has a service."""

    def here(unet: nn.Module) -> Turn:
        return lambda state, until: advance(state, unet, split.scheduler, said, until)

    def elsewhere(state: Handoff, until: int) -> Handoff:
        return state if until == state.index else split.ask(state, until)[0]

    return here(split.unets[0]) if split.cloud is None else elsewhere, here(split.unets[-1])


@torch.no_grad()
def drawn(
    split: Split, prompts: Sequence[str], ways: Sequence[tuple[str, int]], N: int, guidance: float, seed: int
) -> dict[tuple[str, int], torch.Tensor]:
    """The final latents of each (kind, k); the steps that several share are taken once."""
    tokens = split.text.tokens(prompts)
    cloud, edge = turns(split, split.conditioning(tokens, guidance, zeros=True))
    found: dict[tuple[str, int], torch.Tensor] = {}
    for kind, (first, second) in {"hybrid": (cloud, edge), "edge first": (edge, cloud)}.items():
        state = _start(split, tokens, N, guidance, seed)
        ks = sorted({k for of, k in ways if of == kind}, key=lambda k: k if kind == "hybrid" else N - k)
        for k in ks:
            state = first(state, k if kind == "hybrid" else N - k)
            found[kind, k] = second(state, N).latent
    for kind, k in ways:
        if kind == "fewer steps":
            found[kind, k] = cloud(_start(split, tokens, k, guidance, seed), k).latent
    return found


def pictures(
    task: PromptTask, split: Split, ways: Sequence[tuple[str, int]], *, N: int, guidance: float, batch: int, seed: int,
    progress: bool = False, checkpoint: str | Path | None = None, owner: str = "",
) -> Iterator[dict[tuple[str, int], torch.Tensor]]:  # fmt: skip
    """The pictures of each batch of prompts by (kind, k); batches of a checkpoint are read, not drawn again."""
    starts = range(0, len(task.prompts), batch)
    for start in tqdm(starts, desc="sweep", disable=not progress, leave=False):
        name = f"batch-{start}"
        if checkpoint is not None and store.exists(checkpoint, name):
            yield _kept(checkpoint, name, owner, ways)
            continue
        with evaluating(split):
            prompts = task.prompts[start : start + batch]
            latents = drawn(split, prompts, ways, N, guidance, seed * 10_007 + start)
            found = {way: split.decode(latent).cpu() for way, latent in latents.items()}
        if checkpoint is not None:
            store.save(checkpoint, name, {"owner": owner, "pictures": [found[way] for way in ways]})
        yield found


def quality(task: PromptTask, shown: torch.Tensor) -> tuple[float, tuple[float, ...], float]:
    """What pictures are worth: percent of prompts with all parts right, percent of each part, Frechet distance."""
    right = task.right(shown)
    distance = eq.frechet_distance(task.features(shown), task.features(task.real))
    parts = tuple(100 * float(one) for one in right.double().mean(0))
    return 100 * float(right.all(1).double().mean()), parts, distance


def point(
    way: tuple[str, int], worth: tuple[float, tuple[float, ...], float], price: Price, N: int, size: int
) -> Point:
    """One way of drawing, with what it is worth (see `quality`) and what it costs."""
    kind, k = way
    paid = split_cost(price, k, N if kind != "fewer steps" else k)
    crossing = size if 0 < k < N and kind != "fewer steps" else 0
    return Point(kind, k, *worth, paid.cloud, paid.edge, crossing)


def handoff_bytes(split: Split, prompt: str, k: int, N: int, guidance: float, int8: bool = False) -> int:
    """Bytes of one picture's hand-off at step k."""
    tokens = split.text.tokens([prompt])
    cloud, _ = turns(split, split.conditioning(tokens, guidance, zeros=True))
    return len(cloud(_start(split, tokens, N, guidance, 0), k).to_bytes(int8=int8))


def _start(split: Split, tokens: dict[str, torch.Tensor], N: int, guidance: float, seed: int) -> Handoff:
    latent, generator = split.noise(len(next(iter(tokens.values()))), seed, N)
    return begin(split.scheduler, latent, N, guidance, prompt=tokens, seed=seed, generator=generator)


def _kept(folder, name: str, owner: str, ways) -> dict[tuple[str, int], torch.Tensor]:
    saved = store.load(folder, name)
    if saved["owner"] != owner:
        raise ValueError(
            f"checkpoint={str(folder)!r} belongs to {saved['owner']}, this run is {owner}: give another folder, or "
            "delete that one"
        )
    return dict(zip(ways, saved["pictures"], strict=True))
