"""What votes, made of a plan's chains; how it is scored; what it has cost.

Shape letters: M chains, T tails, E members, N images, C classes, P parameters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from chains import Plan, Task
from rivals import more
from specs import Drawn, Ivon, Last, Method, Pack, Simplex, Tails, Varied
from torch import Tensor

from bend_ray.data.examples import Examples
from bend_ray.ensemble.metrics import disagreements, error_iou, score
from bend_ray.ensemble.novelty import Models, novelty, places_among
from bend_ray.ensemble.votes import apply_temperature, fit_temperature
from bend_ray.generation.rivals import Gaussian, MultiSwag, Trained

TOLERANCE = 0.02
"""A method may overshoot its budget by so much."""
FOLDS = 10
"""Of the validation images: each is scored at a temperature of the others. Two would leave halves
without an error, on digits, which ask for the lowest temperature there is."""


@dataclass(frozen=True)
class Made:
    """Members and what they cost.

    Attributes:
        theta_EP: the members.
        chains_E: whose they are.
        steps: gradient steps of all chains and repairs.
        seconds: CPU seconds of all else.
        tails_used: of every chain.
    """

    theta_EP: Tensor
    chains_E: Tensor
    steps: float
    seconds: float
    tails_used: int


def make(task: Task, method: Method, budget: int) -> Made | None:
    """The method's members within the budget; None where it cannot be paid.

    Tails at the end of every chain are left out until the rest is paid. Whole trainings are not
    cut for what their validation costs: they may overshoot, and the cost shown says by how much.
    """
    plan = task.plan(method.chains, budget)
    allowed = budget * task.unit_seconds * (1 + TOLERANCE)
    used = plan.tails
    while True:
        made = _made(task, method, plan, used)
        over = made.steps * task.step_seconds + made.seconds - allowed
        if over <= 0 or plan.tails == 0:
            return made
        if used <= 2:
            return None
        used = max(2, used - math.ceil(over / (plan.count * plan.tail_steps * task.step_seconds)))


def _made(task: Task, method: Method, plan: Plan, used: int) -> Made:
    readout, chains_M = method.readout, torch.arange(plan.count)
    left_out = (plan.tails - used) * plan.tail_steps
    steps = plan.count * (plan.steps - left_out)
    if isinstance(readout, Last):
        forks = method.chains.forks
        ends = task.forks if forks > 1 else task.ends
        theta_EP = ends(method.chains, plan).flatten(end_dim=-2)
        return _paid(task, Made(theta_EP, chains_M.repeat(forks), steps, 0.0, 0))
    if isinstance(readout, Ivon | Simplex | Pack | Varied):
        theta_EP, steps = more(task, readout, plan)
        return _paid(task, Made(theta_EP, torch.arange(len(theta_EP)) % plan.count, steps, 0.0, 0))
    theta_TMP, early_TMP = _parted(task, method, plan, used)
    if isinstance(readout, Drawn):
        name = (plan.count, plan.epochs, readout.law)
        theta_EP, seconds = _drawn(task, readout, theta_TMP, early_TMP, name)
        steps += len(theta_EP) * readout.repair_steps
    elif isinstance(readout, Tails):
        theta_EP, seconds = theta_TMP.flatten(0, 1), 0.0
    else:
        began = time.process_time()
        theta_EP = task.recalibrated(theta_TMP.mean(dim=0))
        seconds = time.process_time() - began
    made = Made(theta_EP, chains_M.repeat(len(theta_EP) // plan.count), steps, seconds, used)
    return _paid(task, made)


def _drawn(
    task: Task, readout: Drawn, theta_TMP: Tensor, early_TMP: Tensor, name: Sequence[object]
) -> tuple[Tensor, float]:
    """Drawn models that can vote, and the seconds that it took beside the steps of a repair."""
    began = time.process_time()
    theta_EP = draw(task, readout, theta_TMP, early_TMP)
    if not readout.repair_steps:
        theta_EP = task.recalibrated(theta_EP)
    seconds = time.process_time() - began
    if readout.repair_steps:
        theta_EP = task.repaired(theta_EP, readout.repair_steps, readout.repair_rate, name)
    return theta_EP, seconds


def _parted(task: Task, method: Method, plan: Plan, used: int) -> tuple[Tensor, Tensor]:
    """The tails that could be paid: the latest, which are kept ``(T, M, P)``; those before them."""
    theta_TMP = task.tails(method.chains, plan)[:used]
    early = used - max(2, round(method.chains.kept * used))
    return theta_TMP[early:], theta_TMP[:early]


def _paid(task: Task, made: Made) -> Made:
    """With the seconds in which all members answer for the validation images."""
    began = time.process_time()
    task.logits(made.theta_EP, task.dataset.validation)
    return replace(made, seconds=made.seconds + time.process_time() - began)


def draw(task: Task, readout: Drawn, theta_TMP: Tensor, early_TMP: Tensor) -> Tensor:
    """Models ``(E, P)``, the chains in turn; ``early_TMP``, the tails not kept, is for guidance."""
    tails, chains = theta_TMP.shape[:2]
    count = readout.per_chain * chains
    generator = task.generator("draw", readout.law, chains, tails)
    if readout.law in ("multiswag", "gaussian"):
        law = MultiSwag if readout.law == "multiswag" else Gaussian
        theta_KP, chains_K = theta_TMP.flatten(0, 1), torch.arange(chains).repeat(tails)
        name = ("draw", readout.law, chains, tails)
        trained = Trained(theta_KP, chains_K, count, lambda i: task.generator(*name, i))
        return law(scale=readout.scale).draw(trained, range(count))[0]
    average_MP = theta_TMP.mean(dim=0)
    residual_TMP = theta_TMP - average_MP
    mix_EMT = torch.randn(readout.per_chain, chains, tails, generator=generator)
    # Unbiased: a draw spreads as the tails do around the mean that was not taken over them.
    drawn_EMP = torch.einsum("emt,tmp->emp", mix_EMT, residual_TMP) / (tails - 1) ** 0.5
    picked_EM = torch.randint(tails, (readout.per_chain, chains), generator=generator)
    picked_EMP = residual_TMP[picked_EM, torch.arange(chains)]
    share = readout.bandwidth
    drawn_EMP = (1 - share**2) ** 0.5 * picked_EMP + share * drawn_EMP
    if readout.guidance:
        if not len(early_TMP):
            raise ValueError("expected kept below 1: guidance compares with the tails before")
        average_MP = average_MP + readout.guidance * (average_MP - early_TMP.mean(dim=0))
    return (average_MP + readout.scale * drawn_EMP).flatten(0, 1)


def scores(probs_NC: Tensor, labels_N: Tensor, temperature: float) -> dict[str, float]:
    """Accuracy in percent, NLL as it is and at a temperature that other images chose."""
    return {
        "accuracy": 100 * score(probs_NC, labels_N)["accuracy"],
        "nll": score(probs_NC, labels_N)["nll"],
        "nll_calibrated": score(apply_temperature(probs_NC, temperature), labels_N)["nll"],
    }


def vote(logits_ENC: Tensor, geometric: bool) -> Tensor:
    """One probability ``(N, C)`` a class: the members' arithmetic or their geometric mean."""
    if geometric:
        return logits_ENC.double().log_softmax(dim=-1).mean(dim=0).softmax(dim=-1)
    return logits_ENC.double().softmax(dim=-1).mean(dim=0)


