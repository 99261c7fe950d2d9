"""The explorer: controls above a picture, in a notebook, in a saved page and in plain Python.

Its state is its traits, one per control; `draw(**state)` gives a Frame, and the browser only shows it.
"""

import base64
import gzip
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from ..core.errors import first_line
from . import still, svg

THINNED = "This page holds some of the values of these controls; in JupyterLab all are there."
_STATIC = Path(__file__).parent / "static"
STATES, BYTES = 4_000, 1_000_000  # what one saved page may hold
SHARE = 300_000  # bytes of one explorer among others on a page
EXPORTING = "LAB_EXPORT"  # set for the kernel of a notebook that is to become a page: see `exporting`
_PICTURE = re.compile(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+")
Value = str | int | float | bool


def styles() -> str:
    """The explorer's CSS with its palette."""
    return f"{(_STATIC / 'explorer.css').read_text()}.lab-explorer{{{still.palette()}{still.ink()}}}\n"


@dataclass(frozen=True)
class Frame:
    """One state as seen: a picture (SVG text, one or several `<svg>`) and the exact facts it shows, by name."""

    svg: str
    facts: Mapping[str, Value] = field(default_factory=dict)

    def readable(self) -> list[tuple[str, str]]:
        """The facts as names and texts."""
        return [(name, svg.number(value)) for name, value in self.facts.items()]


@dataclass(frozen=True)
class Control:
    """The values one control steps through, its label and unit, and where it starts (the first value if left out).

    `free` puts a box beside a list of texts, into which any other text can be typed; a saved page has the list only.
    """

    values: Sequence[Value]
    label: str = ""
    unit: str = ""
    start: Value | None = None
    free: bool = False

    def __post_init__(self) -> None:
        plain = tuple(value.item() if hasattr(value, "item") else value for value in self.values)
        if not plain:
            raise ValueError("a control has no values: give at least one")
        for value in plain:
            if not isinstance(value, Value) or (isinstance(value, float) and not math.isfinite(value)):
                raise ValueError(f"a control has the value {value!r}: give strings or finite numbers")
        if len(set(plain)) < len(plain):
            raise ValueError(f"a control has the same value twice in {plain}: give each once")
        if self.free and not all(isinstance(value, str) for value in plain):
            raise ValueError(f"a free control has the values {plain}: give texts only")
        object.__setattr__(self, "values", plain)
        object.__setattr__(self, "start", plain[0] if self.start is None else self.pick("start", self.start))

    @property
    def slider(self) -> bool:
        """Whether it is shown as a slider (all numbers) or as a list to choose from."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def pick(self, name: str, value: Value) -> Value:
        """The listed value that equals `value`, or an error that says what is near."""
        slider = self.slider
        for listed in self.values:
            if listed == value or (slider and _is_close(listed, value)):
                return listed
        if self.free and isinstance(value, str) and value.strip():
            return value.strip()
        if slider and isinstance(value, int | float):
            numbers = [listed for listed in self.values if isinstance(listed, int | float)]
            near = sorted(sorted(numbers, key=lambda listed: abs(listed - value))[:2])
            hint = "the nearest steps are " + " and ".join(map(str, near))
        else:
            hint = "choose one of " + ", ".join(map(repr, self.values[:20]))
        raise ValueError(f"{name}={value!r} is not on this control: {hint}")

    def listed(self, value: Value) -> "Control":
        """This control without a box, starting at `value`: a text that was typed joins the list."""
        values = self.values if value in self.values else (*self.values, value)
        return replace(self, values=values, start=value, free=False)

    def spec(self, name: str) -> dict[str, Any]:
        """What the browser needs to show it."""
        texts = [f"{svg.number(value)} {self.unit}".rstrip() for value in self.values]
        shown = {"slider": self.slider, "free": self.free, "values": self.values, "texts": texts}
        return {"name": name, "label": self.label or name, **shown}


class Choice(traitlets.TraitType):
    """A trait that takes the values of a control only."""

    def __init__(self, control: Control) -> None:
        super().__init__(default_value=control.start)
        self.control = control
        self.tag(sync=True)

    def validate(self, _: Any, value: Value) -> Value:
        return self.control.pick(str(self.name), value)


class Explorer(anywidget.AnyWidget):
    """Controls above a picture that follows them: `draw(**values)` gives the Frame of a state.

    `controls` maps names to lists of values (or Controls), `actions` maps button labels to functions of the explorer
    that return None (draw again), a Frame (show it) or a string (say it). Set a control as an attribute or with `set`,
    press a button with `press`; the repr is the state. An error in `draw` or an action is raised, and shown as a line.
    Parts of the picture can be clicked: see `svg.target`.
    """

    _esm = (_STATIC / "explorer.js").read_text()
    _css = styles()
    spec = traitlets.Dict(read_only=True).tag(sync=True)
    frame = traitlets.Instance(Frame, args=("",)).tag(sync=True, to_json=lambda frame, _: _sent(frame))
    message = traitlets.Unicode().tag(sync=True)
    busy = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        draw: Callable[..., Frame],
        controls: Mapping[str, Sequence[Value] | Control],
        title: str = "",
        actions: Mapping[str, Callable[["Explorer"], "Frame | str | None"]] | None = None,
    ) -> None:
        for name in controls:
            if not name.isidentifier() or hasattr(Explorer, name):
                raise ValueError(f"a control cannot be named {name!r}: take another name, say this in its label")
        self._controls = {n: c if isinstance(c, Control) else Control(tuple(c)) for n, c in controls.items()}
        self._actions, self._title = dict(actions or {}), title
        names = tuple(controls)
        self._draw = lru_cache(maxsize=STATES)(lambda *values: _checked(draw(**dict(zip(names, values, strict=True)))))
        self.add_traits(**{name: Choice(control) for name, control in self._controls.items()})
        self.set_trait("spec", _spec(title, self._controls, self._actions))
        self.set_trait("frame", self._draw(*self.state.values()))
        super().__init__()
        self.observe(self._follow, list(self._controls))
        self.on_msg(self._pressed)

    @property
    def state(self) -> dict[str, Value]:
        """The present value of every control."""
        return {name: getattr(self, name) for name in self._controls}

    def set(self, **values: Value) -> "Explorer":
        """Move several controls at once, and draw once; returns the explorer, so that a cell can end with it."""
        for name in values:
            if name not in self._controls:
                raise ValueError(f"no control {name!r}: this explorer has {', '.join(self._controls)}")
        values = {name: self._controls[name].pick(name, value) for name, value in values.items()}
        with self.hold_trait_notifications():
            for name, value in values.items():
                setattr(self, name, value)
        return self

    def press(self, action: str) -> "Explorer":
        """Do what the button of this label does; returns the explorer."""
        if action not in self._actions:
            raise ValueError(f"no button {action!r}: this explorer has {', '.join(map(repr, self._actions)) or 'none'}")
        self.busy = action
        try:
            self._attempt(lambda: self._actions[action](self), fresh=True)
        finally:
            self.busy = ""
        return self

    def save(self, path: str | Path) -> Path:
        """Write one page (HTML) that shows every state without a kernel or a network; returns its path.

        Buttons are left out, since they need Python. ValueError where the states are too many for one page.
        """
        from ..core import store

        content = page(self._title or "explorer", [(self, self.states())])
        if len(content) > BYTES:
            size = f"{len(content):,} bytes, over {BYTES:,}"
            raise ValueError(f"the page would have {size}: give the controls fewer values")
        store.write(Path(path), content)
        return Path(path)

    def states(self, **values: Iterable[Value]) -> bytes:
        """Every state, as explorer.js unpacks and replays it: JSON in gzip. ValueError where they are too many.

        A control named in `values` has these of its values only, and the present one.
        """
        controls = {name: control.listed(self.state[name]) for name, control in self._controls.items()}
        for name, some in values.items():
            kept = {*some, self.state[name]}
            fewer = tuple(value for value in controls[name].values if value in kept)
            controls[name] = replace(controls[name], values=fewer)
        spec = _spec(self._title, controls, ())
        state = {**self.state, "spec": spec, "frame": _sent(self.frame), "message": "", "busy": ""}
        return gzip.compress(_once({"state": state, "frames": self._frames(controls)}).encode(), mtime=0)

    def bounded(self, size: int = SHARE) -> tuple[bytes, bool]:
        """`states` of at most so many bytes, and whether values of the controls were left out for it, spread evenly."""
        full = {name: list(control.values) for name, control in self._controls.items()}
        count = math.prod(map(len, full.values()))
        for most in (count, 400, 100, 40, 16):
            if most <= min(count, STATES):
                values = _fewer(full, most)
                packed = self.states(**values)
                if len(packed) <= size:
                    break
        return packed, values != full

    def static(self) -> str:
        """The present state as HTML without scripts or styles, on one line."""
        state = [(c.label or name, f"{svg.number(self.state[name])} {c.unit}") for name, c in self._controls.items()]
        lines = [f"<b>{escape(self._title)}</b>", _listed(state), still.images(self.frame.svg)]
        lines += [_listed(self.frame.readable()), escape(self.message)]
        return "".join(f"<div>{line}</div>" for line in lines if line).replace("\n", " ")

    def __repr__(self) -> str:
        state = ", ".join(f"{name}={value!r}" for name, value in self.state.items())
        facts = ", ".join(f"{name} {value}" for name, value in self.frame.readable())
        return f"Explorer({' | '.join(part for part in (state, facts, self.message) if part)})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        if os.environ.get(EXPORTING):
            return {"text/plain": repr(self), "text/html": self._exported()}, {}
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        data["text/html"] = f"<!--lab picture-->{self.static()}<!--end-->"
        return data, metadata

    def _exported(self) -> str:
        """What moves on a page that a notebook becomes; the picture alone, and why, where it cannot be drawn ahead."""
        try:
            packed, is_thinned = self.bounded()
        except Exception as error:
            return f"<div>{self.static()}</div><p>Stands still on this page: {escape(first_line(error))}.</p>"
        return movable(self, packed) + (f"<p>{THINNED}</p>" if is_thinned else "")

    def _follow(self, _: Any) -> None:
        self._attempt(lambda: self._draw(*self.state.values()))

    def _pressed(self, _: Any, content: Any, __: Any) -> None:
        self.press(content["press"])

    def _attempt(self, act: Callable[[], Frame | str | None], fresh: bool = False) -> None:
        """Show what `act` gives; on an error, say it in one line and raise it.

        A state that cannot be drawn has an empty picture rather than the one of another state.
        """
        with self.hold_sync():
            try:
                result = act()
                if fresh and not isinstance(result, Frame):  # what an action found out may change every picture
                    self._draw.cache_clear()
                    self.frame = self._draw(*self.state.values())
                else:
                    self.frame = _checked(result)
                self.message = result if isinstance(result, str) else ""
            except Exception as error:
                self.message = f"{type(error).__name__}: {error}".splitlines()[0]
                self.frame = self.frame if fresh else Frame("")
                raise

    def _frames(self, controls: Mapping[str, Control]) -> dict[str, dict]:
        """Every state's frame as the browser takes it, under its place in the grid of controls."""
        grid = [control.values for control in controls.values()]
        size = math.prod(map(len, grid))
        if size > STATES:
            raise ValueError(f"the controls span {size:,} states, a page holds {STATES:,}: give them fewer values")
        keys = itertools.product(*(range(len(values)) for values in grid))
        states = zip(keys, itertools.product(*grid), strict=True)
        return {",".join(map(str, key)): _sent(self._draw(*values)) for key, values in states}


def _spec(title: str, controls: Mapping[str, Control], actions: Iterable[str]) -> dict[str, Any]:
    shown = [control.spec(name) for name, control in controls.items()]
    return {"title": title, "controls": shown, "actions": list(actions)}


def _fewer(values: Mapping[str, list], most: int) -> dict[str, list]:
    """Values of the controls, spread evenly, with which at most so many states are left; the longest lose first."""
    values = dict(values)
    while math.prod(map(len, values.values())) > most:
        longest = max(values, key=lambda name: len(values[name]))
        values[longest] = values[longest][::2]
    return values


def movable(explorer: Explorer, states: bytes) -> str:
    """The explorer's picture with its states behind it, which `player` makes move."""
    kept = base64.b64encode(states).decode()
    return f'<div>{explorer.static()}</div>\n<script type="text/plain" class="states">{kept}</script>'


def player() -> str:
    """The script that makes all movable explorers of a page move."""
    script = Explorer._esm.replace("</", "<\\/")
    return f"""<script type="module">
{script}
for (const states of document.querySelectorAll(".states"))
  unpack(states.textContent).then((kept) => render({{ model: replay(kept), el: states.previousElementSibling }}));
</script>"""


def page(title: str, parts: Iterable["str | tuple[Explorer, bytes]"]) -> bytes:
    """One HTML file that needs nothing else: parts in order, each HTML as it is, or an explorer with its states."""
    body = [part if isinstance(part, str) else movable(*part) for part in parts]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>:root{{color-scheme:light dark}}body{{margin:1.5rem;background:Canvas;color:CanvasText}}
{styles()}</style></head>
<body><main>
{chr(10).join(body)}
</main>
{player()}</body></html>
""".encode()


def _once(states: dict[str, Any]) -> str:
    """States as JSON that hold each picture once, however many frames show it: gzip looks back 32 kB only."""
    text = json.dumps(states)
    repeated = [uri for uri, uses in Counter(_PICTURE.findall(text)).items() if uses > 1]
    numbers = {uri: f"data:lab,{k}" for k, uri in enumerate(repeated)}
    return json.dumps(json.loads(_PICTURE.sub(lambda uri: numbers.get(uri[0], uri[0]), text)) | {"pictures": repeated})


def _sent(frame: Frame) -> dict[str, Any]:
    return {"svg": frame.svg, "facts": frame.readable()}


def _checked(frame: Any) -> Frame:
    if not isinstance(frame, Frame):
        raise TypeError(f"draw gave a {type(frame).__name__}: return Frame(svg, facts)")
    return frame


def _is_close(listed: Any, value: Any) -> bool:
    return isinstance(value, int | float) and math.isclose(listed, value, rel_tol=1e-9, abs_tol=1e-12)


def _listed(pairs: Sequence[tuple[str, str]]) -> str:
    return " · ".join(f"{escape(name)} <b>{escape(text.rstrip())}</b>" for name, text in pairs)
