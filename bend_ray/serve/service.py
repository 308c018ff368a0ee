"""What the HTTP interface stands on: whoever holds a bag and answers questions."""

from __future__ import annotations

from typing import Protocol

from bend_ray.export.card import Card
from bend_ray.serve.meters import Meters
from bend_ray.serve.queries import Question
from bend_ray.serve.settings import ServeSettings
from bend_ray.serve.voting import Answers


class Service(Protocol):
    """What the interface stands on."""

    settings: ServeSettings
    meters: Meters

    def card(self) -> Card:
        """Of the bag that is live.

        Raises:
            Refusal: none is yet.
        """

    async def ask(self, card: Card, question: Question) -> Answers:
        """Put a question, that was checked against ``card``, to its bag."""
