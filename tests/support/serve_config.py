"""What ``serve deploy`` would refuse, and what it would pass over without a word."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from bend_ray.artifacts.manifest import first_problem
from bend_ray.errors import ConfigError
from bend_ray.serve.deployment import BUILDER
from bend_ray.serve.settings import parse_settings


def check_deploy_config(config: dict[str, Any]) -> None:
    """Refuse what Serve would refuse, and the unknown keys that it would ignore.

    Raises:
        ConfigError: the first problem, in one line.
    """
    try:
        schema = ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        raise ConfigError(f"Serve config: {first_problem(error)}") from None
    _refuse_unknown(config, schema, "")
    for index, application in enumerate(config["applications"]):
        if application["import_path"] == BUILDER:
            args = {k: v for k, v in application.get("args", {}).items() if k != "export"}
            try:
                parse_settings(args)
            except ConfigError as error:
                raise ConfigError(f"Serve config: applications.{index}.{error}") from None


def _refuse_unknown(given: dict[str, Any], model: BaseModel, where: str) -> None:
    """Refuse keys that the schema does not have, at every level that it has."""
    for key, value in given.items():
        place = f"{where}{key}"
        if key not in type(model).model_fields:
            raise ConfigError(f"Serve config: {place}: no such key")
        held = getattr(model, key)
        inner = held if isinstance(held, list) else [held]
        values = value if isinstance(value, list) else [value]
        for index, (item, below) in enumerate(zip(values, inner, strict=False)):
            if isinstance(item, dict) and isinstance(below, BaseModel):
                step = f".{index}." if isinstance(held, list) else "."
                _refuse_unknown(item, below, f"{place}{step}")
