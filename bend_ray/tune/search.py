"""The search: Ray Tune over trials, begun, or gone on with after the driver was killed.

Tune's own state lies in the study's artifact, in a folder or on an object store as that is, and
Tune will have it pickled: search in a store that only you can write.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from bend_ray import pipeline
from bend_ray.artifacts.cost import Cost, Stopwatch
from bend_ray.artifacts.lease import lease
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.config.graph import STAGES, identified
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import ConfigError, StoreError
from bend_ray.process.environment import set_defaults
from bend_ray.process.log import LOGGER, duration
from bend_ray.storage.masking import cause, masked
from bend_ray.storage.uris import canonical
from bend_ray.tune.records import TrialRecord, told
from bend_ray.tune.space import Grid, TuneSection
from bend_ray.tune.study import BEST, STUDY, Study, best_yaml, summary

if TYPE_CHECKING:
    from bend_ray.runtime.on_ray import RayRuntime
    from bend_ray.tune.trial import Assignment

RAY = "ray"
"""The folder of Ray Tune's state, and of its TensorBoard files."""

_ATTEMPTS = 2
"""Of a trial whose process died, and of Ray Tune itself."""
_END_OF_PICKLE = b"."


def tune(
    config: PipelineConfig, section: TuneSection, store_uri: str, *, address: str | None = None
) -> Study:
    """Run a search, go on with one that was cut off, or read one that is over.

    ``address`` is the cluster to join; None for RAY_ADDRESS, else one of our own. BendError is what
    the user can mend; what was finished is kept.
    """
    if masked(canonical(store_uri)) != canonical(store_uri):
        raise ConfigError(
            f"--store {masked(store_uri)}: expected a URI without credentials, as Ray Tune writes "
            "where it stores into the store; give them in the environment"
        )
    study = Study.of(identified(config), section, Store(store_uri))
    artifact = study.artifact
    if artifact.exists():
        LOGGER.info("tune         %s  is made", artifact.fingerprint)
        return study.read()
    refuse_strangers(artifact)
    artifact.store.ensure_writable()
    set_defaults(
        {
            # We give it the one logger we want, and an interrupt is ours.
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "TUNE_DISABLE_SIGINT_HANDLER": "1",
            # Its state, from which a killed search goes on, at most so many seconds old.
            "TUNE_GLOBAL_CHECKPOINT_S": "5",
            # A table of ours says how it goes.
            "RAY_AIR_NEW_OUTPUT": "0",
        }
    )
    runtime = pipeline.connect(address, study.config)
    config = runtime.preflight(study.config, STAGES[:-1])
    with lease(artifact, LOGGER.info) as mine:
        if mine:
            _search(study, runtime, config)
    return study.read()


def refuse_strangers(artifact: Artifact) -> None:
    """Raise StoreError over a state that somebody else has written: to read it runs what it holds.

    On object stores nobody can tell whose a file is.
    """
    if artifact.filesystem.type_name != "local":
        return
    for name in artifact.list_files(f"{RAY}/"):
        owner = os.stat(artifact.child(name)).st_uid
        if owner != os.getuid():
            raise StoreError(
                f"{artifact!r}: expected Ray Tune's state to be written by user {os.getuid()}, "
                f"got {name} of user {owner}; it is pickled, and would run what it holds: "
                f"search in a store of your own, or delete {RAY}/ there to begin anew"
            )


def can_go_on(artifact: Artifact) -> bool:
    """Whether Ray Tune's state is whole, and no trial ended in an error.

    Tune writes over the store file by file: one that a full disk or a SIGKILL cut off reads as a
    search without points. Begun anew, a search finds all stages made that its trials had made.
    """
    tops = [name for name in artifact.list_files(f"{RAY}/") if name.count("/") == 1]
    states = [name for name in tops if name.startswith(f"{RAY}/experiment_state")]
    if not states:
        return False
    try:
        trials = json.loads(artifact.read_bytes(states[-1]))["trial_data"]
        errors = any(json.loads(trial)["status"] == "ERROR" for trial, _ in trials)
    except (ValueError, KeyError, TypeError):
        return False
    pickles = [name for name in tops if name.endswith(".pkl")]
    whole = all(artifact.read_bytes(name).endswith(_END_OF_PICKLE) for name in pickles)
    return bool(trials) and not errors and whole


