"""How the work of every stage grows with members K, parameters P, drawn models N and images.

    uv run python tests/benchmarks/bench_growth.py [STAGE ...]
    uv run python tests/benchmarks/bench_growth.py --oversubscribed

Every point is a process of its own with one thread: CPU seconds of the work, and what the peak of
its memory is above the libraries. Sizes double; told is the slope between the last two and over
all (1 is linear, 2 quadratic). ``--oversubscribed``: as many trainings as twice the cores, at once,
against what a fair share of the cores would give each. A JSON line a case.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_fitting import NETWORKS, Task, normalise, ours
from bench_shards import committed
from PIL import Image

from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.comparison.comparison import Comparison, Selection, StageCosts
from bend_ray.comparison.evidence import compared
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.datasets import ImageFolder
from bend_ray.data.examples import Examples
from bend_ray.data.streaming import Room, Streamed
from bend_ray.ensemble.metrics import disagreements
from bend_ray.ensemble.novelty import places_among
from bend_ray.ensemble.predictions import Predictions
from bend_ray.generation.latent_diffusion import LatentScale, sample_latents
from bend_ray.networks.batches import Feed
from bend_ray.networks.fitting import CLASSIFICATION, fitted
from bend_ray.networks.recipe import Recipe, Stretch
from bend_ray.networks.stacking import Stack, predict_logits
from bend_ray.parameters.features import PrincipalBasis, gram, gram_sums, mix
from bend_ray.parameters.layout import Entry, ParameterLayout
from bend_ray.process.computing import keep_freed_memory

Work = Callable[[], object]


def layout_of(parameters: int) -> ParameterLayout:
    """One layer of so many parameters."""
    return ParameterLayout((Entry("weight", (parameters,), 0, True),))


def fitting(models: int) -> Work:
    """A cohort of digits networks, an epoch."""
    task = Task("mlp")
    return lambda: ours(task, models)


def leaving(snapshots: int, parameters: int) -> Work:
    """A run that leaves a snapshot a step, sixteen of them held at once."""
    module = torch.nn.Linear(parameters // 10, 10, bias=False)
    layout = ParameterLayout.of(module)
    examples = Examples(torch.zeros(10, parameters // 10), torch.arange(10))
    recipe = Recipe(batch_size=10)
    feed = Feed(examples, lambda x: x, recipe, CLASSIFICATION, torch.device("cpu"))
    stretch = Stretch(start=0.0, epochs=snapshots, snapshots=snapshots)

    def work() -> None:
        start_KP, groups = torch.zeros(1, layout.size), [(Stack(module, layout), [0])]
        generators = [torch.Generator()]
        for _, theta_KGP, _ in fitted(groups, start_KP, feed, stretch, generators, chunk=16):
            theta_KGP.sum()

    return work


def whole_gram(models: int, parameters: int) -> Work:
    """The Gram matrix of a population, block by block."""
    layout, train_K = layout_of(parameters), torch.ones(models, dtype=torch.bool)
    theta_KP = torch.randn(models, parameters)

    def work() -> None:
        gram([gram_sums(layout, train_K, theta_KP.split(2**16, dim=1))], layout, train_K)

    return work


def basis(models: int) -> Work:
    """Principal directions of a Gram matrix."""
    theta_KP = torch.randn(models, models + 8).double()
    gram_KK, train_K = theta_KP @ theta_KP.T, torch.ones(models, dtype=torch.bool)
    return lambda: PrincipalBasis.fit(gram_KK, train_K)


def sampling(drawn: int) -> Work:
    """Latents by DDIM-50."""
    config = PipelineConfig()
    size = config.latent_size
    denoiser = config.generator.denoiser.build(size, 8).eval()
    scale = LatentScale.diagonal(torch.randn(16, size), torch.arange(16) % 8, 8)
    generators = [torch.Generator().manual_seed(i) for i in range(drawn)]
    condition_N = torch.arange(drawn) % 8
    return lambda: sample_latents(
        denoiser, config.generator.process, config.samples.sampler, scale, condition_N, generators
    )


def decoding(drawn: int, models: int, parameters: int) -> Work:
    """Weighted sums of the training members."""
    weights_NT, theta_KP = torch.randn(drawn, models).double(), torch.randn(models, parameters)
    return lambda: [mix(weights_NT, block_KW) for block_KW in theta_KP.split(2**16, dim=1)]


def asking(drawn: int, images: int) -> Work:
    """Predictions of digits networks."""
    build, (_, *shape), _ = NETWORKS["mlp"]
    module = build()
    layout = ParameterLayout.of(module)
    theta_KP = torch.randn(drawn, layout.size)
    inputs = normalise(torch.randint(256, (images, *shape), dtype=torch.uint8))
    return lambda: predict_logits(Stack(module, layout), theta_KP, inputs)


def diversity(drawn: int) -> Work:
    """Pairwise disagreement of all members on 2,000 images."""
    predictions_EN = torch.randint(10, (drawn, 2000))
    return lambda: disagreements(predictions_EN)


def nearest(drawn: int, models: int, parameters: int) -> Work:
    """Distance of every drawn model to its nearest training member."""
    theta_MP, train_KP = torch.randn(drawn, parameters), torch.randn(models, parameters)
    pair = [(theta, torch.zeros(len(theta))) for theta in (train_KP, theta_MP)]
    return lambda: places_among(*pair)


def comparing(drawn: int, models: int, parameters: int, images: int) -> Work:
    """The bag, its rivals by default and the evidence of the report; without asking anyone."""
    section, labels_N = PipelineConfig().evaluation, torch.randint(10, (images,))
    counts = {"originals": models, "held_out": 16, "generated": drawn, "ordinary": drawn}
    trunks = {name: torch.arange(count) % 8 for name, count in counts.items()}
    vectors = {name: torch.randn(count, parameters) for name, count in counts.items()}
    rivals = {each.name: each.num_drawn(drawn, 8) for each in section.rivals if each.needs_all}
    prices = StageCosts(9.0, 1.0, 5.0, 1.0, models, 1.0, dict.fromkeys(rivals, 0.01))
    validation, test = (
        {
            name: Predictions(torch.randn(count, images, 10), labels_N, CLASSIFICATION)
            for name, count in (rivals | counts).items()
        }
        for _ in range(2)
    )

    def work() -> None:
        bags = Selection(section, validation, trunks, prices).bags()
        answers = {"validation": validation, "test": test}
        compared(Comparison(section, 0, bags, answers, trunks, vectors, prices))

    return work


def reading(shards: int) -> Work:
    """A population of shards of 8 models."""
    folder = tempfile.mkdtemp()
    artifact = committed(Store(folder), shards, 8, 20_000)
    return lambda: read_population(artifact)


def listing(images: int, side: int) -> Work:
    """A folder of JPEGs is found."""
    spec = jpegs(images, side)
    return lambda: spec.load(Room(2**25))


def streaming(images: int, side: int) -> Work:
    """Such a folder, found before, is gone through once in windows of 16 MB.

    Memory grows with images until two windows and the blocks that threads decode are full.
    """
    train = jpegs(images, side).load(Room(2**25)).train
    recipe = Recipe(batch_size=8)
    # As trainers have it.
    keep_freed_memory()

    def work() -> None:
        assert isinstance(train, Streamed)
        feed = Feed(train, lambda x: x, recipe, CLASSIFICATION, torch.device("cpu"))
        for _ in feed.batches([torch.Generator()], recipe.num_steps(1, images)):
            pass

    return work


def jpegs(images: int, side: int) -> ImageFolder:
    """So many training images in two classes, and a few others."""
    root = Path(tempfile.mkdtemp())
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    picture = io.BytesIO()
    Image.fromarray(noise).save(picture, "JPEG", quality=50)
    for part, count in (("train", images + 10), ("test", 10)):
        for index in range(count):
            path = root / part / "ab"[index % 2] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.getvalue())
    return ImageFolder(root=str(root), num_validation=10, window=2**24 // (3 * side**2))


CASES: dict[str, tuple[Callable[..., Work], dict[str, list[int]], dict[str, int]]] = {
    "seeds": (fitting, {"models": [32, 64, 128, 256]}, {}),
    "seeds_snapshots": (
        leaving,
        {"snapshots": [32, 64, 128, 256], "parameters": [10**6, 2 * 10**6, 4 * 10**6]},
        {"snapshots": 32, "parameters": 10**6},
    ),
    "gram": (
        whole_gram,
        {"models": [128, 256, 512, 1024], "parameters": [2**17, 2**18, 2**19, 2**20]},
        {"models": 64, "parameters": 2**17},
    ),
    "basis": (basis, {"models": [256, 512, 1024]}, {}),
    "samples_latents": (sampling, {"drawn": [64, 128, 256, 512]}, {}),
    "samples_decode": (
        decoding,
        {
            "drawn": [64, 128, 256],
            "models": [64, 128, 256],
            "parameters": [2**18, 2**19, 2**20],
        },
        {"drawn": 32, "models": 64, "parameters": 2**18},
    ),
    "evaluation_asking": (
        asking,
        {"drawn": [128, 256, 512], "images": [1000, 2000, 4000]},
        {"drawn": 64, "images": 1000},
    ),
    "evaluation_disagreement": (diversity, {"drawn": [64, 128, 256, 512]}, {}),
    "evaluation_novelty": (
        nearest,
        {"drawn": [64, 128, 256], "parameters": [2**16, 2**17, 2**18]},
        {"drawn": 64, "models": 64, "parameters": 2**16},
    ),
    "evaluation_comparison": (
        comparing,
        {
            "drawn": [64, 128, 256, 512],
            "models": [64, 128, 256, 512],
            "parameters": [2**14, 2**15, 2**16, 2**17],
            "images": [500, 1000, 2000, 4000],
        },
        {"drawn": 48, "models": 64, "parameters": 2**13, "images": 500},
    ),
    "streaming": (
        streaming,
        {"images": [2000, 4000, 8000, 16000], "side": [112, 224, 448]},
        {"images": 2000, "side": 112},
    ),
    "listing": (listing, {"images": [2000, 4000, 8000, 16000]}, {"side": 112}),
    "shards": (reading, {"shards": [16, 32, 64, 128]}, {}),
}
"""Of each: what is done, the axes that double, and what the other axes are then."""


def point(stage: str, sizes: dict[str, int], queue: Any) -> None:
    """CPU seconds and megabytes of one point, in this process."""
    torch.set_num_threads(1)
    work = CASES[stage][0](**sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    taken = []
    while len(taken) < 3 or (sum(taken) < 0.5 and len(taken) < 200):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    queue.put((float(np.median(taken)), peak))


def slope(sizes: list[int], values: list[float]) -> float:
    """Of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def growth(stage: str) -> None:
    """Every axis of a stage."""
    context = multiprocessing.get_context("spawn")
    _, axes, others = CASES[stage]
    for axis, sizes in axes.items():
        seconds, megabytes = [], []
        for size in sizes:
            queue = context.Queue()
            child = context.Process(target=point, args=(stage, others | {axis: size}, queue))
            child.start()
            taken, peak = queue.get(timeout=900)
            child.join()
            seconds.append(taken)
            megabytes.append(peak)
        line = {
            "case": "growth",
            "stage": stage,
            "axis": axis,
            "sizes": sizes,
            "cpu_ms": [round(1e3 * each, 3) for each in seconds],
            "peak_mb": [round(each, 1) for each in megabytes],
            "slope": round(slope(sizes, seconds), 2),
            "last_slope": round(math.log2(seconds[-1] / seconds[-2]), 2),
        }
        print(json.dumps(line), flush=True)


def train(ready: Any, queue: Any) -> None:
    """One cohort, when all are ready."""
    torch.set_num_threads(1)
    task = Task("mlp")
    ours(task, 32)
    ready.wait()
    started = time.perf_counter()
    for _ in range(5):
        ours(task, 32)
    queue.put(time.perf_counter() - started)


def oversubscribed() -> None:
    """Twice as many trainings as cores, against as many as cores."""
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0))
    walls = []
    for processes in (cores, 2 * cores):
        ready, queue = context.Barrier(processes), context.Queue()
        children = [context.Process(target=train, args=(ready, queue)) for _ in range(processes)]
        for child in children:
            child.start()
        walls.append(max(queue.get(timeout=300) for _ in children))
        for child in children:
            child.join()
    over_fair = walls[1] / (2 * walls[0])
    line = {"case": "oversubscribed", "cores": cores, "wall_s": [round(w, 2) for w in walls]}
    print(json.dumps(line | {"over_fair_share": round(over_fair, 2)}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", default=[])
    parser.add_argument("--oversubscribed", action="store_true")
    arguments = parser.parse_args()
    if arguments.oversubscribed:
        oversubscribed()
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        for stage in arguments.stages or CASES:
            growth(stage)


if __name__ == "__main__":
    main()
