"""What there is to set: every knob, with its path, default and meaning; the same as JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from bend_ray.config.schema import PipelineConfig
from bend_ray.spec import Spec, variants


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
