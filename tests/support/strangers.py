"""Bags of networks that nobody here has written, of any inputs: quick to make, and untrained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bend_ray.export.card import Card, Input
from bend_ray.export.folder import publish_bag
from bend_ray.networks.architectures import ImportedArchitecture
from bend_ray.parameters.layout import ParameterLayout

CLASSES = ("cat", "dog", "fox")
TOKENS = Input(shape=(6,), dtype="int64", low=0, high=19)
TABLE = {
    "inputs": Input(shape=(4,), dtype="float32", mean=(1.0,) * 4, std=(2.0,) * 4, low=-3, high=5)
}


class Mean(nn.Module):
    """Of the embeddings of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(inputs).mean(dim=1))


class Two(nn.Module):
    """Takes a table and tokens, and answers with more than logits."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(12, 3)

    def forward(self, tokens: torch.Tensor, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.cat([self.table(tokens).mean(dim=1), numbers], dim=1)
        return {"logits": self.head(hidden), "hidden": hidden}


class Stubborn(nn.Module):
    """Which no exporter can follow: what it does depends on what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = [self.head(row) if row.sum().item() > 0 else -self.head(row) for row in inputs]
        return torch.stack(rows) if rows else self.head(inputs)


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


BOTH = {"tokens": TOKENS, "numbers": Input(shape=(4,), dtype="float32", low=-1, high=1)}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Input]]] = {
    "table": (dense, TABLE),
    "tokens": (Mean, {"inputs": TOKENS}),
    "two": (Two, BOTH),
    "stubborn": (Stubborn, TABLE),
}


def write_strangers(folder: Path, name: str, members: int = 5, **options: Any) -> Card:
    """An exported bag of random members of such a network."""
    build, inputs = NETWORKS[name]
    return write_random(folder, build, inputs, members, **options)


def write_random(
    folder: Path,
    build: Callable[[], nn.Module],
    inputs: dict[str, Input],
    members: int = 5,
    **options: Any,
) -> Card:
    torch.manual_seed(0)
    states = [build().eval().state_dict() for _ in range(members)]
    names = [entry.name for entry in ParameterLayout.of(build()).entries]
    card = Card(
        model_version="strange",
        created="now",
        bend_ray="test",
        architecture=ImportedArchitecture.of(build).identified(),
        inputs=inputs,
        class_names=CLASSES,
        vote={"kind": "soft"},
        members=tuple(range(members)),
        weights=(1 / members,) * members,
    )
    folder.mkdir(parents=True, exist_ok=True)
    stacked = {name: torch.stack([state[name] for state in states]) for name in names}
    return publish_bag(folder, card, stacked, **options)
