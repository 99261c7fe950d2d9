"""Composed scenes and annotated pictures of one's own: boxes to the pixel, the three forms on disk, bad input."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import lab
from lab.core.data import face_boxes, faces, inflating

SHARED = Path(__file__).parents[4] / "shared" / "data"
STREETS = SHARED / "faces" / "facemask853.zip"


def picture(width=40, height=30):
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 255, (height, width, 3), np.uint8))


def jpeg(width=40, height=30):
    content = io.BytesIO()
    picture(width, height).save(content, "JPEG")
    return content.getvalue()


# -- composed scenes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_there_are_twelve_domains_with_faces_in_each():
    assert len(faces.DOMAINS) >= 12
    for name in ("portraits", "crowded", "fish-eye", "coarse"):
        task = lab.tasks.faces(name)
        assert (len(task.learn), len(task.held_out)) == (96, 64) and "composed" in task.note
        assert task.learn.images[0].shape == (3, 160, 160) and task.learn.images[0].dtype == torch.uint8


@pytest.mark.slow
def test_a_scene_is_the_same_each_time_and_another_with_another_seed():
    first = faces.composed.__wrapped__("small", 0)
    again, other = faces.composed.__wrapped__("small", 0), faces.composed.__wrapped__("small", 1)
    assert all(torch.equal(a, b) for a, b in zip(first.learn.images, again.learn.images, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first.learn.boxes, again.learn.boxes, strict=True))
    assert not torch.equal(first.learn.images[0], other.learn.images[0])


def test_boxes_are_where_faces_were_laid(monkeypatch):
    """A face of one white square: what is white is what the box holds, also behind a fish-eye."""
    crops = np.zeros((200, 25, 25))
    crops[:100] = 1
    monkeypatch.setattr(faces, "_crops", lambda: crops)
    monkeypatch.setattr(faces, "_photographs", lambda: {"learn": [np.zeros((3, 200, 200), np.uint8)]})
    for name in ("groups", "fish-eye", "rotated"):
        x, boxes = faces._scene(faces.DOMAINS[name], "learn", np.random.default_rng(3))
        bright = x.float().mean(0) > 60
        inside = torch.zeros_like(bright)
        for left, top, right, bottom in boxes.int().tolist():
            inside[top:bottom, left:right] = True
            seen = bright[top:bottom, left:right].nonzero()  # to within the soft border, it touches all four sides
            reach = [
                *seen.min(0).values.tolist(),
                *(torch.tensor([bottom - top, right - left]) - seen.max(0).values - 1),
            ]
            assert max(map(int, reach)) <= 2
        assert len(boxes) >= 1 and not (bright & ~inside).any()


def test_no_crop_is_in_both_parts_and_no_photograph_either():
    assert not set(faces._CROPS["learn"]) & set(faces._CROPS["held out"])
    assert not set(faces._GROUNDS["learn"]) & set(faces._GROUNDS["held out"])


@pytest.mark.slow
def test_sizes_are_those_of_the_domain():
    for name in ("portraits", "crowded", "small"):
        sides = torch.cat(list(lab.tasks.faces(name).learn.boxes))
        heights = sides[:, 3] - sides[:, 1]
        low, high = faces.DOMAINS[name].size
        assert low <= float(heights.min()) and float(heights.max()) <= high


@pytest.mark.parametrize(
    ("options", "words"),
    [({"domain": "dogs"}, "domain='dogs': there are portraits"), ({"seed": -1}, "seed=-1: give an integer")],
)
def test_wrong_options_are_one_line(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        lab.tasks.faces(**options)
    assert "\n" not in str(caught.value)


# -- sets of one's own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([], "no box in 1 pictures: a detector cannot learn"),
        ([[0, 0, 50, 10]], r"box \[0.0, 0.0, 50.0, 10.0\] is outside the picture of 40 x 30"),
        ([[-1, 0, 5, 10]], "is outside the picture"),
        ([[5, 5, 5, 9]], "has no area"),
        ([[float("nan"), 0, 5, 10]], "not finite"),
    ],
)
def test_bad_boxes_are_one_line(boxes, words):
    x = torch.zeros(3, 30, 40, dtype=torch.uint8)
    with pytest.raises(ValueError, match=words):
        faces.Faces(images=[x], boxes=[torch.tensor(boxes)], name="mine")


def test_bad_pictures_are_one_line():
    with pytest.raises(ValueError, match=r"mine, picture 0 is torch.float32 \(3, 8, 8\): give uint8"):
        faces.Faces(images=[torch.zeros(3, 8, 8)], boxes=[[[0, 0, 4, 4]]], name="mine")
    with pytest.raises(ValueError, match="1 pictures, 2 lists of boxes"):
        faces.Faces(images=[torch.zeros(3, 8, 8).byte()], boxes=[[[0, 0, 4, 4]]] * 2)


def wider(folder, invalid=0):
    for part, names in (("train", ("a/1.jpg", "a/2.jpg", "a/3.jpg")), ("val", ("b/1.jpg",))):
        lines = []
        for name in names:
            (folder / f"WIDER_{part}" / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"WIDER_{part}" / "images" / name).write_bytes(jpeg())
            lines += [name, "2", "3 4 10 12 0 0 0 0 0 0", f"20 4 8 0 0 0 0 {invalid} 0 0"]  # the second has no height
        lines += ["a/none.jpg", "0", "0 0 0 0 0 0 0 0 0 0"] if part == "train" else []
        listing = folder / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt"
        listing.parent.mkdir(exist_ok=True)
        listing.write_text("\n".join(lines) + "\n")
    (folder / "WIDER_train" / "images" / "a" / "none.jpg").write_bytes(jpeg())


def test_wider_face_folders(tmp_path):
    wider(tmp_path)
    task = lab.tasks.faces(folder=tmp_path)
    assert (len(task.learn), len(task.held_out)) == (4, 1)
    assert task.learn.boxes[0].tolist() == [[3, 4, 13, 16]] and len(task.learn.boxes[3]) == 0


def test_a_corrupt_picture_is_skipped_counted_and_named(tmp_path):
    wider(tmp_path)
    (tmp_path / "WIDER_train" / "images" / "a" / "2.jpg").write_bytes(b"rubbish")
    (tmp_path / "WIDER_train" / "images" / "a" / "3.jpg").unlink()
    with pytest.warns(UserWarning, match=r"2 of 4 pictures cannot be read and are skipped: a/2.jpg, a/3.jpg"):
        task = lab.tasks.faces(folder=tmp_path)
    assert [file for file, _ in task.learn.skipped] == ["a/2.jpg", "a/3.jpg"] and "2 skipped" in repr(task.learn)


def test_a_torn_listing_is_one_line(tmp_path):
    wider(tmp_path)
    listing = tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    listing.write_text("a/1.jpg\n2\n3 4 10 12 0 0 0 0 0 0\n")
    with pytest.raises(ValueError, match=r"line 2: 'a/1.jpg' is not followed by its boxes"):
        lab.tasks.faces(folder=tmp_path)


def voc(folder, count=5, box=(4, 5, 13, 16)):
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        left, top, right, bottom = box
        (folder / "JPEGImages" / f"{index}.jpg").write_bytes(jpeg())
        things = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax>"
            f"<ymax>{bottom}</ymax></bndbox></object>"
            for name in ("face", "dog")
        )
        text = f"<annotation><filename>{index}.jpg</filename>{things}</annotation>"
        (folder / "Annotations" / f"{index}.xml").write_text(text)
    return folder


def test_pascal_voc_folders(tmp_path):
    voc(tmp_path)
    task = lab.tasks.faces(folder=tmp_path)
    assert (len(task.learn), len(task.held_out)) == (4, 1)
    assert task.learn.boxes[0].tolist() == [[3, 4, 13, 16]]  # pixels 4 to 13 and 5 to 16, counted from 1; no dogs
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("0\n1\n")
    assert list(lab.tasks.faces(folder=tmp_path).held_out.names) == ["0", "1"]


def test_pictures_and_boxes_shrink_together(tmp_path):
    voc(tmp_path)
    task = lab.tasks.faces(folder=tmp_path, longest=20)
    assert task.learn.images[0].shape == (3, 15, 20) and task.learn.boxes[0].tolist() == [[1.5, 2, 6.5, 8]]


def test_a_box_that_sticks_out_is_cut_and_one_outside_refused(tmp_path):
    voc(tmp_path / "cut", box=(31, 5, 45, 16))
    assert lab.tasks.faces(folder=tmp_path / "cut").learn.boxes[0].tolist() == [[30, 4, 40, 16]]
    voc(tmp_path / "out", box=(51, 5, 65, 16))
    with pytest.raises(ValueError, match=r"is outside the picture of 40 x 30"):
        lab.tasks.faces(folder=tmp_path / "out")


def test_an_annotation_that_is_none_is_one_line(tmp_path):
    voc(tmp_path)
    (tmp_path / "Annotations" / "0.xml").write_text("<annotation><object><name>face</name></object></annotation>")
    with pytest.raises(ValueError, match=r"0\.xml is no annotation"):
        lab.tasks.faces(folder=tmp_path)


def street(path, annotations):
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(5):
            archive.writestr(f"images/{index}.jpg", jpeg())
        archive.writestr("annotations.json", json.dumps(annotations))


def test_street_scenes(tmp_path):
    street(tmp_path / "s.zip", {f"{i}.jpg": {"w": 40, "h": 30, "boxes": [[1, 2, 9, 9, 0]]} for i in range(5)})
    task = lab.tasks.faces(folder=tmp_path / "s.zip", limit=3)
    assert len(task.learn) == 3 and task.learn.boxes[0].tolist() == [[1, 2, 9, 9]]
    street(tmp_path / "t.zip", {"0.jpg": {}})
    with pytest.raises(ValueError, match=r"no annotations.json with boxes"):
        lab.tasks.faces(folder=tmp_path / "t.zip")


def test_what_is_no_set_of_faces_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="is of no known form: give a WIDER FACE folder"):
        lab.tasks.faces(folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        lab.tasks.faces(folder=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="longest=3"):
        lab.tasks.faces(folder=tmp_path, longest=3)


@pytest.mark.skipif(not STREETS.exists(), reason="the street scenes are not in ../shared/data/faces")
def test_the_annotated_street_scenes():
    found = list(face_boxes.street_scenes(STREETS))
    heights = np.concatenate([boxes[:, 3] - boxes[:, 1] for _, _, boxes in found])
    assert len(found) == 853 and len(heights) == 4072
    assert np.abs(np.quantile(heights, [0.05, 0.25, 0.5, 0.75, 0.95]) - [8, 16, 24, 40, 116]).max() <= 1
    task = lab.tasks.faces(folder=STREETS, limit=12)
    assert len(task.learn) == 12 and not task.learn.skipped


# -- as people write them ----------------------------------------------------------------------------------------------

OFFICIAL = ["a/1.jpg", "2", "3 4 10 12 0 0 0 0 0 0 ", "20 4 8 0 0 0 0 0 0 0 ", "a/2.jpg", "0", "0 0 0 0 0 0 0 0 0 0 ",
            "a/3.jpg", "1", "1 1 5 5 0 0 0 0 0 0"]  # fmt: skip
LISTINGS = {
    "plain": "\n".join(OFFICIAL),
    "windows": "\r\n".join(OFFICIAL) + "\r\n",
    "empty lines": "\n\n" + "\n".join(OFFICIAL) + "\n\n \n",
    "byte order mark": "\ufeff" + "\n".join(OFFICIAL) + "\n",
    "no line of zeros": "\n".join(OFFICIAL[:6] + OFFICIAL[7:]),
    "no faces last": "\n".join(OFFICIAL[:4] + OFFICIAL[7:] + OFFICIAL[4:6]),
}


@pytest.mark.parametrize("kind", LISTINGS)
def test_listings_of_wider_face_as_people_save_them(tmp_path, kind):
    wider(tmp_path)
    (tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt").write_bytes(LISTINGS[kind].encode())
    task = lab.tasks.faces(folder=tmp_path)
    assert {name: len(boxes) for name, boxes in zip(task.learn.names, task.learn.boxes, strict=True)} == {
        "a/1.jpg": 1, "a/2.jpg": 0, "a/3.jpg": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a/1.jpg\n-2\n3 4 10 12\n", "line 2: 'a/1.jpg' is not followed by its boxes"),
        (b"a/1.jpg\n1\n3 4 10\n", "line 2: 'a/1.jpg' is not followed by its boxes"),
        (b"a/1.jpg\n", "line 2: 'a/1.jpg' is not followed by its boxes"),
        (b"a/\xff.jpg\n0\n", r"wider_face_train_bbx_gt\.txt is no UTF-8 text .*: save it as UTF-8"),
        (b"../../secret.jpg\n1\n3 4 10 12\n", r"'\.\./\.\./secret\.jpg' lies outside .*images"),
        (b"/secret.jpg\n1\n3 4 10 12\n", "'/secret.jpg' lies outside"),
        (b"[" * 2000 + b"\n1\n3 4 10 12\n", r"gt\.txt: '\[{50,60}\.\.\. cannot be a file \(File name too long\): give"),
        (b"..\\..\\..\\secret.jpg\n1\n3 4 10 12\n", "lies outside"),
        (b"a/link.jpg\n1\n3 4 10 12\n", "'a/link.jpg' lies outside"),
    ],
)
def test_a_listing_that_is_none_or_leads_outside_is_one_line(tmp_path, content, words):
    inner = tmp_path / "set"
    inner.mkdir()
    wider(inner)
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    (inner / "WIDER_train" / "images" / "a" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (inner / "wider_face_split" / "wider_face_train_bbx_gt.txt").write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        lab.tasks.faces(folder=inner)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([b"a/1.jpg", b"0", b"1", b"2", b"-1", b"1 2 3 4", b"0 0 0 0 0 0 0 0 0 0", b"x", b"",
                                 b"\xff", b"nan 1 2 3", b"1e400 1 2 3", b"../x.jpg"]), max_size=8))  # fmt: skip
def test_any_listing_gives_records_or_one_line(tmp_path, lines):
    (tmp_path / "wider_face_split").mkdir(exist_ok=True)
    (tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt").write_bytes(b"\n".join(lines))
    try:
        found = list(face_boxes.wider_face(tmp_path))
    except ValueError as error:
        assert "\n" not in str(error) and "wider_face_train_bbx_gt.txt" in str(error)
    else:
        assert all(boxes.shape[1:] == (4,) for _, _, boxes in found)


def annotated(folder, filename, picture="q.jpg", name="face", size="", content=None):
    """A Pascal VOC folder of four plain pictures, and of one more as somebody else writes it."""
    voc(folder, count=4)
    text = (f"<annotation><filename>{filename}</filename>{size}<object><name>{name}</name><bndbox><xmin>4</xmin>"
            "<ymin>5</ymin><xmax>13</xmax><ymax>16</ymax></bndbox></object></annotation>")  # fmt: skip
    (folder / "Annotations" / "q.xml").write_text(text)
    if picture:
        (folder / "JPEGImages" / picture).write_bytes(jpeg() if content is None else content)
    task = lab.tasks.faces(folder=folder)
    return {n: b for part in (task.learn, task.held_out) for n, b in zip(part.names, part.boxes, strict=True)}


@pytest.mark.parametrize(
    ("filename", "picture"),
    [("q.jpg", "q.jpg"), ("q", "q.jpg"), ("q.jpg", "q.JPG"), ("Q.JPEG", "q.jpg"), ("q.png", "q.jpg"),
     (" q.jpg\n", "q.jpg"), ("/home/me/q.jpg", "q.jpg"), ("C:\\pictures\\q.jpg", "q.jpg"),
     ("other/q.jpg", "q.jpg"), ("", "q.jpg"), ("photo.v2", "photo.v2.png")],
)  # fmt: skip
def test_a_picture_is_found_by_its_name_as_people_write_it(tmp_path, filename, picture):
    assert annotated(tmp_path, filename, picture)["q"].tolist() == [[3, 4, 13, 16]]


@pytest.mark.parametrize("name", ["Face", " face \n", "FACE", "With Mask", "with-mask"])
def test_a_face_is_one_however_it_is_spelled(tmp_path, name):
    assert len(annotated(tmp_path, "q.jpg", name=name)["q"]) == 1


def test_a_picture_that_is_not_there_is_named_and_none_outside_is_read(tmp_path):
    with pytest.warns(UserWarning, match="cannot be read and are skipped: q"):
        assert "q" not in annotated(tmp_path / "gone", "q.jpg", picture=None)
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    with pytest.raises(ValueError, match=r"q\.xml: '\.\./\.\./secret\.jpg' lies outside .*JPEGImages"):
        annotated(tmp_path / "out", "../../secret.jpg")
    with pytest.warns(UserWarning, match="skipped: q"):
        assert "q" not in annotated(tmp_path / "absolute", str(tmp_path / "secret.jpg"), picture=None)
    with pytest.raises(ValueError, match=r"q\.xml: '\[+\.\.\. cannot be a file \(File name too long\): give the name"):
        annotated(tmp_path / "long", "[" * 300)
    voc(tmp_path / "link")
    (tmp_path / "link" / "JPEGImages" / "0.jpg").unlink()
    (tmp_path / "link" / "JPEGImages" / "0.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(ValueError, match=r"'0\.jpg' lies outside"):
        lab.tasks.faces(folder=tmp_path / "link")


def turned(mark, side=(40, 30)):
    """A JPEG that is stored so that its EXIF mark turns it upright again: white where the face is, x 3..13, y 4..16."""
    upright = np.full((side[1], side[0], 3), 30, np.uint8)
    upright[4:16, 3:13] = 255
    stored = Image.fromarray(upright)
    back = {2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180], 4: [Image.Transpose.FLIP_TOP_BOTTOM],
            5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE],
            8: [Image.Transpose.ROTATE_270]}  # fmt: skip
    for step in back.get(mark, []):
        stored = stored.transpose(step)
    exif, content = stored.getexif(), io.BytesIO()
    exif[0x0112] = mark
    stored.save(content, "JPEG", quality=95, exif=exif)
    return content.getvalue()


@pytest.mark.parametrize("mark", range(1, 9))
def test_a_photograph_is_upright_so_that_its_boxes_lie_where_they_were_drawn(tmp_path, mark):
    voc(tmp_path)
    for index in range(5):
        (tmp_path / "JPEGImages" / f"{index}.jpg").write_bytes(turned(mark))
    picture = lab.tasks.faces(folder=tmp_path).learn.images[0]
    assert picture.shape == (3, 30, 40)
    assert picture[:, 5:15, 4:12].float().mean() > 240 and picture[:, 20:, 20:].float().mean() < 50


def test_an_annotation_that_tells_the_lying_size_was_drawn_on_the_lying_picture(tmp_path):
    size = "<size><width>{}</width><height>{}</height></size>"
    for name, told, shape in (("lying", (30, 40), (3, 40, 30)), ("upright", (40, 30), (3, 30, 40)),
                              ("unknown", (0, 0), (3, 30, 40))):  # fmt: skip
        annotated(tmp_path / name, "q.jpg", size=size.format(*told), content=turned(6))
        task = lab.tasks.faces(folder=tmp_path / name)
        pictures = dict(zip(task.learn.names, task.learn.images, strict=True))
        assert pictures["q"].shape == shape
    with pytest.warns(UserWarning, match="skipped: q"):
        assert "q" not in annotated(tmp_path / "other", "q.jpg", size=size.format(80, 60))


# -- what would fill the memory ----------------------------------------------------------------------------------------


def packed(path, name, size, mark=b"\0"):
    street(path, {f"{i}.jpg": {"boxes": [[1, 2, 9, 9]]} for i in range(5)})
    with zipfile.ZipFile(path) as old:
        kept = {one: old.read(one) for one in old.namelist() if one != name}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one, content in kept.items():
            archive.writestr(one, content)
        archive.writestr(name, size * mark)
    return path


def test_a_member_that_inflates_to_a_gigabyte_is_not_inflated(tmp_path, monkeypatch):
    listing, picture = (packed(tmp_path / name, member, 10_000_000)
                        for name, member in (("a.zip", "annotations.json"), ("b.zip", "images/0.jpg")))  # fmt: skip
    monkeypatch.setattr(inflating, "LEAST", 2**16)
    with pytest.warns(UserWarning, match=r"skipped: 0\.jpg"):
        lab.tasks.faces(folder=picture)
    monkeypatch.setattr(inflating, "VALUES", 100)
    crowded = packed(tmp_path / "c.zip", "annotations.json", 60_000, b",")
    with pytest.raises(ValueError, match=r"annotations\.json .*c\.zip holds 60,000 values, more than"):
        lab.tasks.faces(folder=crowded)
    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", lambda *_: pytest.fail("it was inflated"))
    with pytest.raises(
        ValueError, match=r"annotations\.json inflates to 10,000,000 bytes, more than .*fill the memory"
    ):
        lab.tasks.faces(folder=listing)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff\xfe", b"[1]", b'{"0.jpg": {"boxes": [[1, 2]]}}', b'{"a": 3}']
)
def test_annotations_that_are_none_are_one_line(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("annotations.json", content)
    with pytest.raises(ValueError, match=r"s\.zip has no annotations\.json with boxes") as caught:
        lab.tasks.faces(folder=tmp_path / "s.zip")
    assert "\n" not in str(caught.value)


# -- what would be lost, or learned from, in silence -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listing", "held_out"),
    [("1\n2\n", ["1", "2"]), ("1.jpg\n2.JPG\n", ["1", "2"]), ("1 1\r\n2 -1\r\n", ["1", "2"])],
)
def test_a_listing_names_pictures_with_or_without_their_ending(tmp_path, listing, held_out):
    (voc(tmp_path, 5) / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text(listing)
    assert list(lab.tasks.faces(folder=tmp_path).held_out.names) == held_out


def test_what_should_be_held_out_and_is_not_there_is_told(tmp_path):
    (voc(tmp_path, 5) / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("1\nb\na\n")
    with pytest.raises(ValueError, match=r"val\.txt names 'a', one of 2 that Annotations/ lacks"):
        lab.tasks.faces(folder=tmp_path)


def test_two_annotations_of_one_picture_are_told(tmp_path):
    voc(tmp_path, 4)
    shutil.copyfile(tmp_path / "Annotations" / "0.xml", tmp_path / "Annotations" / "copy.xml")
    with pytest.raises(ValueError, match=r"0\.xml and copy\.xml both name 0\.jpg as their picture"):
        lab.tasks.faces(folder=tmp_path)


def test_annotations_are_found_in_capitals_and_systems_own_files_are_none(tmp_path):
    voc(tmp_path, 4)
    (tmp_path / "Annotations" / "0.xml").rename(tmp_path / "Annotations" / "0.XML")
    (tmp_path / "Annotations" / "._1.xml").write_bytes(b"\0\5\x16\7")
    assert len(lab.tasks.faces(folder=tmp_path).learn) == 3


def test_xml_of_another_kind_holds_no_faces_in_silence(tmp_path):
    file = voc(tmp_path, 4) / "Annotations" / "0.xml"
    file.write_text(file.read_text().replace("<annotation>", '<annotation xmlns="http://x">'))
    with pytest.raises(ValueError, match=r"0\.xml is no annotation \(its root is '\{http://x\}annotation'\)"):
        lab.tasks.faces(folder=tmp_path)


def test_a_box_without_end_is_refused_and_not_cut_at_the_border(tmp_path):
    with pytest.raises(ValueError, match="has a box that is not finite"):
        lab.tasks.faces(folder=voc(tmp_path, 4, (4, 5, "inf", 16)))


def test_a_picture_of_sixteen_bits_is_not_white(tmp_path):
    deep = np.full((30, 40), 257 * 9, np.uint16)
    Image.fromarray(deep).save(voc(tmp_path, 4) / "JPEGImages" / "0.jpg", "png")
    assert (lab.tasks.faces(folder=tmp_path).learn.images[0] == 9).all()


@pytest.mark.parametrize("limit", [0, -1, 2.5])
def test_a_limit_is_a_count(tmp_path, limit):
    with pytest.raises(ValueError, match="give an integer number of pictures, 1 or more, or None"):
        lab.tasks.faces(folder=tmp_path, limit=limit)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_an_annotation_with_entities_is_refused_before_they_are_read(tmp_path, encoding):
    voc(tmp_path)
    many = "<!ENTITY a 'x'>" + "".join(f"<!ENTITY {b} '&{a};&{a};'>" for a, b in zip("abcdef", "bcdefg", strict=True))
    text = f"<?xml version='1.0' encoding='{encoding}'?><!DOCTYPE annotation [{many}]><annotation>&g;</annotation>"
    (tmp_path / "Annotations" / "0.xml").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=r"0\.xml is no annotation \(it declares a document type\): correct it"):
        lab.tasks.faces(folder=tmp_path)
