"""The pipeline: several models of one latent space draw one picture, in this process or over a network."""

import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..core.machine import device_of
from ..core.service import ServiceError
from ..core.task import evaluating
from . import families, requests
from .adapters import add_lora
from .blocks import unet_of
from .components import DENOISERS, diffusers, pipeline_parts, unscaled, vae_of, validate_edge, validate_unets
from .denoisers import LocalDenoiser, RemoteDenoiser
from .editing import Edit, generators, normal
from .sampler import HybridSampler
from .samples import Crossing, Samples
from .sampling import Conditioning, placed, trajectory
from .solvers import first_sigma, fresh, is_finite, is_flow
from .text import Text

SOLVERS = {
    "dpm++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "lcm": "LCMScheduler",
}
_TEXT_PARTS = tuple((f"text_encoder{i}", f"tokenizer{i}") for i in ("", "_2", "_3"))  # SD has one, SD3 all


class _Trajectory(NamedTuple):
    """A trajectory before it is decoded: Samples without pictures."""

    latent: torch.Tensor
    steps: tuple[int, ...]
    trail: tuple[torch.Tensor, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    notes: tuple[str, ...] = ()


class HybridPipeline(nn.Module):
    """Split sampling: `unets` in trajectory order (large first, as in the paper, or any other), one scheduler.

    They are U-Nets, or transformers of SD3, Flux or PixArt, all of one family.

    The scheduler given is copied for each picture, never changed. `cloud` is a client whose `half(...)` runs the first
    model's steps elsewhere (`lab.hybridsd.cloud`): `unets` then holds the edge's alone.
    """

    unets: nn.ModuleList
    text: Text
    vae: Any

    def __init__(
        self, unets: Sequence[nn.Module], scheduler: Any, text: Text, vae: nn.Module, cloud: Any = None
    ) -> None:
        super().__init__()
        validate_unets(unets, vae)
        self.unets, self.text, self.vae = nn.ModuleList(unets), text, vae
        self.scheduler, self.cloud = scheduler, cloud
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        cloud: str | Path,
        edge: str | Path | Sequence[str | Path] | None = None,
        vae: str | Path | None = None,
        *,
        solver: str | None = None,
        device: Any = None,
        edge_device: Any = None,
        edge_dtype: torch.dtype | None = None,
        lora: str | Path | None = None,
        edge_lora: str | Path | Sequence[str | Path] | None = None,
        **options: Any,
    ) -> "HybridPipeline":
        """Models of folders or hub ids: `cloud` a whole pipeline, `edge` one model of the same family or several.

        Families are SD 1.x and 2.x, SDXL, LCM, SD3, Flux and PixArt.

        As released, text encoder, tokenizer, scheduler and (without `vae`) the decoder are the cloud's. An edge's
        folder that was trained with another noise schedule or other latents is refused. `options` go to diffusers, e.g.
        `dtype`. `solver` is one of SOLVERS, or 'own' for the folder's own scheduler; left out it is 'dpm++', and 'own'
        for a model that matches a flow. `device` is the cloud's, `edge_device` and `edge_dtype` those of the edge and
        of the decoder, the cloud's where they are left out: latents and the solver's memory are then moved and cast at
        the border, and a note says what that cost. `lora` is the folder of an adapter of the cloud's model, `edge_lora`
        one of the edge's, or a list of one for each.
        """
        edges, adapters = _listed(edge), _listed(edge_lora)
        if adapters and len(adapters) != len(edges):
            raise ValueError(f"edge_lora has {len(adapters)} adapters for {len(edges)} edges: give one for each")
        there = options if edge_dtype is None else options | {"dtype": edge_dtype}
        parts = pipeline_parts(cloud, **options)
        for source in edges:
            validate_edge(source, parts["scheduler"], parts["vae"])
        solver = solver or ("own" if is_flow(parts["scheduler"]) else "dpm++")
        pipeline = cls.of(
            parts,
            [unet_of(source, **there) for source in edges],
            vae_of(vae, **there) if vae is not None else None,
            solver,
        )
        for model, folder in zip(pipeline.unets, [lora, *adapters], strict=False):
            if folder is not None:
                add_lora(model, folder)
        if device is not None:
            pipeline.to(device_of(device))
        for model in (*pipeline.unets[1:], pipeline.vae):
            model.to(None if edge_device is None else device_of(edge_device), edge_dtype)
        return pipeline

    @classmethod
    def of(
        cls, parts: Mapping[str, Any], edges: Sequence[nn.Module] = (), vae: Any = None, solver: str = "own"
    ) -> "HybridPipeline":
        """From components by name, as `DiffusionPipeline.components` gives them, and further models of the family."""
        texts = [(e, t) for e, t in _TEXT_PARTS if parts.get(e) is not None]
        model: Any = next((parts[name] for name in DENOISERS if parts.get(name) is not None), None)
        missing = [name for name, part in (("unet", model), ("scheduler", parts.get("scheduler"))) if part is None]
        if missing or not texts:
            raise ValueError(f"components lack {', '.join(missing or ['text_encoder'])}: give a whole pipeline's")
        reading = bool(parts.get("force_zeros", False)), parts.get("most", 0), families.joint_width(model, len(texts))
        text = Text([parts[e] for e, _ in texts], [parts[t] for _, t in texts], *reading)
        scheduler = solver_of(parts["scheduler"], solver)
        return cls([model, *edges], scheduler, text, parts["vae"] if vae is None else vae)

    def components(self) -> dict[str, Any]:
        """The first model's parts by name, as `of` takes them."""
        name = DENOISERS["Transformer" in type(self.unets[0]).__name__]
        parts = {name: self.unets[0], "vae": self.vae, "scheduler": self.scheduler}
        for (e, t), encoder, tokenizer in zip(_TEXT_PARTS, self.text.encoders, self.text.tokenizers, strict=False):
            parts |= {e: encoder, t: tokenizer}
        return parts | {"force_zeros": self.text.force_zeros, "most": self.text.most}

    def with_solver(self, solver: Any) -> "HybridPipeline":
        """These models with another scheduler: one of SOLVERS, 'own' for the present one, or one of diffusers."""
        scheduler = solver_of(self.scheduler, solver) if isinstance(solver, str) else solver
        modes = {module: module.training for module in self.modules()}  # a new pipeline puts all in eval mode
        other = HybridPipeline(list(self.unets), scheduler, self.text, self.vae, self.cloud)
        for module, mode in modes.items():
            module.training = mode
        return other

    @property
    def denoisers(self) -> list[LocalDenoiser | RemoteDenoiser]:
        """The models of a trajectory in order: those of this process, after one elsewhere if there is a cloud."""
        return self.denoisers_of(self.scheduler_at())

    def denoisers_of(self, scheduler: Any) -> list[LocalDenoiser | RemoteDenoiser]:
        """The same, on the schedule that a picture's size has made of the scheduler."""
        if self.cloud is None:
            return [
                LocalDenoiser(unet, scheduler, is_sender=True, is_cloud=i == 0) for i, unet in enumerate(self.unets)
            ]
        edges = [LocalDenoiser(unet, scheduler, is_sender=False) for unet in self.unets]
        return [RemoteDenoiser(self.cloud, scheduler), *edges]

    def scheduler_at(self, sides: tuple[int, int] | None = None, first: int = 0) -> Any:
        """The scheduler for latents of these sides (h, w): flow matching is shifted by the picture's size.

        `first` is the first step that is taken, of a picture that is drawn over.
        """
        return families.scheduled(self.scheduler, self.unets[0], sides or families.sides(self.unets[0]), first)

    def forward(self, prompts: str | Sequence[str], **how: Any) -> Samples:
        """What `draw` does."""
        return self.draw(prompts, **how)

    @torch.no_grad()
    def draw(
        self,
        prompts: str | Sequence[str],
        *,
        steps: Sequence[int] | None = None,
        order: Sequence[int] | None = None,
        policy: Any = None,
        guidance: float = 7.0,
        seed: int | Sequence[int] = 0,
        negative: str | Sequence[str] | None = None,
        keep: bool = False,
        int8: bool = False,
        size: tuple[int, int] | None = None,
        edit: Edit | None = None,
    ) -> Samples:
        """Pictures of the prompts: `steps[i]` steps of model `order[i]`, of model i where it is left out.

        [k, N-k] is the paper's order for two models; order=[1, 0] takes the edge first, [1, 0, 1] three turns. A
        `policy` (`lab.hybridsd.policies.Policy`) chooses both instead.
        `seed` and `negative` are for all pictures, or lists of one for each. `size` is the pictures' (height, width),
        the models' own if it is left out. With an `edit` a picture is drawn over, all of it or where its mask says.
        Text that is too long is cut, with a warning. `keep` keeps every latent; `int8` sends the hand-off in integers.
        When a cloud elsewhere is slow, gone, or answers rubbish, the edge draws alone and a note says so.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, Iterable) else []
        requests.validate_drawable(prompts, guidance, seed, negative, edit)
        seed, note = list(seed) if isinstance(seed, Sequence) else seed, ""
        if policy is not None:
            steps, order, note = requests.chosen(self, policy, guidance, steps, order)
        steps, order = requests.validated_turns(steps, order, len(self.denoisers))
        # a scheduler whose memory cannot be handed over still draws in one process
        in_one_place = not int8 and self.is_in_one_place
        if keep and not in_one_place:
            raise ValueError(
                "keep=True keeps the latents of one process and precision in full: leave int8 and the cloud out"
            )
        with evaluating(self):
            sampler = HybridSampler(self, prompts, guidance, seed, negative, int8, size=size, edit=edit)
            if in_one_place:
                trail = self._trail(sampler, steps, order, keep)
                walked = _Trajectory(trail[-1], tuple(steps), trail if keep else ())
            else:
                walked = self._handed_over(sampler, steps, order)
            walked = walked._replace(notes=(note, *walked.notes)) if note else walked
            return Samples(self.decode(walked.latent), *walked)

    def noise(
        self, count: int, seed: int | list[int], N: int, sides: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, Any]:
        """The latent that a trajectory of N steps starts from, (count, C, h, w), and the generator that made it.

        A list of seeds has a generator for each picture, which is then drawn as it would be alone. `sides` are its
        (h, w), the models' own where they are left out. Its precision is the highest of the models here.
        """
        generator = generators(seed)
        shape = (count, families.channels(self.unets[0]), *(sides or families.sides(self.unets[0])))
        device, dtype = self.precision
        # drawn on the CPU, so that every machine begins from the same numbers
        noise = normal(shape, generator, dtype).to(device)
        return noise * first_sigma(fresh(self.scheduler_at(sides), N, device)), generator

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of latents (B, C, h, w), decoded once, at the end."""
        latent = latent.to(self.vae.device, self.vae.dtype)
        images = self.vae.decode(unscaled(latent, self.vae.config), return_dict=False)[0]
        if not is_finite(images):
            kind = str(self.vae.dtype).removeprefix("torch.")
            raise ValueError(f"the decoder made numbers that are not finite in {kind}: take its float32, vae.float()")
        return (images / 2 + 0.5).clamp(0, 1).float()

    @property
    def device(self) -> torch.device:
        """Where the first U-Net is."""
        return placed(self.unets[0])[0]

    @property
    def precision(self) -> tuple[torch.device, torch.dtype]:
        """Where a trajectory begins, with the first model, and in the highest precision of the models here."""
        return self.device, reduce(torch.promote_types, (placed(model)[1] for model in self.unets))

    @property
    def is_in_one_place(self) -> bool:
        """Whether all U-Nets are in this process, on one device and in one precision."""
        return self.denoisers[0].is_here and len({placed(unet) for unet in self.unets}) == 1

    @property
    def size(self) -> tuple[int, int]:
        """The picture's (H, W) where none is asked for."""
        h, w = families.sides(self.unets[0])
        return h * self._factor, w * self._factor

    @property
    def _factor(self) -> int:
        """How many pixels a side of one number of the latent has."""
        blocks = getattr(self.vae.config, "block_out_channels", None) or self.vae.config.encoder_block_out_channels
        return 2 ** (len(blocks) - 1)  # every stage of the decoder but one doubles the sides

    def latent_sides(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """The (h, w) of the latent of a picture of (H, W); ValueError unless the models can draw one."""
        if size is None:
            return families.sides(self.unets[0])
        unit, most = (self._factor * of(self.unets[0]) for of in (families.patch, families.most))
        is_pair = (
            isinstance(size, tuple | list) and len(size) == 2 and all(requests.is_count(n) and n > 0 for n in size)
        )
        if not is_pair or any(n % unit or n > most for n in size):
            raise ValueError(
                f"size={size!r} is not allowed: give (height, width), multiples of {unit} pixels up to {most}"
            )
        return size[0] // self._factor, size[1] // self._factor

    def conditioning(
        self,
        tokens: Mapping[str, torch.Tensor],
        guidance: float,
        zeros: bool = False,
        sides: tuple[int, int] | None = None,
    ) -> Conditioning:
        """The models' conditioning for these token ids, (B, L) each, and latents of the sides (h, w)."""
        h, w = sides or families.sides(self.unets[0])
        size = h * self._factor, w * self._factor
        return self.text.conditioning(tokens, guidance, size, zeros).to(self.device)

    def _trail(
        self, sampler: HybridSampler, steps: Sequence[int], order: Sequence[int], keep: bool
    ) -> tuple[torch.Tensor, ...]:
        """The latents after each step, that before the first, in this process; the last one alone unless they are kept.

        Of a picture that is drawn over, the schedule's steps before its first are left out.
        """
        if sampler.edit is None:  # without a hand-off, which not every scheduler allows
            latent, generator = sampler.noise(sum(steps))
            begin, repaint = 0, None
        else:
            state = sampler.start(sum(steps))
            latent, generator, begin, repaint = state.latent, state.generator(), state.index, state.repaint()
        cond = families.painting_over(self.unets[0], sampler.cond, {} if sampler.edit is None else state.painting)
        repaint = None if families.paints(self.unets[0]) else repaint
        solver = fresh(sampler.scheduler, begin + sum(steps), latent.device)
        models = [self.unets[i] for i in (order[0], *order)]  # the first stands for what is left out as well
        latents = trajectory(models, solver, latent, cond, [begin, *steps], generator, begin, repaint)
        return (latent, *latents) if keep else tuple(deque(latents, maxlen=1))

    def _handed_over(self, sampler: HybridSampler, steps: Sequence[int], order: Sequence[int]) -> "_Trajectory":
        """A trajectory that is sent from model to model; the edge takes the steps of a cloud that fails."""
        state, ran, notes, crossings = sampler.start(sum(steps)), list[int](), list[str](), list[Crossing]()
        ends = [state.index + n for n in accumulate(steps)]
        spans = zip([*order, -1], [*ends, ends[-1]], strict=True)  # at last what a cloud has left undone
        for turn, (model, until) in enumerate(spans, 1):
            begun = state.index
            try:
                state, *sizes, note = sampler.advance(state, until, model)
            except ServiceError as error:
                alone = not any(ran) and 0 not in order[turn:]
                took = f"drew all {sum(steps)} steps alone" if alone else f"takes {until - begun} steps in its place"
                sizes, note = [0, 0], f"the cloud did not answer ({error}): the edge {took}"
                warnings.warn(note, stacklevel=4)
            crossings += [Crossing(until, *sizes)] if any(sizes) else []
            ran.append(state.index - begun)
            notes += [note] if note else []
        return _Trajectory(state.latent, tuple(ran if ran[-1] else ran[:-1]), (), tuple(crossings), tuple(notes))


def _listed(sources: Any) -> list[Any]:
    return [] if sources is None else [sources] if isinstance(sources, str | Path) else list(sources)


def solver_of(scheduler: Any, solver: str) -> Any:
    """The scheduler of SOLVERS with another's noise schedule and prediction; 'own' leaves it as it is."""
    if solver == "own":
        return scheduler
    if is_flow(scheduler):
        raise ValueError(f"solver={solver!r} is not allowed for a model that matches a flow: give 'own'")
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} is not allowed: give one of {', '.join(map(repr, SOLVERS))} or 'own'")
    return getattr(diffusers(), SOLVERS[solver]).from_config(scheduler.config)
