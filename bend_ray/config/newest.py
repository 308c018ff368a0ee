"""The config of a store's newest evaluation, as its manifest has it."""

from __future__ import annotations

from pydantic import ValidationError

from bend_ray.artifacts.manifest import Manifest
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import graph_of
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import StoreError
from bend_ray.storage.masking import masked

LAST = "evaluation"


def newest_config(store: Store) -> PipelineConfig:
    """The config whose evaluation was committed last; its data set need not be at hand.

    Raises:
        StoreError: there is no evaluation, or another version of bend_ray made the newest.
        CorruptArtifact: a manifest does not read.
    """
    evaluations = store.manifests(LAST)
    if not evaluations:
        raise StoreError(
            f"expected an evaluation in {masked(store.uri)}, got none; make one with "
            "`bend run`, or name another store with --store"
        )
    newest = evaluations[-1]
    config = _config(newest)
    if config is None or graph_of(config, store).evaluation.fingerprint != newest.fingerprint:
        raise StoreError(
            f"expected evaluation {newest.fingerprint} of {masked(store.uri)} to be of this "
            "version of bend_ray, it is of another; run `bend run` again, or name its config"
        )
    return config


def _config(evaluation: Manifest) -> PipelineConfig | None:
    try:
        return PipelineConfig.model_validate(evaluation.given.get("config"))
    except ValidationError:
        return None
