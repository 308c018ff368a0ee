"""Bags from Python: ``fit``, ``run``, ``find`` and ``load_bag``, and what they give.

>>> from sklearn.datasets import load_iris
>>> import bend_ray as bend
>>> x, y = load_iris(return_X_y=True)
>>> small = {"seeds.protocol.trunks": 2, "samples.count": 4, "autoencoder.model.latent_size": 8}
>>> run = bend.fit(bend.Mlp(hidden=[8]), (x, y), epochs=10, store=store, settings=small)
>>> run.evaluation.bag.size, run.evaluation.part
(4, 'validation')
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import DATASETS, Graph, graph_of, identified, newest_config
from bend_ray.config.reading import load_config, validated, with_knobs
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.arrays import ENDINGS
from bend_ray.data.datasets import LabelledExamples
from bend_ray.data.given import parts_of, rows_of, spilled, together
from bend_ray.errors import ConfigError, StoreError
from bend_ray.imported import Imported
from bend_ray.networks.architectures import Architecture, ImportedArchitecture, Mlp
from bend_ray.spec import Spec
from bend_ray.storage.masking import masked
from bend_ray.storage.uris import joined

if TYPE_CHECKING:
    from bend_ray.artifacts.population import Population
    from bend_ray.report.evaluation import Evaluation, Result
    from bend_ray.serve.bag import Bag

STORE = "./bend-store"
GENTLE_RATE = 0.003
"""Of AdamW, for networks that are not ours; the default population's is seven times as much."""


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A config whose artifacts are in a store."""

    config: PipelineConfig
    """What was made."""
    graph: Graph
    """Its artifacts."""

    def __repr__(self) -> str:
        bag = self.evaluation.bag
        return f"<Run {self.fingerprint}: {bag.size} members, NLL {bag.nll:.4f}>"

    @property
    def fingerprint(self) -> str:
        """Of the evaluation."""
        return self.graph.evaluation.fingerprint

    @cached_property
    def result(self) -> Result:
        """The figures, what they cost, and what diverged."""
        from bend_ray.report.evaluation import Result

        return Result.of(self.graph)

    @property
    def evaluation(self) -> Evaluation:
        """The figures: ``.bag``, ``.rivals["deep_ensemble"]``, ``.populations["generated"]``."""
        return self.result

    def summary(self) -> str:
        """The table that ``bend run`` prints."""
        from bend_ray.report.results import table

        return table(self.result)

    def report(self, output: str | Path | None = None) -> str:
        """Write the page with all figures to a folder or URI, by default in the store.

        Returns where it is.
        """
        from bend_ray.report.page import write_report
        from bend_ray.report.runs import default_output, output_directory, read_run

        store = self.graph.evaluation.store
        fingerprints = [self.fingerprint]
        where = output_directory(str(output)) if output else default_output(store, fingerprints)
        return write_report([read_run(store, self.fingerprint)], where)

    def population(self, stage: str = "samples") -> Population:
        """The models of ``seeds`` or ``samples``: ``.theta_KP``, ``.trunk``, ``.val_nll``.

        StoreError where they cannot be read.
        """
        return read_population(self.graph[stage])

    def bag(self, members: int | None = None) -> Bag:
        """The bag, ready to answer, without Ray; of so many members, the first, None for all."""
        from bend_ray.export.folder import export_bag

        folder = tempfile.mkdtemp(prefix="bend-bag-")
        export_bag(self.config, self.graph, folder, members=members)
        bag = load_bag(folder, run_code=True)
        # A bag that is saved is copied from there.
        weakref.finalize(bag, shutil.rmtree, folder, ignore_errors=True)
        return bag


def run(
    config: PipelineConfig | str | Path | None = None,
    *,
    store: str | Path = STORE,
    address: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Make what is missing of a config in a store.

    BendError where the user can mend it; what was finished is kept.

    Args:
        config: or its YAML file; None: the default, which is digits.
        store: folder or URI of artifacts.
        address: None: in this process; ``local``: on Ray on this machine; else a Ray cluster.
        settings: knobs by path, as in ``{"samples.count": 96}``.
    """
    from bend_ray import pipeline

    found = _config(config, settings)
    graph = pipeline.run(found, str(store), address=address, local=address is None)
    return Run(identified(found), graph)


