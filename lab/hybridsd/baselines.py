"""Cheaper clouds that others have published, each at the cloud cost of k of its own full steps, beside the splits.

DeepCache (Ma, Fang, Wang; CVPR 2024, arXiv 2312.00858): of three steps one runs the whole U-Net; the other two run its
first convolution and last layer alone, on the features that the whole one left there. T-GATE (Liu et al., arXiv
2404.02747): after the first 40 % of the steps the cross-attentions keep the output that they gave last, mean of that
with and that without the prompt, and guidance ends. EC-Diff (Xie et al., arXiv 2507.11980): the cloud begins, and on
its way to the border evaluates but one step in three: in between, what it would predict goes on in a straight line;
the edge takes the rest. Intervals and shares are those of the authors' released code. T-Stitch's order, the edge
first, is a split (`sweep`).

Ours: how many steps each may take, so that its cloud costs no more than the first k steps of the split.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from ..core import cost
from . import families
from .sampler import HybridSampler
from .sampling import Conditioning, GuidedUNet, doubles, noise_prediction, placed
from .solvers import calls, fresh, rehearsal, solver_state, stepped

BASELINES = ("DeepCache", "T-GATE", "EC-Diff")
_EVERY = 3  # DeepCache: cache_interval=3, cache_branch_id=0
_GATE = 10 / 25  # T-GATE: gate_step=10 of 25
_WARM_UP, _SKIPPED, _SMOOTH = 7 / 17, 2, 0.3  # EC-Diff: p=7 of the 17 evaluations within s=37, k=2, a=0.3
Predict = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


class BaselinePlan(NamedTuple):
    """How a baseline spends what the cloud's first k steps cost: a schedule of `steps`, the cloud's up to `until`.

    `full` are those that the whole U-Net takes; `cloud` and `edge` a picture's MACs there, guidance counted, the
    decoding not.
    """

    steps: int
    until: int
    full: tuple[int, ...]
    cloud: int
    edge: int


class ShallowUNet(nn.Module):
    """A U-Net without what lies between its first convolution and its last layer, whose features are kept.

    `deep` (B, C, h, w) is what came up to the last layer when the whole U-Net, `shared`, ran.
    """

    deep: torch.Tensor

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.shared, self.config = unet, unet.config

    def predict(
        self,
        latent: torch.Tensor,
        t: torch.Tensor,
        text: torch.Tensor,
        added: Mapping[str, torch.Tensor],
        emb: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """The output (B, C, h, w) for latents of that shape at time t, () or (B,)."""
        unet: Any = self.shared
        time = unet.time_embedding(unet.get_time_embed(sample=latent, timestep=t), emb.get("timestep_cond"))
        further = unet.get_aug_embed(emb=time, encoder_hidden_states=text, added_cond_kwargs=dict(added))
        time = time if further is None else time + further  # (B, width)
        block = unet.up_blocks[-1]
        x = block.resnets[-1](torch.cat([self.deep, unet.conv_in(latent)], 1), time)
        if hasattr(block, "attentions"):
            x = block.attentions[-1](x, encoder_hidden_states=text, return_dict=False)[0]
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


class GatedUNet(nn.Module):
    """A U-Net, `shared`, whose cross-attentions give the same as before: `outputs` (B, tokens, C) by their names."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.shared, self.config, self.outputs = unet, unet.config, dict[str, torch.Tensor]()

    def predict(self, *inputs: Any) -> torch.Tensor:
        """The output (B, C, h, w) of what a family's `predict` takes."""
        computed = {name: self.shared.get_submodule(name) for name in self.outputs}
        try:
            for name, output in self.outputs.items():
                self.shared.set_submodule(name, _Constant(output))
            return families.family(self.shared).predict(self.shared, *inputs)
        finally:
            for name, attention in computed.items():
                self.shared.set_submodule(name, attention)


class _Constant(nn.Module):
    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.output


