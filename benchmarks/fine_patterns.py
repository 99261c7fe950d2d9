"""Patterns that SparseByteNN has no kernels for, trained as its recipe trains: 2:4, and blocks along a row.

The steps, data, rates, teacher and the moments at which orders and masks are found anew are those of the recipe that is
given; only what is masked differs. With `single_weights` it is the recipe's own network of blocks of 1, bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

import lab
from lab.core.batch import call, moved
from lab.core.finetune import has_labels
from lab.core.graph.tracing import trace
from lab.core.running import Run, running
from lab.core.task import Task
from lab.core.training import descend
from lab.sparsebytenn import equations as eq
from lab.sparsebytenn.rearrange import survey

Mask = Callable[[Tensor, float], Tensor]  # saliencies (OC, IC), share that goes -> (OC, IC) bool, True stays


def single_weights(S: Tensor, s: float) -> Tensor:
    """The largest weights of a layer."""
    return eq.mask_layer(S, s)


def two_of_four(S: Tensor, s: float) -> Tensor:
    """The smaller two of each four inputs may go, the smallest first; at a share of one half all of them go.

    Inputs beyond the last four stay.
    """
    fours = S[:, : S.shape[1] // 4 * 4].reshape(len(S), -1, 4)
    may_go = fours.argsort(dim=2, stable=True).argsort(dim=2) < 2  # the smaller two
    scores = torch.full_like(S, torch.inf)
    scores[:, : fours.shape[1] * 4] = fours.masked_fill(~may_go, torch.inf).flatten(1)
    return eq.mask_layer(scores, min(s, int(may_go.sum()) / S.numel()))


def one_by(G: int) -> Mask:
    """Blocks of G inputs of one row."""

    def mask(S: Tensor, s: float) -> Tensor:
        M = eq.mask_layer(eq.block_scores(S.T, G), s)  # (groups, OC)
        return eq.spread(M, G, torch.arange(S.shape[1])).T

    return mask


@dataclass
class Pattern:
    """The masks of layers (OC, IC), and in which order their inputs stand where blocks lie along a row.

    block: how many inputs a block has whose order is searched (Card (9), on the transposed matrix); 1 leaves them as
    they came.
    """

    mask: Mask
    share: float
    block: int = 1
    orders: dict[str, Tensor] = field(default_factory=dict)

    def regroup(self, name: str, S: Tensor) -> None:
        """Search an order of a layer's inputs for the share that goes in the end."""
        now = self.orders.get(name, torch.arange(S.shape[1]))
        if self.block > 1:
            now = now[eq.greedy([S.T[now]], self.block, [self.share])]
        self.orders[name] = now

    def stays(self, name: str, S: Tensor, s: float) -> Tensor:
        """What stays of a layer when the share s goes, each input in its own place."""
        order, M = self.orders[name], torch.empty(S.shape, dtype=torch.bool)
        M[:, order] = self.mask(S[:, order], s)
        return M

    def retained(self, saliencies: dict[str, Tensor]) -> float:
        """Card (6) for these masks: the mean over the layers of the share of magnitude that stays."""
        shares = [float((S * self.stays(name, S, self.share)).sum() / S.sum()) for name, S in saliencies.items()]
        return sum(shares) / len(shares)


def trained(recipe: lab.SparseByteNN, task: Task, seed: int, pattern: Pattern) -> tuple:
    """The network with this pattern, its layers, what its score lost, and the share of magnitude that it keeps."""
    with running(recipe, task, seed, None, None, progress=False) as run:
        model = trace(run.model, run.example)
        layers = list(survey(model, 1).layers)
        dense = {name: eq.saliency(model.get_parameter(f"{name}.weight")) for name in layers}
        _train(recipe, run, model, layers, pattern)
        lost = run.before - task.measure(model)
    return model, layers, lost, pattern.retained(dense)


def _train(recipe: lab.SparseByteNN, run: Run, model: nn.Module, layers: list[str], pattern: Pattern) -> None:
    weights = {name: model.get_parameter(f"{name}.weight") for name in layers}
    gone = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in weights.items()}

    @torch.no_grad()
    def apply(*_: object) -> None:
        for name, w in weights.items():
            w.masked_fill_(gone[name], 0)

    def advance(t: int) -> None:
        n = round(recipe.ramp * recipe.steps)
        if t > n or (t < n and t % recipe.regroup_every):
            return
        for name, w in weights.items():
            S = eq.saliency(w)
            pattern.regroup(name, S)
            gone[name] = ~pattern.stays(name, S, eq.cubic(recipe.sparsity, t, n)).view(*S.shape, *[1] * (w.dim() - 2))
        apply()

    labels = has_labels(run.task)

    def terms(batch: Any) -> dict[str, Tensor]:
        x = moved(run.task.inputs_of(batch), run.device)
        loss, z = run.task.fit(model, batch) if labels else (None, call(model, x))
        with torch.no_grad():
            z_dense = call(run.model, x)
        losses = {} if loss is None else {"task": loss}
        return losses | {"distil": recipe.distil * eq.distillation(z, z_dense, recipe.temperature)}

    optimiser = SGD(model.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=1e-4)
    schedule = CosineAnnealingLR(optimiser, recipe.steps)
    optimiser.register_step_post_hook(apply)
    stage = run.stage("prune")
    advance(0)
    _lay_out(model.train(), torch.channels_last)
    for step in descend(
        terms, run.task.batches, optimiser, stage, steps=recipe.steps, schedule=schedule, progress=False
    ):
        advance(step.index + 1)
    _lay_out(model.eval(), torch.contiguous_format)


def _lay_out(model: nn.Module, form: torch.memory_format) -> None:
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d):
            conv.to(memory_format=form)  # type: ignore[call-overload]
