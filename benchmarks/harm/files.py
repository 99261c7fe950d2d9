"""Every reader, handed damaged files: it refuses them in one line, or it reads what is there; it never falls.

An input is known by its reader, its cell and its number: `seen("PNG folder", 3, 17)` makes the same damage again. Each
cell is a process of its own; what kills or stops it is one of its inputs, kept by name, and the next goes on behind it.
"""

import faulthandler
import gzip
import io
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

import lab
from lab.core import running, store
from lab.core.data import images, text
from lab.core.onnx import export, reading
from lab.core.spaces import streams
from lab.core.training import seeded
from lab.sparsebytenn.engine import compile

from . import mutations

ROOT = Path(__file__).parents[2]
HANG = 10  # seconds
ONE_LINE = (ValueError, TypeError, OSError)  # what a user may be told
GOLDEN = ROOT / "tests" / "data" / "formats"


@dataclass(frozen=True)
class Reader:
    """make(folder) writes what is whole, read(folder) reads it; where it `is_sealed`, no accident passes unseen."""

    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    is_sealed: bool = False


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
    lab.load(GOLDEN / "0.1.0" / "pams").pack(folder / "p.safetensors")


def golden(name: str, folder: Path) -> None:
    shutil.copytree(GOLDEN / "0.1.0" / name, folder, dirs_exist_ok=True)


@cache
def sides() -> Any:
    """A platform of HyperFD and what a client sends it."""
    sys.path.insert(0, str(ROOT))
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
    from lab.core import pretrained

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


def outcome(folder: Path) -> list:
    made = lab.load(folder)
    return [repr(made.report), weights(made.model) if hasattr(made, "model") else {}]


READERS = {
    "npz": Reader(npz, lambda f: split(only(f))),
    "IDX": Reader(partial(idx, bytes, ""), split),
    "IDX, gzip": Reader(partial(idx, partial(gzip.compress, mtime=0), ".gz"), split),
    "CIFAR-10 binary": Reader(cifar, split),
    "CIFAR-10 archive": Reader(cifar_archive, lambda f: split(only(f))),
    "PNG folder": Reader(partial(classes, "png"), split),
    "JPEG folder": Reader(partial(classes, "jpeg"), split),
    "BMP folder": Reader(partial(classes, "bmp"), split),
    "GIF folder": Reader(partial(classes, "gif"), split),
    "TIFF folder": Reader(partial(classes, "tiff"), split),
    "WebP folder": Reader(partial(classes, "webp"), split),
    "WIDER text": Reader(wider, boxes),
    "VOC XML": Reader(voc, boxes),
    "zip of scenes": Reader(street, lambda f: boxes(only(f))),
    "CSV": Reader(partial(nasbench201, ""), partial(table, lab.tables.nasbench201)),
    "CSV, gzip": Reader(partial(nasbench201, ".gz"), partial(table, lab.tables.nasbench201)),
    "JSON table": Reader(macro, partial(table, lab.tables.nasbench_macro)),
    "tar of JSON": Reader(accel, partial(table, lab.tables.accel_nasbench)),
    "CSV of detectors": Reader(detectors, lambda f: [streams.detectors.__wrapped__(only(f)).scores]),
    "text": Reader(paragraphs, lambda f: text.text_file(only(f))),
    "tokeniser": Reader(words, tokens),
    "ONNX": Reader(onnx, lambda f: weights(reading.module(only(f), torch.zeros(1, 1, 6, 6)))),
    "packed network": Reader(sbnn, through_engine, is_sealed=True),
    "PAMS packed": Reader(pams, lambda f: weights(lab.pams.unpack(only(f))), is_sealed=True),
    "upload": Reader(upload, partial(message, "Upload"), is_sealed=True),
    "offer": Reader(offer, partial(message, "Offer"), is_sealed=True),
    "hand-off": Reader(handoff, state, is_sealed=True),
    **{
        f"outcome of {name}": Reader(partial(golden, name), outcome, is_sealed=True)
        for name in ("gal", "dqss", "sparsebytenn", "acenas", "hyperfd", "hybridsd", "chain", "program", "foldgpt")
    },
}  # fmt: skip


# -- a cell ------------------------------------------------------------------------------------------------------------

EACH = 500  # inputs a cell


def cells(quick: bool) -> list[tuple[str, int]]:
    """(reader, number), a round of all readers at a time."""
    return [(name, k) for k in range(1 if quick else 100) for name in READERS]


