"""A contest: more models train than are wanted, and a greedy bag of them is chosen as they do.

A candidate has one model in each field, which are the folds of a cross-validation, or one data set:
trained on that field's training part, and judged by its validation part. At every look those that
were chosen before and all that train stand for election, by the bag's NLL of all fields' validation
examples together; who is not chosen is forgotten. After a trial the worst stop.

Source: Caruana et al., "Ensemble selection from libraries of models", 2004; chosen on the fly as in
TabPack, "Efficient hyperparameter ensembles for tabular deep learning", 2026.

Shape letters: F fields, C candidates, B chosen, P parameters, N validation examples of all fields.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor

from bend_ray.ensemble.bagging import greedy
from bend_ray.networks.fitting import Keeper, Training, initial_parameters
from bend_ray.networks.protocols import Varied
from bend_ray.networks.recipe import Stretch
from bend_ray.populations.networks import Classifiers
from bend_ray.randomness import generator_for, seed_for
from bend_ray.tasks import Task

ASKED = 256
"""Validation examples at a time: more need memory and save no time."""


@dataclass(frozen=True)
class Chosen:
    """A bag: of each who was chosen, its models, and what they were when."""

    theta_BFP: Tensor
    shares_BNV: Tensor
    """By which it is judged, as of ``Task.shares``."""
    candidate_B: Tensor
    step_B: Tensor
    """Of the training, after which it was as it is."""
    votes_B: Tensor
    """How often each was chosen."""

    def beside(self, other: Chosen) -> Chosen:
        """Both, one after the other."""
        return Chosen(*(torch.cat([getattr(self, n), getattr(other, n)]) for n in _NAMES))

    def elected(
        self, task: Task, labels_N: Tensor, places: int, once: bool, first: Sequence[int]
    ) -> Chosen:
        """Those who have votes after an election of so many places, a candidate one if ``once``.

        Some have one anyway. The others go, again and again, to who lowers the bag's NLL most.
        """
        kinds = self.candidate_B if once else None
        chosen = greedy(task, self.shares_BNV, labels_N, places, kinds, first)
        votes_B = torch.bincount(torch.tensor(chosen), minlength=len(self.votes_B))
        kept = votes_B.nonzero().flatten()
        now = replace(self, votes_B=votes_B)
        return Chosen(*(getattr(now, name)[kept] for name in _NAMES))


_NAMES = ("theta_BFP", "shares_BNV", "candidate_B", "step_B", "votes_B")


@dataclass
class Contest:
    """Who trains for how many places.

    Args:
        fields: the networks of each field, of one architecture.
        seed: of where models start and of the order of their examples.
        places: numbers of those that are given away; a place has candidates of its own, each of
            which draws by its number alone.
        once: whether a candidate has one place at most.
        seconds: after which the models are taken as they are; None: any.
        keep: where the state of a long training is left.
    """

    fields: Sequence[Classifiers]
    seed: int
    places: Sequence[int]
    once: bool = False
    seconds: float | None = None
    keep: Keeper | None = None
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        section = self.fields[0].config.seeds
        assert isinstance(section.protocol, Varied)
        self._protocol, self._recipe = section.protocol, section.recipe
        self._task = self.fields[0].dataset.task
        self._labels_N = torch.cat([each.dataset.validation.labels_N for each in self.fields])

    def held(self) -> Chosen:
        """Train, and give who is chosen in the end."""
        kept = None if self.keep is None else self.keep.load({})
        each = self._protocol.candidates
        begin = [each * place + number for place in self.places for number in range(each)]
        alive_C, nlls = torch.tensor(begin), list[float]()
        bag: Chosen | None = None
        if kept is not None:
            alive_C, nlls = kept["alive"], kept["nlls"].tolist()
            bag = Chosen(*(kept[name] for name in _NAMES))
        theta_FCP = self._fresh(alive_C)
        begun = 0 if kept is None else int(kept["phase"])
        for phase, (first, count) in enumerate(self._protocol.phases[begun:], begun):
            trainings = self._begun(theta_FCP, alive_C, first, count, kept)
            kept = None
            for theta_FCP in self._looks(trainings):
                now = self._standing(theta_FCP, alive_C, first, trainings)
                best = self._nll(now.shares_BNV).nan_to_num(nan=torch.inf).argsort(stable=True)
                best = best[: self._protocol.sure(len(self.places))]
                bag = self._elected(bag, now, best)
                share_B = bag.votes_B.double() / bag.votes_B.sum()
                nlls.append(self._nll(torch.tensordot(share_B, bag.shares_BNV, 1)[None]).item())
                if self._is_late or self._protocol.is_over(nlls):
                    return bag
                is_last = trainings[0].step == trainings[0].num_steps
                if self.keep is not None and self.keep.is_due and not is_last:
                    self.keep.save(self._state(phase, alive_C, nlls, bag, trainings))
            alive_C, theta_FCP = alive_C[best], now.theta_BFP[best].transpose(0, 1)
        assert bag is not None
        return bag

    def _elected(self, before: Chosen | None, now: Chosen, best: Tensor) -> Chosen:
        """Of those chosen before and those who train now; the best of these have a place each."""
        known = 0 if before is None else len(before.votes_B)
        standing = now if before is None else before.beside(now)
        # Of a few examples a greedy bag alone makes too much: half go to the best as such.
        sure, places = (known + best).tolist(), len(self.places)
        return standing.elected(self._task, self._labels_N, places, self.once, sure)

    @property
    def _is_late(self) -> bool:
        return self.seconds is not None and time.monotonic() - self._started > self.seconds

    def _fresh(self, candidates: Tensor) -> Tensor:
        """Where candidates start in each field, ``(F, C, P)``."""
        own = self.fields[0]
        seeds = [
            [seed_for(self.seed, "candidate", c, f) for c in candidates.tolist()]
            for f in range(len(self.fields))
        ]
        start = partial(initial_parameters, own.build, own.whole.flatten)
        return torch.stack([torch.stack([start(seed) for seed in row]) for row in seeds])

    def _begun(
        self,
        theta_FCP: Tensor,
        candidates: Tensor,
        first: int,
        count: int,
        kept: Mapping[str, Tensor] | None,
    ) -> list[Training]:
        """The training of every field over so many looks, as it was left if it was."""
        protocol, epochs = self._protocol, self._recipe.epochs / self._protocol.looks
        stretch = Stretch(
            start=first * epochs,
            epochs=count * epochs,
            bootstrap=protocol.bootstrap,
            snapshots=count,
            variation=protocol.variation,
        )
        trainings = []
        for f, (classifiers, theta_CP) in enumerate(zip(self.fields, theta_FCP, strict=True)):
            # A candidate has the same settings in every field.
            streams = [generator_for(self.seed, "candidate", c) for c in candidates.tolist()]
            training = classifiers.training(theta_CP, stretch, streams)
            if kept is not None:
                state = {n: kept[f"{f}.{n}"] for n in training.state()}
                training.load(state, int(kept["step"][f]))
            trainings.append(training)
        return trainings

    def _looks(self, trainings: Sequence[Training]) -> Iterator[Tensor]:
        """The models ``(F, C, P)`` at each look, or as they are when there is no time left."""
        left: list[deque[Tensor]] = [deque() for _ in trainings]
        # Step by step, so that all fields have come as far when time is up.
        for step in zip_longest(*(training.steps() for training in trainings), fillvalue=[]):
            for own, snapshots in zip(left, step, strict=True):
                own.extend(snapshots[-1:])  # a short training has fewer
            if all(left):
                yield torch.stack([own.popleft() for own in left]).cpu()
            elif self._is_late:
                yield torch.stack([training.now() for training in trainings]).cpu()
                return

    def _standing(
        self, theta_FCP: Tensor, candidates: Tensor, first: int, trainings: Sequence[Training]
    ) -> Chosen:
        """Those who train, as they stand for election."""
        own = self.fields[0]
        before = self._recipe.num_steps(
            first * self._recipe.epochs / self._protocol.looks, len(own.dataset.train)
        )
        found = [_shares(*each) for each in zip(self.fields, theta_FCP, strict=True)]
        return Chosen(
            theta_FCP.transpose(0, 1),
            torch.cat(found, dim=1),
            candidates,
            torch.full_like(candidates, before + trainings[0].step),
            torch.zeros_like(candidates),
        )

    def _nll(self, shares_BNV: Tensor) -> Tensor:
        return self._task.nats(shares_BNV, self._labels_N).mean(dim=1)

    def _state(
        self,
        phase: int,
        candidates: Tensor,
        nlls: list[float],
        bag: Chosen,
        trainings: Sequence[Training],
    ) -> dict[str, Tensor]:
        state = {"alive": candidates, "nlls": torch.tensor(nlls, dtype=torch.float64)}
        state["phase"] = torch.tensor(phase)
        state |= {name: getattr(bag, name) for name in _NAMES}
        state["step"] = torch.tensor([training.step for training in trainings])
        for f, training in enumerate(trainings):
            state |= {f"{f}.{name}": each for name, each in training.state().items()}
        return state


def _shares(classifiers: Classifiers, theta_CP: Tensor) -> Tensor:
    """Of a field's validation labels, ``(C, N, V)``."""
    validation, task, found, done = classifiers.dataset.validation, classifiers.dataset.task, [], 0
    for outputs_CNO in classifiers.answers(theta_CP, validation, most=ASKED):
        labels_N = validation.labels_N[done : done + outputs_CNO.shape[1]]
        found.append(task.shares(outputs_CNO, labels_N))
        done += len(labels_N)
    return torch.cat(found, dim=1)
