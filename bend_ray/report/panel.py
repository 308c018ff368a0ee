"""A panel: one figure, with its title, its caption and its alternative text."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """One figure of the report.

    Attributes:
        name: of its files.
        title: what it is about.
        caption: how to read it.
        alt: what it shows, for those who cannot see it.
        figure: drawn.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class Chapter:
    """Panels that answer one question."""

    title: str
    panels: list[Panel]
