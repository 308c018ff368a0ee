"""The Ray Serve deployment: one replica holds the whole bag.

``application`` is what a Serve config names (``bend_ray.serve.deployment:application``). Which bag
is served is the deployment's ``user_config``, so that a change of it alone swaps bags in the
running replicas, between two batches, without a restart.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.util import metrics

from bend_ray.errors import ConfigError
from bend_ray.export.card import Card, fetch_bag
from bend_ray.process.environment import variable
from bend_ray.serve.app import make_app
from bend_ray.serve.bag import Bag
from bend_ray.serve.batches import answer_batch
from bend_ray.serve.guard import App
from bend_ray.serve.meters import Meters
from bend_ray.serve.queries import Question
from bend_ray.serve.refusals import Refusal
from bend_ray.serve.settings import TOKEN_VARIABLE, ServeSettings, parse_settings
from bend_ray.serve.voting import Answers

logger = logging.getLogger("ray.serve")

NAME = "Bag"
_POWERS = [float(2**power) for power in range(11)]

Item = tuple[Bag, Question]


def _num_images(items: list[Item]) -> int:
    return sum(len(question) for _, question in items)


@serve.deployment(name=NAME)
@serve.ingress()
class BagDeployment:
    """A replica.

    Args:
        args: of the Serve config, see ``ServeSettings``.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        self.settings = parse_settings(args)
        self.token = variable(TOKEN_VARIABLE)
        if self.settings.require_token and self.token is None:
            raise ConfigError(f"expected {TOKEN_VARIABLE} in the environment of every replica")
        self.meters = Meters(_ray_metrics())
        self.bag: Bag | None = None
        # One thread: sessions run one batch at a time, and the loop goes on reading requests.
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="bag")
        self._batched.set_max_batch_size(self.settings.max_batch_size)
        self._batched.set_batch_wait_timeout_s(self.settings.batch_wait_ms / 1000)

    def __serve_build_asgi_app__(self) -> App:
        return make_app(self, self.token)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the bag that ``user_config`` names, warm it, and let it answer from now on."""
        if set(user_config) != {"export"} or not isinstance(user_config["export"], str):
            raise ConfigError(f"user_config: expected export alone, a folder or URI: {user_config}")
        loop = asyncio.get_running_loop()
        bag = await loop.run_in_executor(None, self._load, user_config["export"])
        self.bag = bag
        self.meters.loaded(bag.card.model_version, len(bag.card.members))
        logger.info("bag %s is live, run as %s", bag.card.model_version, bag.way)

    def _load(self, export: str) -> Bag:
        settings = self.settings
        with tempfile.TemporaryDirectory() as scratch:
            return Bag.load(
                fetch_bag(export, Path(scratch)),
                groups=settings.groups,
                threads=max(1, int(settings.cpus)),
                batch=settings.max_batch_size,
            )

    def card(self) -> Card:
        """Of the bag that is live."""
        return self._live().card

    def _live(self) -> Bag:
        if self.bag is None:
            raise Refusal(503, "expected a bag to be loaded, none is yet")
        return self.bag

    async def ask(self, card: Card, question: Question) -> Answers:
        """Answer in a batch with others."""
        bag = self._live()
        if bag.card is not card and bag.card.image_shape != card.image_shape:
            raise Refusal(503, "the bag was replaced by one of other images; ask again")
        answers: Answers = await self._batched((bag, question))
        return answers

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=32, batch_wait_timeout_s=0.0, batch_size_fn=_num_images
    )
    async def _batched(self, items: list[Item]) -> list[Answers]:
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(self._computing, answer_batch, items)
        self.meters.batch(_num_images(items), [n for each in answers for n in each.used_B.tolist()])
        return answers


def _ray_metrics() -> Any:
    """Batches in Ray's own metrics too, which know every replica."""
    batch = metrics.Histogram("bend_batch_images", "Images of a batch.", boundaries=_POWERS)
    members = metrics.Histogram(
        "bend_members_used", "Members asked about an image.", boundaries=_POWERS
    )

    def report(images: int, used: list[int]) -> None:
        batch.observe(images)
        for count in used:
            members.observe(count)

    return report


def options(settings: ServeSettings) -> dict[str, Any]:
    """How Serve runs the deployment."""
    scaled = settings.max_replicas > settings.min_replicas
    autoscaling = AutoscalingConfig(
        min_replicas=settings.min_replicas,
        max_replicas=max(settings.min_replicas, settings.max_replicas),
        target_ongoing_requests=settings.max_ongoing_requests / 2,
    )
    return {
        "ray_actor_options": {"num_cpus": settings.cpus},
        "max_ongoing_requests": settings.max_ongoing_requests,
        "max_queued_requests": settings.max_queued_requests,
        "backpressure_config": BackpressureConfig(
            status_code=503, retry_after_s=settings.retry_after_seconds
        ),
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        # Where a replica must be replaced, the new one answers before the old one goes.
        "max_surge_percent": 100,
        **(
            {"autoscaling_config": autoscaling}
            if scaled
            else {"num_replicas": settings.min_replicas}
        ),
    }


def application(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config; nothing is looked up before a replica starts.

    Args:
        args: see ``ServeSettings``; ``export`` beside them names the bag where the deployment's
            ``user_config`` does not.

    Raises:
        ConfigError: an unknown key, or a value that cannot be.
    """
    rest = dict(args)
    export = rest.pop("export", None)
    settings = parse_settings(rest)
    more = {} if export is None else {"user_config": {"export": export}}
    deployment: Any = BagDeployment
    return deployment.options(**options(settings), **more).bind(rest)
