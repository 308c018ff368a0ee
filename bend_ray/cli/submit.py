"""Commands that hand another to a cluster, and look after it: ``bend submit``, ``jobs``, ...

Ray's token is found where it is, as all of ``bend`` does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bend_ray.errors import ConfigError
from bend_ray.process.streams import drop_unwritten
from bend_ray.storage.masking import masked
from bend_ray.storage.uris import is_local_path

if TYPE_CHECKING:
    from bend_ray.runtime.jobs import Jobs


dashboard_option = click.option(
    "--address",
    required=True,
    metavar="URL",
    help="The cluster's dashboard, as in http://127.0.0.1:8265.",
)


@click.command(
    short_help="run a command on a cluster, as a job",
    # What comes after the command's name is the command's.
    context_settings={"allow_interspersed_args": False},
)
@dashboard_option
@click.option("--follow", is_flag=True, help="Show what the job prints; exit as it does.")
@click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="A variable of the job's environment, by default with its value here. Whoever may see the "
    "dashboard sees it: give secrets to the cluster's machines instead.",
)
@click.option(
    "--send-package",
    is_flag=True,
    help="Send this bend_ray too, for a cluster whose image has what it needs but not itself.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def submit(
    context: click.Context,
    address: str,
    follow: bool,
    variables: tuple[str, ...],
    send_package: bool,
    command: tuple[str, ...],
) -> None:
    """Run a bend command on a Ray cluster, as a job that goes on without this machine.

    What would be refused here is refused before anything is sent. The job is sent the config file
    that the command names, and the code of yours that it names; stores and data stay where they
    are. Prints the job's id, or with --follow what the job prints, and exits as the job does.
    Ctrl-C stops following, not the job.

    \b
      bend submit --address http://127.0.0.1:8265 -- run --store s3://bucket/runs
      bend submit --address http://127.0.0.1:8265 --follow -- \\
          run configs/cifar10.yaml --store s3://bucket/runs --set seeds.resources.gpus=0.25
    """
    files = _checked(context, command)
    environment = dict(map(_variable, variables))
    cluster = _jobs(address)
    job = cluster.submit(command, files, environment, send_package)
    if not follow:
        click.echo(job)
        click.echo(_what_next(address, job), err=True)
        return
    click.echo(f"job {job}", err=True)
    sys.exit(_followed(cluster, job))


@click.command(short_help="jobs of a cluster")
@dashboard_option
def jobs(address: str) -> None:
    """List a cluster's jobs, the latest first: id, state, start in UTC, command."""
    for line in _jobs(address).listed():
        click.echo("  ".join(line))


@click.command(short_help="what a job prints")
@dashboard_option
@click.argument("job")
def logs(address: str, job: str) -> None:
    """Show all that a job has printed, and go on until it ends; exit as it does.

    Ctrl-C stops following, not the job.
    """
    sys.exit(_followed(_jobs(address), job))


@click.command(short_help="end a job")
@dashboard_option
@click.argument("job")
def stop(address: str, job: str) -> None:
    """End a job. What it had finished is in the store: submit it again, and it goes on there."""
    _jobs(address).stop(job)


def _jobs(address: str) -> Jobs:
    # Ray reads its environment when it is first imported, so the order matters.
    from bend_ray.process.environment import prepare_environment

    prepare_environment(address)
    from bend_ray.runtime.jobs import Jobs

    return Jobs(address)


def _followed(jobs: Jobs, job: str) -> int:
    """The job's exit code, after showing all that it printed."""
    try:
        return jobs.follow(job, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        drop_unwritten()
        click.echo(f"\nbend: the job goes on. {_what_next(jobs.address, job)}", err=True)
        return 130


def _what_next(address: str, job: str) -> str:
    address = masked(address)
    return (
        f"Follow it:  bend logs --address {address} {job}\n"
        f"Stop it:    bend stop --address {address} {job}"
    )


def _checked(context: click.Context, command: tuple[str, ...]) -> dict[str, Path]:
    """The files that a command needs, after everything that can be refused has been."""
    from bend_ray.config.reading import load_config
    from bend_ray.imported import code_of

    group = context.find_root().command
    assert isinstance(group, click.Group)
    if [masked(part) for part in command] != list(command):
        raise ConfigError(
            "expected a command without credentials, as whoever may see the dashboard sees it, "
            f"got {masked(' '.join(command))}; give them to the cluster's machines, in their "
            "environment"
        )
    name, *arguments = command
    # Commands that run stages: those that may join a cluster.
    runnable = {
        each: known
        for each, known in group.commands.items()
        if any(option.name == "address" and not option.required for option in known.params)
    }
    if name not in runnable:
        raise ConfigError(f"submit {name}: expected one of {', '.join(runnable)}")
    given = runnable[name].make_context(name, list(arguments)).params
    file: Path | None = given.get("file")
    config = load_config(file, given.get("overrides", ()))
    _refuse_what_stays_there(given)
    if file is None:
        return code_of(config)
    if file.is_absolute() or ".." in file.parts:
        raise ConfigError(f"{file}: expected a file below this folder, to send it to the job")
    return {**code_of(config), str(file): file}


def _refuse_what_stays_there(given: dict[str, Any]) -> None:
    """Refuse options that would put a result where nobody looks for it."""
    store = given["store"]
    if store is not None and is_local_path(store) and not Path(store).is_absolute():
        raise ConfigError(
            f"--store {store}: expected a place that every machine of the cluster reaches, "
            "s3://, gs://, abfs:// or the absolute path of a disk they share"
        )
    if given["address"] is not None:
        raise ConfigError("expected --address before --: the job runs on that cluster")
    if given.get("json_path") not in (None, "-"):
        raise ConfigError(
            f"--json {given['json_path']}: expected -, as the file would be written on the "
            "cluster; the report in the store has the same figures"
        )


def _variable(given: str) -> tuple[str, str]:
    name, separator, value = given.partition("=")
    if separator:
        return name, value
    if name not in os.environ:
        raise ConfigError(f"--env {name}: expected it in this environment, or {name}=VALUE")
    return name, os.environ[name]
