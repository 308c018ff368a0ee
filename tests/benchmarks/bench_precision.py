"""What a precision changes: the same ordinary trainings in float32 and rounded, seed by seed.

    uv run python tests/benchmarks/bench_precision.py IMAGES [--seeds 3] [--models 3] [--device cpu]

IMAGES holds cifar10/{train,test}.parquet; network and recipe are those of configs/cifar10.yaml.
Trainings of the precisions take turns. A JSON line a seed and precision, in the end the mean over
seeds and the standard error of the difference from float32: accuracy and NLL of single models and
of their bag, spread (share of test images on which two models differ) and seconds of the processor.
All are asked in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bend_ray.config.reading import load_config
from bend_ray.ensemble.metrics import disagreements, member_accuracy, score, true_log_probs
from bend_ray.networks.recipe import Stretch
from bend_ray.populations.networks import Classifiers
from bend_ray.process.computing import settle
from bend_ray.randomness import generator_for

FIGURES = ("accuracy", "nll", "bag_accuracy", "bag_nll", "spread", "seconds")


def trained(config: dict[str, Any], seed: int, models: int, device: str) -> dict[str, float]:
    """Figures of a few models of one seed."""
    loaded = load_config("configs/cifar10.yaml", [*config["set"], f"seed={seed}"])
    classifiers = Classifiers(loaded, config["data"], device)
    starts = []
    for model in range(models):
        torch.manual_seed(1000 * seed + model)
        starts.append(classifiers.whole.flatten(classifiers.build().state_dict()).detach())
    streams = [generator_for(seed, "precision", model) for model in range(models)]
    stretch = Stretch(start=0.0, epochs=loaded.seeds.recipe.epochs)
    cpu, wall = time.process_time(), time.perf_counter()
    ((_, theta_SKP),) = classifiers.fitted(torch.stack(starts), None, stretch, streams)
    theta_KP = theta_SKP[-1]
    took = time.process_time() - cpu if device == "cpu" else time.perf_counter() - wall
    test = classifiers.dataset.test
    logits_KNC, labels_N = classifiers.logits(theta_KP, test), test.labels_N
    bag = score(logits_KNC.double().softmax(dim=-1).mean(dim=0), labels_N)
    return {
        "accuracy": member_accuracy(logits_KNC, labels_N).mean().item(),
        "nll": -true_log_probs(logits_KNC, labels_N).mean().item(),
        "bag_accuracy": bag["accuracy"],
        "bag_nll": bag["nll"],
        "spread": disagreements(logits_KNC.argmax(dim=-1)).mean().item(),
        "seconds": took,
    }


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    settle(1, 0)
    dataset = {"kind": "image_parquet", "num_train": 10000, "num_validation": 2000} | {
        part: str(asked.images / "cifar10" / f"{part}.parquet") for part in ("train", "test")
    }
    given = [f"dataset={json.dumps(dataset)}", f"seeds.recipe.epochs={asked.epochs}"]
    data = load_config("configs/cifar10.yaml", given).dataset.load()
    precisions = ["float32", "bf16", *(["tf32"] if asked.device != "cpu" else [])]
    found: dict[str, list[dict[str, float]]] = {precision: [] for precision in precisions}
    for seed in range(asked.seeds):
        for precision in precisions:
            case = {"set": [*given, f"seeds.recipe.precision={precision}"], "data": data}
            found[precision].append(trained(case, seed, asked.models, asked.device))
            told = {"seed": seed, "precision": precision, **found[precision][-1]}
            print(json.dumps(told), flush=True)
    for precision in precisions:
        for figure in FIGURES:
            each = [row[figure] for row in found[precision]]
            apart = [a - row[figure] for a, row in zip(each, found["float32"], strict=True)]
            error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else 0.0
            print(
                f"{precision:<8} {figure:<13} {statistics.fmean(each):9.4f}  "
                f"{statistics.fmean(apart):+.4f} +- {error:.4f}"
            )


if __name__ == "__main__":
    main()
