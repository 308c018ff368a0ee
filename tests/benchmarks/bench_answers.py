"""Memory and seconds of an evaluation whose models, answers or both are large.

    uv run python tests/benchmarks/bench_answers.py vit 12 | tiny 10000 | votes 48

``vit``: ViT-B/16 on pictures of 32 pixels; so many originals, drawn and ordinary ones, all rivals.
``tiny``: so many originals and as many drawn perceptrons on the digits, all rivals. Both evaluate
synthetic shards in one fresh process that asks and compares (on a cluster processes share that).
``votes``: synthetic answers of so many members, 1,000 classes, 50,000 test and 5,000 validation
examples: vote, temperature, scores. Told: the peak of the process, what of it libraries take, and
seconds. A JSON line a case.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from bench_shards import population

from bend_ray import pipeline
from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import write_shard
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.artifacts.weights import save_weights
from bend_ray.config.graph import Graph, graph_of, identified
from bend_ray.config.reading import load_config
from bend_ray.config.schema import PipelineConfig
from bend_ray.ensemble.metrics import score
from bend_ray.ensemble.predictions import block_size
from bend_ray.ensemble.votes import SoftVote, apply_temperature, fit_temperature
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.populations.answers import LABELS, Answers, piece_name, write_piece
from bend_ray.report.evaluation import Evaluation
from bend_ray.runtime.interface import Runtime

TRUNKS, CLASSES = 4, 1000
PICTURES = "dataset={kind: imported, target: 'bench_answers:pictures', num_validation: 4}"


def pictures() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A training and a test part of noise."""
    pixels = np.random.default_rng(0).integers(256, size=(24, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(24) % 4
    return {"train": (pixels[:20], labels[:20]), "test": (pixels[20:], labels[20:])}


def config_of(case: str, count: int) -> PipelineConfig:
    """All rivals, and as many of each population."""
    per_trunk = count // TRUNKS
    protocol = f"{{kind: tails, trunks: {TRUNKS}, tails: {per_trunk}, trunk_fraction: 0.5, "
    more = [
        f"seeds.protocol={protocol}tail_fraction: 0.1}}",
        f"samples.count={count}",
        "seeds.held_out=0",
    ]
    if case == "vit":
        more += [PICTURES, "seeds.architecture={kind: torchvision, name: vit_b_16}"]
    else:
        # Training is not what is measured: that many ordinary models would be in the way.
        rivals = ("originals_bag", "trunk_bag", "best_original", "weight_average")
        rivals += ("trunk_averages", "noise", "gaussian", "multiswag")
        more += [f"evaluation.rivals=[{', '.join(f'{{kind: {each}}}' for each in rivals)}]"]
    return identified(load_config(None, more))


def fill(graph: Graph, config: PipelineConfig, count: int) -> None:
    """Commit what comes before the evaluation: populations of noise around a common mean."""
    parts = config.dataset.load()
    layout = ParameterLayout.of(
        config.seeds.architecture.build(parts.input_shape, parts.num_outputs)
    )
    for artifact in dict.fromkeys([*graph, graph.ordinary]):
        if artifact in (None, graph.evaluation):
            continue
        rows = {}
        if artifact in (graph.seeds, graph.samples, graph.ordinary):
            together = max(1, 2**28 // (4 * layout.size))
            for index, first in enumerate(range(0, count, together)):
                models = min(together, count - first)
                rows[write_shard(artifact, index, _models(models, first, layout))] = models
        metrics = {"models": count, "root_cpu_seconds": 0.5}
        cost = Cost(cpu_seconds=1.0, wall_seconds=1.0)
        artifact.commit(files=[*rows], rows=rows, metrics=metrics, cost=cost)


def _models(models: int, first: int, layout: ParameterLayout) -> Population:
    made = population(models, 1, first)
    theta = np.stack([
        0.03 * np.random.default_rng(9).standard_normal(layout.size, np.float32)
        + 0.01 * np.random.default_rng(10 + first + k).standard_normal(layout.size, np.float32)
        for k in range(models)
    ])  # fmt: skip
    found = vars(made) | {"theta_KP": theta, "layout_digest": layout.digest}
    return Population(**found | {"trunk": np.arange(first, first + models) % TRUNKS})


def evaluate(case: str, count: int, folder: str, queue: Any) -> None:
    """The evaluation alone, in this process."""
    torch.set_num_threads(1)
    config = config_of(case, count)
    graph = graph_of(config, Store(folder))
    with _told(queue):
        pipeline.make_stage("evaluation", config, graph, Runtime())
    Evaluation.committed(graph.evaluation.manifest())


def write_answers(store: Store, members: int, part: str, examples: int) -> Artifact:
    """Committed answers that nobody gave, a piece a member."""
    artifact = store.artifact("answers", 1, {"members": members, "part": part})
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.randint(CLASSES, (examples,), generator=generator)
    size = block_size(members, CLASSES)

    def blocks(member: int) -> Iterator[torch.Tensor]:
        own = torch.Generator().manual_seed(member)
        for labels in labels_N.split(size):
            logits = 2 * torch.randn(1, len(labels), CLASSES, generator=own)
            logits[0, torch.arange(len(labels)), labels] += 4
            yield logits

    for member in range(members):
        write_piece(artifact, member, 1, CLASSES, blocks(member))
    save_weights(artifact, LABELS, {"labels": labels_N})
    rows = {piece_name(member): 1 for member in range(members)}
    task = {"task": {"kind": "classification"}}
    return artifact.commit(files=[*rows, LABELS], rows=rows, metrics=task, cost=Cost())


def vote(_: str, count: int, folder: str, queue: Any) -> None:
    """Vote, fit a temperature, score."""
    torch.set_num_threads(1)
    parts = {"validation": 5_000, "test": 50_000}
    made = {name: write_answers(Store(folder), count, name, n) for name, n in parts.items()}
    with _told(queue):
        val, test = (Answers(made[name]) for name in parts)
        _, nll_E = val.scores()
        temperature = fit_temperature(SoftVote().answers(val, nll_E), val.labels_N)
        probs_NC = apply_temperature(SoftVote().answers(test, nll_E), temperature)
        print(temperature, score(probs_NC, test.labels_N), file=sys.stderr)


@contextmanager
def _told(queue: Any) -> Iterator[None]:
    before, started, computed = _peak_mb(), time.perf_counter(), time.process_time()
    yield
    seconds = {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - computed}
    queue.put({"peak_mb": _peak_mb(), "before_mb": before, **seconds})


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """One case."""
    case, count = sys.argv[1], int(sys.argv[2])
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench-answers-") as folder:
        if case != "votes":
            config = config_of(case, count)
            fill(graph_of(config, Store(folder)), config, count)
        queue = spawn.Queue()
        work = vote if case == "votes" else evaluate
        process = spawn.Process(target=work, args=(case, count, folder, queue))
        process.start()
        process.join()
        if process.exitcode == 0:
            print(json.dumps({"case": case, "count": count, **queue.get()}))


if __name__ == "__main__":
    main()
