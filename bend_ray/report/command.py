"""The command that makes a config again: what differs from the default, as ``--set``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from bend_ray.config.schema import PipelineConfig
from bend_ray.config.yaml_text import flow


def command(config: dict[str, Any], repeats: int = 1) -> str:
    """``bend run`` with every knob of a resolved config, as JSON, that differs from the default.

    >>> command(PipelineConfig(seed=3).model_dump(mode="json"), repeats=2)
    'bend run --set seed=3 --repeats 2'
    """
    given = (f"{path}={flow(value)}" for path, value in settings(config).items())
    parts = [f"--set {shlex.quote(each)}" for each in given]
    parts += [f"--repeats {repeats}"] if repeats > 1 else []
    return " ".join(["bend run", *parts])


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """By path, every knob that differs from the default."""
    return dict(_different(PipelineConfig().model_dump(mode="json"), config, ""))


def different(configs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What each config sets otherwise than the default, where they are not all alike."""
    found = [{path: flow(value) for path, value in settings(each).items()} for each in configs]
    alike = set.intersection(*(set(each.items()) for each in found)) if found else set()
    return [dict(item for item in each.items() if item not in alike) for each in found]


def _different(default: Any, value: Any, path: str) -> Iterator[tuple[str, Any]]:
    both = isinstance(default, dict) and isinstance(value, dict)
    if both and default.get("kind") == value.get("kind"):
        for key, each in value.items():
            yield from _different(default.get(key), each, f"{path}.{key}" if path else key)
    elif default != value:
        yield path, value
