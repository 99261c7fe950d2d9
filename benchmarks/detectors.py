"""Rivals in telling altered pictures from clean ones: what each looks at, and how often it asks the network.

Every detector learns from the same `Known`; those whose `sees` is true also from altered pictures, the others only
from clean ones. Published rivals read the gates' places of the decoupled network, as paths do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import median_filter
from torch import Tensor, nn
from torch.nn import functional as F

from lab.core.models import learning
from lab.core.task import evaluating
from lab.core.training import seeded
from lab.decoupling import attacks, detection, paths
from lab.decoupling.layers import changing, recording
from lab.decoupling.placement import Decoupled

BATCH = 50  # pictures at a time
SHOWN = 20  # of each class, those that detectors may see altered
STEPS, PART = 10, 5  # of an attack, each a fifth of its reach
WEIGHTS = (10.0, 100.0)  # of the path in the adaptive attack
CDRP_STEPS, CDRP_LR, CDRP_GAMMA = 30, 0.1, 0.05  # Wang et al.: 30 updates, rate 0.1, momentum 0.9
NAD_STEPS, NAD_LR, NAD_BETA = 60, 0.1, 1.0
NAD_START = 2.0  # where masks begin: sigmoid(2) = 0.88
SETTINGS = {
    "shown": SHOWN, "steps": STEPS, "part": PART, "weights": WEIGHTS,
    "CDRP": (CDRP_STEPS, CDRP_LR, CDRP_GAMMA), "NAD": (NAD_STEPS, NAD_LR, NAD_BETA, NAD_START),
}  # fmt: skip
Score = Callable[[Tensor], np.ndarray]


@dataclass(frozen=True, eq=False)
class Pixels:
    """The least and the greatest value of a pixel, (C, 1, 1) each, how far an attack moves it, as a share of what lies
    between, and to how many bits feature squeezing reduces it."""

    low: Tensor
    high: Tensor
    reach: float
    bits: int


@dataclass(frozen=True, eq=False)
class Known:
    """What every detector may learn from.

    Clean pictures x (N, C, H, W) with classes y (N,) and their paths, of which the `few` first of each class also come
    as `altered` ones (M, C, H, W) that the network misreads.
    """

    decoupled: Decoupled
    reference: paths.Paths
    x: Tensor
    y: Tensor
    few: Tensor
    altered: Tensor
    pixels: Pixels
    seed: int


@dataclass(frozen=True)
class Detector:
    """How a detector is learned, the passes that it then makes for each picture, and whether it has seen attacks."""

    learn: Callable[[Known], Score]
    forward: int
    backward: int
    sees: bool


# -- what detectors are shown ------------------------------------------------------------------------------------------

Labelled = tuple[Tensor, Tensor]


def altered_pictures(
    decoupled: Decoupled, known: Labelled, held_out: Labelled, pixels: Pixels, judged: int, seed: int
) -> tuple[Known, Tensor, dict[str, Tensor]]:
    """What detectors learn from, the first `judged` held-out pictures that are read rightly, and those altered.

    An attack gives only those that it has misread. Pictures come with their classes.
    """
    (x, y), model = known, decoupled.model
    reach = pixels.reach * (pixels.high - pixels.low)
    once = {"eps": reach, "low": pixels.low, "high": pixels.high}
    often = once | {"step": reach / PART, "steps": STEPS}
    reference, seen = paths.record(decoupled, [known]), paths.record(decoupled, [held_out])
    with seeded(seed):
        few = first_of_each(y, reference.predicted == reference.labels)
        shown = attacks.bim(model, x[few], y[few], other_class(y[few]), **often)
        right = torch.from_numpy(np.flatnonzero(seen.predicted == seen.labels)[:judged]).to(x.device)
        clean, named = (part[right] for part in held_out)
        target = other_class(named)
        found = {
            "bim": attacks.bim(model, clean, named, target, **often),
            "fgsm": attacks.fgsm(model, clean, named, **once),
            "pgd": attacks.pgd(model, clean, named, **often),
        }
        for weight in WEIGHTS:
            imitated = attacks.adaptive(decoupled, clean, named, target, reference, weight=weight, **often)
            found[f"adaptive {weight:g}"] = imitated
    learned = Known(decoupled, reference, x, y, few, shown.x[shown.misread], pixels, seed)
    return learned, clean, {name: attack.x[attack.misread] for name, attack in found.items()}


def first_of_each(y: Tensor, right: np.ndarray) -> Tensor:
    """The indices of the first `SHOWN` pictures of each class that are read rightly."""
    chosen = torch.from_numpy(right).to(y.device)
    return torch.cat([((y == label) & chosen).nonzero().flatten()[:SHOWN] for label in y.unique()])


def other_class(y: Tensor) -> Tensor:
    """A class that each picture does not have, at random."""
    return (y + torch.randint(1, 10, y.shape).to(y.device)) % 10


# -- paths ------------------------------------------------------------------------------------------------------------


def path_forest(known: Known) -> Score:
    """The lab's: a random forest on the bits, and on how far they are from the class path of the answer."""
    clean = known.x[known.few]
    return detection.detector(known.decoupled, known.reference, clean, known.altered, seed=known.seed).score


