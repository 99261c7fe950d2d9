"""The engine: a packed network, run by the C kernels."""

import json
import math
import os
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import kernels, store
from ..core.distribution import needed
from . import meeting, packed, records, reference
from .packed import Map, Op

MANY = 2_000_000  # multiply-adds of an image from which on several threads are worth waking for it


class Engine:
    """A packed network that runs: `engine(x)` with x (N, C, H, W), or (N, H, W, C) where images are interleaved.

    Several Python threads may call at once, each with an arena of its own; the interpreter's lock is free meanwhile.
    Without the C kernels numpy does the work, and says so.
    """

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)
        self.network = packed.read(self.data)
        if kernels.backend() == "c":
            packed.check(self.data)
            self._file = placed(self.data)
        self._local = threading.local()

    @classmethod
    def load(cls, path: str | Path) -> "Engine":
        """The engine of a packed file; one that is damaged is a one-line ValueError."""
        return cls(Path(path).read_bytes())

    def save(self, path: str | Path) -> Path:
        """Write the packed file."""
        store.write(Path(path), self.data)
        return Path(path)

    def __call__(self, *inputs: torch.Tensor | np.ndarray, threads: int = 1) -> Any:
        """What the network gives for each image, its tensors (N, ...) in the tuples, lists and dicts it gives them in.
        A named tuple has the network's fields, and is called Output.

        More `threads` share out the images; where there are fewer images than threads, all work on each together.
        What comes out is the same to the last bit.
        """
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
            raise ValueError(f"threads={threads!r}: give an integer, 1 or more")
        arrays = self._checked(inputs)
        maps = [self.network.maps[i] for i in self.network.inputs]
        images = ([a[n].reshape(m.shape) for a, m in zip(arrays, maps, strict=True)] for n in range(len(arrays[0])))
        outputs = [np.empty((len(arrays[0]), *shape), np.float32) for shape in self.output_shapes]
        together = 1 < threads > len(arrays[0]) and kernels.backend() == "c" and self.macs >= MANY
        runs = (self._run(a, threads) for a in images) if together else _in_threads(self._run, images, threads)
        for n, parts in enumerate(runs):
            for output, part in zip(outputs, parts, strict=True):
                output[n] = part.reshape(output.shape[1:])
        return _hung(json.loads(self.network.meta.get("tree", "0")), [torch.from_numpy(output) for output in outputs])

    def _checked(self, inputs: tuple) -> list[np.ndarray]:
        """The inputs as contiguous float32, each (N, ...) of the shape that the network takes."""
        names = ["x"] if len(inputs) == 1 else [f"input {i}" for i in range(len(inputs))]
        arrays = [floats(name, x) for name, x in zip(names, inputs, strict=True)]
        if len(arrays) != len(self.input_shapes):
            raise ValueError(f"{len(arrays)} inputs: this engine takes {len(self.input_shapes)}")
        for name, array, shape in zip(names, arrays, self.input_shapes, strict=True):
            if array.ndim == 0 or array.shape[1:] != shape or len(array) != len(arrays[0]):
                raise ValueError(f"{name} has shape {array.shape}: this engine takes (N, {', '.join(map(str, shape))})")
        return arrays

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image, the first input."""
        return self.input_shapes[0]

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """The shape of each input of one image; of a file that does not give it, that of its map."""
        return self._shapes("takes", self.network.inputs)

    @property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """The shape of each output for one image; of a file that does not give it, that of its map."""
        if "answer" in self.network.meta:
            return [self.output_shape]
        return self._shapes("shapes", self.network.outputs)

    def _shapes(self, name: str, indices: tuple[int, ...]) -> list[tuple[int, ...]]:
        maps = [self.network.maps[i] for i in indices]
        given = unflattened(self.network.meta.get(name))
        if [math.prod(shape) for shape in given] == [m.c * m.pixels for m in maps]:
            return given
        return [m.shape for m in maps]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one image's first output; of a file that does not give it, that of its map."""
        out, shape = self.network.maps[self.network.outputs[0]], self.network.meta.get("answer")
        sides = [side for side in shape if isinstance(side, int) and side > 0] if isinstance(shape, list) else []
        if shape == sides and math.prod(sides) == out.c * out.pixels:
            return tuple(sides)
        return (out.c * out.w,) if out.pixels == 1 or (out.c == 1 and out.h == 1) else (out.c, out.h, out.w)

    def _run(self, arrays: Sequence[np.ndarray], threads: int = 1) -> list[np.ndarray]:
        """The outputs (C, H, W) for the inputs, contiguous float32 in the shapes of their maps, unasked."""
        if kernels.backend() != "c":
            return reference.outputs(self.network, arrays)
        x = arrays[0] if len(arrays) == 1 else np.concatenate([array.reshape(-1) for array in arrays])
        shapes = [self.network.maps[output].shape for output in self.network.outputs]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        y = np.empty(ends[-1], np.float32)
        ends_at = kernels.pointer(x), kernels.pointer(y)
        if threads == 1:
            kernels.lib.engine_run(kernels.pointer(self._file), self._arena(), kernels.isa(), *ends_at)
        else:
            self._run_together(threads, *ends_at)
        return [flat.reshape(shape) for flat, shape in zip(np.split(y, ends[:-1]), shapes, strict=True)]

    def _run_together(self, threads: int, x: Any, y: Any) -> None:
        """One image by several threads, this one among them; however one of them ends, none waits for it for ever."""
        file, arena, isa = kernels.pointer(self._file), self._arena(), kernels.isa()
        barrier = kernels.ffi.new("meeting *")
        locals_ = [self._arena(n) for n in range(threads)]

        def part(n: int) -> None:
            try:
                team = kernels.ffi.new("team *", {"meeting": barrier, "rank": n, "threads": threads})
                kernels.lib.engine_run_part(file, arena, locals_[n], isa, team, x, y)
            finally:  # whoever is through has met all others for the last time
                kernels.lib.engine_stop(barrier)

        pool = self._pool(threads)
        try:
            others = [pool.submit(part, n) for n in range(1, threads)]
            part(0)
            for other in others:
                other.result()
        except BaseException:
            kernels.lib.engine_stop(barrier)
            pool.shutdown(cancel_futures=True)  # waits for those that run: they still use the arenas
            del self._local.pool
            raise

    def _pool(self, threads: int) -> ThreadPoolExecutor:
        """The threads that help this one; of this process, for a fork has none."""
        key = os.getpid(), threads
        if getattr(self._local, "pool", (None,))[0] != key:
            self._local.pool = key, ThreadPoolExecutor(threads - 1)
        return self._local.pool[1]

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of an image."""
        return sum(_facts(op, self.network.maps)["macs"] for op in self.network.ops)

    def _arena(self, n: int = 0) -> Any:
        """This thread's arena; or that of its n-th helper."""
        arenas = self._local.__dict__.setdefault("arenas", {})
        if n not in arenas:
            arenas[n] = arena_for(self._file)
        return kernels.pointer(arenas[n])

    def times(self, repeats: int = 20) -> list[float]:
        """Each operator's time in ms, the median of `repeats` runs on an image of noise; one thread."""
        file, arena, isa = self._ready()
        steps = [partial(kernels.lib.engine_step, file, arena, isa, i) for i in range(len(self.network.ops))]
        noise = np.concatenate([array.reshape(-1) for array in self._noise()])
        kernels.lib.engine_put(file, arena, kernels.pointer(noise))
        seconds = [[clocked(step) for step in steps] for _ in range(repeats + 2)][2:]  # two to warm up
        return [1000 * t for t in np.median(seconds, axis=0)]

    def profile(self, repeats: int = 20) -> Any:
        """A frame with one row an operator: form, block (rows x columns), blocks kept, multiply-adds, ms, GMAC/s.

        GMAC/s: 10^9 multiply-adds a second, of those that are done. Of a product whose rows were put in another order
        also the blocks of 4 x 1 kept as they came, or why they stay.
        """
        with needed():
            import pandas

        rows = [
            _facts(op, self.network.maps) | {"ms": ms}
            for op, ms in zip(self.network.ops, self.times(repeats), strict=True)
        ]
        frame = pandas.DataFrame(rows)
        return frame.assign(**{"GMAC/s": frame["macs"] / frame["ms"] / 1e6}, **meeting.columns(self.network))

    def _noise(self) -> list[np.ndarray]:
        """Normal numbers for each input."""
        g = np.random.default_rng(0)
        return [g.standard_normal(self.network.maps[i].shape, np.float32) for i in self.network.inputs]

    def _ready(self) -> tuple[Any, Any, Any]:
        """What the C engine is called with; an error where there is none."""
        if kernels.backend() != "c":
            raise RuntimeError(f"the numpy reference is not timed: {kernels.GET}")
        return kernels.pointer(self._file), self._arena(), kernels.isa()

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of the arena, and of what must be held at once in the operator that needs most: its lower bound."""
        return 4 * records.File(self.data).head.arena, 4 * self.network.needed()

    def __repr__(self) -> str:
        arena, least = self.memory
        arranged = meeting.summary(self.network)
        return (
            f"Engine({len(self.network.ops)} operators, {len(self.data):,} bytes, pictures {self.shape}, "
            f"arena {arena / 1e6:.3g} MB, {arena / max(least, 1):.2f} times what must be held at once"
            f"{arranged and f', {arranged}'})"
        )


def unflattened(numbers: Any) -> list[tuple[int, ...]]:
    """Shapes from a list in which each stands behind the number of its axes; [] for anything else."""
    shapes: list[tuple[int, ...]] = []
    rest = list(numbers) if isinstance(numbers, list) and all(isinstance(n, int) and n >= 0 for n in numbers) else []
    while rest:
        axes = rest.pop(0)
        shapes.append(tuple(rest[:axes]))
        del rest[:axes]
    return shapes


def _hung(tree: Any, outputs: list[torch.Tensor]) -> Any:
    """Outputs in the tuples, named ones too, lists and dicts that a tree of their numbers shows."""
    if isinstance(tree, int) and 0 <= tree < len(outputs):
        return outputs[tree]
    if isinstance(tree, dict) and len(tree) == 1:
        ((kind, parts),) = tree.items()
        if kind in ("dict", "namedtuple"):
            named = {key: _hung(part, outputs) for key, part in parts.items()}
            return named if kind == "dict" else namedtuple("Output", named, rename=True)(*named.values())
        return {"list": list, "tuple": tuple}[kind](_hung(part, outputs) for part in parts)
    return None


def _in_threads(run: Callable, images: Iterable, threads: int) -> Iterator[list[np.ndarray]]:
    if threads == 1:
        yield from map(run, images)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(run, images)


def floats(name: str, images: torch.Tensor | np.ndarray) -> np.ndarray:
    """Images as the kernels read them, contiguous float32; ValueError in one line for what holds no real numbers."""
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu()
        images = (images if images.is_complex() else images.float()).numpy()
    return kernels.real_array(name, images)


def placed(data: bytes) -> np.ndarray:
    """A packed file where the C engine walks through it."""
    file = kernels.aligned((len(data),), np.uint8)
    file[:] = np.frombuffer(data, np.uint8)
    return file


def arena_for(file: np.ndarray) -> np.ndarray:
    """An arena for a placed file: all feature maps, and the workspaces of its operators."""
    floats = kernels.lib.engine_arena(kernels.pointer(file))
    try:
        return kernels.aligned((floats,))
    except (OSError, MemoryError) as error:
        raise MemoryError(f"the network needs {4 * floats / 2**30:.3g} GiB to run, which this machine lacks") from error


def race(*engines: Engine, repeats: int = 15) -> list[float]:
    """The time in ms of one image in each engine, the median of runs taken in turn, one thread."""
    calls = [partial(engine._run, engine._noise()) for engine in engines]
    seconds = [[clocked(call) for call in calls] for _ in range(repeats + 2)][2:]  # two to warm up
    return [1000 * t for t in np.median(seconds, axis=0)]


def _facts(op: Op, maps: list[Map]) -> dict[str, Any]:
    """A row of the profile: multiply-adds are those that are done, zero blocks left out."""
    out, w = maps[op.y], op.weights
    macs = 0 if w is None else w.blocks.size * (1 if op.kind == "linear" else out.pixels)
    macs += 0 if op.taps is None else op.taps.size * out.pixels
    form = "" if w is None else "dense" if w.col is None else "sparse"
    form += "" if op.int8 is None else ", int8"
    kept = np.nan if w is None else len(w.blocks) / max(w.groups * w.blocks_per_row, 1)
    pattern = "" if w is None else f"{w.block} x {1 if op.int8 is None else w.blocks.shape[2]}"
    return {"layer": op.name, "operator": op.kind, "form": form, "block": pattern, "blocks kept": kept, "macs": macs}


def clocked(call: Callable[[], Any]) -> float:
    """Seconds of this thread that a call takes."""
    start = time.thread_time()
    call()
    return time.thread_time() - start
