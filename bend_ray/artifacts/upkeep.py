"""Upkeep of a store: is everything that was committed still whole, and what can go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bend_ray.artifacts.directory import MANIFEST_NAME, Directory
from bend_ray.artifacts.lease import maker
from bend_ray.artifacts.manifest import Manifest
from bend_ray.artifacts.shards import verify_table
from bend_ray.artifacts.store import Store
from bend_ray.errors import BendError, StoreError
from bend_ray.storage.filesystems import store_errors
from bend_ray.storage.masking import masked

Name = tuple[str, str]
"""Stage and fingerprint."""


@dataclass(frozen=True)
class Held:
    """A directory of a store that may go, the bytes of all in it, and why it is not needed."""

    where: Directory
    num_bytes: int
    why: str


def verify(store: Store, stages: Sequence[str]) -> Iterator[tuple[Name, str | None]]:
    """Every committed artifact, and what is wrong with it: None where it holds what it should.

    Reads all of them.
    """
    for name in _names(store, stages):
        try:
            manifest = store.manifest(*name)
            if manifest is None:
                continue
            artifact = store.stored(manifest)
            artifact.exists()
            for file in manifest.files:
                if file.sha256 is not None:
                    artifact.read_bytes(file.name)
                elif file.rows is not None:
                    verify_table(artifact, file.name)
        except BendError as error:
            yield name, str(error)
        else:
            yield name, None


def _names(store: Store, stages: Sequence[str]) -> Iterator[Name]:
    return ((stage, each) for stage in stages for each in store.fingerprints(stage))


def unneeded(
    store: Store,
    stages: Sequence[str],
    *,
    keep: int | None = None,
    older_than: timedelta = timedelta(days=1),
) -> list[Held]:
    """What no kept evaluation needs or shows, directly or through others.

    The last of the stages is that of the evaluations, of which the latest ``keep``, or all, are
    kept. What was written to since ``older_than`` stays. StoreError while a run works in the store.
    """
    names = list(_names(store, stages))
    for name in names:
        if (who := maker(store.directory(*name))) is not None:
            raise StoreError(
                f"expected nobody to work in {masked(store.uri)}, got {' '.join(name)} being made "
                f"by {who}: wait until it is done"
            )
    evaluations = store.manifests(stages[-1])
    kept = evaluations if keep is None else evaluations[max(0, len(evaluations) - keep) :]
    needed = _needed(store, kept)
    limit, found = datetime.now(UTC) - older_than, []
    for name in names:
        if name in needed:
            continue
        where = store.directory(*name)
        files = where.everything().values()
        if all(each.mtime < limit for each in files):
            is_committed = store.manifest(*name) is not None
            why = "no kept evaluation needs it" if is_committed else "it was never committed"
            found.append(Held(where, sum(each.size for each in files), why))
    return found


def remove(store: Store, held: Held) -> None:
    """Remove a directory; its manifest first, so that what is left by a failure is no artifact."""
    held.where.discard(MANIFEST_NAME)
    with store_errors("remove", held.where.path):
        store.filesystem.delete_dir(held.where.path)


def _needed(store: Store, kept: Sequence[Manifest]) -> set[Name]:
    needed: set[Name] = set()
    waiting = list(kept)
    while waiting:
        manifest = waiting.pop()
        needed.add((manifest.stage, manifest.fingerprint))
        for given in manifest.inputs:
            if (given.stage, given.fingerprint) not in needed:
                before = store.manifest(given.stage, given.fingerprint)
                waiting += [before] if before is not None else []
    return needed
