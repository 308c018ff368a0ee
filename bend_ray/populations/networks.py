"""The base classifiers of a config on one device: their data, their layout, and all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from bend_ray.artifacts.store import Artifact
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.examples import Examples, Parts, moved, pieces
from bend_ray.data.streaming import Streamed
from bend_ray.ensemble.predictions import block_size
from bend_ray.imported import Imported
from bend_ray.networks.batches import Feed
from bend_ray.networks.batchnorm import recalibrate_batchnorm
from bend_ray.networks.fitting import Keeper, Training, fitted
from bend_ray.networks.probe import EXAMPLES, check_batches, check_network, check_recipe
from bend_ray.networks.recipe import Stretch, check_precision
from bend_ray.networks.stacking import Stack, call, form_for, predict_logits
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.parameters.proof import Symmetries, find_symmetries
from bend_ray.populations.members import load_roots
from bend_ray.randomness import generator_for


class Classifiers:
    """What every stage needs to turn vectors into answers, on a device.

    Where members share a base, it is that of the trunks of ``seeds``.

    Attributes:
        whole: the layout ``(W,)`` of all of a model.
        layout: the layout ``(P,)`` of what is a member's own: a row of a population.
        stack: whole models.
    """

    def __init__(
        self, config: PipelineConfig, dataset: Parts, device: str, seeds: Artifact | None = None
    ) -> None:
        self.config = config
        self.architecture = config.seeds.architecture
        self.dataset = dataset
        self.device = device
        module = self.build()
        self.whole = ParameterLayout.of(module)
        self.layout = ParameterLayout.of(module, config.parameters.include)
        self._module = module.to(device)
        self._form = form_for(module, device, dataset.shown(2))
        self.stack = Stack(self._module, self.whole, self._form)
        self._seeds = seeds

    def build(self) -> torch.nn.Module:
        """A fresh module; its parameters come from torch's global generator."""
        return self.architecture.build(self.dataset.input_shape, self.dataset.num_outputs)

    @cached_property
    def symmetries(self) -> Symmetries:
        """By which whole models are aligned."""
        return find_symmetries(self._module, self.dataset.shown(EXAMPLES), call)

    @property
    def shares_a_base(self) -> bool:
        """Whether a member's vector is only a part of it."""
        return self.layout.size < self.whole.size

    def own(self, theta_RW: Tensor) -> Tensor:
        """Of whole models, what is a member's own: ``(R, P)``."""
        return self.layout.flatten(self.whole.unflatten(theta_RW))

    @cached_property
    def _stacks(self) -> list[Stack]:
        """Of members on the base of each trunk; the last, -1, on the mean of the trunks' bases."""
        assert self._seeds is not None
        roots_RW = load_roots(self._seeds).to(self.device)
        mean_W = roots_RW[roots_RW.isfinite().all(dim=1)].mean(dim=0)
        own = {entry.name for entry in self.layout.entries}
        states = [self.whole.unflatten(base_W) for base_W in (*roots_RW, mean_W)]
        bases = [{k: tensor for k, tensor in state.items() if k not in own} for state in states]
        return [Stack(self._module, self.layout, self._form, base) for base in bases]

    def _groups(self, models: int, trunks_K: Sequence[int] | None) -> list[tuple[Stack, list[int]]]:
        """The rows of models that share a base, or of all where none does."""
        if trunks_K is None or not self.shares_a_base:
            return [(self.stack, list(range(models)))]
        rows: dict[int, list[int]] = {} if len(trunks_K) else {0: []}
        for row, trunk in enumerate(trunks_K):
            rows.setdefault(int(trunk), []).append(row)
        return [(self._stacks[trunk], own) for trunk, own in rows.items()]

    def logits(
        self, theta_KP: Tensor, examples: Examples | Streamed, trunks_K: Sequence[int] | None = None
    ) -> Tensor:
        """Logits ``(K, N, C)`` on the CPU; ``trunks_K`` says whose base each model has."""
        return torch.cat(list(self.answers(theta_KP, examples, trunks_K)), dim=1)

    def answers(
        self,
        theta_KP: Tensor,
        examples: Examples | Streamed,
        trunks_K: Sequence[int] | None = None,
        most: int | None = None,
    ) -> Iterator[Tensor]:
        """As ``logits``, of consecutive examples, ``most`` at a time at most."""
        theta_KP = theta_KP.to(self.device)
        for inputs in pieces(examples, most):
            there = self.dataset.normalise(moved(inputs, self.device))
            yield self._by_trunk(partial(predict_logits, inputs=there), theta_KP, trunks_K)

    def recalibrate(self, theta_KP: Tensor, trunks_K: Sequence[int] | None = None) -> Tensor:
        """Models that were not trained, with BatchNorm's statistics of their own.

        The statistics are those of ``samples.recalibration_images`` training images, the same
        ones for every model; no validation or test image is looked at.
        """
        train, count = self.dataset.train, self.config.samples.recalibration_images
        if count == 0 or self.layout.num_trainable == self.layout.size:
            return theta_KP
        generator = generator_for(self.config.seed, "recalibration")
        chosen = torch.randperm(len(train), generator=generator)[:count]
        inputs = self.dataset.normalise(moved(train.take(chosen), self.device))
        return self._by_trunk(partial(recalibrate_batchnorm, inputs=inputs), theta_KP, trunks_K)

    def validate(
        self, theta_KP: Tensor, trunks_K: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score (accuracy, or R^2) and NLL ``(K,)`` of each model on the validation part."""
        validation, task, found = self.dataset.validation, self.dataset.task, []
        for own in torch.split(
            torch.arange(len(theta_KP)), block_size(len(validation), self.dataset.num_outputs)
        ):
            trunks = None if trunks_K is None else [trunks_K[k] for k in own.tolist()]
            logits_KNC = self.logits(theta_KP[own], validation, trunks)
            nll_K = -task.log_likelihoods(logits_KNC, validation.labels_N).mean(dim=1)
            found.append((task.member_scores(logits_KNC, validation.labels_N), nll_K))
        scores_K, nlls_K = zip(*found, strict=True)
        return torch.cat(scores_K), torch.cat(nlls_K)

    def fitted(
        self,
        start_KP: Tensor,
        trunks_K: Sequence[int] | None,
        stretch: Stretch,
        generators: Sequence[torch.Generator],
        *,
        chunk: int | None = None,
        keep: Keeper | None = None,
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """As ``fitting.fitted``, of trunks' members, or of whole models where no trunks are given.

        Each model has its generator; those that share a base are trained together.
        """
        groups, start_KP = self._groups(len(start_KP), trunks_K), start_KP.to(self.device)
        feed = self._feed()
        return fitted(groups, start_KP, feed, stretch, generators, chunk=chunk, keep=keep)

    def training(
        self, start_KP: Tensor, stretch: Stretch, generators: Sequence[torch.Generator]
    ) -> Training:
        """A training of whole models that take every step together."""
        return Training(self.stack, start_KP.to(self.device), self._feed(), stretch, generators)

    def _feed(self) -> Feed:
        parts, recipe = self.dataset, self.config.seeds.recipe
        return Feed(parts.train, parts.normalise, recipe, parts.task, torch.device(self.device))

    def _by_trunk(
        self,
        work: Callable[[Stack, Tensor], Tensor],
        theta_KP: Tensor,
        trunks_K: Sequence[int] | None,
    ) -> Tensor:
        """What ``work`` gives of each model ``(K, ...)``, on the CPU; a trunk's at a time."""
        theta_KP = theta_KP.to(self.device)
        groups = self._groups(len(theta_KP), trunks_K)
        if len(groups) == 1:
            return work(groups[0][0], theta_KP).cpu()
        parts = [work(stack, theta_KP[rows]) for stack, rows in groups]
        order = torch.tensor([row for _, rows in groups for row in rows]).argsort()
        return torch.cat(parts).cpu()[order]


def checked(config: PipelineConfig, dataset: Parts) -> Classifiers:
    """The base classifiers of a config on the CPU, once all is told that can be before training.

    DataError where the network does not fit the data, or is none that can be trained and voted.
    """
    architecture, sizes = config.seeds.architecture, dataset.input_shape
    if isinstance(architecture, Imported) or dataset.decoding is None:
        name = getattr(architecture, "target", architecture.kind)
        build = partial(architecture.build, sizes, dataset.num_outputs)
        check_network(build, dataset.shown(EXAMPLES), dataset.num_outputs, name)
    check_recipe(config.seeds.recipe, dataset)
    if not config.seeds.resources.num_gpus:
        check_precision(config.seeds.recipe.precision, torch.device("cpu"))
    classifiers = Classifiers(config, dataset, "cpu")
    batches, windows = config.seeds.recipe.batch_sizes(len(dataset.train)), dataset.train.windows
    if windows is not None and windows.images < len(dataset.train):
        windows.sizes(batches)
    batches += [min(config.samples.recalibration_images or batches[0], len(dataset.train))]
    smallest = min(batches)
    check_batches(classifiers.build, dataset.shown(smallest), smallest)
    return classifiers
