"""How many trials run at once: never more than the cluster can serve, never none."""

import pytest

from bend_ray.config.graph import STAGES
from bend_ray.config.reading import load_config
from bend_ray.config.schema import PipelineConfig
from bend_ray.runtime.nodes import SPARE_CPUS
from bend_ray.tune.tuner import DATA_CPUS, Processors, room_for, share_of

CONFIGS = {
    "default": (),
    "two workers": ("generator.resources.workers=2",),
    "elastic": ("generator.resources.workers=[1, 8]",),
    "wide": ("autoencoder.resources={workers: 2, cpus: 2}", "seeds.resources.cpus=2"),
    "half a GPU": ("generator.resources.gpus=0.5", "seeds.resources.gpus=0.5"),
}


@pytest.mark.parametrize("overrides", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("cpus", "gpus"), [(2, 1), (4, 1), (16, 2), (64, 8)])
def test_all_trials_at_once_fit(
    overrides: tuple[str, ...], own: bool, cpus: int, gpus: int
) -> None:
    config = load_config(None, overrides)
    logical = cpus + SPARE_CPUS if own else cpus
    have = Processors.usable(logical, gpus, own)
    trials = room_for(config, have)
    assert trials >= 1
    shared = share_of(config, have, trials)
    if trials == 1:
        return
    for stage in STAGES:
        resources = getattr(shared, stage).resources
        workers = getattr(resources, "workers", 1)
        most = workers[1] if isinstance(workers, tuple) else workers
        assert trials * most * resources.cpus <= logical - (SPARE_CPUS if own else DATA_CPUS)
        assert trials * most * resources.num_gpus <= gpus


def test_two_cores_of_our_own_run_two_trials_and_a_joined_cluster_of_two_cpus_one() -> None:
    config = PipelineConfig()
    assert room_for(config, Processors.usable(2 + SPARE_CPUS, 0, own=True)) == 2
    assert room_for(config, Processors.usable(2, 0, own=False)) == 1


def test_a_share_changes_no_result() -> None:
    from bend_ray.config.schema import identity

    config = PipelineConfig()
    shared = share_of(config, Processors.usable(64, 0, own=False), 4)
    assert shared.seeds.resources.workers == 15
    assert identity(shared) == identity(config)