def _search(study: Study, runtime: RayRuntime, config: PipelineConfig) -> None:
    """Run all trials, with the GPUs of ``config``, and commit the study."""
    with Stopwatch() as watch:
        study = replace(study, trials=_run_trials(study, runtime, config))
    # Each artifact once; trainings that were stopped are left out.
    spent = {each.fingerprint: each.cost for trial in study.trials for each in trial.stages}
    cost = sum(spent.values(), Cost()).model_copy(update={"wall_seconds": watch.cost.wall_seconds})
    study, artifact = replace(study, cost=cost), study.artifact
    trial, bag = study.winner
    best = best_yaml(study.config_of(trial, bag), "\n".join(summary(study)), mask=True)
    artifact.ensure_uncommitted()
    with artifact.open_output(BEST) as stream:
        stream.write(best.encode())
    artifact.write_json(STUDY, {"trials": [each.model_dump() for each in study.trials]})
    artifact.commit(
        files=[STUDY, BEST],
        metrics={
            "trials": len(study.trials),
            "objective": bag.objective,
            "stages": study.stages(),
        },
        cost=cost,
    )
    took = (artifact.fingerprint, duration(cost.wall_seconds), duration(cost.cpu_seconds))
    LOGGER.info("tune         %s  done in %s (CPU %s)", *took)


def _run_trials(study: Study, runtime: RayRuntime, config: PipelineConfig) -> list[TrialRecord]:
    """Run what is left of the trials; returns the records of all, in their order."""
    from bend_ray.tune.trial import Assignment
    from bend_ray.tune.tuner import Processors, room_for, share_of

    _quiet()
    have = Processors.of_cluster(runtime.own)
    room = min(room_for(config, have), study.section.trials)
    job = Assignment(
        config=share_of(config, have, room),
        section=study.section,
        study=study.artifact,
        dataset=runtime.share(config.dataset),
        own_cluster=runtime.own,
    )
    LOGGER.info("tune         %d trials, %d at once", study.section.trials, room)
    records = []
    for number, result in enumerate(_results(job, room)):
        name, error = result.path.rpartition("/")[2], result.error and cause(result.error)
        records.append(
            told(name, result.metrics, True, error).model_copy(update={"number": number})
        )
    return records


def _quiet() -> None:
    """Errors of trials are recorded; Tune and Optuna need not tell them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _results(job: Assignment, room: int) -> list[Any]:
    """What Tune says of all trials; where it gives up itself, it is begun again from its state.

    It does over an actor that Ray's memory monitor kills, though not over one that dies otherwise.
    """
    from bend_ray.runtime.causes import LOST, died_too_often

    deaths = 0
    while True:
        try:
            results = _tuner(job, room).fit()
            return [results[i] for i in range(len(results))]
        except EOFError:
            raise StoreError(
                f"{job.study!r}: expected Ray Tune's files to be whole, got one that was cut off; "
                "make room in the store and run again"
            ) from None
        except RuntimeError as error:
            lost = error.__cause__
            if not isinstance(lost, LOST):
                raise
            deaths += 1
            if deaths == _ATTEMPTS:
                raise died_too_often(lost) from None


def _tuner(job: Assignment, room: int) -> Any:
    from ray import tune as ray_tune
    from ray.tune.logger import TBXLoggerCallback

    from bend_ray.tune.trial import OBJECTIVE, run_trial
    from bend_ray.tune.tuner import TrialTable, grid_of, scheduler_of, searcher_of

    # A trial waits for processes that take CPUs of their own; a bundle without anything is refused.
    nothing = ray_tune.PlacementGroupFactory([{"memory": 1.0}])
    trainable = ray_tune.with_resources(ray_tune.with_parameters(run_trial, job=job), nothing)
    artifact, section = job.study, job.section
    # Again: it may have been written while this run waited for its turn.
    refuse_strangers(artifact)
    if can_go_on(artifact):
        LOGGER.info("tune         goes on where it was cut off")
        return ray_tune.Tuner.restore(
            artifact.child(RAY),
            trainable,
            resume_unfinished=True,
            storage_filesystem=artifact.filesystem,
        )
    artifact.discard(RAY)
    return ray_tune.Tuner(
        trainable,
        param_space=grid_of(section),
        tune_config=ray_tune.TuneConfig(
            metric=OBJECTIVE,
            mode="min",
            num_samples=1 if isinstance(section.searcher, Grid) else section.trials,
            search_alg=searcher_of(section, section.point_of(job.config), room),
            scheduler=scheduler_of(section),
            max_concurrent_trials=room,
            reuse_actors=True,
            trial_dirname_creator=attrgetter("trial_id"),
        ),
        run_config=ray_tune.RunConfig(
            name=RAY,
            storage_path=artifact.path,
            storage_filesystem=artifact.filesystem,
            verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=_ATTEMPTS - 1),
            callbacks=[TrialTable(section), TBXLoggerCallback()],
        ),
    )
