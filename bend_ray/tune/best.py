"""best.yaml: a bag's config as a file that ``bend run`` takes."""

from __future__ import annotations

from typing import Any

from bend_ray.config.schema import PipelineConfig
from bend_ray.config.yaml_text import block
from bend_ray.report.command import settings
from bend_ray.storage.masking import masked_json

BEST = "best.yaml"


def best_yaml(config: PipelineConfig, about: str, *, mask: bool = False) -> str:
    """What of a config differs from the default, sparse as one writes it by hand.

    Args:
        config: of the bag.
        about: what is known of it, a line a sentence, for the head of the file.
        mask: replace credentials in URIs, for a file others will read.
    """
    values: dict[str, Any] = {}
    whole = config.model_dump(mode="json")
    # It is to be run on what the data set is by then.
    whole["dataset"].pop("content", None)
    for path, value in settings(whole).items():
        *parents, name = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    head = "".join(f"# {line}\n" for line in about.splitlines())
    return head + block(masked_json(values) if mask else values)
