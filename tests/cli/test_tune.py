"""``bend tune`` whose driver is killed, and on a cluster that has two CPUs in all."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bend_process import Bend, wait_until

from bend_ray.tune.records import TrialRecord, told

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]

SPACE = """
trials: 8
ensemble_counts: [1, 4, 8]
knobs:
  autoencoder.model.latent_size: [4, 8]
  samples.temperature: {low: 0.8, high: 1.1, step: 0.1}
"""


@pytest.fixture
def space(bend: Bend) -> Path:
    path = bend.folder / "space.yaml"
    path.write_text(SPACE)
    return path


def test_a_killed_search_goes_on_where_it_was(bend: Bend, space: Path) -> None:
    arguments = ["tune", str(bend.config), "--space", str(space), "--store", str(bend.store)]

    def kept() -> list[TrialRecord]:
        """Done, and known to be so in a state that Tune has written."""
        states = sorted(bend.store.glob("tune/*/ray/experiment_state*"))
        try:
            trials = json.loads(states[-1].read_text())["trial_data"] if states else []
        except ValueError:  # it is being written
            return []
        results = (json.loads(more).get("last_result") for _, more in trials)
        records = [told("", result, False, None) for result in results]
        return [record for record in records if record.status == "done"]

    process = bend.start(*arguments)
    before = wait_until(lambda: kept() if len(kept()) >= 2 else None, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)

    ended = bend(*arguments)
    assert ended.returncode == 0, ended.stderr
    assert "goes on where it was cut off" in ended.stderr
    (study,) = bend.store.glob("tune/*/study.json")
    trials = {trial["name"]: trial for trial in json.loads(study.read_text())["trials"]}
    assert len(trials) == 8
    for record in before:
        # Only its number, known when all have ended, was added.
        assert (
            TrialRecord.model_validate(trials[record.name]).model_copy(update={"number": -1})
            == record
        )
    assert (bend.folder / "best.yaml").exists()
    seeds = list(bend.store.glob("seeds/*"))
    assert len(seeds) == 1

    again = bend(*arguments, timeout=60)
    assert again.stdout == ended.stdout
    assert "ray " not in again.stderr


def test_two_cpus_are_enough_for_trials_that_need_workers(bend: Bend, space: Path) -> None:
    # A cluster that was joined: trainings take Ray Train's own workers, which ask for CPUs.
    script = f"""
import ray
from pathlib import Path
from bend_ray.process.environment import prepare_environment
prepare_environment(None)
ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
from bend_ray.config.reading import load_config
from bend_ray.tune.search import tune
from bend_ray.tune.space import load_section
config = load_config(Path({str(bend.config)!r}))
study = tune(config, load_section(Path({str(space)!r}), config, 3), {str(bend.store)!r})
assert len(study.trials) == 3, study.trials
assert all(trial.status in ("done", "stopped") for trial in study.trials), study.trials
free = ray.available_resources()["CPU"]
assert free == 2, free
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=600,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
    )
    assert done.returncode == 0, done.stderr
