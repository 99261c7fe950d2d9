"""Attacks stay within their bounds and are misread; detectors see what the path shows, and no labels of their own."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab.decoupling import detection
from lab.decoupling import equations as eq
from lab.decoupling.layers import changing, gates
from lab.decoupling.paths import class_paths, record
from tests.decoupling.test_paths import made
from tests.decoupling.test_recipe import QUICK, data, run

pytest.importorskip("captum", reason="attacks need the extra `lens`")
from lab.decoupling import attacks

BOUNDS = {"low": -4.0, "high": 4.0}
STEPS = {"eps": 0.6, "step": 0.15, "steps": 8}


@pytest.fixture(scope="module")
def outcome():
    return run(**QUICK, r=0.5, bias=1.0)


@pytest.fixture(scope="module")
def pictures(outcome):
    x, y = data()
    with torch.no_grad():
        right = outcome.model(x).argmax(1) == y
    x, y = x[right].clamp(BOUNDS["low"], BOUNDS["high"]), y[right]
    return x, y, (y + 1) % 4


def altered(kind: str, outcome, pictures, **changes):
    x, y, target = pictures
    if kind == "fgsm":
        return attacks.fgsm(outcome.model, x, y, eps=STEPS["eps"], **BOUNDS)
    if kind == "pgd":
        return attacks.pgd(outcome.model, x, y, **STEPS, **BOUNDS)
    if kind == "bim":
        return attacks.bim(outcome.model, x, y, target, **STEPS, **BOUNDS)
    settings = {"weight": 10.0, **STEPS, **BOUNDS, **changes}
    return attacks.adaptive(outcome.decoupled, x, y, target, outcome.seen, **settings)


KINDS = ("fgsm", "pgd", "bim", "adaptive")


@pytest.mark.parametrize("kind", KINDS)
def test_no_pixel_leaves_its_bounds(outcome, pictures, kind):
    found = altered(kind, outcome, pictures)
    away = (found.x - pictures[0]).abs()
    assert away.max() <= STEPS["eps"] + 1e-5 and away.max() > 0
    assert BOUNDS["low"] <= found.x.min() and found.x.max() <= BOUNDS["high"]
    assert found.x.shape == pictures[0].shape and not found.x.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_raise_the_loss_that_they_climb(outcome, pictures, kind):
    x, y, target = pictures
    found = altered(kind, outcome, pictures)
    with torch.no_grad():
        before, after = outcome.model(x), outcome.model(found.x)
    if kind in ("fgsm", "pgd"):
        assert F.cross_entropy(after, y) > F.cross_entropy(before, y)
    elif kind == "bim":
        assert F.cross_entropy(after, target) < F.cross_entropy(before, target)


@pytest.mark.parametrize("kind", KINDS)
def test_misread_is_what_the_network_says(outcome, pictures, kind):
    _, y, target = pictures
    found = altered(kind, outcome, pictures)
    with torch.no_grad():
        named = outcome.model(found.x).argmax(1)
    expected = named != y if kind in ("fgsm", "pgd") else named == target
    assert torch.equal(found.misread, expected) and found.misread.dtype == torch.bool
    assert torch.equal(found.target, y if kind in ("fgsm", "pgd") else target)


def test_a_picture_that_is_to_be_called_what_it_is_is_not_misread(outcome, pictures):
    x, y, _ = pictures
    found = attacks.bim(outcome.model, x, y, y.clone(), **STEPS, **BOUNDS)
    assert not found.misread.any()


def test_the_fast_method_takes_one_step_along_the_sign_of_the_gradient(outcome, pictures):
    x, y, _ = pictures
    given = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(outcome.model(given), y, reduction="sum"), given)
    expected = (x + 0.1 * grad.sign()).clamp(BOUNDS["low"], BOUNDS["high"])
    found = attacks.fgsm(outcome.model, x, y, eps=0.1, **BOUNDS)
    assert torch.allclose(found.x, expected, atol=1e-6)


@pytest.mark.slow
def test_gradients_reach_the_picture_through_the_gates_alone():
    """With only its bits between picture and answer a network is attacked all the same: v1 lets gradients pass."""
    net = run(steps=1)
    gate = next(iter(gates(net.model).values()))

    class Bits(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = gate

        def forward(self, x):
            a = F.interpolate(x, scale_factor=1).repeat(1, 4, 1, 1)
            return self.gate(torch.ones(len(x), gate.controller.fc2.out_features), a)[:, :4]

    model = Bits().eval()
    nn.init.normal_(gate.controller.fc1.weight)
    x = torch.randn(6, 3, 4, 4)
    found = attacks.bim(model, x, torch.zeros(6).long(), torch.ones(6).long(), eps=1.0, step=0.5, steps=2, **BOUNDS)
    assert (found.x - x).abs().max() > 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_an_attack_leaves_network_and_pictures_alone(outcome, pictures, kind):
    x, _, _ = pictures
    model, before = outcome.model, x.clone()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    wanted = next(model.parameters()).requires_grad_(False)
    altered(kind, outcome, pictures)
    assert model.training and not wanted.requires_grad
    wanted.requires_grad_(True)
    model.eval()
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, before) and not x.requires_grad and x.grad is None
    assert not any(gate.controller._forward_hooks for gate in gates(model).values())


def test_the_adaptive_attack_comes_nearer_to_the_path_of_its_target(outcome, pictures):
    _, _, target = pictures
    typical = torch.from_numpy(class_paths(outcome.seen)).float()

    def away(found):
        logits = []
        hooks = [
            gate.controller.register_forward_hook(lambda _, __, y: logits.append(y))
            for gate in gates(outcome.model).values()
        ]
        with torch.no_grad():
            outcome.model(found.x)
        for hook in hooks:
            hook.remove()
        soft = eq.saturating_sigmoid(torch.cat(logits, 1))
        return (soft - typical[target]).square().mean().item()

    assert away(altered("adaptive", outcome, pictures, weight=1e3)) < away(altered("bim", outcome, pictures))


def test_without_weight_the_adaptive_attack_is_the_basic_one(outcome, pictures):
    plain, adaptive = altered("bim", outcome, pictures), altered("adaptive", outcome, pictures, weight=0.0)
    assert torch.allclose(plain.x, adaptive.x, atol=1e-6)


# -- detectors -------------------------------------------------------------------------------------------------------


def test_features_are_bits_and_distances_from_the_path_of_the_answer():
    known = made(np.array([[1, 1, 0, 0, 1], [1, 0, 0, 0, 1], [0, 0, 1, 1, 1]]), [0, 0, 1], sizes=(4, 1))
    seen = made(np.array([[1, 1, 0, 1, 0], [0, 0, 1, 1, 1]]), [9, 9], predicted=np.array([0, 1]), sizes=(4, 1))
    found = detection.features(seen, known)
    assert found.dtype == np.float32 and found.shape == (2, 5 + 2)
    assert found[:, :5].tolist() == [[1, 1, 0, 1, 0], [0, 0, 1, 1, 1]]
    # class path of 0 is (1, .5, 0, 0, 1): |z - path| is (0, .5, 0, 1) and (1)
    assert found[:, 5:].tolist() == [[1.5 / 4, 1.0], [0.0, 0.0]]


def test_features_do_not_look_at_labels(outcome, pictures):
    x, y, _ = pictures
    told, untold = record(outcome.decoupled, [(x, y)]), record(outcome.decoupled, [x])
    assert (detection.features(told, outcome.seen) == detection.features(untold, outcome.seen)).all()


@pytest.mark.slow
@pytest.mark.parametrize("classifier", detection.CLASSIFIERS)
def test_every_classifier_tells_altered_pictures(outcome, pictures, classifier):
    """Pictures of three times the contrast and other colours take other paths."""
    x, _, _ = pictures
    strange = x.flip(1) * 3
    learn, judge = slice(0, 48), slice(48, None)
    find = lambda a, b: detection.detector(outcome.decoupled, outcome.seen, a, b, classifier=classifier)  # noqa: E731
    found = find(x[learn], strange[learn])
    clean, other = found.score(x[judge]), found.score(strange[judge])
    assert clean.shape == (len(x[judge]),) and 0 <= min(clean.min(), other.min())
    assert max(clean.max(), other.max()) <= 1
    assert detection.auc(clean, other) > 0.7
    again = find(x[learn], strange[learn])
    assert (again.score(x[judge]) == clean).all()


@pytest.mark.parametrize("classifier", detection.CLASSIFIERS)
def test_a_detector_that_sees_the_same_path_everywhere_is_blind(outcome, pictures, classifier):
    """With every gate held on, paths tell nothing, and what a detector says of altered pictures is chance exactly."""
    x, _, _ = pictures
    strange, learn, judge = x.flip(1) * 3, slice(0, 48), slice(48, None)
    held = {name: lambda z: torch.ones_like(z) for name in gates(outcome.model)}
    with changing(outcome.model, held):
        known = record(outcome.decoupled, [(x[learn], torch.arange(48) % 4)])
        blind = detection.detector(outcome.decoupled, known, x[learn], strange[learn], classifier=classifier)
        clean, other = blind.score(x[judge]), blind.score(strange[judge])
    assert detection.auc(clean, other) == 0.5


@pytest.mark.slow
def test_a_detector_of_nothing_is_near_chance(outcome, pictures):
    """Two heaps of the same pictures: over many draws its area is a half."""
    x, areas = pictures[0], []
    for seed in range(16):
        heaps = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:88]]
        blind = detection.detector(outcome.decoupled, outcome.seen, heaps[:24], heaps[24:48], seed=seed)
        areas.append(detection.auc(blind.score(heaps[48:68]), blind.score(heaps[68:])))
    assert abs(np.mean(areas) - 0.5) < 0.1


def test_the_forest_has_fifty_trees(outcome, pictures):
    x, _, _ = pictures
    found = detection.detector(outcome.decoupled, outcome.seen, x[:8], x[8:16] * 2)
    assert len(found.classifier.estimators_) == 50


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classifier": "svm"}, "classifier='svm': choose one of random forest, adaboost, gradient boosting"),
        ({"clean": torch.zeros(0, 3, 8, 8)}, "there is no clean picture: give at least one"),
        ({"altered": torch.zeros(0, 3, 8, 8)}, "there is no altered picture: give at least one"),
    ],
)
def test_a_detector_that_cannot_learn_is_one_line(outcome, pictures, changes, words):
    given = {"clean": pictures[0][:4], "altered": pictures[0][:4], **changes}
    with pytest.raises(ValueError, match=words) as caught:
        detection.detector(outcome.decoupled, outcome.seen, **given)
    assert "\n" not in str(caught.value)


def test_one_forward_pass_a_chunk_of_pictures(outcome, pictures):
    found = detection.detector(outcome.decoupled, outcome.seen, pictures[0][:8], pictures[0][8:16])
    passes = []
    hook = outcome.model.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    found.score(pictures[0][:20])
    hook.remove()
    assert passes == [32]


def test_the_area_under_the_curve_counts_pairs():
    clean, other = [0.1, 0.4, 0.4], [0.4, 0.8]
    wins = sum((b > a) + 0.5 * (b == a) for a in clean for b in other)
    assert detection.auc(clean, other) == pytest.approx(wins / 6)


def test_max_softmax_is_one_minus_the_largest_probability(outcome, pictures):
    x = pictures[0][:7]
    with torch.no_grad():
        p = torch.softmax(outcome.model(x), 1)
    assert detection.max_softmax(outcome.model, x) == pytest.approx(1 - p.max(1).values.numpy(), abs=1e-6)


def test_mahalanobis_is_the_distance_to_the_nearest_class(outcome, pictures):
    x, y, _ = pictures
    model = outcome.model
    found = detection.mahalanobis(model, x, y)
    features = detection.last_features(model, x)
    with torch.no_grad():
        answers = model.get_submodule("12")(torch.from_numpy(features))
        assert torch.allclose(answers, model(x), atol=1e-6)
    inverse = np.linalg.inv(found.covariance.covariance_)
    means = [features[y.numpy() == label].mean(0) for label in range(4)]
    by_hand = [min((row - mean) @ inverse @ (row - mean) for mean in means) for row in features]
    assert found.score(model, x) == pytest.approx(np.array(by_hand), rel=1e-2)


def test_an_answer_without_a_class_path_is_not_given_a_neighbours():
    bits = np.eye(7, dtype=bool)[:4]
    known = made(np.concatenate([bits, bits]), [0, 1, 3, 4] * 2, sizes=(4, 3))
    for answer in (2, 5, -1):
        with pytest.raises(ValueError, match=rf"the answer {answer} has no class path, .* pictures of \[0, 1, 3, 4\]"):
            detection.features(made(bits[:1], [0], np.array([answer]), sizes=(4, 3)), known)
    assert detection.features(made(bits[2:3], [0], np.array([3]), sizes=(4, 3)), known)[0, 7:].tolist() == [0, 0]


def test_a_network_without_linear_layer_has_no_last_features():
    with pytest.raises(ValueError, match="Conv2d has no linear layer: the Mahalanobis baseline needs one"):
        detection.last_features(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 2, 2))


def test_an_attacker_without_the_path_of_the_target_does_not_take_a_neighbours(outcome, pictures):
    """Class 2 is missing among the paths: its number stands for no row, and class 3 is not in its place."""
    x, y, _ = pictures
    known, imitate = outcome.seen.take(outcome.seen.labels != 2), {"weight": 10.0, **STEPS, **BOUNDS}
    for target in (2, -1, 4):
        with pytest.raises(ValueError, match=rf"the answer {target} has no class path"):
            attacks.adaptive(outcome.decoupled, x, y, torch.full_like(y, target), known, **imitate)
    threes = [
        attacks.adaptive(outcome.decoupled, x, y, torch.full_like(y, 3), reference, **imitate).x
        for reference in (known, outcome.seen)
    ]
    assert torch.equal(*threes)


def test_scores_of_no_picture_are_one_line():
    for scores, name in (([], [0.1]), "clean"), (([0.1], []), "altered"):
        with pytest.raises(ValueError, match=f"no score of a {name} picture"):
            detection.auc(*scores)
