"""PipelineConfig: one section a stage, in order; every knob has one home.

``PipelineConfig()`` is the default run. The docstring under a field is its help text
(``bend config``); ``reading`` reads a config from YAML, and lists what there is to set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from bend_ray.config.resources import ActorResources, HourlyPrice, Resources, TrainResources
from bend_ray.data.datasets import ArrayParts, Dataset, Digits, ImageFiles, Table
from bend_ray.data.inputs import IMAGES, TABLES, Corruption, LeftOut, Others, Outside
from bend_ray.ensemble.bagging import All, Bagging
from bend_ray.ensemble.votes import SoftVote, Vote
from bend_ray.generation.diffusion import Ddim, Ddpm, Process, Sampler
from bend_ray.generation.models import Autoencoder, Denoiser, MlpDenoiser, PrincipalMlp
from bend_ray.generation.rivals import DeepEnsemble, ImportedRival, Rival
from bend_ray.networks.architectures import Architecture, Mlp
from bend_ray.networks.protocols import Protocol, Tails
from bend_ray.networks.recipe import Recipe, Stretch
from bend_ray.optim import AdamW, Training
from bend_ray.spec import Incidental, Spec, is_incidental, variants

MOST_MODELS = 1_000_000
"""Of a population: a driver needs 4 ms of CPU for a piece of work."""
RIVALS: tuple[Any, ...] = tuple(kind() for kind in variants(Rival) if kind is not ImportedRival)
"""All kinds, but for one's own."""


class ParametersSection(Spec):
    """Which parameters are a classifier's own."""

    include: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    """Patterns over names of parameters and running statistics, as in [layer4.1.bn*, fc.*].

    What matches is trained from a base, stored and generated; the rest stays the base's, stored
    once for each trunk. A norm whose running statistics do not match keeps the base's.
    """


class SeedsSection(Spec):
    """The trained population."""

    architecture: Architecture = Mlp()
    """The base classifier."""
    recipe: Recipe = Recipe(epochs=10, optimizer=AdamW(learning_rate=0.02), label_smoothing=0.1)
    """How one base classifier is ordinarily trained."""
    protocol: Protocol = Tails(
        trunks=16,
        trunk_fraction=0.25,
        early_tails=8,
        tail_fraction=0.046875,
        rate="constant",
    )
    """Which models the population is made of."""
    held_out: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.15
    """Share of every trunk's members the generator never sees, for the novelty table."""
    cohort_size: PositiveInt = 32
    """Models trained at once; a cohort is one shard. Fewer where they leave more than 256 MiB."""
    checkpoint_seconds: Annotated[PositiveFloat, Incidental()] = 180.0
    """Between checkpoints of a training, from which a killed one goes on to the same bits."""
    resources: ActorResources = ActorResources()
    """What each actor is given."""

    @property
    def num_models(self) -> int:
        """Members of the population."""
        return self.protocol.num_trunks * self.protocol.members_per_trunk


class AutoencoderSection(Spec):
    """The map between parameters and latents."""

    model: Autoencoder = PrincipalMlp()
    """The network, and what it is given of a classifier."""
    training: Training = Training(steps=50, batch_size=64, patience=2)
    """How it is trained."""
    resources: TrainResources = TrainResources()
    """What each worker is given."""


class LatentsSection(Spec):
    """The population, encoded."""

    resources: Resources = Resources()
    """What the encoding process is given."""


class Probes(Spec):
    """Classifiers drawn while the generator is trained, to see whether it draws any that work.

    They decide whether a run goes on, never what it makes.
    """

    count: NonNegativeInt = 8
    """Classifiers drawn, and asked about validation images; 0 for none."""
    at: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the training after which they are drawn."""
    floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of the training members' lead over chance that one drawn model at least must keep.

    Asked of the probes and again of all samples; 0 asks nothing.
    """


