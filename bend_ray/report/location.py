"""Where a report is: in the store of its evaluations, or where the user says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from bend_ray.artifacts.directory import Directory
from bend_ray.artifacts.store import Store
from bend_ray.storage.filesystems import resolve
from bend_ray.storage.masking import masked
from bend_ray.storage.uris import canonical, joined

NAME = "report"
"""Of the page, and of the data beside it."""


def default_output(store: Store, fingerprints: Sequence[str]) -> Directory:
    """``report/{fingerprint}`` in a store; several evaluations have a name together."""
    name = fingerprints[0]
    if len(fingerprints) > 1:
        together = "/".join(fingerprints)
        name = hashlib.sha256(together.encode()).hexdigest()[: len(name)]
    return store.directory("report", name)


def output_directory(uri: str) -> Directory:
    """A folder or URI to write to.

    Raises:
        StoreError: the URI means nothing.
    """
    filesystem, path = resolve(uri)
    return Directory(filesystem, path, canonical(uri))


def written(output: Directory) -> str | None:
    """Where the page is, if it has been written there; it is written last.

    Raises:
        StoreError: the place cannot be looked at.
    """
    names = {file.name for file in output.list_files(f"{NAME}.")}
    return page_uri(output, NAME) if f"{NAME}.html" in names else None


def page_uri(output: Directory, name: str) -> str:
    """The page, as a path or URI without credentials."""
    return masked(joined(output.uri, f"{name}.html"))
