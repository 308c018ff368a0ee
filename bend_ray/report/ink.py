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
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#161718"
GRID = "#d4d5d6"
BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"
PURPLE, SKY, ORANGE = "#cc79a7", "#56b4e9", "#e69f00"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, INK)
MARKERS = "osD^vP*X"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

LOOKS: dict[str, dict[str, Any]] = {
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


def axes(legend_rows: int = 0, height: float = HEIGHT, left: float = 0.62) -> tuple[Figure, Axes]:
    """A figure with one axes, and room below it for a legend.

    Args:
        legend_rows: rows of the legend.
        height: in inches, without the legend.
        left: inches left of the axes, for its labels.
    """
    legend = 0.19 * legend_rows + (0.1 if legend_rows else 0.0)
    height += legend
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height))
        place = figure.add_axes(
            (
                left / WIDTH,
                (0.5 + legend) / height,
                1 - (left + 0.15) / WIDTH,
                1 - (0.65 + legend) / height,
            )
        )
    return figure, place


def legend(
    figure: Figure,
    place: Axes,
    columns: int = 2,
    handles: Sequence[Artist] = (),
    title: str | None = None,
) -> None:
    """The legend, in the room below.

    Args:
        figure: with that room.
        place: whose labelled artists it names, in the order in which they were drawn.
        columns: of the legend.
        handles: what it names instead.
        title: above it.
    """
    with matplotlib.rc_context(_STYLE):
        figure.legend(
            handles=list(handles) or place.get_legend_handles_labels()[0],
            loc="lower center",
            ncols=columns,
            columnspacing=1.2,
            handlelength=2.8,
            title=title,
            title_fontsize=8,
        )


def png(figure: Figure) -> bytes:
    """Dark on white."""
    target = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(target, format="png", dpi=_PNG_DPI, facecolor="white")
    return target.getvalue()


def svg(figure: Figure, alt: str, salt: str) -> str:
    """Markup to be put into a page that defines ``--ink``, ``--grid`` and ``--blue``.

    Args:
        figure: what to draw.
        alt: says to those who cannot see it what it shows.
        salt: makes the ids of this drawing's parts its own.
    """
    target = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": salt}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    drawing = target.getvalue()
    drawing = drawing[drawing.index("<svg") :].strip()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, count=1, flags=re.DOTALL)
    # Matplotlib names groups alike in every figure; ids must be unique on the page.
    drawing = re.sub(r'<g id="[^"]*">', "<g>", drawing)
    drawing = re.sub(r'( id="|href="#|url\(#)', rf"\1{salt}-", drawing)
    for color, variable in ((INK, "ink"), (GRID, "grid"), (BLUE, "blue")):
        drawing = drawing.replace(color, f"var(--{variable})")
    # The page scales it: no size of its own, but a shape.
    drawing = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawing, count=2)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{_quoted(alt)}"', 1)


def percent(place: Axes, axis: str) -> None:
    """Shares of 1 on an axis, written in percent."""
    with matplotlib.rc_context(_STYLE):
        getattr(place, f"{axis}axis").set_major_formatter(lambda share, _: f"{100 * share:.6g}")


def _quoted(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
