"""The command ``bend``: results on stdout, progress and logs on stderr.

Exit codes: 0; 2 with one line for what the user can mend; 130 when interrupted. A traceback is
a bug of ours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from bend_ray import __version__, log
from bend_ray.errors import BendError
from bend_ray.interrupts import persistent_interrupts

if TYPE_CHECKING:
    from bend_ray.plan import Plan

DEFAULT_STORE = "./bend-store"

Command = TypeVar("Command", bound=Callable[..., Any])


class PipelineGroup(click.Group):
    """Lists commands in the order of the pipeline, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Command names as they were defined."""
        return list(self.commands)


@click.group(
    cls=PipelineGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `bend run`: it needs no file. `bend config` shows every knob, "
    "`bend COMMAND --help` an example.",
)
@click.version_option(__version__, prog_name="bend")
@click.option("-v", "--verbose", is_flag=True, help="Log more, with the workers' own lines.")
def cli(verbose: bool) -> None:
    """Train many networks, draw more from noise, let them vote: BEND on Ray.

    A diffusion model learns the parameters of a trained population and draws new classifiers,
    which answer as one bag (arXiv 2403.15766).

    \b
    seeds > autoencoder > latents > generator > samples > evaluation

    Each stage leaves an artifact in the store, named by what it was made from. A run makes
    what is missing: it can be killed and run again, and a second run is instant.
    """
    log.configure(verbose)


def config_arguments(command: Command) -> Command:
    """FILE and --set: which config."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set one knob, as in --set samples.count=96; may be given again.",
    )(command)
    return click.argument("file", required=False, type=click.Path(path_type=Path))(command)


def store_option(command: Command) -> Command:
    """--store: where artifacts live."""
    return click.option(
        "--store",
        default=DEFAULT_STORE,
        show_default=True,
        metavar="URI",
        help="Where artifacts live: a folder, s3://, gs:// or abfs://.",
    )(command)


def repeats_option(command: Command) -> Command:
    """--repeats: how many seeds."""
    return click.option(
        "--repeats",
        type=click.IntRange(min=1),
        default=1,
        metavar="R",
        help="R runs, each under its own seed and split, and what they have in common.",
    )(command)


def run_options(command: Command) -> Command:
    """Everything a command that runs stages takes."""
    command = click.option(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster to join (HOST:PORT or auto); default RAY_ADDRESS, else our own.",
    )(command)
    return config_arguments(store_option(command))


@cli.command(short_help="the whole pipeline; prints how the bag does against its rivals")
@run_options
@click.option(
    "--json",
    "json_path",
    metavar="PATH|-",
    help="Write the result as JSON to a file, or to stdout instead of the table.",
)
@repeats_option
def run(
    file: Path | None,
    overrides: tuple[str, ...],
    store: str,
    address: str | None,
    json_path: str | None,
    repeats: int,
) -> None:
    """Run the whole pipeline and print how the bag does against its rivals.

    Without FILE it runs on scikit-learn's digits, about a minute on two cores. Ends by writing
    a report, report.html and its figures, into the store, and printing where.

    \b
      bend run
      bend run configs/digits.yaml --set samples.count=96 --store s3://bucket/runs
      bend run --repeats 5 --json result.json
    """
    from bend_ray import pipeline
    from bend_ray.config_file import load_config
    from bend_ray.repeats import repeats_of

    configs = repeats_of(load_config(file, overrides), repeats)
    if json_path not in (None, "-"):
        _write_file(Path(str(json_path)), "")  # so that a wrong path is told before the work
    plans = []
    for number, config in enumerate(configs, start=1):
        if repeats > 1:
            log.LOGGER.info("repeat       %d of %d, seed %d", number, repeats, config.seed)
        plans.append(pipeline.run(config, store, address=address))
    _tell(plans, json_path)
    page = _report_if_missing(store, plans)
    if page is not None:
        click.echo(f"report: {page}", err=json_path == "-")


def _tell(plans: list[Plan], json_path: str | None) -> None:
    """Print a run's result, or that of its repeats, and write it where it was asked for."""
    from bend_ray import results
    from bend_ray.repeats import aggregate

    told = [results.result(plan) for plan in plans]
    together = aggregate(told) if len(told) > 1 else None
    value = told[0] if together is None else {"repeats": told, "aggregate": together}
    text = json.dumps(value, indent=2)
    if json_path == "-":
        click.echo(text)
        return
    if json_path:
        _write_file(Path(json_path), text)
    table = results.table(told[0]) if together is None else results.repeats_table(together)
    click.echo(table)


def _report_if_missing(store_uri: str, plans: list[Plan]) -> str | None:
    """Where the report of a run is; the run's figures stand whether it can be written or not."""
    from bend_ray.artifacts.store import Store
    from bend_ray.report.location import default_output, written

    store = Store(store_uri)
    fingerprints = [plan.evaluation.fingerprint for plan in plans]
    output = default_output(store, fingerprints)
    try:
        if (page := written(output)) is not None:
            return page
        from bend_ray.report.page import write_report
        from bend_ray.report.runs import read_run

        return write_report([read_run(store, each) for each in fingerprints], output)
    except BendError as error:
        log.LOGGER.warning("report       not written: %s", error)
        return None


