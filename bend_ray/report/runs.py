"""Committed evaluations, how they are made again, and where their report is."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bend_ray.artifacts.directory import Directory
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import EVIDENCE, STAGE_VERSIONS
from bend_ray.config.schema import PipelineConfig
from bend_ray.config.yaml_text import flow
from bend_ray.errors import StoreError
from bend_ray.report.evaluation import Result
from bend_ray.storage.filesystems import resolve
from bend_ray.storage.masking import masked
from bend_ray.storage.uris import canonical, joined

NAME = "report"
"""Of the page, and of the data beside it."""
_NOT_THE_RUN = ("resources", "tracking", "price_per_hour", "split_seed")


@dataclass(frozen=True)
class Run:
    """One committed evaluation.

    Its whole resolved config, without credentials; the evidence that pictures show; ``versions`` of
    Python and the libraries that made it; when it was ``created``, ISO 8601.
    """

    result: Result
    config: dict[str, Any]
    evidence: dict[str, Any]
    versions: dict[str, str]
    created: str


def read_run(store: Store, fingerprint: str, given: Mapping[str, Any] | None = None) -> Run:
    """The evaluation of that name in a store; ``given`` holds the config that asks for it, if any.

    StoreError where it is not committed, or cannot be read.
    """
    where = store.directory("evaluation", fingerprint)
    manifest = store.manifest("evaluation", fingerprint)
    if manifest is None:
        raise StoreError(
            f"expected a committed evaluation in {masked(where.uri)}, got none: `bend run` with "
            "the same config makes it; without a config, a report is of what the store holds"
        )
    evidence = where.read_json(EVIDENCE)
    config, stages = evidence.pop("config"), evidence.pop("stages")
    result = Result.made(manifest, stages, store, (given or {}).get("config", config))
    return Run(result, config, evidence, manifest.versions, manifest.created)


def stored_runs(store: Store) -> list[Run]:
    """All evaluations of a store that can be reported, oldest first; StoreError for none."""
    manifests = store.manifests("evaluation")
    fresh = [m for m in manifests if m.stage_version == STAGE_VERSIONS["evaluation"]]
    if not fresh:
        came = f"{len(manifests)} of an earlier bend-ray" if manifests else "none"
        raise StoreError(
            f"expected a committed evaluation in {masked(store.uri)}, got {came}: "
            "make one with `bend run`, or name another store with --store URI"
        )
    return [read_run(store, manifest.fingerprint) for manifest in fresh]


def grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that are repeats of one another together: the same config but for its seeds."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(str(without_seeds(run.config)), []).append(run)
    return [sorted(group, key=seeds_of) for group in groups.values()]


def newest(groups: Sequence[list[Run]]) -> list[Run]:
    """The group in which the latest run is."""
    return max(groups, key=lambda group: max(run.created for run in group))


def seeds_of(run: Run) -> tuple[int, int]:
    """What tells a run from its repeats: the seed, and the split's if there is one."""
    return run.config["seed"], run.config["dataset"].get("split_seed", 0)


def without_seeds(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what differs between repeats, and without where it ran."""

    def kept(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: kept(each) for key, each in value.items() if key not in _NOT_THE_RUN}

    return {**kept(config), "seed": None}


def default_output(store: Store, fingerprints: Sequence[str]) -> Directory:
    """``report/{fingerprint}`` in a store; several evaluations have a name together."""
    name = fingerprints[0]
    if len(fingerprints) > 1:
        together = "/".join(fingerprints)
        name = hashlib.sha256(together.encode()).hexdigest()[: len(name)]
    return store.directory("report", name)


def output_directory(uri: str) -> Directory:
    """A folder or URI to write to; StoreError where it means nothing."""
    filesystem, path = resolve(uri)
    return Directory(filesystem, path, canonical(uri))


def written(output: Directory) -> str | None:
    """Where the page is, if it has been written there; it is written last."""
    return page_uri(output, NAME) if f"{NAME}.html" in output.list_files(f"{NAME}.") else None


def page_uri(output: Directory, name: str) -> str:
    """The page, as a path or URI without credentials."""
    return masked(joined(output.uri, f"{name}.html"))


def command(config: dict[str, Any], repeats: int = 1) -> str:
    """``bend run`` with every knob of a resolved config, as JSON, that differs from the default.

    >>> command(PipelineConfig(seed=3).model_dump(mode="json"), repeats=2)
    'bend run --set seed=3 --repeats 2'
    """
    given = (f"{path}={flow(value)}" for path, value in settings(config).items())
    parts = [f"--set {shlex.quote(each)}" for each in given]
    parts += [f"--repeats {repeats}"] if repeats > 1 else []
    return " ".join(["bend run", *parts])


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """By path, every knob that differs from the default."""
    return dict(_different(PipelineConfig().model_dump(mode="json"), config, ""))


def different(configs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What each config sets otherwise than the default, where they are not all alike."""
    found = [{path: flow(value) for path, value in settings(each).items()} for each in configs]
    alike = set.intersection(*(set(each.items()) for each in found)) if found else set()
    return [dict(item for item in each.items() if item not in alike) for each in found]


def _different(default: Any, value: Any, path: str) -> Iterator[tuple[str, Any]]:
    both = isinstance(default, dict) and isinstance(value, dict)
    if both and default.get("kind") == value.get("kind"):
        for key, each in value.items():
            yield from _different(default.get(key), each, f"{path}.{key}" if path else key)
    elif default != value:
        yield path, value