def validate_baselines(names: Sequence[str], pipeline: Any) -> None:
    """ValueError in one line unless the cloud's model can be asked in these ways."""
    if not names:
        return
    if pipeline.cloud is not None:
        raise ValueError(f"baselines={tuple(names)!r} ask the cloud's model itself: give one that is in this process")
    kind, unet = families.family(pipeline.unets[0]), pipeline.unets[0]
    if kind.words != "a U-Net" and set(names) - {"EC-Diff"}:
        raise ValueError(
            f"baselines={tuple(names)!r} look into a U-Net and the cloud's is {kind.words}: give 'EC-Diff'"
        )
    if "T-GATE" in names and not _cross_attentions(unet):
        raise ValueError("baselines: T-GATE needs a U-Net with attention to the text, and the cloud's has none")


@torch.no_grad()
def plans(sampler: HybridSampler, variants: Sequence[tuple[str, int]], N: int) -> dict[tuple[str, int], BaselinePlan]:
    """By (baseline, k), how it spends the cost of the cloud's first k of N steps; what a step costs is counted."""
    variants = [(name, k) for name, k in variants if name in BASELINES]
    each = HybridSampler(sampler.pipeline, ["a"], sampler.cond.guidance) if variants else sampler
    macs = {name: _macs(name, each, N) for name, _ in variants}
    return {(name, k): _plan(name, k, N, macs[name], sampler.scheduler) for name, k in variants}


