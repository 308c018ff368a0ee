"""What only a GPU can show, as one table: see check.sh.

Without a GPU ``--device cpu --minutes 1`` runs the same at a size that proves the script alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bend_ray.data.examples import Examples
from bend_ray.errors import ClusterError
from bend_ray.networks.batchnorm import recalibrate_batchnorm
from bend_ray.networks.fitting import fit
from bend_ray.networks.recipe import Precision, Recipe, Stretch
from bend_ray.networks.stacking import Form, Stack, form_for, predict_logits
from bend_ray.parameters.layout import ParameterLayout

CLASSES, BATCH = 10, 64
ROUNDS = 3
REPLAYS = 5
"""Steps that are timed together."""
TOLERANCE = 2e-3
"""Of logits after a few steps, CPU against GPU, as a share of the largest."""
ROUNDED = 0.2
"""Likewise, of products in fewer bits."""
PAPERS_SHARE = 0.55
"""Of the minutes, for the papers' protocol."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    part: str
    case: str
    value: str
    passed: bool = True


@dataclass(frozen=True)
class Case:
    """A network, and images for it."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]

    def examples(self, count: int, device: str) -> Examples:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (count, *self.shape), generator=generator, dtype=torch.uint8)
        labels = torch.randint(CLASSES, (count,), generator=generator)
        return Examples(pixels.to(device), labels)

    def starts(self, layout: ParameterLayout, models: int) -> Tensor:
        torch.manual_seed(0)
        states = [layout.flatten(self.build().state_dict()) for _ in range(models)]
        return torch.stack(states).detach()


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def lenet() -> nn.Module:
    convolutions = (nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
    more = (nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    head = (nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES))
    return nn.Sequential(*convolutions, *more, *head)


def batchnorm_cnn() -> nn.Module:
    layers: list[nn.Module] = []
    before = 3
    for index, width in enumerate((16, 16, 32, 32, 64, 64, 64)):
        stride = 2 if index in (2, 4) else 1
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)]
        layers += [nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


CASES = (
    Case("mlp", mlp, (1, 8, 8)),
    Case("lenet", lenet, (1, 28, 28)),
    Case("batchnorm_cnn", batchnorm_cnn, (3, 32, 32)),
)


def normalise(pixels: Any) -> Tensor:
    """Pixels to inputs."""
    return (pixels.float() - 128) / 64


def trained(
    case: Case,
    form: Form | None,
    device: str,
    models: int,
    images: int,
    precision: Precision = "float32",
) -> tuple[Stack, Tensor]:
    """A population after an epoch; None: in the form that the package picks."""
    module = case.build().to(device)
    layout = ParameterLayout.of(module)
    stack = Stack(module, layout, form or form_for(module, device))
    generators = [torch.Generator().manual_seed(k) for k in range(models)]
    recipe = Recipe(epochs=1, batch_size=BATCH, precision=precision)
    start_KP = case.starts(layout, models).to(device)
    theta_SKP = fit(
        *(stack, start_KP, case.examples(images, device), normalise, recipe),
        *(Stretch(0.0, 1.0), generators),
    )
    return stack, theta_SKP[-1].to(device)


def seconds(work: Callable[[], object], device: str) -> float:
    """The median of some rounds, after one that warms up."""
    took = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


def same_as_on_a_cpu(device: str) -> Iterator[Row]:
    """Rooms on the device: training, asking, norms, weight space."""
    for case in CASES:
        inputs = normalise(case.examples(32, "cpu").inputs)
        logits = []
        for where in ("cpu", device):
            stack, theta_KP = trained(case, None, where, models=3, images=128)
            there = inputs.to(where)
            theta_KP = recalibrate_batchnorm(stack, theta_KP, there)
            logits.append(predict_logits(stack, theta_KP, there).cpu())
        apart = ((logits[0] - logits[1]).abs().max() / logits[0].abs().max()).item()
        yield Row("as on a CPU", case.name, f"{apart:.1e} of the largest logit", apart < TOLERANCE)


def stacked_over_one_by_one(device: str, models: int, images: int) -> Iterator[Row]:
    """Training a population at once, and asking it, beside one after another."""
    for case in CASES:

        def train(form: Form, case: Case = case) -> float:
            return seconds(lambda: trained(case, form, device, models, images), device)

        took = train("stacked")
        gain, steps = train("loop") / took, models * -(-images // BATCH)
        yield Row("training at once", case.name, f"{gain:.1f} times as fast, {models} models")
        flops, parameters = work_of(case)
        # Of a step: parameters, gradients and two moments, each read and written.
        moved = steps * 32 * parameters / took / 1e9
        rate = steps * flops / took / 1e12
        yield Row(
            "share of the card",
            case.name,
            f"{1e3 * rate:,.1f} GFLOP/s, {moved:,.2f} GB/s of weights",
        )
        _, theta_KP = trained(case, "stacked", device, models, BATCH)
        inputs = normalise(case.examples(images, device).inputs)

        def ask(
            form: Form, case: Case = case, theta: Tensor = theta_KP, shown: Tensor = inputs
        ) -> float:
            module = case.build().to(device)
            stack = Stack(module, ParameterLayout.of(module), form)
            return seconds(lambda: predict_logits(stack, theta, shown), device)

        gain = ask("loop") / ask("stacked")
        rate = models * images / ask("stacked")
        yield Row("asking at once", case.name, f"{gain:.1f} times, {rate:,.0f} answers a second")


def work_of(case: Case) -> tuple[float, int]:
    """Floating-point operations of a model's training step, and its parameters."""
    from torch.utils.flop_counter import FlopCounterMode

    module = case.build()
    with FlopCounterMode(display=False) as counter:
        module(normalise(case.examples(BATCH, "cpu").inputs)).sum().backward()
    return float(counter.get_total_flops()), sum(p.numel() for p in module.parameters())


