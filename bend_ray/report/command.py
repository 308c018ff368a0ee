"""The command that makes a config again: what differs from the default, as ``--set``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from bend_ray.config.schema import PipelineConfig
from bend_ray.config.yaml_text import flow


def command(config: dict[str, Any], repeats: int = 1) -> str:
    """``bend run`` with every knob that differs from the default.

    Args:
        config: resolved, as JSON.
        repeats: R; the config is the first one's.

    >>> command(PipelineConfig(seed=3).model_dump(mode="json"), repeats=2)
    'bend run --set seed=3 --repeats 2'
    """
    parts = [f"--set {shlex.quote(each)}" for each in overrides(config)]
    parts += [f"--repeats {repeats}"] if repeats > 1 else []
    return " ".join(["bend run", *parts])


def overrides(config: dict[str, Any]) -> list[str]:
    """``a.b=value`` of every knob that differs from the default."""
    return [f"{path}={flow(value)}" for path, value in settings(config).items()]


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """By path, every knob that differs from the default."""
    return dict(_different(PipelineConfig().model_dump(mode="json"), config, ""))


def different(configs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What each config sets otherwise than the default, where they are not all alike."""
    default = PipelineConfig().model_dump(mode="json")
    settings = [
        {path: flow(value) for path, value in _different(default, config, "")} for config in configs
    ]
    alike = {
        path
        for path in set().union(*settings)
        if len({each.get(path) for each in settings}) == 1
        and all(path in each for each in settings)
    }
    return [{path: v for path, v in each.items() if path not in alike} for each in settings]


def _different(default: Any, value: Any, path: str) -> Iterator[tuple[str, Any]]:
    both = isinstance(default, dict) and isinstance(value, dict)
    if both and default.get("kind") == value.get("kind"):
        for key, each in value.items():
            yield from _different(default.get(key), each, f"{path}.{key}" if path else key)
    elif default != value:
        yield path, value