@torch.no_grad()
def sampled(sampler: HybridSampler, name: str, plan: BaselinePlan, int8: bool = False) -> tuple[torch.Tensor, int]:
    """The final latents (B, C, h, w) of a baseline, and the bytes of a picture's hand-off, 0 where there is none."""
    if name == "EC-Diff":
        return _with_ec_diff(sampler, plan, int8)
    unet, cond = sampler.pipeline.unets[0], sampler.cond
    with _cached(name, unet, cond) as cheap:
        less = _cheap_cond(name, unet, cond)

        def predict(step: int, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return _predicted(unet, x, t, cond) if step in plan.full else _predicted(cheap, x, t, less)

        ((latent, _),) = deque(_trajectory(sampler, plan.steps, predict), 1)
    return latent, 0


def _full(name: str, steps: int) -> tuple[int, ...]:
    """The steps of a schedule that DeepCache's or T-GATE's cloud takes with the whole U-Net."""
    return tuple(range(0, steps, _EVERY) if name == "DeepCache" else range(max(1, round(_GATE * steps))))


def _evaluated(k: int, N: int) -> tuple[int, ...]:
    """The steps that EC-Diff's cloud evaluates, at most k: the first ones, and then one after two that it does not."""
    first = min(k, max(2, round(_WARM_UP * k)))  # a straight line needs two points
    return (*range(first), *range(first + _SKIPPED, N, _SKIPPED + 1))[:k]


def _macs(name: str, sampler: HybridSampler, N: int) -> tuple[int, int, int]:
    """A picture's MACs of a full step, of a cheap one, and of one at the edge."""
    (latent, _), (unet, edge) = sampler.noise(N), (sampler.pipeline.unets[i] for i in (0, -1))

    def counted(model: Any, cond: Conditioning) -> int:
        where = placed(model)
        inputs = latent.to(*where), torch.tensor(1, device=where[0])
        return cost.macs(GuidedUNet(model, cond.to(*where)), inputs)

    if name == "EC-Diff":
        return counted(unet, sampler.cond), 0, counted(edge, sampler.cond)
    with _cached(name, unet, sampler.cond) as cheap:
        full = counted(unet, sampler.cond)  # which leaves behind what the cheap one needs
        return full, counted(cheap, _cheap_cond(name, unet, sampler.cond)), 0


def _plan(name: str, k: int, N: int, macs: tuple[int, int, int], scheduler: Any) -> BaselinePlan:
    full, cheap, edge = macs
    if name == "EC-Diff":
        steps, taken = N, _evaluated(k, N)
        until = taken[-1] + 1
    else:

        def spent(n: int) -> int:
            return len(_full(name, n)) * (full - cheap) + n * cheap

        steps = until = max(n for n in range(1, N + 1) if n == 1 or spent(n) <= k * full)
        taken = _full(name, steps)
    asked = [b - a for a, b in pairwise(calls(scheduler, steps))]  # solvers of second order ask twice a step
    in_cloud = sum(n * (full if i in taken else cheap) for i, n in enumerate(asked[:until]))
    return BaselinePlan(steps, until, taken, in_cloud, edge * sum(asked[until:]))


def _trajectory(sampler: HybridSampler, N: int, predict: Predict) -> Iterator[tuple[torch.Tensor, Any]]:
    """The latent (B, C, h, w) and the solver after each of N steps; what is predicted hangs on the step."""
    latent, generator = sampler.noise(N)
    solver = fresh(sampler.scheduler, N, latent.device)
    for step, span in enumerate(pairwise(calls(sampler.scheduler, N))):
        for call in range(*span):
            latent = stepped(solver, partial(predict, step), latent, call, generator)
        yield latent, solver


def _predicted(model: Any, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
    """A model's guided prediction where and as precisely as it computes, back in the latent's place and precision."""
    where = placed(model)
    return noise_prediction(model, x.to(*where), t.to(where[0]), cond.to(*where)).to(x)


# -- what is kept between two steps ------------------------------------------------------------------------------------


@contextmanager
def _cached(name: str, unet: Any, cond: Conditioning) -> Iterator[Any]:
    """For a `with` block, the cheap model of DeepCache or T-GATE: it keeps what the U-Net computes in each call."""
    cheap: Any = ShallowUNet(unet) if name == "DeepCache" else GatedUNet(unet)

    def deep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        cheap.deep = inputs[0][:, : -unet.conv_in.out_channels]  # beside them the first convolution's output

    def outputs(name: str, output: torch.Tensor) -> None:  # (2 B, tokens, C): without and with the prompt
        cheap.outputs[name] = sum(output.chunk(2)) / 2 if doubles(unet, cond) else output

    with ExitStack() as hooks:
        if name == "DeepCache":
            hooks.callback(unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(deep).remove)
        else:
            for at in _cross_attentions(unet):
                hook = unet.get_submodule(at).register_forward_hook(lambda *all, at=at: outputs(at, all[-1]))
                hooks.callback(hook.remove)
        yield cheap


def _cheap_cond(name: str, unet: Any, cond: Conditioning) -> Conditioning:
    """The conditioning of a cheap step: T-GATE's has the prompt alone."""
    return replace(cond, guidance=1.0) if name == "T-GATE" and doubles(unet, cond) else cond


def _cross_attentions(unet: nn.Module) -> list[str]:
    return [name for name, _ in unet.named_modules() if name.rpartition(".")[2] == "attn2"]


def _with_ec_diff(sampler: HybridSampler, plan: BaselinePlan, int8: bool) -> tuple[torch.Tensor, int]:
    cloud, edge = sampler.pipeline.unets[0], sampler.pipeline.unets[-1]
    warm = next(i for i in range(plan.steps + 1) if i not in plan.full)  # so many steps come before the first skipped
    line: list[torch.Tensor] = []  # the last prediction, and what is added to it where none is evaluated

    def predict(step: int, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if step >= plan.until:
            return _predicted(edge, x, t, sampler.cond)
        if step not in plan.full:
            line[0] = line[0] + line[1]
            return line[0]
        pred = _predicted(cloud, x, t, sampler.cond)
        line[:] = [pred, (pred - line[0]) * (1 if step < warm else _SMOOTH) if line else pred]
        return pred

    size = 0
    for step, (after, solver) in enumerate(_trajectory(sampler, plan.steps, predict), 1):
        latent = after
        if step == plan.until < plan.steps:
            state = replace(sampler.start(plan.steps), latent=latent, index=step)
            memory = solver_state(solver, rehearsal(sampler.scheduler, plan.steps), step)
            size = replace(state, solver=memory).picture_bytes(int8)
    return latent, size
