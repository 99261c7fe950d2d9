"""The pipeline: several U-Nets of one latent space draw one picture, in this process or over a network."""

import math
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..core import cost
from ..core.service import ServiceError
from ..core.task import evaluating
from .blocks import unet_of
from .components import Text, diffusers, pipeline_parts, unscaled, vae_of, validate_unets
from .handoff import Handoff, advance, begin, validate_continued
from .samples import Samples
from .sampling import Conditioning, GuidedUNet, fresh, trajectory

SOLVERS = {
    "dpm++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "lcm": "LCMScheduler",
}
_TEXT_PARTS = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))  # SDXL has both pairs


class Passage(NamedTuple):
    """A trajectory after some steps, the bytes that it came in, and what the reader must know of the way."""

    state: Handoff
    received: int = 0
    note: str = ""


class LocalDenoiser:
    """A U-Net of this process; `is_sender` if it stands for a machine of its own, which sends what it has made."""

    is_here, max_images = True, None

    def __init__(self, unet: nn.Module, scheduler: Any, is_sender: bool) -> None:
        self.unet, self.scheduler, self.is_sender = unet, scheduler, is_sender

    def advance(
        self, state: Handoff, until: int, cond: Conditioning, *, zeros: bool = True, int8: bool = False
    ) -> Passage:
        """The trajectory before step `until`; with `int8` as another machine would read it from the bytes."""
        state = advance(state, self.unet, self.scheduler, cond, until)
        if not (int8 and self.is_sender and 0 < until < state.steps):
            return Passage(state)
        sent = state.to_bytes(int8=True)
        state = Handoff.from_bytes(sent)
        return Passage(state, len(sent), f"hand-off in int8: relative error of the latent {state.error:.2e}")

    @torch.no_grad()
    def size(self, latent: torch.Tensor, cond: Conditioning) -> tuple[int, int]:
        """Its parameters, and the MACs of one step of the latent (1, C, h, w).

        Convolutions, linear layers and the products of attention count, and both inputs of guidance.
        """
        t = torch.tensor(1, device=latent.device)
        return cost.parameters(self.unet), cost.macs(GuidedUNet(self.unet, cond), (latent, t))


class RemoteDenoiser:
    """A U-Net that a service elsewhere holds, asked by a client (`lab.hybridsd.cloud`)."""

    is_here = False

    def __init__(self, client: Any, scheduler: Any) -> None:
        self.client, self.scheduler = client, scheduler

    @property
    def max_images(self) -> int:
        """How many pictures the service takes at a time."""
        return self.client.about()["pictures"]

    def advance(
        self, state: Handoff, until: int, cond: Conditioning, *, zeros: bool = True, int8: bool = False
    ) -> Passage:
        """The hand-off that comes back, and its bytes; ServiceError where none does, or one that goes on from another.

        No step, no request. The service makes the conditioning again from the hand-off's token ids.
        """
        if until == state.index:
            return Passage(state)
        after, received = self.client.half(state, until, int8=int8, zeros=zeros)
        try:
            validate_continued(after, state, until, self.scheduler)
        except ValueError as error:
            raise ServiceError(f"it answered another question: {error}") from error
        return Passage(after, received)

    def size(self, latent: torch.Tensor, cond: Conditioning) -> tuple[int, int]:
        """Its parameters, and the MACs of one picture's step, as the service counts them."""
        facts = self.client.about()
        return facts["parameters"], facts["macs"][cond.guidance > 1]


class _Trajectory(NamedTuple):
    """A trajectory before it is decoded: Samples without pictures."""

    latent: torch.Tensor
    steps: tuple[int, ...]
    trail: tuple[torch.Tensor, ...] = ()
    received: int = 0
    notes: tuple[str, ...] = ()


