"""The detector: anchors, matching, hard negatives, suppression; average precision against COCO's own code."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch

import lab
from lab.core.data.faces import Faces, FaceTask
from lab.core.training import seeded
from lab.hyperfd import detector, precision, space
from lab.hyperfd.space import Configuration


def test_there_are_216_configurations_and_every_part_holds_the_default():
    everything = space.configurations()
    assert len(set(everything)) == 216 and space.DEFAULT in everything
    assert everything[space.even_part(1)[0]] == space.DEFAULT
    assert space.even_part(54) == space.even_part(108)[:54] and len(set(space.even_part(216))) == 216
    chosen = [everything[number] for number in space.even_part(54)]
    for name in space.NAMES:  # every value is there often enough to learn from
        values = [getattr(one, name) for one in chosen]
        assert min(values.count(value) for value in set(values)) >= 10, name
    with pytest.raises(ValueError, match="count=0"):
        space.even_part(0)


@pytest.mark.parametrize("field", [{"width": 0.3}, {"side": 100}, {"optimiser": "lion"}])
def test_a_configuration_outside_the_space_is_one_line(field):
    with pytest.raises(ValueError, match="is not allowed: give one of"):
        Configuration(**field)


def test_anchors_are_as_many_as_logits_and_in_their_order():
    for side in (96, 128, 192):
        with seeded(0):  # where a change is seen most hangs a little on the weights that are drawn
            net, places = detector.FaceDetector(0.25).eval(), detector.anchors(side)
        with torch.no_grad():
            logits, offsets = net(torch.zeros(2, 3, side, side))
        assert logits.shape == (2, len(places)) and offsets.shape == (2, len(places), 4)
    x = torch.zeros(1, 3, 96, 96)  # a change in the upper left moves the logits of the anchors there most
    x[:, :, 8:12, 20:24] = 50
    with torch.no_grad():
        moved = (net(x)[0] - net(torch.zeros_like(x))[0]).abs()[0]
    places = detector.anchors(96)[: 24 * 24 * 2]
    middle = (places[:, :2] + places[:, 2:])[int(moved[: len(places)].argmax())] / 2
    assert abs(middle - torch.tensor([22.0, 10.0])).max() <= 8


def test_boxes_survive_encoding():
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=random) * 60
    boxes = torch.cat([corner, corner + 4 + 30 * torch.rand(50, 2, generator=random)], 1)
    places = detector.anchors(96)[torch.randperm(500, generator=random)[:50]]
    assert torch.allclose(detector.decode(detector.encode(boxes, places), places), boxes, atol=1e-3)


def test_every_face_has_an_anchor_and_near_misses_are_left_out():
    places = detector.anchors(96)
    boxes = torch.tensor([[10.0, 10, 90, 90], [3, 5, 6, 8]])  # one larger, one smaller than every anchor
    label, target = detector.match(boxes, places, 0.55)
    found = detector.decode(target[label == 1], places[label == 1])
    assert all(bool((detector.iou(found, box[None]) > 0.99).any()) for box in boxes)
    overlap = detector.iou(places, boxes).max(1).values
    assert bool((label[(overlap > 0.45) & (overlap < 0.55)] != 0).all()) and bool((label[overlap < 0.4] < 1)[20:].any())
    label, _ = detector.match(torch.zeros(0, 4), places, 0.45)
    assert not label.any()


def test_only_the_hardest_negatives_count():
    logits = torch.tensor([[5.0, 2.0, -1.0, -3.0, 4.0]])
    label = torch.tensor([[1.0, 0.0, 0.0, 0.0, -1.0]])
    terms = detector.loss_terms(
        logits, torch.zeros(1, 5, 4), label, torch.ones(1, 5, 4), ratio=2, weight=2.0, among=1.0
    )
    entropy = math.log(1 + math.exp(-5)) + math.log(1 + math.exp(2)) + math.log(1 + math.exp(-1))
    assert float(terms["faces"]) == pytest.approx(entropy, rel=1e-5)
    assert float(terms["boxes"]) == pytest.approx(2 * 4 * 0.5, rel=1e-5)


def test_suppression_keeps_the_best_of_each_heap():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 1, 10, 11]])
    kept = detector.suppressed(boxes, torch.tensor([0.5, 0.9, 0.3, 0.8]))
    assert kept.tolist() == [1, 2]
    assert detector.suppressed(boxes, torch.ones(4), overlap=1.0, most=2).tolist() == [0, 1]


def test_a_picture_that_is_not_square_is_letterboxed():
    x, scale = detector.letterboxed(torch.full((3, 40, 80), 200, dtype=torch.uint8), 96)
    assert x.shape == (3, 96, 96) and scale == 1.2
    assert bool((x[:, :48] == 200).all()) and not x[:, 48:].any()


# -- average precision -------------------------------------------------------------------------------------------------


def drawn(seed, pictures=12):
    """True boxes and detections near some of them, with ties in their scores."""
    random = np.random.default_rng(seed)
    found, truth, far = [], [], np.array([0, 0, 45, 45])
    for index in range(pictures):
        corner = random.uniform(0, 80, (random.integers(0, 6), 2))
        true = np.concatenate([corner, corner + random.uniform(8, 30, corner.shape)], 1)
        near = true[random.integers(len(true), size=8)] if len(true) else np.zeros((0, 4))
        boxes = np.concatenate([near + random.normal(0, 2, near.shape), random.uniform(0, 40, (3, 4)) + far])
        boxes = np.concatenate([boxes, true[: index % 3]])
        scores = random.integers(1, 40, len(boxes)) / 40
        order = np.argsort(-scores, kind="stable")
        found.append((torch.tensor(boxes[order]).float(), torch.tensor(scores[order]).float()))
        truth.append(torch.tensor(true).float())
    return found, truth


def coco(found, truth):
    """The same by pycocotools."""
    COCO = pytest.importorskip("pycocotools.coco").COCO
    from pycocotools.cocoeval import COCOeval

    def flat(box):
        left, top, right, bottom = (float(value) for value in box)
        return [left, top, right - left, bottom - top]

    annotations = [
        {
            "id": 1 + sum(map(len, truth[:i])) + k,
            "image_id": i,
            "category_id": 1,
            "bbox": flat(box),
            "iscrowd": 0,
            "area": flat(box)[2] * flat(box)[3],
        }
        for i, boxes in enumerate(truth)
        for k, box in enumerate(boxes)
    ]
    results = [
        {"image_id": i, "category_id": 1, "bbox": flat(box), "score": float(score)}
        for i, (boxes, scores) in enumerate(found)
        for box, score in zip(boxes, scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "images": [{"id": i} for i in range(len(truth))],
            "annotations": annotations,
            "categories": [{"id": 1}],
        }
        known.createIndex()
        judge = COCOeval(known, known.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {"ap": 100 * judge.stats[0], "ap50": 100 * judge.stats[1]}


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_cocos_code(seed):
    found, truth = drawn(seed)
    here, there = precision.average_precision(found, truth), coco(found, truth)
    assert here == pytest.approx(there, abs=1e-6)


def test_average_precision_at_its_ends():
    _, truth = drawn(0)
    perfect = [(boxes, torch.ones(len(boxes))) for boxes in truth]
    assert precision.average_precision(perfect, truth) == {"ap50": 100.0, "ap": 100.0}
    none = [(torch.zeros(0, 4), torch.zeros(0)) for _ in truth]
    assert precision.average_precision(none, truth) == {"ap50": 0.0, "ap": 0.0}
    with pytest.raises(ValueError, match="no picture has a true box"):
        precision.average_precision(none, [torch.zeros(0, 4) for _ in truth])
    with pytest.raises(ValueError, match="give one list a picture"):
        precision.average_precision(none[:-1], truth)


# -- learning ----------------------------------------------------------------------------------------------------------


def few(task, learn=32, held_out=16):
    return FaceTask(learn=task.learn[range(learn)], held_out=task.held_out[range(held_out)], name=task.name)


@pytest.mark.slow
def test_it_learns_in_seconds_what_an_untrained_one_does_not_know():
    """From random weights; and in the dark from those that know plain scenes, which alone find nothing there."""
    task = few(lab.tasks.faces("portraits"), learn=64)
    configuration = Configuration(width=0.5, side=96, iou=0.35)
    net, trace = detector.train(task.learn, configuration, budget=300, fresh=True)
    torch.manual_seed(0)
    untrained = detector.score(detector.FaceDetector(0.5).eval(), task.held_out, 96)
    learned = detector.score(net, task.held_out, 96)
    assert learned["ap50"] > 25 > 5 > untrained["ap50"]
    assert trace[-1].terms["faces"] < trace[0].terms["faces"]
    boxes, scores = detector.detect(net, task.held_out.images[:1], 96)[0]
    assert len(boxes) == len(scores) <= 100 and bool((boxes >= 0).all()) and bool((boxes <= 160).all())


@pytest.mark.slow
def test_it_starts_from_weights_that_know_plain_scenes():
    dark, configuration = few(lab.tasks.faces("low light"), learn=96), Configuration(width=0.5, side=128)
    start = detector.FaceDetector(0.5)
    start.load_state_dict(detector.started(0.5))
    plain = detector.score(start.eval(), few(lab.tasks.faces("groups")).held_out, 128)["ap50"]
    before, after = detector.score(start, dark.held_out, 128)["ap50"], detector.evaluated(dark, configuration)["ap50"]
    assert plain > 50 and before < 5 and after > before + 15


@pytest.mark.slow
def test_the_same_seed_trains_the_same_detector():
    task, configuration = few(lab.tasks.faces("portraits"), 16, 8), Configuration(width=0.25, side=96)
    state = torch.get_rng_state()
    first, again, other = (detector.evaluated(task, configuration, 8, seed) for seed in (0, 0, 1))
    assert first == again and torch.equal(torch.get_rng_state(), state)
    nets = [detector.train(task.learn, configuration, 8, seed)[0].logits.weight for seed in (0, 1)]
    assert not torch.equal(*nets) and set(other) == {"ap", "ap50"}


def test_dearer_configurations_get_fewer_steps():
    steps = [detector.affordable(Configuration(width=1.0, side=side)) for side in (96, 128, 192)]
    assert steps == sorted(steps, reverse=True) and steps[-1] > 20


def test_pictures_without_a_face_are_learned_from_too():
    pictures = [torch.zeros(3, 96, 96, dtype=torch.uint8)] * 16
    boxes = [torch.tensor([[10.0, 10, 30, 30]])] + [torch.zeros(0, 4)] * 15
    net, _ = detector.train(Faces(images=pictures, boxes=boxes), Configuration(width=0.25, side=96), 8)
    assert all(torch.isfinite(p).all() for p in net.parameters())
