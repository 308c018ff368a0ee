"""The command that looks at a cluster and a store before a run does: ``bend doctor``."""

from __future__ import annotations

import click

from bend_ray.cli.options import address_option
from bend_ray.errors import ClusterError


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
    from bend_ray.runtime.environment import prepare_environment

    prepare_environment(address)
    from bend_ray.runtime import cluster
    from bend_ray.runtime.doctor import examine
    from bend_ray.runtime.nodes import Nodes

    cluster.connect(address)
    found = list(examine(Nodes(), store))
    for each in found:
        click.echo(f"node {each.node}  {'mend' if each.mend else 'ok  '}  {each.words}")
        for fault in each.mend:
            click.echo(f"  {fault}")
    if wrong := sum(1 for each in found if each.mend):
        raise ClusterError(f"{wrong} of {len(found)} nodes must be mended, see above")
