"""Asking a bag: the ways to run its members, and what other libraries do, cell by cell.

    uv run --group bench python tests/benchmarks/bench_asking.py [--network mlp] [--members 10 50]
    uv run --group bench python tests/benchmarks/bench_asking.py --compiled    # seconds to compile
    uv run --group bench python tests/benchmarks/bench_asking.py --shared   # members of one trunk

Systems: ``loop``, torch modules one after another; ``stacked``, all in torch at once
(``networks.stacking``); ``compiled``, the loop through ``torch.compile``; ``onnx_stacked`` and
``onnx_unrolled``, one ONNX Runtime graph of all members and their ballots in its two forms;
``auto``, the bag as ``bend serve`` holds it: of the graphs the one that it measures to be faster,
with the vote and its uncertainties; ``torchensemble`` and ``torch_uncertainty``, their ensembles of
the same modules. ``auto`` says more than the mean that the others give: ``loop_in_full`` and its
like say as much, told by the program that counts members. With ``--shared`` members are ResNet-18s
that own the last two norms alone: whole networks one after another beside
``networks.stacking`` on a base. Raw uint8 pixels in, the mean of the members' softmaxes out, one
thread. Bursts of 20 ms of all systems are interleaved; medians of wall milliseconds a call. Random
weights: what a bag answers does not change how long it takes.

A JSON line a cell.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from bench_fitting import NETWORKS, NUM_CLASSES, normalise
from torch import Tensor, nn

from bend_ray.export.card import Card, Input
from bend_ray.export.graphs import Way, bag_program, count_program, fastest, forms, ways
from bend_ray.export.members import member_graph
from bend_ray.networks.architectures import Mlp, TorchvisionModel
from bend_ray.networks.stacking import Stack, form_for, predict_logits
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.serve.bag import Bag
from bend_ray.serve.settings import Stop

OWN = ("layer4.1.bn*.weight", "layer4.1.bn*.bias")
"""What a member of ``--shared`` owns."""

Ask = Callable[[np.ndarray], np.ndarray]
"""Pixels ``(B, C, H, W)`` uint8 to probabilities ``(B, classes)``."""

IN_FULL = "_in_full"


def card(members: int, shape: tuple[int, int, int]) -> Card:
    """Of a bag of random members; which architecture it names decides nothing here."""
    return Card(
        model_version="bench",
        created="now",
        bend_ray="benchmark",
        architecture=Mlp(),
        inputs={
            "images": Input(
                shape=shape, dtype="uint8", mean=(128.0,) * shape[0], std=(64.0,) * shape[0]
            )
        },
        class_names=tuple(map(str, range(NUM_CLASSES))),
        vote={"kind": "soft"},
        members=tuple(range(members)),
        weights=(1 / members,) * members,
    )


def mean_softmax(logits_KBC: Tensor) -> np.ndarray:
    """Of the members; ``(B, C)``."""
    return logits_KBC.softmax(dim=-1).mean(dim=0).numpy()


def in_full(softmaxes: Callable[[np.ndarray], np.ndarray], given: Card) -> Ask:
    """All that ``auto`` says, of the members' softmaxes ``(B, K, C)``."""
    count = Way("unrolled", 1).ready(count_program(given, of_logits=False))
    weights = np.array([[given.weights]])

    def answer(pixels: np.ndarray) -> np.ndarray:
        said = softmaxes(pixels)
        told = {"member_probabilities": said, "member_labels": said.argmax(axis=2)}
        return count({**told, "weights": weights})["probabilities"]

    return answer


def softmaxes(logits_KBC: Tensor) -> np.ndarray:
    """Of the members; ``(B, K, C)``."""
    return logits_KBC.softmax(dim=-1).transpose(0, 1).numpy()


