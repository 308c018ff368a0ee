"""The search: Ray Tune over trials, begun, or gone on with after the driver was killed.

Tune's own state lies in the study's artifact, in a folder or on an object store as that is, and
Tune will have it pickled: search in a store that only you can write.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bend_ray import pipeline
from bend_ray.artifacts.cost import Cost, Stopwatch
from bend_ray.artifacts.lease import lease
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.config.graph import STAGES, graph_of, identified
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import ConfigError, StoreError
from bend_ray.process.environment import set_defaults
from bend_ray.process.log import LOGGER, duration
from bend_ray.storage.masking import cause, masked
from bend_ray.storage.uris import canonical
from bend_ray.tune.best import BEST, best_yaml
from bend_ray.tune.records import TRIALS, TrialRecord, read_record, write_record
from bend_ray.tune.space import Grid, TuneSection, trial_config
from bend_ray.tune.state import RAY, can_go_on, refuse_strangers
from bend_ray.tune.study import STUDY, Study, read_study, study_artifact, summary

if TYPE_CHECKING:
    from bend_ray.runtime.on_ray import RayRuntime

_ATTEMPTS = 2
"""Of a trial whose process died, and of Ray Tune itself."""


def tune(
    config: PipelineConfig, section: TuneSection, store_uri: str, *, address: str | None = None
) -> Study:
    """Run a search, go on with one that was cut off, or read one that is over.

    Args:
        config: whose knobs are set.
        section: of the search.
        store_uri: where artifacts live.
        address: the cluster to join; None for RAY_ADDRESS, else one of our own.

    Raises:
        BendError: what the user can mend; what was finished is kept.
    """
    if masked(canonical(store_uri)) != canonical(store_uri):
        raise ConfigError(
            f"--store {masked(store_uri)}: expected a URI without credentials, as Ray Tune writes "
            "where it stores into the store; give them in the environment"
        )
    store = Store(store_uri)
    config = identified(config)
    artifact = study_artifact(config, section, store)
    if artifact.exists():
        LOGGER.info("tune         %s  is made", artifact.fingerprint)
        return read_study(config, section, artifact)
    refuse_strangers(artifact)
    store.ensure_writable()
    _prepare_tune()
    runtime = pipeline.connect(address, config, STAGES[:-1])
    with lease(artifact, LOGGER.info) as mine:
        if mine:
            _search(config, section, store, artifact, runtime)
    return read_study(config, section, artifact)


def _prepare_tune() -> None:
    """Set what Ray Tune reads in its environment; what the user has set stays."""
    defaults = {
        # We give it the one logger we want, and an interrupt is ours.
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        # Its state, from which a killed search goes on, at most so many seconds old.
        "TUNE_GLOBAL_CHECKPOINT_S": "5",
        # A table of ours says how it goes.
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    set_defaults(defaults)


def _search(
    config: PipelineConfig,
    section: TuneSection,
    store: Store,
    artifact: Artifact,
    runtime: RayRuntime,
) -> None:
    """Run all trials and commit the study."""
    with Stopwatch() as watch:
        trials = _ended(artifact, _run_trials(config, section, store, artifact, runtime))
    costs = _costs(config, section, store, trials)
    cost = Cost(
        cpu_seconds=costs.cpu_seconds,
        gpu_seconds=costs.gpu_seconds,
        wall_seconds=watch.cost.wall_seconds,
    )
    study = Study(config, section, trials, cost, artifact)
    trial, bag = study.winner
    best = best_yaml(study.config_of(trial, bag), "\n".join(summary(study)), mask=True)
    artifact.ensure_uncommitted()
    with artifact.open_output(BEST) as stream:
        stream.write(best.encode())
    artifact.write_json(STUDY, {"trials": [each.model_dump() for each in trials]})
    records = [entry.name for entry in artifact.list_files(f"{TRIALS}/")]
    artifact.commit(
        files=[STUDY, BEST, *records],
        metrics={"trials": len(trials), "objective": bag.objective, "stages": study.stages()},
        cost=cost,
    )
    LOGGER.info(
        "tune         %s  done in %s (CPU %s)",
        artifact.fingerprint,
        duration(cost.wall_seconds),
        duration(cost.cpu_seconds),
    )


def _run_trials(
    config: PipelineConfig,
    section: TuneSection,
    store: Store,
    artifact: Artifact,
    runtime: RayRuntime,
) -> dict[str, str | None]:
    """Run what is left of the trials; returns all of them, and why Tune thinks they failed."""
    from bend_ray.tune.shares import Processors, room_for, share_of
    from bend_ray.tune.trial import Assignment

    _quiet()
    have, own = Processors.of_cluster(), runtime.own
    room = min(room_for(config, have, own), section.trials)
    job = Assignment(
        config=share_of(config, have, own, room),
        section=section,
        store_uri=store.uri,
        study=artifact,
        dataset=runtime.share(config.dataset),
        own_cluster=own,
    )
    LOGGER.info("tune         %d trials, %d at once", section.trials, room)
    ended = _results(config, section, artifact, job, room)
    return {
        result.path.rpartition("/")[2]: cause(result.error) if result.error else None
        for result in ended
    }


def _results(
    config: PipelineConfig, section: TuneSection, artifact: Artifact, job: Any, room: int
) -> list[Any]:
    """What Tune says of all trials; where it gives up itself, it is begun again from its state.

    It does over an actor that Ray's memory monitor kills, though not over one that dies otherwise.

    Raises:
        ClusterError: it gave up more often than it may.
        StoreError: the store failed.
    """
    from bend_ray.runtime.causes import LOST, died_too_often

    deaths = 0
    while True:
        try:
            results = _tuner(config, section, artifact, job, room).fit()
            return [results[i] for i in range(len(results))]
        except EOFError:
            raise StoreError(
                f"{artifact!r}: expected Ray Tune's files to be whole, got one that was cut off; "
                "make room in the store and run again"
            ) from None
        except RuntimeError as error:
            lost = error.__cause__
            if not isinstance(lost, LOST):
                raise
            deaths += 1
            if deaths == _ATTEMPTS:
                raise died_too_often(lost) from None


def _quiet() -> None:
    """Errors of trials are recorded; Tune and Optuna need not tell them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _tuner(
    config: PipelineConfig, section: TuneSection, artifact: Artifact, job: Any, room: int
) -> Any:
    """Ray Tune's Tuner, new or restored."""
    from ray import tune as ray_tune
    from ray.tune.logger import TBXLoggerCallback

    from bend_ray.tune.live import TrialTable
    from bend_ray.tune.searchers import domain_of, scheduler_of, searcher_of
    from bend_ray.tune.trial import OBJECTIVE, run_trial

    # A trial waits for processes that take CPUs of their own; a bundle without anything is refused.
    nothing = ray_tune.PlacementGroupFactory([{"memory": 1.0}])
    trainable = ray_tune.with_resources(ray_tune.with_parameters(run_trial, job=job), nothing)
    where = artifact.child(RAY)
    # Again: it may have been written while this run waited for its turn.
    refuse_strangers(artifact)
    if can_go_on(artifact):
        LOGGER.info("tune         goes on where it was cut off")
        return ray_tune.Tuner.restore(
            where, trainable, resume_unfinished=True, storage_filesystem=artifact.filesystem
        )
    artifact.discard(RAY)
    artifact.discard(TRIALS)
    return ray_tune.Tuner(
        trainable,
        param_space={path: domain_of(section, each) for path, each in section.knobs.items()},
        tune_config=ray_tune.TuneConfig(
            metric=OBJECTIVE,
            mode="min",
            num_samples=1 if isinstance(section.searcher, Grid) else section.trials,
            search_alg=searcher_of(section, section.point_of(config), room),
            scheduler=scheduler_of(section),
            max_concurrent_trials=room,
            reuse_actors=True,
            trial_dirname_creator=_trial_id,
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


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _ended(artifact: Artifact, ended: dict[str, str | None]) -> list[TrialRecord]:
    """All records, when no trial runs any more.

    Args:
        artifact: of the study.
        ended: trials by name in the order in which they began, and the errors of those that failed.
    """
    records = []
    for number, (name, error) in enumerate(ended.items()):
        record = read_record(artifact, name) or TrialRecord(name=name, point={})
        status = record.status
        if status == "running":
            # A process that died could not say why, nor one that was stopped that it was.
            status = "failed" if error else "stopped"
        record = record.with_(number=number, status=status, error=record.error or error)
        write_record(artifact, record)
        records.append(record)
    return records


def _costs(
    config: PipelineConfig, section: TuneSection, store: Store, trials: Sequence[TrialRecord]
) -> Cost:
    """Of the artifacts that trials needed, each once; trainings that were stopped are left out."""
    made = {}
    for trial in trials:
        if not trial.stages:
            continue
        found = graph_of(trial_config(config, section, trial.point), store)
        for stage in trial.stages:
            made[stage.fingerprint] = found[stage.stage]
    return sum((artifact.manifest().cost for artifact in made.values()), Cost())
