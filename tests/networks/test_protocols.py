from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from bend_ray.networks.fitting import stretch_marks
from bend_ray.networks.protocols import (
    Forks,
    Independent,
    Member,
    Protocol,
    Tails,
    Trajectory,
    held_out_ids,
)
from bend_ray.networks.recipe import Recipe, Stretch

RECIPE = Recipe(epochs=20)
POPULATIONS = [
    (Forks(trunks=3, forks=5), 15),
    (Forks(trunks=1, forks=1), 1),
    (Trajectory(bases=2, checkpoints=4), 8),
    (Tails(trunks=3, tails=4), 12),
    (Independent(models=6), 6),
]


def held_out(protocol: Any, share: float, seed: int = 0) -> frozenset[int]:
    return held_out_ids(protocol.runs(), share, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("protocol", "num_members"), POPULATIONS)
def test_members_are_numbered_from_zero_in_the_order_of_runs(
    protocol: Any, num_members: int
) -> None:
    members = [member for run in protocol.runs() for member in run]
    assert [member.model_id for member in members] == list(range(num_members))
    # What a member's randomness and its checkpoint are found by.
    assert len({(m.trunk, m.fork, m.snapshot) for m in members}) == num_members


@pytest.mark.parametrize(("protocol", "num_members"), POPULATIONS)
def test_a_run_leaves_the_snapshots_of_its_stretch_in_order(
    protocol: Any, num_members: int
) -> None:
    snapshots = protocol.run_stretch(RECIPE).snapshots
    for run in protocol.runs():
        assert [member.snapshot for member in run] == list(range(snapshots))
        assert len({(member.trunk, member.fork) for member in run}) == 1


@pytest.mark.parametrize(("protocol", "num_members"), POPULATIONS)
def test_branches_start_from_a_root_that_is_trained(protocol: Any, num_members: int) -> None:
    trunks = {member.trunk for run in protocol.runs() for member in run}
    if protocol.branches:
        assert trunks == set(range(protocol.num_roots))
        assert protocol.run_stretch(RECIPE).start == protocol.root_stretch(RECIPE).epochs
    else:
        assert trunks == {0}
        assert protocol.run_stretch(RECIPE).start == 0.0


def test_forks_go_on_where_their_trunk_ended_to_the_end_of_the_recipe() -> None:
    protocol = Forks(trunk_fraction=0.25, bootstrap=True)
    assert protocol.root_stretch(RECIPE) == Stretch(start=0.0, epochs=5.0)
    assert protocol.run_stretch(RECIPE) == Stretch(start=5.0, epochs=15.0, bootstrap=True)
    assert not Forks(bootstrap=False).run_stretch(RECIPE).bootstrap


def test_a_trajectory_goes_on_beyond_the_recipe_at_its_own_rate() -> None:
    protocol = Trajectory(checkpoints=7, epochs=2.5, learning_rate=0.01)
    assert protocol.root_stretch(RECIPE) == Stretch(start=0.0, epochs=20.0)
    assert protocol.run_stretch(RECIPE) == Stretch(
        start=20.0, epochs=2.5, constant_rate=0.01, snapshots=7
    )


def test_tails_follow_a_trunk_and_may_end_beyond_the_recipe() -> None:
    protocol = Tails(tails=6, trunk_fraction=0.75, tail_fraction=0.05)
    assert protocol.root_stretch(RECIPE) == Stretch(start=0.0, epochs=15.0)
    cycles = Stretch(start=15.0, epochs=pytest.approx(6.0), cyclic_rate=3e-3, snapshots=6)
    assert protocol.run_stretch(RECIPE) == cycles
    swa = Tails(tails=6, tail_fraction=0.1, burn_in_fraction=0.2, rate="constant")
    stretch = swa.run_stretch(RECIPE)
    assert (stretch.constant_rate, stretch.cyclic_rate) == (3e-3, None)
    assert (stretch.epochs, stretch.burn_in) == pytest.approx((16.0, 4.0))


def test_early_tails_take_the_place_of_a_burn_in() -> None:
    with_burn_in = Tails(tails=4, tail_fraction=0.1, burn_in_fraction=0.2, rate="constant")
    with_early = Tails(tails=4, tail_fraction=0.1, early_tails=2, rate="constant")
    before, after = (tails.run_stretch(RECIPE) for tails in (with_burn_in, with_early))
    assert (after.snapshots, after.early, after.burn_in) == (6, 2, 0.0)
    assert after.epochs == pytest.approx(before.epochs)
    assert stretch_marks(RECIPE, after, 1000)[2:] == stretch_marks(RECIPE, before, 1000)
    assert with_early.runs() == with_burn_in.runs()


def test_a_snapshot_ensemble_is_tails_of_a_fresh_model() -> None:
    protocol = Tails(trunks=1, tails=5, trunk_fraction=0.0, tail_fraction=0.2)
    assert protocol.root_stretch(RECIPE).epochs == 0.0
    assert protocol.run_stretch(RECIPE) == Stretch(0.0, 20.0, cyclic_rate=3e-3, snapshots=5)


