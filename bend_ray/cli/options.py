"""Options that several commands of ``bend`` share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bend_ray.errors import BendError

if TYPE_CHECKING:
    from bend_ray.config.schema import PipelineConfig

DEFAULT_STORE = "./bend-store"

Command = Callable[..., Any]

store_option = click.option(
    "--store",
    default=DEFAULT_STORE,
    show_default=True,
    metavar="URI",
    help="Where artifacts live: a folder, s3://, gs:// or abfs://.",
)
address_option = click.option(
    "--address",
    metavar="ADDRESS",
    help="Ray cluster to join (HOST:PORT or auto); default RAY_ADDRESS, else our own.",
)
local_option = click.option(
    "--local",
    is_flag=True,
    help="Work in this process, without Ray: small jobs start at once; results are the same.",
)
repeats_option = click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    metavar="R",
    help="R runs, each under its own seed and split, and what they have in common.",
)


class Asked(NamedTuple):
    """Which config a command line names, and the store of those that have one."""

    file: Path | None = None
    overrides: tuple[str, ...] = ()
    store: str = DEFAULT_STORE

    @property
    def by_name(self) -> bool:
        """Whether it names one."""
        return self.file is not None or bool(self.overrides)

    def load(self) -> PipelineConfig:
        """The config; the default one where none is named."""
        from bend_ray.config.reading import load_config

        return load_config(self.file, self.overrides)


def config_arguments(command: Command) -> Command:
    """FILE and --set, which the command takes as ``asked``."""

    @click.argument("file", required=False, type=click.Path(path_type=Path))
    @click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set one knob, as in --set samples.count=96; may be given again.",
    )
    @wraps(command)
    def asking(**given: Any) -> Any:
        asked = Asked(*(given.pop(name) for name in Asked._fields if name in given))
        return command(asked=asked, **given)

    return asking


def stored_config(command: Command) -> Command:
    """FILE, --set and --store, which the command takes as ``asked``."""
    return config_arguments(store_option(command))


def write_file(option: str, path: Path, text: str) -> None:
    """Write what an option names; a BendError where it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BendError(
            f"{option} {path}: expected a file that can be written, got: {error.strerror}"
        ) from error
