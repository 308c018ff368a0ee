"""What a budget bench compares: a task, budgets, and methods; read from a ``.yaml`` of this folder.

A method says how a budget's gradient steps are allotted to chains (independent starts, each one
trained by the recipe's schedule for a trunk and at a rate of its own through tails), and what is
made of the chains' checkpoints.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from bend_ray.data.datasets import Dataset, ImageParquet
from bend_ray.networks.architectures import Architecture
from bend_ray.networks.recipe import Recipe, Variation
from bend_ray.spec import Spec


class Chains(Spec):
    """How gradient steps are allotted: independent starts, each of an equal share of the budget."""

    per_unit: PositiveFloat = 1.0
    """Chains an ordinary training's cost is shared by; 2: twice as many, half as long."""
    count: PositiveInt | None = None
    """So many chains instead, whatever the budget: the larger the budget, the longer they are."""
    trunk_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Share of a chain that follows the recipe's schedule; an eighth, a quarter, ... 1."""
    tails: NonNegativeInt = 0
    """Checkpoints of equal distance in the rest of a chain."""
    tails_per_unit: NonNegativeInt = 0
    """So many more for each ordinary training that the budget would pay."""
    forks: PositiveInt = 1
    """Continuations of each trunk along the schedule, side by side; of readout ``last``."""
    kept: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the tails that is used, the latest; those before let the rate take effect."""
    rate: Literal["constant", "cyclic"] = "constant"
    """Learning rate of the tails: constant, or a falling half cosine each."""
    learning_rate: PositiveFloat | None = None
    """At which tails begin; null for the recipe's."""
    trunk_rate: PositiveFloat | None = None
    """Highest learning rate of the trunk's schedule; null for the recipe's."""


class Last(Spec):
    """The end of every chain: a deep ensemble, of ordinary, shorter or longer trainings."""

    kind: Literal["last"] = "last"


class Averages(Spec):
    """One weight average (SWA) a chain."""

    kind: Literal["averages"] = "averages"


class Tails(Spec):
    """Every tail of every chain: FGE, snapshot ensembles."""

    kind: Literal["tails"] = "tails"


class Drawn(Spec):
    """Models drawn around each chain's average, repaired by a few steps of training if asked.

    ``multiswag`` is half diagonal, half low-rank; ``gaussian`` has the residuals of all chains;
    ``kernel`` draws one of the chain's tails and moves it by a share ``bandwidth`` of the low-rank
    Gaussian of its tails, keeping the spread: the closed-form sampler of a diffusion model that has
    learnt its training members, stopped at that noise level.
    """

    kind: Literal["drawn"] = "drawn"
    law: Literal["multiswag", "gaussian", "kernel"] = "kernel"
    per_chain: PositiveInt = 4
    """Models drawn of each chain."""
    scale: NonNegativeFloat = 1.0
    """Multiplier of the residuals: 1 keeps the tails' spread."""
    bandwidth: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7
    """Of ``kernel``: 0 copies tails, 1 is the Gaussian."""
    guidance: NonNegativeFloat = 0.0
    """Of ``kernel``: the average of the kept tails is moved on first, by so much of its way from
    the average of the tails before them."""
    repair_steps: NonNegativeInt = 0
    """Steps of training of each drawn model, along a half cosine to zero."""
    repair_rate: PositiveFloat = 3e-3
    """Learning rate at which the repair begins."""


class Ivon(Spec):
    """Draws of the posterior that IVON learns along a chain."""

    kind: Literal["ivon"] = "ivon"
    per_chain: PositiveInt = 4
    """Models drawn of each chain."""
    learning_rate: PositiveFloat = 0.1
    """At the top of half a cosine, as the package scales it."""
    hess_init: PositiveFloat = 0.1
    """Curvature to begin with; the higher, the nearer draws are to the mean."""
    beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    """Of the curvature's running mean; the package's 0.99999 is for 100 times as many steps."""


class Simplex(Spec):
    """Points of a simplex of weights around each chain's end (SPRO; of several chains, ESPRO)."""

    kind: Literal["simplex"] = "simplex"
    per_chain: PositiveInt = 4
    """Points drawn of each simplex."""
    vertices: Annotated[int, Field(ge=2)] = 3
    """Of a simplex, the end of the chain's ordinary training included."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Of a chain's steps, those that train the further vertices."""
    volume: NonNegativeFloat = 0.01
    """Weight of the logarithm of the simplex's volume beside the loss."""
    rate: PositiveFloat = 0.5
    """At which a vertex's training begins, in the recipe's highest."""


class Pack(Spec):
    """Whole trainings that differ by hyper-parameters; validation picks, with repetition."""

    kind: Literal["pack"] = "pack"
    width: PositiveFloat = 3.0
    """Learning rate and weight decay lie within this factor of the recipe's, label smoothing
    between none and twice the recipe's."""
    picks: PositiveInt = 4
    """Votes that are given away, for each training."""


class Varied(Spec):
    """The protocol ``varied``: a chain is a place in a bag that candidates are elected to.

    The training is as much shorter, or longer, as those who begin and those who go on cost.
    """

    kind: Literal["varied"] = "varied"
    candidates: PositiveInt = 2
    """Trainings that begin for each place; half as many as places go on after the trial."""
    looks: PositiveInt = 24
    """Elections over the training."""
    trial: PositiveInt = 8
    """Looks after which the others stop."""
    variation: Variation = Variation(rate=3, decay=30, label_smoothing=0.1, dropout=0.1)
    """Between what bounds hyper-parameters are drawn."""


Readout = Annotated[
    Last | Averages | Tails | Drawn | Ivon | Simplex | Pack | Varied, Field(discriminator="kind")
]


class Method(Spec):
    """One use of a budget."""

    chains: Chains = Chains()
    """How the training is allotted."""
    readout: Readout = Last()
    """What votes."""
    ours: bool = False
    """Whether it is a pipeline of this project, with a generator, rather than a rival."""


class Bench(Spec):
    """A task, the budgets and the methods."""

    dataset: Dataset
    """The images; ``split_seed`` is the repeat's number."""
    architecture: Architecture
    """The base classifier."""
    recipe: Recipe
    """One ordinary training: a unit of the budget."""
    repeats: PositiveInt = 5
    """Splits."""
    budgets: tuple[PositiveInt, ...] = (1, 2, 4, 8)
    """In ordinary trainings of one member."""
    chosen_by: Literal["nll", "nll_calibrated"] = "nll"
    """Validation figure that chooses. Label smoothing makes every bag underconfident, so that its
    NLL means something only at a temperature that other images chose: ``nll_calibrated``."""
    recalibration_images: PositiveInt = 1000
    """Training images for the running statistics of models that were not trained."""
    methods: dict[str, Method]
    """By name."""


def read_bench(path: Path) -> Bench:
    """The bench of a YAML file; Parquet files lie in the folder that BEND_DATASETS names."""
    bench = Bench.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    if not isinstance(bench.dataset, ImageParquet):
        return bench
    folder = Path(os.environ.get("BEND_DATASETS", "."))
    files = {part: str(folder / getattr(bench.dataset, part)) for part in ("train", "test")}
    return bench.model_copy(update={"dataset": bench.dataset.model_copy(update=files)})
