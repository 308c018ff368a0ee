"""Commands for before a run: ``bend tune``, ``bend plan``, ``bend check`` and ``bend doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from bend_ray.cli.options import Asked, address_option, config_arguments, stored_config, write_file
from bend_ray.errors import ClusterError, ConfigError
from bend_ray.process import log


@click.command(short_help="search latent size, ensemble count and any other knob")
@stored_config
@address_option
@click.option(
    "--space",
    type=click.Path(path_type=Path),
    metavar="SPACE.yaml",
    help="What is searched, and how; default: latent size, ensemble count and temperature.",
)
@click.option(
    "--trials", type=click.IntRange(min=1), metavar="N", help="Configs tried; default: 24."
)
@click.option(
    "--fresh",
    type=click.IntRange(min=0),
    default=0,
    metavar="R",
    help="Then compare winner and FILE on R fresh splits, on their test parts, paired.",
)
@click.option(
    "--best",
    default="best.yaml",
    show_default=True,
    metavar="PATH",
    help="Where to write the winner's config, for `bend run`.",
)
def tune(
    asked: Asked,
    address: str | None,
    space: Path | None,
    trials: int | None,
    fresh: int,
    best: str,
) -> None:
    """Search the knobs of FILE for the bag of lowest validation NLL, and show what it costs.

    Trials share every stage they may: seeds are trained once, a trial that changes only the
    sampler re-uses autoencoder and generator, and ensemble counts are read off one set of samples.
    The test part stays closed. A search that was killed goes on when it is run again.

    \b
      bend tune
      bend tune configs/digits.yaml --space configs/tune/digits.yaml --fresh 3
      bend run best.yaml

    \b
    SPACE.yaml:
      trials: 24
      ensemble_counts: [1, 2, 4, 8, 16, 32, 48]
      knobs:                              # any path that `bend config` lists
        autoencoder.model.latent_size: [32, 64, 96]
        generator.training.steps: {low: 0, high: 400, step: 100}
      objective: {kind: nll}              # accuracy, penalised_nll {cost, inference}
      searcher: {kind: tpe}               # random, grid
      scheduler: {kind: asha}             # {first, reduction, members}; none
    """
    from bend_ray.tune.page import text, write_page
    from bend_ray.tune.search import tune as search
    from bend_ray.tune.space import load_section
    from bend_ray.tune.study import best_yaml, on_fresh_splits, sentences, summary

    config = asked.load()
    section = load_section(space, config, trials)
    study = search(config, section, asked.store, address=address)
    lines = summary(study)
    click.echo(f"{text(study)}\n\n" + "\n".join(lines))
    write_file("--best", Path(best), best_yaml(study.config_of(*study.winner), "\n".join(lines)))
    compared = None
    if fresh:
        compared = on_fresh_splits(study, asked.store, fresh, address)
        click.echo("\n" + "\n".join(sentences(compared)))
    click.echo(f"best:   {best}\nreport: {write_page(study, compared)}")


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
@click.option("--json", "as_json", is_flag=True, help="Seconds and bytes as JSON instead.")
def plan(
    asked: Asked,
    nodes: str,
    models_per_hour: float | None,
    test_images: int | None,
    as_json: bool,
) -> None:
    """Predict a run: computing, bytes and wall time of each stage, and what becomes the bottleneck.

    Measures for about ten seconds what a processor of this machine does with the config's networks,
    and divides the work by it. Wall times are of computing: beside it, a cluster starts Ray and its
    processes, and machines that are asked for have to come.

    \b
      bend plan
      bend plan --set price_per_hour.cpu=0.05 --set price_per_hour.gpu=1.2
      bend plan configs/cifar10.yaml --set seeds.protocol.forks=1000 --nodes 1,64
    """
    from bend_ray.forecast import workload
    from bend_ray.forecast.calibration import Problem, calibrate
    from bend_ray.report import results

    config, counts = asked.load(), _counts(nodes)
    dataset = config.dataset.load()
    problem = Problem.of(config, dataset, test_images)
    log.LOGGER.info(
        "measuring    %d members of %d parameters, %d examples",
        *(problem.members, problem.parameters, problem.train_images),
    )
    works = workload.workload(config, problem, calibrate(config, dataset, problem))
    if models_per_hour is not None:
        works = workload.at_rate(works, models_per_hour, problem.members)
    if as_json:
        click.echo(json.dumps(workload.as_json(works, counts), indent=2))
        return
    click.echo("\n".join(results.aligned(workload.rows(works, counts))))
    for count in counts:
        click.echo(f"{count} x waits longest for {workload.bottleneck(works, count)}")


def _counts(nodes: str) -> list[int]:
    words = nodes.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise ConfigError(f"--nodes {nodes}: expected numbers above 0, as in 1,8,64,512")
    return [int(word) for word in words]


@click.command(short_help="whether a network of your own will do")
@click.argument("target")
@config_arguments
def check(target: str, asked: Asked) -> None:
    """Try a network of your own on the data of FILE, as a run does before it trains any.

    TARGET is a function or class that gives a torch.nn.Module, by module and name. What it is
    called with is in seeds.architecture.arguments.

    \b
      bend check shop.nets:make_net flowers.yaml
      bend check shop.nets:make_net --set seeds.architecture.arguments.width=64
    """
    from bend_ray.config.graph import identified
    from bend_ray.populations.networks import checked

    named = ["seeds.architecture.kind=imported", f"seeds.architecture.target={json.dumps(target)}"]
    config = identified(asked._replace(overrides=(*named, *asked.overrides)).load())
    dataset = config.dataset.load()
    classifiers = checked(config, dataset)
    whole, trained = classifiers.whole.size, classifiers.whole.num_trainable
    form = "all at once" if classifiers.stack.form == "stacked" else "one after another"
    click.echo(
        f"{target}: takes {dataset.input_shape}, tells {len(dataset.class_names)} classes apart; "
        f"{whole:,} numbers a model, {trained:,} of them trained; models of a cohort run {form}"
    )


@click.command(short_help="whether a cluster and a store are fit for a run")
@address_option
@click.option("--store", metavar="URI", help="A store, asked from every node for all rights.")
def doctor(address: str | None, store: str | None) -> None:
    """Say what must be mended before a run: a line a node, and one below it for each fault.

    Asks a process of every node, within a minute or two, for its versions, GPU and driver, shared
    memory, disk and clock, and whether the store lets it write, read, list, look for what is not
    there, and remove. Exits with 2 where something must be mended.

    \b
      bend doctor --address auto --store s3://bucket/runs
      bend submit --address http://127.0.0.1:8265 --follow -- doctor --store s3://bucket/runs
    """
    # Ray reads its environment when it is first imported, so the order matters.
    from bend_ray.process.environment import prepare_environment

    prepare_environment(address)
    from bend_ray.runtime import cluster
    from bend_ray.runtime.doctor import examine
    from bend_ray.runtime.nodes import Nodes

    own = cluster.connect(address)
    found = list(examine(Nodes(own), store))
    for each in found:
        click.echo(f"node {each.node}  {'mend' if each.mend else 'ok  '}  {each.words}")
        for fault in each.mend:
            click.echo(f"  {fault}")
    if wrong := sum(1 for each in found if each.mend):
        raise ClusterError(f"{wrong} of {len(found)} nodes must be mended, see above")
