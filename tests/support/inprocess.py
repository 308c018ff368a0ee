"""The HTTP interface in this process: a bag behind it, and no Ray."""

from __future__ import annotations

from pathlib import Path

from starlette.testclient import TestClient

from bend_ray.export.card import Card
from bend_ray.serve.app import make_app
from bend_ray.serve.bag import Bag
from bend_ray.serve.batches import answer_batch
from bend_ray.serve.meters import Meters
from bend_ray.serve.queries import Question
from bend_ray.serve.refusals import Refusal
from bend_ray.serve.settings import ServeSettings
from bend_ray.serve.voting import Answers


class InProcess:
    """A ``Service`` that answers at once."""

    def __init__(self, folder: Path | None, settings: ServeSettings) -> None:
        self.settings = settings
        self.meters = Meters()
        self.bag = None if folder is None else Bag.load(folder, groups=settings.groups)

    def card(self) -> Card:
        if self.bag is None:
            raise Refusal(503, "no bag")
        return self.bag.card

    async def ask(self, card: Card, question: Question) -> Answers:
        assert self.bag is not None
        (answers,) = answer_batch([(self.bag, question)])
        self.meters.batch(len(question), answers.used_B.tolist())
        return answers


def client(
    folder: Path | None, settings: ServeSettings | None = None, token: str | None = None
) -> TestClient:
    """A client of a bag's interface; an exception of the server is a failure of the test."""
    return TestClient(make_app(InProcess(folder, settings or ServeSettings()), token))
