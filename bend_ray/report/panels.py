"""All panels of a report, in chapters; to add one, a function in the file of its subject."""

from __future__ import annotations

from collections.abc import Sequence

from bend_ray.report import panels_bags, panels_members, panels_trust
from bend_ray.report.panel import Chapter
from bend_ray.report.runs import Run


def chapters(runs: Sequence[Run]) -> list[Chapter]:
    """Every figure of one or several repeats, in reading order."""
    found = [
        Chapter("What does a larger bag bring, and at what cost?", panels_bags.panels(runs)),
        Chapter("Are generated models as good, and as different?", panels_members.panels(runs)),
        Chapter("Can its probabilities be trusted?", panels_trust.panels(runs)),
    ]
    return [chapter for chapter in found if chapter.panels]
