"""Reading a config: YAML by hand, ``--set a.b=c`` on top, every problem in one line.

And what there is to set: every knob, with its path, default and meaning; the same as JSON Schema.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bend_ray.config.schema import PipelineConfig
from bend_ray.config.yaml_text import parse_yaml, read_yaml, refusal
from bend_ray.errors import ConfigError
from bend_ray.spec import Spec, variants
from bend_ray.storage.uris import names_variable

QUOTED = 200
"""Characters of a wrong value that a message repeats."""

_NOT_A_SECTION = frozenset({"model_type", "model_attributes_type", "dict_type"})
_TARGETS = ("label", "labels", "label_column", "targets", "y", "class", "predict")
"""What others call a table's ``target``."""


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> PipelineConfig:
    """The config of a YAML (or JSON) file, None for the default one, and of ``a.b=c`` overrides.

    ConfigError is one line with every problem found.
    """
    values = read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        apply(values, override)
    return validated(values, PipelineConfig().model_dump(mode="json"))


def with_knobs(config: PipelineConfig, point: Mapping[str, Any]) -> PipelineConfig:
    """A config with some knobs, by ``key.path``, set otherwise; another ``kind`` starts afresh.

    ConfigError is one line with every problem found.

    >>> with_knobs(PipelineConfig(), {"samples.count": 96}).samples.count
    96
    """
    return validated(nested(point), config.model_dump(mode="json"))