def _stage_command(stage: str, does: str) -> None:
    @cli.command(name=stage, help=f"Run the pipeline up to {stage}: {does}.", short_help=does)
    @run_options
    def command(
        file: Path | None, overrides: tuple[str, ...], store: str, address: str | None
    ) -> None:
        from bend_ray import pipeline
        from bend_ray.config_file import load_config

        plan = pipeline.run(load_config(file, overrides), store, until=stage, address=address)
        click.echo(plan[stage].path)


for _stage, _does in {
    "seeds": "train the population",
    "autoencoder": "learn latents of its parameters",
    "latents": "encode it",
    "generator": "learn to draw latents",
    "samples": "draw classifiers",
    "evaluation": "let them vote, and compare",
}.items():
    _stage_command(_stage, _does)


@cli.command(name="report", short_help="pictures and an honest table, in one HTML file")
@config_arguments
@store_option
@repeats_option
@click.option(
    "--output",
    metavar="DIR",
    help="Folder or URI to write to; default: report/ in the store, a folder a run.",
)
def report_command(
    file: Path | None, overrides: tuple[str, ...], store: str, repeats: int, output: str | None
) -> None:
    """Write report.html, a PNG of each figure and report.json, from a committed evaluation alone.

    Without FILE, --set and --repeats it is of the newest run in the store, with all repeats of it
    that are there. Needs no Ray and no GPU. Prints where the page is.

    \b
      bend report
      bend report --store s3://bucket/runs --output ./for-a-colleague
      bend report configs/digits.yaml --repeats 5
    """
    from bend_ray.artifacts.store import Store
    from bend_ray.config_file import load_config
    from bend_ray.plan import plan
    from bend_ray.repeats import repeats_of
    from bend_ray.report import runs as stored
    from bend_ray.report.location import default_output, output_directory
    from bend_ray.report.page import write_report

    held = Store(store)
    if file is None and not overrides and repeats == 1:
        runs = stored.newest(stored.grouped(stored.stored_runs(held)))
    else:
        plans = [plan(each, held) for each in repeats_of(load_config(file, overrides), repeats)]
        runs = [stored.read_run(held, each.evaluation.fingerprint) for each in plans]
    fingerprints = [run.fingerprint for run in runs]
    where = output_directory(output) if output else default_output(held, fingerprints)
    click.echo(write_report(runs, where))


@cli.command(short_help="several runs side by side: one table, one figure")
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
    from bend_ray import results
    from bend_ray.report import side_by_side
    from bend_ray.report.location import output_directory

    entries = side_by_side.read_entries(sources)
    page = side_by_side.compared(entries)
    click.echo("\n".join(results.aligned(side_by_side.text(page))))
    click.echo(f"\n{side_by_side.write_comparison(entries, page, output_directory(output))}")


@cli.command(short_help="what a store holds of a config")
@config_arguments
@store_option
def status(file: Path | None, overrides: tuple[str, ...], store: str) -> None:
    """Say what a store holds of a config, a line a stage.

    \b
      bend status configs/digits.yaml --store s3://bucket/runs
    """
    from bend_ray import pipeline
    from bend_ray.config_file import load_config

    for line in pipeline.status(load_config(file, overrides), store):
        fields = f"{line.stage:<12} {line.artifact.fingerprint}  {line.state:<9}  {line.detail}"
        click.echo(fields.rstrip())


@cli.command(short_help="the resolved config, and what every knob means")
@config_arguments
def config(file: Path | None, overrides: tuple[str, ...]) -> None:
    """Print the resolved config as JSON on stdout, and what every knob means on stderr.

    \b
      bend config > resolved.json
      bend config --set samples.count=96 2> knobs.txt
    """
    from bend_ray.config_file import load_config
    from bend_ray.knobs import knobs

    click.echo(load_config(file, overrides).model_dump_json(indent=2))
    for knob in knobs():
        variant = f" [{knob.kind}]" if knob.kind else ""
        default = "" if knob.default is None else f" (default {json.dumps(knob.default)})"
        default = " (required)" if knob.required else default
        click.echo(f"{knob.path}{variant}: {knob.help}{default}", err=True)


def _write_file(path: Path, text: str) -> None:
    try:
        path.write_text(text and text + "\n", encoding="utf-8")
    except OSError as error:
        raise BendError(
            f"--json {path}: expected a file that can be written, got: {error.strerror}"
        ) from error


def main() -> NoReturn:
    """Run the command line; never returns."""
    try:
        with persistent_interrupts():
            cli.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("bend: interrupted; what was finished is kept: run again to go on", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except BendError as error:
        click.echo(f"bend: {error}", err=True)
        sys.exit(2)
    sys.exit(0)