def seen(name: str, cell: int, number: int, folder: Path) -> str:
    """Make the whole input and damage it as in this cell; gives what was done."""
    READERS[name].make(folder)
    return mutations.put(Random(f"{name} {cell} {number}"), folder)


def run(item: tuple[str, int], each: int = EACH) -> dict[str, Any]:
    """A cell: how many inputs were refused, and read, and what went wrong."""
    name, cell = item
    counts, faults, most, start = Counter(), [], 0.0, 0
    while start < each:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as at:
            at.write(bytes(8))
            at.flush()
            child = os.fork()
            if not child:
                _child(READERS[name], name, cell, range(start, each), Path(folder), at.fileno())
            _, status = os.waitpid(child, 0)
            file = Path(folder) / "ended.json"
            if file.exists():
                ended = json.loads(file.read_text())
                counts.update(ended["counts"])
                faults += ended["faults"]
                most = max(most, ended["memory_mb"])
                break
            if os.WIFEXITED(status):
                raise RuntimeError(f"{name} does not read what is whole: its error stands above")
            at.seek(0)
            (reached,) = struct.unpack("<Q", at.read(8))
        what = "hang" if status == signal.SIGALRM else f"crash by signal {os.WTERMSIG(status)}"
        faults.append({"input": reached, "what": what})
        counts["inputs"] += reached + 1 - start
        start = reached + 1
    return {**counts, "faults": faults, "memory_mb": round(most)}


def _child(reader: Reader, name: str, cell: int, numbers: range, folder: Path, at: int) -> None:
    code = 1
    try:
        faulthandler.disable()  # a crash is told by its signal
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        warnings.simplefilter("ignore")
        ended = _inputs(reader, name, cell, numbers, folder, mmap.mmap(at, 8))
        (folder / "ended.json").write_text(json.dumps(ended))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _inputs(reader: Reader, name: str, cell: int, numbers: range, folder: Path, at: mmap.mmap) -> dict[str, Any]:
    """All of these inputs in this process."""
    whole, counts, faults = folder / "whole", Counter(), []
    whole.mkdir()
    reader.make(whole)
    honest = running.digest(reader.read(whole))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        at[:8] = struct.pack("<Q", number)
        place = folder / "input"
        shutil.copytree(whole, place)
        done = mutations.put(Random(f"{name} {cell} {number}"), place)
        with _alarm():
            what, fault = _read(reader, place, honest, done)
        counts.update(["inputs", what])
        if fault:
            faults.append({"input": number, "done": done, "what": fault})
        shutil.rmtree(place)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"counts": counts, "faults": faults, "memory_mb": grown}


@contextmanager
def _alarm() -> Iterator[None]:
    """A block that the system kills after HANG seconds: code in C hears nothing else."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)


def _read(reader: Reader, folder: Path, honest: str, done: str) -> tuple[str, str]:
    """What became of an input, and what is wrong with that."""
    try:
        result = running.digest(reader.read(folder))
    except ONE_LINE as error:
        line = str(error)
        if not line or "\n" in line or len(line) > 1000:
            return "refused", f"not one line: {type(error).__name__}: {line[:300]!r}"
        return "refused", ""
    except BaseException as error:  # whatever else a reader lets through
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "refused", f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
    if result == honest:
        return "read as it was", ""
    is_silent = reader.is_sealed and not done.endswith("within")
    return "read otherwise", f"silent: {done}" if is_silent else ""


def figures(rows: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """Totals, and by reader."""
    names = list(dict.fromkeys(name for name, _ in rows))
    by = {}
    for name in names:
        mine = [row for key, row in rows.items() if key[0] == name]
        by[name] = {
            "inputs": sum(row["inputs"] for row in mine),
            "refused": sum(row.get("refused", 0) for row in mine),
            "faults": sum(len(row["faults"]) for row in mine),
            "most_memory_mb": max(row["memory_mb"] for row in mine),
        }
    kinds = Counter(_kind(fault["what"]) for row in rows.values() for fault in row["faults"])
    return {"inputs": sum(row["inputs"] for row in by.values()), "faults": dict(kinds), "count": len(by), "readers": by}


def _kind(what: str) -> str:
    return next((kind for kind in ("hang", "crash", "silent") if what.startswith(kind)), "no line")
