"""The command that searches: ``tune``."""

from __future__ import annotations

from pathlib import Path

import click

from bend_ray.cli.options import Asked, address_option, stored_config, write_file


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
