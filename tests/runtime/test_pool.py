"""Pieces of work on actors that die, hang about or never start, and on nodes that kill them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray
import ray.exceptions

from bend_ray.config.resources import ActorResources
from bend_ray.errors import ClusterError, DataError
from bend_ray.runtime import pool as module
from bend_ray.runtime.nodes import Node, Nodes, expect, versions
from bend_ray.runtime.on_ray import RayRuntime
from bend_ray.runtime.pool import Pool

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

MakePool = Callable[..., Pool]


@pytest.fixture
def pool(tmp_path: Path) -> MakePool:
    # Within a function, so that it travels as what it is: workers do not find the tests' modules.
    class Worker:
        """Squares; dies of piece 2 as often as it is told."""

        def __init__(self, deaths: int) -> None:
            if deaths < 0:
                raise DataError("expected deaths of 0 or more")
            self.deaths = deaths

        def square(self, piece: int) -> int:
            if piece == 2 and len(list(tmp_path.iterdir())) < self.deaths:
                (tmp_path / f"{os.getpid()}").touch()
                os._exit(1)
            if piece < 0:
                raise DataError(f"expected a piece of 0 or more, got {piece}")
            return piece**2

        def title(self, _: int) -> str:
            return Path("/proc/self/cmdline").read_text()

    def make(size: int, deaths: int = 0, nodes: Nodes | None = None) -> Pool:
        resources = ActorResources(cpus=0.1, workers=size)
        return Pool("Worker", partial(Worker, deaths), resources, nodes or Nodes(True))

    return make


def test_a_piece_whose_actor_dies_is_done_by_another(pool: MakePool) -> None:
    with pool(2, deaths=3) as workers:
        done = dict(workers.run("square", range(6)))
    assert done == {piece: piece**2 for piece in range(6)}


def test_actors_that_cannot_start_hold_no_piece_back(pool: MakePool) -> None:
    with pool(2) as workers:
        # As after the loss of a node that is not replaced.
        never = workers._host.options(resources={"nowhere": 1}).remote()
        workers._starting[never.begin.remote(versions(), None)] = never
        assert len(dict(workers.run("square", range(4)))) == 4


def test_a_piece_that_kills_every_actor_ends_the_run(pool: MakePool) -> None:
    with (
        pytest.raises(ClusterError, match=r"died again and again, .*node.*is kept: run again"),
        pool(1, deaths=99) as workers,
    ):
        list(workers.run("square", [2]))


def test_deaths_of_a_piece_that_goes_on_each_time_end_nothing(
    pool: MakePool, tmp_path: Path
) -> None:
    with pool(1, deaths=12) as workers:
        ((_, done),) = workers.run("square", [2], lambda _: len(list(tmp_path.iterdir())))
    assert done == 4


@pytest.mark.parametrize(("deaths", "piece"), [(0, -1), (-1, 1)])
def test_a_workers_refusal_comes_out_as_itself(pool: MakePool, deaths: int, piece: int) -> None:
    with pytest.raises(DataError, match=r"^expected .* of 0 or more"), pool(1, deaths) as workers:
        list(workers.run("square", [piece]))


def test_processes_are_called_what_they_do(pool: MakePool) -> None:
    with pool(1) as workers:
        ((_, title),) = workers.run("title", [0])
    assert "ray::Worker.title" in title


def test_a_pool_has_as_many_actors_as_there_is_room_for_at_the_time(
    pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [1]
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(Nodes, "num_actors", lambda *_: room[0])
    with pool(1) as workers:
        done = workers.run("square", range(5))
        next(done)
        assert len(workers._homes) == 1
        room[0] = 3  # two nodes have joined
        next(done)
        assert len(workers._starting) + len(workers._homes) == 3
        room[0] = 1  # and are gone before their actors had begun
        assert len(dict(done)) == 3
        assert len(workers._starting) == 0


OUT_OF_MEMORY = ray.exceptions.OutOfMemoryError(
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "10.0.0.3, ID: ab) was 15.20GB used / 15.50GB limit (0.98)\nSelected to kill: (Actor(ab): "
    "pid=7, actual memory used=12.48GB, worker ID=cd)"
)


def test_tasks_of_ray_data_are_tried_as_often_as_pieces() -> None:
    assert 1 + int(os.environ["RAY_task_oom_retries"]) == module.MOST_KILLS  # noqa: SIM112 - Ray reads it so


def test_what_does_not_fit_is_tried_three_times_and_told_in_gigabytes(
    pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def get(reference: object) -> object:
        if reference in workers._starting.values() or not workers._homes:
            return real(reference)
        tried.append(reference)
        raise OUT_OF_MEMORY

    real = ray.get
    with pool(1) as workers:
        monkeypatch.setattr(module.ray, "get", get)
        monkeypatch.setattr(workers, "_started", partial(_started, workers, real))
        told = r"held 12.48 GB was killed, as 15.20 of its node's 15.50 GB were used.*more memory"
        with pytest.raises(ClusterError, match=told):
            list(workers.run("square", [1]))
    assert len(tried) == module.MOST_KILLS


def _started(workers: Pool, real: Callable[..., object], reference: object) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module.ray, "get", real)
        Pool._started(workers, reference)


def nodes_of(monkeypatch: pytest.MonkeyPatch, *names: str) -> Nodes:
    """A cluster of such nodes, with room for a process each."""
    there = [Node({"CPU": 1.0}, {}, name, f"10.0.0.{name}") for name in names]
    monkeypatch.setattr("bend_ray.runtime.nodes.nodes", lambda: there)
    return Nodes(True)


def test_a_node_on_which_processes_die_is_left_out_but_not_the_last_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes, asked = nodes_of(monkeypatch, "1", "2"), ActorResources()
    nodes.died("2", "the disk is full", asked)
    nodes.did_well("2")
    nodes.died("2", "the disk is full", asked)
    assert nodes.selector(asked) == {}
    nodes.died("2", "the disk is full", asked)
    assert nodes.selector(asked) == {"ray.io/node-id": "!in(2)"}
    assert "node 10.0.0.2 is left out: 2 processes in a row died there" in caplog.text
    assert nodes.room(asked) == 1
    for _ in range(5):
        nodes.died("1", "the disk is full", asked)
    assert list(nodes.left_out) == ["2"]


def test_who_comes_and_who_goes_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    nodes = nodes_of(monkeypatch, "1", "2")
    monkeypatch.setattr("bend_ray.runtime.nodes.LOOK_SECONDS", 0.0)
    nodes_of(monkeypatch, "1", "3")
    nodes.look()
    nodes.look()
    told = [re.sub(r"^cluster +", "", line.getMessage()) for line in caplog.records]
    assert told == ["node 10.0.0.3 has joined: 1 CPU, 0 GPU", "node 10.0.0.2 is lost, others go on"]


def test_other_versions_are_refused_with_the_node_and_what_it_has() -> None:
    expect(versions())
    told = r"^expected bend_ray .*torch 1.0.* got torch .* on node"
    with pytest.raises(ClusterError, match=told):
        expect({**versions(), "torch": "1.0"})


def test_every_node_is_asked_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(True)
    assert nodes.check() is False
    assert nodes.left_out == {}
    with_gpu = [replace(node, resources={"GPU": 1.0}) for node in nodes.usable()]
    monkeypatch.setattr("bend_ray.runtime.nodes.nodes", lambda: with_gpu)
    nodes.check(gpus=False)
    with pytest.raises(ClusterError, match=r"expected a GPU that works.*resources.gpus to 0"):
        nodes.check(gpus=True)


def test_models_of_a_gigabyte_are_asked_for_and_refused_where_no_node_holds_them(
    pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, asked = RayRuntime(own=True), ActorResources()
    assert runtime.holding("seeds", asked, 0.9e9) is asked
    own = ActorResources(memory=0.1)
    assert runtime.holding("seeds", own, 1e15) is own
    told = r"^seeds.resources: .* never .*1 x \(1 CPU, 0 GPU, 1e\+06 GB\)"
    with pytest.raises(ClusterError, match=told):
        runtime.holding("seeds", asked, 1e15)
    there = [Node({"CPU": 1.0, "memory": 5e9}, {}, "1", "10.0.0.1")]
    monkeypatch.setattr("bend_ray.runtime.nodes.nodes", lambda: there)
    given = runtime.holding("seeds", asked, 2e9)
    assert given.memory == 2.0
    assert runtime.nodes.room(given) == 1


def test_the_only_node_with_other_versions_is_refused_and_not_waited_for(
    pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = r"^expected bend_ray .*torch 1.0.* on every node.* got torch .* on node .*: install"
    with pool(1) as workers:
        workers._follow(1)
        (reference,) = workers._starting
        ray.get(reference)
        monkeypatch.setattr(module, "versions", lambda: {**versions(), "torch": "1.0"})
        with pytest.raises(ClusterError, match=told):
            workers._started(reference)
