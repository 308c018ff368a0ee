"""What a deployment can be told: the ``args`` of the Serve config file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from bend_ray.artifacts.manifest import first_problem
from bend_ray.errors import ConfigError
from bend_ray.serve.voting import Stop
from bend_ray.spec import Spec

TOKEN_VARIABLE = "BEND_SERVE_TOKEN"  # noqa: S105 - the name of it


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
    """Images answered at once, and the most of one request."""
    batch_wait_ms: NonNegativeFloat = 0.0
    """How long a batch waits for company; 0: it takes what came while the last one was answered."""
    cpus: PositiveFloat = 1.0
    """CPUs of a replica; threads for computing are tried up to as many."""
    min_replicas: PositiveInt = 1
    """Replicas there always are."""
    max_replicas: PositiveInt = 1
    """Replicas there are at most."""
    max_ongoing_requests: PositiveInt = 128
    """Requests a replica works on at the same time; half of them is the target of autoscaling."""
    max_queued_requests: PositiveInt = 512
    """Requests a proxy holds beyond those; one more is refused with 503 and Retry-After."""
    retry_after_seconds: PositiveFloat = 1.0
    """What a refused client is told to wait."""
    drain_seconds: PositiveFloat = 20.0
    """What a replica that must go may take to answer what it has."""
    max_body_mib: PositiveFloat = 16.0
    """Larger requests are refused with 413."""
    max_image_pixels: PositiveInt = 2**24
    """Pictures of more pixels are refused before they are decoded."""
    require_token: bool = False
    """Refuse to start where BEND_SERVE_TOKEN is not set; where it is, it is always asked for."""

    @property
    def stop(self) -> Stop:
        """What a request gets that asks for nothing."""
        return Stop(self.stop_when_decided, self.confidence)

    @property
    def max_body_bytes(self) -> int:
        """The body limit."""
        return int(self.max_body_mib * 2**20)


def parse_settings(args: dict[str, object]) -> ServeSettings:
    """The settings in a Serve config's ``args``.

    Raises:
        ConfigError: the first problem, in one line.
    """
    try:
        return ServeSettings.model_validate(args)
    except ValidationError as error:
        raise ConfigError(
            f"args.{first_problem(error)}; known: {', '.join(ServeSettings.model_fields)}"
        ) from None
