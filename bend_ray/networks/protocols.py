"""Protocols: which models a population is made of, and how each one is trained.

A population is trained in two phases. **Roots** come first: what several members start from
(trunks, a base) or are aligned to. **Runs** follow in cohorts; a run leaves one member or more.
A cohort is trained at once, is written as one shard, and depends on nothing but the config, its
index and the roots. To add a protocol: one class, and its name in the union at the bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from bend_ray.networks.recipe import Recipe, Stretch, Variation
from bend_ray.process.lazy import torch
from bend_ray.spec import Incidental, Spec


@dataclass(frozen=True)
class Member:
    """One model of a population, before it is trained."""

    model_id: int
    """Its index in the population."""
    trunk: int
    """The root it starts from, 0 where members start from scratch."""
    fork: int
    """Its run's index among those of that root."""
    snapshot: int = 0
    """Which checkpoint of its run it is, from 0, early ones not counted."""


Run = tuple[Member, ...]


class _Protocol(Spec):
    """What a protocol says of its population; here, of trunks that each leave checkpoints."""

    branches: ClassVar[bool] = True
    """Whether members continue their trunk."""
    apart: ClassVar[bool] = False
    """Whether each member is a run of its own, or all of a trunk's are checkpoints of one."""

    @property
    def num_early(self) -> int:
        """Checkpoints of each trunk before its members, of which the mean is kept."""
        return self.run_stretch(Recipe()).early

    @property
    def is_known(self) -> bool:
        """Whether it says how many members there are, before anything is listed."""
        return True

    def _sizes(self) -> tuple[int, int]:
        """Trunks, and members of each."""
        raise NotImplementedError

    @property
    def num_trunks(self) -> int:
        """What a generator can tell apart."""
        return self._sizes()[0]

    @property
    def members_per_trunk(self) -> int:
        """As many for each trunk."""
        return self._sizes()[1]

    @property
    def num_roots(self) -> int:
        """Whole models that runs start from, or are aligned to: the trunks."""
        return self.num_trunks

    def run_stretch(self, recipe: Recipe) -> Stretch:
        """How runs are trained."""
        raise NotImplementedError

    def root_stretch(self, recipe: Recipe) -> Stretch:
        """How roots are trained: to where runs go on from them, or to the end where none does."""
        epochs = self.run_stretch(recipe).start if self.branches else recipe.epochs
        return Stretch(start=0.0, epochs=epochs)

    @property
    def begun(self) -> int:
        """Models that begin for each run."""
        return 1

    def parts(self, runs: int) -> list[tuple[int, float, int]]:
        """Of runs together: models that train, over what share of it, how often they are judged."""
        return [(runs, 1.0, 1 if self.apart else self.members_per_trunk)]

    def runs(self) -> list[Run]:
        """What is trained in one go, trunk after trunk."""
        trunks, members = self._sizes()
        every = [[(t * members + m, t, m) for m in range(members)] for t in range(trunks)]
        if self.apart:
            return [(Member(i, t, fork=m),) for own in every for i, t, m in own]
        return [tuple(Member(i, t, 0, snapshot=m) for i, t, m in own) for own in every]


class Forks(_Protocol):
    """Trunks trained apart for a short common part, each continued many times.

    Members of one trunk share its basin, so a generator can learn them; trunks differ, so a bag
    of them gains. Without the bootstrap forks barely differ.
    """

    apart: ClassVar[bool] = True
    kind: Literal["forks"] = "forks"
    trunks: PositiveInt = 8
    """Independent starts."""
    forks: PositiveInt = 20
    """Members continued from each trunk."""
    trunk_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """Share of the training that the forks of a trunk have in common."""
    bootstrap: bool = True
    """Train each fork on its own resample of the training images."""
    align: bool = True
    """Permute the hidden units of every trunk to match the first trunk's."""

    def _sizes(self) -> tuple[int, int]:
        return self.trunks, self.forks

    def run_stretch(self, recipe: Recipe) -> Stretch:
        """The rest of the recipe."""
        start = self.trunk_fraction * recipe.epochs
        return Stretch(start=start, epochs=recipe.epochs - start, bootstrap=self.bootstrap)


