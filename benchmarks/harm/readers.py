"""What is read: a small whole file or folder of every form that the lab takes, and the reader that takes it."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import sqlite3
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import lab
from lab.chain.files import read as read_chain
from lab.core import pretrained, store
from lab.core.data import images, text
from lab.core.onnx import export, reading
from lab.core.parallel import Journal
from lab.core.program import Program
from lab.core.spaces import streams
from lab.core.training import Stage, seeded
from lab.hyperfd import database
from lab.sparsebytenn.engine import compile

ROOT = Path(__file__).parents[2]
FAST, MEDIUM, SLOW = 88, 5, 4  # rounds of a reader that takes up to 1.3, 5 and 40 ms for an input
FORMATS = ROOT / "tests" / "data" / "formats"
sys.path.insert(0, str(ROOT))
from tests.formats import Own  # noqa: E402


@dataclass(frozen=True)
class Reader:
    """make(folder) writes what is whole, read(folder) reads it; where it `is_sealed`, no accident passes unseen."""

    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    is_sealed: bool = False
    rounds: int = FAST  # of 500 inputs


# -- what is whole -----------------------------------------------------------------------------------------------------


def picture(side: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(24)).save(file, kind, **options)
    return file.getvalue()


def classes(kind: str, folder: Path) -> None:
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (folder / part / name).mkdir(parents=True)
            (folder / part / name / f"1.{kind}").write_bytes(encoded(kind))


def idx(pack: Callable[[bytes], bytes], end: str, folder: Path) -> None:
    for stem, count in (("train", 6), ("t10k", 3)):
        x, y = np.full((count, 4, 4), 9, np.uint8), np.arange(count, dtype=np.uint8)
        for name, array in ((f"{stem}-images-idx3", x), (f"{stem}-labels-idx1", y)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{name}-ubyte{end}").write_bytes(pack(head + array.tobytes()))


def npz(folder: Path) -> None:
    x, y = np.full((4, 6, 6), 7, np.uint8), np.arange(4)
    np.savez_compressed(folder / "a.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])


CIFAR = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def cifar(folder: Path) -> None:
    for name in CIFAR:
        (folder / name).write_bytes(bytes([3]) + bytes(3 * 32 * 32))


def tar_gz(members: dict[str, bytes], path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def cifar_archive(folder: Path) -> None:
    tar_gz({f"cifar-10-batches-bin/{name}": bytes(3073) for name in CIFAR}, folder / "cifar.tar.gz")


def wider(folder: Path) -> None:
    (folder / "wider_face_split").mkdir()
    for part in ("train", "val"):
        (folder / f"WIDER_{part}" / "images" / "a").mkdir(parents=True)
        lines = []
        for name in ("a/1.jpg", "a/2.jpg"):
            (folder / f"WIDER_{part}" / "images" / name).write_bytes(encoded("jpeg"))
            lines += [name, "2", "3 4 10 12 0 0 0 0 0 0", "5 6 8 9 0 0 0 0 0 0"]
        listing = folder / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt"
        listing.write_text("\n".join([*lines, "a/1.jpg", "0", "0 0 0 0 0 0 0 0 0 0"]) + "\n")


BOX = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>10</xmax><ymax>12</ymax></bndbox>"


def voc(folder: Path) -> None:
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir()
    for k in range(4):
        (folder / "JPEGImages" / f"{k}.png").write_bytes(encoded("png"))
        (folder / "Annotations" / f"{k}.xml").write_text(
            f"<annotation><filename>{k}.png</filename><size><width>24</width><height>24</height></size>"
            f"<object><name>face</name>{BOX}</object></annotation>"
        )


def street(folder: Path) -> None:
    with zipfile.ZipFile(folder / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(4):
            archive.writestr(f"images/{k}.jpg", encoded("jpeg"))
        archive.writestr("annotations.json", json.dumps({f"{k}.jpg": {"boxes": [[1, 2, 9, 9, 0]]} for k in range(4)}))


ARCHS = ("|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|",
         "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|")  # fmt: skip


def nasbench201(end: str, folder: Path) -> None:
    rows = ["index,arch_str,c10_test,c10_test_seeds,oneshot_c10,flops_m,params_m"]
    rows += [f"{k},{arch},{90 - k},89.5;90.5,50.0,2.0,0.2" for k, arch in enumerate(ARCHS)]
    content = "\n".join(rows).encode()
    (folder / f"t.csv{end}").write_bytes(gzip.compress(content, mtime=0) if end else content)


def macro(folder: Path) -> None:
    row = {"test_acc": [90.0, 91.0, 92.0], "params": 5, "flops": 7}
    (folder / "m.json").write_text(json.dumps({arch: row for arch in ("00000000", "22212220", "01000000")}))


def accel(folder: Path) -> None:
    members = {}
    for layers in (1, 2):
        parts = {"e": 6, "k": 3, "l": layers, "se": "True"}
        blocks = {f"block{b}_{name}": value for b in range(7) for name, value in parts.items()}
        times = {"latency_a": {"latency_mean": 2}}
        record = {"architecture": blocks, "metrics": {"val_top1": 70.5}, "platform_perf": times}
        members[f"results/{layers}.json"] = json.dumps(record).encode()
    tar_gz(members, folder / "all.tar.gz")


def detectors(folder: Path) -> None:
    with gzip.open(store.artefact("faces/detectors.csv.gz")) as file:
        (folder / "d.csv").write_bytes(b"".join((lines := file.readlines())[:4] + lines[-3:]))


def paragraphs(folder: Path) -> None:
    (folder / "t.txt").write_text("\n\n".join(f"Paragraph {k}, of some words." for k in range(12)))


def words(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(store.artefact(f"prose/{name}"), folder / name)


def network() -> torch.nn.Module:
    with seeded(0):
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)
        ).eval()


def onnx(folder: Path) -> None:
    export.onnx(network(), folder / "n.onnx", torch.zeros(1, 1, 6, 6))


def sbnn(folder: Path) -> None:
    compile(network(), torch.zeros(1, 1, 6, 6)).save(folder / "n.sbnn")


def pams(folder: Path) -> None:
    lab.load(FORMATS / "0.1.0" / "pams").pack(folder / "p.safetensors")


def golden(name: str, folder: Path) -> None:
    shutil.copytree(FORMATS / name, folder, dirs_exist_ok=True)


def program(folder: Path) -> None:
    shutil.copy(FORMATS / "0.1.0" / "program" / "model.pt2", folder / "program.zip")  # which it is, and is damaged as


def checkpoint(folder: Path) -> None:
    with seeded(0):
        stage(folder).save()


def stage(folder: Path) -> Stage:
    """A stage that trains a layer, as it begins or as the folder has it."""
    with seeded(0):
        layer = torch.nn.Linear(3, 2)
        return Stage(folder, "a", "a run", model=layer, optimizer=torch.optim.Adam(layer.parameters()))


def platform_state(folder: Path) -> None:
    for version in range(2):
        database.append(folder, {"version": version, "w": torch.ones(3), "name": "a"}, version - 1)
    with closing(sqlite3.connect(folder / database.FILE, isolation_level=None)) as whole:
        whole.execute("PRAGMA journal_mode=DELETE")  # all of it in one file


ITEMS = [[1], [1, 2], [1, 2, 3]]


def journal(folder: Path) -> None:
    kept = Journal(folder, len, ITEMS)
    for index in range(3):
        kept.note(index, index + 1)


def chain_file(folder: Path) -> None:
    stages = '[[stages]]\nrecipe = "GAL"\nsteps = 100\nlr = 0.05\n[[stages]]\nrecipe = "DQSS"\nweight_bits = 4\n'
    (folder / "c.toml").write_text(f'task = "fashion"\n{stages}')


def notebook(folder: Path) -> None:
    cells = []
    for number, answer in ((1, "12"), (2, "3/7")):
        text = f"gal {number}: {answer} is not it yet: look again\n"
        output = {"output_type": "stream", "name": "stdout", "text": [text]}
        source = [f'lab.course.check("gal", {number}, {answer})']
        cells.append({"cell_type": "code", "metadata": {}, "source": source, "outputs": [output]})
    (folder / "n.ipynb").write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}))


def photographs(folder: Path) -> None:
    for kind in ("png", "jpeg"):
        (folder / f"1.{kind}").write_bytes(encoded(kind))


def language_model(folder: Path) -> None:
    import transformers

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=32, num_key_value_heads=2, max_position_embeddings=16, **sizes)
    with seeded(0):
        transformers.LlamaForCausalLM(config).save_pretrained(folder)


@cache
def sides() -> Any:
    """A platform of HyperFD and what a client sends it."""
    from tests.hyperfd import small

    return small.platform(), small.client()


def upload(folder: Path) -> None:
    platform, client = sides()
    (folder / "u.safetensors").write_bytes(client.upload(platform.offer(), [0, 1, 7], client.evaluate([0, 1, 7]))[0])


def offer(folder: Path) -> None:
    (folder / "o.safetensors").write_bytes(sides()[0].offer())


def handoff(folder: Path) -> None:
    import diffusers

    from lab.hybridsd.handoff import begin

    with seeded(0):
        latent, prompt = torch.randn(1, 4, 8, 8), {"embeds": torch.randn(1, 6, 8)}
    scheduler = diffusers.DPMSolverMultistepScheduler()
    (folder / "h.safetensors").write_bytes(begin(scheduler, latent, 4, 4.0, prompt=prompt, seed=7).to_bytes())


# -- how it is read ----------------------------------------------------------------------------------------------------


def only(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if path.is_file())


def split(path: Path) -> list:
    return list(images.read(path, 8 if path.is_dir() else None))


def boxes(path: Path) -> list:
    task = lab.tasks.faces(folder=path, longest=32)
    return [[part.images, part.boxes] for part in (task.learn, task.held_out)]


def table(read: Callable[[Path], Any], folder: Path) -> list:
    space = read(only(folder))
    return [space.labels, space.truth, space.names, *space.costs.values()]


def tokens(folder: Path) -> list:
    return pretrained.tokenizer(folder)("Of some words.")["input_ids"]


def weights(model: torch.nn.Module) -> dict:
    return dict(model.state_dict())


def through_engine(folder: Path) -> list:
    from lab.sparsebytenn.runtime import Engine

    made = Engine.load(only(folder))
    shapes = made.input_shapes
    if sum(int(np.prod(shape)) for shape in shapes) > 1 << 20:
        return shapes
    return [made.shape, *made._run([np.ones(shape, np.float32) for shape in shapes])]


def message(kind: str, folder: Path) -> list:
    from lab.hyperfd import messages

    made = getattr(messages, kind).from_bytes(only(folder).read_bytes(), sides()[0].shape)
    return [str(vars(made))]


def state(folder: Path) -> list:
    from lab.hybridsd.handoff import Handoff

    made = Handoff.from_bytes(only(folder).read_bytes())
    return [made.latent, made.index, made.steps]


def state_of(folder: Path) -> list:
    newest = database.versions(folder)[-1]
    return [database.load(folder, newest)]


def went_on(folder: Path) -> list:
    found = stage(folder)
    return [{name: part.state_dict() for name, part in found.state.items()}, repr(found.trace)]


def answered(folder: Path) -> list:
    """What a run gives that goes on with the journal."""
    done = Journal(folder, len, ITEMS).done
    return [done.get(index, len(item)) for index, item in enumerate(ITEMS)]


def chain_of(folder: Path) -> list:
    made, task = read_chain(only(folder), [lab.GAL, lab.DQSS])
    return [repr(made), str(task)]


def graded(folder: Path) -> list:
    return [repr(verdict) for verdict in lab.course.grade(only(folder))]


def outcome(folder: Path, base: torch.nn.Module | None = None) -> list:
    made = lab.load(folder, base=base)
    return [repr(made.report), weights(made.model) if hasattr(made, "model") else {}]


READERS = {
    "npz": Reader(npz, lambda f: split(only(f))),
    "IDX": Reader(partial(idx, bytes, ""), split),
    "IDX, gzip": Reader(partial(idx, partial(gzip.compress, mtime=0), ".gz"), split),
    "IDX, bzip2": Reader(partial(idx, bz2.compress, ".bz2"), split),
    "IDX, xz": Reader(partial(idx, lzma.compress, ".xz"), split),
    "CIFAR-10 binary": Reader(cifar, split),
    "CIFAR-10 archive": Reader(cifar_archive, lambda f: split(only(f))),
    "PNG folder": Reader(partial(classes, "png"), split, rounds=MEDIUM),
    "JPEG folder": Reader(partial(classes, "jpeg"), split, rounds=MEDIUM),
    "BMP folder": Reader(partial(classes, "bmp"), split, rounds=MEDIUM),
    "GIF folder": Reader(partial(classes, "gif"), split, rounds=MEDIUM),
    "TIFF folder": Reader(partial(classes, "tiff"), split, rounds=MEDIUM),
    "WebP folder": Reader(partial(classes, "webp"), split, rounds=MEDIUM),
    "PPM folder": Reader(partial(classes, "ppm"), split, rounds=MEDIUM),
    "photographs": Reader(photographs, lambda f: list(lab.tasks.photos_held_out(folder=f))),
    "WIDER text": Reader(wider, boxes, rounds=MEDIUM),
    "VOC XML": Reader(voc, boxes, rounds=MEDIUM),
    "zip of scenes": Reader(street, lambda f: boxes(only(f)), rounds=MEDIUM),
    "CSV": Reader(partial(nasbench201, ""), partial(table, lab.tables.nasbench201)),
    "CSV, gzip": Reader(partial(nasbench201, ".gz"), partial(table, lab.tables.nasbench201)),
    "JSON table": Reader(macro, partial(table, lab.tables.nasbench_macro)),
    "tar of JSON": Reader(accel, partial(table, lab.tables.accel_nasbench)),
    "CSV of detectors": Reader(detectors, lambda f: [streams.detectors.__wrapped__(only(f)).scores], rounds=MEDIUM),
    "text": Reader(paragraphs, lambda f: text.text_file(only(f))),
    "tokeniser": Reader(words, tokens, rounds=MEDIUM),
    "language model": Reader(language_model, lambda f: weights(pretrained.language_model(f)), rounds=SLOW),
    "chain in TOML": Reader(chain_file, chain_of),
    "notebook of answers": Reader(notebook, graded),
    "journal of lab.map": Reader(journal, answered, is_sealed=True),
    "checkpoint": Reader(checkpoint, went_on, is_sealed=True, rounds=MEDIUM),
    "platform's state": Reader(platform_state, state_of, rounds=MEDIUM),
    "ONNX": Reader(onnx, lambda f: weights(reading.module(only(f), torch.zeros(1, 1, 6, 6))), rounds=MEDIUM),
    "packed network": Reader(sbnn, through_engine, is_sealed=True),
    "PAMS packed": Reader(pams, lambda f: weights(lab.pams.unpack(only(f))), is_sealed=True, rounds=MEDIUM),
    "program": Reader(program, lambda f: weights(Program(only(f).read_bytes())), rounds=SLOW),
    "upload": Reader(upload, partial(message, "Upload"), is_sealed=True, rounds=MEDIUM),
    "offer": Reader(offer, partial(message, "Offer"), is_sealed=True, rounds=MEDIUM),
    "hand-off": Reader(handoff, state, is_sealed=True),
    **{
        f"outcome of {name}": Reader(partial(golden, f"0.1.0/{name}"), outcome, True, rounds)
        for names, rounds in (
            (("acenas", "hyperfd", "hybridsd"), FAST),
            (("gal", "pams", "dqss", "sparsebytenn", "chain", "program", "foldgpt", "after-another"), SLOW),
        )
        for name in names
    },
    "outcome of decoupling": Reader(partial(golden, "0.1.0/decoupling"), partial(outcome, base=Own()), True, SLOW),
    "outcome of format 2": Reader(partial(golden, "format-2/pams"), outcome, True, MEDIUM),
    "outcome of format 1": Reader(partial(golden, "format-1"), lambda f: [lab.core.store.load(f, "outcome")]),
}  # fmt: skip
