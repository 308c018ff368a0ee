"""YAML as it is meant: read as JSON is, and written so that YAML 1.1 reads the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from fuzzing import fuzzed
from hypothesis import given
from hypothesis import strategies as st

from bend_ray.config.yaml_text import block, flow, parse_yaml
from bend_ray.errors import ConfigError

AWKWARD = [
    *("010", "-007", "08", "0o10", "0b1", "0x1f", "1_000", "1:30", "1:30.5", "1e3", "1E-3", "1.e4"),
    *("yes", "No", "on", "OFF", "y", "n", "true", "True", "null", "~", "", "=", "<<", ".5", "5."),
    *(
        ".inf",
        "-.Inf",
        ".nan",
        "2001-01-31",
        "2001-01-31 12:00:00",
        "-",
        "- a",
        "# a",
        "a: b",
        "*a",
    ),
    *(
        "\U0001f600",
        "\u00fc",
        "a\u0085b",
        "a\u2028b",
        "\ufeff",
        "\t",
        "a\nb",
        " a ",
        "'",
        '"',
        "\\",
    ),
]
texts = st.sampled_from(AWKWARD) | st.text(st.characters(codec="utf-8"), max_size=6)
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 2**63, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3),
    max_leaves=6,
)


def same(value: Any, other: Any) -> bool:
    """Equal, and of the same types at any depth."""
    return repr(value) == repr(other)


@given(value=values, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 3))
@fuzzed(100)
def test_any_json_is_read_as_json_or_refused(
    value: Any, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    try:
        read = parse_yaml(text)
    except ConfigError:
        assert not ascii_only  # a character that YAML forbids, or takes for the end of a line
        return
    assert same(read, value)


@given(value=values)
@fuzzed(100)
def test_whatever_is_written_is_read_back_by_us_and_by_yaml_1_1(value: Any) -> None:
    for text in (block(value), flow(value)):
        assert same(parse_yaml(text), value)
        assert same(yaml.safe_load(text), value)
    assert "\n" not in flow(value)


plain = st.sampled_from(AWKWARD) | st.text("0123456789._-+:eExobyn", min_size=1, max_size=6)


@given(text=plain)
@fuzzed(300)
def test_any_scalar_that_two_readers_take_for_numbers_is_the_same_number_or_refused(
    text: str,
) -> None:
    try:
        ours, theirs = parse_yaml(text), yaml.safe_load(text)
    except (ConfigError, yaml.YAMLError, ValueError):
        return
    numbers = [each for each in (ours, theirs) if type(each) in (int, float)]
    assert len(numbers) < 2 or repr(numbers[0]) == repr(numbers[1])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e3", 1000.0), ("1E-3", 0.001), ("-.5e+1", -5.0), ("5.", 5.0), ("0x1f", 31), ("-0", 0)),
        *(("0o17", 15), ("1_000", "1_000"), ("0b1", "0b1"), ("1:30", "1:30"), ("no", "no")),
        *(("2001-01-31", "2001-01-31"), ("+12", 12), ("True", True), ("'010'", "010")),
        *(("!!str 010", "010"), ("!!float 3", 3.0), ("-.Inf", -float("inf")), ("007.5", 7.5)),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert same(parse_yaml(text), value)


@pytest.mark.parametrize("text", ["010", "-07", "08", "!!int 010", "[1, 010]", "{010: 1}"])
def test_a_leading_zero_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"got: -?0\d+, which is octal .*; write -?\d+, or '-?0\d+'"
    ):
        parse_yaml(text)


@given(
    depth=st.integers(0, 4),
    between=st.integers(0, 3),
    before=st.integers(0, 2),
    key=st.sampled_from(["a", "true", "1", "null", "'x y'"]),
    inside_list=st.booleans(),
)
@fuzzed(60)
def test_a_key_twice_is_refused_at_any_depth_with_both_lines(
    depth: int, between: int, before: int, key: str, inside_list: bool
) -> None:
    lines = [f"{'  ' * level}level{level}:" for level in range(depth)]
    inner = [f"before{n}: {n}" for n in range(before)]
    inner += [f"{key}: first", *(f"between{n}: {{a: {n}}}" for n in range(between)), f"{key}: []"]
    indent = "  " * depth
    if inside_list:
        inner = [f"{'- ' if n == 0 else '  '}{line}" for n, line in enumerate(inner)]
    lines += [f"{indent}{line}" for line in inner]
    first = depth + before + 1
    with pytest.raises(ConfigError) as raised:
        parse_yaml("\n".join(lines))
    expected = f"twice, in line {first} and in line {first + between + 1}; keep one"
    assert str(raised.value).endswith(expected)
