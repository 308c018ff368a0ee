"""What a config's knobs are worth on validation images, split after split: how defaults are chosen.

    uv run python tests/benchmarks/bench_choices.py [FILE] [--set a.b=c ...] [--splits 100 6]
    uv run python tests/benchmarks/bench_choices.py --guidance 0 0.75 --annealing 0 0.05

The stages of ``bend run`` up to the samples, in one process and without Ray: the population, the
autoencoder, the generator and what it draws; and the rivals that need no generator. The test part
stays closed. A JSON line a split and one of their means have: accuracy and NLL of every bag, its
NLL at a temperature (each tenth of the images at that of the others), accuracy of its
members alone, their error IoU, their spread and functional distance (``ensemble.novelty``), and
the CPU seconds of each part; held-out members' losses, as a training starts, at their lowest and
at its end. ``--longer`` trains both for so many steps without a stop, for these losses alone.
``--guidance`` and ``--annealing`` (a share of an ordinary training) finish drawn models as
``samples`` does: every combination has its bag, and those of trunk averages as well, without noise.
Whatever was not trained has BatchNorm's statistics of training images, as in the pipeline.

Shape letters: K members, T trunks, P parameters, F features, Z latent, N drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import product

import torch
from torch import Tensor, nn

from bend_ray.config.reading import load_config
from bend_ray.config.schema import PipelineConfig
from bend_ray.ensemble.metrics import error_iou, score
from bend_ray.ensemble.novelty import Models, novelty, places_among
from bend_ray.ensemble.votes import apply_temperature, fit_temperature
from bend_ray.generation.latent_diffusion import LatentScale, sample_latents
from bend_ray.generation.training import AveragedSteps, Denoising, HeldOut, Reconstruction
from bend_ray.networks.batchnorm import recalibrate_batchnorm
from bend_ray.networks.fitting import fit, initial_parameters
from bend_ray.networks.protocols import held_out_ids
from bend_ray.networks.recipe import Stretch
from bend_ray.networks.stacking import Stack, call, form_for, predict_logits
from bend_ray.optim import Training
from bend_ray.parameters.features import PrincipalBasis, gram, gram_sums, mix
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.parameters.proof import find_symmetries
from bend_ray.parameters.symmetry import align
from bend_ray.randomness import generator_for, seed_for
from bend_ray.stages.samples import ways

FOLDS = 10
"""Of validation images: halves of digits' may be without an error."""
FIRST_ORDINARY = 1000
"""Number of the deep ensemble's first start; trunks have those from 0 on."""


