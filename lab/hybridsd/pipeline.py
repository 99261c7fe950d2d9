"""The pipeline: several U-Nets of one latent space draw one picture, in this process or over a network."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.task import evaluating
from .blocks import unet_of
from .components import Text, check_unets, diffusers, pipeline_parts, unscaled, vae_of
from .handoff import Handoff, advance, begin, validate_continued
from .sampling import Conditioning, fresh, trajectory

SOLVERS = {
    "dpm++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "lcm": "LCMScheduler",
}


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pictures (B, 3, H, W) in [0, 1], their final latents, and how they came about.

    `steps` are the steps that each model really took, `trail` the latents after each step (where they were kept),
    `received` the bytes that came from the cloud, `notes` what the reader must know.
    """

    pictures: torch.Tensor
    latent: torch.Tensor
    steps: tuple[int, ...]
    trail: tuple[torch.Tensor, ...] = ()
    received: int = 0
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        b, _, h, w = self.pictures.shape
        return "\n".join([f"{b} picture{'s' * (b > 1)} of {w} x {h}, steps {list(self.steps)}", *self.notes])

    def images(self) -> list[Any]:
        """The pictures as PIL images."""
        from PIL import Image

        pixels = (self.pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(one) for one in pixels]

    def _repr_png_(self) -> bytes:
        from io import BytesIO

        from PIL import Image

        images = self.images()
        row = Image.new("RGB", (sum(one.width for one in images), images[0].height))
        for i, one in enumerate(images):
            row.paste(one, (i * one.width, 0))
        wide = max(1, 192 // row.height)
        file = BytesIO()
        row.resize((row.width * wide, row.height * wide), Image.Resampling.NEAREST).save(file, "png")
        return file.getvalue()


class Split(nn.Module):
    """Split sampling: `unets` in trajectory order (large first, as in the paper, or any other), one scheduler.

    The scheduler given is copied for each picture, never changed. `cloud` is a client whose `half(...)` runs the first
    model's steps elsewhere (`lab.hybridsd.cloud`): `unets` then holds the edge's alone.
    """

    def __init__(
        self, unets: Sequence[nn.Module], scheduler: Any, text: Text, vae: nn.Module, cloud: Any = None
    ) -> None:
        super().__init__()
        check_unets(unets, vae)
        self.unets, self.text, self.vae = nn.ModuleList(unets), text, vae
        self.scheduler, self.cloud = scheduler, cloud
        self.eval()

    @classmethod
    def from_pretrained(
        cls, cloud: str | Path, edge: str | Path | Sequence[str | Path] | None = None, vae: str | Path | None = None,
        *, solver: str = "dpm++", **options: Any,
    ) -> "Split":  # fmt: skip
        """Models of folders or hub ids: `cloud` a whole pipeline (SD 1.x, SDXL, LCM), `edge` one U-Net or several.

        As released, text encoder, tokenizer, scheduler and (without `vae`) the decoder are the cloud's. `options` go
        to diffusers, e.g. `dtype`. `solver` is one of SOLVERS, or 'own' for the folder's own scheduler.
        """
        parts = pipeline_parts(cloud, **options)
        edges = [] if edge is None else [edge] if isinstance(edge, str | Path) else list(edge)
        return cls.of(
            parts,
            [unet_of(one, **options) for one in edges],
            vae_of(vae, **options) if vae is not None else None,
            solver,
        )

    @classmethod
    def of(cls, parts: Mapping[str, Any], edges: Sequence[nn.Module] = (), vae=None, solver: str = "own") -> "Split":
        """From components by name, as `DiffusionPipeline.components` gives them, and further U-Nets."""
        pairs = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")]
        have = [(e, t) for e, t in pairs if parts.get(e) is not None]
        missing = [part for part in ("unet", "scheduler") if parts.get(part) is None]
        if missing or not have:
            raise ValueError(f"components lack {', '.join(missing or ['text_encoder'])}: give a whole pipeline's")
        text = Text([parts[e] for e, _ in have], [parts[t] for _, t in have], bool(parts.get("force_zeros", False)))
        scheduler = solver_of(parts["scheduler"], solver)
        return cls([parts["unet"], *edges], scheduler, text, parts["vae"] if vae is None else vae)

    def components(self) -> dict[str, Any]:
        """The first model's parts by name, as `of` takes them."""
        names = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")]
        pairs = zip(names, self.text.encoders, self.text.tokenizers, strict=False)
        texts = {name: part for (e, t), encoder, words in pairs for name, part in ((e, encoder), (t, words))}
        own = {"unet": self.unets[0], "vae": self.vae, "scheduler": self.scheduler}
        return own | texts | {"force_zeros": self.text.force_zeros}

    def with_solver(self, scheduler: Any) -> "Split":
        """The same models with another scheduler."""
        modes = {module: module.training for module in self.modules()}
        made = Split(list(self.unets), scheduler, self.text, self.vae, self.cloud)
        for module, mode in modes.items():
            module.training = mode
        return made

    def forward(self, prompts: str | Sequence[str], **how: Any) -> Drawn:
        """The same as `draw`."""
        return self.draw(prompts, **how)

    @torch.no_grad()
    def draw(
        self, prompts: str | Sequence[str], *, steps: Sequence[int], guidance: float = 7.0, seed: int = 0,
        negative: str | None = None, keep: bool = False, int8: bool = False,
    ) -> Drawn:  # fmt: skip
        """Pictures of the prompts: `steps[i]` steps of model i; [k, N-k] for two.

        Text that is too long is cut, with a warning. `keep` keeps every latent; `int8` sends the hand-off in whole
        numbers. When a cloud elsewhere is slow, gone, or answers rubbish, the edge draws alone and a note says so.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, Iterable) else []
        _validate_drawable(prompts, guidance, seed, negative)
        steps = self._checked(steps)
        if keep and (int8 or self.cloud is not None):
            raise ValueError("keep=True keeps the latents of one process in full: leave int8 and the cloud out")
        with evaluating(self):
            tokens = self.text.tokens(prompts, negative or "")
            said = self.conditioning(tokens, guidance, zeros=negative is None)
            latent, generator = self.noise(len(prompts), seed, sum(steps))
            context = {"prompt": tokens, "seed": seed, "generator": generator}
            if self.cloud is not None:
                return self._over_network(latent, said, steps, context, {"int8": int8, "zeros": negative is None})
            if int8:
                return self._in_whole_numbers(latent, said, steps, context)
            solver = fresh(self.scheduler, sum(steps), latent.device)
            trail = [latent] if keep else []
            for latent in trajectory(self.unets, solver, latent, said, steps, generator):  # noqa: B020
                trail += [latent] if keep else []
            return Drawn(self.decode(latent), latent, tuple(steps), tuple(trail))

    def conditioning(self, tokens: Mapping[str, torch.Tensor], guidance: float, zeros: bool = False) -> Conditioning:
        """What the U-Nets hear for these token ids."""
        return self.text.conditioning(tokens, guidance, self.size, zeros).to(self.device)

    def noise(self, count: int, seed: int, N: int) -> tuple[torch.Tensor, torch.Generator]:
        """The latent that a trajectory of N steps starts from, (count, C, h, w), and the generator that made it."""
        generator = torch.Generator().manual_seed(seed)
        unet: Any = self.unets[0]
        side = unet.config.sample_size
        h, w = (side, side) if isinstance(side, int) else side
        shape = (count, unet.config.in_channels, h, w)
        drawn = torch.randn(shape, generator=generator, dtype=unet.dtype).to(self.device)
        return drawn * fresh(self.scheduler, N, self.device).init_noise_sigma, generator

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of latents, decoded once, at the end."""
        pictures = self.vae.decode(unscaled(latent.to(self.vae.dtype), self.vae.config), return_dict=False)[0]
        if not torch.isfinite(pictures).all():
            kind = str(self.vae.dtype).removeprefix("torch.")
            raise ValueError(f"the decoder made numbers that are not finite in {kind}: take its float32, vae.float()")
        return (pictures / 2 + 0.5).clamp(0, 1).float()

    @property
    def device(self) -> torch.device:
        """Where the U-Nets are."""
        return next(self.unets[0].parameters()).device

    @property
    def size(self) -> tuple[int, int]:
        """The picture's (H, W)."""
        side = self.unets[0].config.sample_size
        h, w = (side, side) if isinstance(side, int) else side
        blocks = getattr(self.vae.config, "block_out_channels", None) or self.vae.config.encoder_block_out_channels
        factor = 2 ** (len(blocks) - 1)
        return h * factor, w * factor

    def ask(self, state: Handoff, until: int, **how: Any) -> tuple[Handoff, int]:
        """The hand-off that the cloud elsewhere makes of this one, and the bytes that came.

        The cloud's `Failed` where none comes, or one that does not go on from what was asked.
        """
        made, received = self.cloud.half(state, until, **how)
        try:
            validate_continued(made, state, until, self.scheduler)
        except ValueError as error:
            raise self.cloud.Failed(f"it answered another question: {error}") from error
        return made, received

    def _checked(self, steps: Sequence[int]) -> list[int]:
        models = len(self.unets) + (self.cloud is not None)
        counts = list(steps) if isinstance(steps, Sequence) else []
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts)
        if len(counts) != models or not whole or sum(counts) < 1:
            raise ValueError(f"steps={steps!r} is not allowed: give {models} integers >= 0, not all 0")
        kinds = {str(p.dtype).removeprefix("torch.") for p in self.unets.parameters() if p.is_floating_point()}
        if len(kinds) > 1:
            raise ValueError(f"the U-Nets have {' and '.join(sorted(kinds))} weights: give all the same precision")
        return counts

    def _in_whole_numbers(self, latent, said, steps, context) -> Drawn:
        state, received = begin(self.scheduler, latent, sum(steps), said.guidance, **context), 0
        until, notes = 0, []
        for i, (unet, count) in enumerate(zip(self.unets, steps, strict=True)):
            until += count
            state = advance(state, unet, self.scheduler, said, until)
            if i + 1 < len(steps) and 0 < until < sum(steps):
                sent = state.to_bytes(int8=True)
                state, received = Handoff.from_bytes(sent), received + len(sent)
                notes.append(f"hand-off in int8: relative error of the latent {state.error:.2e}")
        return Drawn(self.decode(state.latent), state.latent, tuple(steps), (), received, tuple(notes))

    def _over_network(self, latent, said, steps, context, how) -> Drawn:
        """The first steps elsewhere; all of them here, with a note, where that fails."""
        state, notes, received = begin(self.scheduler, latent, sum(steps), said.guidance, **context), [], 0
        if steps[0]:
            try:
                state, received = self.ask(state, steps[0], **how)
            except self.cloud.Failed as error:
                notes.append(f"the cloud did not answer ({error}): the edge drew all {sum(steps)} steps alone")
                warnings.warn(notes[-1], stacklevel=4)
        taken = state.index
        for unet, until in zip(self.unets, _ends(steps), strict=True):
            state = advance(state, unet, self.scheduler, said, max(until, state.index))
        ran = (taken, *(steps[1:] if taken else [sum(steps[:2]), *steps[2:]]))
        return Drawn(self.decode(state.latent), state.latent, ran, (), received, tuple(notes))


def _validate_drawable(prompts: Sequence[str], guidance: float, seed: int, negative: str | None) -> None:
    """ValueError in one line unless these can be drawn."""
    allowed = {
        "prompts": (prompts, prompts and all(isinstance(p, str) for p in prompts), "a text, or a list of one or more"),
        "guidance": (guidance, isinstance(guidance, Real) and math.isfinite(guidance), "a finite number"),
        "seed": (seed, isinstance(seed, Integral) and -(2**63) <= seed < 2**63, "an integer of 64 bits"),
        "negative": (negative, negative is None or isinstance(negative, str), "one text for all prompts, or None"),
    }  # fmt: skip
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


def _ends(steps: Sequence[int]) -> list[int]:
    """Before which step each edge model stops."""
    return [sum(steps[: i + 1]) for i in range(1, len(steps))]