class HybridPipeline(nn.Module):
    """Split sampling: `unets` in trajectory order (large first, as in the paper, or any other), one scheduler.

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
        solver: str = "dpm++",
        **options: Any,
    ) -> "HybridPipeline":
        """Models of folders or hub ids: `cloud` a whole pipeline (SD 1.x, SDXL, LCM), `edge` one U-Net or several.

        As released, text encoder, tokenizer, scheduler and (without `vae`) the decoder are the cloud's. `options` go
        to diffusers, e.g. `dtype`. `solver` is one of SOLVERS, or 'own' for the folder's own scheduler.
        """
        parts = pipeline_parts(cloud, **options)
        edges = [] if edge is None else [edge] if isinstance(edge, str | Path) else list(edge)
        return cls.of(
            parts,
            [unet_of(source, **options) for source in edges],
            vae_of(vae, **options) if vae is not None else None,
            solver,
        )

    @classmethod
    def of(
        cls, parts: Mapping[str, Any], edges: Sequence[nn.Module] = (), vae: Any = None, solver: str = "own"
    ) -> "HybridPipeline":
        """From components by name, as `DiffusionPipeline.components` gives them, and further U-Nets."""
        texts = [(e, t) for e, t in _TEXT_PARTS if parts.get(e) is not None]
        missing = [part for part in ("unet", "scheduler") if parts.get(part) is None]
        if missing or not texts:
            raise ValueError(f"components lack {', '.join(missing or ['text_encoder'])}: give a whole pipeline's")
        text = Text([parts[e] for e, _ in texts], [parts[t] for _, t in texts], bool(parts.get("force_zeros", False)))
        scheduler = solver_of(parts["scheduler"], solver)
        return cls([parts["unet"], *edges], scheduler, text, parts["vae"] if vae is None else vae)

    def components(self) -> dict[str, Any]:
        """The first model's parts by name, as `of` takes them."""
        parts = {"unet": self.unets[0], "vae": self.vae, "scheduler": self.scheduler}
        for (e, t), encoder, tokenizer in zip(_TEXT_PARTS, self.text.encoders, self.text.tokenizers, strict=False):
            parts |= {e: encoder, t: tokenizer}
        return parts | {"force_zeros": self.text.force_zeros}

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
        if self.cloud is None:
            return [LocalDenoiser(unet, self.scheduler, is_sender=True) for unet in self.unets]
        edges = [LocalDenoiser(unet, self.scheduler, is_sender=False) for unet in self.unets]
        return [RemoteDenoiser(self.cloud, self.scheduler), *edges]

    def forward(self, prompts: str | Sequence[str], **how: Any) -> Samples:
        """What `draw` does."""
        return self.draw(prompts, **how)

    @torch.no_grad()
    def draw(
        self,
        prompts: str | Sequence[str],
        *,
        steps: Sequence[int],
        guidance: float = 7.0,
        seed: int = 0,
        negative: str | None = None,
        keep: bool = False,
        int8: bool = False,
    ) -> Samples:
        """Pictures of the prompts: `steps[i]` steps of model i; [k, N-k] for two.

        Text that is too long is cut, with a warning. `keep` keeps every latent; `int8` sends the hand-off in integers.
        When a cloud elsewhere is slow, gone, or answers rubbish, the edge draws alone and a note says so.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, Iterable) else []
        _validate_drawable(prompts, guidance, seed, negative)
        steps = self._validated(steps)
        # a scheduler whose memory cannot be handed over still draws in one process
        in_one_process = not int8 and self.denoisers[0].is_here
        if keep and not in_one_process:
            raise ValueError("keep=True keeps the latents of one process in full: leave int8 and the cloud out")
        with evaluating(self):
            sampler = HybridSampler(self, prompts, guidance, seed, negative, int8)
            if in_one_process:
                trail = self._trail(sampler, steps, keep)
                walked = _Trajectory(trail[-1], tuple(steps), trail if keep else ())
            else:
                walked = self._handed_over(sampler, steps)
            return Samples(self.decode(walked.latent), *walked)

    def noise(self, count: int, seed: int, N: int) -> tuple[torch.Tensor, torch.Generator]:
        """The latent that a trajectory of N steps starts from, (count, C, h, w), and the generator that made it."""
        generator = torch.Generator().manual_seed(seed)
        unet: Any = self.unets[0]
        shape = (count, unet.config.in_channels, *_sides(unet))
        # drawn on the CPU, so that every machine begins from the same numbers
        normal = torch.randn(shape, generator=generator, dtype=unet.dtype).to(self.device)
        return normal * fresh(self.scheduler, N, self.device).init_noise_sigma, generator

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of latents (B, C, h, w), decoded once, at the end."""
        images = self.vae.decode(unscaled(latent.to(self.vae.dtype), self.vae.config), return_dict=False)[0]
        if not torch.isfinite(images).all():
            kind = str(self.vae.dtype).removeprefix("torch.")
            raise ValueError(f"the decoder made numbers that are not finite in {kind}: take its float32, vae.float()")
        return (images / 2 + 0.5).clamp(0, 1).float()

    @property
    def device(self) -> torch.device:
        """Where the U-Nets are."""
        return next(self.unets[0].parameters()).device

    @property
    def size(self) -> tuple[int, int]:
        """The picture's (H, W)."""
        h, w = _sides(self.unets[0])
        blocks = getattr(self.vae.config, "block_out_channels", None) or self.vae.config.encoder_block_out_channels
        factor = 2 ** (len(blocks) - 1)  # every stage of the decoder but one doubles the sides
        return h * factor, w * factor

    def conditioning(self, tokens: Mapping[str, torch.Tensor], guidance: float, zeros: bool = False) -> Conditioning:
        """The U-Nets' conditioning for these token ids, (B, L) each."""
        size, device = self.size, self.device
        return self.text.conditioning(tokens, guidance, size, zeros).to(device)

    def _validated(self, steps: Sequence[int]) -> list[int]:
        """The steps of each model; ValueError unless there is a count for each, and all U-Nets have one precision."""
        models = len(self.denoisers)
        counts = list(steps) if isinstance(steps, Sequence) else []
        are_counts = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts)
        if len(counts) != models or not are_counts or sum(counts) < 1:
            raise ValueError(f"steps={steps!r} is not allowed: give {models} integers >= 0, not all 0")
        kinds = {str(p.dtype).removeprefix("torch.") for p in self.unets.parameters() if p.is_floating_point()}
        if len(kinds) > 1:
            raise ValueError(f"the U-Nets have {' and '.join(sorted(kinds))} weights: give all the same precision")
        return counts

    def _trail(self, sampler: "HybridSampler", steps: Sequence[int], keep: bool) -> tuple[torch.Tensor, ...]:
        """The latents after each step, the noise first, in this process; the last one alone unless they are kept."""
        latent, generator = sampler.noise(sum(steps))
        solver = fresh(self.scheduler, sum(steps), latent.device)
        latents = trajectory(list(self.unets), solver, latent, sampler.cond, steps, generator)
        return (latent, *latents) if keep else tuple(deque(latents, maxlen=1))

    def _handed_over(self, sampler: "HybridSampler", steps: Sequence[int]) -> "_Trajectory":
        """A trajectory that is sent from model to model; the next one takes the steps of a cloud that fails."""
        state, received, ran, notes = sampler.start(sum(steps)), 0, list[int](), list[str]()
        for model, until in enumerate(accumulate(steps)):
            begun = state.index
            try:
                state, size, note = sampler.advance(state, until, model)
            except ServiceError as error:
                size, note = 0, f"the cloud did not answer ({error}): the edge drew all {sum(steps)} steps alone"
                warnings.warn(note, stacklevel=4)
            received += size
            ran.append(state.index - begun)
            notes += [note] if note else []
        return _Trajectory(state.latent, tuple(ran), (), received, tuple(notes))