class Split:
    """One split of a config's data, and everything made on it."""

    def __init__(self, config: PipelineConfig, split: int, longer: list[int]) -> None:
        self.config, self.split, self.longer = config, split, longer
        self.data = config.dataset.model_copy(update={"split_seed": split}).load()
        self.seconds: dict[str, float] = {}
        self.losses: dict[str, dict[str, float]] = {}
        module = self._build()
        self.layout = ParameterLayout.of(module)
        self.stack = Stack(module, self.layout, form_for(module, "cpu"))
        with self._timed("population"):
            self._train_population()

    def _build(self) -> nn.Module:
        architecture = self.config.seeds.architecture
        return architecture.build(self.data.input_shape, len(self.data.class_names))

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds[part] = time.process_time() - began

    def _stream(self, *purpose: str | int) -> torch.Generator:
        return generator_for(self.split, *purpose)

    def _starts(self, first: int, count: int) -> Tensor:
        seeds = [seed_for(self.split, "start", first + index) for index in range(count)]
        return torch.stack(
            [initial_parameters(self._build, self.layout.flatten, seed) for seed in seeds]
        )

    def recalibrated(self, theta_EP: Tensor) -> Tensor:
        """Models with BatchNorm's statistics of training images, where they have any."""
        count = self.config.samples.recalibration_images
        if not self.stack.norms or not count:
            return theta_EP
        chosen = torch.randperm(len(self.data.train), generator=self._stream("recalibration"))
        pixels = self.data.train.inputs[chosen[:count]]
        return recalibrate_batchnorm(self.stack, theta_EP, self.data.normalise(pixels))

    def _fit(self, start_KP: Tensor, stretch: Stretch, purpose: str) -> Tensor:
        """Snapshots ``(K, S, P)``."""
        streams = [self._stream(purpose, index) for index in range(len(start_KP))]
        data, recipe = self.data, self.config.seeds.recipe
        snapshots = fit(self.stack, start_KP, data.train, data.normalise, recipe, stretch, streams)
        return snapshots.transpose(0, 1)

    def _train_population(self) -> None:
        section = self.config.seeds
        protocol, recipe, runs = section.protocol, section.recipe, section.protocol.runs()
        start = self._starts(0, protocol.num_trunks if protocol.branches else len(runs))
        if protocol.branches:
            trunks = self._fit(start, protocol.root_stretch(recipe), "root")[:, -1]
            if protocol.align:
                groups = find_symmetries(self._build(), self.data.shown(4), call).groups
                trunks = align(trunks[0], trunks, self.layout, groups, self._stream("align"))
            start = trunks[[run[0].trunk for run in runs]]
        stretch = protocol.run_stretch(recipe)
        snapshots_RSP = self._fit(start, stretch, "run")
        self.early_RP = snapshots_RSP[:, : stretch.early].mean(dim=1)
        self.theta_KP = snapshots_RSP[:, stretch.early :].flatten(0, 1)
        self.trunk_K = torch.tensor([member.trunk for run in runs for member in run])
        held_out = held_out_ids(runs, section.held_out, self._stream("held out"))
        ids = [member.model_id for run in runs for member in run]
        self.train_K = torch.tensor([model not in held_out for model in ids])

    def ordinary(self, count: int) -> Tensor:
        """A deep ensemble."""
        with self._timed("deep ensemble"):
            whole = Stretch(0.0, float(self.config.seeds.recipe.epochs))
            return self._fit(self._starts(FIRST_ORDINARY, count), whole, "ordinary")[:, -1]

    def averages(self) -> Tensor:
        """Each trunk's mean of its training members ``(T, P)``."""
        members, trunks = self.theta_KP[self.train_K], self.trunk_K[self.train_K]
        return torch.stack([members[trunks == t].mean(dim=0) for t in trunks.unique()])

    def finished(
        self, theta_NP: Tensor, trunk_N: Tensor, guidance: float, annealing: float
    ) -> Tensor:
        """Models moved on by so much of their trunks' way, then trained for a share of a recipe."""
        if guidance:
            averages_TP = self.averages()
            way_TP = ways(averages_TP, torch.arange(len(averages_TP)), self.early_RP)
            way_TP[:, self.layout.num_trainable :] = 0.0
            theta_NP = theta_NP + guidance * way_TP[trunk_N]
        if annealing:
            how = self.config.finish.annealing.model_copy(update={"fraction": annealing})
            with self._timed("annealing"):
                theta_NP = self._fit(theta_NP, how.stretch(self.config.seeds.recipe), "annealing")[
                    :, -1
                ]
        return self.recalibrated(theta_NP)

    def drawn(self) -> Tensor:
        """What the generator draws ``(N, P)``, the trunks in turn."""
        config = self.config
        torch.manual_seed(self.split)  # of the weights that autoencoder and denoiser begin with
        with self._timed("autoencoder"):
            sums = gram_sums(self.layout, self.train_K, [self.theta_KP])
            basis, coefficients_KF = PrincipalBasis.fit(
                gram([sums], self.layout, self.train_K), self.train_K
            )
            features_KF = coefficients_KF.float()
            coder = self._coder(features_KF, config.autoencoder.training)
            with torch.no_grad():
                self.latents_KZ = coder.encode(features_KF)
        with self._timed("generator"):
            scale, denoiser = self._generator(config.generator.training)
        with self._timed("samples"), torch.no_grad():
            section, samples = config.generator, config.samples
            latents_NZ = sample_latents(
                denoiser,
                section.process,
                samples.sampler,
                scale,
                torch.arange(samples.count) % config.num_conditions,
                [self._stream("sample", index) for index in range(samples.count)],
                samples.temperature,
            )
            drawn_NP = mix(basis.weights(coder.decode(latents_NZ)), self.theta_KP[self.train_K])
        for steps in self.longer:
            how = Training(steps=steps)
            self._coder(features_KF, how, f", {steps} steps")
            self._generator(how, f", {steps} steps")
        return drawn_NP

    def _coder(self, features_KF: Tensor, how: Training, name: str = "") -> nn.Module:
        model = self.config.autoencoder.model
        objective = Reconstruction(
            model.build(features_KF.shape[1]),
            model.latent_size or features_KF.shape[1],
            model.input_noise,
            model.latent_noise,
        )
        return self._trained(objective, {"features": features_KF}, how, "reconstruction" + name)

    def _generator(self, how: Training, name: str = "") -> tuple[LatentScale, nn.Module]:
        section, trunks = self.config.generator, self.config.num_conditions
        condition_K = self.trunk_K * int(section.conditional)
        learnt, held_out = (
            (self.latents_KZ[keep_K], condition_K[keep_K])
            for keep_K in (self.train_K, ~self.train_K)
        )
        if section.denoiser.starts_gaussian:
            scale = LatentScale.fit(*learnt, trunks, held_out)
        else:
            scale = LatentScale.diagonal(*learnt, trunks)
        unit_KZ = scale.apply(self.latents_KZ, condition_K)
        objective = Denoising(section.denoiser.build(unit_KZ.shape[1], trunks), section.process)
        rows = {"features": unit_KZ, "condition": condition_K}
        return scale, self._trained(objective, rows, how, "denoising" + name)

    def _trained(
        self, objective: nn.Module, rows: dict[str, Tensor], how: Training, name: str
    ) -> nn.Module:
        """As ``runtime.loop`` trains on one worker; the losses go by ``name``."""
        averaged = AveragedSteps(objective, how)
        unseen = {name: column[~self.train_K] for name, column in rows.items()}
        rows = {name: column[self.train_K] for name, column in rows.items()}
        held_out = HeldOut(objective, averaged, unseen, self._stream("looks"))
        for step in range(how.steps):
            if step % how.look_every == 0:
                held_out.look(step)
            if how.patience and held_out.is_over:
                break
            stream = self._stream("training", step)
            chosen = torch.randperm(len(rows["features"]), generator=stream)[: how.batch_size]
            batch = {name: column[chosen] for name, column in rows.items()}
            objective(batch | objective.draw(batch["features"].shape, stream)).backward()
            averaged.step(step)
        held_out.look(how.steps)
        if how.patience:
            held_out.settle()
        averaged.settle()
        self.losses[name] = {
            "start": held_out.curve[0][1],
            "lowest": min(loss for _, loss in held_out.curve),
            "end": held_out.curve[-1][1],
            "looks": len(held_out.curve) - 1.0,
        }
        return objective.kept.eval()

    def told(self, theta_EP: Tensor, trunk_E: Tensor | None = None) -> dict[str, float]:
        """Figures of a population; of one with trunks also how it stands to the members."""
        labels_N = self.data.validation.labels_N
        logits_ENC = self._logits(theta_EP)
        predicted_EN = logits_ENC.argmax(dim=-1)
        probs_NC = logits_ENC.softmax(dim=-1).mean(dim=0)
        whole = score(probs_NC, labels_N)
        told = {
            "accuracy": whole["accuracy"],
            "nll": whole["nll"],
            "scaled_nll": _scaled_nll(probs_NC, labels_N),
            "member_accuracy": (predicted_EN == labels_N).float().mean().item(),
            "error_iou": error_iou(predicted_EN != labels_N),
        }
        if trunk_E is not None:
            members, trunks = self.theta_KP[self.train_K], self.trunk_K[self.train_K]
            places = places_among((members, trunks), (theta_EP, trunk_E))
            usual = places_among((members, trunks))
            new = novelty(
                Models(places, trunk_E, predicted_EN, self.data.task),
                Models(usual, trunks, self._seen, self.data.task),
            )
            told |= {name: new[name] for name in ("spread", "functional_distance", "copies")}
        return told

    @cached_property
    def _seen(self) -> Tensor:
        """What training members predict ``(K, N)``."""
        return self._logits(self.theta_KP[self.train_K]).argmax(dim=-1)

    def _logits(self, theta_EP: Tensor) -> Tensor:
        pixels = self.data.normalise(self.data.validation.inputs)
        return predict_logits(self.stack, theta_EP, pixels)


