"""What a config has to be done, stage by stage, and what that takes on so many machines.

A stage is phases of equal pieces, and bytes to store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.filesize import decimal

from bend_ray.config.graph import STAGES, ordinary
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.inputs import SEVERITIES
from bend_ray.forecast.calibration import Problem, Rates
from bend_ray.process.log import duration
from bend_ray.stages.evaluation import models_a_piece
from bend_ray.stages.representations import GRAM_PARTS
from bend_ray.stages.samples import drawn_together
from bend_ray.stages.seeds import HELD

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Phase:
    """Work of a stage in equal pieces, done side by side by as many processes as there are.

    ``seconds`` are of a piece; so many more the driver spends on each, one after another.
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
    """A stage's phases, one after another, what it stores, and what one of its processes holds.

    Of the latter the models alone: with all else, several times that (measured: 2.5 to 4.6).
    """

    stage: str
    phases: tuple[Phase, ...]
    stored_bytes: int
    held_bytes: int = 0
    price: float = 0.0
    """Of a machine, an hour."""

    @property
    def seconds(self) -> float:
        """Of one processor."""
        return sum(phase.work for phase in self.phases)

    def wall(self, processes: int) -> float:
        """Seconds with so many processes."""
        return sum(phase.wall(processes) for phase in self.phases)


def workload(config: PipelineConfig, problem: Problem, rates: Rates) -> list[Work]:
    """What every stage has to do, at the rates of one processor."""
    counts, protocol = _Counts(config, problem, rates), config.seeds.protocol
    means = protocol.num_trunks if protocol.num_early else 0
    population = (problem.members + means) * problem.parameters
    code = 2 * problem.parameters  # means and scales
    if config.autoencoder.model.features == "principal":
        code = problem.features * (2 * problem.training + problem.members)
    phases_and_floats = {
        "seeds": (counts.seeds(config), population + protocol.num_roots * problem.whole),
        "autoencoder": (counts.autoencoder(), code + problem.coder_parameters),
        "latents": ((), problem.members * config.latent_size),
        "generator": (counts.generator(), problem.denoiser_parameters),
        "samples": (counts.samples(), config.samples.count * problem.parameters),
        "evaluation": (counts.evaluation(), counts.num_ordinary * problem.whole),
    }
    runs = protocol.runs()
    cohort = min(len(runs), config.seeds.cohort_size) * len(runs[0])
    held = {
        "seeds": HELD * cohort * problem.parameters,
        "evaluation": FLOAT_BYTES * models_a_piece(problem.whole) * problem.whole,
    }
    price = config.price_per_hour
    prices = {s: price.gpu if getattr(config, s).resources.num_gpus else price.cpu for s in STAGES}
    return [
        Work(stage, tuple(phases), FLOAT_BYTES * floats, held.get(stage, 0), prices[stage])
        for stage, (phases, floats) in phases_and_floats.items()
    ]


@dataclass(frozen=True)
class _Counts:
    """Phases of the stages."""

    config: PipelineConfig
    problem: Problem
    rates: Rates

    @property
    def num_ordinary(self) -> int:
        """Models trained for the deep ensemble."""
        others = ordinary(self.config)
        return others.seeds.num_models if others else 0

    def seeds(self, config: PipelineConfig) -> Iterator[Phase]:
        """Roots, then cohorts."""
        section, protocol = config.seeds, config.seeds.protocol
        together = min(protocol.num_roots, section.cohort_size)
        if together:
            seconds = self._fit(config, together, protocol.root_stretch(section.recipe).epochs)
            yield Phase("roots", -(-protocol.num_roots // section.cohort_size), seconds)
        runs = protocol.runs()
        most = max(1, section.cohort_size // protocol.begun)
        together, epochs = min(len(runs), most), protocol.run_stretch(section.recipe).epochs
        seconds = self._bytes(together * len(runs[0])) / self.rates.write_bytes
        for models, share, looks in protocol.parts(together):
            seconds += self._fit(config, models, share * epochs)
            seconds += models * looks * self.problem.validation_images * self.rates.answer
        yield Phase("cohorts", -(-len(runs) // most), seconds, self.rates.piece)

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
        if self.config.probed_at is not None:
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
        trunks = config.seeds.protocol.num_trunks
        drawn = sum(
            rival.num_drawn(config.samples.count, trunks) for rival in config.evaluation.rivals
        )
        asked = problem.members + self.num_ordinary + config.samples.count + drawn
        # A set of strange inputs is as large as the test part at most, so about.
        tests = 1 + len(config.evaluation.ood) + SEVERITIES * len(config.evaluation.shift)
        images = problem.validation_images + config.dataset.num_calibration
        images += tests * problem.test_images
        seconds = self._bytes(asked) / self.rates.read_bytes + asked * images * self.rates.answer
        pieces = -(-asked // models_a_piece(problem.parameters))
        yield Phase("answers of all models", pieces, seconds / pieces, self.rates.piece)

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


def wall_of(works: Sequence[Work], nodes: int) -> float:
    """Seconds of the run on so many machines of one processor each."""
    return sum(work.wall(nodes) for work in works)


def money_of(works: Sequence[Work], nodes: int) -> float:
    """What so many machines cost, each stage's for as long as it takes."""
    return sum(work.price * nodes * work.wall(nodes) for work in works) / 3600


def bottleneck(works: Sequence[Work], nodes: int) -> str:
    """The phase that takes longest, and its stage."""
    phases = [(phase, work.stage) for work in works for phase in work.phases]
    longest, stage = max(phases, key=lambda each: each[0].wall(nodes))
    return f"{stage}: {longest.bound(nodes)}"


def at_rate(works: Sequence[Work], models_per_hour: float, models: int) -> list[Work]:
    """The same, with the population trained at a rate that was measured elsewhere."""
    seeds, *others = works
    factor = models * 3600.0 / models_per_hour / seeds.seconds
    phases = (replace(phase, seconds=phase.seconds * factor) for phase in seeds.phases)
    return [replace(seeds, phases=tuple(phases)), *others]


def rows(works: Sequence[Work], nodes: Sequence[int]) -> list[tuple[str, ...]]:
    """The table: a line a stage, their sum, processor hours, and their money where it is known."""

    def line(name: str, some: Sequence[Work]) -> tuple[str, ...]:
        computing = duration(sum(work.seconds for work in some))
        stored = decimal(sum(work.stored_bytes for work in some))
        held = decimal(max(work.held_bytes for work in some))
        return (name, computing, stored, held, *(duration(wall_of(some, n)) for n in nodes))

    head = ("", "computing", "stored", "models held", *(f"{n} x" for n in nodes))
    hours = [n * wall_of(works, n) / 3600 for n in nodes]
    held = (f"{each:.2g} h" for each in hours)
    total = [line("together", works), ("processor hours, if all are held", "", "", "", *held)]
    if any(work.price for work in works):
        costs = (f"{money_of(works, n):.2f}" for n in nodes)
        total.append(("money, if a stage holds all", "", "", "", *costs))
    return [head, *(line(work.stage, [work]) for work in works), *total]


def as_json(works: Sequence[Work], nodes: Sequence[int]) -> dict[str, Any]:
    """The same as data, in seconds and bytes."""
    return {
        "stages": {work.stage: {**asdict(work), "seconds": work.seconds} for work in works},
        "nodes": {
            str(n): {
                "wall_seconds": {work.stage: work.wall(n) for work in works},
                "money": money_of(works, n),
                "bottleneck": bottleneck(works, n),
            }
            for n in nodes
        },
    }