class GeneratorSection(Spec):
    """The diffusion model over latents."""

    denoiser: Denoiser = MlpDenoiser()
    """The network."""
    process: Process = Ddpm()
    """How latents become noise and what the network predicts."""
    conditional: bool = True
    """Tell the denoiser which trunk a latent belongs to; samples then stay on basins."""
    training: Training = Training(steps=100, batch_size=64, patience=2, look_every=5)
    """How it is trained."""
    probes: Probes = Probes()
    """What stops a generator that collapses; changes no result and no fingerprint."""
    resources: TrainResources = TrainResources()
    """What each worker is given."""


class Annealing(Spec):
    """A short training of every drawn model, at a rate that falls by half a cosine to zero."""

    fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Its length, as a share of the recipe; 0 for none."""
    learning_rate: PositiveFloat | None = None
    """Where the rate begins; null for a quarter of the recipe's highest."""

    def stretch(self, recipe: Recipe) -> Stretch:
        """What is trained."""
        rate = self.learning_rate or recipe.optimizer.learning_rate / 4
        return Stretch(start=0.0, epochs=self.fraction * recipe.epochs, cyclic_rate=rate)


class Finish(Spec):
    """What is done to drawn models before they are validated, in this order."""

    guidance: Annotated[float, Field(ge=0.0)] = 0.75
    """Move each model on, by so much of its trunk's way from the early tails' mean to the
    members'; needs seeds.protocol.early_tails.

    Where training ends early this is where more of it would lead. Running statistics stay.
    """
    annealing: Annealing = Annealing()
    """Then train it for a little."""


AS_DRAWN = Finish(guidance=0.0, annealing=Annealing(fraction=0.0))


class SamplesSection(Spec):
    """The generated population."""

    count: PositiveInt = 48
    """Classifiers drawn, the trunks in turn."""
    sampler: Sampler = Ddim()
    """From noise to latents."""
    temperature: PositiveFloat = 1.0
    """Multiplier of the sampler's noise; below one more accurate and less diverse."""
    finish: Finish | Literal["auto"] | None = "auto"
    """What is done to drawn models; null for nothing.

    auto: its defaults where there are early tails and the generator is conditional, else nothing.
    """
    shard_size: PositiveInt = 48
    """Classifiers drawn at once; one shard."""
    recalibration_images: NonNegativeInt = 1000
    """Training images from which drawn models, and rivals, get their BatchNorm statistics; 0: none.

    Generated running statistics give outliers. Architectures without BatchNorm ignore this.
    """
    resources: ActorResources = ActorResources()
    """What each actor is given."""


class EvaluationSection(Spec):
    """The bag, its rivals, and what they cost; the only stage that opens the test part."""

    bagging: Bagging = All()
    """Which generated classifiers vote; chosen on validation images."""
    vote: Vote = SoftVote()
    """How their answers become one."""
    temperature_scaling: bool = True
    """Score every bag at a temperature that was fitted to its votes on validation images.

    Ours and its rivals alike, and a search's bags (fitted on the half that is not scored); an
    exported or served bag has ours. The most probable class stays. For label smoothing, which
    leaves votes too unsure.
    """
    rivals: tuple[Rival, ...] = RIVALS
    """What the bag is compared with; each kind once."""
    ood: tuple[Outside, ...] = ()
    """Inputs of no class that was learnt: is the bag less sure of them?"""
    shift: tuple[Corruption, ...] = ()
    """How the test part is corrupted, at five severities each."""
    resources: ActorResources = ActorResources()
    """What each process is given that asks models; one of them also compares what they say."""

    @model_validator(mode="after")
    def _each_kind_once(self) -> EvaluationSection:
        kinds = [rival.name for rival in self.rivals]
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(f"expected each kind of rival once, got {', '.join(twice)} again")
        names = [*(each.name for each in self.ood), *self.shift, "test", "validation"]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected each of ood and shift once, got {', '.join(twice)} again")
        return self


