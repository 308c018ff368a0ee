"""The README of an exported bag: how to load it with nothing of ours.

Its Python blocks are run by the tests, each in a process that cannot import bend_ray.
"""

from __future__ import annotations

from importlib.resources import files

import jinja2

from bend_ray.export.card import Card


def guide(card: Card) -> str:
    """The README's text."""
    template = (files("bend_ray.export") / "guide.md.j2").read_text(encoding="utf-8")
    # Markdown, of which nothing is for browsers.
    environment = jinja2.Environment(  # noqa: S701
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    scores = card.scores
    return environment.from_string(template).render(
        card=card,
        size=len(card.members),
        channels=card.image_shape[0] if card.decoding else None,
        scored=scores is not None and None not in (scores.accuracy, scores.nll),
    )
