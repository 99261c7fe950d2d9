"""Hybrid SD as a recipe: one set of prompts at every split of the trajectory, beside its controls."""

import math
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ..core.fields import Allowed, by_name, integer, one_of, real, validate
from ..core.machine import device_of
from ..core.report import Report, Row, attempt, reported
from ..core.running import digest, made, network, validate_kind
from ..core.stopping import held
from ..core.training import Step, seeded
from . import baselines as cheaper
from . import cloud as cloud_service
from . import costs, solvers, sweep
from . import prompts as prompting
from .components import is_source, vae_of
from .outcome import HybridSDOutcome
from .pipeline import SOLVERS, HybridPipeline
from .prompts import PromptTask
from .sampler import HybridSampler
from .sweep import Quality, SweepPoint, Variant

SHOWN = 6  # prompts whose pictures the outcome keeps


@by_name
@dataclass(frozen=True, kw_only=True)
class HybridSD:
    """One denoising trajectory on a large cloud U-Net and a small edge U-Net (Yan et al., arXiv 2408.06646).

    cloud: '' for the embedded models, a diffusers folder or hub id, or 'http://host:port' of `lab serve cloud`; `edge`
    is then a whole pipeline. edge, vae: folder or id of the small U-Net and
    of the decoder; '' for the embedded ones, or for the cloud's decoder. N: steps of the whole trajectory. k: steps
    that the cloud runs, the split that the report is about. ks: the splits that are swept; 0 is the edge alone, N the
    cloud alone. controls: at how many steps in the cloud the edge-first order and the cloud alone with fewer steps are
    drawn too. baselines: which of 'DeepCache', 'T-GATE' and 'EC-Diff' are drawn there as well, at the cloud cost of so
    many steps. solver: 'dpm++', 'ddim', 'euler', 'lcm' or 'own'. guidance: the scale s. prompts: how many are drawn.
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
    baselines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validate(
            self,
            cloud=_source("a folder, a hub id 'owner/name' or 'http://host:port'", url=True),
            edge=_source("a folder or a hub id 'owner/name'"),
            vae=_source("a folder or a hub id 'owner/name'"),
            N=integer(1, 1000),
            solver=one_of(*SOLVERS, "own"),
            guidance=real(0),
            prompts=integer(1),
            batch=integer(1),
            handoff=one_of("exact", "int8"),
        )
        validate(self, k=integer(0, self.N), ks=_steps(0, self.N), controls=_steps(1, self.N, least=0))
        validate(self, baselines=_names(cheaper.BASELINES))
        object.__setattr__(self, "baselines", tuple(self.baselines))
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
    def from_pretrained(
        cloud: str | Path, edge: Any = None, vae: str | Path | None = None, **options: Any
    ) -> HybridPipeline:
        """The pipeline of folders or hub ids, to draw with: `.draw('a cat', steps=[10, 15])`; see `HybridPipeline`."""
        return HybridPipeline.from_pretrained(cloud, edge, vae, **options)

    def pipeline(self) -> HybridPipeline:
        """The models of this recipe's `cloud`, `edge` and `vae`, with its solver."""
        if self.cloud.startswith(("http://", "https://")):
            return self._remote()
        if not self.cloud and not self.edge:
            pipeline = prompting.embedded(solver=self.solver)
            if not self.vae:
                return pipeline
            return HybridPipeline.of(pipeline.components(), list(pipeline.unets)[1:], vae_of(self.vae))
        if not self.cloud or not self.edge:
            raise ValueError(f"HybridSD: cloud={self.cloud!r} and edge={self.edge!r} belong together: give both")
        return HybridPipeline.from_pretrained(self.cloud, self.edge, self.vae or None, solver=self.solver)

    def _remote(self) -> HybridPipeline:
        """The edge's whole pipeline here, the first steps at `cloud`; the token is the environment's LAB_TOKEN."""
        if self.edge:
            local = HybridPipeline.from_pretrained(self.edge, None, self.vae or None, solver=self.solver)
        else:
            local = replace(self, cloud="").pipeline()
        client = cloud_service.CloudClient(self.cloud)
        # the cloud refuses hand-offs of other latents or words than its own
        client.mark = cloud_service.fingerprint(local)
        return HybridPipeline([local.unets[-1]], local.scheduler, local.text, local.vae, client)

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
        device = None if device is None else device_of(device)
        with seeded(seed), held(checkpoint):
            task = prompting.scenes(self.prompts, 1, self.pipeline()) if task is None else task
            variants, pipeline = self.variants(), self._prepared(task.model, device)
            cheaper.validate_baselines(self.baselines, pipeline)
            run_id = self._run_id(task, pipeline, seed, checkpoint)
            # before the first picture: a network that cannot be counted, a cloud that is gone, then costs nothing
            per_call, parameters = costs.measured(pipeline, self.guidance)
            sampler = HybridSampler(pipeline, task.prompts[:1], self.guidance, seed)
            casts = sweep.cast_notes(sampler, self.N, self.k)
            plans = cheaper.plans(sampler, variants, self.N)
            batches = sweep.batches(
                task,
                pipeline,
                variants,
                N=self.N,
                guidance=self.guidance,
                batch=self.batch,
                seed=seed,
                int8=self.handoff == "int8",
                plans=plans,
                progress=progress,
                checkpoint=checkpoint,
                run_id=run_id,
            )
            images, sizes = _joined(list(batches), variants)  # by variant: (n, 3, H, W), bytes
            worth, notes = _judged(task, images)
            calls = {n: solvers.calls(pipeline.scheduler_at(), n) for n in {self.N, *self.controls}}
            points = tuple(
                sweep.baseline_point(v, worth[v], plans[v], per_call.decoder, sizes[v])
                if v in plans
                else sweep.point(v, worth[v], per_call, calls[v[1] if v[0] == "fewer steps" else self.N], sizes[v])
                for v in variants
            )
            raw_bytes = 3 * math.prod(pipeline.size)
            report = reported(repr(self), self._report, task, points, parameters, raw_bytes, casts + notes)
        return HybridSDOutcome(
            recipe=self,
            report=report,
            trace=tuple(chain(*(_trace(points, kind) for kind in sweep.KINDS))),
            points=points,
            prompts=task.prompts[:SHOWN],
            parts=task.parts,
            pictures={f"{kind}, {k}": (255 * images[kind, k][:SHOWN]).round().to(torch.uint8) for kind, k in variants},
            made=made(seed, task.name, network=type(task.model).__name__),
        )

    def variants(self) -> list[Variant]:
        """(kind, k) of everything that is drawn."""
        # whatever is swept, the report needs both ends and its own split
        ks = sorted({0, self.k, self.N, *self.ks})
        controls = [(kind, k) for kind in (*sweep.KINDS[1:], *self.baselines) for k in self.controls]
        return [("hybrid", k) for k in ks] + controls

    def _prepared(self, pipeline: HybridPipeline, device: torch.device | None) -> HybridPipeline:
        """The task's pipeline with this recipe's solver, on the device; a copy where it must move."""
        if len(pipeline.denoisers) < 2:
            raise ValueError(
                "run() splits steps between two models: give a HybridPipeline of two U-Nets, or one with a cloud"
            )
        most = pipeline.denoisers[0].max_images  # None where all models are here
        if most is not None and self.batch > most:
            raise ValueError(f"HybridSD: batch={self.batch} is not allowed: the cloud takes at most {most} pictures")
        # another scheduler leaves the task's models as they are, another device would move them
        if device is not None and device != pipeline.device:
            pipeline = deepcopy(pipeline).to(device)
        return pipeline.with_solver(self.solver)

    def _run_id(self, task: PromptTask, pipeline: HybridPipeline, seed: int, checkpoint: str | Path | None) -> str:
        """This run's name on a checkpoint: recipe, seed, task, and what tells its network and prompts from others."""
        name = f"{self!r} with seed {seed} on {task.name}"
        if checkpoint is None:
            return name
        return f"{name} (network {digest(network(pipeline))}, prompts {digest(task.prompts)})"

    def _report(
        self,
        task: PromptTask,
        points: tuple[SweepPoint, ...],
        parameters: tuple[int, int],
        raw_bytes: int,
        notes: tuple[str, ...],
    ) -> Report:
        """Before is the cloud alone, after the split at k; then the edge alone and every control."""
        by = {(point.kind, point.k): point for point in points}
        cloud, split, edge = by["hybrid", self.N], by["hybrid", self.k], by["hybrid", 0]
        rows = [
            Row("parameters", *parameters),
            Row("cloud macs", cloud.cloud_macs, split.cloud_macs),
            Row("edge macs", cloud.edge_macs, split.edge_macs),
            Row("bytes", raw_bytes, split.bytes, "B"),
            *_quality_rows("", cloud, split),
            *_quality_rows(", edge only", cloud, edge),
        ]
        for kind, k in by:
            if kind != "hybrid":
                rows += _quality_rows(f", {kind}, {k}", cloud, by[kind, k])
        return Report(repr(self), tuple(rows), self._notes(task) + notes)

    def _notes(self, task: PromptTask) -> tuple[str, ...]:
        return (
            f"before: {self.N} steps in the cloud; after: {self.k} there, {self.N - self.k} at the edge, which decodes",
            f"{len(task.prompts)} prompts, guidance {self.guidance:g}; right: each of {', '.join(task.parts)}",
            "macs: one picture, both inputs of guidance, attention's products and one decoding counted",
            f"bytes: a raw picture, and one picture's hand-off ({self.handoff}) with the solver's memory and token ids",
            "frechet distance: on the features that the task gives, no FID",
        )


