"""Panels: a figure each, with its title, its caption and its alternative text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from bend_ray.report.runs import Run


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


def chapters(runs: Sequence[Run]) -> list[Chapter]:
    """Every figure of one or several repeats, in reading order."""
    from bend_ray.report import panels_bags, panels_members, panels_trust

    found = [
        Chapter("What does a larger bag bring, and at what cost?", panels_bags.panels(runs)),
        Chapter("Are generated models as good, and as different?", panels_members.panels(runs)),
        Chapter("Can its probabilities be trusted?", panels_trust.panels(runs)),
    ]
    return [chapter for chapter in found if chapter.panels]