def test_independent_models_need_a_root_only_to_be_aligned_to() -> None:
    assert Independent(align=True).num_roots == 1
    assert Independent(align=False).num_roots == 0
    assert Independent(bootstrap=True).run_stretch(RECIPE).bootstrap
    assert not Independent().root_stretch(RECIPE).bootstrap


@given(trunks=st.integers(1, 6), few=st.integers(1, 6), more=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_more_forks_leave_those_there_were(trunks: int, few: int, more: int) -> None:
    def keys(forks: int) -> set[tuple[int, int]]:
        runs = Forks(trunks=trunks, forks=forks).runs()
        return {(run[0].trunk, run[0].fork) for run in runs}

    assert keys(few) <= keys(few + more)
    assert len(keys(few + more)) == trunks * (few + more)


@given(
    trunks=st.integers(1, 5),
    forks=st.integers(1, 20),
    share=st.floats(0.0, 0.99),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_every_trunk_holds_out_the_same_share(
    trunks: int, forks: int, share: float, seed: int
) -> None:
    protocol = Forks(trunks=trunks, forks=forks)
    chosen = held_out(protocol, share, seed)
    by_trunk = Counter(run[0].trunk for run in protocol.runs() if run[0].model_id in chosen)
    assert sum(by_trunk.values()) == len(chosen)
    assert all(by_trunk[trunk] == round(share * forks) for trunk in range(trunks))


def test_held_out_members_are_drawn_by_the_generator_alone() -> None:
    protocol = Forks(trunks=4, forks=20)
    assert held_out(protocol, 0.15, seed=1) == held_out(protocol, 0.15, seed=1)
    assert held_out(protocol, 0.15, seed=1) != held_out(protocol, 0.15, seed=2)
    places = {frozenset(i % 20 for i in held_out(protocol, 0.15) if i // 20 == t) for t in range(4)}
    assert len(places) > 1


def test_members_of_one_run_may_be_held_out_one_by_one() -> None:
    chosen = held_out(Trajectory(bases=2, checkpoints=10), 0.3)
    assert Counter(model_id // 10 for model_id in chosen) == {0: 3, 1: 3}


def test_nothing_is_held_out_of_nothing() -> None:
    assert held_out(Forks(), 0.0) == frozenset()
    assert held_out_ids([], 0.5, torch.Generator()) == frozenset()


@pytest.mark.parametrize(
    ("epochs", "num_images", "expected"),
    [(1, 100, 2), (1, 102, 3), (1, 1, 1), (2.5, 102, 8), (0.0, 100, 0), (0.1, 1000, 2)],
)
def test_a_pass_ends_with_a_small_batch(epochs: float, num_images: int, expected: int) -> None:
    assert Recipe(batch_size=50).num_steps(epochs, num_images) == expected


@pytest.mark.parametrize(("size", "num_images"), [(50, 101), (2, 3), (50, 51)])
def test_no_image_is_left_to_a_batch_of_its_own(size: int, num_images: int) -> None:
    sizes = Recipe(batch_size=size).batch_sizes(num_images)
    assert sum(sizes) == num_images
    assert min(sizes) > 1


@given(
    epochs=st.integers(1, 50),
    fraction=st.floats(0.01, 0.99),
    num_images=st.integers(1, 3000),
)
@settings(max_examples=60, deadline=None)
def test_a_trunk_and_a_fork_take_the_steps_of_one_training(
    epochs: int, fraction: float, num_images: int
) -> None:
    recipe, protocol = Recipe(epochs=epochs), Forks(trunk_fraction=fraction)
    stretches = (protocol.root_stretch(recipe), protocol.run_stretch(recipe))
    steps = sum(recipe.num_steps(stretch.epochs, num_images) for stretch in stretches)
    # Both ends of a cut through the middle of a step are rounded.
    assert abs(steps - recipe.num_steps(epochs, num_images)) <= 1


def test_members_of_the_same_place_are_equal() -> None:
    assert Member(3, 1, 0) == Member(model_id=3, trunk=1, fork=0, snapshot=0)
    assert hash(Member(3, 1, 0)) == hash(Member(3, 1, 0))


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (Forks, {"trunk_fraction": 0.0}),
        (Forks, {"trunk_fraction": 1.0}),
        (Forks, {"forks": 0}),
        (Trajectory, {"learning_rate": 0.0}),
        (Tails, {"trunk_fraction": 1.1}),
        (Tails, {"tail_fraction": 0.0}),
        (Recipe, {"batch_size": 0}),
    ],
)
def test_populations_that_cannot_be_are_refused(spec: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        spec(**values)


def test_a_config_names_its_protocol_by_kind() -> None:
    read = TypeAdapter(Protocol).validate_python({"kind": "independent", "models": 3})
    assert read == Independent(models=3)
