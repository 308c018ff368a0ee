from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bend_ray.artifacts import population as tables
from bend_ray.artifacts.population import (
    ROW_TYPES,
    Population,
    TableFormat,
    copy_theta,
    table_from_population,
)


def random_population(num_models: int, num_parameters: int) -> Population:
    rng = np.random.default_rng(num_models)
    values: dict[str, Any] = {
        name: rng.integers(0, 2, num_models) for name in ROW_TYPES if name != "origin"
    }
    theta_KP = rng.standard_normal((num_models, num_parameters), dtype=np.float32)
    return Population(**values, origin="generated", theta_KP=theta_KP, layout_digest="d1")


def table_of(population: Population) -> pa.Table:
    return table_from_population(population, TableFormat.of(population))


def test_a_vector_beyond_256_kib_is_cut() -> None:
    wide = random_population(0, 2 * 2**16 + 1)
    assert list(TableFormat.of(wide).parts()) == ["theta_000", "theta_001", "theta_002"]
    assert list(TableFormat.of(wide.select(slice(0))).parts(range(2**16))) == ["theta_000"]


def test_parts_cover_the_parameters_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_PART_FLOATS", 4)
    parts = TableFormat.of(random_population(2, 10)).parts()
    assert parts == {
        "theta_000": range(4),
        "theta_001": range(4, 8),
        "theta_002": range(8, 10),
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 11), st.integers(0, 6), st.integers(0, 6), st.booleans())
def test_sliced_and_chunked_tables_give_their_own_rows(
    num_models: int, num_parameters: int, start: int, length: int, chunked: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "MAX_PART_FLOATS", 4)
        pop = random_population(num_models, num_parameters)
        table, parts = table_of(pop), TableFormat.of(pop).parts()
    if chunked:
        table = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    table, expected_KP = table.slice(start, length), pop.theta_KP[start : start + length]
    theta_KP, rows = np.empty(expected_KP.shape, np.float32), np.arange(len(expected_KP))
    copy_theta(table, parts, range(num_parameters), theta_KP, rows, rows)
    assert np.array_equal(theta_KP, expected_KP)


def test_a_theta_of_one_part_is_written_without_a_copy() -> None:
    pop = random_population(3, 5)
    written = table_of(pop).column("theta_000").chunk(0).buffers()[1]
    assert np.shares_memory(np.frombuffer(written, np.float32), pop.theta_KP)


def test_a_format_comes_back_from_its_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_PART_FLOATS", 4)
    table_format = TableFormat.of(random_population(2, 10))
    # Files written with another limit stay readable.
    monkeypatch.undo()
    assert TableFormat.from_schema(table_format.arrow_schema()) == table_format


def test_a_schema_that_is_no_populations_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_PART_FLOATS", 4)
    schema = TableFormat.of(random_population(2, 10)).arrow_schema()
    with pytest.raises(ValueError, match="expected the metadata of a population"):
        TableFormat.from_schema(schema.remove_metadata())
    with pytest.raises(ValueError, match="expected the columns"):
        TableFormat.from_schema(schema.remove(0))
    told = schema.metadata[b"bend_ray.population"]
    for other, problem in (
        (told.replace(b"[4,4,2]", b"[4,4,3]"), "expected the columns"),
        (told.replace(b"[4,4,2]", b"[1e30]"), "expected the metadata of a population"),
        (told[:-3], "expected the metadata of a population"),
    ):
        assert other != told
        with pytest.raises(ValueError, match=problem):
            TableFormat.from_schema(schema.with_metadata({b"bend_ray.population": other}))
