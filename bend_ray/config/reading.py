"""Reading a config: YAML by hand, ``--set a.b=c`` on top, every problem in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bend_ray.config.knobs import knobs
from bend_ray.config.schema import PipelineConfig
from bend_ray.config.yaml_text import UNREADABLE, parsed, read_yaml, reason, refusal
from bend_ray.spec import Spec, variants
from bend_ray.storage.uris import names_variable

QUOTED = 200
"""Characters of a wrong value that a message repeats."""

_NOT_A_SECTION = frozenset({"model_type", "model_attributes_type", "dict_type"})
_PLAIN_TYPES = frozenset({"int", "float", "str", "none", "constrained-int"})


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> PipelineConfig:
    """The config of a YAML (or JSON) file and ``a.b=c`` overrides.

    Args:
        path: the file; None for the default config.
        overrides: each ``key.path=value``, the value as YAML.

    Raises:
        ConfigError: one line with every problem found.
    """
    values = read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply(values, override)
    return _validated(PipelineConfig().model_dump(mode="json"), values)


def with_knobs(config: PipelineConfig, point: Mapping[str, Any]) -> PipelineConfig:
    """A config with some knobs set otherwise.

    Args:
        config: the others are as in this one.
        point: value by ``key.path``; another ``kind`` of a section starts afresh.

    Raises:
        ConfigError: one line with every problem found.

    >>> with_knobs(PipelineConfig(), {"samples.count": 96}).samples.count
    96
    """
    values: dict[str, Any] = {}
    for key, value in point.items():
        *parents, name = key.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return _validated(config.model_dump(mode="json"), values)


def _validated(base: Mapping[str, Any], values: Mapping[str, Any]) -> PipelineConfig:
    """``values`` on top of a config's."""
    if named := list(_variables(values, "")):
        raise refusal("; ".join(named))
    try:
        return PipelineConfig.model_validate(_merged(base, values))
    except ValidationError as error:
        # A union of plain types is complained about once a member: the first says it, and what is
        # wrong inside of a section says more than that it is no word.
        problems = {_key_path(details["loc"]): details for details in reversed(error.errors())}
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


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one ``a.b=c`` in ``values``, making mappings on the way."""
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        message = "expected a.b=value, as in --set samples.count=96"
        raise refusal(f"--set {_shortened(override)}: {message}")
    try:
        value = parsed(text)
    except UNREADABLE as error:
        message = f"expected a YAML value after =, got {reason(error) or _shortened(text)}"
        raise refusal(f"--set {_shortened(override)}: {message}") from None
    *parents, name = key.split(".")
    place = values
    for parent in parents:
        below = place.setdefault(parent, {})
        if not isinstance(below, dict):
            message = f"expected {parent} to be a section, got {_shortened(repr(below))}"
            raise refusal(f"--set {_shortened(override)}: {message}")
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
    """One problem as ``path: what was expected``, with a hint for a key that does not exist."""
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        message = f"no such key; {_hint(path)}"
    elif details["type"] in _NOT_A_SECTION:
        got = _shortened(repr(details["input"]))
        message = f"expected a section with keys such as {', '.join(_keys(path))}, got {got}"
    elif details["type"] == "string_type" and isinstance(details["input"], int | float):
        message += f", got {details['input']!r}; write it in quotes"
    elif ", got " not in message and not isinstance(details["input"], Mapping | Spec):
        message += f", got {_shortened(repr(details['input']))}"
    return f"{path}: {message}" if path else message


def _key_path(location: tuple[int | str, ...]) -> str:
    """A pydantic location as the user wrote it, without the members of unions that it names.

    >>> _key_path(("seeds", "protocol", "forks", "forks"))
    'seeds.protocol.forks'
    >>> _key_path(("autoencoder", "resources", "workers", "constrained-int"))
    'autoencoder.resources.workers'
    >>> _key_path(("samples", "finish", "Finish", "guidance"))
    'samples.finish.guidance'
    """
    written: list[str] = []
    specs: tuple[type[Spec], ...] = (PipelineConfig,)
    for part in location:
        several = len(specs) > 1
        tried = tuple(s for s in specs if part == (_kind(s) if several else s.__name__))
        if tried:
            specs = tried
        elif not _is_plain_type(part, specs):
            written.append(str(part))
            specs = specs if isinstance(part, int) else _specs_at(specs, part)
    return ".".join(written)


def _specs_at(specs: tuple[type[Spec], ...], key: str) -> tuple[type[Spec], ...]:
    """What the key of a section may hold: none for a leaf or a key that does not exist."""
    field = specs[0].model_fields.get(key) if specs else None
    return variants(field.annotation) if field else ()


def _kind(spec: type[Spec]) -> Any:
    return spec.model_fields["kind"].default


def _is_plain_type(part: int | str, specs: tuple[type[Spec], ...]) -> bool:
    """Whether a part names a type of a union; a section's own key may have such a name."""
    return isinstance(part, str) and ("[" in part or (not specs and part in _PLAIN_TYPES))


def _keys(path: str) -> list[str]:
    """The keys of a section, each once; ``kind`` first where it has variants."""
    section = _section(path.split("."))
    depth = len(section)
    inside = [knob for knob in knobs() if knob.path.split(".")[:-1][:depth] == section]
    own = [knob.path.split(".")[depth:] for knob in inside]
    varies = any(knob.kind and len(key) == 1 for knob, key in zip(inside, own, strict=True))
    return list(dict.fromkeys([*(["kind"] if varies else []), *(key[0] for key in own)]))


def _section(parts: Sequence[str]) -> list[str]:
    """Where knobs are listed: the items of a list share those of the list."""
    return [part for part in parts if not part.isdigit()]


def _hint(path: str) -> str:
    """What may have been meant by a key that does not exist."""
    *parents, name = path.split(".")
    section = _section(parents)
    beside = [knob for knob in knobs() if knob.path.split(".")[:-1] == section]
    names = [knob.path.split(".")[-1] for knob in beside]
    if name in names:
        owners = [knob.kind for knob, own in zip(beside, names, strict=True) if own == name]
        return f"it belongs to kind {' or '.join(owners)}"
    close = difflib.get_close_matches(name, sorted(set(names)), n=1)
    if close:
        return f"did you mean {'.'.join([*parents, *close])}?"
    return "`bend config` lists every key"
