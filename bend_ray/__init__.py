"""bend_ray: train a population of networks, learn to draw more of them, and bag what is drawn.

``fit`` does all of it with a network and data of your own, ``run`` with a config, ``find`` opens
what a store holds, ``load_bag`` what was exported. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bend_ray.version import __version__

_HOMES = {
    "api": ("Run", "find", "fit", "load_bag", "run"),
    "config.schema": ("EvaluationSection", "Finish", "SamplesSection", "SeedsSection"),
    "data.datasets": ("Digits", "ImageFolder", "ImageParquet", "Torchvision"),
    "data.given": ("arrays_of",),
    "ensemble.bagging": ("GreedyForward", "TopK"),
    "ensemble.votes": ("MajorityVote", "SoftVote", "WeightedVote"),
    "errors": ("BendError",),
    "generation.rivals": ("DeepEnsemble", "MultiSwag"),
    "networks.architectures": ("ConvNet", "Mlp", "TorchvisionModel"),
    "networks.protocols": ("Checkpoints", "Forks", "Independent", "Tails", "Trajectory"),
    "networks.recipe": ("Recipe",),
    "optim": ("AdamW", "Sgd"),
    "serve.bag": ("Bag",),
}
_RENAMED = {
    "Arrays": ("data.datasets", "ArrayFiles"),
    "Config": ("config.schema", "PipelineConfig"),
    "Imported": ("networks.architectures", "ImportedArchitecture"),
}
_NAMES = {name: (home, name) for home, names in _HOMES.items() for name in names} | _RENAMED

if TYPE_CHECKING:
    from bend_ray.api import Run, find, fit, load_bag, run
    from bend_ray.config.schema import EvaluationSection, Finish, SamplesSection, SeedsSection
    from bend_ray.config.schema import PipelineConfig as Config
    from bend_ray.data.datasets import ArrayFiles as Arrays
    from bend_ray.data.datasets import Digits, ImageFolder, ImageParquet, Torchvision
    from bend_ray.data.given import arrays_of
    from bend_ray.ensemble.bagging import GreedyForward, TopK
    from bend_ray.ensemble.votes import MajorityVote, SoftVote, WeightedVote
    from bend_ray.errors import BendError
    from bend_ray.generation.rivals import DeepEnsemble, MultiSwag
    from bend_ray.networks.architectures import ConvNet, Mlp, TorchvisionModel
    from bend_ray.networks.architectures import ImportedArchitecture as Imported
    from bend_ray.networks.protocols import Checkpoints, Forks, Independent, Tails, Trajectory
    from bend_ray.networks.recipe import Recipe
    from bend_ray.optim import AdamW, Sgd
    from bend_ray.serve.bag import Bag

__all__ = [
    "AdamW",
    "Arrays",
    "Bag",
    "BendError",
    "Checkpoints",
    "Config",
    "ConvNet",
    "DeepEnsemble",
    "Digits",
    "EvaluationSection",
    "Finish",
    "Forks",
    "GreedyForward",
    "ImageFolder",
    "ImageParquet",
    "Imported",
    "Independent",
    "MajorityVote",
    "Mlp",
    "MultiSwag",
    "Recipe",
    "Run",
    "SamplesSection",
    "SeedsSection",
    "Sgd",
    "SoftVote",
    "Tails",
    "TopK",
    "Torchvision",
    "TorchvisionModel",
    "Trajectory",
    "WeightedVote",
    "__version__",
    "arrays_of",
    "find",
    "fit",
    "load_bag",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, own = _NAMES[name]
    value = getattr(importlib.import_module(f"{__name__}.{home}"), own)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
