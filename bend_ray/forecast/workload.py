"""What a config has to be done, stage by stage: phases of equal pieces, and bytes to store.

Shape letters: K members, T of them for training, P parameters of a member, W of a whole model,
N images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bend_ray.config.graph import ordinary
from bend_ray.config.schema import PipelineConfig
from bend_ray.forecast.calibration import Problem, Rates
from bend_ray.stages.representations import GRAM_PARTS
from bend_ray.stages.sample_drawer import drawn_together
from bend_ray.stages.seeds import HELD

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Phase:
    """Work of a stage that is shared out in equal pieces, or is done by one process.

    Attributes:
        name: what it is, in words.
        pieces: how many, done side by side by as many processes as there are.
        seconds: of one.
        driver_seconds: that the driver spends on each, one after another.
    """

    name: str
    pieces: int
    seconds: float
    driver_seconds: float = 0.0

    @property
    def work(self) -> float:
        """Seconds of one processor that does it all."""
        return self.pieces * self.seconds

    def wall(self, processes: int) -> float:
        """Seconds until it is done."""
        rounds = -(-self.pieces // min(processes, self.pieces))
        return max(rounds * self.seconds, self.pieces * self.driver_seconds)

    def bound(self, processes: int) -> str:
        """What sets its wall time."""
        if self.pieces * self.driver_seconds >= self.wall(processes):
            return f"driver, {self.name}"
        return self.name


@dataclass(frozen=True)
class Work:
    """A stage's phases, one after another, what it stores, and what one of its processes holds.

    Of the latter the models alone: with all else, several times that (measured: 2.5 to 4.6).
    """

    stage: str
    phases: tuple[Phase, ...]
    stored_bytes: int
    held_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Of one processor."""
        return sum(phase.work for phase in self.phases)

    def wall(self, processes: int) -> float:
        """Seconds with so many processes."""
        return sum(phase.wall(processes) for phase in self.phases)


def workload(config: PipelineConfig, problem: Problem, rates: Rates) -> list[Work]:
    """What every stage has to do, at the rates of one processor."""
    return [
        Work(
            "seeds",
            tuple(_seeds(config, problem, rates)),
            _seeds_bytes(config, problem),
            HELD * _cohort(config) * problem.parameters,
        ),
        Work(
            "autoencoder",
            tuple(_autoencoder(config, problem, rates)),
            _representation_bytes(config, problem) + FLOAT_BYTES * problem.coder_parameters,
        ),
        Work("latents", (), FLOAT_BYTES * problem.members * config.latent_size),
        Work(
            "generator",
            tuple(_generator(config, problem, rates)),
            FLOAT_BYTES * problem.denoiser_parameters,
        ),
        Work(
            "samples",
            tuple(_samples(config, problem, rates)),
            FLOAT_BYTES * config.samples.count * problem.parameters,
        ),
        Work(
            "evaluation",
            tuple(_evaluation(config, problem, rates)),
            FLOAT_BYTES * _num_ordinary(config) * problem.whole,
            FLOAT_BYTES
            * (
                (problem.members + config.samples.count) * problem.parameters
                + _num_ordinary(config) * problem.whole
            ),
        ),
    ]


def _cohort(config: PipelineConfig) -> int:
    """Models of a cohort: those that all of its runs leave."""
    runs = config.seeds.protocol.runs()
    return min(len(runs), config.seeds.cohort_size) * len(runs[0])


def _seeds_bytes(config: PipelineConfig, problem: Problem) -> int:
    protocol = config.seeds.protocol
    has_early = protocol.run_stretch(config.seeds.recipe).early > 0
    own = problem.members + (protocol.num_trunks if has_early else 0)
    return FLOAT_BYTES * (own * problem.parameters + protocol.num_roots * problem.whole)


def _representation_bytes(config: PipelineConfig, problem: Problem) -> int:
    if config.autoencoder.model.features != "principal":
        return 2 * FLOAT_BYTES * problem.parameters  # means and scales
    weights = 2 * FLOAT_BYTES * problem.features * problem.training
    return weights + FLOAT_BYTES * problem.members * problem.features


