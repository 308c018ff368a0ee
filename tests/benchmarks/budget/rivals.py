"""More uses of a budget that users would pick: IVON, simplexes of weights, packs, and ``varied``.

Trainings that the recipe's optimizer does not describe have a loop here. Shape letters: K models
trained together, T their trained numbers, Q buffers, V vertices, B images, C classes, E members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from chains import Plan, Task
from specs import Ivon, Pack, Simplex, Varied
from torch import Tensor, nn

from bend_ray.config.schema import PipelineConfig, SeedsSection
from bend_ray.ensemble.metrics import score
from bend_ray.ensemble.votes import apply_temperature, fit_temperature
from bend_ray.networks import protocols
from bend_ray.networks.batches import Feed
from bend_ray.networks.fitting import CLASSIFICATION
from bend_ray.optim import Cosine
from bend_ray.populations.contest import Contest
from bend_ray.populations.networks import Classifiers


def more(task: Task, readout: Ivon | Simplex | Pack | Varied, plan: Plan) -> tuple[Tensor, float]:
    """Members ``(E, P)``, the chains in turn, and their gradient steps."""
    if isinstance(readout, Ivon):
        return ivon(task, readout, plan)
    if isinstance(readout, Simplex):
        return simplex(task, readout, plan)
    if isinstance(readout, Varied):
        return varied(task, readout, plan)
    return pack(task, readout, plan)


def _losses(
    task: Task, buffers_KQ: Tensor, steps: int, streams: Sequence[torch.Generator]
) -> list[Callable[[Tensor], Tensor]]:
    """Of each step, from parameters ``(K, T)`` to the sum of the models' losses."""
    data, recipe = task.dataset, task.bench.recipe
    train, stack = data.train, task.stack
    feed = Feed(train, data.normalise, recipe, CLASSIFICATION, torch.device("cpu"))
    stack.train()

    def at(index_KB: Tensor, trained_KT: Tensor) -> Tensor:
        pixels = train.inputs[index_KB.flatten()].view(*index_KB.shape, *data.input_shape)
        views = data.normalise(recipe.augmentation.apply(pixels, streams))
        logits_KBC = stack(trained_KT, views, buffers_KQ=buffers_KQ, shared=False)
        lost = nn.functional.cross_entropy(
            logits_KBC.flatten(0, 1),
            train.labels_N[index_KB.flatten()],
            reduction="sum",
            label_smoothing=recipe.label_smoothing,
        )
        return lost / index_KB.shape[1]

    return [partial(at, index_KB) for _, index_KB in feed.batches(streams, steps)]


def _one_by_one(task: Task, count: int) -> list[range]:
    """Which models are trained together, as ``fitting.fit`` does."""
    if task.stack.form == "stacked":
        return [range(count)]
    return [range(index, index + 1) for index in range(count)]


def ivon(task: Task, readout: Ivon, plan: Plan) -> tuple[Tensor, float]:
    """Draws of each chain's posterior ``(E, P)``, the chains in turn, and gradient steps.

    Source: Shen et al. 2024, "Variational Learning is Effective for Large Deep Networks" (arXiv
    2402.17641), by its authors' package. Its own work beside the gradient is not charged.
    """
    import ivon as package

    drawn = []
    for rows in _one_by_one(task, plan.count):
        start_KP = torch.stack([task.start(index) for index in rows])
        split = task.stack.num_trainable
        trained_KT, buffers_KQ = start_KP[:, :split].clone(), start_KP[:, split:].clone()
        place = nn.Parameter(trained_KT)
        optimizer = package.IVON(
            [place],
            lr=readout.learning_rate,
            ess=len(task.dataset.train),
            hess_init=readout.hess_init,
            beta2=readout.beta2,
            weight_decay=1e-4,
        )
        streams = [task.generator("ivon", plan.epochs, index) for index in rows]
        torch.manual_seed(rows.start)  # of the package's noise
        for step, loss in enumerate(_losses(task, buffers_KQ, plan.steps, streams)):
            optimizer.param_groups[0]["lr"] = readout.learning_rate * Cosine(warmup=0.05).factor(
                step / plan.steps
            )
            with optimizer.sampled_params(train=True):
                loss(place).backward()
            optimizer.step()
            place.grad = None
        for _ in range(readout.per_chain):
            with optimizer.sampled_params():
                drawn.append((rows, torch.cat([place.detach().clone(), buffers_KQ], dim=1)))
    order = sorted(range(len(drawn)), key=lambda i: i % readout.per_chain)
    theta_EP = torch.cat([drawn[i][1] for i in order])
    return task.recalibrated(theta_EP), plan.count * plan.steps


def simplex(task: Task, readout: Simplex, plan: Plan) -> tuple[Tensor, float]:
    """Points of each chain's simplex ``(E, P)``, the chains in turn, and gradient steps.

    A vertex begins at the first one and is trained at random points of the simplex, with a reward
    for its distance from those before: the logarithm of the volume, but for a constant.

    Source: Benton et al. 2021, "Loss Surface Simplexes" (arXiv 2102.13042).
    """
    epochs = (1 - readout.share) * plan.epochs
    first_MP = task.whole(plan.count, epochs)
    steps = round(readout.share * plan.steps / (readout.vertices - 1))
    split, points = task.stack.num_trainable, []
    for rows in _one_by_one(task, plan.count):
        base_KP = first_MP[rows.start : rows.stop]
        buffers_KQ, vertices = base_KP[:, split:].clone(), [base_KP[:, :split]]
        streams = [task.generator("simplex", plan.epochs, index) for index in rows]
        for _ in range(readout.vertices - 1):
            vertices.append(_vertex(task, readout, vertices, buffers_KQ, steps, streams))
        corners_VKT = torch.stack(vertices)
        for _ in range(readout.per_chain):
            share_V = _dirichlet(len(vertices), streams[0])
            points.append(
                torch.cat([torch.einsum("v,vkt->kt", share_V, corners_VKT), buffers_KQ], 1)
            )
    order = sorted(range(len(points)), key=lambda i: i % readout.per_chain)
    theta_EP = task.recalibrated(torch.cat([points[i] for i in order]))
    used = task.steps_of(epochs) + (readout.vertices - 1) * steps
    return theta_EP, plan.count * used


