"""A packed network in a browser: a folder to put on any web server, and what a notebook's widget is made of.

The same module (static/classify.mjs over static/engine.mjs) runs in both. The kernels are four builds of WebAssembly
that ckernels/wasm.py makes: relaxed SIMD, SIMD128, and one without SIMD, of which the browser takes the first that it
can run; and one for several threads, where the page is cross-origin isolated: served with the two headers that the
folder's `_headers` names, which some web hosts read.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..core import store
from ..core.distribution import needed
from . import packed
from .packed import Network
from .runtime import MANY, Engine

BUILDS = ("relaxed", "simd128", "scalar")
THREADS = 4  # the most that a page runs a network on
FILES = {"sparse": "model.sbnn", "dense": "dense.sbnn"}
INLINE = 24_000_000  # bytes of files that the page itself also holds, so that it opens without a server
TITLE = "A sparse network in your browser"
ISOLATED = b"""/*
  Cross-Origin-Opener-Policy: same-origin
  Cross-Origin-Embedder-Policy: require-corp
"""
_STATIC = Path(__file__).parent / "static"


def export_web(engine: Engine | Network, folder: str | Path, **options: Any) -> Path:
    """Write a folder with one page that classifies a picture in the browser and times the network there; its path.

    Options as `bundle` takes them. Up to 24 MB of networks, the page holds everything and opens without a server. A
    failed export leaves no new file behind.
    """
    setup, parts = bundle(engine, **options)
    inline = sum(map(len, parts.values())) <= INLINE
    shared = {"threads.wasm": (_STATIC / "threads.wasm").read_bytes(), "_headers": ISOLATED}
    files = {**parts, **shared, "index.html": page(setup, parts if inline else {})}
    folder = Path(folder)
    new = [folder / name for name in files if not (folder / name).exists()]
    try:
        for name, content in files.items():
            store.write(folder / name, content)
    except OSError:
        for path in new:
            path.unlink(missing_ok=True)
        raise
    return folder / "index.html"


def bundle(
    engine: Engine | Network,
    *,
    dense: Engine | Network | None = None,
    labels: Sequence[str] = (),
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    images: Sequence[Any] = (),
    title: str = TITLE,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The page's setup, and the files it needs by name.

    dense: the network with nothing removed, timed beside it. labels: the classes' names. mean, std: how the network
    takes an image, (v - mean) / std with v in [0, 1], one number or one a channel. images: samples, uint8 (H, W) or
    (H, W, 3), or as the network takes them, floats (C, H, W).
    """
    networks = {"sparse": _engine(engine)} | ({} if dense is None else {"dense": _engine(dense)})
    channels = _checked(networks, labels)
    scale = {"mean": _each(mean, channels, "mean"), "std": _each(std, channels, "std")}
    if 0 in scale["std"]:
        raise ValueError("std holds a 0: give what the network's pictures were divided by")
    m = networks["sparse"].network.maps[networks["sparse"].network.inputs[0]]
    samples = [_data_url(_as_uint8(image, scale), max(m.h, m.w)) for image in images]
    files = {name: FILES[name] for name in networks}
    setup = {"title": title, "labels": list(labels), **scale, "samples": samples, "networks": files}
    parts = {f"{build}.wasm": (_STATIC / f"{build}.wasm").read_bytes() for build in BUILDS}
    parts |= {files[name]: network.data for name, network in networks.items()}
    return {**setup, "threads": _threads(networks), "facts": _facts(networks)}, parts


def widget(engine: Engine | Network, **options: Any) -> dict[str, Any]:
    """The arguments of `lab.ui.Classifier`; options as `bundle` takes them."""
    setup, parts = bundle(engine, **options)
    setup["threads"] = 1  # a notebook's page is not isolated
    return {"setup": setup, "parts": parts, "script": script(), "style": style()}


def script() -> str:
    """The browser's side as one module."""
    engine, face = ((_STATIC / name).read_text(encoding="utf-8") for name in ("engine.mjs", "classify.mjs"))
    return engine + face.replace(_IMPORT, "")


_IMPORT = 'import { builds, measure, Network, sharing } from "./engine.mjs";\n'


def style() -> str:
    """Its style sheet."""
    return (_STATIC / "classify.css").read_text(encoding="utf-8")


def page(setup: Mapping[str, Any], parts: Mapping[str, bytes]) -> bytes:
    """The page; files that are not among `parts` are fetched from beside it."""
    embedded = [
        f'<script type="text/plain" id="{name}">{base64.b64encode(part).decode()}</script>\n'
        for name, part in parts.items()
    ]
    setup_json = json.dumps(setup).replace("<", "\\u003c")
    code = script().replace("</", "<\\/")
    title = escape(setup["title"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><link rel="icon" href="data:,">
<style>:root{{color-scheme:light dark}}
body{{margin:2.5rem auto;padding:0 1.25rem;max-width:860px;background:Canvas;color:CanvasText}}
{style()}</style></head>
<body><main id="classifier"><h2>{title}</h2>
<noscript>This page computes in the browser: allow scripts.</noscript></main>
<script type="application/json" id="setup">{setup_json}</script>
{"".join(embedded)}<script type="module">
{code}
{_OPEN}</script></body></html>
""".encode()


_OPEN = """
async function part(name) {
  const embedded = document.getElementById(name);
  try {
    const response = await fetch(embedded ? `data:application/octet-stream;base64,${embedded.textContent}` : name);
    if (!response.ok) throw new Error(response.status);
    return new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    throw new Error(
      location.protocol === "file:"
        ? `A page that is opened as a file may not read ${name} beside it. Run "python -m http.server" in this ` +
          "folder and open localhost:8000."
        : `${name} could not be loaded (${error.message}): it must lie beside this page.`,
    );
  }
}
classifier(document.getElementById("classifier"), JSON.parse(document.getElementById("setup").textContent), part);
"""


def _engine(network: Engine | Network) -> Engine:
    if isinstance(network, Network):
        return Engine(packed.write(network))
    if not isinstance(network, Engine):
        raise TypeError(f"this is a {type(network).__name__}: give an engine, as outcome.engine() makes it")
    return network


def _checked(networks: Mapping[str, Engine], labels: Sequence[str]) -> int:
    """The channels of an image; ValueError for networks that do not classify, or not alike."""
    shapes = set()
    for engine in networks.values():
        ends = engine.network.inputs, engine.network.outputs
        if any(len(maps) > 1 for maps in ends):
            raise ValueError("the network takes or gives several tensors: the page shows classes of one picture")
        x, y = (engine.network.maps[i] for (i,) in ends)
        if y.pixels != 1 and (y.c, y.h) != (1, 1):
            raise ValueError(f"the network answers with a map ({y.c}, {y.h}, {y.w}): the page shows classes")
        shapes.add((x.c, x.h, x.w, x.interleaved, y.c * y.w))
    if len(shapes) > 1:
        raise ValueError("dense takes other pictures or has other classes than the sparse network: compile both alike")
    channels, _, _, _, classes = shapes.pop()
    if channels not in (1, 3):
        raise ValueError(f"the network takes {channels} channels: a browser's pictures have 3, or 1 when grey")
    if labels and len(labels) != classes:
        raise ValueError(f"{len(labels)} labels are given: the network has {classes} classes")
    return channels


def _each(value: float | Sequence[float], channels: int, name: str) -> list[float]:
    """One number for each channel."""
    values = np.broadcast_to(np.asarray(value, float), channels) if np.ndim(value) == 0 else np.asarray(value, float)
    if values.shape != (channels,):
        raise ValueError(f"{name}={value!r}: give one number, or {channels}")
    return values.tolist()


def _as_uint8(image: Any, scale: Mapping[str, list[float]]) -> np.ndarray:
    """A sample as uint8 (H, W) or (H, W, 3)."""
    array = np.asarray(image)
    if array.dtype.kind == "f" and array.ndim == 3 and len(array) == len(scale["mean"]):
        mean, std = (np.reshape(scale[name], (-1, 1, 1)) for name in ("mean", "std"))
        array = (255 * (array * std + mean)).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0).squeeze()
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"a picture is {array.dtype} {array.shape}: give uint8 (H, W) or (H, W, 3), or floats (C, H, W) as the "
            "network takes them"
        )
    return array


def _data_url(array: np.ndarray, side: int) -> str:
    """An image as a data: URL, its shorter side no longer than `side`: the network sees no more."""
    with needed():
        from PIL import Image

    image, png = Image.fromarray(array), io.BytesIO()
    if min(image.size) > side:
        image = image.resize([round(edge * side / min(image.size)) for edge in image.size], Image.Resampling.LANCZOS)
    image.save(png, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def _threads(networks: Mapping[str, Engine]) -> int:
    """How many threads are worth it for the smallest of the networks."""
    return THREADS if min(engine.macs for engine in networks.values()) >= MANY else 1


def _facts(networks: Mapping[str, Engine]) -> list[tuple[str, str]]:
    """What the page says below: weights kept and bytes."""
    products = [op.weights for op in networks["sparse"].network.ops if op.weights is not None]
    kept, total = (sum(counts) for counts in zip(*((w.blocks.size, w.rows * w.columns) for w in products), strict=True))
    sizes = ", ".join(f"{name} {len(engine.data) / 1e6:.2f} MB" for name, engine in networks.items())
    return [("weights that are kept", f"{min(1, kept / total):.0%} of {total:,}"), ("file", sizes)]