def _quality_rows(suffix: str, before: SweepPoint, after: SweepPoint) -> list[Row]:
    return [
        Row(f"semantic accuracy{suffix}", before.accuracy, after.accuracy, "%", "learned", 1),
        Row(f"frechet distance{suffix}", before.frechet, after.frechet, "", "learned", 2),
    ]


def _joined(
    batches: Sequence[sweep.Sampled], variants: Sequence[Variant]
) -> tuple[dict[Variant, torch.Tensor], dict[Variant, int]]:
    """The pictures (n, 3, H, W) of all prompts by variant, and a hand-off's bytes, of the first batch."""
    images = {variant: torch.cat([batch.images[variant] for batch in batches]) for variant in variants}
    return images, batches[0].bytes


def _judged(task: PromptTask, images: dict[Variant, torch.Tensor]) -> tuple[dict[Variant, Quality], tuple[str, ...]]:
    """The quality of each variant, and notes on what could not be judged: the pictures are kept all the same."""
    worth: dict[Variant, Quality] = {}
    notes: dict[str, None] = {}  # in order, each once
    unknown = Quality(math.nan, (math.nan,) * len(task.parts), math.nan)
    for variant, shown in images.items():
        measured, note = attempt("quality not judged", sweep.quality, task, shown)
        worth[variant] = measured or unknown
        notes |= {note: None} if note else {}
    return worth, tuple(notes)


def _trace(points: tuple[SweepPoint, ...], kind: str) -> list[Step]:
    """The points of one kind as steps."""
    terms = (
        {"k": float(p.k), "semantic accuracy": p.accuracy, "frechet distance": p.frechet}
        for p in points
        if p.kind == kind
    )
    return [Step(kind, i, values) for i, values in enumerate(terms)]


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


def _names(among: Sequence[str]) -> Allowed:
    def holds(value: Any) -> bool:
        return isinstance(value, tuple | list) and len(set(value)) == len(value) and set(value) <= set(among)

    return Allowed(holds, f"different ones of {', '.join(map(repr, among))}")
