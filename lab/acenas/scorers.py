"""What learns to score architectures from few labels: graph encoders with five losses, and boosted trees.

A scorer has `pretrain`, `fit(rows, labels, seed)` and `scores() -> (n,)`; a higher score is a better architecture.
"""

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..core import ranking_metrics
from ..core.distribution import install
from ..core.spaces.architectures import Space
from ..core.training import Stage, Step, descend
from . import equations as eq
from .layers import GraphBatch, GraphEncoder, Scorer

ATTEMPTS = 3  # a collapsed scorer, which gives all the same score, is begun again until it was fitted this often


@dataclass(frozen=True)
class Settings:
    """Sizes and training of a graph scorer."""

    hidden: int = 64
    pool: str = "sort"
    out: int = 64
    fuse: int | None = 128
    head: int = 128
    dropout: float = 0.5
    lr: float = 5e-3
    decay: float = 5e-4
    batch: int = 20
    patience: int = 50
    optimiser: type[Adam] = Adam


SETTINGS = {
    "gcn": Settings(),
    "chain": Settings(hidden=128, out=128, fuse=None, head=256, lr=2e-3),
    "brp": Settings(hidden=600, pool="mean", dropout=0.2, lr=3.5e-4, batch=64, patience=35, optimiser=AdamW),
    "vanilla": Settings(hidden=144, pool="mean", dropout=0.1, lr=2e-4, decay=1e-3, batch=10),
}


@dataclass(frozen=True)
class FitConfig:
    """How a scorer is fitted, as the recipe says: its loss, whose ranks, relevance, passes over the labels."""

    loss: str
    rank_by: str
    scale: float
    quantile: float
    epochs: int

    def relevance(self, y: Tensor) -> Tensor:
        """Of labels among themselves: 0 up to their low quantile, `scale` for the best."""
        return eq.relevance(y, float(y.quantile(self.quantile)), float(y.max()), self.scale)

    def terms(self, s: Tensor, y: Tensor, r: Tensor) -> Tensor:
        """What is minimised for scores s of architectures with z-scored labels y and relevance r, all (M,)."""
        if self.loss == "lambdarank":
            p = eq.ranks(s.detach()) if self.rank_by == "score" else eq.ranks(-y)
            return (s * eq.lambda_gradient(s.detach(), r, p)).sum()  # its gradient is λ; its value says nothing
        return {"mse": eq.mse, "ranknet": eq.ranknet, "kl": eq.pair_divergence}[self.loss](s, y)


