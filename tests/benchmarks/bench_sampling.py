"""What one more generated classifier costs, from noise to checked, beside one ordinary training.

    uv run python tests/benchmarks/bench_sampling.py [digits mnist cifar10]
    uv run python tests/benchmarks/bench_sampling.py --quality      # samplers at equal quality

The first: CPU milliseconds a model of every part (latents by each sampler, decoding, BatchNorm's
statistics, validation), at the sizes of ``configs/``; and of one ordinary training of the same
network by the same recipe, alone as everyone trains one and in a cohort of ours, from some of its
steps. Random weights and images: they do not change how long it takes. One thread.

``--quality`` runs the digits pipeline (Ray, about two minutes), without label smoothing and with
nothing done to what is drawn, with each sampler on the same populations and tells what ``bend run``
does, test figures among it: to compare, not to choose by.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_fitting import normalise
from torch import nn

from bend_ray.config.reading import load_config
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.examples import Examples
from bend_ray.generation.diffusion import Ancestral, Ddim, Euler, FlowMatching
from bend_ray.generation.latent_diffusion import LatentScale, sample_latents
from bend_ray.networks.batchnorm import recalibrate_batchnorm
from bend_ray.networks.fitting import fit
from bend_ray.networks.recipe import Stretch
from bend_ray.networks.stacking import Stack, form_for, predict_logits
from bend_ray.parameters.features import PrincipalBasis, gram, gram_sums, mix
from bend_ray.parameters.layout import ParameterLayout

SIZES = {
    "digits": ((1, 8, 8), 1077, 360),
    "mnist": ((1, 28, 28), 55_000, 5000),
    "cifar10": ((3, 32, 32), 10_000, 2000),
}
"""Image shape, training and validation images."""
TIMED_STEPS = 60
"""Of an ordinary training; all its steps cost the same."""


def timed(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of each, interleaved; the first time allocates and is left out."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(rounds + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if round_:
                taken[name].append(1e3 * (time.process_time() - started))
    return {name: statistics.median(each) for name, each in taken.items()}


def random_images(count: int, shape: tuple[int, int, int]) -> Examples:
    """Noise with labels."""
    pixels = torch.randint(256, (count, *shape), dtype=torch.uint8)
    return Examples(pixels, torch.randint(10, (count,)))


def of_samples(task: str, config: PipelineConfig) -> tuple[dict[str, Callable[[], object]], int]:
    """The parts of drawing a shard of models, and of how many."""
    shape, _, num_validation = SIZES[task]
    module = config.seeds.architecture.build(shape, 10)
    layout = ParameterLayout.of(module)
    form = form_for(module, "cpu")
    stack = Stack(module, layout, form)
    members = config.seeds.num_models
    count = min(config.samples.count, config.samples.shard_size)
    train_K = torch.arange(members) % 7 > 0
    theta_KP = 0.05 * torch.rand(members, layout.size)
    sums = gram_sums(layout, train_K, [theta_KP])
    basis, coefficients_KF = PrincipalBasis.fit(gram([sums], layout, train_K), train_K)
    autoencoder = config.autoencoder.model.build(coefficients_KF.shape[1]).eval()
    size = config.autoencoder.model.latent_size or coefficients_KF.shape[1]
    conditions = config.num_conditions
    denoiser = config.generator.denoiser.build(size, conditions).eval()
    scale = LatentScale.fit(
        torch.randn(members, size), torch.arange(members) % conditions, conditions
    )
    condition_N = torch.arange(count) % conditions
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    samplers = {
        "ddim_50": (Ddim(steps=50), config.generator.process),
        "ancestral_1000": (Ancestral(), config.generator.process),
        "flow_50": (Euler(steps=50), FlowMatching()),
    }
    z_NZ = torch.randn(count, size)
    recalibrating = normalise(random_images(config.samples.recalibration_images, shape).inputs)
    validating = normalise(random_images(num_validation, shape).inputs)

    @torch.no_grad()
    def decode() -> torch.Tensor:
        return mix(basis.weights(autoencoder.decode(z_NZ)), theta_KP[train_K])

    theta_NP = theta_KP[:1].expand(count, -1).contiguous()
    parts: dict[str, Callable[[], object]] = {
        name: lambda sampler=sampler, process=process: sample_latents(
            denoiser, process, sampler, scale, condition_N, generators
        )
        for name, (sampler, process) in samplers.items()
    }
    parts["decode"] = decode
    parts["batchnorm"] = lambda: recalibrate_batchnorm(stack, theta_NP, recalibrating)
    parts["validation"] = lambda: predict_logits(stack, theta_NP, validating)
    return parts, count


def of_training(
    task: str, config: PipelineConfig
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Steps of ordinary trainings, alone and in a cohort, and their share of a whole one."""
    shape, num_images, _ = SIZES[task]
    recipe, architecture = config.seeds.recipe, config.seeds.architecture
    steps = min(TIMED_STEPS, recipe.num_steps(recipe.epochs, num_images))
    images = random_images(min(num_images, steps * recipe.batch_size), shape)
    inputs = normalise(images.inputs)
    batches = [
        torch.arange(i * recipe.batch_size, (i + 1) * recipe.batch_size) % len(images)
        for i in range(steps)
    ]

    def alone() -> None:
        module = architecture.build(shape, 10)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        for batch in batches:
            optimizer.zero_grad()
            logits = module(inputs[batch])
            nn.functional.cross_entropy(logits, images.labels_N[batch]).backward()
            optimizer.step()

    cohort = min(config.seeds.cohort_size, 32)
    module = architecture.build(shape, 10)
    layout = ParameterLayout.of(module)
    form = form_for(module, "cpu")
    start_KP = torch.stack(
        [layout.flatten(architecture.build(shape, 10).state_dict()) for _ in range(cohort)]
    )
    epochs = steps / -(-len(images) // recipe.batch_size)

    def together() -> None:
        fit(
            Stack(module, layout, form),
            start_KP,
            images,
            normalise,
            recipe,
            Stretch(0.0, epochs),
            [torch.Generator().manual_seed(k) for k in range(cohort)],
        )

    share = steps / recipe.num_steps(recipe.epochs, num_images)
    return {"alone": alone, "in_cohort": together}, {"alone": share, "in_cohort": share * cohort}


AS_DRAWN = [
    "--set",
    "seeds.recipe.label_smoothing=0",
    "--set",
    "seeds.protocol.early_tails=0",
    "--set",
    "seeds.protocol.burn_in_fraction=0.375",
]
"""Without early tails nothing is done to what a sampler draws."""


def quality() -> None:
    """Each sampler's samples and bags, of the same populations."""
    variants = {
        "ddim_50": [],
        "ancestral_1000": ["--set", "samples.sampler={kind: ancestral}"],
        "flow_50": [
            "--set",
            "generator.process={kind: flow}",
            "--set",
            "samples.sampler={kind: euler, steps: 50}",
        ],
    }
    with tempfile.TemporaryDirectory() as store:
        for name, options in variants.items():
            path = Path(store, f"{name}.json")
            command = [sys.executable, "-m", "bend_ray", "run", "--store", store, "--repeats", "3"]
            told = [*command, "--json", str(path), *AS_DRAWN, *options]
            subprocess.run(told, check=True, stdout=sys.stderr)
            result = json.loads(path.read_text())
            print(json.dumps({"case": "sampler", "sampler": name, "result": result["aggregate"]}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quality", action="store_true")
    arguments = parser.parse_args()
    if arguments.quality:
        quality()
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    configs = Path(__file__).parents[2] / "configs"
    for task in arguments.tasks:
        config = load_config(str(configs / f"{task}.yaml"), [])
        drawing, count = of_samples(task, config)
        trainings, shares = of_training(task, config)
        took = timed(drawing | trainings, arguments.rounds)
        parts = {name: took[name] / count for name in drawing}
        training = {name: took[name] / share for name, share in shares.items()}
        # It is that training, for a share of it.
        parts["annealing"] = config.finish.annealing.fraction * training["in_cohort"]
        done = ("ddim_50", "decode", "annealing", "batchnorm", "validation")
        generated = sum(parts[part] for part in done)
        line = {
            "case": "sampling",
            "task": task,
            "cpu_ms_a_generated_model": {name: round(ms, 3) for name, ms in parts.items()},
            "generated_ms": round(generated, 2),
            "models_a_second": round(1e3 / generated, 1),
            "training_ms": {name: round(ms, 1) for name, ms in training.items()},
            "ratios": {
                f"{name}/generated": round(ms / generated, 1) for name, ms in training.items()
            },
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
