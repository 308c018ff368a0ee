"""Pieces of work on actors that die, hang about or never start."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from bend_ray.errors import ClusterError, DataError
from bend_ray.runtime.pool import Pool

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def pool(tmp_path: Path) -> Callable[..., Pool]:
    # Within a function, so that it travels as what it is: workers do not find the tests' modules.
    class Worker:
        """Squares; dies of piece 2 as often as it is told."""

        def __init__(self, deaths: int) -> None:
            self.deaths = deaths

        def square(self, piece: int) -> int:
            if piece == 2 and len(list(tmp_path.iterdir())) < self.deaths:
                (tmp_path / f"{os.getpid()}").touch()
                os._exit(1)
            if piece < 0:
                raise DataError(f"expected a piece of 0 or more, got {piece}")
            return piece**2

    def make(size: int, deaths: int = 0, **options: object) -> Pool:
        worker = ray.remote(num_cpus=0.1, **options)(Worker)
        return Pool(lambda: worker.remote(deaths), size, lambda: "nothing")

    return make


def test_a_piece_whose_actor_dies_is_done_by_another(pool: Callable[..., Pool]) -> None:
    with pool(2, deaths=3) as workers:
        done = dict(workers.run("square", range(6)))
    assert done == {piece: piece**2 for piece in range(6)}


def test_actors_that_cannot_start_hold_no_piece_back(pool: Callable[..., Pool]) -> None:
    with pool(1) as runs, pool(1, resources={"nowhere": 1}) as never:
        runs._starting |= never._starting  # as after the loss of a node that is not replaced
        never._starting = {}
        assert len(dict(runs.run("square", range(4)))) == 4


def test_a_piece_that_kills_every_actor_ends_the_run(pool: Callable[..., Pool]) -> None:
    with (
        pytest.raises(ClusterError, match=r"died again and again.*is kept: run again"),
        pool(1, deaths=99) as workers,
    ):
        list(workers.run("square", [2]))


def test_a_workers_refusal_comes_out_as_itself(pool: Callable[..., Pool]) -> None:
    with pytest.raises(DataError, match=r"^expected a piece of 0 or more, got -1$"), pool(1) as w:
        list(w.run("square", [-1]))