def precisions(device: str, models: int, images: int) -> Iterator[Row]:
    """What rounding products brings, and by how much logits come out otherwise."""
    for case in CASES:
        found = {}
        for precision in get_args(Precision):
            if device == "cpu" and precision == "tf32":
                continue
            try:
                stack, theta_KP = trained(case, None, device, models, images, precision)
            except ClusterError as error:
                yield Row(precision, case.name, f"refused: {str(error)[:90]}")
                continue
            logits = predict_logits(stack, theta_KP, normalise(case.examples(64, device).inputs))
            work = partial(trained, case, None, device, models, images, precision)
            found[precision] = seconds(work, device), logits
        took, exact = found["float32"]
        for precision, (other, logits) in list(found.items())[1:]:
            apart = ((logits - exact).abs().max() / exact.abs().max()).item()
            told = f"{took / other:.2f} times as fast, {apart:.1e} of the largest logit apart"
            yield Row(precision, case.name, told, apart < ROUNDED)


def graphs(device: str, models: int) -> Iterator[Row]:
    """A stacked step replayed as one CUDA graph, beside launched kernel by kernel."""
    for case in CASES:
        eager, recorded = (stacked_step(case, device, models) for _ in range(2))
        launched = seconds(lambda step=eager.take: [step() for _ in range(REPLAYS)], device)
        if device == "cpu":
            told = f"{1e3 * launched / REPLAYS:.2f} ms a step; graphs are CUDA's"
            yield Row("CUDA graph", case.name, told)
            continue
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                recorded.take()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded.take()
        replayed = seconds(lambda g=graph: [g.replay() for _ in range(REPLAYS)], device)
        # Beside three to warm up; recording takes none.
        for _ in range((ROUNDS + 1) * REPLAYS, (ROUNDS + 1) * REPLAYS + 3):
            eager.take()
        apart = (eager.theta_KT - recorded.theta_KT).abs().max().item()
        gain = f"{launched / replayed:.1f} times as fast, {1e3 * replayed / REPLAYS:.2f} ms a step"
        yield Row("CUDA graph", case.name, gain, apart < TOLERANCE)


@dataclass(frozen=True)
class Step:
    """A training step on inputs that stay where they are."""

    theta_KT: Tensor
    take: Callable[[], None]


def stacked_step(case: Case, device: str, models: int) -> Step:
    """Of a stack, with an optimizer that a graph can record."""
    module = case.build().to(device)
    layout = ParameterLayout.of(module)
    stack = Stack(module, layout, "stacked").train()
    start_KP, size = case.starts(layout, models).to(device), layout.num_trainable
    theta_KT, buffers_KQ = start_KP[:, :size].clone().requires_grad_(), start_KP[:, size:].clone()
    examples = case.examples(BATCH, device)
    inputs = normalise(examples.inputs).expand(models, BATCH, *case.shape).contiguous()
    labels = examples.labels_N.to(device).repeat(models)
    theta_KT.grad = torch.zeros_like(theta_KT)
    optimizer = torch.optim.AdamW([theta_KT], lr=1e-3, capturable=device != "cpu")

    def take() -> None:
        optimizer.zero_grad(set_to_none=False)
        logits_KBC = stack(theta_KT, inputs, buffers_KQ=buffers_KQ, shared=False)
        loss = nn.functional.cross_entropy(logits_KBC.flatten(0, 1), labels, reduction="sum")
        (loss / BATCH).backward()
        optimizer.step()

    return Step(theta_KT, take)


def bandwidth(device: str) -> Iterator[Row]:
    """What a copy reaches: the ceiling of small networks, which read and write more than they
    compute."""
    size = 2**28 if device != "cpu" else 2**24
    source, target = torch.ones(size, device=device), torch.empty(size, device=device)
    rate = 8 * size / seconds(lambda: target.copy_(source), device) / 1e9
    yield Row("ceiling", "copy", f"{rate:,.0f} GB/s")