def path_likelihood(known: Known) -> Score:
    """The same bits without attacks: how unlikely they are, one by one, for pictures of the class that is answered."""
    least = 1 / (2 + len(known.reference) / len(known.reference.classes()))

    def score(x: Tensor) -> np.ndarray:
        seen = paths.record(known.decoupled, [x])
        on = paths.typical_paths(known.reference, seen.predicted).clip(least, 1 - least)
        return -np.where(seen.bits, np.log(on), np.log(1 - on)).mean(1)

    return score


# -- what the network says, and its features ---------------------------------------------------------------------------


def max_softmax(known: Known) -> Score:
    """Hendrycks and Gimpel (2017)."""
    return lambda x: detection.max_softmax(known.decoupled.model, x)


def mahalanobis_last(known: Known) -> Score:
    """Lee et al. (2018) on the last features alone."""
    model = known.decoupled.model
    fitted = detection.mahalanobis(model, known.x, known.y)
    return lambda x: fitted.score(model, x)


def mahalanobis_layers(known: Known) -> Score:
    """Lee et al. (2018): the distance at each layer, weighed by a logistic regression that has seen attacks.

    Class means and one covariance a layer, of the means of its maps. Their second step, which moves the picture along
    the gradient of each layer's distance, is left out.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    distances = _layer_distances(known)
    seen = np.concatenate([distances(known.x[known.few]), distances(known.altered)])
    is_altered = np.repeat([0, 1], [len(known.few), len(known.altered)])
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(seen, is_altered)
    return lambda x: fitted.predict_proba(distances(x))[:, 1]


def mahalanobis_sum(known: Known) -> Score:
    """The same distances without attacks: each in units of its spread over clean pictures, summed."""
    distances = _layer_distances(known)
    clean = distances(known.x[known.few])
    mean, spread = clean.mean(0), clean.std(0) + 1e-9
    return lambda x: ((distances(x) - mean) / spread).sum(1)


def _layer_distances(known: Known) -> Score:
    """The logarithm of the squared distance to the nearest class at each gated layer: (N, layers)."""
    model, labels = known.decoupled.model, known.y.cpu().numpy()
    fitted = [detection.class_gaussians(seen, labels) for seen in _layer_means(model, known.x)]

    def distances(x: Tensor) -> np.ndarray:
        seen = _layer_means(model, x)
        return np.stack([np.log1p(one.distance(part)) for one, part in zip(fitted, seen, strict=True)], 1)

    return distances


def _layer_means(model: nn.Module, x: Tensor) -> list[np.ndarray]:
    """The mean of each map behind its gate, layer by layer: (N, C_l) each."""
    with torch.no_grad(), evaluating(model), recording(model) as records:
        for part in x.split(BATCH):
            model(part)
    return [torch.cat([gate.z * gate.out for gate in record]).cpu().numpy() for record in records]


def feature_squeezing(known: Known) -> Score:
    """Xu et al. (2018): how far fewer grey levels or a median of 2 x 2 pixels move the answer, the larger L1 distance.

    Their third filter, non-local means for colour, is left out.
    """
    model, low, span = known.decoupled.model, known.pixels.low, known.pixels.high - known.pixels.low
    levels = 2**known.pixels.bits - 1

    @torch.no_grad()
    def probabilities(x: Tensor) -> Tensor:
        return torch.cat([model(part).softmax(1) for part in x.split(BATCH)])

    def score(x: Tensor) -> np.ndarray:
        coarse = ((x - low) / span * levels).round() / levels * span + low
        smooth = torch.from_numpy(median_filter(x.cpu().numpy(), (1, 1, 2, 2), mode="reflect")).to(x)
        with evaluating(model):
            plain = probabilities(x)
            moved = [(probabilities(squeezed) - plain).abs().sum(1) for squeezed in (coarse, smooth)]
        return torch.stack(moved).amax(0).cpu().numpy()

    return score


# -- gates that are optimised ------------------------------------------------------------------------------------------


def critical_paths(known: Known) -> Score:
    """CDRP (Wang et al., CVPR 2018): a random forest on gates that are optimised for each picture alone."""
    from sklearn.ensemble import RandomForestClassifier

    seen = [cdrp_gates(known.decoupled, x) for x in (known.x[known.few], known.altered)]
    forest = RandomForestClassifier(50, random_state=known.seed)
    forest.fit(np.concatenate(seen), np.repeat([0, 1], list(map(len, seen))))
    return lambda x: forest.predict_proba(cdrp_gates(known.decoupled, x))[:, 1]


def cdrp_gates(decoupled: Decoupled, x: Tensor) -> np.ndarray:
    """The gates Lambda >= 0 of each picture, (N, filters): cross-entropy to the network's own answer + gamma |Lambda|.

    SGD from 1; of all updates that leave the answer as it was, the gates with the least loss.
    """
    return np.concatenate([_cdrp_gates(decoupled, part) for part in x.split(BATCH)])


def _cdrp_gates(decoupled: Decoupled, x: Tensor) -> np.ndarray:
    model, filters = decoupled.model, sum(site.filters for site in decoupled.sites)
    gates = x.new_ones(len(x), filters).requires_grad_()
    kept, least = x.new_ones(len(x), filters), x.new_full((len(x),), torch.inf)
    optimiser = torch.optim.SGD([gates], CDRP_LR, momentum=0.9)
    with evaluating(model), learning(model.parameters(), False), torch.enable_grad():
        own = model(x).detach().softmax(1)
        for _ in range(CDRP_STEPS):
            output = _masked(decoupled, x, gates)
            loss = F.cross_entropy(output, own, reduction="none") + CDRP_GAMMA * gates.sum(1)
            better = (output.argmax(1) == own.argmax(1)) & (loss < least)
            kept[better], least[better] = gates.detach()[better], loss.detach()[better]
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()
            gates.data.clamp_(min=0)
    return kept.cpu().numpy()


def disentangled(known: Known) -> Score:
    """NAD (Hu et al., ICCV 2021, neural architecture disentangling) read as a detector by us.

    A sub-architecture a class is learned from clean pictures; the score is one minus the probability of the answer
    when only the sub-architecture of the answer is on.
    """
    masks = nad_masks(known) > 0

    @torch.no_grad()
    def part_score(x: Tensor) -> Tensor:
        answer = known.decoupled.model(x).argmax(1)
        output = _masked(known.decoupled, x, masks[answer].float())
        return 1 - output.softmax(1).gather(1, answer[:, None])[:, 0]

    def score(x: Tensor) -> np.ndarray:
        with evaluating(known.decoupled.model):
            return torch.cat([part_score(part) for part in x.split(BATCH)]).cpu().numpy()

    return score


def nad_masks(known: Known) -> Tensor:
    """Logits of each class's mask, (classes, filters): a unit belongs to the class where its logit is above 0.

    Minimised are the cross-entropy and the squared change of every layer's means, over the number of layers, and beta
    times the mean of the squared mask. Adam instead of normalised gradients, means of maps instead of maps: ours.
    """
    decoupled = known.decoupled
    model, sizes = decoupled.model, [site.filters for site in decoupled.sites]
    masks = known.x.new_full((int(known.y.max()) + 1, sum(sizes)), NAD_START).requires_grad_()
    optimiser = torch.optim.Adam([masks], NAD_LR)
    x, y = known.x[known.few], known.y[known.few]
    with evaluating(model), learning(model.parameters(), False), torch.enable_grad():
        for _ in range(NAD_STEPS):
            drawn = torch.randperm(len(x))[:BATCH].to(x.device)
            with torch.no_grad(), recording(model) as plain:
                model(x[drawn])
            soft = masks[y[drawn]].sigmoid()
            with recording(model) as records:
                fit = F.cross_entropy(_masked(decoupled, x[drawn], soft), y[drawn])
            for whole, masked in zip(plain, records, strict=True):
                fit = fit + F.mse_loss(masked[0].z * masked[0].out, whole[0].z * whole[0].out)
            few = torch.stack([part.square().mean() for part in soft.split(sizes, 1)]).mean()
            optimiser.zero_grad()
            (fit / len(sizes) + NAD_BETA * few).backward()
            optimiser.step()
    return masks.detach()


def _masked(decoupled: Decoupled, x: Tensor, masks: Tensor) -> Tensor:
    """What the network answers with each encoding times a mask: x (N, C, H, W), masks (N, filters)."""
    parts = masks.split([site.filters for site in decoupled.sites], 1)
    changes = {site.gate: _times(part) for site, part in zip(decoupled.sites, parts, strict=True)}
    with changing(decoupled.model, changes):
        return decoupled.model(x)


def _times(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: z * mask


DETECTORS = {
    "paths forest": Detector(path_forest, 1, 0, True),
    "paths likelihood": Detector(path_likelihood, 1, 0, False),
    "max softmax": Detector(max_softmax, 1, 0, False),
    "Mahalanobis last": Detector(mahalanobis_last, 1, 0, False),
    "Mahalanobis layers": Detector(mahalanobis_layers, 1, 0, True),
    "Mahalanobis layers summed": Detector(mahalanobis_sum, 1, 0, False),
    "feature squeezing": Detector(feature_squeezing, 3, 0, False),
    "CDRP gates forest": Detector(critical_paths, 1 + CDRP_STEPS, CDRP_STEPS, True),
    "NAD": Detector(disentangled, 2, 0, False),
}
