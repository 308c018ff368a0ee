"""How figures look: one small axes a figure, colours that colour-blind readers can tell apart.

A figure is drawn once. Its PNG is dark on white, for slides and paper; in its SVG what a dark page
would swallow becomes variables of the page's style sheet, so that the same drawing is readable on a
light and on a dark page, and on paper.

Source of the colours: Okabe & Ito, "Color universal design", 2008.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

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
_PNG_DPI = 130
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "bend",
}


class Panel:
    """One figure with one axes, what it says in words, and room below it for a legend.

    Args:
        name: of its files.
        x: label of the axis; one in (%) is of shares of 1.
        y: likewise.
        legend_rows: rows of the legend.
        height: in inches, without the legend.
        left: inches left of the axes, for its labels.
    """

    def __init__(
        self,
        name: str,
        x: str = "",
        y: str = "",
        *,
        legend_rows: int = 0,
        height: float = HEIGHT,
        left: float = 0.62,
    ) -> None:
        self.name = name
        self.title = self.caption = self.alt = ""
        below = 0.5 + 0.19 * legend_rows + (0.1 if legend_rows else 0.0)
        height += below - 0.5
        width = 1 - (left + 0.15) / WIDTH
        with matplotlib.rc_context(_STYLE):
            self.figure = Figure(figsize=(WIDTH, height))
            place = (left / WIDTH, below / height, width, 1 - (below + 0.15) / height)
            self.axes = self.figure.add_axes(place)
            self.axes.set(xlabel=x, ylabel=y)
            for axis, label in ((self.axes.xaxis, x), (self.axes.yaxis, y)):
                if label.endswith("(%)"):
                    axis.set_major_formatter(lambda share, _: f"{100 * share:.6g}")

    def told(self, title: str, caption: str, alt: str, columns: int = 2) -> Panel:
        """The panel, with its title, how to read it, and what it shows for those who cannot see it.

        Its legend, of so many columns, is of what was drawn with a label, in that order.
        """
        self.title, self.caption, self.alt = title, caption, alt
        if handles := self.axes.get_legend_handles_labels()[0]:
            with matplotlib.rc_context(_STYLE):
                self.figure.legend(
                    handles=handles,
                    loc="lower center",
                    ncols=columns,
                    columnspacing=1.2,
                    handlelength=2.8,
                )
        return self


def score_text(value: float, score: str) -> str:
    """A score with its unit, as far as it has one."""
    return f"{100 * value:.2f} %" if score == "accuracy" else f"{value:.4f}"


def note(place: Axes, text: str, at: tuple[float, float]) -> None:
    """A small text to the right of a point."""
    place.annotate(text, at, xytext=(5, -2.5), textcoords="offset points", fontsize=7.0)


def sizes_axis(place: Axes, sizes: Sequence[int]) -> None:
    """Numbers of members on the x axis, by powers of two."""
    place.set_xscale("log", base=2)
    powers = [2**i for i in range(max(sizes).bit_length()) if min(sizes) <= 2**i]
    place.xaxis.set_major_locator(FixedLocator(powers or list(sizes)))
    place.xaxis.set_minor_locator(NullLocator())
    place.xaxis.set_major_formatter(ScalarFormatter())


def png(panel: Panel) -> bytes:
    """Dark on white."""
    target = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        panel.figure.savefig(target, format="png", dpi=_PNG_DPI, facecolor="white")
    return target.getvalue()


def svg(panel: Panel) -> str:
    """Markup to be put into a page that defines ``--ink``, ``--grid`` and ``--blue``."""
    target = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": panel.name}):
        panel.figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    drawing = target.getvalue()
    drawing = drawing[drawing.index("<svg") :].strip()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, count=1, flags=re.DOTALL)
    # Matplotlib names groups alike in every figure; ids must be unique on the page.
    drawing = re.sub(r'<g id="[^"]*">', "<g>", drawing)
    drawing = re.sub(r'( id="|href="#|url\(#)', rf"\1{panel.name}-", drawing)
    for color, variable in ((INK, "ink"), (GRID, "grid"), (BLUE, "blue")):
        drawing = drawing.replace(color, f"var(--{variable})")
    # The page scales it: no size of its own, but a shape.
    drawing = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawing, count=2)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{escape(panel.alt)}"', 1)