class PipelineConfig(Spec):
    """A whole run, from seed models to the evaluated bag."""

    seed: NonNegativeInt = 0
    """Seed of everything but the data set's split, which has its own."""
    dataset: Dataset = Digits()
    """The images."""
    parameters: ParametersSection = ParametersSection()
    """What of a classifier is its own; all by default."""
    seeds: SeedsSection = SeedsSection()
    """Stage 1: train the population."""
    autoencoder: AutoencoderSection = AutoencoderSection()
    """Stage 2: learn latents of its parameters."""
    latents: LatentsSection = LatentsSection()
    """Stage 3: encode it."""
    generator: GeneratorSection = GeneratorSection()
    """Stage 4: learn to draw latents."""
    samples: SamplesSection = SamplesSection()
    """Stage 5: draw classifiers."""
    evaluation: EvaluationSection = EvaluationSection()
    """Stage 6: let them vote."""
    tracking: Literal["mlflow", "wandb"] | None = None
    """Service that is also told of curves and figures; set it up by its own environment variables.

    Changes no fingerprint.
    """

    price_per_hour: HourlyPrice = HourlyPrice()
    """With it `bend plan` and results tell money; changes no fingerprint."""

    @property
    def num_training_models(self) -> int:
        """Members the generator learns from."""
        protocol = self.seeds.protocol
        per_trunk = protocol.members_per_trunk
        held_out = round(self.seeds.held_out * per_trunk)
        return protocol.num_trunks * (per_trunk - held_out)

    @property
    def latent_size(self) -> int:
        """Numbers in a latent, unless a model it is to be learnt from diverges."""
        return self.autoencoder.model.latent_size or self.num_training_models - 1

    @property
    def num_conditions(self) -> int:
        """Trunks the denoiser is told apart, or one for all."""
        return self.seeds.protocol.num_trunks if self.generator.conditional else 1

    @property
    def probed_at(self) -> int | None:
        """The step of the generator's training at which probes are drawn; None for no probes.

        None too where held-out members keep it from becoming worse than its start, a Gaussian.
        """
        probes, training = self.generator.probes, self.generator.training
        step, chosen = round(probes.at * training.steps), training.patience and self.seeds.held_out
        is_safe = chosen and self.generator.denoiser.starts_gaussian
        return step if probes.count and not is_safe and 0 < step < training.steps else None

    @property
    def finish(self) -> Finish:
        """What is done to drawn models, ``auto`` resolved."""
        finish = self.samples.finish
        if finish == "auto":
            knows_the_way = self.seeds.protocol.num_early > 0 and _trunks_are_known(self)
            return Finish() if knows_the_way else AS_DRAWN
        return finish or AS_DRAWN

    def repeats(self, count: int) -> list[PipelineConfig]:
        """This config under ``count`` seeds in a row, of everything and of the data set's split.

        They share nothing: every model, split and test image choice is a repeat's own, so that
        what differs between them is chance.

        >>> [each.seed for each in PipelineConfig(seed=3).repeats(2)]
        [3, 4]
        """
        splits = (self.dataset.split_seed + repeat for repeat in range(count))
        datasets = [self.dataset.model_copy(update={"split_seed": split}) for split in splits]
        return [
            self.model_copy(update={"seed": self.seed + repeat, "dataset": dataset})
            for repeat, dataset in enumerate(datasets)
        ]

    def with_resources(self, given: Mapping[str, Resources]) -> PipelineConfig:
        """The config with other resources for some stages; no result changes."""
        sections = {
            stage: getattr(self, stage).model_copy(update={"resources": resources})
            for stage, resources in given.items()
        }
        return self.model_copy(update=sections)

    @model_validator(mode="after")
    def _sections_agree(self) -> PipelineConfig:
        problems = chain(_of_sizes(self), _of_drawing(self), _of_data(self))
        if self.seeds.protocol.is_known and (problem := next(problems, None)):
            raise ValueError(problem)
        return self