def torch_systems(modules: list[nn.Module], network: str) -> dict[str, Ask]:
    """The ways that need nothing but torch."""
    build, (_, *_), _ = NETWORKS[network]
    module = build()
    layout = ParameterLayout.of(module)
    theta_KP = torch.stack([layout.flatten(each.state_dict()) for each in modules])
    stack = Stack(module, layout, form_for(module, "cpu"))

    def loop(pixels: np.ndarray) -> Tensor:
        inputs = normalise(torch.from_numpy(pixels))
        return torch.stack([each(inputs) for each in modules])

    def stacked(pixels: np.ndarray) -> Tensor:
        return predict_logits(stack, theta_KP, normalise(torch.from_numpy(pixels)))

    systems: dict[str, Ask] = {}
    bag = bag_of(modules, network)[0]
    for logits in (loop, stacked):
        name = logits.__name__
        systems[name] = lambda pixels, logits=logits: mean_softmax(logits(pixels))
        systems[name + IN_FULL] = in_full(
            lambda pixels, logits=logits: softmaxes(logits(pixels)), bag
        )
    return systems


def compiled(modules: list[nn.Module]) -> Ask:
    """The loop as one program of torch's compiler, one for every batch size."""

    def answer(inputs: Tensor) -> Tensor:
        return torch.stack([each(inputs) for each in modules]).softmax(dim=-1).mean(dim=0)

    program = torch.compile(answer, dynamic=False)
    return lambda pixels: program(normalise(torch.from_numpy(pixels))).numpy()


def torchensemble(modules: list[nn.Module]) -> Ask:
    """TorchEnsemble's VotingClassifier in evaluation."""
    from torchensemble import VotingClassifier

    ensemble = VotingClassifier(estimator=nn.Identity, n_estimators=len(modules), cuda=False)
    ensemble.estimators_.extend(modules)
    ensemble.n_outputs = NUM_CLASSES
    ensemble.eval()
    return lambda pixels: ensemble(normalise(torch.from_numpy(pixels))).numpy()


def torch_uncertainty(modules: list[nn.Module]) -> Ask:
    """torch-uncertainty's deep ensemble of modules; the vote as its routine takes it."""
    from torch_uncertainty.methods import deep_ensembles

    ensemble = deep_ensembles(modules, task="classification").eval()

    def answer(pixels: np.ndarray) -> np.ndarray:
        logits = ensemble(normalise(torch.from_numpy(pixels)))
        return mean_softmax(logits.unflatten(0, (len(modules), len(pixels))))

    return answer


def bag_of(
    modules: list[nn.Module], network: str
) -> tuple[Card, onnx.ModelProto, dict[str, np.ndarray]]:
    """The card of a bag of these members, one member's graph, and the members' tensors, stacked."""
    build, (_, *shape), _ = NETWORKS[network]
    member = member_graph(build(), card(len(modules), tuple(shape)))
    states = [module.state_dict() for module in modules]
    names = [tensor.name for tensor in member.graph.input[1:]]
    state_K = {name: torch.stack([state[name] for state in states]).numpy() for name in names}
    return card(len(modules), tuple(shape)), member, state_K


def onnx_systems(modules: list[nn.Module], network: str) -> tuple[dict[str, Ask], str]:
    """One graph of all members in every form that there is, and what ``bend serve`` takes."""
    given, member, state_K = bag_of(modules, network)
    systems: dict[str, Ask] = {}
    program = partial(bag_program, given, member, state_K)
    for form in forms(member):
        ready = Way(form, 1).ready(program(form))
        systems[f"onnx_{form}"] = lambda pixels, ask=ready: ask({"images": pixels})["probabilities"]
    way = fastest(ways(forms(member), 1), program, given, 32)
    bag = Bag("", given, way, whole=way.ready(program(way.form)))
    systems["auto"] = lambda pixels: bag.answer({"images": pixels}, [Stop()] * len(pixels))[
        "probabilities"
    ]
    return systems, way.form


def shared_systems(members: int) -> dict[str, Ask]:
    """ResNet-18s of one trunk: as whole networks, and with the trunk's layers computed once."""
    build = TorchvisionModel(name="resnet18", small_images=True).build
    module = build((3, 32, 32), NUM_CLASSES).eval()
    layout = ParameterLayout.of(module, OWN)
    own = layout.flatten(module.state_dict())
    theta_KP = own + 0.01 * own.abs() * torch.randn(members, layout.size)
    modules = []
    for theta_P in theta_KP:
        modules.append(copy.deepcopy(module))
        modules[-1].load_state_dict(layout.unflatten(theta_P), strict=False)
    names = {entry.name for entry in layout.entries}
    base = {name: tensor for name, tensor in module.state_dict().items() if name not in names}
    form = form_for(module, "cpu")
    stack = Stack(copy.deepcopy(module), layout, form, base)

    def loop(pixels: np.ndarray) -> np.ndarray:
        inputs = normalise(torch.from_numpy(pixels))
        return mean_softmax(torch.stack([each(inputs) for each in modules]))

    def auto(pixels: np.ndarray) -> np.ndarray:
        return mean_softmax(predict_logits(stack, theta_KP, normalise(torch.from_numpy(pixels))))

    return {"loop": loop, "auto": auto}


