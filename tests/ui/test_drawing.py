"""Plotly's figures as still pictures: everything named is there, and things stand where their numbers say."""

import re

import plotly.graph_objects as go
import pytest

import lab
from lab.ui import drawing, figure, figures

from .structure import faults

FIGURES = {
    "contest": lambda: lab.ui.contest("gal/fashion.json").figure(title="a third of the multiply-adds"),
    "lines": lambda: lab.hybridsd.view.controls(),
    "bars": lambda: lab.sparsebytenn.view.race(),
    "log axis": lambda: lab.hyperfd.view.privacy_curve(lab.hyperfd.view.privacy_contest(), "what noise costs"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_with_all_that_it_names(name):
    made = FIGURES[name]()
    drawn = drawing.drawn(made)
    layout = made.layout
    named = [t.name for t in made.data if t.name and t.showlegend is not False and len(made.data) > 1]
    for words in (
        *named,
        layout.title.text,
        layout.legend.title.text,
        layout.xaxis.title.text,
        layout.yaxis.title.text,
    ):
        assert not words or f">{words.replace(chr(39), '&#x27;')}</text>" in drawn
    assert faults(drawn) == [] and len(drawn) < 10_000


def test_points_bars_and_marks_stand_where_their_numbers_say():
    made = figure(go.Scatter(x=[0, 1, 2], y=[10, 30, 20], mode="lines+markers"), x="step", y="loss")
    dots = [tuple(map(float, xy)) for xy in re.findall(r'lab-dot" cx="([\d.]+)" cy="([\d.]+)"', drawing.drawn(made))]
    (x0, y0), (x1, y1), (x2, y2) = dots
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y2 == pytest.approx(y2 - y1, abs=0.2) and y0 > y2
    made = figure(go.Bar(x=["a", "b"], y=[1, 2]), go.Bar(x=["a", "b"], y=[2, 1])).add_hline(y=2)
    bars = re.findall(r'lab-fill" d="M([\d.]+) ([\d.]+)V([\d.]+)h', drawing.drawn(made))
    tall = [float(foot) - float(head) for _, foot, head in bars]
    assert tall[1] == pytest.approx(2 * tall[0], abs=0.3) and tall[2] == tall[1]
    assert len({x for x, _, _ in bars}) == 4  # side by side
    (mark,) = re.findall(r'lab-now" d="M[\d.]+ ([\d.]+)H', drawing.drawn(made))
    assert mark == bars[1][2]


def test_a_notebook_keeps_the_picture_beside_the_figure(monkeypatch):
    monkeypatch.setattr(figures.go.Figure, "_repr_mimebundle_", lambda self, **_: {figures.PLOTLY: {}})
    made = figure(go.Scatter(x=[0, 1], y=[1, 2]), x="step")
    assert made._repr_mimebundle_()["text/html"].startswith('<img alt="a plot over step" src="data:image/svg+xml,')


def test_title_and_legend_cannot_collide():
    one = figure(go.Scatter(x=[0], y=[0], name="a"), title="alone")
    two = figure(*(go.Scatter(x=[0], y=[0], name=name) for name in "ab"), title="of two")
    assert one.layout.title.text == "alone" and one.layout.legend.title.text is None
    assert two.layout.legend.title.text == "of two" and two.layout.title.text is None
    assert two.layout.width is None  # as wide as its page