class Trajectory(_Protocol):
    """The papers' protocol: a trained base, fine-tuned at a constant rate, checkpoint by step.

    It works at once and gains little by bagging: the checkpoints nearly agree.
    Source: Wang et al. 2024, "Neural Network Diffusion" (arXiv 2402.13144), section 3.1.
    """

    kind: Literal["trajectory"] = "trajectory"
    bases: PositiveInt = 1
    """Independent bases, each with its own trajectory."""
    checkpoints: PositiveInt = 128
    """Checkpoints taken along each trajectory, equally spaced."""
    epochs: PositiveFloat = 20.0
    """Passes over the training images in which they are taken."""
    learning_rate: PositiveFloat = 3e-3
    """Constant learning rate of the fine-tuning."""
    align: bool = True
    """Permute the hidden units of every base to match the first one's."""

    def _sizes(self) -> tuple[int, int]:
        return self.bases, self.checkpoints

    def run_stretch(self, recipe: Recipe) -> Stretch:
        """Fine-tuning beyond the recipe's end."""
        return Stretch(
            start=recipe.epochs,
            epochs=self.epochs,
            constant_rate=self.learning_rate,
            snapshots=self.checkpoints,
        )


class Tails(_Protocol):
    """Trunks trained most of the way, then short tails of a few epochs, a checkpoint at each end.

    The cheapest population: a tail costs a small share of a training and begins where the one
    before it ended. With a ``trunk_fraction`` of 0 tails are the whole training: a snapshot
    ensemble. A trunk's mean is a stochastic weight average (SWA).

    Source: Garipov et al. 2018 (arXiv 1802.10026), fast geometric ensembling; Huang et al. 2017
    (arXiv 1704.00109), snapshot ensembles; Izmailov et al. 2018 (arXiv 1803.05407), SWA.
    """

    kind: Literal["tails"] = "tails"
    trunks: PositiveInt = 4
    """Independent starts."""
    tails: PositiveInt = 8
    """Members of each trunk, one after another."""
    trunk_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of the recipe, with its schedule, that comes before the first tail."""
    tail_fraction: PositiveFloat = 0.0625
    """Length of a tail, as a share of the recipe; all of them may end beyond the recipe's end."""
    burn_in_fraction: NonNegativeFloat = 0.0
    """Share of the recipe, at the tails' rate, that comes before the first tail and leaves none."""
    early_tails: NonNegativeInt = 0
    """Tails of each trunk, as long, before those that are its members; they are none.

    Only their mean is kept, for samples.finish.guidance. They may take the place of a burn-in.
    """
    rate: Literal["cyclic", "constant"] = "cyclic"
    """Fall by half a cosine to zero in every tail, as in FGE, or stay constant, as in SWA."""
    learning_rate: PositiveFloat | None = None
    """Learning rate at which a tail begins; null for the recipe's highest."""
    align: bool = True
    """Permute the hidden units of every trunk to match the first trunk's."""

    def _sizes(self) -> tuple[int, int]:
        return self.trunks, self.tails

    def run_stretch(self, recipe: Recipe) -> Stretch:
        """All tails of a trunk, in one go."""
        rate = self.learning_rate or recipe.optimizer.learning_rate
        tails = self.early_tails + self.tails
        fraction = self.burn_in_fraction + tails * self.tail_fraction
        return Stretch(
            start=self.trunk_fraction * recipe.epochs,
            epochs=fraction * recipe.epochs,
            constant_rate=rate if self.rate == "constant" else None,
            cyclic_rate=rate if self.rate == "cyclic" else None,
            snapshots=tails,
            burn_in=self.burn_in_fraction * recipe.epochs,
            early=self.early_tails,
        )


class _Apart(_Protocol):
    """Models that each begin by themselves."""

    branches: ClassVar[bool] = False
    """The root is only what they are aligned to."""
    apart: ClassVar[bool] = True
    bootstrap: bool = False
    """Train each model on its own resample of the training images."""
    align: bool = True
    """Permute the hidden units of every model to match those of a reference model."""

    @property
    def num_roots(self) -> int:
        """The reference model, where there is one."""
        return int(self.align)

    def run_stretch(self, recipe: Recipe) -> Stretch:
        """The whole recipe."""
        return Stretch(start=0.0, epochs=recipe.epochs, bootstrap=self.bootstrap)


class Independent(_Apart):
    """Ordinary trainings from independent starts: a deep ensemble (Lakshminarayanan et al. 2017).

    Unaligned they cannot be learnt by a generator at all, aligned only poorly.
    """

    kind: Literal["independent"] = "independent"
    models: PositiveInt = 128
    """Independent trainings."""

    def _sizes(self) -> tuple[int, int]:
        """One trunk of all models: none share a start."""
        return 1, self.models


