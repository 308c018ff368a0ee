"""Options that several commands of ``bend`` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bend_ray.errors import BendError

DEFAULT_STORE = "./bend-store"

Command = TypeVar("Command", bound=Callable[..., Any])


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


def address_option(command: Command) -> Command:
    """--address: which cluster."""
    return click.option(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster to join (HOST:PORT or auto); default RAY_ADDRESS, else our own.",
    )(command)


def local_option(command: Command) -> Command:
    """--local: without a cluster."""
    return click.option(
        "--local",
        is_flag=True,
        help="Work in this process, without Ray: small jobs start at once; results are the same.",
    )(command)


def write_file(option: str, path: Path, text: str) -> None:
    """Write what an option names.

    Raises:
        BendError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BendError(
            f"{option} {path}: expected a file that can be written, got: {error.strerror}"
        ) from error


def repeats_option(command: Command) -> Command:
    """--repeats: how many seeds."""
    return click.option(
        "--repeats",
        type=click.IntRange(min=1),
        default=1,
        metavar="R",
        help="R runs, each under its own seed and split, and what they have in common.",
    )(command)