class HybridSampler:
    """Prompts that a pipeline samples in the cloud and at the edge: encoded once, each trajectory from the same noise.

    `tokens` are their ids by name, (B, L) each, `cond` is what every U-Net is conditioned on. A service elsewhere that
    fails is a ServiceError.
    """

    def __init__(
        self,
        pipeline: HybridPipeline,
        prompts: Sequence[str],
        guidance: float,
        seed: int = 0,
        negative: str | None = None,
        int8: bool = False,
    ) -> None:
        self.pipeline, self.count, self.seed = pipeline, len(prompts), seed
        self.options = {"zeros": negative is None, "int8": int8}
        self.denoisers = pipeline.denoisers
        self.tokens = pipeline.text.tokens(prompts, negative or "")
        self.cond = pipeline.conditioning(self.tokens, guidance, zeros=negative is None)

    def noise(self, N: int) -> tuple[torch.Tensor, torch.Generator]:
        """The latent (B, C, h, w) before the first of N steps, and the generator that goes on from it."""
        return self.pipeline.noise(self.count, self.seed, N)

    def start(self, N: int) -> Handoff:
        """The hand-off before the first of N steps."""
        latent, generator = self.noise(N)
        scheduler, guidance = self.pipeline.scheduler, self.cond.guidance
        return begin(scheduler, latent, N, guidance, prompt=self.tokens, seed=self.seed, generator=generator)

    def advance(self, state: Handoff, until: int, model: int) -> Passage:
        """The trajectory before step `until`, its steps taken by one of the models, and how it came."""
        return self.denoisers[model].advance(state, until, self.cond, **self.options)

    def cloud(self, state: Handoff, until: int) -> Handoff:
        """The trajectory before step `until`, its steps taken by the first model."""
        return self.advance(state, until, 0).state

    def edge(self, state: Handoff, until: int) -> Handoff:
        """The trajectory before step `until`, its steps taken by the last model."""
        return self.advance(state, until, -1).state


def _validate_drawable(prompts: Sequence[str], guidance: float, seed: int, negative: str | None) -> None:
    """ValueError in one line unless these can be drawn."""
    allowed = {
        "prompts": (prompts, prompts and all(isinstance(p, str) for p in prompts), "a text, or a list of one or more"),
        "guidance": (guidance, isinstance(guidance, Real) and math.isfinite(guidance), "a finite number"),
        "seed": (seed, isinstance(seed, Integral) and -(2**63) <= seed < 2**63, "an integer of 64 bits"),
        "negative": (negative, negative is None or isinstance(negative, str), "one text for all prompts, or None"),
    }
    for name, (value, holds, words) in allowed.items():
        if not holds:
            raise ValueError(f"{name}={value!r} is not allowed: give {words}"[:300])


def solver_of(scheduler: Any, solver: str) -> Any:
    """The scheduler of SOLVERS with another's noise schedule and prediction; 'own' leaves it as it is."""
    if solver == "own":
        return scheduler
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} is not allowed: give one of {', '.join(map(repr, SOLVERS))} or 'own'")
    return getattr(diffusers(), SOLVERS[solver]).from_config(scheduler.config)


def _sides(unet: Any) -> tuple[int, int]:
    """The latent's (h, w)."""
    side = unet.config.sample_size
    h, w = (side, side) if isinstance(side, int) else side
    return h, w
