"""Does it hold? Strange inputs, shift, sets, and a student, over repeats.

    uv run python tests/benchmarks/bench_trust.py digits 10 | mnist 3 | cifar10 3

``digits``: the default run, two classes left out. ``mnist`` and ``cifar10``: small networks on
2,000 images of half the width, of those in $BEND_DATASETS, against each other's images. Every
repeat has a seed and a split of its own. Told, as Markdown: AUROC on each set of strange inputs,
accuracy, NLL and ECE over all corruptions and severities, coverage of sets for 90 %, and our bag
minus the deep ensemble of equal cost, paired by repeat. Then students of the bag and of the deep
ensemble, a cascade, and milliseconds for 32 images, asked in turn.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import torch

import bend_ray as bend
from bend_ray.artifacts.shards import read_population
from bend_ray.config.reading import load_config
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.examples import Parts
from bend_ray.data.inputs import IMAGES, Corruption
from bend_ray.ensemble.metrics import detection, score
from bend_ray.export.folder import bag_of, measured, publish_bag
from bend_ray.export.student import _taught, distil
from bend_ray.populations.networks import Classifiers
from bend_ray.serve.bag import Bag, Cascade

EQUAL = "equal cost"
BAGS = ("bag", EQUAL, "deep_ensemble", "originals_bag", "trunk_averages", "multiswag", "member")
BELOW = 0.9
ROUNDS = 30
TESTED = 1000
"""Of MNIST and CIFAR-10, the first so many test images."""


def config_of(case: str, folder: Path) -> PipelineConfig:
    """What is run; smaller test parts are written to a folder."""
    names = [name for name in get_args(Corruption) if name in IMAGES]
    rivals = (
        "[{kind: deep_ensemble}, {kind: originals_bag}, {kind: trunk_averages}, {kind: multiswag}]"
    )
    own = [f"evaluation.shift={names}", f"evaluation.rivals={rivals}"]
    if case == "digits":
        ood = "[{kind: left_out}, {kind: noise}]"
        return load_config(
            None,
            [
                *own,
                f"evaluation.ood={ood}",
                "dataset.num_calibration=100",
                "dataset.left_out=['3', '7']",
            ],
        )
    there = Path(os.environ["BEND_DATASETS"])

    def files(name: str, more: str) -> str:
        few = folder / f"{name}.parquet"
        folder.mkdir(exist_ok=True)
        pq.write_table(pq.read_table(there / name / "test.parquet").slice(0, TESTED), few)
        return f"{{kind: image_parquet, train: {there / name}/train.parquet, test: {few}{more}}}"

    pixels = {"mnist": 14, "cifar10": 16}[case]
    size = f", image_size: {pixels}, num_train: 2000, num_validation: 2000, memory: 8"
    size += ", num_calibration: 1000"
    other = {"mnist": "cifar10", "cifar10": "mnist"}[case]
    channels, epochs = {"mnist": ("[8, 16]", 12), "cifar10": ("[16, 32, 32]", 12)}[case]
    own[0] = "evaluation.shift=[gaussian_noise, gaussian_blur, contrast, rotate]"
    small = ", num_train: 100, num_validation: 100, memory: 8"
    return load_config(
        None,
        [
            *own,
            f"dataset={files(case, size)}",
            f"evaluation.ood=[{{kind: dataset, dataset: {files(other, small)}}}, {{kind: noise}}]",
            f"seeds.architecture={{kind: convnet, channels: {channels}}}",
            f"seeds.recipe.epochs={epochs}",
            "seeds.recipe.optimizer.learning_rate=0.005",
            "seeds.protocol.trunks=4",
            "seeds.protocol.tails=6",
            "samples.count=12",
        ],
    )


def figures(run: bend.Run) -> dict[str, dict[str, float]]:
    """By bag, then by what they are of."""
    found = {}
    for name in BAGS:
        trust = run.evaluation.trust.get(name)
        if trust is None:
            continue
        own: dict[str, float] = {}
        for inputs, scores in trust.ood.items():
            for kind in ("entropy", "information"):
                own[f"AUROC % {inputs} {kind}"] = 100 * (scores[kind].auroc or 0.0)
            own[f"FPR95 % {inputs}"] = 100 * (scores["entropy"].fpr95 or 0.0)
        shifted = [each for by in trust.shift.values() for each in by.values()]
        own["shift accuracy %"] = 100 * statistics.fmean(each.accuracy or 0.0 for each in shifted)
        own["shift NLL"] = statistics.fmean(each.nll or 0.0 for each in shifted)
        own["shift ECE %"] = 100 * statistics.fmean(each.ece or 0.0 for each in shifted)
        own["shift coverage %"] = 100 * statistics.fmean(each.coverage or 0.0 for each in shifted)
        for kind, levels in trust.sets.items():
            own[f"{kind} coverage %"] = 100 * (levels["0.9"].coverage or 0.0)
            own[f"{kind} size"] = levels["0.9"].size or 0.0
        found[name] = own
    return found


def told(case: str, repeats: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
    """A row a figure, a column a bag, and the paired difference."""
    names = [name for name in BAGS if name in repeats[0]]
    print(f"\n### {case}, {len(repeats)} repeats\n")
    print("| | " + " | ".join(names) + " | bag minus equal cost |")
    print("|" + "---|" * (len(names) + 2))
    for figure in repeats[0]["bag"]:
        cells = [_cell([each[name][figure] for each in repeats]) for name in names]
        minus = [each["bag"][figure] - each[EQUAL][figure] for each in repeats if EQUAL in each]
        error = statistics.stdev(minus) / math.sqrt(len(minus)) if len(minus) > 1 else math.nan
        difference = f"{statistics.fmean(minus):+.4f} ± {error:.4f}" if minus else "-"
        print(f"| {figure} | " + " | ".join(cells) + f" | {difference} |")


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def students(run: bend.Run, folder: Path) -> dict[str, dict[str, float]]:
    """The bag, students of it and of the deep ensemble, a cascade and a member."""
    dataset = run.config.dataset.load()
    card, state_K = bag_of(run.config, run.graph)
    distil(run.config, run.graph, str(folder / "student"))
    one = {name: each[:1] for name, each in state_K.items()}
    alone = card.model_copy(update={"members": (0,), "weights": (1.0,), "calibration": None})
    asked = {"bag": _written(folder / "bag", card, state_K), "student": folder / "student"}
    asked["member"] = _written(folder / "member", measured(run.config, alone, one, dataset), one)
    assert run.graph.ordinary is not None
    theirs = torch.from_numpy(read_population(run.graph.ordinary).theta_KP.copy())
    whole = Classifiers(run.config, dataset, "cpu").whole
    count = len(theirs)
    ensemble = alone.model_copy(
        update={
            "members": tuple(range(count)),
            "weights": (1 / count,) * count,
            "temperature": run.evaluation.rivals["deep_ensemble"].temperature or 1.0,
        }
    )
    theta_P, _ = _taught(run.config, dataset, ensemble, whole.unflatten(theirs), None)
    taught = whole.unflatten(theta_P[None])
    asked["ensemble's student"] = _written(
        folder / "other", measured(run.config, alone, taught, dataset), taught
    )
    bags: dict[str, Bag] = {name: bend.load_bag(path) for name, path in asked.items()}
    bags[f"cascade below {BELOW:g}"] = Cascade(bags["student"], bags["bag"], BELOW)
    return _asked(bags, run, dataset)


def _written(folder: Path, card: Any, state: Any) -> Path:
    folder.mkdir()
    publish_bag(folder, card, state)
    return folder


def _asked(bags: Mapping[str, Bag], run: bend.Run, dataset: Parts) -> dict[str, dict[str, float]]:
    test, outside = dataset.test, run.config.evaluation.ood[0].of(dataset)
    found: dict[str, dict[str, float]] = {}
    for name, bag in bags.items():
        probs, strange = (bag.predict_proba(e.take(slice(None))) for e in (test, outside))
        scores = score(torch.from_numpy(probs), test.labels_N)
        entropy = [-(p * np.log(np.maximum(p, 1e-30))).sum(1) for p in (probs, strange)]
        found[name] = {
            "accuracy %": 100 * scores["accuracy"],
            "NLL": scores["nll"],
            f"AUROC % {run.config.evaluation.ood[0].name}": 100 * detection(*entropy)["auroc"],
        }
    batch, spent = test.take(slice(32)), {name: list[float]() for name in bags}
    for _ in range(ROUNDS):  # in turn: others keep the machine busy
        for name, bag in bags.items():
            started = time.perf_counter()
            bag.predict_proba(batch)
            spent[name].append(time.perf_counter() - started)
    for name, seconds in spent.items():
        found[name]["ms"] = 1000 * statistics.median(seconds)
    return found


def main(case: str, count: int, folder: str) -> None:
    """Run all repeats, and tell."""
    repeats, taught = [], []
    for config in config_of(case, Path(folder)).repeats(count):
        run = bend.run(config, store=f"{folder}/store")
        repeats.append(figures(run))
        with tempfile.TemporaryDirectory() as scratch:
            taught.append(students(run, Path(scratch)))
        print(f"{case}: repeat {len(repeats)} done", file=sys.stderr)
    told(case, repeats)
    names, keys = list(taught[0]), list(taught[0]["bag"])
    print("\n| | " + " | ".join(keys) + " |")
    print("|" + "---|" * (len(keys) + 1))
    for name in names:
        print(f"| {name} | " + " | ".join(_cell([t[name][k] for t in taught]) for k in keys) + " |")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else place)
