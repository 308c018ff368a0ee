"""The commands that hand a finished bag on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bend_ray.cli_options import config_arguments, store_option

if TYPE_CHECKING:
    from bend_ray.config import PipelineConfig
    from bend_ray.plan import Plan

EXPORTS = "./bend-export"


@click.command(short_help="the bag as files that other tools load")
@config_arguments
@store_option
@click.option(
    "--output",
    metavar="URI",
    help=f"Folder to write, on a disk or in an object store; default {EXPORTS}/VERSION.",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("onnx",),
    show_default=True,
    type=click.Choice(["safetensors", "onnx", "torch-export"]),
    help="Program beside the members' safetensors, which are always there; may be given again.",
)
@click.option("--members", type=int, metavar="N", help="Only the first N members of the bag.")
def export(
    file: Path | None,
    overrides: tuple[str, ...],
    store: str,
    output: str | None,
    formats: tuple[str, ...],
    members: int | None,
) -> None:
    """Write the bag that an evaluation chose as a folder, and print where.

    Without FILE and --set it is the newest evaluation's of the store. The folder holds config.json,
    members.safetensors, one program a format (uint8 images in, probabilities out) and a README that
    shows how to load them without bend_ray.

    \b
      bend export
      bend export --format onnx --format torch-export --output s3://bucket/bags/digits
    """
    from bend_ray.export.folder import export_bag

    config, plan = _chosen(file, overrides, store)
    where = output or _default_output(plan, members)
    export_bag(config, plan, where, formats=formats, members=members)  # type: ignore[arg-type]
    click.echo(where)


def _chosen(
    file: Path | None, overrides: tuple[str, ...], store_uri: str
) -> tuple[PipelineConfig, Plan]:
    """The config that was named, or that of the store's newest evaluation."""
    from bend_ray.artifacts.store import Store
    from bend_ray.config_file import load_config
    from bend_ray.export.newest import newest_config
    from bend_ray.plan import plan

    store = Store(store_uri)
    named = file is not None or bool(overrides)
    config = load_config(file, overrides) if named else newest_config(store)
    return config, plan(config, store)


def _default_output(plan: Plan, members: int | None) -> str:
    from bend_ray.export.folder import version_of

    return f"{EXPORTS}/{version_of(plan, members)}"
