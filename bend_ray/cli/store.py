"""The commands that look after a store: ``bend store verify`` and ``bend store gc``."""

from __future__ import annotations

from datetime import timedelta

import click

from bend_ray.cli.options import store_option
from bend_ray.errors import CorruptArtifact, StoreError
from bend_ray.storage.masking import masked


@click.group(name="store", short_help="verify what a store holds, remove what nothing needs")
def store_group() -> None:
    """Look after a store."""


@store_group.command(short_help="read every committed file against its checksum")
@store_option
def verify(store: str) -> None:
    """Read every committed file of a store against its checksum.

    Prints a line an artifact, and ends with 2 if one is broken. To mend it, delete its folder and
    run again: what is missing is made anew.

    \b
      bend store verify --store s3://bucket/runs
    """
    from bend_ray.artifacts.store import Store
    from bend_ray.artifacts.upkeep import verify as verified
    from bend_ray.config.graph import STORED

    held, broken, count = Store(store), 0, 0
    for (stage, fingerprint), wrong in verified(held, STORED):
        click.echo(f"{stage:<12} {fingerprint}  {'whole' if wrong is None else wrong}")
        broken += wrong is not None
        count += 1
    if count == 0:
        raise StoreError(f"expected artifacts in {masked(held.uri)}, got none; name it by --store")
    if broken:
        raise CorruptArtifact(f"{broken} of {count} artifacts of {masked(held.uri)} are broken")
    click.echo(f"{count} artifacts, all whole", err=True)


@store_group.command(short_help="remove what no kept evaluation needs")
@store_option
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    metavar="N",
    help="Keep the latest N evaluations, and what they were made from.  [default: all]",
)
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="Leave alone what was written to more recently.",
)
@click.option("--delete", is_flag=True, help="Remove it; without, only say what would go.")
def gc(store: str, keep: int | None, older_than: float, delete: bool) -> None:
    """Remove artifacts that no kept evaluation needs, and what was never finished.

    Only says what would go, until --delete is given. Never removes what a kept evaluation was
    made from, nor anything while a run works in the store. Reports and exports stay.

    \b
      bend store gc
      bend store gc --keep 3 --delete
    """
    from bend_ray.artifacts.store import Store
    from bend_ray.artifacts.upkeep import remove, unneeded
    from bend_ray.config.graph import STORED

    held = Store(store)
    found = unneeded(held, STORED, keep=keep, older_than=timedelta(hours=older_than))
    for each in found:
        click.echo(f"{masked(each.where.uri)}  {each.num_bytes / 2**20:.1f} MiB  {each.why}")
        if delete:
            remove(held, each)
    total = sum(each.num_bytes for each in found) / 2**20
    done = "removed" if delete else "would go, with --delete"
    click.echo(f"{len(found)} artifacts, {total:.1f} MiB: {done}", err=True)
