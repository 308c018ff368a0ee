"""The config of a store's newest evaluation, put together from the manifests behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow.fs
from pydantic import ValidationError

from bend_ray.artifacts.directory import MANIFEST_NAME
from bend_ray.artifacts.manifest import Manifest, parse_manifest
from bend_ray.artifacts.store import Store
from bend_ray.config import PipelineConfig
from bend_ray.errors import StoreError
from bend_ray.filesystems import masked, read_bytes, store_errors
from bend_ray.plan import plan

LAST = "evaluation"


def newest_config(store: Store) -> PipelineConfig:
    """The config whose evaluation was committed last.

    Every manifest holds the part of the config that its stage added; together with those of its
    inputs, and theirs, that is all of it but who computed where.

    Raises:
        StoreError: there is no evaluation, or another version of bend_ray made the newest.
    """
    evaluations = list(_manifests(store, LAST))
    if not evaluations:
        raise StoreError(
            f"expected an evaluation in {masked(store.uri)}, got none; make one with "
            "`bend run`, or name another store with --store"
        )
    newest = max(evaluations, key=lambda manifest: (manifest.created, manifest.fingerprint))
    config = _config(store, newest)
    if config is None or plan(config, store).evaluation.fingerprint != newest.fingerprint:
        raise StoreError(
            f"expected evaluation {newest.fingerprint} of {masked(store.uri)} to be of this "
            "version of bend_ray, it is of another; run `bend run` again, or name its config"
        )
    return config


def _manifests(store: Store, stage: str) -> Iterator[Manifest]:
    folder = f"{store.path.rstrip('/')}/{stage}"
    selector = pyarrow.fs.FileSelector(folder, allow_not_found=True)
    with store_errors("list", folder):
        found = store.filesystem.get_file_info(selector)
    for entry in found:
        manifest = _manifest(store, stage, entry.base_name)
        if manifest is not None:
            yield manifest


def _manifest(store: Store, stage: str, fingerprint: str) -> Manifest | None:
    path = f"{store.path.rstrip('/')}/{stage}/{fingerprint}/{MANIFEST_NAME}"
    content = read_bytes(store.filesystem, path)
    try:
        return None if content is None else parse_manifest(content)
    except ValueError:
        return None


def _config(store: Store, newest: Manifest) -> PipelineConfig | None:
    identity: dict[str, Any] = {}
    waiting, seen = [newest], set()
    while waiting:
        manifest = waiting.pop()
        identity |= manifest.identity
        for given in manifest.inputs:
            if given.fingerprint not in seen:
                seen.add(given.fingerprint)
                before = _manifest(store, given.stage, given.fingerprint)
                if before is None:
                    return None
                waiting.append(before)
    try:
        return PipelineConfig.model_validate_json(json.dumps(identity))
    except ValidationError:
        return None
