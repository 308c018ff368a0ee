"""Exported bags of random classifiers to serve."""

from __future__ import annotations

from pathlib import Path

from bags import bag_config, store_bag

from bend_ray.export.card import read_card
from bend_ray.export.files import digest
from bend_ray.export.folder import export_bag

ARCHITECTURES = {
    "mlp": "seeds.architecture={kind: mlp, hidden: [12]}",
    "convnet": "seeds.architecture={kind: convnet, channels: [4, 6]}",
}


def export_random(root: Path, kind: str, *overrides: str) -> Path:
    """The folder of an exported bag of nine random classifiers."""
    bag = store_bag(root / "store", bag_config(ARCHITECTURES[kind], *overrides))
    folder = root / bag.graph.evaluation.fingerprint
    export_bag(bag.config, bag.graph, str(folder))
    return folder


def reseal(folder: Path, **changes: object) -> None:
    """Give a bag the digests of what is there now, as whoever means harm would, and a new card."""
    card = read_card(folder)
    files = {name: digest(folder / name) for name in card.files if (folder / name).exists()}
    card.model_copy(update={"files": files, **changes}).write(folder)
