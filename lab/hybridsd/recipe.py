"""Hybrid SD as a recipe: one set of prompts at every split of the trajectory, beside its controls."""

import math
import re
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ..core import cost, store
from ..core.fields import Allowed, integer, one_of, real, validate
from ..core.machine import device_of
from ..core.report import Report, Row, attempt
from ..core.running import digest, network, validate_kind
from ..core.training import Step, seeded
from . import cloud as cloud_service
from . import prompts as prompting
from . import sweep
from .components import is_source
from .outcome import HybridSDOutcome
from .pipeline import SOLVERS, Split, solver_of
from .prompts import PromptTask
from .sweep import Point

SHOWN = 6  # prompts whose pictures the outcome keeps


@dataclass(frozen=True, kw_only=True)
class HybridSD:
    """One denoising trajectory on a large cloud U-Net and a small edge U-Net (Yan et al., arXiv 2408.06646).

    cloud: '' for the embedded models, a diffusers folder or hub id, or 'http://host:port' of `lab serve cloud`; `edge`
    is then a whole pipeline. edge, vae: folder or id of the small U-Net and
    of the decoder; '' for the embedded ones, or for the cloud's decoder. N: steps of the whole trajectory. k: steps
    that the cloud runs, the split that the report is about. ks: the splits that are swept; 0 is the edge alone, N the
    cloud alone. controls: at how many steps in the cloud the edge-first order and the cloud alone with fewer steps are
    drawn too. solver: 'dpm++', 'ddim', 'euler', 'lcm' or 'own'. guidance: the scale s. prompts: how many are drawn.
    batch: pictures at a time. handoff: 'exact' or 'int8', which the bytes of the report are about.
    """

    cloud: str = ""
    edge: str = ""
    vae: str = ""
    N: int = 25
    k: int = 10
    ks: tuple[int, ...] = (0, 5, 10, 15, 20, 25)
    controls: tuple[int, ...] = (10,)
    solver: str = "dpm++"
    guidance: float = 4.0
    prompts: int = 48
    batch: int = 48
    handoff: str = "exact"

    def __post_init__(self) -> None:
        validate(
            self, cloud=_source("a folder, a hub id 'owner/name' or 'http://host:port'", url=True),
            edge=_source("a folder or a hub id 'owner/name'"), vae=_source("a folder or a hub id 'owner/name'"),
            N=integer(1, 1000), solver=one_of(*SOLVERS, "own"), guidance=real(0), prompts=integer(1), batch=integer(1),
            handoff=one_of("exact", "int8"),
        )  # fmt: skip
        validate(self, k=integer(0, self.N), ks=_steps(0, self.N), controls=_steps(1, self.N, least=0))
        for name in ("ks", "controls"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))

    @classmethod
    def paper(cls, name: str) -> "HybridSD":
        """The paper's settings by family: 'sd' and 'sdxl' (25 steps, 10 in the cloud), 'lcm' (8 steps, 4 in the cloud).

        The weights are the reader's: `dataclasses.replace(recipe, cloud=..., edge=...)`. The authors took SD-v1.4 and
        their 224 M U-Net, SDXL-base with KOALA-700M, and both of the first after 20,000 steps of LCM distillation.
        """
        lcm = {"N": 8, "k": 4, "ks": (0, 4, 8), "controls": (4,), "solver": "lcm"}
        settings: dict[str, dict[str, Any]] = {"sd": {}, "sdxl": {"ks": (0, 10, 15, 25)}, "lcm": lcm}
        if name not in settings:
            raise ValueError(f"name={name!r}: the paper's settings are kept for {', '.join(settings)}")
        return cls(**{"guidance": 7.0, **settings[name]})

    @staticmethod
    def from_pretrained(cloud: str | Path, edge: Any = None, vae: str | Path | None = None, **options: Any) -> Split:
        """The pipeline of folders or hub ids, to draw with: `.draw('a cat', steps=[10, 15])`; see `Split`."""
        return Split.from_pretrained(cloud, edge, vae, **options)

    def pipeline(self) -> Split:
        """The models of this recipe's `cloud`, `edge` and `vae`, with its solver."""
        if self.cloud.startswith(("http://", "https://")):
            return self._remote()
        if not self.cloud and not self.edge:
            found = prompting.embedded(solver=self.solver)
            return found if not self.vae else Split.of(*_decoded(found, self.vae))
        if not self.cloud or not self.edge:
            raise ValueError(f"HybridSD: cloud={self.cloud!r} and edge={self.edge!r} belong together: give both")
        return Split.from_pretrained(self.cloud, self.edge, self.vae or None, solver=self.solver)

    def _remote(self) -> Split:
        """The edge's whole pipeline here, the first steps at `cloud`; the token is the environment's LAB_TOKEN."""
        local = replace(self, cloud="").pipeline() if not self.edge else Split.from_pretrained(
            self.edge, None, self.vae or None, solver=self.solver
        )  # fmt: skip
        client = cloud_service.Client(self.cloud)
        client.mark = cloud_service.fingerprint(local)
        return Split([local.unets[-1]], local.scheduler, local.text, local.vae, client)

    def run(
        self,
        task: PromptTask | None = None,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> HybridSDOutcome:
        """Draw the task's prompts at every split and with every control; the models passed in are not changed."""
        if task is not None:
            validate_kind(self, task, PromptTask, "lab.hybridsd.scenes(48) or a PromptTask of your own")
        device = device_of(device) if device is not None else None
        with seeded(seed), store.held(checkpoint):
            task = prompting.scenes(self.prompts, 1, self.pipeline()) if task is None else task
            split = self._split(task.model, device)
            ways = self.ways()
            size, price = self._bytes(split, task.prompts[0]), sweep.price(split, self.guidance)
            large = cost.parameters(split.unets[0]) if split.cloud is None else split.cloud.about()["parameters"]
            options = {"N": self.N, "guidance": self.guidance, "batch": self.batch, "seed": seed}
            owner = f"{self!r} with seed {seed} on {task.name}"
            if checkpoint is not None:
                owner = f"{owner} (network {digest(network(split))}, prompts {digest(task.prompts)})"
            drawn = list(
                sweep.pictures(task, split, ways, **options, progress=progress, checkpoint=checkpoint, owner=owner)
            )
            shown = {way: torch.cat([batch[way] for batch in drawn]) for way in ways}
            worth, notes = _worth(task, shown)
            points = tuple(sweep.point(way, worth[way], price, self.N, size) for way in ways)
        return HybridSDOutcome(
            recipe=self,
            report=self._report(split, task, points, large, notes),
            trace=tuple(chain(*(_steps_of(points, kind) for kind in sweep.KINDS))),
            points=points,
            prompts=task.prompts[:SHOWN],
            parts=task.parts,
            pictures={f"{kind}, {k}": (255 * shown[kind, k][:SHOWN]).round().to(torch.uint8) for kind, k in ways},
        )

    def ways(self) -> list[tuple[str, int]]:
        """(kind, k) of everything that is drawn."""
        ks = sorted({0, self.k, self.N, *self.ks})
        others = [(kind, k) for kind in sweep.KINDS[1:] for k in self.controls]
        return [("hybrid", k) for k in ks] + others

    def _split(self, split: Split, device: Any) -> Split:
        """The task's pipeline with this recipe's solver, on the device; a copy where it must move."""
        if split.cloud is None and len(split.unets) < 2:
            raise ValueError("run() splits steps between two models: give a Split of two U-Nets, or one with a cloud")
        most = self.batch if split.cloud is None else split.cloud.about()["pictures"]
        if self.batch > most:
            raise ValueError(f"HybridSD: batch={self.batch} is not allowed: the cloud takes at most {most} pictures")
        if device is not None and torch.device(device) != split.device:
            split = deepcopy(split).to(device)
        return split.with_solver(solver_of(split.scheduler, self.solver))

    def _bytes(self, split: Split, prompt: str) -> int:
        k = min(max(self.k, 1), self.N - 1)
        return sweep.handoff_bytes(split, prompt, k, self.N, self.guidance, self.handoff == "int8") if self.N > 1 else 0

    def _report(
        self, split: Split, task: PromptTask, points: tuple[Point, ...], large: int, notes: tuple[str, ...]
    ) -> Report:
        by = {(point.kind, point.k): point for point in points}
        whole, part, alone = by["hybrid", self.N], by["hybrid", self.k], by["hybrid", 0]
        h, w = split.size
        rows = [
            Row("parameters", large, cost.parameters(split.unets[-1])),
            Row("cloud macs", whole.cloud_macs, part.cloud_macs),
            Row("edge macs", whole.edge_macs, part.edge_macs),
            Row("bytes", 3 * h * w, part.bytes, "B"),
            Row("semantic accuracy", whole.accuracy, part.accuracy, "%", "learned", 1),
            Row("frechet distance", whole.frechet, part.frechet, "", "learned", 2),
            Row("semantic accuracy, edge only", whole.accuracy, alone.accuracy, "%", "learned", 1),
            Row("frechet distance, edge only", whole.frechet, alone.frechet, "", "learned", 2),
        ]
        for kind, k in by:
            if kind != "hybrid":
                found = by[kind, k]
                rows += [
                    Row(f"semantic accuracy, {kind}, {k}", whole.accuracy, found.accuracy, "%", "learned", 1),
                    Row(f"frechet distance, {kind}, {k}", whole.frechet, found.frechet, "", "learned", 2),
                ]
        return Report(repr(self), tuple(rows), self._notes(task) + notes)

    def _notes(self, task: PromptTask) -> tuple[str, ...]:
        return (
            f"before: {self.N} steps in the cloud; after: {self.k} there, {self.N - self.k} at the edge, which decodes",
            f"{len(task.prompts)} prompts, guidance {self.guidance:g}; right: each of {', '.join(task.parts)}",
            "macs: one picture, both inputs of guidance, attention's products and one decoding counted",
            f"bytes: a raw picture, and one picture's hand-off ({self.handoff}) with the solver's memory and token ids",
            "frechet distance: on 64 features of the project's own reader of these pictures, no FID",
        )


def _worth(task: PromptTask, shown: dict[tuple[str, int], torch.Tensor]) -> tuple[dict, tuple[str, ...]]:
    """The quality of each way of drawing, and notes on what could not be judged: the pictures are kept all the same."""
    worth: dict[str, tuple] = {}
    notes: dict[str, None] = {}  # in order, each once
    unknown = (math.nan, (math.nan,) * len(task.parts), math.nan)
    for way, pictures in shown.items():
        found, note = attempt("quality not judged", sweep.quality, task, pictures)
        worth[way] = found or unknown
        notes |= {note: None} if note else {}
    return worth, tuple(notes)


def _steps_of(points: tuple[Point, ...], kind: str) -> list[Step]:
    found = [point for point in points if point.kind == kind]
    return [
        Step(kind, i, {"k": float(p.k), "semantic accuracy": p.accuracy, "frechet distance": p.frechet})
        for i, p in enumerate(found)
    ]


def _source(words: str, url: bool = False) -> Allowed:
    def holds(value: Any) -> bool:
        return value == "" or is_source(value) or (url and bool(re.fullmatch(r"https?://\S+", value)))

    return Allowed(holds, f"'' or {words}")


def _steps(low: int, high: int, least: int = 1) -> Allowed:
    def holds(value: Any) -> bool:
        return (
            isinstance(value, tuple | list)
            and len(set(value)) == len(value) >= least
            and all(isinstance(k, int) and not isinstance(k, bool) and low <= k <= high for k in value)
        )

    return Allowed(holds, f"different integers in {low}..{high}, at least {least}")


def _decoded(split: Split, vae: str) -> tuple:
    from .components import vae_of

    return split.components(), list(split.unets[1:]), vae_of(vae)