def validation_scores(probs_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Each of the ``FOLDS`` parts of the validation images is scored at the others' temperature."""
    fold_N, told = torch.arange(len(labels_N)) % FOLDS, scores(probs_NC, labels_N, 1.0)
    calibrated_NC = torch.empty_like(probs_NC)
    for fold in range(FOLDS):
        here, others = fold_N == fold, fold_N != fold
        temperature = fit_temperature(probs_NC[others], labels_N[others])
        calibrated_NC[here] = apply_temperature(probs_NC[here], temperature)
    return told | {"nll_calibrated": score(calibrated_NC, labels_N)["nll"]}


def run(
    task: Task, method: Method, budget: int, *, with_test: bool, quality: bool
) -> dict[str, dict[str, Any]]:
    """Rows of the bench, by what is added to the method's name; none where it cannot be paid.

    Several members vote by both means: every method's user could.
    """
    made = make(task, method, budget)
    if made is None:
        return {}
    validation, test = task.dataset.validation, task.dataset.test
    logits_ENC = task.logits(made.theta_EP, validation)
    seconds = made.steps * task.step_seconds + made.seconds
    told: dict[str, Any] = {
        "members": len(logits_ENC),
        "chains": len(made.chains_E.unique()),
        "tails": made.tails_used,
        "steps": round(made.steps),
        "other_seconds": made.seconds,
        "unit_seconds": task.unit_seconds,
        "unit_steps": task.unit_steps,
        "members_validation": member_scores(logits_ENC, validation.labels_N),
    }
    if quality and isinstance(method.readout, Drawn):
        told["drawn"] = drawn_quality(task, method, budget, made, validation)
    test_ENC = task.logits(made.theta_EP, test) if with_test else None
    rows = {}
    for geometric in (False, True)[: len(logits_ENC)]:
        probs_NC = vote(logits_ENC, geometric)
        began = time.process_time()
        temperature = fit_temperature(probs_NC, validation.labels_N)
        row = told | {"seconds": seconds + time.process_time() - began}
        row["validation"] = validation_scores(probs_NC, validation.labels_N)
        if test_ENC is not None:
            row["temperature"] = temperature
            row["test"] = scores(vote(test_ENC, geometric), test.labels_N, temperature)
        rows["_geometric" if geometric else ""] = row
    return rows


def member_scores(logits_ENC: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Of single members: mean accuracy, disagreement and error IoU in percent or share."""
    predictions_EN = logits_ENC.argmax(dim=-1)
    hits = (predictions_EN == labels_N).double().mean().item()
    told = {"accuracy": 100 * hits}
    if len(logits_ENC) > 1:
        told["disagreement"] = 100 * disagreements(predictions_EN).mean().item()
        told["error_iou"] = error_iou(predictions_EN != labels_N)
    return told


def drawn_quality(
    task: Task, method: Method, budget: int, made: Made, images: Examples
) -> dict[str, float]:
    """Drawn models against every second tail; the other tails, held out, beside them.

    For the comparison alone: what it takes is not charged, and it looks at validation images.
    """
    plan = task.plan(method.chains, budget)
    theta_TMP, early_TMP = _parted(task, method, plan, made.tails_used)
    train, held = theta_TMP[::2], theta_TMP[1::2]
    chains_M = torch.arange(plan.count)

    def rows(theta_TMP: Tensor) -> tuple[Tensor, Tensor]:
        return theta_TMP.flatten(0, 1), chains_M.repeat(len(theta_TMP))

    def predictions(theta_EP: Tensor) -> Tensor:
        return task.logits(theta_EP, images).argmax(dim=-1)

    (train_KP, train_K), (held_HP, held_H) = rows(train), rows(held)
    readout = method.readout
    assert isinstance(readout, Drawn)
    name = (plan.count, plan.epochs, readout.law, "quality")
    fresh_EP, _ = _drawn(task, readout, train, early_TMP, name)
    fresh_E = chains_M.repeat(readout.per_chain)
    seen = predictions(train_KP)
    told: dict[str, float] = {}
    for name, theta, chains_E in (("drawn", fresh_EP, fresh_E), ("held_out", held_HP, held_H)):
        answers = predictions(theta)
        places = places_among((train_KP, train_K), (theta, chains_E))
        usual = places_among((train_KP, train_K))
        found = novelty(
            Models(places, chains_E, answers, task.dataset.task),
            Models(usual, train_K, seen, task.dataset.task),
        )
        told[f"{name}_accuracy"] = 100 * (answers == images.labels_N).double().mean().item()
        told[f"{name}_error_iou"] = error_iou(answers != images.labels_N)
        told[f"{name}_copies"] = found["copies"]
        told[f"{name}_spread"] = found["spread"]
        told[f"{name}_functional_distance"] = 100 * found["functional_distance"]
    told["originals_error_iou"] = error_iou(seen != images.labels_N)
    told["originals_accuracy"] = 100 * (seen == images.labels_N).double().mean().item()
    return told
