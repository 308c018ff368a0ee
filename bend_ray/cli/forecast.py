"""The command that says beforehand what a run will take: ``bend plan``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from bend_ray.cli.options import config_arguments
from bend_ray.errors import ConfigError
from bend_ray.process import log


@click.command(short_help="what a run will take, on how many machines")
@config_arguments
@click.option(
    "--nodes",
    default="1,8,64,512",
    show_default=True,
    metavar="N,N,...",
    help="Machines to plan for, of one processor each: a GPU where this machine has one, "
    "else a CPU core.",
)
@click.option(
    "--models-per-hour",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Members of the population that one processor of theirs trains in an hour; "
    "default: measured here.",
)
@click.option(
    "--test-images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images of the test part, which stays closed; default: as many as validation images.",
)
@click.option(
    "--price",
    type=click.FloatRange(min=0),
    metavar="X",
    help="What a machine costs an hour: adds what a run costs where all are held until its end.",
)
@click.option("--json", "as_json", is_flag=True, help="Seconds and bytes as JSON instead.")
def plan(
    file: Path | None,
    overrides: tuple[str, ...],
    nodes: str,
    models_per_hour: float | None,
    test_images: int | None,
    price: float | None,
    as_json: bool,
) -> None:
    """Predict a run: computing, bytes and wall time of each stage, and what becomes the bottleneck.

    Measures for about ten seconds what a processor of this machine does with the config's networks,
    and divides the work by it. Wall times are of computing: beside it, a cluster starts Ray and its
    processes, and machines that are asked for have to come.

    \b
      bend plan
      bend plan configs/cifar10.yaml --set seeds.protocol.forks=1000 --nodes 1,64
    """
    from bend_ray.config.reading import load_config
    from bend_ray.forecast import workload
    from bend_ray.forecast.calibration import Problem, calibrate
    from bend_ray.report import results

    config, counts = load_config(file, overrides), _counts(nodes)
    dataset = config.dataset.load()
    problem = Problem.of(config, dataset, test_images)
    log.LOGGER.info(
        "measuring    %d members of %d parameters, %d images",
        *(problem.members, problem.parameters, problem.train_images),
    )
    works = workload.workload(config, problem, calibrate(config, dataset, problem))
    if models_per_hour is not None:
        works = workload.at_rate(works, models_per_hour, problem.members)
    if as_json:
        click.echo(json.dumps(workload.as_json(works, counts), indent=2))
        return
    click.echo("\n".join(results.aligned(workload.rows(works, counts, price))))
    for count in counts:
        click.echo(f"{count} x waits longest for {workload.bottleneck(works, count)}")


def _counts(nodes: str) -> list[int]:
    words = nodes.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise ConfigError(f"--nodes {nodes}: expected numbers above 0, as in 1,8,64,512")
    return [int(word) for word in words]
