"""Chains of checkpoints for the budget bench: trained once a split, charged to whoever uses them.

A gradient step of one member is charged at a price that was measured on ordinary trainings one by
one, whatever form the chains are trained in, so that no method gains from company. Everything
else is measured in CPU seconds while it is done.

Shape letters: M chains, T tails, S snapshots, P parameters, N images, C classes, E members.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from specs import Bench, Chains
from torch import Tensor

from bend_ray.data.examples import Examples, Parts
from bend_ray.networks.batchnorm import recalibrate_batchnorm
from bend_ray.networks.fitting import fit, initial_parameters
from bend_ray.networks.recipe import Recipe, Stretch
from bend_ray.networks.stacking import Stack, form_for, predict_logits
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.randomness import generator_for, seed_for

EIGHTHS = 8
"""Checkpoints of a whole schedule, from which trunks are taken."""
PRICED_STEPS = 25
"""Steps behind the price of one."""
TOGETHER = 32
"""Chains trained at once."""


@dataclass(frozen=True)
class Plan:
    """An allotment in numbers.

    Attributes:
        count: M.
        epochs: of a chain.
        tails: T.
        steps: gradient steps of a chain, all tails or forks included.
        tail_steps: of one tail.
    """

    count: int
    epochs: float
    tails: int
    steps: int
    tail_steps: float


class Task:
    """One split of a bench: its data, its classifiers, its chains so far."""

    def __init__(self, bench: Bench, repeat: int) -> None:
        self.bench, self.repeat = bench, repeat
        spec = bench.dataset.model_copy(update={"split_seed": repeat})
        self.dataset: Parts = spec.load()
        module = self._build()
        self.layout = ParameterLayout.of(module)
        form = form_for(module, "cpu")
        self.stack = Stack(module, self.layout, form)
        self.step_seconds = self._price()
        self._kept: dict[tuple[object, ...], Tensor] = {}

    @property
    def unit_steps(self) -> int:
        """Gradient steps of one ordinary training."""
        return self.bench.recipe.num_steps(self.bench.recipe.epochs, len(self.dataset.train))

    @property
    def unit_seconds(self) -> float:
        """CPU seconds of one ordinary training."""
        return self.unit_steps * self.step_seconds

    def plan(self, chains: Chains, budget: int) -> Plan:
        """How many chains of which length a budget gives."""
        count = chains.count or max(1, round(chains.per_unit * budget))
        share, forked = budget * self.bench.recipe.epochs / count, 1 - chains.trunk_fraction
        epochs = share / (1 + (chains.forks - 1) * forked)
        tails = chains.tails + chains.tails_per_unit * budget
        images = len(self.dataset.train)
        steps = self.bench.recipe.num_steps(epochs, images)
        trunk = self.bench.recipe.num_steps(chains.trunk_fraction * epochs, images)
        steps += (chains.forks - 1) * (steps - trunk)
        return Plan(count, epochs, tails, steps, (steps - trunk) / max(1, tails))

    def ends(self, chains: Chains, plan: Plan) -> Tensor:
        """Ends ``(M, P)`` of whole schedules."""
        return self._schedules(chains, plan)[-1]

    def whole(self, count: int, epochs: float) -> Tensor:
        """Ends ``(M, P)`` of whole schedules of so many epochs."""
        return self.ends(Chains(), Plan(count, epochs, 0, self.steps_of(epochs), 0.0))

    def steps_of(self, epochs: float) -> int:
        """Gradient steps of so many epochs."""
        return self.bench.recipe.num_steps(epochs, len(self.dataset.train))

    def variant(self, plan: Plan, index: int, width: float) -> Tensor:
        """The end ``(1, P)`` of a whole schedule with hyper-parameters of its own; the first has
        the recipe's."""
        recipe, stream = self._recipe(Chains(), plan), self.generator("variant", index)
        if index:
            rate, decay, smoothing = (2 * torch.rand(3, generator=stream) - 1).tolist()
            update = {
                "learning_rate": recipe.optimizer.learning_rate * width**rate,
                "weight_decay": recipe.optimizer.weight_decay * width**decay,
            }
            recipe = recipe.model_copy(
                update={
                    "optimizer": recipe.optimizer.model_copy(update=update),
                    "label_smoothing": recipe.label_smoothing * (1 + smoothing),
                }
            )
        stretch = Stretch(start=0.0, epochs=plan.epochs)
        name = ("variant", plan.epochs, width)

        def train(first: int, last: int) -> Tensor:
            return self._fit(self.start(index)[None], recipe, stretch, (*name, index))

        return self._grown((*name, index), 1, train)[-1]

    def forks(self, chains: Chains, plan: Plan) -> Tensor:
        """Ends ``(F, M, P)`` of the forks of each trunk."""
        trunk_MP = self._trunks(chains, plan, plan.count)
        start = chains.trunk_fraction * plan.epochs
        stretch = Stretch(start=start, epochs=plan.epochs - start)
        recipe = self._recipe(chains, plan)
        name = ("fork", plan.epochs, chains.trunk_fraction)
        ends = [
            self._fit(trunk_MP, recipe, stretch, (*name, fork))[-1] for fork in range(chains.forks)
        ]
        return torch.stack(ends)

    def tails(self, chains: Chains, plan: Plan) -> Tensor:
        """Tails ``(T, M, P)``."""
        rate = chains.learning_rate or self.bench.recipe.optimizer.learning_rate
        name = ("tails", plan.epochs, plan.tails, chains.trunk_fraction, chains.rate, rate)
        name = (*name, chains.trunk_rate)

        def train(first: int, last: int) -> Tensor:
            trunk = self._trunks(chains, plan, last)[first:last]
            start = chains.trunk_fraction * plan.epochs
            cyclic = chains.rate == "cyclic"
            stretch = Stretch(
                start=start,
                epochs=plan.epochs - start,
                constant_rate=None if cyclic else rate,
                cyclic_rate=rate if cyclic else None,
                snapshots=plan.tails,
            )
            return self._fit(trunk, self._recipe(chains, plan), stretch, name, first)

        return self._grown(name, plan.count, train)

    def repaired(self, theta_EP: Tensor, steps: int, rate: float, name: Sequence[object]) -> Tensor:
        """Models ``(E, P)`` after a short training along half a cosine from ``rate``."""
        epochs = steps / self.bench.recipe.num_steps(1, len(self.dataset.train))
        stretch = Stretch(start=0.0, epochs=epochs, cyclic_rate=rate)
        return self._fit(theta_EP, self.bench.recipe, stretch, ("repair", *name))[-1]

    def recalibrated(self, theta_EP: Tensor) -> Tensor:
        """Models with BatchNorm's statistics of training images."""
        images = self.dataset.train.inputs[: self.bench.recalibration_images]
        return recalibrate_batchnorm(self.stack, theta_EP, self.dataset.normalise(images))

    def logits(self, theta_EP: Tensor, images: Examples) -> Tensor:
        """Answers ``(E, N, C)``."""
        self.stack.eval()
        return predict_logits(self.stack, theta_EP, self.dataset.normalise(images.inputs))

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A stream of the split's own."""
        return generator_for(self.repeat, "budget", *purpose)

    def _trunks(self, chains: Chains, plan: Plan, count: int) -> Tensor:
        if chains.trunk_fraction == 0.0:
            return torch.stack([self.start(index) for index in range(count)])
        eighth = chains.trunk_fraction * EIGHTHS
        if eighth != int(eighth):
            raise ValueError(f"expected a trunk_fraction in eighths, got {chains.trunk_fraction}")
        return self._schedules(chains, plan)[int(eighth) - 1]

    def _schedules(self, chains: Chains, plan: Plan) -> Tensor:
        """Checkpoints ``(8, M, P)`` of whole schedules."""
        name = ("schedule", plan.epochs, chains.trunk_rate)

        def train(first: int, last: int) -> Tensor:
            start_MP = torch.stack([self.start(index) for index in range(first, last)])
            stretch = Stretch(start=0.0, epochs=plan.epochs, snapshots=EIGHTHS)
            return self._fit(start_MP, self._recipe(chains, plan), stretch, name, first)

        return self._grown(name, plan.count, train)

    def _grown(
        self, name: tuple[object, ...], count: int, train: Callable[[int, int], Tensor]
    ) -> Tensor:
        """The first ``count`` chains of a kind; those that are missing are trained."""
        have = self._kept.get(name)
        first = 0 if have is None else have.shape[1]
        while first < count:
            last = min(count, first + TOGETHER)
            more = train(first, last)
            have = more if have is None else torch.cat([have, more], dim=1)
            self._kept[name], first = have, last
        assert have is not None
        return have[:, :count]

    def _recipe(self, chains: Chains, plan: Plan) -> Recipe:
        recipe = self.bench.recipe
        rate = chains.trunk_rate or recipe.optimizer.learning_rate
        optimizer = recipe.optimizer.model_copy(update={"learning_rate": rate})
        # A chain's schedule is its own: epochs need not be whole, which the spec asks of users.
        return recipe.model_copy(update={"epochs": plan.epochs, "optimizer": optimizer})

    def _fit(
        self,
        start_EP: Tensor,
        recipe: Recipe,
        stretch: Stretch,
        name: Sequence[object],
        first: int = 0,
    ) -> Tensor:
        generators = [
            generator_for(self.repeat, *map(str, name), "order", first + index)
            for index in range(len(start_EP))
        ]
        dataset = self.dataset
        arguments = (dataset.train, dataset.normalise, recipe, stretch, generators)
        return fit(self.stack, start_EP, *arguments)

    def _build(self) -> torch.nn.Module:
        dataset = self.dataset
        return self.bench.architecture.build(dataset.input_shape, len(dataset.class_names))

    def start(self, index: int) -> Tensor:
        """A fresh model ``(P,)``."""
        seed = seed_for(self.repeat, "start", index)
        return initial_parameters(self._build, self.layout.flatten, seed)

    def _price(self) -> float:
        """CPU seconds of a step of one member alone: the least of three measurements."""
        epoch = self.bench.recipe.num_steps(1, len(self.dataset.train))
        stretch = Stretch(start=0.0, epochs=PRICED_STEPS / epoch)
        taken = []
        for turn in range(4):
            start = self.start(turn)[None]
            began = time.process_time()
            self._fit(start, self.bench.recipe, stretch, ("price", turn))
            taken.append((time.process_time() - began) / PRICED_STEPS)
        return min(taken[1:])