def _scaled_nll(probs_NC: Tensor, labels_N: Tensor) -> float:
    """At temperatures fitted on the images that are not scored."""
    fold_N = torch.arange(len(labels_N)) % FOLDS
    scaled_NC = torch.zeros_like(probs_NC, dtype=torch.float64)
    for fold in range(FOLDS):
        temperature = fit_temperature(probs_NC[fold_N != fold], labels_N[fold_N != fold])
        scaled_NC[fold_N == fold] = apply_temperature(probs_NC[fold_N == fold], temperature)
    return score(scaled_NC, labels_N)["nll"]


def figures(
    config: PipelineConfig, number: int, finishes: list[tuple[float, float]], longer: list[int]
) -> dict[str, dict[str, float]]:
    """Of one split."""
    split = Split(config, number, longer)
    drawn_NP, averages_TP = split.drawn(), split.averages()
    trunk_N = torch.arange(len(drawn_NP)) % config.num_conditions
    held_out_K = ~split.train_K
    told = {
        "deep ensemble": split.told(split.ordinary(config.samples.count)),
        "originals": split.told(split.theta_KP[split.train_K]),
        "held out": split.told(split.theta_KP[held_out_K], split.trunk_K[held_out_K]),
        "trunk averages": split.told(split.recalibrated(averages_TP)),
    }
    populations = {"generated": drawn_NP}
    if any(any(finish) for finish in finishes):
        populations["averages"] = averages_TP
    for name, theta_NP in populations.items():
        for guidance, annealing in finishes:
            trunks = trunk_N[: len(theta_NP)]
            finished_NP = split.finished(theta_NP, trunks, guidance, annealing)
            guide = f", guided {guidance:g}" if guidance else ""
            anneal = f", annealed {annealing:g}" if annealing else ""
            told[name + guide + anneal] = split.told(finished_NP, trunks)
    return told | split.losses | {"cpu_seconds": split.seconds}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--splits", nargs=2, type=int, default=(100, 6), help="first, how many")
    parser.add_argument("--guidance", nargs="+", type=float, default=[0.0])
    parser.add_argument("--annealing", nargs="+", type=float, default=[0.0])
    parser.add_argument("--longer", nargs="+", type=int, default=[], metavar="STEPS")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.file, arguments.overrides)
    first, count = arguments.splits
    columns: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(first, first + count):
        finishes = list(product(arguments.guidance, arguments.annealing))
        found = figures(config, number, finishes, arguments.longer)
        print(json.dumps({"case": "split", "set": arguments.overrides, "split": number} | found))
        for name, told in found.items():
            for figure, value in told.items():
                columns[name][figure].append(value)
    means = {
        name: {figure: round(statistics.fmean(values), 4) for figure, values in told.items()}
        for name, told in columns.items()
    }
    print(json.dumps({"case": "choices", "set": arguments.overrides, "splits": count} | means))


if __name__ == "__main__":
    main()
