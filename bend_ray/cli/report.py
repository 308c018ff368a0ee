"""The commands that show what was evaluated: ``report`` and ``compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bend_ray.cli.options import Asked, repeats_option, stored_config
from bend_ray.errors import BendError
from bend_ray.process import log

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
    fingerprints = [run.fingerprint for run in runs]
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
