"""A detection finds one face, and a face is found once."""

import torch

from lab.hyperfd import boxes

FACES = torch.tensor([[10.0, 10, 30, 30], [50, 50, 70, 70]])
FOUND = torch.tensor([[11.0, 11, 31, 31], [12, 10, 32, 30], [50, 50, 70, 90], [0, 60, 20, 80]])


def test_each_face_is_found_once_by_the_first_that_overlaps_it():
    assert boxes.hits(FOUND, FACES).tolist() == [0, -1, 1, -1]
    assert boxes.hits(FOUND, FACES, overlap=0.6).tolist() == [0, -1, -1, -1]
    assert boxes.hits(FOUND[:2], FACES[:0]).tolist() == [-1, -1] and boxes.hits(FOUND[:0], FACES).tolist() == []


def test_found_missed_and_false_are_told_apart():
    by_name = boxes.judged(FOUND[[0, 3]], FACES)
    assert by_name["found"].equal(FOUND[:1]) and by_name["false alarm"].equal(FOUND[3:])
    assert by_name["missed"].equal(FACES[1:])


def test_dark_pictures_are_shown_brighter():
    dark = torch.randint(0, 40, (3, 20, 20), dtype=torch.uint8)
    assert int(boxes.brighter(dark).max()) == 255 and int(boxes.brighter(dark * 0).max()) == 0
