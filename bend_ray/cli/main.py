"""The command ``bend``: results on stdout, progress and logs on stderr.

Exit codes: 0; 2 with one line for what the user can mend; 130 when interrupted; 141 when nobody
reads stdout any more, as of other Unix tools. A traceback is a bug of ours.
"""

from __future__ import annotations

import io
import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from bend_ray.cli.bag import ask, distill, export, predict, serve
from bend_ray.cli.beforehand import check, doctor, plan, tune
from bend_ray.cli.options import (
    Asked,
    Command,
    address_option,
    config_arguments,
    local_option,
    repeats_option,
    stored_config,
    write_file,
)
from bend_ray.cli.store import compare, report, report_if_missing, store_group
from bend_ray.cli.submit import jobs, logs, stop, submit
from bend_ray.errors import BendError
from bend_ray.process import log, streams
from bend_ray.process.environment import forget_empty
from bend_ray.storage.masking import masked, printable
from bend_ray.version import __version__

if TYPE_CHECKING:
    from bend_ray.config.graph import Graph


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


def run_options(command: Command) -> Command:
    """Everything a command that runs stages takes."""
    return stored_config(address_option(local_option(command)))


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
    asked: Asked, address: str | None, local: bool, json_path: str | None, repeats: int
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

    configs = asked.load().repeats(repeats)
    if json_path not in (None, "-"):
        # So that a wrong path is told before the work.
        write_file("--json", Path(str(json_path)), "")
    graphs = []
    for number, config in enumerate(configs, start=1):
        if repeats > 1:
            log.LOGGER.info("repeat       %d of %d, seed %d", number, repeats, config.seed)
        graphs.append(pipeline.run(config, asked.store, address=address, local=local))
    _tell(graphs, json_path)
    page = report_if_missing(asked.store, graphs)
    if page is not None:
        click.echo(f"report: {page}", err=json_path == "-")


def _tell(graphs: list[Graph], json_path: str | None) -> None:
    """Print a run's result, or that of its repeats, and write it where it was asked for."""
    from bend_ray.report.evaluation import Result
    from bend_ray.report.results import table
    from bend_ray.report.statistics import aggregate

    results = [Result.of(graph) for graph in graphs]
    repeats = [result.as_json() for result in results]
    several = len(repeats) > 1
    whole = {"repeats": repeats, "aggregate": aggregate(results)} if several else repeats[0]
    text = json.dumps(whole, indent=2)
    if json_path == "-":
        click.echo(text)
        return
    if json_path:
        write_file("--json", Path(json_path), f"{text}\n")
    click.echo(table(*results))


def _stage_command(stage: str, does: str) -> None:
    @cli.command(name=stage, help=f"Run the pipeline up to {stage}: {does}.", short_help=does)
    @run_options
    def command(asked: Asked, **where: Any) -> None:
        from bend_ray import pipeline

        click.echo(pipeline.run(asked.load(), asked.store, until=stage, **where)[stage].path)


for _stage, _does in {
    "seeds": "train the population",
    "autoencoder": "learn latents of its parameters",
    "latents": "encode it",
    "generator": "learn to draw latents",
    "samples": "draw classifiers",
    "evaluation": "let them vote, and compare",
}.items():
    _stage_command(_stage, _does)


for _command in (
    *(tune, report, compare, export, distill, serve, ask, predict, plan),
    *(submit, jobs, logs, stop, doctor, store_group, check),
):
    cli.add_command(_command)


@cli.command(short_help="what a store holds of a config")
@stored_config
def status(asked: Asked) -> None:
    """Say what a store holds of a config, a line a stage.

    \b
      bend status configs/digits.yaml --store s3://bucket/runs
    """
    from bend_ray import pipeline

    for line in pipeline.status(asked.load(), asked.store):
        fields = f"{line.stage:<12} {line.artifact.fingerprint}  {line.state:<9}  {line.detail}"
        click.echo(fields.rstrip())


@cli.command(short_help="the resolved config, and what every knob means")
@config_arguments
@click.option("--schema", is_flag=True, help="Print a JSON Schema of FILE instead, for editors.")
def config(asked: Asked, schema: bool) -> None:
    """Print the resolved config as JSON on stdout, and what every knob means on stderr.

    \b
      bend config > resolved.json
      bend config --set samples.count=96 2> knobs.txt
      bend config --schema > bend.schema.json
    """
    from bend_ray.config.reading import json_schema, knobs

    if schema:
        if asked.by_name:
            raise click.UsageError("--schema: expected no FILE and no --set beside it")
        click.echo(json.dumps(json_schema(), indent=2))
        return
    # In ASCII, for a terminal of any encoding.
    click.echo(json.dumps(asked.load().model_dump(mode="json"), indent=2))
    for knob in knobs():
        variant = f" [{knob.kind}]" if knob.kind else ""
        default = "" if knob.default is None else f" (default {json.dumps(knob.default)})"
        default = " (required)" if knob.required else default
        click.echo(f"{knob.path}{variant}: {knob.help}{default}", err=True)


def main() -> NoReturn:
    """Run the command line; never returns."""
    forget_empty()
    try:
        streams.prepare()
        with streams.persistent_interrupts():
            cli.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # click takes every one for the user's Ctrl-D
            _tell_bug(error.__cause__)
        streams.drop_unwritten()
        click.echo("bend: interrupted; what was finished is kept: run again to go on", err=True)
        sys.exit(130)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(masked(shown.getvalue()), err=True, nl=False)
        sys.exit(2)
    except BendError as error:
        click.echo(f"bend: {printable(masked(str(error)))}", err=True)
        sys.exit(2)
    except Exception as error:
        _tell_bug(error)
    sys.exit(0)


def _tell_bug(error: BaseException) -> NoReturn:
    # What it quotes, and the command line in it, may hold credentials.
    click.echo(masked("".join(traceback.format_exception(error))), err=True, nl=False)
    sys.exit(1)
