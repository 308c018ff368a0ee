"""Training a population: ours beside one model at a time, TorchEnsemble and scikit-learn.

    uv run --group bench python tests/benchmarks/bench_fitting.py [--network mlp] [--models 8 32]
    uv run --group bench python tests/benchmarks/bench_fitting.py --memory
    uv run --group bench python tests/benchmarks/bench_fitting.py --processes

Systems: ``ours``, ``networks.fitting.fit`` in the form that ``form_for`` picks; ``one_by_one``,
a plain loop over torch modules with torch's optimizers; ``torchensemble``, its VotingClassifier;
``sklearn``, BaggingClassifier over MLPClassifier (dense networks only). All train the same network
with AdamW (scikit-learn: Adam), batches of 50, in one thread, each system in a process of its own.
Rounds of all systems are interleaved; the median over rounds is told in CPU seconds a model and
step. One model at a time costs the same however many there are: it trains at most eight of them.
With ``--memory`` the peak beyond libraries and data is told. With ``--processes`` ours in one
process and in two is told beside one by one in two, in wall seconds.

A JSON line a case, with ratios to ``one_by_one``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

from bend_ray.data.examples import Examples
from bend_ray.networks.architectures import Mlp
from bend_ray.networks.fitting import fit
from bend_ray.networks.recipe import Recipe, Stretch
from bend_ray.networks.stacking import Stack, form_for
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.process.computing import keep_freed_memory

BATCH, NUM_CLASSES, RATE = 50, 10, 3e-3
AT_MOST = 8
"""Models that one at a time trains: it costs the same however many there are."""


def mlp() -> nn.Module:
    """The digits' network, a little wider: 5 thousand parameters."""
    return Mlp(hidden=(48, 32)).build((1, 8, 8), NUM_CLASSES)


def lenet() -> nn.Module:
    """LeNet-5 with ReLU and max-pooling: 61 thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, NUM_CLASSES),
    )


def cnn8(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Seven 3x3 convolutions, each with a norm, and a head: 102 thousand parameters."""
    layers: list[nn.Module] = []
    before = 3
    for index, channels in enumerate((16, 16, 32, 32, 64, 64, 64)):
        stride = 2 if index in (2, 4) else 1
        layers.append(nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False))
        layers += [norm(channels), nn.ReLU()]
        before = channels
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, NUM_CLASSES)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int, int], int]] = {
    "mlp": (mlp, (1000, 1, 8, 8), 4),
    "lenet": (lenet, (1000, 1, 28, 28), 1),
    "cnn8_batch": (lambda: cnn8(nn.BatchNorm2d), (300, 3, 32, 32), 1),
    "cnn8_group": (lambda: cnn8(lambda channels: nn.GroupNorm(4, channels)), (300, 3, 32, 32), 1),
}
"""Of each: how it is built, the shape of all its images, and the epochs of a round."""


def normalise(pixels: Tensor) -> Tensor:
    """Pixels to network inputs."""
    return (pixels.float() - 128) / 64


class Task:
    """One network and its images."""

    def __init__(self, network: str) -> None:
        self.network = network
        self.build, shape, self.epochs = NETWORKS[network]
        self.num_steps = self.epochs * shape[0] // BATCH
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        labels = torch.randint(NUM_CLASSES, shape[:1], generator=generator)
        self.images = Examples(pixels, labels)
        self.inputs = normalise(pixels)


def ours(task: Task, models: int) -> int:
    """A cohort; models trained."""
    module = task.build()
    layout = ParameterLayout.of(module)
    form = form_for(module, "cpu")
    start_KP = torch.stack([layout.flatten(task.build().state_dict()) for _ in range(models)])
    generators = [torch.Generator().manual_seed(k) for k in range(models)]
    recipe = Recipe(epochs=task.epochs, batch_size=BATCH)
    stretch = Stretch(0.0, task.epochs)
    fit(Stack(module, layout, form), start_KP, task.images, normalise, recipe, stretch, generators)
    return models


def one_by_one(task: Task, models: int, at_most: int = AT_MOST) -> int:
    """As everyone trains a model; those that were trained are kept, as a population is."""
    models = min(models, at_most)
    population = []
    for _ in range(models):
        module = task.build()
        optimizer = torch.optim.AdamW(module.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.num_steps)
        for _ in range(task.epochs):
            for batch in torch.randperm(len(task.inputs)).split(BATCH):
                optimizer.zero_grad()
                logits = module(task.inputs[batch])
                torch.nn.functional.cross_entropy(logits, task.images.labels_N[batch]).backward()
                optimizer.step()
                schedule.step()
        population.append(module)
    return models


def torchensemble(task: Task, models: int) -> int:
    """TorchEnsemble's VotingClassifier, its loader over tensors in memory."""
    from torchensemble import VotingClassifier

    models = min(models, AT_MOST)

    class Estimator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = task.build()

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.network(inputs)
            return logits

    data = torch.utils.data.TensorDataset(task.inputs, task.images.labels_N)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    ensemble = VotingClassifier(estimator=Estimator, n_estimators=models, cuda=False, n_jobs=1)
    ensemble.set_criterion(nn.CrossEntropyLoss())
    ensemble.set_optimizer("AdamW", lr=RATE)
    ensemble.set_scheduler("CosineAnnealingLR", T_max=task.epochs)
    with contextlib.redirect_stdout(io.StringIO()):  # a line an epoch and member
        ensemble.fit(loader, epochs=task.epochs, save_model=False)
    return models


def sklearn(task: Task, models: int) -> int:
    """scikit-learn's BaggingClassifier over its own dense network."""
    from sklearn.ensemble import BaggingClassifier
    from sklearn.neural_network import MLPClassifier

    models = min(models, AT_MOST)
    member = MLPClassifier((48, 32), batch_size=BATCH, max_iter=task.epochs, n_iter_no_change=99)
    bag = BaggingClassifier(member, n_estimators=models, n_jobs=1)
    bag.fit(task.inputs.flatten(1).numpy(), task.images.labels_N.numpy())
    return models