class GraphScorer:
    """A graph encoder under a head, first fitted to weak labels, then to a few true ones."""

    def __init__(self, space: Space, settings: Settings, config: FitConfig, device: Any = None) -> None:
        self.settings, self.config, self.device = settings, config, device
        self.features = GraphBatch.of(space).to(device)
        self.pretrained: dict[str, Tensor] | None = None
        self.net = self._fresh()
        self.restarts = 0
        self.fallback = torch.zeros(len(space), dtype=torch.float64)
        self.latest: Tensor | None = None  # scores after the last fit
        self.collapsed = False

    def _fresh(self, labels: Sequence[str] = ("score",)) -> Scorer:
        x, s = self.features, self.settings
        encoder = GraphEncoder(
            x.nodes.shape[-1],
            s.hidden,
            parts=x.nodes.shape[1],
            hparams=x.hparams.shape[1],
            pool=s.pool,
            out=s.out,
            fuse=s.fuse,
        )
        return Scorer(encoder, s.head, s.dropout, labels).to(self.device)

    def pretrain(
        self,
        weak: dict[str, Tensor],
        epochs: int,
        batch: int,
        checkpoint: Path | None,
        run_id: str,
        progress: bool = True,
    ) -> list[Step]:
        """Fit encoder and one head a weak label to them all; encoder and first head stay, Card (4)."""
        z = torch.stack([_z(column) for column in weak.values()], 1).to(self.device)  # (n, heads)
        net = self._fresh(tuple(weak))
        steps = epochs * max(1, len(z) // batch)
        adam = Adam(net.parameters(), 1e-3)
        schedule = CosineAnnealingLR(adam, steps)
        stage = Stage(checkpoint, "pretrain", run_id, every=1000, net=net, adam=adam, schedule=schedule)

        def terms(rows: Tensor) -> dict[str, Tensor]:
            return {"mse": eq.pretraining_loss(net(self.features[rows]), z[rows])}

        net.train()
        for _ in descend(terms, _Rows(len(z), batch), adam, stage, steps=steps, schedule=schedule, progress=progress):
            pass
        kept = self._fresh()
        kept.load_state_dict({key: value for key, value in net.state_dict().items() if key in kept.state_dict()})
        self.net, self.pretrained, self.latest = kept, deepcopy(kept.state_dict()), None
        self.fallback = z[:, 0].double().cpu()
        return stage.trace

    def fit(self, rows: Sequence[int], labels: Sequence[float], seed: int) -> None:
        """Go on learning from all that has been trained so far; one that collapses is begun again from others."""
        del seed  # torch's own generator draws, which the recipe has seeded
        x, y = self.features[list(rows)], torch.tensor(labels, dtype=torch.float32, device=self.device)
        for attempt in range(ATTEMPTS):
            if attempt:
                self.restarts += 1
                self.net = self._fresh()
                if self.pretrained is not None and attempt == 1:
                    self.net.load_state_dict(self.pretrained)
            self._descend(x, _z(y), self.config.relevance(y))
            self.latest = self.net.scores(self.features).double().cpu()
            self.collapsed = is_collapsed(self.latest)
            if not self.collapsed:
                return

    def _descend(self, x: GraphBatch, y: Tensor, r: Tensor) -> None:
        """Adam along a cosine; the weights of the best pass stay, which the training set itself decides."""
        rows = _Rows(len(y), min(self.settings.batch, len(y)))
        steps = self.config.epochs * len(rows)
        adam = self.settings.optimiser(self.net.parameters(), self.settings.lr, weight_decay=self.settings.decay)
        schedule = CosineAnnealingLR(adam, steps)
        best, kept, waited = -math.inf, self.net.state_dict(), 0
        scores = torch.full_like(y, -math.inf)  # the scores of this pass, with dropout, as the released code has it

        def terms(batch: Tensor) -> dict[str, Tensor]:
            s = self.net(x[batch])[:, 0]
            scores[batch] = s.detach()
            return {self.config.loss: self.config.terms(s, y[batch], r[batch])}

        self.net.train()
        total = 0.0
        for step in descend(terms, rows, adam, Stage(None, "fit", ""), steps=steps, schedule=schedule, progress=False):
            total += sum(step.terms.values())
            if (step.index + 1) % len(rows):
                continue
            value = ranking_metrics.ndcg(scores.cpu(), r.cpu()) if self.config.loss == "lambdarank" else -total
            if value > best:
                best, kept, waited = value, deepcopy(self.net.state_dict()), 0
            elif (waited := waited + 1) >= self.settings.patience:
                break
            total = 0.0
        self.net.load_state_dict(kept)

    def scores(self) -> Tensor:
        """(n,) of the whole space; of a collapsed scorer the first weak label, or without one all the same."""
        if self.collapsed:
            return self.fallback
        return self.net.scores(self.features).double().cpu() if self.latest is None else self.latest


class BoostedScorer:
    """LightGBM's gradient-boosted trees on one-hot operators, with the weak labels as further features."""

    TREES = 200
    LEAF = 3  # labels in a leaf at least; fewer where they would not make two leaves, and all trees were constant

    def __init__(self, space: Space, config: FitConfig) -> None:
        if config.loss not in ("lambdarank", "mse"):
            raise ValueError(f"AceNAS: loss={config.loss!r} is not for scorer='lightgbm': give 'lambdarank' or 'mse'")
        try:
            import lightgbm
        except ModuleNotFoundError:
            raise ModuleNotFoundError(f"scorer='lightgbm' needs LightGBM: {install('search')}") from None
        self.library, self.config = lightgbm, config
        x = GraphBatch.of(space)
        self.features = torch.cat([x.nodes.flatten(1), x.adjacency.flatten(1).sign(), x.hparams], 1)
        self.features = self.features[:, self.features.std(0) > 0]  # (n, what differs)
        self.fallback = torch.zeros(len(space), dtype=torch.float64)
        self.model: Any = None
        self.collapsed = False

    def pretrain(self, weak: dict[str, Tensor], *_: Any, **__: Any) -> list[Step]:
        """Trees take weak labels as features."""
        z = torch.stack([_z(column) for column in weak.values()], 1)  # (n, weak labels)
        self.features, self.fallback = torch.cat([self.features, z], 1), z[:, 0].double()
        return []

    def fit(self, rows: Sequence[int], labels: Sequence[float], seed: int) -> None:
        """Fit anew to all that has been trained so far."""
        y = torch.tensor(labels, dtype=torch.float64)
        common: dict[str, Any] = {
            "n_estimators": self.TREES,
            "num_leaves": 7,
            "min_child_samples": min(self.LEAF, max(1, (len(rows) - 1) // 2)),
            "random_state": seed,
            "n_jobs": 1,
            "deterministic": True,
            "force_row_wise": True,
            "verbose": -1,
        }
        x = self.features[list(rows)].numpy()
        if self.config.loss == "mse":
            self.model = self.library.LGBMRegressor(**common).fit(x, y.numpy())
            return
        gains = [2**r - 1 for r in range(int(self.config.scale) + 1)]  # LightGBM's relevances are integers
        ranker = self.library.LGBMRanker(label_gain=gains, lambdarank_truncation_level=len(rows), **common)
        self.model = ranker.fit(x, self.config.relevance(y).round().int().numpy(), group=[len(rows)])

    def scores(self) -> Tensor:
        """(n,) of the whole space; of a collapsed scorer the first weak label, or without one all the same."""
        scores = torch.from_numpy(self.model.predict(self.features.numpy()))
        self.collapsed = is_collapsed(scores)
        return self.fallback if self.collapsed else scores


def is_collapsed(scores: Tensor) -> bool:
    """Whether scores do not tell architectures apart, or are no numbers."""
    return not scores.isfinite().all() or float(scores.std()) <= 1e-6 * (1 + float(scores.abs().max()))


def _z(values: Tensor) -> Tensor:
    """Values less their mean, over their spread."""
    values = values.float()
    return (values - values.mean()) / values.std(correction=0).clamp_min(1e-12)


class _Rows:
    """Row numbers in random batches, anew at each pass; what does not fill a batch is left out."""

    def __init__(self, n: int, batch: int) -> None:
        self.n, self.batch = n, min(batch, n)

    def __len__(self) -> int:
        return self.n // self.batch

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randperm(self.n)[: len(self) * self.batch].split(self.batch)
