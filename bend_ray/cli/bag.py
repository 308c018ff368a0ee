"""The commands that hand a finished bag on: ``bend export`` and ``bend serve``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bend_ray.cli.options import Asked, address_option, store_option, stored_config
from bend_ray.errors import ConfigError, DataError
from bend_ray.process import log
from bend_ray.storage.masking import masked
from bend_ray.storage.uris import canonical, is_local_path

if TYPE_CHECKING:
    from bend_ray.config.graph import Graph
    from bend_ray.config.schema import PipelineConfig
    from bend_ray.export.card import Card

EXPORTS = "./bend-export"

_first_members = click.option(
    "--members",
    type=int,
    metavar="N",
    help="Only the first N members of the bag, with a temperature, scores and promises of theirs.",
)


@click.command(short_help="the bag as files that other tools load")
@stored_config
@click.option(
    "--output",
    metavar="URI",
    help=f"Folder to write, on a disk or in an object store; default {EXPORTS}/VERSION.",
)
@click.option(
    "--onnx/--no-onnx",
    "with_onnx",
    default=True,
    help="Whether to write ONNX programs, from which `bend serve` answers.",
)
@_first_members
def export(asked: Asked, output: str | None, with_onnx: bool, members: int | None) -> None:
    """Write the bag that an evaluation chose as a folder, and print where.

    Without FILE and --set it is the newest evaluation's of the store. The folder holds config.json,
    members.safetensors, ONNX programs (raw inputs in, answers out) and a README that shows
    how to load them without bend_ray.

    \b
      bend export
      bend export --output s3://bucket/bags/digits
    """
    from bend_ray.export.folder import export_bag

    config, graph, where = _chosen(asked, output, members)
    export_bag(config, graph, where, with_onnx=with_onnx, members=members)
    click.echo(masked(where))


@click.command(short_help="one network that answers as the bag does")
@stored_config
@click.option(
    "--output", metavar="URI", help=f"Folder to write; default {EXPORTS}/VERSION-student."
)
@click.option("--epochs", type=float, help="Of the student; default: as of a member.")
def distill(asked: Asked, output: str | None, epochs: float | None) -> None:
    """Train one network on the bag's answers, write it as a bag of one, and print where.

    Without FILE and --set the bag is the newest evaluation's of the store. The student learns the
    bag's answers about mixtures of two training examples each, which no member has seen. It costs
    to ask what one member costs. Beside its bag it is asked first, and the bag where it is unsure:

    \b
      bend distill
      bend serve --option student=bend-export/bf9345ebcce8-student
    """
    from bend_ray.export.student import distil

    config, graph, where = _chosen(asked)
    where = output or f"{where}-student"
    scores = distil(config, graph, where, epochs).scores
    assert scores is not None
    told = "distill      %.2f %% on the %s part, NLL %.4f"
    log.LOGGER.info(told, 100 * (scores.accuracy or 0.0), scores.part, scores.nll)
    click.echo(masked(where))


def _chosen(
    asked: Asked, output: str | None = None, members: int | None = None
) -> tuple[PipelineConfig, Graph, str]:
    """The config that was named, or that of the store's newest evaluation; where its bag goes."""
    from bend_ray.artifacts.store import Store
    from bend_ray.config.graph import graph_of, identified, newest_config
    from bend_ray.export.card import version_of
    from bend_ray.report.evaluation import Evaluation

    store = Store(asked.store)
    config = identified(asked.load()) if asked.by_name else newest_config(store)
    graph = graph_of(config, store)
    # What is wrong with it, or that it is missing, is told by whoever reads it.
    manifest = store.manifest(graph.evaluation.stage, graph.evaluation.fingerprint)
    if manifest is not None:
        evaluation = Evaluation.committed(manifest)
        log.LOGGER.info(
            "bag          %s members, %s %.4f on the %s part: evaluation %s of %s, made %s%s",
            *(evaluation.bag.size, evaluation.score, evaluation.bag.accuracy or 0.0),
            evaluation.part,
            *(manifest.fingerprint, masked(store.uri), manifest.created),
            "" if asked.by_name else ", the newest",
        )
        if members is not None and 1 <= members <= evaluation.bag.size:
            log.LOGGER.info("bag          of these the first %d", members)
    where = output or f"{EXPORTS}/{version_of(graph.evaluation.fingerprint, members)}"
    return config, graph, where