def measure_shared(members: list[int], batches: list[int], seconds: float) -> None:
    """Lines of ``--shared``."""
    for count in members:
        systems = shared_systems(count)
        for batch in batches:
            pixels = np.random.default_rng(0).integers(256, size=(batch, 3, 32, 32), dtype=np.uint8)
            with torch.inference_mode():
                took = race(systems, pixels, seconds)
            case = {"case": "asking", "network": "resnet18, shared", "members": count}
            print(line(case | {"batch": batch, "torch": torch.__version__}, took), flush=True)


def burst(system: Ask, pixels: np.ndarray, seconds: float = 0.02) -> float:
    """Milliseconds a call: as many as fit, as a server under load makes them, at least one."""
    system(pixels)  # the caches are full of the system before
    calls, started = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - started < seconds:
        system(pixels)
        calls += 1
    return 1e3 * (time.perf_counter() - started) / calls


def race(systems: dict[str, Ask], pixels: np.ndarray, seconds: float) -> dict[str, float]:
    """Median milliseconds of each, rounds interleaved, for about so many seconds."""
    expected = None
    for name, system in systems.items():
        answer = system(pixels)
        expected = answer if expected is None else expected
        np.testing.assert_allclose(answer, expected, rtol=2e-3, atol=1e-4, err_msg=name)
    taken: dict[str, list[float]] = {name: [] for name in systems}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken["loop"]) < 3:
        for name, system in systems.items():
            taken[name].append(burst(system, pixels))
    return {name: statistics.median(each) for name, each in taken.items()}


def line(case: dict[str, Any], took: dict[str, float]) -> str:
    """A cell as JSON: milliseconds, and how the automatic choice stands."""
    ours = ("stacked", "onnx_stacked", "onnx_unrolled", "compiled", "loop")
    best = min(took[name] for name in ours if name in took)
    ratios = {f"{name}/auto": round(ms / took["auto"], 2) for name, ms in took.items()}
    ratios["best/auto"] = round(best / took["auto"], 2)
    if whole := [ms for name, ms in took.items() if name.endswith(IN_FULL)]:
        ratios["best_in_full/auto"] = round(min(whole) / took["auto"], 2)
    milliseconds = {name: round(ms, 4) for name, ms in took.items()}
    return json.dumps(case | {"ms": milliseconds, "ratios": ratios})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS)[:3])
    parser.add_argument("--members", nargs="+", type=int, default=[10, 50, 200])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--seconds", type=float, default=4.0, help="a cell")
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
    parser.add_argument("--shared", action="store_true", help="members of one trunk, and no others")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.shared:
        measure_shared(arguments.members, arguments.batch, arguments.seconds)
        return
    generator = np.random.default_rng(0)
    for network in arguments.network:
        build, (_, *shape), _ = NETWORKS[network]
        for members in arguments.members:
            modules = [build().eval() for _ in range(members)]
            systems = torch_systems(modules, network)
            graphs, form = onnx_systems(modules, network)
            systems |= graphs
            systems["torchensemble"] = torchensemble(modules)
            systems["torch_uncertainty"] = torch_uncertainty(modules)
            if arguments.compiled:
                systems["compiled"] = compiled(modules)
            for batch in arguments.batch:
                pixels = generator.integers(256, size=(batch, *shape), dtype=np.uint8)
                with torch.inference_mode():
                    took = race(systems, pixels, arguments.seconds)
                case = {"case": "asking", "network": network, "members": members, "batch": batch}
                print(line(case | {"auto": form, "torch": torch.__version__}, took), flush=True)


if __name__ == "__main__":
    main()
