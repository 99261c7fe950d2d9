"""Whether a picture was altered to be misread, seen by its path; beside detectors that do not look at paths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.task import evaluating
from .layers import input_of
from .paths import Paths, record, typical_paths
from .placement import Decoupled

CLASSIFIERS = ("random forest", "adaboost", "gradient boosting")


def features(paths: Paths, reference: Paths) -> np.ndarray:
    """What a detector sees of each picture: its bits, and how far those of each layer are from its class's path.

    A picture's class is the predicted one; the class paths are those of `reference`, pictures that were not altered.
    (N, filters + layers) float32; the distance is the mean of |z - class path| over the layer's filters. ValueError for
    a prediction that has no class path.
    """
    bits = paths.bits.astype(np.float32)
    away = np.abs(bits - typical_paths(reference, paths.predicted))
    distances = np.stack([away[:, paths.span(name)].mean(1) for name in paths.layers], 1)
    return np.concatenate([bits, distances], 1).astype(np.float32)


@dataclass(frozen=True)
class PathDetector:
    """A classifier that scores pictures by their paths: higher is more likely altered."""

    decoupled: Decoupled
    reference: Paths
    classifier: Any

    def score(self, x: Tensor) -> np.ndarray:
        """The probability that each picture (N, C, H, W) was altered: (N,)."""
        return self.classifier.predict_proba(features(record(self.decoupled, [x]), self.reference))[:, 1]


def detector(
    decoupled: Decoupled,
    reference: Paths,
    clean: Tensor,
    altered: Tensor,
    *,
    classifier: str = "random forest",
    seed: int = 0,
) -> PathDetector:
    """Learn to tell altered pictures from clean ones (N, C, H, W) by their paths; one forward pass a picture.

    classifier: 'random forest' (50 trees), 'adaboost' or 'gradient boosting', of scikit-learn.
    """
    from sklearn.ensemble import AdaBoostClassifier, GradientBoostingClassifier, RandomForestClassifier

    kinds = {
        "random forest": RandomForestClassifier(50, random_state=seed),
        "adaboost": AdaBoostClassifier(random_state=seed),
        "gradient boosting": GradientBoostingClassifier(random_state=seed),
    }
    if classifier not in kinds:
        raise ValueError(f"classifier={classifier!r}: choose one of {', '.join(kinds)}")
    for name, x in (("clean", clean), ("altered", altered)):
        if not len(x):
            raise ValueError(f"detector: there is no {name} picture: give at least one, some dozens are better")
    seen = [features(record(decoupled, [x]), reference) for x in (clean, altered)]
    is_altered = np.repeat([0, 1], [len(clean), len(altered)])
    return PathDetector(decoupled, reference, kinds[classifier].fit(np.concatenate(seen), is_altered))


def max_softmax(model: nn.Module, x: Tensor) -> np.ndarray:
    """The baseline of Hendrycks and Gimpel (2017): 1 minus the largest class probability, (N,)."""
    with torch.no_grad(), evaluating(model):
        return (1 - model(x).softmax(1).amax(1)).cpu().numpy()


@dataclass(frozen=True)
class Mahalanobis:
    """The baseline of Lee et al. (2018) on the last features: distance to the nearest class mean, one covariance."""

    means: np.ndarray
    covariance: Any

    def score(self, model: nn.Module, x: Tensor) -> np.ndarray:
        """The squared distance of each picture to the nearest class: (N,)."""
        return self.distance(last_features(model, x))

    def distance(self, seen: np.ndarray) -> np.ndarray:
        """The squared distance of features (N, features) to the nearest class: (N,)."""
        return np.min([self.covariance.mahalanobis(seen - mean) for mean in self.means], axis=0)


def mahalanobis(model: nn.Module, x: Tensor, y: Tensor) -> Mahalanobis:
    """`class_gaussians` of what the last linear layer reads, from clean pictures."""
    return class_gaussians(last_features(model, x), y.cpu().numpy())


def class_gaussians(seen: np.ndarray, labels: np.ndarray) -> Mahalanobis:
    """Class means and a shared covariance (Ledoit-Wolf) of features (N, features) with their classes (N,)."""
    from sklearn.covariance import LedoitWolf

    means = np.stack([seen[labels == label].mean(0) for label in np.unique(labels)])
    centred = seen - means[np.searchsorted(np.unique(labels), labels)]
    return Mahalanobis(means, LedoitWolf(assume_centered=True).fit(centred))


def last_features(model: nn.Module, x: Tensor) -> np.ndarray:
    """What the last linear layer reads: (N, features)."""
    return input_of(model, _last_linear(model), x).flatten(1).cpu().numpy()


def _last_linear(model: nn.Module) -> str:
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and ".controller" not in f".{name}"]
    if not names:
        raise ValueError(f"{type(model).__name__} has no linear layer: the Mahalanobis baseline needs one")
    return names[-1]


def auc(clean: Sequence[float], altered: Sequence[float]) -> float:
    """The area under the ROC curve of scores: 0.5 tells nothing, 1 everything. ValueError for no score at all."""
    from sklearn.metrics import roc_auc_score

    for name, scores in (("clean", clean), ("altered", altered)):
        if not len(scores):
            raise ValueError(f"auc: there is no score of a {name} picture: give at least one, or a stronger attack")
    return float(roc_auc_score(np.repeat([0, 1], [len(clean), len(altered)]), np.concatenate([clean, altered])))