def find(
    config: PipelineConfig | str | Path | None = None,
    *,
    store: str | Path = STORE,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """A run that a store holds; StoreError where there is none.

    Args:
        config: of the run, or its YAML file; with neither this nor settings: the newest.
        store: folder or URI of artifacts.
        settings: knobs by path.
    """
    held = Store(str(store))
    newest = config is None and not settings
    known = newest_config(held) if newest else identified(_config(config, settings))
    graph = graph_of(known, held)
    if not graph.evaluation.exists():
        raise StoreError(
            f"expected evaluation {graph.evaluation.fingerprint} in {masked(held.uri)}, got none; "
            "make it with bend_ray.run of the same config and store"
        )
    return Run(known, graph)


def fit(
    network: Architecture | Callable[..., Any] | str | None,
    train: Any,
    test: Any = None,
    validation: Any = None,
    *,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    members: int | None = None,
    seed: int = 0,
    store: str | Path = STORE,
    address: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Train a population of a network, learn a generator of its parameters, and bag what it draws.

    BendError as of ``run``.

    Args:
        network: a function or class that gives a ``torch.nn.Module``, its name as in
            ``shop.nets:make_net``, one of our architectures, or None for a small dense one. Where
            the function has a parameter ``num_classes`` or ``input_shape``, that is filled in.
        train: ``(inputs, labels)`` as numpy, torch or lists; a frame; a torch ``Dataset`` or
            ``DataLoader``; a Hugging Face data set; scikit-learn's ``Bunch``; parts of these by
            name, as a ``DatasetDict``; or a data set spec such as ``ImageFolder``.
        test: likewise; None: figures are of the validation part.
        validation: likewise; None: a fifth of the training part, at most 5,000.
        epochs: of an ordinary training of the network.
        learning_rate: of AdamW; default: 0.003 for a network of one's own.
        batch_size: examples a step.
        members: of the bag.
        seed: of everything.
        store: folder or URI of artifacts; data given as objects is written there once.
        address: None: in this process; ``local``: on Ray on this machine; else a Ray cluster.
        settings: further knobs by path, as in ``{"evaluation.vote.kind": "weighted"}``.
    """
    architecture = architecture_of(network)
    if learning_rate is None and isinstance(architecture, Imported):
        learning_rate = GENTLE_RATE
    given = {
        "seed": seed,
        "seeds.recipe.epochs": epochs,
        "seeds.recipe.optimizer.learning_rate": learning_rate,
        "seeds.recipe.batch_size": batch_size,
        "samples.count": members,
    }
    dataset = _dataset(train, test, validation, str(store))
    config = validated({"dataset": dataset, "seeds": {"architecture": architecture}})
    knobs = {path: value for path, value in given.items() if value is not None}
    return run(config, store=store, address=address, settings=knobs | dict(settings or {}))


def load_bag(folder: str | Path, *, run_code: bool = False) -> Bag:
    """A bag that ``bend export`` or ``Bag.save`` wrote, without Ray, and torch where it has ONNX.

    It is in a folder, or at a URI; DataError where there is none. ``run_code`` runs the code of the
    network that the bag names, where that has no ONNX program: only where you trust whoever wrote
    the bag.
    """
    from bend_ray.serve.bag import Bag
    from bend_ray.serve.settings import ServeSettings

    return Bag.load(folder, ServeSettings(groups=1, run_code=run_code))


def _config(
    config: PipelineConfig | str | Path | None, settings: Mapping[str, Any] | None
) -> PipelineConfig:
    if not isinstance(config, PipelineConfig):
        config = load_config(Path(config) if config is not None else None)
    return with_knobs(config, settings) if settings else config


def architecture_of(network: Architecture | Callable[..., Any] | str | None) -> Architecture:
    """The spec of a network as ``fit`` takes it; ConfigError where it is made already."""
    if network is None:
        return Mlp()
    if isinstance(network, Spec):
        return network
    if hasattr(network, "state_dict") and not isinstance(network, type):
        raise ConfigError(
            f"network: expected a function or class that makes one, as many are trained, got a "
            f"{type(network).__qualname__} that is made; give lambda: {type(network).__name__}(...)"
        )
    return ImportedArchitecture.of(network)


def _dataset(train: Any, test: Any, validation: Any, store: str) -> Any:
    """A data set's spec, or one of arrays, of which objects are written to the store."""
    parts = together(train)
    has_parts = parts is not None or isinstance(train, LabelledExamples)
    if has_parts and (test is not None or validation is not None):
        raise ConfigError("train: expected a data set with its own parts, or no test beside it")
    if isinstance(train, LabelledExamples):
        return train
    parts = parts or {"train": train, "validation": validation, "test": test}
    files = {
        part: str(its)
        for part, its in parts.items()
        if isinstance(its, str | Path) and str(its).endswith(ENDINGS)
    }
    folder = joined(Store(store).uri, DATASETS)
    given = {part: its for part, its in parts.items() if its is not None and part not in files}
    tables = {
        part: table for part, its in given.items() if (table := rows_of(its, part)) is not None
    }
    if tables and len(tables) == len(given) and not files:
        return {"kind": "table"} | {part: spilled(its, folder) for part, its in tables.items()}
    objects = parts_of({part: its for part, its in parts.items() if part not in files})
    return {"kind": "arrays"} | files | {p: spilled(its, folder) for p, its in objects.items()}
