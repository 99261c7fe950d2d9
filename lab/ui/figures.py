"""One look for every plotly figure: a small template, readable on light and dark pages."""

from typing import Any

import plotly.graph_objects as go
import plotly.io

from . import drawing, still
from .svg import PALETTE

PLOTLY = "application/vnd.plotly.v1+json"

_TOOLS = ["zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale"]  # what a figure of a report needs not
_INK, _GRID = "#7a7a7a", "rgba(128,128,128,0.25)"  # 4.2:1 on white, 3.8:1 on Jupyter's dark


def _axis() -> dict[str, Any]:
    line = {"gridcolor": _GRID, "linecolor": _INK, "zeroline": False, "showline": True, "automargin": True}
    return line | {"title": {"font": {"size": 13}}}


plotly.io.templates["lab"] = go.layout.Template(
    layout={
        "colorway": PALETTE,
        "font": {"color": _INK, "size": 13},
        "title": {"font": {"size": 14}, "x": 0.02, "xanchor": "left"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": _axis(),
        "yaxis": _axis(),
        "margin": {"l": 60, "r": 40, "t": 40, "b": 50},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "title": {"side": "top", "font": {"size": 14}}},
        "shapedefaults": {"line": {"color": _INK}},
        "modebar": {"orientation": "v", "bgcolor": "rgba(0,0,0,0)", "color": _INK, "remove": _TOOLS},
    }
)


class _Figure(go.Figure):
    """A figure that brings a still picture of itself, for readers whose page cannot draw plotly's."""

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(*args, **kwargs) or {}
        return bundle | {"text/html": still.images(drawing.drawn(self))} if PLOTLY in bundle else bundle

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if bundle := self._repr_mimebundle_():
            display(bundle, raw=True)
        else:
            super()._ipython_display_()


def figure(*traces: Any, x: str = "", y: str = "", title: str = "") -> go.Figure:
    """A plain plotly figure of these traces in the lab's look, as wide as its page; `x`, `y` name axes and units."""
    made = _Figure(list(traces), layout={"template": "lab", "height": 380, "xaxis_title": x, "yaxis_title": y})
    if len(made.data) > 1 and any(trace.name and trace.showlegend is not False for trace in made.data):
        return made.update_layout(legend_title_text=title)  # above the legend, however many lines that takes
    return made.update_layout(title={"text": title, "y": 0.98, "yanchor": "top"}) if title else made