def _seeds(config: PipelineConfig, problem: Problem, rates: Rates) -> Iterator[Phase]:
    """Roots, then cohorts."""
    section, protocol, images = config.seeds, config.seeds.protocol, problem.train_images
    if protocol.num_roots:
        together = min(protocol.num_roots, section.cohort_size)
        steps = section.recipe.num_steps(protocol.root_stretch(section.recipe).epochs, images)
        seconds = rates.setup(together) + steps * rates.step(together)
        yield Phase("roots", -(-protocol.num_roots // section.cohort_size), seconds)
    runs = protocol.runs()
    together = min(len(runs), section.cohort_size)
    members = together * len(runs[0])
    stretch = protocol.run_stretch(section.recipe)
    steps = section.recipe.num_steps(stretch.epochs, images)
    seconds = rates.setup(together) + steps * rates.step(together)
    seconds += members * problem.validation_images * rates.answer
    seconds += members * problem.parameters * FLOAT_BYTES / rates.write_bytes
    yield Phase("cohorts", -(-len(runs) // section.cohort_size), seconds, rates.piece)


def _autoencoder(config: PipelineConfig, problem: Problem, rates: Rates) -> Iterator[Phase]:
    if config.autoencoder.model.features == "principal":
        read = problem.members * problem.parameters * FLOAT_BYTES / rates.read_bytes
        seconds = read + problem.parameters * rates.gram_column
        yield Phase("Gram matrix, K x K x P", GRAM_PARTS, seconds / GRAM_PARTS)
        yield Phase("principal directions", 1, rates.eigenvectors)
    yield Phase("training", 1, config.autoencoder.training.steps * rates.coder_step)


def _generator(config: PipelineConfig, problem: Problem, rates: Rates) -> Iterator[Phase]:
    yield Phase("training", 1, config.generator.training.steps * rates.denoiser_step)
    if probes := config.generator.probes.count:
        yield Phase("probes", 1, _drawing(probes, problem, rates))


def _samples(config: PipelineConfig, problem: Problem, rates: Rates) -> Iterator[Phase]:
    section = config.samples
    together = drawn_together(section, problem.parameters)
    seconds = _drawing(together, problem, rates)
    seconds += together * problem.parameters * FLOAT_BYTES / rates.write_bytes
    recipe = config.seeds.recipe
    annealing = recipe.num_steps(
        config.finish.annealing.stretch(recipe).epochs, problem.train_images
    )
    if annealing:
        seconds += rates.setup(together) + annealing * rates.step(together)
    yield Phase("shards", -(-section.count // together), seconds, rates.piece)


def _drawing(models: int, problem: Problem, rates: Rates) -> float:
    """Seconds of a process that draws models and asks them about the validation images."""
    read = problem.training * problem.parameters * FLOAT_BYTES / rates.read_bytes
    mixed = models * problem.parameters * rates.mixed
    return read + rates.draw(models) + mixed + models * problem.validation_images * rates.answer


def _num_ordinary(config: PipelineConfig) -> int:
    """Models trained for the deep ensemble."""
    others = ordinary(config)
    return others.seeds.num_models if others else 0


def _evaluation(config: PipelineConfig, problem: Problem, rates: Rates) -> Iterator[Phase]:
    if others := ordinary(config):
        yield from _seeds(others, problem, rates)
    size = config.evaluation.bagging.size or config.samples.count
    drawn = config.samples.count + sum(
        rival.num_drawn(size, config.seeds.protocol.num_trunks)
        for rival in config.evaluation.rivals
    )
    asked = problem.members + _num_ordinary(config) + drawn
    images = problem.validation_images + problem.test_images
    read = asked * problem.parameters * FLOAT_BYTES / rates.read_bytes
    yield Phase("answers of all models", 1, read + asked * images * rates.answer)
