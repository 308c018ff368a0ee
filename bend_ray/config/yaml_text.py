"""YAML as it is meant: read by the rules of YAML 1.2 and JSON, written so that 1.1 reads the same.

PyYAML follows YAML 1.1, which takes ``no`` for false, ``1e-3`` for text, ``1:30`` for 90 and
``010`` for 8. Here the first is text, which a switch takes for false; the second is a number; the
third is text; the last is refused.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bend_ray.errors import ConfigError
from bend_ray.storage.masking import masked

MAX_BYTES = 2**20
"""Of a config file; the largest of ours has 2 kB."""
LARGEST = 2**63
"""Integers are below; larger ones would be printed by the page, or not at all."""

_SCALARS = {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
"""What a plain scalar is, by YAML 1.2's core schema: the first that fits, else text."""
_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset(f"{_TAG}{name}" for name in (*_SCALARS, "str", "seq", "map"))


class _Loader(yaml.SafeLoader):
    """JSON's values; each key once, and no aliases, of which a few lines stand for gigabytes."""

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012 - as yaml declares it
    yaml_constructors: ClassVar[Any] = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag in _TAGS
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            alias: Any = self.get_event()  # type: ignore[no-untyped-call]
            raise ValueError(f"an alias, *{alias.anchor}; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for key, _ in node.value:
            name, line = self.construct_object(key, deep=True), key.start_mark.line + 1
            if not isinstance(name, Hashable):
                continue
            if name in lines:
                first = f"line {lines[name]} and in " if lines[name] != line else ""
                raise ValueError(f"the key {name} twice, in {first}line {line}; keep one")
            lines[name] = line
        return super().construct_mapping(node, deep)

    def construct_yaml_str(self, node: Any) -> str:
        # JSON writes what is beyond U+FFFF as two escapes.
        text: str = self.construct_scalar(node)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        digits = text.lstrip("-+")
        if digits.startswith("0") and digits.isdigit() and len(digits) > 1:
            raise ValueError(
                f"{text}, which is octal to some readers and decimal to others; write "
                f"{int(text)}, or '{text}' for text"
            )
        value = int(text, 0)
        if not -LARGEST < value < LARGEST:
            raise ValueError(f"an integer of {value.bit_length()} bits; integers have 63 at most")
        return value

    def construct_yaml_float(self, node: Any) -> float:
        return float(re.sub(r"\.(?=inf|nan)", "", self.construct_scalar(node).lower()))


class _Dumper(yaml.SafeDumper):
    """Quotes each text that YAML 1.1, YAML 1.2 or JSON would take for something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if "\n" in data else None  # keeps it on a line
        return self.represent_scalar(f"{_TAG}str", data, style)


for _name, _pattern in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), None)
_Dumper.add_representer(str, _Dumper.represent_str)
for _name in ("str", "int", "float"):
    _Loader.add_constructor(f"{_TAG}{_name}", getattr(_Loader, f"construct_yaml_{_name}"))


def refusal(message: str) -> ConfigError:
    """The error, in one line and without credentials, whatever it quotes."""
    return ConfigError(masked(" ".join(message.split())))


def parse_yaml(given: str | bytes) -> Any:
    """The value of a YAML text, in UTF-8.

    ConfigError where it is none, or has a key twice, an alias, a number with a leading zero or a
    huge one in it, or is nested too deeply.
    """
    try:
        text = given if isinstance(given, str) else given.decode()
        if found := re.search("[\x85\u2028\u2029]", text):
            raise ValueError(
                f"the character {found[0]!a}, a line's end to some readers; write it as an escape, "
                "in double quotes"
            )
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise refusal(f"expected YAML, got: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML (or JSON) file holds.

    ConfigError where it cannot be read, is too large, or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise refusal(f"expected a config file of at most {MAX_BYTES:,} bytes")
        values = parse_yaml(content)
    except OSError as error:
        raise refusal(f"{path}: expected a config file, got: {error.strerror}") from None
    except ConfigError as error:
        raise refusal(f"{path}: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise refusal(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    return values


def block(value: Any) -> str:
    """A JSON value as YAML, a line a key, in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def flow(value: Any) -> str:
    """A JSON value as YAML on one line."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
