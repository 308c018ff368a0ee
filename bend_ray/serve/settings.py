"""What a deployment can be told: the ``args`` of the Serve config file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from bend_ray.errors import ConfigError
from bend_ray.export.card import Card
from bend_ray.spec import Spec, first_problem

TOKEN_VARIABLE = "BEND_SERVE_TOKEN"  # noqa: S105 - the name of it
SETTINGS_VARIABLE = "BEND_SERVE_SETTINGS"
"""``ServeSettings`` as JSON, for doors in Ray's proxies."""


@dataclass(frozen=True)
class Stop:
    """When a question needs no more members.

    Attributes:
        decided: when the members left cannot change the label, whatever they say.
        confidence: when the bag so far gives its label at least this probability; None: never.
        everyone: never before the last, nor after a student.
    """

    decided: bool = False
    confidence: float | None = None
    everyone: bool = False

    @property
    def is_patient(self) -> bool:
        """Whether all members are asked."""
        return self.everyone or not (self.decided or self.confidence is not None)


def text_bytes(card: Card, examples: int) -> int:
    """The most bytes in which so many examples can stand as JSON, or as binary numbers."""
    return 2**16 + 32 * examples * max(1, card.numbers) + 256 * examples * len(card.inputs)


class ServeSettings(Spec):
    """How a bag is served; which bag is the deployment's ``user_config``."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "bag"
    """The model's name in the Open Inference Protocol."""
    groups: PositiveInt = 4
    """In how many steps members may be asked, where a request may stop early."""
    stop_when_decided: bool = False
    """Stop every request's vote when the members left cannot change its label."""
    confidence: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Stop every request's vote when its label has this probability; null: never."""
    max_batch_size: PositiveInt = 32
    """Examples answered at once, and the most of one request."""
    batch_wait_ms: NonNegativeFloat = 0.0
    """How long a batch waits for company; 0: it takes what came while the last one was answered."""
    cpus: PositiveFloat = 1.0
    """CPUs of a replica; threads for computing are tried up to as many."""
    min_replicas: PositiveInt = 1
    """Replicas there always are."""
    max_replicas: PositiveInt = 1
    """Replicas there are at most."""
    target_ongoing_requests: PositiveInt = 64
    """Requests a replica shall have at the same time: the target of autoscaling."""
    max_ongoing_requests: PositiveInt = 1024
    """Requests, wholly there, that wait at one door; one more gets 503 and Retry-After."""
    max_wait_seconds: PositiveFloat = 10.0
    """A request that has waited so long for its batch gets 503, so that others are answered."""
    max_connections_per_peer: PositiveInt = 4096
    """Connections from one address; a proxy before this one has one for all its clients."""
    drain_seconds: PositiveFloat = 20.0
    """What a replica that must go may take to answer what it has."""
    max_body_bytes: PositiveInt = 2**24
    """Larger requests are refused with 413."""
    max_text_bytes: PositiveInt | None = None
    """The same of what is no picture; null: what a batch of the bag's examples can need."""
    max_image_pixels: PositiveInt | None = None
    """Pictures of more pixels are refused before they are decoded; null: 4 million, or for bags of
    large images 1,024 times as many as theirs, up to 16 million."""
    request_log: bool = False
    """Log a line a request: time, route, outcome, duration, peer, trace; nothing of its body."""
    student: str | None = None
    """A student of the bag, as `bend distill` writes it, which is asked first."""
    unsure_below: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9
    """Probability of a student's label below which the bag is asked as well."""
    run_code: bool = False
    """Where the bag has no ONNX program, run the user's code that its card names."""
    require_token: bool = False
    """Refuse to start where BEND_SERVE_TOKEN is not set; where it is, it is always asked for."""

    @property
    def stop(self) -> Stop:
        """What a request gets that asks for nothing."""
        return Stop(self.stop_when_decided, self.confidence)

    def fitted_to(self, card: Card) -> ServeSettings:
        """The same, where texts and pictures may be as large as there is any use for."""
        fitting = {
            "max_text_bytes": text_bytes(card, self.max_batch_size),
            "max_image_pixels": min(2**24, max(2**22, 1024 * card.numbers)),
        }
        return self.model_copy(update={n: getattr(self, n) or most for n, most in fitting.items()})


def parse_settings(args: dict[str, object]) -> ServeSettings:
    """The settings in a Serve config's ``args``; ConfigError is the first problem, in one line."""
    try:
        return ServeSettings.model_validate(args)
    except ValidationError as error:
        raise ConfigError(
            f"args.{first_problem(error)}; known: {', '.join(ServeSettings.model_fields)}"
        ) from None
