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

    Args:
        store: whose artifacts; while a run works in it, that is refused.
        stages: of the pipeline, the last one that of the evaluations.
        keep: so many evaluations, the latest; None: all.
        older_than: what was written to more recently stays, whoever needs it.
    """
    _refuse_while_working(store, stages)
    evaluations = store.manifests(stages[-1])
    kept = evaluations if keep is None else evaluations[max(0, len(evaluations) - keep) :]
    needed = _needed(store, kept)
    limit = datetime.now(UTC) - older_than
    found = []
    for name in _names(store, stages):
        if name not in needed:
            held, written = _measured(store, *name)
            if written < limit:
                found.append(held)
    return found


def remove(store: Store, held: Held) -> None:
    """Remove a directory; its manifest first, so that what is left by a failure is no artifact."""
    held.where.discard(MANIFEST_NAME)
    with store_errors("remove", held.where.path):
        store.filesystem.delete_dir(held.where.path)


def _refuse_while_working(store: Store, stages: Sequence[str]) -> None:
    for stage, fingerprint in _names(store, stages):
        if (who := maker(store.directory(stage, fingerprint))) is not None:
            raise StoreError(
                f"expected nobody to work in {masked(store.uri)}, got {stage} {fingerprint} "
                f"being made by {who}: wait until it is done"
            )


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


def _measured(store: Store, stage: str, fingerprint: str) -> tuple[Held, datetime]:
    """A directory, and when it was last written to."""
    where = store.directory(stage, fingerprint)
    files = where.everything().values()
    is_committed = store.manifest(stage, fingerprint) is not None
    why = "no kept evaluation needs it" if is_committed else "it was never committed"
    written = max((each.mtime for each in files), default=datetime.min.replace(tzinfo=UTC))
    return Held(where, sum(each.size for each in files), why), written