SYSTEMS = {f.__name__: f for f in (ours, one_by_one, torchensemble, sklearn)}


def seconds_a_step(system: Callable[[Task, int], int], task: Task, models: int) -> float:
    """CPU seconds of one model's step."""
    started = time.process_time()
    trained = system(task, models)
    return (time.process_time() - started) / trained / task.num_steps


def serve(name: str, network: str, connection: Connection) -> None:
    """A process that trains as many models by a system as it is told, until it is told to end."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if name == "ours":
        keep_freed_memory()  # as our trainers do
    task = Task(network)
    while (models := connection.recv()) is not None:
        connection.send(seconds_a_step(SYSTEMS[name], task, models))


@contextlib.contextmanager
def processes(names: Sequence[str], network: str) -> Iterator[list[Connection]]:
    """A process for each, as an allocator's settings are a process's."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in names]
    children = [
        context.Process(target=serve, args=(name, network, theirs))
        for name, (_, theirs) in zip(names, pipes, strict=True)
    ]
    for child in children:
        child.start()
    mine = [mine for mine, _ in pipes]
    yield mine
    for connection, child in zip(mine, children, strict=True):
        connection.send(None)
        child.join()


def compare(network: str, models: int, rounds: int) -> dict[str, object]:
    """Medians of CPU milliseconds a model and step, and ratios."""
    systems = [name for name in SYSTEMS if name != "sklearn" or network == "mlp"]
    taken: dict[str, list[float]] = {name: [] for name in systems}
    with processes(systems, network) as connections:
        for round_ in range(rounds + 1):
            for name, connection in zip(systems, connections, strict=True):
                connection.send(models)
                seconds = connection.recv()
                if round_:  # the first allocates and compiles
                    taken[name].append(seconds)
    milliseconds = {name: 1e3 * statistics.median(each) for name, each in taken.items()}
    ratios = {f"{name}/ours": value / milliseconds["ours"] for name, value in milliseconds.items()}
    return {
        "case": "fitting",
        "network": network,
        "models": models,
        "rounds": rounds,
        "cpu_ms_a_model_step": {name: round(value, 4) for name, value in milliseconds.items()},
        "ratios": {name: round(value, 2) for name, value in ratios.items() if "ours/" not in name},
    }


def peak_megabytes(system: str, network: str, models: int, queue: multiprocessing.Queue) -> None:
    """Peak of this process, and how much of it is beyond its libraries, data and one model."""
    torch.set_num_threads(1)
    if system == "ours":
        keep_freed_memory()
    task = Task(network)
    one_by_one(task, 1)  # what the first step of any training loads and allocates
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if system == "ours":
        ours(task, models)
    else:
        one_by_one(task, models, at_most=models)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put((peak / 1024, (peak - before) / 1024))


def compare_memory(network: str, models: int) -> dict[str, object]:
    """Peaks of ``ours`` and of the loop, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for system in ("ours", "one_by_one"):
        queue = context.Queue()
        child = context.Process(target=peak_megabytes, args=(system, network, models, queue))
        child.start()
        peaks[system] = queue.get(timeout=600)
        child.join()
    population = models * ParameterLayout.of(NETWORKS[network][0]()).size * 4 / 2**20
    return {
        "case": "fitting_memory",
        "network": network,
        "models": models,
        "population_mb": round(population, 1),
        "peak_mb": {name: round(peak) for name, (peak, _) in peaks.items()},
        "peak_mb_beyond_one_model": {name: round(more, 1) for name, (_, more) in peaks.items()},
    }


def compare_processes(network: str, models: int, rounds: int) -> dict[str, object]:
    """Medians of wall milliseconds a model and step, of systems in one process or in two."""
    taken: dict[str, list[float]] = {}
    num_steps = Task(network).num_steps
    systems = ("ours", "ours", "one_by_one", "one_by_one")
    with processes(systems, network) as (ours, ours_too, theirs, theirs_too):
        for round_ in range(rounds + 1):
            for name, asked in (
                ("ours, 1", [ours]),
                ("ours, 2", [ours, ours_too]),
                ("one_by_one, 2", [theirs, theirs_too]),
            ):
                share = models // len(asked)
                trained = share if name.startswith("ours") else min(share, AT_MOST)
                started = time.perf_counter()
                for connection in asked:
                    connection.send(share)
                for connection in asked:
                    connection.recv()
                seconds = (time.perf_counter() - started) / (trained * len(asked)) / num_steps
                if round_:  # the first allocates
                    taken.setdefault(name, []).append(seconds)
    milliseconds = {name: 1e3 * statistics.median(each) for name, each in taken.items()}
    best = milliseconds["one_by_one, 2"]
    return {
        "case": "fitting_processes",
        "network": network,
        "models": models,
        "wall_ms_a_model_step": {name: round(value, 4) for name, value in milliseconds.items()},
        "ratios": {
            f"one_by_one, 2/{name}": round(best / value, 2)
            for name, value in milliseconds.items()
            if name.startswith("ours")
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--models", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="peaks instead of times")
    parser.add_argument("--processes", action="store_true", help="two processes, by the clock")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for network in arguments.network:
        for models in arguments.models:
            if arguments.memory:
                line = compare_memory(network, models)
            elif arguments.processes:
                line = compare_processes(network, models, arguments.rounds)
            else:
                line = compare(network, models, arguments.rounds)
            print(json.dumps(line | {"torch": torch.__version__, "cpu": platform.processor()}))


if __name__ == "__main__":
    main()
