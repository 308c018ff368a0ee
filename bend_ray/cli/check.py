"""``bend check``: what training would ask of a network, asked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import click

from bend_ray.cli.options import config_arguments


@click.command(short_help="whether a network of your own will do")
@click.argument("target")
@config_arguments
def check(target: str, file: Path | None, overrides: tuple[str, ...]) -> None:
    """Try a network of your own on the data of FILE, as a run does before it trains any.

    TARGET is a function or class that gives a torch.nn.Module, by module and name. What it is
    called with is in seeds.architecture.arguments.

    \b
      bend check shop.nets:make_net flowers.yaml
      bend check shop.nets:make_net --set seeds.architecture.arguments.width=64
    """
    from bend_ray.config.graph import identified
    from bend_ray.config.reading import load_config
    from bend_ray.populations.networks import checked

    named = ["seeds.architecture.kind=imported", f"seeds.architecture.target={json.dumps(target)}"]
    config = identified(load_config(file, [*named, *overrides]))
    dataset = config.dataset.load()
    classifiers = checked(config, dataset)
    whole, trained = classifiers.whole.size, classifiers.whole.num_trainable
    form = "all at once" if classifiers.stack.form == "stacked" else "one after another"
    click.echo(
        f"{target}: takes {dataset.input_shape}, tells {len(dataset.class_names)} classes apart; "
        f"{whole:,} numbers a model, {trained:,} of them trained; models of a cohort run {form}"
    )
