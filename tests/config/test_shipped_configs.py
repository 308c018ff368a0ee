"""Every file in configs/ means what it says."""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import pytest
import torch

from bend_ray.config.reading import load_config
from bend_ray.data.datasets import Torchvision
from bend_ray.networks.architectures import TorchvisionModel
from bend_ray.networks.torchvision_models import build
from bend_ray.parameters.layout import ParameterLayout

CONFIGS = Path(__file__).parents[2] / "configs"

BUDGET = Path(__file__).parents[1] / "benchmarks" / "budget"
OWN_PARAMETERS = {
    "resnet18": 2048,
    "resnet50": 5120,
    "regnet_y_400mf": 1760,
    "vit_b_16": 3072,
    "convnext_tiny": 3072,
    "convnext_base": 4096,
}
"""Of the last two norms; those of p-diff's table that torchvision has are the numbers there."""


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_is_read(path: Path) -> None:
    assert path.read_text().startswith("# "), "a config says what it is for"
    load_config(path)


@pytest.mark.parametrize("path", sorted(BUDGET.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_budget_bench_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BUDGET))
    methods = import_module("specs").read_bench(path).methods
    assert any(method.ours for method in methods.values())
    assert "deep_ensemble" in methods


@pytest.mark.parametrize(("name", "size"), OWN_PARAMETERS.items())
def test_a_subset_is_the_last_two_norms(name: str, size: int) -> None:
    config = load_config(CONFIGS / f"cifar10_{name}_subset.yaml")
    architecture, dataset = config.seeds.architecture, config.dataset
    assert isinstance(architecture, TorchvisionModel)
    assert isinstance(dataset, Torchvision)
    pixels = dataset.image_size or 32
    # RegNet computes its widths with tensors, which must hold something.
    with nullcontext() if name.startswith("regnet") else torch.device("meta"):
        module = build(name, (3, pixels, pixels), 10, small_images=architecture.small_images)
    assert ParameterLayout.of(module, config.parameters.include).size == size