def papers(device: str, minutes: float, images: Path | None) -> Iterator[Row]:
    """p-diff's protocol: checkpoints of the last two norms, a generator of them, its draws."""
    from bend_ray.config.reading import load_config
    from bend_ray.pipeline import run
    from bend_ray.report.evaluation import Result

    small = device == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        dataset = _papers_data(Path(folder), images, small)
        overrides = [f"dataset={json.dumps(dataset)}", *_papers_size(minutes, small)]
        began = time.perf_counter()
        config = load_config("configs/cifar10_resnet18_subset.yaml", overrides)
        evaluation = Result.of(run(config, f"{folder}/store", local=True))
        took = time.perf_counter() - began
    yield Row("papers", "whole run", f"{took:.0f} s, epochs {config.seeds.recipe.epochs}")
    for name in ("originals", "generated"):
        alone = getattr(evaluation, name).accuracy
        yield Row("papers", f"{name} alone", f"mean {alone.mean:.2%}, best {alone.max:.2%}")
    pairs = {n: evaluation.populations[n].diversity for n in ("originals", "generated")}
    told = ", ".join(f"{name} {each.error_iou or 0:.3f}" for name, each in pairs.items() if each)
    yield Row("papers", "error IoU", f"{told} (published logs: .742, .898)")
    yield Row("papers", "bag", f"{evaluation.bag.accuracy:.2%}, NLL {evaluation.bag.nll:.4f}")
    for name, rival in evaluation.rivals.items():
        yield Row("papers", name, f"{rival.accuracy:.2%}, NLL {rival.nll:.4f}")
    prices = evaluation.prices
    if prices.ordinary_seconds:
        share = prices.marginal_seconds / prices.ordinary_seconds
        yield Row("papers", "one more drawn", f"{share:.4f} of one training")


def _papers_data(folder: Path, images: Path | None, small: bool) -> dict[str, Any]:
    if images is not None:
        parts = {part: str(images / "cifar10" / f"{part}.parquet") for part in ("train", "test")}
        return {"kind": "image_parquet", "num_validation": 5000, **parts}
    rng = np.random.default_rng(0)
    count = 80 if small else 20_000
    for part in ("train", "test"):
        labels = np.arange(count) % CLASSES
        pixels = rng.integers(0, 200, (count, 3, 32, 32)) + 5 * labels[:, None, None, None]
        np.savez(folder / f"{part}.npz", inputs=pixels.astype(np.uint8), labels=labels)
    return {"kind": "arrays", **{part: str(folder / f"{part}.npz") for part in ("train", "test")}}


def _papers_size(minutes: float, small: bool) -> list[str]:
    if not small:
        # Measured on no GPU yet: an epoch of 45,000 images is taken for six seconds.
        return [f"seeds.recipe.epochs={max(1, int(minutes * 60 * 0.6 / 6))}"]
    least = ["seeds.recipe.epochs=1", "seeds.recipe.batch_size=50", "samples.count=4"]
    least += ["seeds.protocol.checkpoints=12", "seeds.protocol.epochs=6"]
    least += ["autoencoder.model.latent_size=8", "autoencoder.training.steps=5"]
    none = [f"{stage}.resources.gpus=0" for stage in ("seeds", "samples", "evaluation")]
    return [
        *least,
        *none,
        "generator.training.steps=5",
        "evaluation.rivals=[{kind: originals_bag}]",
    ]


def main() -> None:
    """Run the parts and print the table; exit code 1 if one of them is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--images", type=Path, help="folder with cifar10/{train,test}.parquet")
    asked = parser.parse_args()
    if asked.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"expected a GPU that torch {torch.__version__} sees, got none")
    small = asked.device == "cpu"
    card = "CPU" if small else torch.cuda.get_device_name()
    torch.set_num_threads(1 if small else 2)
    print(f"{card}, torch {torch.__version__}, Python {platform.python_version()}", flush=True)
    rows: list[Row] = []
    parts = (
        lambda: same_as_on_a_cpu(asked.device),
        lambda: bandwidth(asked.device),
        lambda: stacked_over_one_by_one(asked.device, 4 if small else 128, 64 if small else 2048),
        lambda: precisions(asked.device, 2 if small else 32, 64 if small else 2048),
        lambda: graphs(asked.device, 2 if small else 128),
        lambda: papers(asked.device, asked.minutes * PAPERS_SHARE, asked.images),
    )
    for part in parts:
        for row in part():
            print(f"... {row.part}: {row.case}: {row.value}", flush=True)
            rows.append(row)
    print()
    for row in rows:
        print(f"{row.part:<18} {row.case:<18} {'' if row.passed else 'WRONG: '}{row.value}")
    raise SystemExit(not all(row.passed for row in rows))


if __name__ == "__main__":
    main()
