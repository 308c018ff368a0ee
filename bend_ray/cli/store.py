"""Commands on what a store holds: ``report``, ``compare``, ``store verify`` and ``store gc``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from bend_ray.cli.options import Asked, repeats_option, store_option, stored_config
from bend_ray.errors import BendError, CorruptArtifact, StoreError
from bend_ray.process import log
from bend_ray.storage.masking import masked

if TYPE_CHECKING:
    from bend_ray.config.graph import Graph


@click.command(short_help="pictures and an honest table, in one HTML file")
@stored_config
@repeats_option
@click.option(
    "--output",
    metavar="DIR",
    help="Folder or URI to write to; default: report/ in the store, a folder a run.",
)
def report(asked: Asked, repeats: int, output: str | None) -> None:
    """Write report.html, a PNG of each figure and report.json, from a committed evaluation alone.

    Without FILE, --set and --repeats it is of the newest run in the store, with all repeats of it
    that are there. Needs no Ray and no GPU. Prints where the page is.

    \b
      bend report
      bend report --store s3://bucket/runs --output ./for-a-colleague
      bend report configs/digits.yaml --repeats 5
    """
    from bend_ray.artifacts.store import Store
    from bend_ray.config.graph import graph_of, identified
    from bend_ray.report import runs as stored
    from bend_ray.report.page import write_report

    held = Store(asked.store)
    if not asked.by_name and repeats == 1:
        runs = stored.newest(stored.grouped(stored.stored_runs(held)))
    else:
        config = identified(asked.load())
        graphs = [graph_of(each, held) for each in config.repeats(repeats)]
        wanted = [graph.evaluation for graph in graphs]
        runs = [stored.read_run(held, each.fingerprint, each.given) for each in wanted]
    fingerprints = [run.result.fingerprints["evaluation"] for run in runs]
    where = stored.output_directory(output) if output else stored.default_output(held, fingerprints)
    click.echo(write_report(runs, where))


@click.command(short_help="several runs side by side: one table, one figure")
@click.argument("sources", nargs=-1, required=True, metavar="STORE_OR_REPORT...")
@click.option(
    "--output",
    default="./bend-compare",
    show_default=True,
    metavar="DIR",
    help="Folder or URI to write compare.html, compare.png and compare.json to.",
)
def compare(sources: tuple[str, ...], output: str) -> None:
    """Put several runs side by side: configs, data sets, repeats.

    Of a store it takes every run, runs that differ by their seeds alone as repeats of one; of a
    report (its folder or file) or a result of `bend run --json` that one.

    \b
      bend compare ./bend-store
      bend compare s3://bucket/mnist s3://bucket/cifar ./for-a-colleague result.json
    """
    from bend_ray.report import side_by_side
    from bend_ray.report.runs import output_directory

    entries = side_by_side.read_entries(sources)
    page = side_by_side.compared(entries)
    click.echo(side_by_side.text(page))
    click.echo(f"\n{side_by_side.write_comparison(entries, page, output_directory(output))}")


def report_if_missing(store_uri: str, graphs: list[Graph]) -> str | None:
    """Where the report of a run is; the run's figures stand whether it can be written or not."""
    from bend_ray.artifacts.store import Store
    from bend_ray.report.runs import default_output, read_run, written

    store = Store(store_uri)
    fingerprints = [graph.evaluation.fingerprint for graph in graphs]
    output = default_output(store, fingerprints)
    try:
        if (page := written(output)) is not None:
            return page
        from bend_ray.report.page import write_report

        return write_report([read_run(store, each) for each in fingerprints], output)
    except BendError as error:
        log.LOGGER.warning("report       not written: %s", error)
        return None


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