class Varied(_Apart):
    """Members that differ by hyper-parameters: many train, and a greedy bag is chosen meanwhile.

    Each candidate draws its own rate, decay, smoothing and dropout, and all train in one stacked
    program. At every look those chosen so far and all that train stand for election to the bag, by
    its validation NLL (``populations.contest``). After a trial the worst stop.
    """

    kind: Literal["varied"] = "varied"
    models: PositiveInt = 32
    """Members: places in the bag."""
    candidates: PositiveInt = 2
    """So many begin for each place; those of a cohort train together."""
    looks: Annotated[int, Field(ge=2)] = 24
    """Elections, evenly over the training."""
    trial: PositiveInt = 4
    """Looks after which all stop but half as many as there are places, the best by themselves."""
    patience: PositiveInt | None = 2
    """Looks in which the bag's NLL must fall, or all is over; null: the training has its length."""
    gain: PositiveFloat = 0.002
    """By as many nats."""
    variation: Variation = Variation()
    """Between what bounds hyper-parameters are drawn."""

    def _sizes(self) -> tuple[int, int]:
        return 1, self.models

    @property
    def begun(self) -> int:
        """The candidates for a place."""
        return self.candidates

    def parts(self, runs: int) -> list[tuple[int, float, int]]:
        """The trial of all, and what follows for half as many as there are places."""
        (_, trial), (_, rest) = self.phases
        share = trial / self.looks
        return [(runs * self.candidates, share, trial), (self.sure(runs), 1.0 - share, rest)]

    def sure(self, places: int) -> int:
        """Half of the places: for the best by themselves, who train on after the trial."""
        return max(1, places // 2)

    @property
    def phases(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of the trial and what follows: the looks before it, and its own."""
        trial = min(self.trial, self.looks - 1)
        return (0, trial), (trial, self.looks - trial)

    def is_over(self, nlls: Sequence[float]) -> bool:
        """Whether the bag has stopped getting better, by its NLL at each look."""
        if self.patience is None or len(nlls) < self.phases[1][0] + self.patience:
            return False
        return nlls[-1 - self.patience] - nlls[-1] < self.gain


class Checkpoints(_Protocol):
    """A population that somebody else has trained, with any code: checkpoints in files.

    Safetensors files, those of torch.save (read with weights_only) and Lightning's. ``{trunk}`` in
    a pattern stands for what tells trainings apart. A trunk's checkpoints are in the order of the
    numbers in their names; of each trunk as many of the last are taken as the shortest has.
    """

    kind: Literal["checkpoints"] = "checkpoints"
    files: Annotated[str | Annotated[tuple[str, ...], Field(min_length=1)], Incidental()]
    """Patterns, as in s3://bucket/run-{trunk}/step-*.safetensors; without {trunk} all are one."""
    prefix: str | None = None
    """What stands before the network's own names of tensors; null: found."""
    early: NonNegativeInt = 0
    """Checkpoints of each trunk, the first, that are no members: their mean alone is kept, for
    samples.finish.guidance."""
    align: bool = True
    """Permute the hidden units of every checkpoint to match the first trunk's last."""
    seconds: NonNegativeFloat | None = None
    """What each cost to train, CPU or GPU seconds; null: unknown, as is all that builds on it."""
    found: tuple[PositiveInt, PositiveInt] | None = None
    """Trunks, and members of each, noted when the files are first listed."""
    content: str | None = None
    """Digest of the files, noted when they are first read; where given, others are refused."""

    @property
    def is_known(self) -> bool:
        """Whether the files have been listed."""
        return self.found is not None

    def _sizes(self) -> tuple[int, int]:
        """What the pattern tells apart, and checkpoints of it that are members."""
        return self.found or (1, 1)

    @property
    def num_roots(self) -> int:
        """None."""
        return 0

    def identified(self) -> Checkpoints:
        """The same, with what is there now; DataError where it is nothing, or not as meant."""
        from bend_ray.networks.checkpoints import listed_trunks

        files, trunks = listed_trunks(self)
        count = len(trunks[0]) - self.early
        found, content = (len(trunks), count), self.content or files.digest()
        return self.model_copy(update={"found": found, "content": content})

    def run_stretch(self, recipe: Recipe) -> Stretch:
        """Nothing is trained."""
        return Stretch(start=0.0, epochs=0.0, snapshots=self.members_per_trunk, early=self.early)


Protocol = Annotated[
    Forks | Trajectory | Tails | Independent | Varied | Checkpoints, Field(discriminator="kind")
]


def held_out_ids(runs: Sequence[Run], share: float, generator: torch.Generator) -> frozenset[int]:
    """Members the generator never sees: about the same share, in [0, 1), of every trunk."""
    by_trunk: dict[int, list[int]] = {}
    for run in runs:
        for member in run:
            by_trunk.setdefault(member.trunk, []).append(member.model_id)
    chosen: set[int] = set()
    for ids in by_trunk.values():
        order = torch.randperm(len(ids), generator=generator).tolist()
        chosen.update(ids[i] for i in order[: round(share * len(ids))])
    return frozenset(chosen)
