"""The config of a store's newest evaluation, put together from the manifests behind it."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from bend_ray.artifacts.manifest import Manifest
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import plan
from bend_ray.config.schema import PipelineConfig, SamplesSection
from bend_ray.errors import StoreError
from bend_ray.spec import unsaid
from bend_ray.storage.masking import masked

LAST = "evaluation"


def newest_config(store: Store) -> PipelineConfig:
    """The config whose evaluation was committed last.

    Every manifest holds the part of the config that its stage added; together with those of its
    inputs, and theirs, that is all of it but who computed where.

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
    config = _config(store, newest)
    if config is None or plan(config, store).evaluation.fingerprint != newest.fingerprint:
        raise StoreError(
            f"expected evaluation {newest.fingerprint} of {masked(store.uri)} to be of this "
            "version of bend_ray, it is of another; run `bend run` again, or name its config"
        )
    return config


def _config(store: Store, newest: Manifest) -> PipelineConfig | None:
    identity: dict[str, Any] = {}
    waiting, seen = [newest], set()
    while waiting:
        manifest = waiting.pop()
        identity |= manifest.identity
        for given in manifest.inputs:
            if given.fingerprint not in seen:
                seen.add(given.fingerprint)
                before = store.manifest(given.stage, given.fingerprint)
                if before is None:
                    return None
                waiting.append(before)
    # An input may have been made when the test part was another.
    identity["dataset"] = newest.given["dataset"]
    identity["samples"] = unsaid(SamplesSection) | identity["samples"]
    identity.pop("test", None)
    try:
        return PipelineConfig.model_validate_json(json.dumps(identity))
    except ValidationError:
        return None
