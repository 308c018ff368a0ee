"""What a config has to be done, stage by stage: phases of equal pieces, and bytes to store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bend_ray.config.graph import ordinary
from bend_ray.config.schema import PipelineConfig
from bend_ray.forecast.calibration import Problem, Rates
from bend_ray.stages.representations import GRAM_PARTS
from bend_ray.stages.sample_drawer import drawn_together

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
        by_driver = self.pieces * self.driver_seconds >= self.wall(processes)
        return f"driver, {self.name}" if by_driver else self.name


@dataclass(frozen=True)
class Work:
    """A stage's phases, one after another, and what it stores."""

    stage: str
    phases: tuple[Phase, ...]
    stored_bytes: int

    @property
    def seconds(self) -> float:
        """Of one processor."""
        return sum(phase.work for phase in self.phases)

    def wall(self, processes: int) -> float:
        """Seconds with so many processes."""
        return sum(phase.wall(processes) for phase in self.phases)


def workload(config: PipelineConfig, problem: Problem, rates: Rates) -> list[Work]:
    """What every stage has to do, at the rates of one processor."""
    counts = _Counts(config, problem, rates)
    drawn = config.samples.count * problem.parameters
    phases_and_floats = {
        "seeds": (counts.seeds(config), counts.stored_seeds()),
        "autoencoder": (counts.autoencoder(), counts.stored_autoencoder()),
        "latents": ((), problem.members * config.latent_size),
        "generator": (counts.generator(), problem.denoiser_parameters),
        "samples": (counts.samples(), drawn),
        "evaluation": (counts.evaluation(), counts.num_ordinary * problem.whole),
    }
    return [
        Work(stage, tuple(phases), FLOAT_BYTES * floats)
        for stage, (phases, floats) in phases_and_floats.items()
    ]


@dataclass(frozen=True)
class _Counts:
    """Phases of the stages, and floats that they store."""

    config: PipelineConfig
    problem: Problem
    rates: Rates

    @property
    def num_ordinary(self) -> int:
        """Models trained for the deep ensemble."""
        others = ordinary(self.config)
        return others.seeds.num_models if others else 0

    def stored_seeds(self) -> int:
        protocol = self.config.seeds.protocol
        has_early = protocol.run_stretch(self.config.seeds.recipe).early > 0
        own = self.problem.members + (protocol.num_trunks if has_early else 0)
        return own * self.problem.parameters + protocol.num_roots * self.problem.whole

    def stored_autoencoder(self) -> int:
        problem = self.problem
        if self.config.autoencoder.model.features != "principal":
            return 2 * problem.parameters + problem.coder_parameters  # means and scales
        weights = 2 * problem.features * problem.training
        return weights + problem.members * problem.features + problem.coder_parameters

    def seeds(self, config: PipelineConfig) -> Iterator[Phase]:
        """Roots, then cohorts."""
        section, protocol = config.seeds, config.seeds.protocol
        together = min(protocol.num_roots, section.cohort_size)
        if together:
            seconds = self._fit(config, together, protocol.root_stretch(section.recipe).epochs)
            yield Phase("roots", -(-protocol.num_roots // section.cohort_size), seconds)
        runs = protocol.runs()
        together = min(len(runs), section.cohort_size)
        members = together * len(runs[0])
        seconds = self._fit(config, together, protocol.run_stretch(section.recipe).epochs)
        seconds += members * self.problem.validation_images * self.rates.answer
        seconds += self._bytes(members) / self.rates.write_bytes
        yield Phase("cohorts", -(-len(runs) // section.cohort_size), seconds, self.rates.piece)

    def autoencoder(self) -> Iterator[Phase]:
        problem, rates = self.problem, self.rates
        if self.config.autoencoder.model.features == "principal":
            seconds = self._bytes(problem.members) / rates.read_bytes
            seconds += problem.parameters * rates.gram_column
            yield Phase("Gram matrix, K x K x P", GRAM_PARTS, seconds / GRAM_PARTS)
            yield Phase("principal directions", 1, rates.eigenvectors)
        yield Phase("training", 1, self.config.autoencoder.training.steps * rates.coder_step)

    def generator(self) -> Iterator[Phase]:
        section = self.config.generator
        yield Phase("training", 1, section.training.steps * self.rates.denoiser_step)
        if section.probes.count:
            yield Phase("probes", 1, self._drawing(section.probes.count))

    def samples(self) -> Iterator[Phase]:
        section, recipe = self.config.samples, self.config.seeds.recipe
        together = drawn_together(section, self.problem.parameters)
        seconds = self._drawing(together) + self._bytes(together) / self.rates.write_bytes
        if epochs := self.config.finish.annealing.stretch(recipe).epochs:
            seconds += self._fit(self.config, together, epochs)
        yield Phase("shards", -(-section.count // together), seconds, self.rates.piece)

    def evaluation(self) -> Iterator[Phase]:
        config, problem = self.config, self.problem
        if others := ordinary(config):
            yield from self.seeds(others)
        size = config.evaluation.bagging.size or config.samples.count
        trunks = config.seeds.protocol.num_trunks
        drawn = sum(rival.num_drawn(size, trunks) for rival in config.evaluation.rivals)
        asked = problem.members + self.num_ordinary + config.samples.count + drawn
        images = problem.validation_images + problem.test_images
        seconds = self._bytes(asked) / self.rates.read_bytes + asked * images * self.rates.answer
        yield Phase("answers of all models", 1, seconds)

    def _bytes(self, models: int) -> int:
        return models * self.problem.parameters * FLOAT_BYTES

    def _fit(self, config: PipelineConfig, together: int, epochs: float) -> float:
        """Seconds of a process that trains some models at once."""
        steps = config.seeds.recipe.num_steps(epochs, self.problem.train_images)
        return self.rates.setup(together) + steps * self.rates.step(together)

    def _drawing(self, models: int) -> float:
        """Seconds of a process that draws models and asks them about the validation images."""
        problem, rates = self.problem, self.rates
        read = self._bytes(problem.training) / rates.read_bytes
        mixed = models * problem.parameters * rates.mixed
        return read + rates.draw(models) + mixed + models * problem.validation_images * rates.answer
