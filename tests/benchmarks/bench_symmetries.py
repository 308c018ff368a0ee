"""How much of a network its permutation symmetries reach, and what alignment by them is worth.

    uv run --group bench python tests/benchmarks/bench_symmetries.py families [NAME ...]
    BEND_DATASETS=... uv run python tests/benchmarks/bench_symmetries.py barriers [--pairs 2]

``families``: of one network of each of torchvision's families of classifiers and four of timm's
(random weights, small images where the network takes them, ten classes): the groups that are
proven, the share of its parameters that one of them moves, what is left alone and why, and the
CPU seconds of tracing and proving.

``barriers``: two seeds of a network are trained apart. The barrier is the validation loss in the
middle between them less the mean of theirs, with their units as they are and with those of the
second in the order of the first; the middle has BatchNorm's statistics of training images of its
own. MLP and ConvNet on MNIST (Parquet files in the folder BEND_DATASETS), ResNet-18 on digits.

A line of a table in Markdown each, as it comes.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from bend_ray.config.reading import load_config
from bend_ray.networks.fitting import initial_parameters
from bend_ray.networks.recipe import Stretch
from bend_ray.networks.stacking import call
from bend_ray.parameters.proof import find_symmetries
from bend_ray.parameters.symmetry import Groups, align
from bend_ray.populations.networks import Classifiers
from bend_ray.randomness import generator_for, seed_for

CLASSES = 10
FAMILIES = {
    name: pixels
    for pixels, names in {
        64: "resnet18 mnasnet0_5 mobilenet_v3_small squeezenet1_1 shufflenet_v2_x0_5 alexnet "
        "regnet_x_400mf regnet_y_400mf mobilenet_v2 googlenet efficientnet_b0 vit_b_16 swin_t "
        "convnext_tiny resnet50 resnext50_32x4d wide_resnet50_2 densenet121 efficientnet_v2_s "
        "swin_v2_t timm:poolformer_s12",
        96: "inception_v3",
        128: "timm:mobilevit_xxs",
        224: "timm:mixer_s32_224 timm:deit_tiny_patch16_224 maxvit_t",
        32: "vgg11_bn",
    }.items()
    for name in names.split()
}
"""Pixels of a side of the images that each is shown."""

FOLDER = os.environ.get("BEND_DATASETS", ".")
MNIST = (
    f"dataset={{kind: image_parquet, train: {FOLDER}/mnist/train.parquet, "
    f"test: {FOLDER}/mnist/test.parquet}}"
)
NETWORKS = {
    "MLP 784-512-512-10": ("mnist.yaml", MNIST, "{kind: mlp, hidden: [512, 512]}", 2, 0.002),
    "ConvNet 16-32-64": ("mnist.yaml", MNIST, "{kind: convnet, channels: [16, 32, 64]}", 2, 0.005),
    "ResNet-18 small": (
        *("digits.yaml", "seed=0"),
        *("{kind: torchvision, name: resnet18, small_images: true}", 4, 0.002),
    ),
}
"""Config, data, architecture, epochs and the highest learning rate."""


def network(name: str, pixels: int) -> nn.Module:
    """One with random weights, without auxiliary heads."""
    if name.startswith("timm:"):
        import timm

        return timm.create_model(name.removeprefix("timm:"), num_classes=CLASSES)
    from torchvision import models

    options: dict[str, object] = {"num_classes": CLASSES}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    if name.startswith("vit"):
        options["image_size"] = pixels
    return models.get_model(name, **options)


def moved(module: nn.Module, groups: Groups) -> float:
    """The share of parameters that a permutation of some group moves."""
    own = dict(module.named_parameters())
    marks = {name: torch.zeros(tensor.shape) for name, tensor in own.items()}
    for group in groups:
        for move in group.moves:
            if move.name in own:
                # Every unit becomes a number of its own, so that what moves changes.
                before = 1 + torch.arange(own[move.name].numel()).view(own[move.name].shape)
                order = torch.arange(group.num_units).roll(1).expand(group.num_copies, -1)
                marks[move.name] += move.apply(before, order) != before
    return sum(int((mark > 0).sum()) for mark in marks.values()) / sum(
        p.numel() for p in own.values()
    )


def families(names: list[str]) -> None:
    print("| network | parameters | groups | share of parameters | left alone | CPU s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names or FAMILIES:
        torch.manual_seed(0)
        module = network(name, FAMILIES[name]).eval()
        images = torch.randn(2, 3, FAMILIES[name], FAMILIES[name])
        began = time.process_time()
        found = find_symmetries(module, images, call)
        seconds = time.process_time() - began
        alone = str(found).partition("left alone: ")[2]
        size, share = sum(p.numel() for p in module.parameters()), moved(module, found.groups)
        print(
            f"| {name} | {size / 1e6:.1f} M | {len(found.groups)} | {share:.2%} | {alone} "
            f"| {seconds:.0f} |",
            flush=True,
        )


class Pair:
    """Two seeds of a network, trained apart."""

    def __init__(self, classifiers: Classifiers, pair: int) -> None:
        self.classifiers, self.seed = classifiers, pair
        starts = [
            initial_parameters(
                classifiers.build, classifiers.whole.flatten, seed_for(pair, "start", i)
            )
            for i in range(2)
        ]
        whole = Stretch(0.0, float(classifiers.config.seeds.recipe.epochs))
        orders = [generator_for(pair, "order", index) for index in range(2)]
        ((_, theta_SKP),) = classifiers.fitted(torch.stack(starts), None, whole, orders)
        self.theta_KP = theta_SKP[-1]

    def loss(self, theta_KP: Tensor) -> float:
        return float(self.classifiers.validate(theta_KP)[1].mean())

    def barrier(self, theta_KP: Tensor) -> float:
        middle = self.classifiers.recalibrate(theta_KP.mean(0, keepdim=True))
        return self.loss(middle) - self.loss(theta_KP)

    def aligned(self) -> Tensor:
        groups, layout = self.classifiers.symmetries.groups, self.classifiers.whole
        order = generator_for(self.seed, "align")
        return align(self.theta_KP[0], self.theta_KP, layout, groups, order)


def barriers(pairs: int, names: list[str]) -> None:
    print(
        "| network | pair | loss of the ends | accuracy | barrier before | barrier after | CPU s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    configs = Path(__file__).resolve().parents[2] / "configs"
    for name in names or NETWORKS:
        file, data, architecture, epochs, rate = NETWORKS[name]
        recipe = {"epochs": epochs, "batch_size": 100, "optimizer.learning_rate": rate}
        knobs = [f"seeds.recipe.{knob}={value}" for knob, value in recipe.items()]
        config = load_config(
            configs / file,
            [data, f"seeds.architecture={architecture}", "seeds.recipe.label_smoothing=0", *knobs],
        )
        classifiers = Classifiers(config, config.dataset.load(), "cpu")
        for number in range(pairs):
            began = time.process_time()
            pair = Pair(classifiers, number)
            accuracy = float(classifiers.validate(pair.theta_KP)[0].mean())
            before, after = pair.barrier(pair.theta_KP), pair.barrier(pair.aligned())
            print(
                f"| {name} | {number} | {pair.loss(pair.theta_KP):.4f} | {accuracy:.2%} "
                f"| {before:.4f} | {after:.4f} | {time.process_time() - began:.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("families").add_argument("names", nargs="*", choices=[*FAMILIES, []])
    barrier = commands.add_parser("barriers")
    barrier.add_argument("names", nargs="*", choices=[*NETWORKS, []])
    barrier.add_argument("--pairs", type=int, default=2)
    asked = parser.parse_args()
    if asked.command == "families":
        families(asked.names)
    else:
        barriers(asked.pairs, asked.names)


if __name__ == "__main__":
    main()