@click.command(short_help="answer questions over HTTP")
@stored_config
@click.option("--export", "folder", metavar="URI", help="Serve this exported bag.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--grpc-port", type=click.IntRange(1, 65535), help="Serve gRPC on this port too.")
@click.option("--certfile", metavar="PEM", help="Certificate chain for TLS, with --keyfile.")
@click.option("--keyfile", metavar="PEM", help="Its key.")
@click.option(
    "--direct", is_flag=True, help="In this process, without Ray: for one machine, and faster."
)
@_first_members
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="How it is served, as in --option stop_when_decided=true; may be given again.",
)
@click.option(
    "--config-only",
    is_flag=True,
    help=f"Print a Serve config for `serve deploy` or a RayService instead; without --export, "
    f"the bag is exported to {EXPORTS}/VERSION for it.",
)
def serve(
    asked: Asked,
    folder: str | None,
    direct: bool,
    members: int | None,
    options: tuple[str, ...],
    config_only: bool,
    **listening: Any,
) -> None:
    """Serve a bag over HTTP on this machine, until interrupted.

    Without FILE, --set and --export it is the newest evaluation's of the store. Answers /predict,
    the Open Inference Protocol v2 below /v2, a page to draw on at / and /metrics. With
    BEND_SERVE_TOKEN in the environment, requests must bear it; on an address that others reach it
    must be there.

    \b
      bend serve
      bend serve --direct --grpc-port 8001
      bend serve --export ./bend-export/bf9345ebcce8 --option stop_when_decided=true
      bend serve --config-only > serve.yaml && serve deploy serve.yaml
    """
    started = time.monotonic()
    _prepare_serving()
    from bend_ray.config.reading import apply
    from bend_ray.export.card import read_card
    from bend_ray.serve.listening import Listening, welcome
    from bend_ray.serve.settings import parse_settings

    given: dict[str, Any] = {}
    for option in options:
        apply(given, option, "--option", "stop_when_decided=true")
    settings = parse_settings(given)
    where = Listening(**listening)
    if folder is not None:
        _check_export(folder, click.get_current_context())
    bag = canonical(folder or _exported(asked, members))
    if config_only:
        from bend_ray.serve.deployment import deploy_config, deploy_text

        if is_local_path(bag):
            read_card(Path(bag))
        click.echo(deploy_text(deploy_config(bag, settings, where)), nl=False)
        return
    where.prepare()

    def tell(listens: str, card: Card) -> None:
        click.echo(welcome(where, listens, card, time.monotonic() - started))

    if direct:
        from bend_ray.serve.direct import run

        run(bag, settings, where, tell)
        return
    from bend_ray.serve import deployment

    tell(*deployment.start(bag, settings, where))
    deployment.wait(settings.name)


@click.command(short_help="what the bag says about pictures, or rows of CSV")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@store_option
@click.option("--export", "folder", metavar="URI", help="Ask this exported bag.")
def ask(files: tuple[Path, ...], store: str, folder: str | None) -> None:
    """Ask the bag about picture files, or rows of CSV: a line each, in this process.

    Without --export it is the newest evaluation's of the store.

    \b
      bend ask digit.png photo.jpg
      bend ask people.csv
    """
    from bend_ray.serve.pictures import lines

    bag = canonical(folder or _exported(Asked(store=store)))
    for line in lines(bag, files):
        click.echo(line)


@click.command(short_help="what the bag says about files of images, Parquet or CSV")
@click.argument("examples")
@click.option(
    "--output", required=True, metavar="URI", help="Folder for Parquet files: a row each."
)
@store_option
@click.option("--export", "folder", metavar="URI", help="Ask this exported bag.")
@click.option("--column", default="image", show_default=True, help="Of images in Parquet files.")
@click.option("--run-code", is_flag=True, help="Run the code that a bag without ONNX names.")
@address_option
def predict(
    examples: str,
    output: str,
    store: str,
    folder: str | None,
    column: str,
    run_code: bool,
    address: str | None,
) -> None:
    """Ask the bag about all EXAMPLES, a folder or a pattern of files, on a cluster.

    Labels, probabilities and uncertainty of each go to Parquet files, beside the columns that are
    no inputs. Images are read as the bag's training reads them, in image files or in Parquet as
    Hugging Face lays them out; other inputs are columns of Parquet or CSV files.

    \b
      bend predict photos/ --output answers/
      bend predict 's3://bucket/test-*.parquet' --output s3://bucket/answers --address auto
    """
    _prepare_serving(address)
    from bend_ray.serve.bulk import predict as predicted

    bag = canonical(folder or _exported(Asked(store=store)))
    count = predicted(canonical(examples), output, bag, column, address, run_code)
    log.LOGGER.info("predict      %d examples", count)
    click.echo(masked(output))


def _check_export(export: str, context: click.Context) -> None:
    """Refuse what says beside --export which bag it is, and what a Serve config must not show."""
    options = {"file": "FILE", "overrides": "--set", "store": "--store", "members": "--members"}
    given = [
        option
        for name, option in options.items()
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise ConfigError(
            f"--export: expected no {given[0]} beside it, it names the bag alone; "
            "leave one of them out"
        )
    if masked(export) != export:
        raise ConfigError(
            f"--export {masked(export)}: expected a URI without credentials, as the config "
            "shows it; give them to the replicas, in their environment"
        )


def _prepare_serving(address: str | None = None) -> None:
    # Ray reads its environment when it is first imported, so the order matters.
    from bend_ray.process.environment import prepare_environment, set_defaults

    # By this name Ray is told that its cluster is this machine: it listens on loopback alone.
    set_defaults({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"})
    prepare_environment(address)


def _exported(asked: Asked, members: int | None = None) -> str:
    """Where the bag is exported to; exports it where it is not yet."""
    from bend_ray.export.card import read_card

    config, graph, where = _chosen(asked, members=members)
    try:
        read_card(Path(where))
    except DataError:
        from bend_ray.export.folder import export_bag

        log.LOGGER.info("export       to %s", where)
        export_bag(config, graph, where, members=members)
    return where