def _of_sizes(config: PipelineConfig) -> Iterator[str]:
    rivals = config.evaluation.rivals
    ensemble = max((r.size or 0 for r in rivals if isinstance(r, DeepEnsemble)), default=0)
    for path, count in (
        ("seeds.protocol", config.seeds.num_models),
        ("samples.count", config.samples.count),
        ("generator.probes.count", config.generator.probes.count),
        ("evaluation.rivals", ensemble),
    ):
        if count > MOST_MODELS:
            yield f"{path}: expected at most {MOST_MODELS:,} models, got {count:,}"
    latent_size, models = config.autoencoder.model.latent_size, config.num_training_models
    if latent_size is not None and latent_size >= models:
        yield (
            f"autoencoder.model.latent_size: expected fewer than the {models} models the "
            f"generator learns from, so that it cannot store them one by one, got {latent_size}; "
            "lower it or train more seeds"
        )
    size = config.evaluation.bagging.size
    if size is not None and size > config.samples.count:
        yield (
            f"evaluation.bagging.size: expected at most samples.count = {config.samples.count}, "
            f"got {size}; lower it or draw more samples"
        )


def _of_data(config: PipelineConfig) -> Iterator[str]:
    """What is asked of the data set that one of its kind cannot give."""
    own, asked = config.dataset, config.evaluation
    is_image, is_row = (isinstance(own, k) for k in (Digits | ImageFiles, Table | ArrayParts))
    known = IMAGES if is_image else TABLES
    for name in asked.shift:
        if name not in known:
            yield (
                f"evaluation.shift: expected corruptions of {'images' if is_image else 'columns'} "
                f"for dataset.kind {own.kind}, {', '.join(known)}, got {name}"
            )
    for each in asked.ood:
        if isinstance(each, LeftOut) and not own.left_out:
            yield "evaluation.ood: left_out needs classes in dataset.left_out, got none"
        if isinstance(each, Others) and (is_row or isinstance(each.dataset, Table | ArrayParts)):
            yield "evaluation.ood: expected data sets of images, as other inputs differ"
    if isinstance(own, Digits) and own.num_calibration >= own.num_validation:
        yield (
            f"dataset.num_calibration: expected fewer than the {own.num_validation} validation "
            f"examples, got {own.num_calibration}; lower it or raise dataset.num_validation"
        )


def _of_drawing(config: PipelineConfig) -> Iterator[str]:
    sampler, process = config.samples.sampler, config.generator.process
    if not isinstance(process, sampler.process):
        fitting = [cls for cls in variants(Sampler) if cls.process is type(process)]  # type: ignore[attr-defined]
        names = " or ".join(cls.model_fields["kind"].default for cls in fitting)
        yield (
            f"samples.sampler: expected {names} for generator.process {process.kind}, "
            f"got {sampler.kind}"
        )
    guidance, protocol = config.finish.guidance, config.seeds.protocol
    if guidance and protocol.num_early == 0:
        yield (
            "samples.finish.guidance: expected 0 without early tails, whose mean shows the way, "
            f"got {guidance:g}; use seeds.protocol tails with early_tails of 1 or more, or "
            "checkpoints with early"
        )
    include = [*config.parameters.include]
    all_own = "*" in include
    if not all_own and not protocol.branches:
        yield (
            "parameters.include: expected all parameters (*) for seeds.protocol "
            f"{protocol.kind}, whose members have no base to share, got {include}; use "
            "trajectory, tails or forks"
        )
    for section, asked, why in (
        ("samples.finish", guidance, "whose way it moves on along"),
        ("parameters.include", not all_own, "whose base it has"),
    ):
        if asked and not _trunks_are_known(config):
            yield (
                f"generator.conditional: expected true with {section} and {protocol.num_trunks} "
                f"trunks, as a drawn model must know {why}, got false"
            )


def _trunks_are_known(config: PipelineConfig) -> bool:
    return config.seeds.protocol.num_trunks == 1 or config.generator.conditional


def identity(spec: Spec) -> dict[str, Any]:
    """What decides a spec's result: its JSON without what is ``Incidental``.

    >>> "resources" in identity(SeedsSection())
    False
    """
    own_type = {} if spec.own_type is None else {"type": spec.own_type}
    return own_type | {
        name: _plain(value)
        for name, value in spec
        if not isinstance(value, Resources | Probes) and not is_incidental(type(spec), name)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return identity(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
