"""A network that classifies pictures in the reader's own browser, inside a notebook; Python only hands it over."""

from collections.abc import Mapping
from html import escape
from typing import Any

import anywidget
import traitlets


class Classifier(anywidget.AnyWidget):
    """Runs an ES module on files that it is handed; the kernel computes nothing.

    setup: what the module is given (title, labels, samples, networks, facts); parts: files by name. The browser reports
    what it saw in `seen` ('label', 'probability'), each network's milliseconds in `times` and the `build` it chose.
    """

    setup = traitlets.Dict(read_only=True).tag(sync=True)
    parts = traitlets.Dict(read_only=True).tag(sync=True)
    seen = traitlets.Dict().tag(sync=True)
    times = traitlets.Dict().tag(sync=True)
    build = traitlets.Unicode().tag(sync=True)

    def __init__(self, setup: Mapping[str, Any], parts: Mapping[str, bytes], script: str, style: str) -> None:
        self._esm, self._css = script, style
        self.set_trait("setup", dict(setup))
        self.set_trait("parts", dict(parts))
        super().__init__()

    def readable(self) -> list[str]:
        """What the browser has reported, as texts."""
        texts = [f"{self.seen['label']} {self.seen['probability']:.1%}"] if self.seen else []
        texts += [f"{name} {ms:.2f} ms" for name, ms in self.times.items()]
        if "dense" in self.times:
            texts.append(f"{self.times['dense'] / self.times['sparse']:.2f}x as fast as dense")
        return texts + ([f"WebAssembly {self.build}"] if self.build else [])

    def static(self) -> str:
        """What the browser has reported, as HTML without scripts or styles, on one line."""
        samples = "".join(
            f'<img alt="sample picture {i + 1}" src="{escape(source)}" height="48"> '
            for i, source in enumerate(self.setup["samples"])
        )
        facts = " · ".join(f"{escape(name)} <b>{escape(text)}</b>" for name, text in self.setup["facts"])
        reported = " · ".join(map(escape, self.readable())) or "Run this cell: the network then runs in your browser."
        lines = [f"<b>{escape(self.setup['title'])}</b>", samples, reported, facts]
        return "".join(f"<div>{line}</div>" for line in lines if line).replace("\n", " ")

    def __repr__(self) -> str:
        return f"Classifier({', '.join(self.readable()) or 'no browser has shown it yet'})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        data["text/plain"] = repr(self)
        data["text/html"] = f"<!--lab picture-->{self.static()}<!--end-->"
        return data, metadata
