"""Reading a config: YAML by hand, ``--set a.b=c`` on top, every problem in one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bend_ray.config import PipelineConfig
from bend_ray.errors import ConfigError
from bend_ray.knobs import kinds, knobs
from bend_ray.spec import Spec

_PLAIN_TYPES = frozenset({"int", "float", "str", "none", "constrained-int"})


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> PipelineConfig:
    """The config of a YAML (or JSON) file and ``a.b=c`` overrides.

    Args:
        path: the file; None for the default config.
        overrides: each ``key.path=value``, the value as YAML.

    Raises:
        ConfigError: one line with every problem found.
    """
    values = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply(values, override)
    try:
        return PipelineConfig.model_validate(
            _merged(PipelineConfig().model_dump(mode="json"), values)
        )
    except ValidationError as error:
        # A union of plain types is complained about once a member: the first says it.
        problems = {_key_path(details["loc"]): details for details in reversed(error.errors())}
        lines = [_explain(path, details) for path, details in problems.items()]
        raise ConfigError("; ".join(reversed(lines))) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: expected a config file, got: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: expected YAML, got: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one ``a.b=c`` in ``values``, making mappings on the way."""
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"--set {override}: expected a.b=value, as in --set samples.count=96")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: expected a YAML value after =, got {text}") from None
    *parents, name = key.split(".")
    place = values
    for parent in parents:
        below = place.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override}: expected {parent} to be a section, got {below!r}")
        place = below
    place[name] = value


def _merged(default: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` on top of ``default``, section by section; another ``kind`` starts afresh.

    >>> _merged({"a": {"kind": "x", "b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'kind': 'x', 'b': 3, 'c': 2}}
    >>> _merged({"a": {"kind": "x", "b": 1}}, {"a": {"kind": "y"}})
    {'a': {'kind': 'y'}}
    """
    merged = dict(default)
    for name, value in values.items():
        held = default.get(name)
        if isinstance(held, Mapping) and isinstance(value, Mapping):
            same_kind = value.get("kind", held.get("kind")) == held.get("kind")
            merged[name] = _merged(held, value) if same_kind else value
        else:
            merged[name] = value
    return merged


def _explain(path: str, details: ErrorDetails) -> str:
    """One problem as ``path: what was expected``, with the nearest key for a misspelt one."""
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        near = _nearest(path)
        message += f"; did you mean {near}?" if near else "; `bend config` lists every key"
    elif ", got " not in message and not isinstance(details["input"], Mapping | Spec):
        message += f", got {details['input']!r}"
    return f"{path}: {message}" if path else message


def _key_path(location: tuple[int | str, ...]) -> str:
    """A pydantic location as the user wrote it, without the names of union members in it.

    >>> _key_path(("seeds", "protocol", "forks", "trunks"))
    'seeds.protocol.trunks'
    """
    names = [str(part) for part in location]
    written = [
        name
        for index, name in enumerate(names)
        # Pydantic names the member of a union it tried: a kind, or a type such as "tuple[...]".
        if not (index and name in kinds()) and "[" not in name and name not in _PLAIN_TYPES
    ]
    return ".".join(written)


def _nearest(path: str) -> str:
    """The existing key closest to a path, or an empty string."""
    *parents, name = path.split(".")
    below = [knob.path.split(".") for knob in knobs()]
    names = {p[len(parents)] for p in below if p[: len(parents)] == parents != p}
    close = difflib.get_close_matches(name, sorted(names), n=1)
    return ".".join([*parents, *close]) if close else ""