def nested(point: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of values by ``key.path``.

    >>> nested({"a.b": 1, "a.c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    values: dict[str, Any] = {}
    for key, value in point.items():
        _put(values, key, value)
    return values


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set what is at a path, making sections on the way."""
    *parents, name = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"expected {parent} to be a section, got {_shortened(repr(values))}")
    values[name] = value


def validated(values: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> PipelineConfig:
    """The config of sections, specs or their fields, on top of ``base``.

    ConfigError is one line with every problem found.
    """
    if named := list(_variables(values, "")):
        raise refusal("; ".join(named))
    merged = _merged(base or {}, values)
    try:
        return PipelineConfig.model_validate(merged)
    except ValidationError as error:
        # A union of plain types is complained about once a member: the first says it, and what is
        # wrong inside of a section says more than that it is no word.
        problems = {_key_path(details, merged): details for details in reversed(error.errors())}
        lines = [
            _explain(path, details)
            for path, details in problems.items()
            if not any(other.startswith(f"{path}.") for other in problems)
        ]
        raise refusal("; ".join(reversed(lines))) from None


def _variables(value: Any, path: str) -> Iterator[str]:
    """A complaint for each text that names a variable of the environment.

    A run is named by the text of its config, so what a variable says would not count.
    """
    if isinstance(value, str) and names_variable(value):
        yield f"{path}: variables are not expanded: write out {_shortened(value)}"
    elif isinstance(value, Mapping | list):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _variables(each, f"{path}.{key}" if path else str(key))


def _shortened(text: str) -> str:
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


def apply(
    values: dict[str, Any], given: str, option: str = "--set", example: str = "samples.count=96"
) -> None:
    """Set one ``a.b=c``, a text that an option gives, in ``values``; makes mappings on the way."""
    key, separator, text = given.partition("=")
    told = f"{option} {_shortened(given)}"
    if not separator or not all(key.split(".")):
        raise refusal(f"{told}: expected a.b=value, as in {option} {example}")
    try:
        _put(values, key, parse_yaml(text))
    except (ConfigError, ValueError) as error:
        raise refusal(f"{told}: {error}") from None


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
    """One problem as ``path: what was expected``, with a hint for a key that does not exist."""
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        message = f"no such key; {_hint(path, details['loc'])}"
    elif details["type"] in _NOT_A_SECTION:
        got = _shortened(repr(details["input"]))
        message = f"expected a section with keys such as {', '.join(_keys(path))}, got {got}"
    elif details["type"] == "string_type" and isinstance(details["input"], int | float):
        message += f", got {details['input']!r}; write it in quotes"
    elif ", got " not in message and not isinstance(details["input"], Mapping | Spec):
        message += f", got {_shortened(repr(details['input']))}"
    return f"{path}: {message}" if path else message


def _key_path(details: ErrorDetails, value: Any) -> str:
    """Where in a value a problem is, without the members of unions that pydantic names."""
    written, kind = [], None
    for part in details["loc"]:
        # The kind of a section comes before its keys, of which one may have the same name.
        if isinstance(value, Mapping) and part == value.get("kind") != kind:
            kind = part
            continue
        keys = {str(key): key for key in value} if isinstance(value, Mapping) else {}
        if isinstance(part, int) or part in keys or details["type"] == "missing":
            written.append(str(part))
            inside = isinstance(value, list | tuple) and part in range(len(value))
            value = value[part] if inside else value[keys[part]] if part in keys else None
            kind = None
    return ".".join(written)


def _inside(path: str) -> list[tuple[Knob, list[str]]]:
    """Knobs of a section, and of those in it, with their paths there.

    The items of a list share those of the list.
    """
    section = [part for part in path.split(".") if part and not part.isdigit()]
    parts = [(knob, knob.path.split(".")) for knob in knobs()]
    depth = len(section)
    return [(knob, path[depth:]) for knob, path in parts if path[:-1][:depth] == section]


def _keys(path: str) -> list[str]:
    """The keys of a section, each once; ``kind`` first where it has variants."""
    inside = _inside(path)
    varies = any(knob.kind and len(key) == 1 for knob, key in inside)
    return list(dict.fromkeys([*(["kind"] if varies else []), *(key[0] for _, key in inside)]))


def _hint(path: str, loc: Sequence[int | str]) -> str:
    """What may have been meant by a key that does not exist; ``loc`` names its section's kind."""
    *parents, name = path.split(".")
    if "table" in loc and name in _TARGETS:
        return f"did you mean {'.'.join([*parents, 'target'])}, the column to predict?"
    beside = [(knob.kind, key[0]) for knob, key in _inside(".".join(parents)) if len(key) == 1]
    if owners := [kind for kind, own in beside if own == name]:
        return f"it belongs to kind {' or '.join(owners)}"
    close = difflib.get_close_matches(name, sorted({own for _, own in beside}), n=1)
    if close:
        return f"did you mean {'.'.join([*parents, *close])}?"
    return "`bend config` lists every key"


@dataclass(frozen=True)
class Knob:
    """One thing to set, by its path, as in ``--set path=value``.

    ``kind`` is the variant it belongs to, where the section has several; else empty.
    """

    path: str
    default: Any
    help: str
    kind: str = ""
    required: bool = False


@cache
def knobs() -> tuple[Knob, ...]:
    """Every knob, in the order of the config."""
    found = {(knob.path, knob.kind): knob for knob in _knobs_of(PipelineConfig, None, "", "")}
    # Another data set has the knobs of the first.
    others = "evaluation.ood.dataset."
    return tuple(knob for knob in found.values() if not knob.path.startswith(others))


def _knobs_of(spec: type[Spec], default: Spec | None, prefix: str, kind: str) -> Iterator[Knob]:
    """The knobs of a class, or of a variant; ``default``: what the default config has there."""
    for name, field in spec.model_fields.items():
        if name == "kind":
            continue
        required = field.is_required()
        value = None if required else field.get_default()
        if default is not None:
            value = getattr(default, name)
        path = f"{prefix}{name}"
        meaning = " ".join((field.description or "").split())
        found = {variant: kind_of(variant) for variant in variants(field.annotation)}
        kinds = list(filter(None, found.values()))
        if len(kinds) > 1:
            meaning = f"{meaning} Its kind: {', '.join(kinds)}."
        yield Knob(path, _plain(value), meaning, kind, required)
        for variant, its in found.items():
            held = value if isinstance(value, variant) else None
            yield from _knobs_of(variant, held, f"{path}.", its or kind)


def kind_of(spec: type[Spec]) -> str | None:
    """The kind of a variant; None where its section has only one."""
    field = spec.model_fields.get("kind")
    return field.default if field else None


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return getattr(value, "kind", None)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


_LEFT_OUT = frozenset({"default", "discriminator", "title"})
"""Defaults are those of a section's kind, where a whole config may have its own."""


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a config file, which says only what differs from the default."""
    schema = _sparse(PipelineConfig.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "bend", **schema}


def _sparse(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_sparse(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):  # its keys are names
            found[key] = {name: _sparse(each) for name, each in value.items()}
        elif key not in _LEFT_OUT:
            # Several kinds may fit: a file need not name the default's.
            found["anyOf" if key == "oneOf" else key] = _sparse(value)
    return found