def _vertex(
    task: Task,
    readout: Simplex,
    vertices: list[Tensor],
    buffers_KQ: Tensor,
    steps: int,
    streams: Sequence[torch.Generator],
) -> Tensor:
    """One more vertex ``(K, T)``."""
    noise_KT = torch.stack([torch.randn(vertices[0].shape[1], generator=s) for s in streams])
    spread_K1 = vertices[0].std(dim=1, keepdim=True)
    place = (vertices[-1] + 0.01 * spread_K1 * noise_KT).requires_grad_()
    optimizer = task.bench.recipe.optimizer.build([place])
    known_VKT = torch.stack(vertices)
    for step, loss in enumerate(_losses(task, buffers_KQ, steps, streams)):
        share_V = _dirichlet(len(vertices) + 1, streams[0])
        point_KT = share_V[-1] * place + torch.einsum("v,vkt->kt", share_V[:-1], known_VKT)
        away_KT = place - known_VKT[0]
        for edge_KT in _orthonormal(known_VKT):
            away_KT = away_KT - (away_KT * edge_KT).sum(dim=1, keepdim=True) * edge_KT
        volume_K = away_KT.norm(dim=1).clamp_min(1e-8).log()
        (loss(point_KT) - readout.volume * volume_K.sum()).backward()
        optimizer.step(readout.rate * Cosine().factor(step / steps))
    return place.detach()


def _orthonormal(known_VKT: Tensor) -> list[Tensor]:
    """Directions ``(K, T)`` that the edges from the first vertex span."""
    edges: list[Tensor] = []
    for edge_KT in known_VKT[1:] - known_VKT[0]:
        for before_KT in edges:
            edge_KT = edge_KT - (edge_KT * before_KT).sum(dim=1, keepdim=True) * before_KT
        edges.append(edge_KT / edge_KT.norm(dim=1, keepdim=True).clamp_min(1e-12))
    return edges


def _dirichlet(count: int, stream: torch.Generator) -> Tensor:
    """A point of the simplex, all equally likely: shares ``(V,)``."""
    exponential_V = -torch.rand(count, generator=stream).clamp_min(1e-12).log()
    return exponential_V / exponential_V.sum()


def pack(task: Task, readout: Pack, plan: Plan) -> tuple[Tensor, float]:
    """Trainings that differ by hyper-parameters, of which validation picks, and gradient steps.

    The one that lowers the NLL of the arithmetic vote most, at its temperature, joins, again and
    again, also one that is there already: the figures of the validation part have seen them. They
    differ by label smoothing, so that without a temperature the surest alone would be picked.

    Source: Wenzel et al. 2020 (arXiv 2006.13570); Caruana et al. 2004.
    """
    pool_EP = torch.cat([task.variant(plan, index, readout.width) for index in range(plan.count)])
    validation = task.dataset.validation
    probs_ENC = task.logits(pool_EP, validation).double().softmax(dim=-1)
    picked: list[int] = []
    for _ in range(readout.picks * plan.count):
        chosen_NC = probs_ENC[picked].sum(dim=0)
        losses = [
            _scaled_nll((chosen_NC + each_NC) / (len(picked) + 1), validation.labels_N)
            for each_NC in probs_ENC
        ]
        picked.append(min(range(len(losses)), key=losses.__getitem__))
    return pool_EP[picked], plan.count * plan.steps


def varied(task: Task, readout: Varied, plan: Plan) -> tuple[Tensor, float]:
    """The protocol's members ``(E, P)``, as its elections leave them, and gradient steps.

    Asking validation images at each look is not charged, as a pack's picking is not.
    """
    bench = task.bench
    protocol = protocols.Varied(
        models=plan.count,
        candidates=readout.candidates,
        looks=readout.looks,
        trial=readout.trial,
        patience=None,
        variation=readout.variation,
        align=False,
    )
    parts = protocol.parts(plan.count)
    whole = sum(models * share for models, share, _ in parts)
    recipe = bench.recipe.model_copy(update={"epochs": plan.epochs * plan.count / whole})
    section = {"architecture": bench.architecture, "recipe": recipe, "protocol": protocol}
    config = PipelineConfig(seeds=SeedsSection(**section))
    seed = int(task.generator("varied", 0).initial_seed() % 2**31)
    field = Classifiers(config, task.dataset, "cpu")
    bag = Contest([field], seed, range(plan.count)).held()
    steps = sum(models * task.steps_of(share * recipe.epochs) for models, share, _ in parts)
    return bag.theta_BFP[:, 0].repeat_interleave(bag.votes_B, dim=0), steps


def _scaled_nll(probs_NC: Tensor, labels_N: Tensor) -> float:
    scaled_NC = apply_temperature(probs_NC, fit_temperature(probs_NC, labels_N))
    return score(scaled_NC, labels_N)["nll"]
