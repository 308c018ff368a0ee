"""How figures look: one small axes a figure, colours that colour-blind readers can tell apart.

A figure is drawn once. Its PNG is dark on white, for slides and paper; in its SVG what a dark page
would swallow becomes variables of the page's style sheet, so that the same drawing is readable on a
light and on a dark page, and on paper. Titles and captions are in ``words.yaml``.

Source of the colours: Okabe & Ito, "Color universal design", 2008.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import escape
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from bend_ray.report.results import words_of

INK = "#161718"
GRID = "#d4d5d6"
BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"
PURPLE, SKY, ORANGE = "#cc79a7", "#56b4e9", "#e69f00"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, INK)
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

Look = dict[str, Any]

LOOKS: dict[str, Look] = {
    "bag": {"color": VERMILLION, "linestyle": "-", "marker": "o"},
    "deep_ensemble": {"color": INK, "linestyle": DASHES[1], "marker": "s"},
    "originals_bag": {"color": BLUE, "linestyle": DASHES[3], "marker": "D"},
    "trunk_bag": {"color": GREEN, "linestyle": DASHES[1], "marker": "^"},
    "trunk_averages": {"color": GREEN, "linestyle": DASHES[2], "marker": "v"},
    "multiswag": {"color": PURPLE, "linestyle": DASHES[1], "marker": "P"},
    "gaussian": {"color": SKY, "linestyle": DASHES[2], "marker": "*"},
    "noise": {"color": ORANGE, "linestyle": DASHES[2], "marker": "X"},
    "best_original": {"color": BLUE, "linestyle": "none", "marker": "p"},
    "weight_average": {"color": PURPLE, "linestyle": "none", "marker": "h"},
    "member": {"color": SKY, "linestyle": DASHES[1], "marker": "v"},
}
"""Colour, dash and marker by name: the same in every figure, and none told by colour alone."""

SCORES = {"accuracy": "{} {} (%)", "nll": "{} NLL (nats)"}
"""Labels of axes, of a part, and of what its score is called."""

WIDTH, HEIGHT = 4.7, 3.6
MANY = 2000
"""Points above which a scatter is stored as pixels."""
_ROW = 0.19
"""Inches of a row of the legend."""
_PNG_DPI = 130
_STYLE = str(Path(__file__).with_suffix(".mplstyle"))


class Panel:
    """One figure with one axes, what it says in words, and below it a legend.

    What its methods draw is said to those who cannot see it, too. An axis whose label ends in (%)
    is of shares of 1; ``height`` is in inches, without the legend.
    """

    def __init__(self, name: str, x: str = "", y: str = "", height: float = HEIGHT) -> None:
        self.name = name
        self.title = self.caption = self.alt = ""
        self._said: list[str] = []
        with matplotlib.rc_context(fname=_STYLE):
            self.figure = Figure(figsize=(WIDTH, height), layout="constrained")
            self.axes = self.figure.add_subplot(xlabel=x, ylabel=y)
            for axis in (self.axes.xaxis, self.axes.yaxis):
                if axis.get_label_text().endswith("(%)"):
                    axis.set_major_formatter(lambda share, _: f"{100 * share:.6g}")

    def line(self, x: ArrayLike, y: ArrayLike, label: str, **look: Any) -> None:
        """Points that are joined, or a single one; without a label nothing is said of them."""
        xs, ys = np.atleast_1d(x), np.atleast_1d(y)
        self.axes.plot(xs, ys, label=label, **look)
        if label:
            ends = [f"{self._y(ys[i])} at {self._x(xs[i])}" for i in sorted({0, len(xs) - 1})]
            self.say(f"{label} {' to '.join(ends)}")

    def points(self, x: ArrayLike, y: ArrayLike, label: str, **look: Any) -> None:
        """A cloud, if there is any."""
        xs, ys = np.asarray(x), np.asarray(y)
        if len(xs):
            style: Look = {"linewidths": 0, "rasterized": len(xs) > MANY, **look}
            self.axes.scatter(xs, ys, label=label, **style)
            self.say(f"{label} {self._y(ys.mean())} at {self._x(xs.mean())} on average")

    def histogram(self, values: NDArray[Any], edges: ArrayLike, label: str, **look: Any) -> None:
        """Share of values a bin; ``hatch`` tells what colour alone would not."""
        share = np.histogram(values, edges)[0] / len(values)
        self.axes.stairs(share, edges, fill=True, alpha=0.3, linewidth=0, **look)
        label = f"{label} ({len(values)})"
        self.axes.stairs(share, edges, color=look["color"], linewidth=1.5, label=label)
        self.say(f"{label}: median {self._x(np.median(values))}")

    def note(self, text: str, at: tuple[float, float]) -> None:
        """A small text to the right of a point."""
        style: Look = {"textcoords": "offset points", "fontsize": 7.0}
        self.axes.annotate(text, at, xytext=(5, -2.5), **style)

    def rows(self, names: Sequence[str]) -> None:
        """Names on the y axis, from above."""
        self.axes.set_yticks(range(len(names)), names)
        self.axes.invert_yaxis()

    def sizes(self) -> None:
        """Numbers of members on the x axis, by powers of two."""
        self.axes.set_xscale("log", base=2, subs=())
        self.axes.xaxis.set_major_formatter(lambda size, _: f"{size:g}")

    def say(self, text: str) -> None:
        """What was drawn, for those who cannot see it."""
        self._said.append(text)

    def told(self, words: str = "", columns: int = 2, **values: Any) -> Panel:
        """The panel with its title and how to read it, and a legend of so many columns.

        They are the ``words`` of that name, by default the panel's own, with ``values``.
        """
        self.title, self.caption = words_of(words or self.name, **values)
        axes = " by ".join(filter(None, (self.axes.get_ylabel(), self.axes.get_xlabel())))
        self.alt = f"{': '.join(filter(None, (self.title, axes)))}. {'; '.join(self._said)}."
        if handles := self.axes.get_legend_handles_labels()[0]:
            rows = -(-len(handles) // columns)
            with matplotlib.rc_context(fname=_STYLE):
                self.figure.set_figheight(self.figure.get_figheight() + _ROW * (rows + 0.5))
                style: Look = {"columnspacing": 1.2, "handlelength": 2.8}
                self.figure.legend(
                    handles=handles, loc="outside lower center", ncols=columns, **style
                )
        return self

    def _x(self, value: float) -> str:
        return _figure(value, self.axes.get_xlabel())

    def _y(self, value: float) -> str:
        return _figure(value, self.axes.get_ylabel())

    def _save(self, target: Any, style: Look, **how: Any) -> None:
        with matplotlib.rc_context(style, _STYLE):
            self.figure.savefig(target, **how)
        # Laid out once, for all formats.
        self.figure.set_layout_engine("none")

    def png(self) -> bytes:
        """Dark on white."""
        self._save(target := io.BytesIO(), {}, format="png", dpi=_PNG_DPI, facecolor="white")
        return target.getvalue()

    def svg(self) -> str:
        """Markup to be put into a page that defines ``--ink``, ``--grid`` and ``--blue``."""
        how: Look = {"format": "svg", "transparent": True, "metadata": {"Date": None}}
        self._save(target := io.StringIO(), {"svg.hashsalt": self.name}, **how)
        drawing = target.getvalue()
        drawing = drawing[drawing.index("<svg") :].strip()
        drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, count=1, flags=re.DOTALL)
        # Matplotlib names groups alike in every figure; ids must be unique on the page.
        drawing = re.sub(r'<g id="[^"]*">', "<g>", drawing)
        drawing = re.sub(r'( id="|href="#|url\(#)', rf"\1{self.name}-", drawing)
        for color, variable in ((INK, "ink"), (GRID, "grid"), (BLUE, "blue")):
            drawing = drawing.replace(color, f"var(--{variable})")
        # The page scales it: no size of its own, but a shape.
        drawing = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawing, count=2)
        return drawing.replace("<svg", f'<svg role="img" aria-label="{escape(self.alt)}"', 1)


def _figure(value: float, label: str) -> str:
    """With two digits of a percent, where an axis is of them, else with four."""
    return f"{100 * value:.2f} %" if label.endswith("(%)") else f"{value:.4g}"
